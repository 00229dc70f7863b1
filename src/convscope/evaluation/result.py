"""Evaluation: everything that is known about predictions once the labels are known, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from convscope.evaluation import metrics
from convscope.evaluation.inputs import as_labels, as_names, as_probabilities
from convscope.evaluation.metrics import FloatArray, IntArray


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What the predictions for a set of labelled images are worth.

    Made by `from_probabilities`; its arrays cannot be written to.

    Attributes
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels, predictions : ndarray of shape (n,), int64
        True and predicted class of each image; of equal probabilities the first class is predicted.
    class_names : tuple of str, length k
    names : tuple of str of length n, or None
        A name for each image, by which an error can be traced to its file.
    loss : float
        Mean categorical cross-entropy as Keras computes it, in nats.
    accuracy : float
        Share of images whose predicted class is the true one, from 0 to 1.
    confusion : ndarray of shape (k, k), int64
        Counts; rows are true classes, columns predicted ones.
    precision, recall, f1 : ndarray of shape (k,), float64
        For each class; 0 where there is nothing to divide by.
    support : ndarray of shape (k,), int64
        Number of images of each class.
    """

    probabilities: FloatArray
    labels: IntArray
    predictions: IntArray
    class_names: tuple[str, ...]
    names: tuple[str, ...] | None
    loss: float
    accuracy: float
    confusion: IntArray
    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: IntArray

    @classmethod
    def from_probabilities(
        cls,
        probabilities: ArrayLike,
        labels: ArrayLike,
        class_names: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> Evaluation:
        """Evaluate predicted probabilities against the true labels.

        Parameters
        ----------
        probabilities : array-like of shape (n, k)
            Predicted probabilities; each row sums to 1.
        labels : array-like of shape (n,) or (n, k)
            True classes as indices, or one-hot.
        class_names : sequence of k str, optional
            The numbers of the classes when left out.
        names : sequence of n str, optional
            A name for each image, such as the path of its file.

        Returns
        -------
        Evaluation

        Raises
        ------
        UsageError
            When shapes or lengths do not fit together.
        DataError
            When probabilities or labels hold impossible values.

        Examples
        --------
        >>> result = Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1], ["cat", "dog"])
        >>> result.accuracy
        0.5
        >>> result.confusion.tolist()
        [[1, 0], [1, 0]]
        """
        table = as_probabilities(probabilities)  # (n, k)
        images, classes = table.shape
        truth = as_labels(labels, classes, images)  # (n,)
        predictions = np.argmax(table, axis=1)  # (n, k) → (n,)
        confusion = metrics.confusion_matrix(truth, predictions, classes)
        scores = metrics.class_scores(confusion)
        for array in (table, truth, predictions, confusion, *scores):
            array.flags.writeable = False
        return cls(
            probabilities=table,
            labels=truth,
            predictions=predictions,
            class_names=as_names(class_names, classes, "class") or tuple(map(str, range(classes))),
            names=as_names(names, images, "image"),
            loss=metrics.cross_entropy(table, truth),
            accuracy=float(np.mean(predictions == truth)),
            confusion=confusion,
            **scores._asdict(),
        )

    @property
    def images(self) -> int:
        """The number of images, n."""
        return int(self.labels.size)

    @property
    def classes(self) -> int:
        """The number of classes, k."""
        return len(self.class_names)

    @property
    def errors(self) -> int:
        """The number of images whose predicted class is not the true one."""
        return int(np.count_nonzero(self.predictions != self.labels))

    def name_of(self, index: int) -> str:
        """Name one image, by its place when the images have no names.

        Parameters
        ----------
        index : int
            From 0 to n − 1.

        Returns
        -------
        str

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1]], [0]).name_of(0)
        'image 0'
        """
        return f"image {index}" if self.names is None else self.names[index]

    def worst_errors(self, count: int = 6) -> IntArray:
        """Find the errors with the largest gap between the probability of the predicted and the true class.

        Parameters
        ----------
        count : int
            How many to return at most.

        Returns
        -------
        ndarray of shape (at most count,), int64
            Indices of images, the worst first.

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.4, 0.6], [0.1, 0.9], [0.8, 0.2]], [0, 0, 0]).worst_errors()
        array([1, 0])
        """
        return metrics.worst_errors(self.probabilities, self.labels, count)

    def report(self, digits: int = 4) -> str:
        """Write precision, recall, F1 and support of each class as a table, in scikit-learn's layout.

        Parameters
        ----------
        digits : int
            Decimal places.

        Returns
        -------
        str
            Several lines.

        Examples
        --------
        >>> print(Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1], ["cat", "dog"]).report(2))
                      precision    recall  f1-score   support
        <BLANKLINE>
                 cat       0.50      1.00      0.67         1
                 dog       0.00      0.00      0.00         1
        <BLANKLINE>
            accuracy                           0.50         2
           macro avg       0.25      0.50      0.33         2
        weighted avg       0.25      0.50      0.33         2
        <BLANKLINE>
        """
        width = max(len("weighted avg"), *map(len, self.class_names))
        scores = np.stack([self.precision, self.recall, self.f1])  # (3, k)
        rows = [
            _row(name, scores[:, index], int(self.support[index]), width, digits)
            for index, name in enumerate(self.class_names)
        ]
        accuracy = f"{'accuracy':>{width}}  {'':>9} {'':>9} {self.accuracy:>9.{digits}f} {self.images:>9}"
        macro = _row("macro avg", scores.mean(axis=1), self.images, width, digits)
        weighted = _row("weighted avg", scores @ self.support / self.images, self.images, width, digits)
        header = f"{'':>{width}}  {'precision':>9} {'recall':>9} {'f1-score':>9} {'support':>9}"
        return "\n".join([header, "", *rows, "", accuracy, macro, weighted, ""])

    def to_json(self) -> dict[str, Any]:
        """Give everything as a dictionary of plain JSON types; an undefined number becomes None.

        Returns
        -------
        dict

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1]).to_json()["confusion"]
        [[1, 0], [1, 0]]
        """
        return {
            "images": self.images,
            "errors": self.errors,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "class_names": list(self.class_names),
            "per_class": [self._class_json(index) for index in range(self.classes)],
            "confusion": self.confusion.tolist(),
            "worst_errors": [self._image_json(int(index)) for index in self.worst_errors()],
        }

    def _class_json(self, index: int) -> dict[str, Any]:
        return {
            "name": self.class_names[index],
            "precision": float(self.precision[index]),
            "recall": float(self.recall[index]),
            "f1": float(self.f1[index]),
            "support": int(self.support[index]),
        }

    def _image_json(self, index: int) -> dict[str, Any]:
        true, predicted = int(self.labels[index]), int(self.predictions[index])
        return {
            "index": index,
            "name": self.name_of(index),
            "true": self.class_names[true],
            "predicted": self.class_names[predicted],
            "probability_true": float(self.probabilities[index, true]),
            "probability_predicted": float(self.probabilities[index, predicted]),
        }

    def summary(self) -> str:
        """Say in one line how good the predictions are.

        Returns
        -------
        str

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1]).summary()
        'accuracy 50.00% (1 of 2 images), loss 0.5108'
        """
        correct = self.images - self.errors
        return f"accuracy {self.accuracy:.2%} ({correct} of {self.images} images), loss {self.loss:.4f}"

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.report()}"

    def __repr__(self) -> str:
        return f"<Evaluation: {self.summary()}>"


def _row(name: str, scores: FloatArray, support: int, width: int, digits: int) -> str:
    numbers = " ".join(f"{score:>9.{digits}f}" for score in scores)
    return f"{name:>{width}}  {numbers} {support:>9}"
