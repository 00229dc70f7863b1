"""What the notebooks run on: MNIST or the digits, whole or shortened.

The environment variable ``CONVSCOPE_LESSONS`` holds words separated by commas: ``quick`` shortens data and
training for tests; ``mnist`` or ``digits`` chooses the data. Without it the lessons run on the whole of
MNIST, and on the digits where there is no MNIST.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from convscope.data.catalog import Dataset, Split, fingerprint, load
from convscope.errors import DataNotFoundError, UsageError, sentence

VARIABLE = "CONVSCOPE_LESSONS"
DATASETS = ("mnist", "digits")
QUICK_TRAIN, QUICK_TEST = 4_000, 1_000

# Passes over the training images: enough to learn what there is to learn, and no more.
_EPOCHS = {("mnist", False): 5, ("mnist", True): 3, ("digits", False): 20, ("digits", True): 10}


@dataclass(frozen=True)
class LessonSettings:
    """What the variable asks for; without a dataset it is MNIST where it can be had, else the digits."""

    dataset: str | None = None
    quick: bool = False

    @classmethod
    def from_environment(cls) -> LessonSettings:
        """Read ``CONVSCOPE_LESSONS``."""
        words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
        known = (*DATASETS, "quick")
        unknown = [word for word in words if word not in known]
        if unknown:
            raise UsageError(sentence(f"{VARIABLE} to hold {', '.join(known)}", repr(unknown[0])))
        chosen = [word for word in words if word in DATASETS]
        return cls(chosen[0] if chosen else None, "quick" in words)

    def to_environment(self) -> dict[str, str]:
        """Give the variable that asks for this."""
        words = [self.dataset or "", "quick" if self.quick else ""]
        return {VARIABLE: ",".join(word for word in words if word)}


def load_data() -> Dataset:
    """Load the lessons' data: MNIST where it can be had, else scikit-learn's digits.

    Returns
    -------
    Dataset
        Its first images only, where ``CONVSCOPE_LESSONS`` says ``quick``.

    Raises
    ------
    DataError
        If files are damaged, or the dataset that ``CONVSCOPE_LESSONS`` names cannot be had.

    Examples
    --------
    >>> load_data().input_shape
    (28, 28, 1)
    """
    settings = LessonSettings.from_environment()
    dataset = load(settings.dataset) if settings.dataset else _mnist_or_digits()
    if not settings.quick:
        return dataset
    train, test = _first(dataset.train, QUICK_TRAIN), _first(dataset.test, QUICK_TEST)
    print_ = fingerprint(train, test, class_names=dataset.class_names)
    return replace(dataset, train=train, test=test, fingerprint=print_)


def _mnist_or_digits() -> Dataset:
    try:
        return load("mnist")
    except DataNotFoundError:
        return load("digits")


def _first(part: Split, count: int) -> Split:
    """Take the first examples; both datasets come in random order."""
    return part if len(part) <= count else part.take(np.arange(count))


def epochs(data: Dataset) -> int:
    """Say how many passes over the training images a lesson makes.

    Parameters
    ----------
    data : Dataset
        What the lesson runs on.

    Returns
    -------
    int
        More for few images; fewer where ``CONVSCOPE_LESSONS`` says ``quick``.

    Examples
    --------
    >>> import convscope
    >>> epochs(convscope.load("digits")) >= 10
    True
    """
    quick = LessonSettings.from_environment().quick
    return _EPOCHS.get((data.name, quick), _EPOCHS["mnist", quick])
