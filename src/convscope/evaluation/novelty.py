"""Images unlike the training images, and how a network takes images of things that it has no class for.

The features of an image enter the layer that decides between the classes; their direction says what the
network saw. An image far from every training image is one that the network knows nothing about, however sure
its softmax is. The distance is that from the nearest training images (Y. Sun, Y. Ming, X. Zhu and Y. Li,
"Out-of-distribution detection with deep nearest neighbors", 2022), the limit is set by validation images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, expected_got
from convscope.evaluation.metrics import Interval, wilson_interval

FloatArray = NDArray[np.float32]

# Training images that are kept; with half as many the areas below in docs/evaluation.md lose 0.01.
SAMPLE = 2_000
NEIGHBOURS = 5
# Longer features are added up in so many sums of random signs, which keeps their angles.
DIMENSIONS = 512
# So many images of the kind that the network was trained on may be called unlike them.
FALSE_ALARMS = 0.02
FEWEST_VALIDATION = 5
_SEED = 1338
_FEATURES, _ROWS = 256, 2048  # images whose features are reduced, whose distances are measured, at a time


@dataclass(frozen=True, eq=False)
class Novelty:
    """Training images in feature space, and how far from them an image may lie.

    ``known`` (images, dimensions) are reduced features of some training images, each of length 1; the network
    has ``features`` of them. An image beyond the ``limit`` is unlike the training's: so were ``alarms`` of
    the ``validation`` images that it was set by.
    """

    known: NDArray[np.float16] = field(repr=False)
    features: int
    limit: float = math.inf
    validation: int = 0
    alarms: int = 0

    def distances(self, features: FloatArray) -> FloatArray:
        """Measure the distance (n,) of features (n, features) from the nearest training images: 0 to 2.

        It is the mean over the five nearest, between vectors of length 1.
        """
        if features.shape[1:] != (self.features,):
            raise DataError(expected_got(f"{self.features} features, as in the training", features.shape[1:]))
        parts = [reduce(features[at : at + _FEATURES]) for at in range(0, len(features), _FEATURES)]
        return self.distances_of_reduced(np.concatenate(parts)) if parts else np.empty(0, np.float32)

    def distances_of_reduced(self, rows: FloatArray) -> FloatArray:
        """Measure the distances (n,) of features that `reduce` gave (n, d); best of some thousand at once."""
        parts = [self._measure(rows[at : at + _ROWS]) for at in range(0, len(rows), _ROWS)]
        return np.concatenate(parts)

    def calibrated(self, distances: FloatArray, otherwise: NDArray[np.bool_]) -> Novelty:
        """Set the limit by distances of validation images, of which some are unlike the others otherwise.

        Of n + 1 images that are alike, each is equally often the farthest: so the limit is the distance of
        the ⌈0.98 (n + 1)⌉th of n. Below 49 there is none such: then it is what the next distance exceeds in
        2 % of cases where their logarithms are normal, or the largest. The number of features decides little.
        """
        count, share = len(distances), 1 - FALSE_ALARMS
        if count < FEWEST_VALIDATION:
            return self
        place = math.ceil(share * (count + 1))
        ordered = np.sort(distances.astype(np.float64))
        limit = ordered[place - 1] if place <= count else _beyond(ordered, share)
        alarms = int(np.count_nonzero((distances > limit) | otherwise))
        return replace(self, limit=float(limit), validation=count, alarms=alarms)

    def warning(self, distance: float) -> str:
        """Say that an image at this distance is unlike the training images; nothing where it is not."""
        if distance <= self.limit:
            return ""
        return (
            f"unfamiliar: its distance from the nearest training images is {distance:.2f} in the network's "
            f"features, that of most images of their kind up to {self.limit:.2f}"
        )

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the share of false alarms."""
        return wilson_interval(self.alarms, self.validation)

    def sentence(self) -> str:
        """Say how often images of the training's kind are called unlike it.

        Examples
        --------
        >>> Novelty(np.ones((1, 1), np.float16), 1, 0.5, validation=200, alarms=4).sentence()
        'Of 200 validation images, which are like them, 4 were called unlike them too (2.0 %, 0.8 to 5.0 %).'
        """
        low, high = (100 * bound for bound in self.interval)
        share = 100 * self.alarms / max(self.validation, 1)
        were = "was" if self.alarms == 1 else "were"
        return (
            f"Of {self.validation:,} validation images, which are like them, {self.alarms:,} {were} called "
            f"unlike them too ({share:.1f} %, {low:.1f} to {high:.1f} %)."
        )

    def to_json(self) -> dict[str, Any]:
        """Give limit and false alarms as JSON values."""
        return {
            "limit": self.limit,
            "validation_images": self.validation,
            "false_alarms": self.alarms,
            "interval": list(self.interval),
        }

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give what ``from_arrays`` reads."""
        numbers = np.array([self.features, self.limit, self.validation, self.alarms], np.float64)
        return {"known": self.known, "numbers": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Novelty:
        """Read what ``to_arrays`` gave; refuse what is missing or impossible."""
        known, numbers = arrays.get("known"), arrays.get("numbers")
        if (
            known is None
            or numbers is None
            or known.ndim != 2
            or known.dtype != np.float16
            or numbers.shape != (4,)
            or numbers.dtype != np.float64
            or not np.isfinite(known).all()
            or not np.isfinite(numbers).all()
            or numbers.min() < 0
            or known.shape != (len(known), min(numbers[0], DIMENSIONS))
            or not known.size
            or numbers[3] > numbers[2]
        ):
            raise DataError(expected_got("features of training images and their limit", "other values"))
        return cls(known, int(numbers[0]), float(numbers[1]), int(numbers[2]), int(numbers[3]))

    def _measure(self, rows: FloatArray) -> FloatArray:
        """Average the distances of reduced rows (n, d) from their nearest neighbours: (n,)."""
        count = min(NEIGHBOURS, len(self.known))
        cosines = rows @ self._columns  # (n, images)
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        distances: FloatArray = np.sqrt(np.maximum(2 - 2 * nearest, 0)).mean(axis=1, dtype=np.float32)
        return distances

    @cached_property
    def _columns(self) -> FloatArray:
        return self.known.T.astype(np.float32)


def reduce(features: FloatArray) -> FloatArray:
    """Bring features (n, d) to length 1 and to at most 512 numbers; angles stay nearly as they are.

    Examples
    --------
    >>> reduce(np.array([[3.0, 4.0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    count, length = features.shape
    if length > DIMENSIONS:
        signs, (whole, rest) = signs_of(length), divmod(length, DIMENSIONS)  # (sums, 512)
        last = features[:, length - rest :]
        features = features[:, : length - rest].reshape(count, whole, DIMENSIONS)
        features = np.einsum("nsd,sd->nd", features, signs[:whole])
        features[:, :rest] += last * signs[-1, :rest]
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: FloatArray = features / np.maximum(lengths, np.float32(1e-12))
    return unit


@functools.lru_cache(maxsize=4)
def signs_of(length: int) -> FloatArray:
    """Give the signs of features that are added up, the same ones everywhere: (sums, 512), read-only."""
    rows = math.ceil(length / DIMENSIONS)
    # A bit generator's own numbers stay the same in all versions of NumPy.
    bits = np.random.PCG64(_SEED).random_raw(rows * DIMENSIONS) & 1
    signs: FloatArray = bits.astype(np.float32).reshape(rows, DIMENSIONS) * 2 - 1
    signs.flags.writeable = False
    return signs


def _beyond(distances: NDArray[np.float64], share: float) -> float:
    """Estimate a distance that a share of further ones will not exceed, from a few."""
    from scipy.stats import t

    logs, count = np.log(np.maximum(distances, 1e-6)), len(distances)
    bound = logs.mean() + t.ppf(share, count - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / count)
    return float(min(max(math.exp(bound), distances[-1]), 2.0))


# Probabilities that pass for half sure and for sure.
SURE = (0.5, 0.9)
# At which share of known images that pass, the unknown ones that pass too are counted.
KEPT = 0.95


@dataclass(frozen=True)
class Share:
    """A number of images among others."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """From 0 to 1; NaN of none."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> Interval:
        """Its 95 % interval (Wilson's)."""
        return wilson_interval(self.count, self.of)

    def __str__(self) -> str:
        """Write it in per cent, with its interval."""
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%})" if self.of else "none"

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        share = self.value if self.of else None
        return {"count": self.count, "of": self.of, "share": share, "interval": list(self.interval)}


@dataclass(frozen=True)
class Separation:
    """How well a score tells known from unknown images.

    ``area`` is the share of pairs in which the known image scores higher (AUROC, ties count half), with its
    95 % interval (E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, 1988); ``passing`` are the unknown
    images that pass where 95 % of the known ones do, the ``threshold`` being set by these.
    """

    area: float
    interval: Interval
    passing: Share
    threshold: float

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "auroc": self.area,
            "interval": list(self.interval),
            "false_positive_rate_at_95": self.passing.to_json(),
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class UnknownCheck:
    """What becomes of images of unknown things, beside known ones.

    ``sure`` has, for each probability, the shares of known and of unknown images that get a label at least
    so sure. ``stopped`` are the shares that abstaining below ``abstain`` leaves without a label, and
    ``right_stopped`` those of the known images' right answers. ``warned`` are the shares called unlike the
    training images. ``separations`` are by score: ``probability`` and, where it was measured, ``distance``.
    """

    known: int
    unknown: int
    abstain: float
    sure: Mapping[float, tuple[Share, Share]]
    stopped: tuple[Share, Share]
    right_stopped: Share
    warned: tuple[Share | None, Share]
    separations: Mapping[str, Separation]

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values."""

        def pair(shares: tuple[Share | None, Share]) -> dict[str, Any]:
            named = zip(("known", "unknown"), shares, strict=True)
            return {name: one.to_json() if one else None for name, one in named}

        return {
            "known": self.known,
            "unknown": self.unknown,
            "sure": {str(level): pair(shares) for level, shares in self.sure.items()},
            "abstain": {
                "below": self.abstain,
                **pair(self.stopped),
                "right_answers": self.right_stopped.to_json(),
            },
            "warned": pair(self.warned),
            "separation": {name: one.to_json() for name, one in self.separations.items()},
        }


def check_unknown(
    known: NDArray[np.float64],
    right: NDArray[np.bool_],
    unknown: NDArray[np.float64],
    *,
    abstain: float,
    distances: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    warned: tuple[Share | None, Share] = (None, Share(0, 0)),
) -> UnknownCheck:
    """Compare the highest probabilities of known images (n,), which were ``right`` or not, and unknown ones.

    ``distances`` are those of known and unknown images from the training images, the farther the stranger;
    ``warned`` says how many of either were called unlike them.
    """
    if not (len(known) and len(unknown)):
        raise DataError(expected_got("known and unknown images", f"{len(known)} and {len(unknown)}"))

    def shares(passes: Any) -> tuple[Share, Share]:
        return _share(passes(known)), _share(passes(unknown))

    scores: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {"probability": (known, unknown)}
    if distances is not None:
        scores["distance"] = (-distances[0], -distances[1])
    return UnknownCheck(
        known=len(known),
        unknown=len(unknown),
        abstain=abstain,
        sure={level: shares(lambda values, level=level: values >= level) for level in SURE},
        stopped=shares(lambda values: values < abstain),
        right_stopped=_share(known[right] < abstain),
        warned=warned,
        separations={name: separate(*both) for name, both in scores.items()},
    )


def separate(known: NDArray[Any], unknown: NDArray[Any]) -> Separation:
    """Measure how well scores (n,) and (m,) tell known images, which should be higher, from unknown ones."""
    from scipy.stats import rankdata

    ahead, behind = len(known), len(unknown)
    # For each image the share of the others that it is on the right side of: ranks among all less own ones.
    ranks = rankdata(np.concatenate([known, unknown]))
    above = (ranks[:ahead] - rankdata(known)) / behind  # (n,)
    below = 1 - (ranks[ahead:] - rankdata(unknown)) / ahead  # (m,)
    area = float(above.mean())
    variance = sum(part.var(ddof=1) / len(part) for part in (above, below) if len(part) > 1)
    margin = 1.96 * math.sqrt(variance)
    threshold = np.sort(known)[::-1][math.ceil(KEPT * ahead) - 1]
    passing = _share(unknown >= threshold)
    return Separation(area, Interval(max(area - margin, 0), min(area + margin, 1)), passing, float(threshold))


def _share(chosen: NDArray[np.bool_]) -> Share:
    return Share(int(np.count_nonzero(chosen)), len(chosen))
