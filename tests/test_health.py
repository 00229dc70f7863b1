"""Measurements of training health against NumPy in float64, and verdicts at both sides of each threshold."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers
from odd_networks import nested, strided

from convscope.errors import UsageError
from convscope.inspection import (
    LayerHealth,
    judge_confidence,
    judge_curves,
    judge_layers,
    layer_health,
    training_health,
)


@pytest.fixture(scope="module")
def model():
    """Build a network of dense layers whose gradients can be written down."""
    keras.utils.set_random_seed(1338)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(7, activation="relu", name="hidden"),
            layers.Dense(3, activation="softmax", name="classes"),
        ]
    )


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(150, 5)).astype("float32"), generator.integers(0, 3, 150)


def by_subject(verdicts):
    return {verdict.subject: verdict for verdict in verdicts}


# ---- measurements


def test_scales_and_gradients_are_numpys(model, data):
    x, labels = np.float64(data[0]), data[1]
    first, bias, second, last_bias = (np.float64(weight) for weight in model.get_weights())
    hidden = np.maximum(0, x @ first + bias)
    scores = np.exp(hidden @ second + last_bias)
    probabilities = scores / scores.sum(1, keepdims=True)
    error = (probabilities - np.eye(3)[labels]) / len(x)
    gradient = x.T @ ((error @ second.T) * (hidden > 0))
    measured, output = layer_health(model, *data)
    assert measured.activation_mean == pytest.approx(hidden.mean(), rel=1e-5)
    assert measured.activation_std == pytest.approx(hidden.std(), rel=1e-5)
    assert measured.zero_share == pytest.approx((hidden == 0).mean())
    assert measured.weight_scale == pytest.approx(np.sqrt((first**2).mean()), rel=1e-5)
    assert measured.gradient_scale == pytest.approx(np.sqrt((gradient**2).mean()), rel=1e-4)
    assert output.gradient_scale == pytest.approx(np.sqrt(((hidden.T @ error) ** 2).mean()), rel=1e-4)
    assert output.dead is None


def test_one_hot_labels_are_the_same(model, data):
    images, labels = data
    assert layer_health(model, images, np.eye(3)[labels]) == layer_health(model, images, labels)


@pytest.mark.parametrize("rectifier", ["relu", "relu6"])
def test_dead_units_are_named(data, rectifier):
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, activation=rectifier), layers.Dense(3, activation="softmax")]
    )
    model.layers[0].bias.assign([0.0, -1e3, 1.0, -1e3])
    (hidden, _) = layer_health(model, *data)
    assert hidden.dead == (1, 3)
    (verdict, *_) = judge_layers([hidden])
    assert (verdict.level, verdict.number) == ("warning", 0.5)
    assert "2 of 4 units of dense" in verdict.text
    assert "(50%)" in verdict.text


@pytest.mark.parametrize("number", [10, 70], ids=["first batch", "second batch"])
def test_a_filter_that_speaks_in_one_place_of_one_image_is_alive(number):
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(1, 1, activation="relu"), layers.Flatten()]
    )
    model.layers[0].set_weights([np.ones((1, 1, 1, 1)), np.array([-0.5])])
    images = np.zeros((100, 4, 4, 1), "float32")
    assert layer_health(model, images, np.zeros(100))[0].dead == (0,)
    images[number, 2, 3] = 1
    assert layer_health(model, images, np.zeros(100))[0].dead == ()


def test_relu_layers_are_watched_too():
    watched = layer_health(strided(), np.ones((2, 17, 14, 3)), [0, 1])
    assert [(layer.type, layer.dead is None) for layer in watched] == [
        ("Conv2D", False), ("Conv2D", True), ("ReLU", False), ("Dense", True),
    ]  # fmt: skip


def test_shared_layers_have_one_gradient():
    watched = {layer.layer: layer for layer in layer_health(nested(), np.ones((2, 8, 8, 1)), [0, 1])}
    assert watched["block/inner"].gradient_scale > 0
    assert watched["block/inner:2"].gradient_scale is None


def test_frozen_layers_have_no_gradient(model, data):
    frozen = keras.models.clone_model(model)
    frozen.layers[0].trainable = False
    hidden, output = layer_health(frozen, *data)
    assert hidden.gradient_scale is None
    assert output.gradient_scale > 0


def test_one_sigmoid_is_a_classifier_of_two(data):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1, activation="sigmoid")])
    x, labels = np.float64(data[0]), data[1] % 2
    kernel, bias = (np.float64(weight) for weight in model.get_weights())
    error = 1 / (1 + np.exp(-(x @ kernel + bias))) - labels[:, None]
    (measured,) = layer_health(model, data[0], labels)
    assert measured.gradient_scale == pytest.approx(np.sqrt(((x.T @ error / 150) ** 2).mean()), rel=1e-4)


BAD_LABELS = {
    "count": (np.zeros(3), "Expected a label for each of 150 images"),
    "class": (np.full(150, 3), "Expected labels below 3, got 3"),
}


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_do_not_fit_are_refused(model, data, labels, message):
    with pytest.raises(UsageError, match=message):
        layer_health(model, data[0], labels)


# ---- verdicts on layers


def layer(name, std=1.0, weight=1.0, gradient=1.0, dead=(), units=10):
    return LayerHealth(name, "Dense", 0.0, std, 0.0, units, dead, weight, gradient)


DEAD = {
    "none": (0, "good"),
    "at the note": (1, "good"),
    "note": (2, "note"),
    "40 %": (4, "note"),
    "more": (5, "warning"),
}


@pytest.mark.parametrize(("count", "level"), DEAD.values(), ids=DEAD)
def test_dead_units_are_graded(count, level):
    verdict = by_subject(judge_layers([layer("a"), layer("b", dead=tuple(range(count)))]))["dead units"]
    assert (verdict.level, verdict.number) == (level, count / 10)


SPREADS = {
    "even": (1.0, "good"),
    "hundred": (100.0, "good"),
    "more": (101.0, "note"),
    "vanished": (1e5, "warning"),
}


@pytest.mark.parametrize(("ratio", "level"), SPREADS.values(), ids=SPREADS)
def test_scales_that_differ_between_layers_are_graded(ratio, level):
    verdicts = by_subject(
        judge_layers([layer("a", gradient=1 / ratio), layer("b", std=ratio), layer("last", std=1e9)])
    )
    assert verdicts["gradients"].level == verdicts["activations"].level == level
    assert verdicts["gradients"].number == pytest.approx(ratio)
    assert "between a (" in verdicts["gradients"].text


def test_a_layer_through_which_nothing_passes_is_a_warning():
    verdict = by_subject(judge_layers([layer("a", gradient=0.0), layer("b")]))["gradients"]
    assert (verdict.level, verdict.number) == ("warning", math.inf)
    assert "of a is 0: nothing passes through it." in verdict.text
    assert json.dumps(verdict.to_json(), allow_nan=False)


def test_numbers_that_are_not_finite_are_a_warning(data):
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, name="hidden"), layers.Dense(3, name="classes")]
    )
    model.layers[0].kernel.assign(np.full((5, 4), np.nan))
    health = layer_health(model, *data)
    verdicts = by_subject(judge_layers(health))
    assert verdicts["activations"].level == verdicts["gradients"].level == "warning"
    assert "of hidden is not a finite number: training has diverged." in verdicts["activations"].text
    assert json.dumps([measured.to_json() for measured in health], allow_nan=False)


# ---- verdicts on curves

FALLING = [1.0, 0.5, 0.3, 0.25]
CURVES = {
    "done": ({"loss": FALLING, "val_loss": [1, 0.5, 0.4, 0.399]}, "underfitting", "good", 0.25),
    "still falling": ({"loss": FALLING, "val_loss": [1, 0.5, 0.4, 0.36]}, "underfitting", "note", 10),
    "far from done": ({"loss": FALLING, "val_loss": [1, 0.8, 0.6, 0.3]}, "underfitting", "warning", 50),
    "one epoch": ({"loss": [1.0], "val_loss": [1.0]}, "underfitting", "note", 0),
    "lowest at the end": ({"loss": FALLING, "val_loss": [1, 0.5, 0.4, 0.3]}, "overfitting", "good", 0),
    "a little above": ({"loss": FALLING, "val_loss": [1, 0.5, 0.4, 0.419]}, "overfitting", "good", 4.75),
    "rising": ({"loss": FALLING, "val_loss": [1, 0.4, 0.42, 0.48]}, "overfitting", "note", 20),
    "risen": ({"loss": FALLING, "val_loss": [1, 0.4, 0.6, 0.8]}, "overfitting", "warning", 100),
    "steady": ({"loss": FALLING}, "stability", "good", 0),
    "restless": ({"loss": [1, 0.5, 0.6, 0.5, 0.6]}, "stability", "note", 0.5),
    "wild": ({"loss": [1, 1.2, 1.1, 1.5]}, "stability", "warning", 2 / 3),
    "no gap": ({"loss": [1], "accuracy": [0.98], "val_accuracy": [0.97]}, "generalisation gap", "good", 0.01),
    "worse in training": (
        {"loss": [1], "accuracy": [0.9], "val_accuracy": [0.95]}, "generalisation gap", "good", -0.05,
    ),
    "gap": ({"loss": [1], "accuracy": [0.99], "val_accuracy": [0.9]}, "generalisation gap", "note", 0.09),
    "wide gap": (
        {"loss": [1], "accuracy": [0.99], "val_accuracy": [0.7]}, "generalisation gap", "warning", 0.29,
    ),
    "learned": ({"loss": [1], "val_accuracy": [0.9]}, "learning", "good", 0.9),
    "half learned": ({"loss": [1], "val_accuracy": [0.4]}, "learning", "note", 0.4),
    "guessing": ({"loss": [1], "val_accuracy": [0.11]}, "learning", "warning", 0.11),
}  # fmt: skip


@pytest.mark.parametrize(("history", "subject", "level", "number"), CURVES.values(), ids=CURVES)
def test_curves_are_graded(history, subject, level, number):
    verdict = by_subject(judge_curves(history, chance=0.1))[subject]
    assert verdict.level == level
    assert verdict.number == pytest.approx(number)


def test_overfitting_names_the_epoch_to_stop_at():
    verdict = by_subject(judge_curves({"loss": FALLING, "val_loss": [1, 0.4, 0.42, 0.48]}))["overfitting"]
    assert "ends 20.0 % above its lowest, 0.4 in epoch 2 of 4." in verdict.text


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=["nan", "inf"])
def test_divergence_is_told_alone(bad):
    (verdict,) = judge_curves({"loss": [1.0, bad], "val_loss": [1.0, bad]})
    assert (verdict.subject, verdict.level) == ("stability", "warning")
    assert "from epoch 2 on" in verdict.text


BAD_HISTORIES = {
    "empty": ({}, "a history with a loss for each epoch, got an empty one"),
    "no loss": ({"accuracy": [1]}, "a loss for each epoch, got accuracy"),
    "lengths": ({"loss": [1, 2], "val_loss": [1]}, "columns of one length, got loss 2, val_loss 1"),
}


@pytest.mark.parametrize(("history", "message"), BAD_HISTORIES.values(), ids=BAD_HISTORIES)
def test_histories_that_do_not_fit_are_refused(history, message):
    with pytest.raises(UsageError, match=message):
        judge_curves(history)


# ---- verdicts on confidence


def answers(right: int, wrong: int, confidence: float, confidence_if_wrong: float | None = None):
    sure = [confidence] * right + [confidence if confidence_if_wrong is None else confidence_if_wrong] * wrong
    probabilities = np.array([[p, 1 - p] for p in sure])
    return probabilities, np.array([0] * right + [1] * wrong)


CONFIDENCE = {
    "unsaturated": (answers(10, 0, 0.95), "saturated softmax", "good", 0),
    "saturated": (answers(10, 0, 0.99999), "saturated softmax", "note", 1),
    "no mistakes": (answers(10, 0, 0.95), "sure mistakes", "good", 0),
    "doubtful mistakes": (answers(5, 4, 0.9, 0.6), "sure mistakes", "good", 0),
    "all mistakes sure": (answers(5, 4, 0.9, 0.999), "sure mistakes", "warning", 1),
    "calibrated": (answers(9, 1, 0.9), "overconfidence", "good", 0),
    "overconfident": (answers(8, 2, 0.9), "overconfidence", "note", 0.1),
    "much too sure": (answers(5, 5, 0.9), "overconfidence", "warning", 0.4),
}


@pytest.mark.parametrize(("given", "subject", "level", "number"), CONFIDENCE.values(), ids=CONFIDENCE)
def test_confidence_is_graded(given, subject, level, number):
    verdict = by_subject(judge_confidence(*given))[subject]
    assert verdict.level == level
    assert verdict.number == pytest.approx(number, abs=1e-12)


def test_one_sigmoid_has_two_classes():
    verdict = by_subject(judge_confidence([[0.9], [0.2]], [1, 1]))["sure mistakes"]
    assert verdict.text == "0 of 1 wrong answers (0%) were given with a probability above 99%."


@pytest.mark.parametrize("labels", [[], [0, 1, 0]], ids=["none", "too many"])
def test_confidence_needs_a_label_for_each(labels):
    with pytest.raises(UsageError, match="probabilities of shape"):
        judge_confidence(np.full((2, 2), 0.5), labels)


# ---- together


def test_everything_together_has_the_worst_first(model, data):
    history = {"loss": [1.0, 0.5], "val_loss": [1.0, 3.0], "accuracy": [0.5, 0.6], "val_accuracy": [0.5, 0.6]}
    health = training_health(model, *data, history)
    levels = [verdict.level for verdict in health.verdicts]
    assert levels == sorted(levels, key=["warning", "note", "good"].index)
    assert by_subject(health.verdicts)["overfitting"].level == "warning"
    assert health.images == 150
    assert {verdict.subject for verdict in health.verdicts} == {
        "dead units", "activations", "gradients", "saturated softmax", "sure mistakes", "overconfidence",
        "stability", "overfitting", "underfitting", "generalisation gap", "learning",
    }  # fmt: skip
    assert all(verdict.text and verdict.source for verdict in health.verdicts)
    json.dumps(health.to_json(), allow_nan=False)


def test_history_may_be_missing(model, data):
    subjects = {verdict.subject for verdict in training_health(model, *data).verdicts}
    assert "overfitting" not in subjects
    assert "dead units" in subjects
