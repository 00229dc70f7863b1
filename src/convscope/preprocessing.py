"""Preprocessing: fitted once on the training images, then frozen and applied everywhere.

One object, one implementation: training, validation, prediction, export and serving all call
``Preprocess.apply_tensor``, so that "99 % in validation, 70 % in use" cannot come from here.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convscope.environment import beside
from convscope.errors import DataError, UsageError, expected_got, unknown_name

if TYPE_CHECKING:
    import torch

# Fitted on training images, all but the last: it comes with a network that was trained elsewhere.
SCALINGS = ("minmax", "unit", "standard", "raw", "published")
RESIZES = ("letterbox", "crop", "stretch")
DATA_FORMATS = ("channels_last", "channels_first")
# A photograph of 8,000×8,000; decoded it takes 192 MB.
PIXEL_CAP = 64_000_000
# Images are converted to float32 this many at a time while fitting, so that memory stays flat.
FIT_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Preprocess:
    """From uint8 pixels of any size to the float32 array that a network takes.

    The pixels are brought to the size and channels of the training images, converted to float32, scaled
    as ``pixels * scale + offset``, clipped to ``limits`` where there are any, and their channel axis is put
    where ``data_format`` says.

    ``minmax`` clips to [0, 1]: a pixel darker or brighter than any training image had at that position
    counts as the darkest or brightest one seen there. Without this, a position that is constant in the
    training set (the border of MNIST) would hand a value of up to 255 to the network.

    Parameters
    ----------
    height, width, channels : int
        Size of the images that the network takes, in pixels.
    scaling : {"minmax", "unit", "standard", "raw", "published"}
        ``minmax``: scikit-learn's MinMaxScaler, fitted per pixel. ``unit``: divide by 255. ``standard``:
        subtract the mean of each channel and divide by its standard deviation. ``raw``: 0 to 255 as they
        are, for a network that scales them itself. ``published``: as the images were on which a network's
        weights were trained; not fitted, it comes with the network.
    scale, offset : ndarray, float32
        Broadcast against ``(height, width, channels)``.
    limits : tuple of two float or None
        What the scaled values are clipped to.
    data_format : {"channels_last", "channels_first"}
        Where the channel axis is in the result.
    resize : {"letterbox", "crop", "stretch"}
        How an image of another size is brought to size.
    depth : int
        How many bits are in use in files of more than 8 bits, over all images of the data set: the upper 8 of
        these are the pixels, of a training image as of any other.

    Examples
    --------
    >>> images = np.arange(0, 240, 10, dtype=np.uint8).reshape(6, 2, 2, 1)
    >>> preprocess = Preprocess.fit(images)
    >>> preprocess.apply(images)[:, 0, 0, 0].round(2).astype(str).tolist()
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    """

    height: int
    width: int
    channels: int
    scaling: str
    scale: NDArray[np.float32] = field(repr=False)
    offset: NDArray[np.float32] = field(repr=False)
    limits: tuple[float, float] | None
    data_format: str = "channels_last"
    resize: str = "letterbox"
    depth: int = 16

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocess) and all(
            np.array_equal(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)
        )

    def __hash__(self) -> int:
        return hash((self.height, self.width, self.channels, self.scaling, self.data_format, self.resize))

    @classmethod
    def fit(
        cls,
        images: NDArray[np.uint8],
        scaling: str = "minmax",
        data_format: str = "channels_last",
        resize: str = "letterbox",
        depth: int = 16,
    ) -> Preprocess:
        """Learn the scaling from the training images, and from nothing else.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c), uint8
            The training images.
        scaling, data_format, resize : str
            As in the class.
        depth : int
            As in the class.

        Returns
        -------
        Preprocess
            Ready to apply.

        Raises
        ------
        UnknownNameError
            If one of the choices does not exist.
        DataError
            If the images are not uint8 of that shape, or none.
        """
        for kind, value, valid in (
            ("scaling", scaling, _FITS),
            ("data format", data_format, DATA_FORMATS),
            ("way to resize", resize, RESIZES),
        ):
            if value not in valid:
                raise unknown_name(kind, value, valid)
        _require_images(images)
        if len(images) == 0:
            raise DataError(expected_got("at least one training image", "none"))
        scale, offset, limits = _FITS[scaling](images)
        _, height, width, channels = images.shape
        return cls(height, width, channels, scaling, scale, offset, limits, data_format, resize, depth)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed image, in the order of the data format."""
        if self.data_format == "channels_first":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image of uint8 that has the network's size: (h, w, c)."""
        return self.height, self.width, self.channels

    def apply(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Preprocess images that lie in memory.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c), uint8, or a sequence of (h, w, c) arrays
            Images of any size; sizes may differ in a sequence.

        Returns
        -------
        ndarray, float32
            ``(n, height, width, channels)`` or ``(n, channels, height, width)``.

        Raises
        ------
        DataError
            If the images are not uint8.

        Examples
        --------
        >>> preprocess = Preprocess.fit(np.zeros((1, 4, 4, 1), np.uint8), scaling="unit")
        >>> preprocess.apply(np.full((2, 8, 8, 3), 255, np.uint8)).shape
        (2, 4, 4, 1)
        """
        import torch

        # torch takes only arrays that may be written to; nothing is copied where that is so already.
        pixels = torch.from_numpy(np.require(self.resize_to_input(images), requirements=["C", "W"]))
        result: NDArray[np.float32] = self.apply_tensor(pixels).numpy()
        return result

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring scale and offset to a device, for ``apply_tensor``; nobody waits for the copies."""
        import torch

        scale, offset = (torch.from_numpy(array) for array in (self.scale, self.offset))
        return scale.to(device, non_blocking=True), offset.to(device, non_blocking=True)

    def apply_tensor(
        self, pixels: torch.Tensor, tensors: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Preprocess uint8 pixels (n, height, width, channels); the one implementation of the arithmetic.

        Gives float32 on the same device, contiguous, (n, h, w, c) or (n, c, h, w) by the data format.
        ``tensors`` are scale and offset where the pixels are.
        """
        import torch

        # Torch copies what a GPU has not read yet, and the arrays stay.
        scale, offset = tensors or self.tensors(pixels.device)
        values = pixels.to(torch.float32).mul_(scale).add_(offset)
        if self.limits is not None:
            values.clamp_(*self.limits)
        if self.data_format == "channels_first":
            return values.permute(0, 3, 1, 2).contiguous()  # (n, c, h, w)
        return values

    def resize_to_input(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Bring images to size and channels of the training images, still uint8; copied only if need be."""
        if isinstance(images, np.ndarray):
            _require_images(images)
            if images.shape[1:] == self.image_shape:
                return images
        shape = (self.height, self.width)
        resized = [resize_to_input(image, shape, self.channels, self.resize) for image in images]
        return np.stack(resized) if resized else np.empty((0, *shape, self.channels), np.uint8)

    def describe(self) -> list[str]:
        """Say in words what is done to an image, a line for each step."""
        scaling = {
            "minmax": "minmax scaling: each pixel to [0, 1] by its range over the training images, clipped",
            "unit": "unit scaling: divided by 255",
            "standard": "standard scaling: mean 0, standard deviation 1 per channel over the training images",
            "raw": "raw scaling: 0 to 255 as they are, since the network scales them itself",
            "published": f"published scaling: {self._formula()}, as the network's weights were trained",
        }[self.scaling]
        size = f"{self.height}×{self.width}×{self.channels}"
        deep = [f"files of more than 8 bits: the upper 8 of {self.depth}"] if self.depth != 16 else []
        return [
            *deep,
            f"float32 from uint8 pixels, {size}; other sizes by {self.resize}",
            scaling,
            f"channel axis: {self.data_format}, one image has shape {self.input_shape}",
        ]

    def _formula(self) -> str:
        """Write the scaling with its numbers: (pixel − 127) / 128, or a number for each channel."""

        def written(values: NDArray[np.float64]) -> str:
            numbers = [f"{value:.4g}" for value in values.ravel()]
            return numbers[0] if len(set(numbers)) == 1 else f"[{', '.join(numbers)}]"

        deviation = 1 / self.scale.astype(np.float64)
        divided = "" if np.all(deviation == 1) else f" / {written(deviation)}"
        return f"(pixel − {written(-self.offset * deviation)}){divided}"

    def to_files(self) -> dict[str, bytes]:
        """Serialise to named files: the settings as JSON, the arrays as NumPy's npz."""
        arrays = {"scale": self.scale, "offset": self.offset}
        settings = {key: value for key, value in asdict(self).items() if key not in arrays}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return {
            "preprocess.json": json.dumps(settings, indent=2).encode(),
            "preprocess.npz": buffer.getvalue(),
        }

    @classmethod
    def from_files(cls, files: dict[str, bytes]) -> Preprocess:
        """Load what ``to_files`` made; a DataError where a file is missing or damaged."""
        try:
            settings: dict[str, Any] = json.loads(files["preprocess.json"])
            with np.load(io.BytesIO(files["preprocess.npz"]), allow_pickle=False) as arrays:
                settings |= {name: arrays[name].astype(np.float32) for name in ("scale", "offset")}
            settings["limits"] = tuple(settings["limits"]) if settings["limits"] else None
            return cls(**settings)
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(expected_got("preprocess.json and preprocess.npz of a run", error)) from error


def one_hot(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Turn class numbers (n,) into target vectors (n, classes): 1 at the label, 0 elsewhere."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        found = f"{labels.min()} to {labels.max()}"
        raise UsageError(expected_got(f"labels from 0 to {classes - 1}", found))
    targets = np.zeros((len(labels), classes), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    return targets


def resize_to_input(
    image: NDArray[np.uint8], size: tuple[int, int], channels: int, resize: str = "letterbox"
) -> NDArray[np.uint8]:
    """Bring one uint8 image (h, w, 1 or 3) to a size (height, width) and to 1 or 3 channels.

    ``letterbox`` keeps the whole image and its proportions and fills the rest with black; ``crop`` keeps the
    proportions and cuts what stands over; ``stretch`` changes them. RGB becomes grey by luminance (ITU-R
    BT.601, as Pillow does).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        found = f"{image.dtype} of shape {image.shape}"
        raise DataError(expected_got("an image as uint8 of shape (height, width, 1 or 3)", found))
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode != mode:  # Pillow would copy it
        picture = picture.convert(mode)
    if image.shape[:2] != size:
        picture = _resized(picture, size, resize)
    return np.asarray(picture).reshape(*size, channels)


def _resized(picture: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    """Resample a picture to (height, width)."""
    height, width = size
    if resize == "stretch":
        return _resample(picture, width, height)
    pick = min if resize == "letterbox" else max
    factor = pick(width / picture.width, height / picture.height)
    inner = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    if inner[0] * inner[1] > PIXEL_CAP:  # a line of pixels, of which cropping would make a sheet
        expected = f"an image of at most {PIXEL_CAP:,} pixels before it is cropped"
        found = f"{inner[0]:,}×{inner[1]:,}, made of {picture.width:,}×{picture.height:,}"
        raise DataError(expected_got(expected, found, "Make it less narrow."))
    resampled = _resample(picture, *inner)
    canvas = Image.new(picture.mode, (width, height))
    # A negative corner crops, a positive one leaves a border: one line for both.
    canvas.paste(resampled, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _resample(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Resample along one axis, then along the other; whole grey levels in between make the order count.

    Releases of Pillow differ in it; this is that of Pillow 13, of the ONNX export and of the page.
    """
    narrower, lower = picture.width - width, picture.height - height
    halfway = (picture.width, height) if lower > max(0, 2 * narrower) else (width, picture.height)
    for size in (halfway, (width, height)):
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
    return picture


def _require_images(images: NDArray[np.uint8]) -> None:
    """Refuse anything but a batch of uint8 images."""
    if images.dtype != np.uint8 or images.ndim != 4:
        found = f"{images.dtype} of shape {images.shape}"
        expected = "images as uint8 (0 to 255) of shape (n, height, width, channels)"
        raise DataError(expected_got(expected, found, "Hand over the pixels as they were read."))


Fitted = tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, float] | None]


def _fit_minmax(images: NDArray[np.uint8]) -> Fitted:
    """Fit scikit-learn's MinMaxScaler per pixel, as the exercise does: the extremes are all that it uses."""
    shape = images.shape[1:]
    low, high = np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8)
    for start in range(0, len(images), FIT_CHUNK):
        chunk = images[start : start + FIT_CHUNK]
        np.minimum(low, chunk.min(axis=0), out=low)
        np.maximum(high, chunk.max(axis=0), out=high)
    rows = np.stack([low, high]).reshape(2, -1).astype(np.float32)  # (2, h·w·c)
    scale, offset = beside(_scale_of, rows, size=rows.nbytes)()
    return scale.reshape(shape), offset.reshape(shape), (0.0, 1.0)


def _scale_of(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from sklearn.preprocessing import MinMaxScaler  # it takes a second to load

    scaler = MinMaxScaler(feature_range=(0, 1)).fit(rows)
    return scaler.scale_.astype(np.float32), scaler.min_.astype(np.float32)


def _fit_constant(factor: float, images: NDArray[np.uint8]) -> Fitted:
    """Multiply every pixel by the same, whatever the images."""
    channels = images.shape[-1]
    return np.full(channels, factor, np.float32), np.zeros(channels, np.float32), None


def _fit_standard(images: NDArray[np.uint8]) -> Fitted:
    """Give each channel mean 0 and standard deviation 1, exactly, from counts of the 256 grey levels."""
    levels = np.arange(256)
    counts = np.stack([_level_counts(images, channel) for channel in range(images.shape[-1])])  # (c, 256)
    fractions = counts / counts.sum(axis=1, keepdims=True)
    mean = fractions @ levels  # (c,)
    deviation = np.sqrt(fractions @ levels**2 - mean**2)
    deviation[deviation == 0] = 1  # a constant channel is shifted, not scaled
    return (1 / deviation).astype(np.float32), (-mean / deviation).astype(np.float32), None


def _level_counts(images: NDArray[np.uint8], channel: int) -> NDArray[np.int64]:
    """Count how often each grey level occurs in a channel."""
    chunks = (images[start : start + FIT_CHUNK, ..., channel] for start in range(0, len(images), FIT_CHUNK))
    counts = np.zeros(256, np.int64)
    for chunk in chunks:
        counts += np.bincount(chunk.ravel(), minlength=256)
    return counts


_FITS: dict[str, Callable[[NDArray[np.uint8]], Fitted]] = {
    "minmax": _fit_minmax,
    "unit": partial(_fit_constant, 1 / 255),
    "standard": _fit_standard,
    "raw": partial(_fit_constant, 1.0),
}
