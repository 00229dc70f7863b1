"""Class weights: what an error on a rare class should cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, sentence


def balanced_class_weights(labels: NDArray[np.int64], classes: int) -> dict[int, float]:
    """Weigh each class so that all of them matter alike, however many images they have.

    The weight is n / (classes present · images of the class), scikit-learn's ``balanced`` (King and Zeng,
    "Logistic Regression in Rare Events Data", 2001).

    Parameters
    ----------
    labels : ndarray of shape (n,), int64
        The class of each training image.
    classes : int
        Number of classes; one without images gets the weight 1.

    Returns
    -------
    dict of int to float
        As ``fit`` takes it; the mean over the images is 1.

    Raises
    ------
    DataError
        If there are no labels.

    Examples
    --------
    >>> balanced_class_weights(np.array([0, 0, 0, 1]), 2)
    {0: 0.6666666666666666, 1: 2.0}
    """
    from sklearn.utils.class_weight import compute_class_weight

    if not len(labels):
        raise DataError(sentence("training images to weigh classes by", "none"))
    present = np.unique(labels)
    weights = compute_class_weight("balanced", classes=present, y=labels)
    return dict.fromkeys(range(classes), 1.0) | dict(zip(present.tolist(), weights.tolist(), strict=True))
