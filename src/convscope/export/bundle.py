"""A trained network with what it needs to be used: preprocessing, class names, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.drift import TrainingStatistics
from convscope.errors import DataError, LoweringError, UsageError, expected_got
from convscope.evaluation import apply_temperature
from convscope.evaluation.novelty import Novelty
from convscope.preprocessing import Preprocess

if TYPE_CHECKING:
    import keras

# uint8 images (n, height, width, channels) of the right size → probabilities (n, classes), float32
Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
# The same images → probabilities and features (n, d), which enter the layer that decides
Examine = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Bundle:
    """A network, the preprocessing that it was trained with, the names of its classes, its calibration.

    Attributes
    ----------
    preprocess : Preprocess
        What every image goes through.
    class_names : tuple of str
        By position in the output.
    temperature : float
        What the probabilities are calibrated with; 1 leaves them as they are.
    statistics : TrainingStatistics or None
        What training images look like; None for runs that did not record it.
    novelty : Novelty or None
        Where they lie in feature space, and how far from them an image is unlike them; None for runs that
        did not record it, and where the network gives no features.
    forward : callable
        uint8 images ``(n, height, width, channels)`` of the right size → calibrated probabilities.
    examine : callable or None
        The same images → calibrated probabilities and features; None where the network gives none.
    network : keras.Model or None
        None where the network runs outside Keras.

    Examples
    --------
    >>> import convscope
    >>> images = np.zeros((2, 8, 8, 1), np.uint8)
    >>> model = convscope.build("simple", (8, 8, 1), classes=3)
    >>> bundle = Bundle.from_model(model, Preprocess.fit(images), ("a", "b", "c"))
    >>> bundle.predict(images).shape
    (2, 3)
    """

    preprocess: Preprocess
    class_names: tuple[str, ...]
    temperature: float = 1.0
    statistics: TrainingStatistics | None = field(default=None, repr=False)
    novelty: Novelty | None = field(default=None, repr=False)
    forward: Forward = field(kw_only=True, repr=False)
    examine: Examine | None = field(default=None, kw_only=True, repr=False)
    network: keras.Model | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        preprocess: Preprocess,
        class_names: Sequence[str],
        temperature: float = 1.0,
        statistics: TrainingStatistics | None = None,
        novelty: Novelty | None = None,
    ) -> Bundle:
        """Put a Keras model together with what it needs; refuse what does not fit together."""
        expected_shapes = ((None, *preprocess.input_shape), (None, len(class_names)))
        if (model.input_shape, model.output_shape) != expected_shapes:
            expected = "a network from {} to {}".format(*expected_shapes)
            raise DataError(expected_got(expected, f"one from {model.input_shape} to {model.output_shape}"))

        def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            from convscope.training.api import predict

            return calibrate(predict(model, pixels, preprocess=preprocess), temperature)

        def examine(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            from convscope.training.api import predict_with_features

            outputs, features = predict_with_features(model, pixels, preprocess)
            return calibrate(outputs, temperature), features

        others = preprocess, tuple(class_names), temperature, statistics, novelty
        return cls(*others, forward=forward, examine=examine, network=model)

    @property
    def model(self) -> keras.Model:
        """The Keras model, which an ONNX export has not."""
        if self.network is None:
            expected = "a run or a Keras export"
            raise UsageError(expected_got(expected, "an ONNX export", "It can only predict."))
        return self.network

    def predict(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Compute calibrated probabilities for raw images.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c), uint8, or a sequence of (h, w, c) arrays
            Pixels as they were read, of any size, grey or RGB.

        Returns
        -------
        ndarray of shape (n, classes), float32

        Raises
        ------
        DataError
            If the images are not uint8, or the network computes NaN.
        """
        pixels = self.preprocess.resize_to_input(images)
        if len(pixels) == 0:
            return np.empty((0, len(self.class_names)), np.float32)
        return _finite(self.forward(pixels))

    def predict_with_warnings(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], list[tuple[str, ...]]]:
        """Compute what `predict` does, and say what about each image is unlike the training images.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c), uint8, or a sequence of (h, w, c) arrays
            As for `predict`.

        Returns
        -------
        ndarray of shape (n, classes), float32
            The probabilities.
        list of tuple of str
            Sentences for each image, the most telling first; empty for one like the training images. Where
            its pixels say nothing, its distance from them in the network's features does.

        Examples
        --------
        >>> import convscope
        >>> images = np.zeros((2, 8, 8, 1), np.uint8)
        >>> model = convscope.build("simple", (8, 8, 1), classes=3)
        >>> bundle = Bundle.from_model(model, Preprocess.fit(images), ("a", "b", "c"))
        >>> probabilities, warnings = bundle.predict_with_warnings(images)
        >>> warnings
        [(), ()]
        """
        pixels = self.preprocess.resize_to_input(images)
        probabilities, distances = self.predict_with_distances(pixels)
        return probabilities, self.warnings(pixels, distances)

    def predict_with_distances(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Compute what `predict` does and, in the same pass, how far each image is from the training images.

        None in place of the distances (n,) where the network gives no features, or no `Novelty` was recorded.
        """
        pixels = self.preprocess.resize_to_input(images)
        if self.novelty is not None and self.examine is not None and len(pixels):
            # A network that Keras has to predict gives no features.
            with suppress(LoweringError):
                probabilities, features = self.examine(pixels)
                return _finite(probabilities), self.novelty.distances(features)
        return self.predict(pixels), None

    def warnings(
        self, pixels: NDArray[np.uint8], distances: NDArray[np.float32] | None
    ) -> list[tuple[str, ...]]:
        """Say what about images (n, h, w, c) of the network's size, at these distances, is unlike others."""
        found: list[tuple[str, ...]] = [()] * len(pixels)
        if self.statistics is not None:
            found = self.statistics.drift_warnings(pixels)
        if distances is None or self.novelty is None:
            return found
        # What is visibly wrong with an image is also why the network does not know it: said once.
        said = [odd or (self.novelty.warning(far),) for odd, far in zip(found, distances, strict=True)]
        return [tuple(filter(None, sentences)) for sentences in said]


def _finite(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Refuse NaN."""
    if not np.isfinite(probabilities).all():
        expected = "probabilities"
        raise DataError(expected_got(expected, "NaN", "The weights are damaged; train or export again."))
    return probabilities


def calibrate(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Apply a temperature in float64; at 1 the probabilities stay as they are, to the last bit."""
    if temperature == 1:
        return np.asarray(probabilities, np.float32)
    return apply_temperature(np.asarray(probabilities, np.float64), temperature).astype(np.float32)
