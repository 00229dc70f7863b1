"""Augmentation: training images changed at random, whole batches at a time; never in evaluation.

It works on raw uint8 pixels, before ``Preprocess.apply_tensor``: a scaling that was fitted per position would
otherwise travel along with the pixels. What happens to a batch is a function of seed, epoch and step alone,
so that a training that is resumed goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got, unknown_name

if TYPE_CHECKING:
    import torch

FLIPS = ("none", "horizontal", "vertical", "both")
# Keeps these draws apart from others that follow the same seed and epoch.
_STREAM = 0x4155474D
# Images that are changed at once where there are no batches.
_AT_ONCE = 64
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
        """Read the settings that ``to_dict`` gave; missing ones take their defaults."""
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

        self.require_batch(images, targets)
        if self.is_none or not len(images):
            return images, targets
        drawn = self.draw(*images.shape[:3], seed=seed, epoch=epoch, step=step)
        tensors = {name: torch.from_numpy(numbers).to(images.device) for name, numbers in drawn.items()}
        return self.apply_drawn(images, targets, tensors)

    def view(self, images: NDArray[np.uint8], *, seed: int, number: int) -> NDArray[np.uint8]:
        """Change each image (n, h, w, c) on its own, mixed with none; numbers tell views apart."""
        import torch

        alone, no_targets = replace(self, mixup=0.0, cutmix=0.0), torch.zeros(_AT_ONCE, 1)
        changed = np.empty(images.shape, np.uint8)
        for step, first in enumerate(range(0, len(images), _AT_ONCE)):
            some = torch.tensor(np.asarray(images[first : first + _AT_ONCE]))
            batch, _ = alone.apply(some, no_targets[: len(some)], seed=seed, epoch=number, step=step)
            changed[first : first + _AT_ONCE] = batch.numpy()
        return changed

    def draw(
        self, count: int, height: int, width: int, *, seed: int, epoch: int, step: int
    ) -> dict[str, NDArray[Any]]:
        """Draw what happens to a batch of images, by name; ``apply_drawn`` takes the arrays as tensors."""
        draw = np.random.default_rng([seed, epoch, step, _STREAM])
        drawn: dict[str, NDArray[Any]] = {}
        for names in ({"horizontal", "both"}, {"vertical", "both"}):
            if self.flip in names:
                drawn["mirrored" if "horizontal" in names else "turned"] = draw.random(count) < 0.5
        if self.shift or self.rotate or self.zoom:
            angles = np.deg2rad(draw.uniform(-self.rotate, self.rotate, count))
            zooms = _factors(draw, self.zoom, count)
            fractions = draw.uniform(-self.shift, self.shift, (2, count))
            right, down = np.rint(fractions[0] * width), np.rint(fractions[1] * height)
            drawn["moves"] = affine_maps(height, width, angles, zooms, right, down)
        if self.contrast:
            drawn["contrasts"] = _factors(draw, self.contrast, count)
        if self.erase:
            areas = draw.uniform(*_ERASED_AREA, count) * height * width
            aspects = np.exp(draw.uniform(-_ERASED_ASPECT, _ERASED_ASPECT, count))
            high = np.clip(np.rint(np.sqrt(areas * aspects)), 1, height)
            wide = np.clip(np.rint(np.sqrt(areas / aspects)), 1, width)
            tops = np.floor(draw.random(count) * (height - high + 1))
            lefts = np.floor(draw.random(count) * (width - wide + 1))
            drawn["erased"] = np.stack([tops, high, lefts, wide])
            drawn["is_erased"] = draw.random(count) < self.erase
        if self.mixes_labels:
            drawn |= self._draw_mixture(count, height, width, draw)
        return {
            name: numbers.astype(np.float32) if numbers.dtype == np.float64 else numbers
            for name, numbers in drawn.items()
        }

    def _draw_mixture(
        self, count: int, height: int, width: int, draw: np.random.Generator
    ) -> dict[str, NDArray[Any]]:
        """Draw with which image each is blended, how much, and by cutmix where."""
        use_cutmix = self.cutmix > 0 and (self.mixup == 0 or draw.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        fraction = float(draw.beta(alpha, alpha))
        drawn: dict[str, NDArray[Any]] = {"others": draw.permutation(count)}
        if use_cutmix:
            drawn["box"], fraction = _box(height, width, fraction, draw)
        return drawn | {"fractions": np.array([fraction, 1 - fraction])}

    def apply_drawn(
        self, images: torch.Tensor, targets: torch.Tensor, drawn: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change a batch as drawn: images (n, h, w, c), uint8, and what was drawn, where the images are."""
        import torch

        values = images.permute(0, 3, 1, 2).to(torch.float32)  # (n, c, h, w)
        for name, axis in (("mirrored", 3), ("turned", 2)):
            if name in drawn:
                values = torch.where(_each(drawn[name]), values.flip(axis), values)
        if "moves" in drawn:
            values = warp(values, drawn["moves"])
        if "contrasts" in drawn:
            means = values.mean(dim=(1, 2, 3), keepdim=True)
            # Clipped at once: what follows paints and blends real grey levels.
            values = ((values - means) * _each(drawn["contrasts"]) + means).clamp_(0, 255)
        if "erased" in drawn:
            inside = _rectangles(drawn["erased"], values) & _each(drawn["is_erased"])
            values = torch.where(inside, values.mean(dim=(2, 3), keepdim=True), values)
        if "others" in drawn:
            others, (fraction, rest) = drawn["others"], drawn["fractions"]
            if "box" in drawn:
                values = torch.where(_rectangles(drawn["box"], values), values[others], values)
            else:
                values = values * fraction + values[others] * rest
            targets = targets * fraction + targets[others] * rest
        pixels = values.round_().clamp_(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), targets  # (n, h, w, c)

    def require_batch(self, images: torch.Tensor, targets: torch.Tensor) -> None:
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


def warp(
    values: torch.Tensor,
    maps: torch.Tensor,
    fill_mode: str = "nearest",
    fill_value: float = 0.0,
    interpolation: str = "bilinear",
) -> torch.Tensor:
    """Move images (n, c, h, w) by maps (n, 2, 3); what is beyond the edge is Keras's ``fill_mode``."""
    from torch.nn import functional

    grid = functional.affine_grid(maps, list(values.shape), align_corners=False)  # (n, h, w, 2)
    if fill_mode == "wrap":  # the first row and column follow the last, and no place is beyond them
        height, width = values.shape[2:]
        values = functional.pad(values, (0, 1, 0, 1), mode="circular")
        grid = _wrapped(grid, width, height)
    padding = {"constant": "zeros", "reflect": "reflection"}.get(fill_mode, "border")
    is_filled = fill_mode == "constant" and fill_value != 0  # beyond the edge torch has zeros
    values = values - fill_value if is_filled else values
    moved = functional.grid_sample(
        values, grid, mode=interpolation, padding_mode=padding, align_corners=False
    )
    return moved + fill_value if is_filled else moved


def _wrapped(grid: torch.Tensor, *sizes: int) -> torch.Tensor:
    """Bring places from -1 to 1 back into an image, for one that is a pixel longer along both axes."""
    import torch

    places = [
        torch.remainder((along + 1) * size / 2 - 0.5, size)
        for along, size in zip(grid.unbind(-1), sizes, strict=True)
    ]
    return torch.stack(
        [(2 * place + 1) / (size + 1) - 1 for place, size in zip(places, sizes, strict=True)], dim=-1
    )


def affine_maps(
    height: int,
    width: int,
    angles: NDArray[np.float64],
    zooms: NDArray[np.float64],
    right: NDArray[np.float64],
    down: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Compute from which place of an image each place of the result comes, (n, 2, 3).

    For each image: an angle counter-clockwise as seen on the screen, in radians; a zoom, above 1 to enlarge;
    shifts in pixels.
    """
    cosine, sine = np.cos(angles) / zooms, np.sin(angles) / zooms
    # From a place in the result back to the place in the image, in coordinates from -1 to 1 along each axis.
    matrix = np.array([[cosine, -sine * height / width], [sine * width / height, cosine]])  # (2, 2, n)
    shift = np.stack([2 * right / width, 2 * down / height])  # (2, n)
    offset = -np.einsum("ijn,jn->in", matrix, shift)  # (2, n)
    return np.concatenate([matrix, offset[:, None]], axis=1).transpose(2, 0, 1)


def _factors(draw: np.random.Generator, most: float, count: int) -> NDArray[np.float64]:
    """Draw factors from 1/(1 + most) to 1 + most, as often below 1 as above."""
    limit = np.log1p(most)
    return np.exp(draw.uniform(-limit, limit, count))


def _each(numbers: torch.Tensor) -> torch.Tensor:
    """View one number for each image so that it meets all its pixels, (n, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _rectangles(places: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Mark a rectangle in each image, (n, 1, h, w); places (4, n) are top, height, left and width."""
    import torch

    marks = []
    for (begins, lengths), axis, shape in ((places[:2], 2, (1, 1, -1, 1)), (places[2:], 3, (1, 1, 1, -1))):
        along = torch.arange(like.shape[axis], device=like.device).view(shape)
        begin = _each(begins)
        marks.append((along >= begin) & (along < begin + _each(lengths)))
    return marks[0] & marks[1]


def _box(
    height: int, width: int, fraction: float, draw: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Place one rectangle for the whole batch, (4, 1); return which fraction of an image it leaves, too."""
    side = np.sqrt(1 - fraction)
    middle_row, middle_column = draw.integers(height), draw.integers(width)
    top, bottom = (int(np.clip(middle_row + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(middle_column + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    places = np.array([[top], [bottom - top], [left], [right - left]], np.float64)
    return places, 1 - (bottom - top) * (right - left) / (height * width)


PRESETS = {
    "none": Augmentation(),
    "digits": Augmentation(shift=0.08, rotate=10, zoom=0.1),
    "photographs": Augmentation(shift=0.12, rotate=5, zoom=0.1, flip="horizontal", contrast=0.2),
    "strong": Augmentation(
        shift=0.12, rotate=10, zoom=0.2, flip="horizontal", contrast=0.3, erase=0.25, cutmix=1.0
    ),
}
