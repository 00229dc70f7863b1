"""Labels that are likely wrong, ranked by cleanlab's method on out-of-sample probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from convscope.environment import own_warning_filters, require_package
from convscope.errors import UsageError, expected_got
from convscope.evaluation.metrics import FloatArray, IntArray, as_labels, as_probabilities

# (indices to train on, indices to predict) → probabilities of the latter, of shape (m, k)
FitAndPredict = Callable[[IntArray, IntArray], ArrayLike]

# Of calibrated predictions with 5 to 10 % of the labels changed, most of those that confident learning names
# are changed ones from here on; below, most are the network's own errors, and without any changed label it
# still names one in six images at 77 %, one in two at 33 %.
LEAST_ACCURACY = 0.8


class LabelCheck(NamedTuple):
    """All images, the most likely wrong label first.

    ``ranking`` (n,) holds indices of images, ``scores`` (n,) goes with it, from 0 (surely wrong) to 1 (surely
    right). ``suspects`` is how many labels are estimated to be wrong: the first so many are worth a look. It
    is None where the network is right for fewer than 80 % of the images: it is then mostly the network that
    is wrong, and the estimate means nothing.
    """

    ranking: IntArray
    scores: FloatArray
    suspects: int | None


def check_labels(probabilities: FloatArray, labels: IntArray) -> LabelCheck:
    """Rank images by how likely their label is wrong.

    The score is cleanlab's normalized margin, (1 + p(label) − largest other p) / 2: made for labels that
    should be another class. The number of suspects is cleanlab's estimate by confident learning
    (C. G. Northcutt, L. Jiang and I. L. Chuang, "Confident learning: estimating uncertainty in dataset
    labels", 2021). The network must not have been trained on these images: one that was has learned the
    wrong labels too.
    """
    require_package("cleanlab", "labels")
    # cleanlab takes two seconds to load, and only this needs it.
    from cleanlab.rank import get_label_quality_scores

    table = probabilities / probabilities.sum(axis=1, keepdims=True)
    scores = np.asarray(get_label_quality_scores(labels, table, method="normalized_margin"), dtype=np.float64)
    ranking = np.argsort(scores, kind="stable").astype(np.int64)
    meaningful = np.mean(table.argmax(axis=1) == labels) >= LEAST_ACCURACY
    return LabelCheck(ranking, scores[ranking], _count_suspects(table, labels) if meaningful else None)


def _count_suspects(probabilities: FloatArray, labels: IntArray) -> int:
    from cleanlab.filter import find_label_issues

    if np.unique(labels).size < 2:
        return 0  # nothing else that a label could be
    with own_warning_filters():
        warnings.filterwarnings("ignore", message="May not flag all label issues", category=UserWarning)
        return int(np.sum(find_label_issues(labels, probabilities, n_jobs=1)))


def out_of_sample_probabilities(
    labels: ArrayLike, classes: int, fit_and_predict: FitAndPredict, folds: int = 5, seed: int = 0
) -> FloatArray:
    """Predict every training image by a network that was not trained on it (cross-validation): (n, classes).

    Parameters
    ----------
    labels : array-like of shape (n,) or (n, classes)
    classes : int
    fit_and_predict : callable
        Given the indices to train on and those to predict, returns probabilities of shape (m, classes).
    folds : int
        How many networks are trained, each on all but one fold; at most the images of the largest class.
    seed : int
        Decides the folds, which keep the classes' proportions.

    Examples
    --------
    >>> def guess(train, predict):
    ...     return np.full((len(predict), 2), 0.5)
    >>> out_of_sample_probabilities([0, 1, 0, 1], 2, guess, folds=2).shape
    (4, 2)
    """
    truth = as_labels(labels, classes)
    most = int(np.bincount(truth).max())
    if not 2 <= folds <= most:
        raise UsageError(expected_got(f"from 2 to {most} folds, the images of the largest class", folds))
    table = np.zeros((truth.size, classes))
    with own_warning_filters():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        from sklearn.model_selection import StratifiedKFold

        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(table, truth))
    for train, predict in parts:
        table[predict] = as_probabilities(fit_and_predict(train, predict))
    return table
