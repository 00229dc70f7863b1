"""Several seeds of each of two networks: the seeds' spread apart from the difference between the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, sentence
from convscope.evaluation.comparison import LEVEL, check_same_test, give_verdict
from convscope.evaluation.intervals import Interval
from convscope.evaluation.metrics import FloatArray
from convscope.evaluation.result import Evaluation


@dataclass(frozen=True, eq=False)
class SeedComparison:
    """Network B against network A, each trained several times.

    Attributes
    ----------
    label_a, label_b : str
    images : int
        The number of test images.
    accuracies_a, accuracies_b : tuple of float
        One for each seed.
    spread_a, spread_b : float
        Standard deviation of the accuracy from seed to seed; NaN for a single seed.
    difference : float
        Mean accuracy of B minus mean accuracy of A.
    difference_interval : Interval
        95 %; holds for other seeds and other test images of the same kind.
    error_from_seeds, error_from_images : float
        Standard errors of the difference: what other seeds, and other test images, would change.
    p_value : float
    verdict : str
        ``"better"`` or ``"worse"``, said of B, or ``"could be chance"``.
    """

    label_a: str
    label_b: str
    images: int
    accuracies_a: tuple[float, ...]
    accuracies_b: tuple[float, ...]
    spread_a: float
    spread_b: float
    difference: float
    difference_interval: Interval
    error_from_seeds: float
    error_from_images: float
    p_value: float
    verdict: str

    def sentence(self) -> str:
        """Say in words what was compared and what came out.

        Returns
        -------
        str

        Examples
        --------
        >>> runs = [Evaluation.from_probabilities([[p, 1 - p]] * 9, [0] * 8 + [1]) for p in (0.9, 0.8)]
        >>> compare_seeds(runs, runs).sentence().split(".")[0]
        'This could be chance'
        """
        low, high = (100 * end for end in self.difference_interval)
        sides = (
            f"{self._side(self.label_b, self.accuracies_b, self.spread_b)}, "
            f"{self._side(self.label_a, self.accuracies_a, self.spread_a)}"
        )
        facts = (
            f"On the same {self.images:,} test images {sides}: a difference of "
            f"{100 * self.difference:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, "
            f"p = {self.p_value:.2g}). Other seeds would change it by about "
            f"{100 * self.error_from_seeds:.2f} points, other test images by about "
            f"{100 * self.error_from_images:.2f}."
        )
        if self.verdict == "could be chance":
            return f"This could be chance. {facts}"
        return f"{self.label_b} is {self.verdict} than {self.label_a}. {facts}"

    @staticmethod
    def _side(label: str, accuracies: tuple[float, ...], spread: float) -> str:
        if len(accuracies) == 1:
            return f"{label} is right in {accuracies[0]:.2%} (one seed)"
        return f"{label} is right in {np.mean(accuracies):.2%} ({len(accuracies)} seeds, ±{100 * spread:.2f})"

    def to_json(self) -> dict[str, Any]:
        """Give everything as a dictionary of plain JSON types.

        Returns
        -------
        dict

        Examples
        --------
        >>> runs = [Evaluation.from_probabilities([[p, 1 - p]] * 9, [0] * 8 + [1]) for p in (0.9, 0.8)]
        >>> compare_seeds(runs, runs).to_json()["difference"]
        0.0
        """
        return {
            "a": _side_json(self.label_a, self.accuracies_a, self.spread_a),
            "b": _side_json(self.label_b, self.accuracies_b, self.spread_b),
            "images": self.images,
            "difference": self.difference,
            "difference_interval": list(self.difference_interval),
            "error_from_seeds": self.error_from_seeds,
            "error_from_images": self.error_from_images,
            "p_value": self.p_value,
            "verdict": self.verdict,
            "sentence": self.sentence(),
        }

    def __str__(self) -> str:
        return self.sentence()


def compare_seeds(
    a: Sequence[Evaluation], b: Sequence[Evaluation], label_a: str = "A", label_b: str = "B"
) -> SeedComparison:
    """Compare two networks of which each was trained with several seeds.

    Seeds and images are crossed random effects: the variance of a side's mean accuracy over m seeds and
    n images is (MS_seeds + MS_images − MS_residual) / (m·n) (S. R. Searle, G. Casella and
    C. E. McCulloch, "Variance components", 1992, chapter 4); Welch and Satterthwaite's degrees of freedom
    go with it.

    Parameters
    ----------
    a, b : sequence of Evaluation
        All of the same images in the same order. One side may have a single seed; its spread is then
        taken to be the other side's.
    label_a, label_b : str
        What to call them.

    Returns
    -------
    SeedComparison

    Raises
    ------
    UsageError
        When neither side has two seeds, a side has none, or the test images differ.

    Examples
    --------
    >>> def run(p, wrong):
    ...     return Evaluation.from_probabilities([[p, 1 - p]] * 200, [1] * wrong + [0] * (200 - wrong))
    >>> compare_seeds([run(0.9, 40)] * 2, [run(0.9, 40)] * 3).verdict
    'could be chance'
    """
    if not a or not b or len(a) + len(b) < 3:
        found = f"{len(a)} and {len(b)}"
        raise UsageError(
            sentence("a run on each side and at least two on one", found, "Compare two runs with compare.")
        )
    for other in [*a[1:], *b]:
        check_same_test(a[0], other)
    right_a, right_b = _right(a), _right(b)  # (seeds, images)
    errors = _standard_errors(right_a, right_b)
    difference = float(right_b.mean() - right_a.mean())
    from scipy.special import stdtrit

    reach = float(stdtrit(errors.freedom, 1 - LEVEL / 2)) * errors.total
    p_value = _p_value(difference, errors)
    return SeedComparison(
        label_a=label_a,
        label_b=label_b,
        images=a[0].images,
        accuracies_a=tuple(run.accuracy for run in a),
        accuracies_b=tuple(run.accuracy for run in b),
        spread_a=_spread(right_a),
        spread_b=_spread(right_b),
        difference=difference,
        difference_interval=Interval(difference - reach, difference + reach),
        error_from_seeds=errors.seeds,
        error_from_images=errors.images,
        p_value=p_value,
        verdict=give_verdict(difference, p_value),
    )


class _Errors(NamedTuple):
    seeds: float
    images: float
    total: float
    freedom: float


def _right(runs: Sequence[Evaluation]) -> FloatArray:
    return np.stack([(run.predictions == run.labels).astype(np.float64) for run in runs])


def _spread(right: FloatArray) -> float:
    return float(right.mean(axis=1).std(ddof=1)) if len(right) > 1 else float("nan")


def _standard_errors(right_a: FloatArray, right_b: FloatArray) -> _Errors:
    sides = [right_a, right_b]
    variances = np.array([_spread(right) ** 2 for right in sides])
    known = np.isfinite(variances)
    variances[~known] = variances[known].mean()
    counts = np.array([len(right) for right in sides])
    freedoms = np.where(known, counts - 1, counts[known].max() - 1)
    parts = variances / counts
    from_seeds = parts.sum()
    paired = right_b.mean(axis=0) - right_a.mean(axis=0)  # (images,)
    from_images = paired.var(ddof=1) / paired.size if paired.size > 1 else 0.0
    counted_twice = sum(_residual(right) / right.size for right in sides)
    total = max(from_seeds + from_images - counted_twice, from_seeds, from_images)
    squared = (parts**2 / freedoms).sum()
    freedom = total**2 / squared if squared > 0 else np.inf
    return _Errors(
        float(np.sqrt(from_seeds)), float(np.sqrt(from_images)), float(np.sqrt(total)), float(freedom)
    )


def _residual(right: FloatArray) -> float:
    """Mean square of what neither the seed nor the image explains."""
    seeds, images = right.shape
    if seeds < 2 or images < 2:
        return 0.0
    left: NDArray[np.float64] = right - right.mean(axis=0) - right.mean(axis=1, keepdims=True) + right.mean()
    return float((left**2).sum() / ((seeds - 1) * (images - 1)))


def _p_value(difference: float, errors: _Errors) -> float:
    if errors.total == 0:
        return 1.0 if difference == 0 else 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(errors.freedom, -abs(difference) / errors.total))


def _side_json(label: str, accuracies: tuple[float, ...], spread: float) -> dict[str, Any]:
    return {
        "name": label,
        "accuracies": list(accuracies),
        "mean_accuracy": float(np.mean(accuracies)),
        "spread": spread if np.isfinite(spread) else None,
    }
