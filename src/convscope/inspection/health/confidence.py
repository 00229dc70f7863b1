"""Whether a network's answers are surer than they may be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from convscope.errors import UsageError, sentence
from convscope.inspection.health.verdicts import OURS, Verdict, level_of

# A softmax is taken as saturated above this probability: the loss's gradient is below 1 − it.
SATURATED = 0.9999
SURE = 0.99
SATURATED_NOTE, SATURATED_WARNING = 0.99, 1.0
WRONG_NOTE, WRONG_WARNING = 0.25, 0.5
OVERCONFIDENCE_NOTE, OVERCONFIDENCE_WARNING = 0.05, 0.15


def judge_confidence(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Verdict, ...]:
    """Judge how sure a network is of its answers, on images that it was not trained on.

    Parameters
    ----------
    probabilities : array of shape (n, classes)
        Predicted probabilities.
    labels : array of shape (n,) of int, or (n, classes) one-hot
        True classes.

    Returns
    -------
    tuple of Verdict
        On saturation, sure mistakes and overconfidence.

    Raises
    ------
    UsageError
        When there are no images, or shapes do not fit together.

    Examples
    --------
    >>> for verdict in judge_confidence([[0.9, 0.1], [0.2, 0.8]], [0, 1]):
    ...     print(verdict.level, verdict.subject)
    good saturated softmax
    good sure mistakes
    good overconfidence
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels)
    truth = truth.argmax(1) if truth.ndim == 2 and truth.shape[1] > 1 else truth.reshape(-1)
    if scores.ndim != 2 or len(scores) == 0 or truth.shape != (len(scores),):
        raise UsageError(
            sentence("probabilities of shape (n, classes) and n labels", f"{scores.shape} and {truth.shape}")
        )
    if scores.shape[1] == 1:
        scores = np.column_stack([1 - scores[:, 0], scores[:, 0]])  # one sigmoid: the second class
    confidence, correct = scores.max(1), scores.argmax(1) == truth
    return (
        _judge_saturation(confidence),
        _judge_mistakes(confidence[~correct]),
        _judge_overconfidence(float(confidence.mean()), float(correct.mean())),
    )


def _judge_saturation(confidence: npt.NDArray[np.float64]) -> Verdict:
    share = float((confidence > SATURATED).mean())
    level = level_of(share, SATURATED_NOTE, SATURATED_WARNING)
    text = f"The softmax is saturated (a probability above {SATURATED:.2%}) on {share:.1%} of the images."
    if level != "good":
        text += " Hardly any gradient is left to learn from: label smoothing or weight decay keep it alive."
    source = (
        "Goodfellow, Bengio and Courville (2016), section 6.2.2.3, on saturation; "
        f"the 99 % of images is {OURS}"
    )
    return Verdict("saturated softmax", level, text, share, SATURATED_NOTE, source)


def _judge_mistakes(confidence: npt.NDArray[np.float64]) -> Verdict:
    count, sure = len(confidence), int((confidence > SURE).sum())
    share = sure / count if count else 0.0
    level = level_of(share, WRONG_NOTE, WRONG_WARNING)
    if count == 0:
        text = "No answer is wrong."
    else:
        text = (
            f"{sure} of {count} wrong answers ({share:.0%}) were given with a probability above {SURE:.0%}."
        )
    if level != "good":
        text += " Look at them: labels may be wrong; temperature scaling or label smoothing lower the rest."
    return Verdict("sure mistakes", level, text, share, WRONG_NOTE, f"{OURS}: a quarter")


def _judge_overconfidence(confidence: float, accuracy: float) -> Verdict:
    gap = confidence - accuracy
    level = level_of(gap, OVERCONFIDENCE_NOTE, OVERCONFIDENCE_WARNING)
    text = f"The mean probability of the answers is {confidence:.2%}, and {accuracy:.2%} of them are right."
    if level != "good":
        text += " Probabilities promise too much; a temperature fitted on validation data corrects that."
    source = f"Guo et al. (2017), section 2, on calibration; the 5 points are {OURS}"
    return Verdict("overconfidence", level, text, gap, OVERCONFIDENCE_NOTE, source)
