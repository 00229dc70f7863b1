"""All measurements and verdicts of one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from convscope.inspection.health.confidence import judge_confidence
from convscope.inspection.health.curves import judge_curves
from convscope.inspection.health.layers import LayerHealth, judge_layers, layer_health
from convscope.inspection.health.verdicts import Verdict
from convscope.inspection.running import fitting_batch, in_batches, scores, to_batch, to_numpy
from convscope.lowering.graph import read_graph

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TrainingHealth:
    """The state of a trained network.

    Parameters
    ----------
    layers : tuple of LayerHealth
        Measurements.
    verdicts : tuple of Verdict
        Judgements, the worst first.
    images : int
        On how many images.
    """

    layers: tuple[LayerHealth, ...]
    verdicts: tuple[Verdict, ...]
    images: int

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain lists, numbers and strings."""
        return {
            "layers": [layer.to_json() for layer in self.layers],
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "images": self.images,
        }


def training_health(
    model: keras.Model,
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    history: Mapping[str, Sequence[float]] | None = None,
) -> TrainingHealth:
    """Measure a trained network on images that it was not trained on, and judge it.

    Parameters
    ----------
    model : keras.Model
        A built classifier.
    images : array of shape (n, height, width, channels), float32
        Preprocessed validation images, some hundred of them.
    labels : array of shape (n,) of int, or (n, classes) one-hot
        Their classes.
    history : mapping of str to sequence of float, optional
        Losses and accuracies, one for each epoch, as in Keras's ``History.history``.

    Returns
    -------
    TrainingHealth
        Measurements of each layer and verdicts in words.

    Raises
    ------
    UsageError
        When there are no images, or labels or history do not fit.

    Examples
    --------
    >>> from convscope.networks import build
    >>> images = np.random.default_rng(0).uniform(size=(8, 28, 28, 1))
    >>> health = training_health(build("simple"), images, np.arange(8), {"loss": [2.3, 2.2]})
    >>> sorted(verdict.subject for verdict in health.verdicts if verdict.level == "good")[:2]
    ['activations', 'dead units']
    """
    layers = layer_health(model, images, labels)
    probabilities = _probabilities(model, images)
    verdicts = [*judge_layers(layers), *judge_confidence(probabilities, labels)]
    if history is not None:
        verdicts += judge_curves(history, chance=_chance(labels))
    order = ("warning", "note", "good")
    return TrainingHealth(
        layers=layers,
        verdicts=tuple(sorted(verdicts, key=lambda verdict: order.index(verdict.level))),
        images=len(probabilities),
    )


def _probabilities(model: keras.Model, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    graph = read_graph(model)
    with torch.no_grad():
        found = torch.cat(
            [scores(graph, part) for part in in_batches(to_batch(graph, images), fitting_batch(graph, 256))]
        )
    return to_numpy(found.sigmoid() if found.shape[1] == 1 else found.softmax(1))


def _chance(labels: npt.ArrayLike) -> float:
    array = np.asarray(labels)
    classes = array.argmax(1) if array.ndim == 2 and array.shape[1] > 1 else array.reshape(-1)
    return float(np.bincount(classes.astype(np.int64)).max() / len(classes))
