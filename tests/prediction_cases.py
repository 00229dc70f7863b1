"""Predictions that every metric is tried on: random ones and degenerate ones."""

import numpy as np
import pytest
from hypothesis import strategies as st

from convscope.evaluation import Evaluation

evaluate = Evaluation.from_probabilities


def random_case(images, classes, seed=0, skill=2.0):
    """Probabilities of a classifier with some skill, and the true labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += skill
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True), labels


def one_class_only():
    probabilities, _ = random_case(50, 4)
    return probabilities, np.full(50, 2)


def no_errors():
    labels = np.arange(40) % 4
    return np.eye(4)[labels], labels


def all_errors():
    labels = np.arange(40) % 4
    return np.eye(4)[(labels + 1) % 4], labels


def all_ties():
    return np.full((40, 4), 0.25), np.arange(40) % 4


def never_predicted():
    return np.tile([0.9, 0.1, 0.0], (30, 1)), np.arange(30) % 3


CASES = {
    "two classes": random_case(300, 2),
    "ten classes": random_case(1000, 10),
    "a thousand classes": random_case(2000, 1000, skill=6.0),
    "one image": random_case(1, 3),
    "one class only": one_class_only(),
    "no errors": no_errors(),
    "all errors": all_errors(),
    "all ties": all_ties(),
    "a class never predicted": never_predicted(),
}
case = pytest.mark.parametrize(("probabilities", "labels"), CASES.values(), ids=CASES.keys())


@st.composite
def predictions(draw, most_images=40, most_classes=6):
    classes = draw(st.integers(2, most_classes))
    images = draw(st.integers(1, most_images))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    concentration = draw(st.sampled_from([0.01, 0.3, 1.0, 100.0]))
    table = rng.dirichlet(np.full(classes, concentration), images)
    if draw(st.booleans()):
        table = np.round(table * 4) / 4  # ties, zeros and ones
        table[:, 0] += 1 - table.sum(axis=1)
        table = np.abs(table) / np.abs(table).sum(axis=1, keepdims=True)
    return table, rng.integers(0, classes, images), rng
