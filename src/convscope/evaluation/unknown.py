"""How a network takes images of things that it has no class for: sure answers, abstaining, telling apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, expected_got
from convscope.evaluation.metrics import FloatArray, Interval, wilson_interval

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
    known: FloatArray,
    right: NDArray[np.bool_],
    unknown: FloatArray,
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
