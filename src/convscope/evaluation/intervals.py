"""How far a share can be trusted: the Wilson interval."""

from __future__ import annotations

import math
from typing import NamedTuple

from convscope.errors import UsageError, sentence


class Interval(NamedTuple):
    """A confidence interval, its ends included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Compute the Wilson score interval of a share.

    Unlike the usual p ± 1.96·√(p(1 − p)/n) it keeps its confidence near 0 and 1, where good networks are:
    without a single error among n images it still does not promise an accuracy of 100 %.

    With z the normal quantile: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    (E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927).

    Parameters
    ----------
    successes, trials : int
        Of n trials, this many succeeded.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    Interval
        Within [0, 1]; the whole of it when there are no trials.

    Raises
    ------
    UsageError
        When there are more successes than trials, or the confidence is not between 0 and 1.

    Examples
    --------
    >>> low, high = wilson_interval(990, 1000)
    >>> f"{low:.4f} … {high:.4f}"
    '0.9817 … 0.9946'
    """
    if not 0 <= successes <= trials:
        raise UsageError(sentence(f"from 0 to {trials} successes", successes))
    if not 0 < confidence < 1:
        raise UsageError(sentence("a confidence between 0 and 1", confidence))
    if trials == 0:
        return Interval(0.0, 1.0)
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == trials else (centre + reach) / scale
    return Interval(low, high)
