"""Evaluation: everything that is known about predictions once the labels are known, computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from convscope.errors import UsageError, expected_got
from convscope.evaluation import metrics
from convscope.evaluation.calibration import Reliability, apply_temperature, reliability
from convscope.evaluation.label_check import LabelCheck, check_labels
from convscope.evaluation.metrics import (
    Areas,
    Coverage,
    Curve,
    FloatArray,
    IntArray,
    Interval,
    as_labels,
    as_names,
    as_probabilities,
    coverage_curve,
    one_vs_rest_areas,
    one_vs_rest_curve,
)

# A curve over 10,000 thresholds is drawn no better by all of them.
CURVE_POINTS = 101


class ConfusedPair(NamedTuple):
    """How often one class was taken for another."""

    true: int
    predicted: int
    images: int
    share: float  # of the images of the true class


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
        Mean categorical cross-entropy as Keras computes it, in nats: of the network's own probabilities,
        also where they were calibrated since.
    accuracy : float
        Share of images whose predicted class is the true one, from 0 to 1.
    confusion : ndarray of shape (k, k), int64
        Counts; rows are true classes, columns predicted ones.
    precision, recall, f1 : ndarray of shape (k,), float64
        For each class; 0 where there is nothing to divide by.
    support : ndarray of shape (k,), int64
        Number of images of each class.

    What is not needed to print it, the properties below, is computed when first asked for, and then kept.
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
        support, scores = confusion.sum(axis=1), metrics.class_scores(confusion)
        for array in (table, truth, predictions, confusion, support, *scores.values()):
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
            support=support,
            **scores,
        )

    def calibrated(self, temperature: float) -> Evaluation:
        """Scale the probabilities by a temperature; predicted classes and the loss stay the network's own.

        Parameters
        ----------
        temperature : float
            Above 0; 1 changes nothing.

        Returns
        -------
        Evaluation

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.8, 0.2]], [0]).calibrated(2.0).probabilities.round(4)
        array([[0.6667, 0.3333]])
        """
        if temperature == 1:
            return self
        table = apply_temperature(self.probabilities, temperature)  # (n, k)
        table.flags.writeable = False
        return replace(self, probabilities=table)

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

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1]], [0]).name_of(0)
        'image 0'
        """
        return f"image {index}" if self.names is None else self.names[index]

    def worst_errors(self, count: int = 6) -> IntArray:
        """Find the errors with the largest gap between the probability of the predicted and the true class.

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

    @cached_property
    def accuracy_interval(self) -> Interval:
        """The 95 % Wilson interval of the accuracy."""
        return metrics.wilson_interval(self.images - self.errors, self.images)

    @cached_property
    def top_k(self) -> dict[int, float]:
        """How often the true class is among the k most probable ones: k = 1, 3, 5 below the classes."""
        return metrics.top_k_accuracies(self.probabilities, self.labels)

    @cached_property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images: rare ones count as much as common ones."""
        return float(self.recall[self.support > 0].mean())

    @cached_property
    def kappa(self) -> float:
        """Cohen's kappa: agreement with the labels beyond chance; NaN where it is undefined."""
        return metrics.cohen_kappa(self.confusion)

    @cached_property
    def log_loss(self) -> float:
        """The mean of −ln p(true class), clipped only at float64's epsilon, as in scikit-learn.

        Keras clips at 1e-7 and so forgives a network that is certain and wrong.
        """
        epsilon = float(np.finfo(np.float64).eps)
        return metrics.cross_entropy(self.probabilities, self.labels, epsilon)

    @cached_property
    def brier_score(self) -> float:
        """The mean squared distance of the probabilities to the truth, from 0 to 2."""
        return metrics.brier_score(self.probabilities, self.labels)

    @cached_property
    def areas(self) -> Areas:
        """One-vs-rest ROC area and average precision of each class."""
        return one_vs_rest_areas(self.probabilities, self.labels)

    @cached_property
    def reliability(self) -> Reliability:
        """Confidence against accuracy in 15 bins, and the expected calibration error."""
        return reliability(self.probabilities, self.labels)

    @cached_property
    def coverage(self) -> Coverage:
        """Accuracy against the share of images answered."""
        return coverage_curve(self.probabilities, self.labels)

    @cached_property
    def label_check(self) -> LabelCheck:
        """All images, the most likely wrong label first; meant for images not trained on."""
        return check_labels(self.probabilities, self.labels)

    def curve(self, class_index: int) -> Curve:
        """Follow one class against the rest over all thresholds: ROC and precision–recall.

        Raises
        ------
        UsageError
            When there is no such class.

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1]).curve(1).recall
        array([0., 1., 1.])
        """
        return one_vs_rest_curve(self.probabilities, self.labels, self._class(class_index))

    def confused_pairs(self, count: int = 10) -> list[ConfusedPair]:
        """List which class is most often taken for which other one.

        Returns
        -------
        list of ConfusedPair
            The most frequent first, at most ``count``.

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1]).confused_pairs()
        [ConfusedPair(true=1, predicted=0, images=1, share=1.0)]
        """
        errors = self.confusion.copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[:count]
        pairs = np.stack(np.unravel_index(order, errors.shape), axis=1).tolist()
        return [
            ConfusedPair(true, predicted, images, images / int(self.support[true]))
            for true, predicted in pairs
            if (images := int(errors[true, predicted]))
        ]

    def hardest(self, class_index: int, count: int = 6) -> IntArray:
        """Find the images of one class that get the least probability for it.

        Returns
        -------
        ndarray of shape (at most count,), int64
            Indices of images, the hardest first.

        Raises
        ------
        UsageError
            When there is no such class.

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 0]).hardest(0, 1)
        array([1])
        """
        return self._by_difficulty(class_index)[:count]

    def easiest(self, class_index: int, count: int = 6) -> IntArray:
        """Find the images of one class that get the most probability for it, the easiest first.

        Takes, gives and raises what `hardest` does.

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 0]).easiest(0, 1)
        array([0])
        """
        return self._by_difficulty(class_index)[::-1][:count]

    def _by_difficulty(self, class_index: int) -> IntArray:
        """Sort the images of one class by the probability that they get for it, the hardest first."""
        own = np.flatnonzero(self.labels == self._class(class_index))
        return own[np.argsort(self.probabilities[own, class_index], kind="stable")].astype(np.int64)

    def _class(self, index: int) -> int:
        if not 0 <= index < self.classes:
            raise UsageError(expected_got(f"a class from 0 to {self.classes - 1}", index))
        return index

    def report(self, digits: int = 4) -> str:
        """Write precision, recall, F1 and support of each class as a table, in scikit-learn's layout.

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

        def row(name: str, cells: Sequence[object], support: int) -> str:
            return f"{name:>{width}}  {' '.join(f'{cell:>9}' for cell in cells)} {support:>9}"

        def numbers(values: FloatArray) -> list[str]:
            return [f"{value:.{digits}f}" for value in values]

        weighted = scores @ self.support / self.images
        columns = ("precision", "recall", "f1-score", "support")
        return "\n".join(
            [
                f"{'':>{width}}  {' '.join(f'{column:>9}' for column in columns)}",
                "",
                *(
                    row(name, numbers(scores[:, index]), int(self.support[index]))
                    for index, name in enumerate(self.class_names)
                ),
                "",
                row("accuracy", ["", "", f"{self.accuracy:.{digits}f}"], self.images),
                row("macro avg", numbers(scores.mean(axis=1)), self.images),
                row("weighted avg", numbers(weighted), self.images),
                "",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Give everything as a dictionary of plain JSON types; an undefined number becomes None.

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1]).to_json()["confusion"]
        [[1, 0], [1, 0]]
        """
        calibration, coverage = self.reliability, self.coverage
        chosen = np.unique(np.linspace(0, coverage.coverage.size - 1, CURVE_POINTS).round().astype(int))
        return {
            "images": self.images,
            "errors": self.errors,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "top_k": {str(k): share for k, share in self.top_k.items()},
            "balanced_accuracy": self.balanced_accuracy,
            "kappa": _plain(self.kappa),
            "log_loss": self.log_loss,
            "brier_score": self.brier_score,
            "class_names": list(self.class_names),
            "per_class": [self._class_json(index) for index in range(self.classes)],
            "areas": {
                "roc_mean": _mean(self.areas.roc),
                "average_precision_mean": _mean(self.areas.average_precision),
            },
            "confusion": self.confusion.tolist(),
            "confused_pairs": [
                {
                    **pair._asdict(),
                    "true": self.class_names[pair.true],
                    "predicted": self.class_names[pair.predicted],
                }
                for pair in self.confused_pairs()
            ],
            "worst_errors": [self._image_json(index) for index in self.worst_errors().tolist()],
            "calibration": {
                "expected_error": calibration.expected_error,
                "largest_error": calibration.largest_error,
                "edges": calibration.edges.tolist(),
                "counts": calibration.counts.tolist(),
                "confidence": list(map(_plain, calibration.confidence)),
                "accuracy": list(map(_plain, calibration.accuracy)),
            },
            "coverage": {name: values[chosen].tolist() for name, values in coverage._asdict().items()},
        }

    def _class_json(self, index: int) -> dict[str, Any]:
        return {
            "name": self.class_names[index],
            "precision": float(self.precision[index]),
            "recall": float(self.recall[index]),
            "f1": float(self.f1[index]),
            "support": int(self.support[index]),
            "roc_area": _plain(self.areas.roc[index]),
            "average_precision": _plain(self.areas.average_precision[index]),
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

        Examples
        --------
        >>> Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1]).summary()
        'accuracy 50.00% (1 of 2 images, 95 % interval 9.45% … 90.55%), loss 0.5108'
        """
        low, high = self.accuracy_interval
        counts = f"{self.images - self.errors} of {self.images} images, 95 % interval {low:.2%} … {high:.2%}"
        return f"accuracy {self.accuracy:.2%} ({counts}), loss {self.loss:.4f}"

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.report()}"

    def __repr__(self) -> str:
        return f"<Evaluation: {self.summary()}>"


def _plain(value: float) -> float | None:
    """Turn a number into one that JSON has: NaN and infinity become None."""
    return float(value) if math.isfinite(value) else None


def _mean(values: FloatArray) -> float | None:
    """Average over the classes for which the number exists."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else None
