"""Augmentation: training images changed at random, whole batches at a time; never in evaluation.

It works on raw uint8 pixels, before ``Preprocess.apply_tensor``: a scaling that was fitted per position would
otherwise travel along with the pixels. What happens to a batch is a function of seed, epoch and step alone,
so that a training that is resumed goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got, unknown_name

if TYPE_CHECKING:
    import torch

FLIPS = ("none", "horizontal", "vertical", "both")
# Keeps these draws apart from others that follow the same seed and epoch.
_STREAM = 0x4155474D
# Random erasing: fraction of the area, and logarithm of the aspect ratio (Zhong et al., 2020, section 4.2).
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = float(np.log(1 / 0.3))

# For each setting: its largest value, and its unit.
_LIMITS = {
    "shift": (0.5, "of the side"),
    "rotate": (180.0, "degrees"),
    "zoom": (1.0, "of the size"),
    "erase": (1.0, "of the images"),
    "contrast": (1.0, "of the contrast"),
    "mixup": (10.0, "as alpha"),
    "cutmix": (10.0, "as alpha"),
}


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image; each amount is drawn anew for each image.

    Parameters
    ----------
    shift : float
        Largest shift along each axis, as a fraction of the side, 0 to 0.5; whole pixels.
    rotate : float
        Largest rotation either way, in degrees, 0 to 180.
    zoom : float
        Largest enlargement, 0 to 1: 0.1 makes an image up to 1.1 times larger or smaller.
    flip : {"none", "horizontal", "vertical", "both"}
        Mirrors every second image, along each of the axes. Digits and letters do not bear it.
    erase : float
        Fraction of the images, 0 to 1, of which a rectangle is painted over in their mean colour (Zhong et
        al., "Random Erasing Data Augmentation", 2020).
    contrast : float
        Largest change, 0 to 1: 0.2 makes an image up to 1.2 times more or less contrasted.
    mixup : float
        Alpha of the Beta distribution that blends each image and its label with another one's, 0 for none
        (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018).
    cutmix : float
        The same for a rectangle of another image (Yun et al., "CutMix", 2019). With both, each batch gets
        one of them.

    Raises
    ------
    UsageError
        If an amount is out of its range.
    UnknownNameError
        If there is no such flip.

    Examples
    --------
    >>> Augmentation(shift=0.1, flip="horizontal").to_dict()["shift"]
    0.1
    >>> Augmentation().is_none
    True
    """

    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    flip: str = "none"
    erase: float = 0.0
    contrast: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse amounts that cannot be."""
        for name, (largest, unit) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
                raise UsageError(expected_got(f"{name} from 0 to {largest:g} {unit}", repr(value)))
        if self.flip not in FLIPS:
            raise unknown_name("flip", self.flip, FLIPS)

    @property
    def is_none(self) -> bool:
        """Whether nothing happens to any image."""
        return self == Augmentation()

    @property
    def mixes_labels(self) -> bool:
        """Whether labels come out as fractions of several classes."""
        return self.mixup > 0 or self.cutmix > 0

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Augmentation:
        """Read the settings that ``to_dict`` gave.

        Parameters
        ----------
        values : mapping
            Missing settings take their defaults.

        Returns
        -------
        Augmentation
            The settings.

        Raises
        ------
        UnknownNameError
            If a setting has no such name.

        Examples
        --------
        >>> Augmentation.from_dict({"rotate": 10}) == Augmentation(rotate=10)
        True
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("augmentation setting", name, known)
        return cls(**values)

    def apply(
        self, images: torch.Tensor, targets: torch.Tensor, *, seed: int, epoch: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change a batch of training images.

        Parameters
        ----------
        images : torch.Tensor of shape (n, h, w, c), uint8
            On any device; left as they are.
        targets : torch.Tensor of shape (n, k), floating point, or (n,)
            One-hot or soft labels; mixup and cutmix need the former shape.
        seed, epoch, step : int
            At least 0. The same three give the same batch, on every device up to rounding.

        Returns
        -------
        images : torch.Tensor of shape (n, h, w, c), uint8
            Changed.
        targets : torch.Tensor
            Of the same shape; soft after mixup or cutmix.

        Raises
        ------
        UsageError
            If shapes or types are others.

        Examples
        --------
        >>> import torch
        >>> images = torch.arange(8, dtype=torch.uint8).reshape(1, 2, 4, 1)
        >>> changed, _ = Augmentation(shift=0.5).apply(images, torch.ones(1, 1), seed=1, epoch=0, step=0)
        >>> changed.shape
        torch.Size([1, 2, 4, 1])
        """
        import torch

        self._require_batch(images, targets)
        if self.is_none or not len(images):
            return images, targets
        draw = np.random.default_rng([seed, epoch, step, _STREAM])
        values = images.permute(0, 3, 1, 2).to(torch.float32)  # (n, c, h, w)
        values = self._flipped(values, draw)
        values = self._moved(values, draw)
        values = self._contrasted(values, draw)
        values = self._erased(values, draw)
        values, targets = self._mixed(values, targets, draw)
        pixels = values.round_().clamp_(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), targets  # (n, h, w, c)

    def _require_batch(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Refuse anything but raw pixels and their labels."""
        import torch

        if images.dtype != torch.uint8 or images.ndim != 4:
            found = f"{images.dtype} of shape {tuple(images.shape)}"
            hint = "Augment raw pixels, before Preprocess.apply_tensor."
            raise UsageError(
                expected_got("images as uint8 of shape (n, height, width, channels)", found, hint)
            )
        if len(targets) != len(images):
            raise UsageError(expected_got(f"a label for each of {len(images)} images", len(targets)))
        if self.mixes_labels and (targets.ndim != 2 or not targets.is_floating_point()):
            found = f"{targets.dtype} of shape {tuple(targets.shape)}"
            raise UsageError(expected_got("one-hot labels as floating point for mixup and cutmix", found))

    def _flipped(self, values: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
        """Mirror every second image."""
        import torch

        for axis, names in ((3, {"horizontal", "both"}), (2, {"vertical", "both"})):
            if self.flip in names:
                chosen = _tensor(draw.random(len(values)) < 0.5, values)
                values = torch.where(chosen.bool(), values.flip(axis), values)
        return values

    def _moved(self, values: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
        """Rotate, zoom and shift, in one interpolation."""
        if not (self.shift or self.rotate or self.zoom):
            return values
        count, _, height, width = values.shape
        angles = np.deg2rad(draw.uniform(-self.rotate, self.rotate, count))
        zooms = _factors(draw, self.zoom, count)
        fractions = draw.uniform(-self.shift, self.shift, (2, count))
        return warp(values, angles, zooms, np.rint(fractions[0] * width), np.rint(fractions[1] * height))

    def _contrasted(self, values: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
        """Pull pixels from or to the image's mean."""
        if not self.contrast:
            return values
        factors = _tensor(_factors(draw, self.contrast, len(values)), values)
        means = values.mean(dim=(1, 2, 3), keepdim=True)
        # Clipped at once: what follows paints and blends real grey levels.
        return ((values - means) * factors + means).clamp_(0, 255)

    def _erased(self, values: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
        """Paint a rectangle over some images."""
        import torch

        if not self.erase:
            return values
        count, _, height, width = values.shape
        areas = draw.uniform(*_ERASED_AREA, count) * height * width
        aspects = np.exp(draw.uniform(-_ERASED_ASPECT, _ERASED_ASPECT, count))
        high = np.clip(np.rint(np.sqrt(areas * aspects)), 1, height)
        wide = np.clip(np.rint(np.sqrt(areas / aspects)), 1, width)
        tops = np.floor(draw.random(count) * (height - high + 1))
        lefts = np.floor(draw.random(count) * (width - wide + 1))
        inside = _rectangles((tops, high, height), (lefts, wide, width), values)
        chosen = _tensor(draw.random(count) < self.erase, values).bool()
        return torch.where(inside & chosen, values.mean(dim=(2, 3), keepdim=True), values)

    def _mixed(
        self, values: torch.Tensor, targets: torch.Tensor, draw: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blend each image with another one of the batch, or paste a piece of it."""
        import torch

        if not self.mixes_labels:
            return values, targets
        use_cutmix = self.cutmix > 0 and (self.mixup == 0 or draw.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        fraction = float(draw.beta(alpha, alpha))
        others = torch.from_numpy(draw.permutation(len(values))).to(values.device)
        if use_cutmix:
            inside, fraction = _box(values, fraction, draw)
            values = torch.where(inside, values[others], values)
        else:
            values = values * fraction + values[others] * (1 - fraction)
        return values, targets * fraction + targets[others] * (1 - fraction)


def warp(
    values: torch.Tensor,
    angles: NDArray[np.float64],
    zooms: NDArray[np.float64],
    right: NDArray[np.float64],
    down: NDArray[np.float64],
) -> torch.Tensor:
    """Rotate, zoom and shift images (n, c, h, w) about their centres; beyond the edge pixels are repeated.

    For each image: an angle counter-clockwise as seen on the screen, in radians; a zoom, above 1 to enlarge;
    shifts in pixels. Interpolated bilinearly.

    Examples
    --------
    >>> import torch
    >>> row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> warp(row, np.zeros(1), np.ones(1), np.ones(1), np.zeros(1)).round().ravel().tolist()
    [1.0, 1.0, 2.0]
    """
    import torch
    from torch.nn import functional

    height, width = values.shape[2:]
    cosine, sine = np.cos(angles) / zooms, np.sin(angles) / zooms
    # From a place in the result back to the place in the image, in coordinates from -1 to 1 along each axis.
    matrix = np.array([[cosine, -sine * height / width], [sine * width / height, cosine]])  # (2, 2, n)
    shift = np.stack([2 * right / width, 2 * down / height])  # (2, n)
    offset = -np.einsum("ijn,jn->in", matrix, shift)  # (2, n)
    theta = np.concatenate([matrix, offset[:, None]], axis=1).transpose(2, 0, 1)  # (n, 2, 3)
    size = list(values.shape)
    grid = functional.affine_grid(
        torch.from_numpy(theta).to(values.device, values.dtype), size, align_corners=False
    )
    return functional.grid_sample(values, grid, padding_mode="border", align_corners=False)


def _factors(draw: np.random.Generator, most: float, count: int) -> NDArray[np.float64]:
    """Draw factors from 1/(1 + most) to 1 + most, as often below 1 as above."""
    limit = np.log1p(most)
    return np.exp(draw.uniform(-limit, limit, count))


def _tensor(numbers: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """Bring one number for each image to where the images are, (n, 1, 1, 1)."""
    import torch

    return torch.from_numpy(numbers).to(like.device, like.dtype)[:, None, None, None]


def _rectangles(
    rows: tuple[NDArray[Any], NDArray[Any], int],
    columns: tuple[NDArray[Any], NDArray[Any], int],
    like: torch.Tensor,
) -> torch.Tensor:
    """Mark a rectangle in each image, (n, 1, h, w); each axis gives begin, length and side."""
    import torch

    marks = []
    for (begins, lengths, side), shape in ((rows, (1, 1, -1, 1)), (columns, (1, 1, 1, -1))):
        places = torch.arange(side, device=like.device).view(shape)
        begin = _tensor(begins, like)
        marks.append((places >= begin) & (places < begin + _tensor(lengths, like)))
    return marks[0] & marks[1]


def _box(values: torch.Tensor, fraction: float, draw: np.random.Generator) -> tuple[torch.Tensor, float]:
    """Place one rectangle for the whole batch; return it and the fraction of the image that it leaves."""
    height, width = values.shape[2:]
    side = np.sqrt(1 - fraction)
    middle_row, middle_column = draw.integers(height), draw.integers(width)
    top, bottom = (int(np.clip(middle_row + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(middle_column + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    rows = (np.array([top]), np.array([bottom - top]), height)
    columns = (np.array([left]), np.array([right - left]), width)
    return _rectangles(rows, columns, values), 1 - (bottom - top) * (right - left) / (height * width)


PRESETS = {
    "none": Augmentation(),
    "digits": Augmentation(shift=0.08, rotate=10, zoom=0.1),
    "photographs": Augmentation(shift=0.12, rotate=5, zoom=0.1, flip="horizontal", contrast=0.2),
    "strong": Augmentation(
        shift=0.12, rotate=10, zoom=0.2, flip="horizontal", contrast=0.3, erase=0.25, cutmix=1.0
    ),
}
