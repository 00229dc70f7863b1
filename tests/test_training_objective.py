"""Losses and metrics of the fast engine against Keras's own."""

import inspect
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

import convscope
from convscope.training.objective import CrossEntropy, Penalties, find_cross_entropy

losses = keras.losses
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((12, 5)).astype(np.float32)
ONE_HOT = np.eye(5, dtype=np.float32)[RANDOM.integers(0, 5, 12)]
SOFT = RANDOM.dirichlet(np.ones(5), 12).astype(np.float32)
CASES = {
    "categorical": (losses.CategoricalCrossentropy, ONE_HOT, "softmax"),
    "categorical-soft-targets": (losses.CategoricalCrossentropy, SOFT, "softmax"),
    "sparse": (losses.SparseCategoricalCrossentropy, ONE_HOT.argmax(1), "softmax"),
    "sparse-column": (losses.SparseCategoricalCrossentropy, ONE_HOT.argmax(1)[:, None], "softmax"),
    "sparse-ignored-class": (
        partial(losses.SparseCategoricalCrossentropy, ignore_class=2),
        ONE_HOT.argmax(1),
        "softmax",
    ),
    "binary": (losses.BinaryCrossentropy, ONE_HOT, "sigmoid"),
}
# Class numbers cannot be smoothed.
SMOOTHED = [
    (name, smoothing)
    for name, (_, y, _) in CASES.items()
    for smoothing in ([0.0] if y.dtype == int else [0.0, 0.1])
]
ACTIVATIONS = {"softmax": lambda z: torch.softmax(z, -1), "sigmoid": torch.sigmoid, None: lambda z: z}


def compiled(loss, activation, units=5, **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, activation=activation)])
    model.compile("sgd", loss, **arguments)
    return model


def recognised(loss, activation, y, units=5, **arguments):
    model = compiled(loss, activation, units, **arguments)
    model._symbolic_build(data_batch=(np.zeros((12, 3), np.float32), y, None))
    return find_cross_entropy(model, [model.output_shape], activation)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("weight", [None, (12,), (12, 1)], ids=str)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(("name", "smoothing"), SMOOTHED)
def test_value_and_gradient_equal_keras(name, smoothing, from_logits, weight, reduction):
    make, y, activation = CASES[name]
    arguments = {} if y.dtype == int else {"label_smoothing": smoothing}
    theirs = make(from_logits=from_logits, reduction=reduction, **arguments)
    ours = recognised(theirs, None if from_logits else activation, y)
    sample_weight = None if weight is None else torch.linspace(0, 2, 12).reshape(weight)
    results = []
    for compute in (
        lambda z: ours(z, torch.as_tensor(y), sample_weight)[0],
        lambda z: theirs(y, z if from_logits else ACTIVATIONS[activation](z), sample_weight),
    ):
        logits = torch.tensor(LOGITS, requires_grad=True)
        loss = compute(logits)
        loss.backward()
        results.append((loss.item(), logits.grad))
    (our_loss, our_gradient), (their_loss, their_gradient) = results
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-6)


def test_extreme_logits_keep_their_gradient_and_report_what_keras_reports():
    logits, y = torch.tensor([[200.0, -200.0]], requires_grad=True), torch.tensor([[0.0, 1.0]])
    loss, reported = CrossEntropy(losses.categorical_crossentropy)(logits, y, None)
    loss.backward()
    assert loss.item() == 400
    assert reported.item() == pytest.approx(-np.log(1e-7))
    assert logits.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("weight", [None, (12,)], ids=str)
@pytest.mark.parametrize(("name", "smoothing"), SMOOTHED)
def test_what_is_reported_equals_keras_where_it_clips(name, smoothing, weight):
    make, y, activation = CASES[name]
    arguments = {} if y.dtype == int else {"label_smoothing": smoothing}
    theirs = make(**arguments)
    sample_weight = None if weight is None else torch.linspace(0, 2, 12).reshape(weight)
    logits = 12 * torch.tensor(LOGITS)
    _, reported = recognised(theirs, activation, y)(logits, torch.as_tensor(y), sample_weight)
    expected = theirs(y, ACTIVATIONS[activation](logits), sample_weight)
    assert reported.item() == pytest.approx(expected.item(), rel=1e-5)


NOT_RECOGNISED = {
    "mse": ("mse", "softmax", ONE_HOT),
    "softmax-called-logits": (losses.CategoricalCrossentropy(from_logits=True), "softmax", ONE_HOT),
    "linear-called-probabilities": ("categorical_crossentropy", None, ONE_HOT),
    "sigmoid-for-categorical": ("categorical_crossentropy", "sigmoid", ONE_HOT),
    "own-function": (lambda y, p: keras.ops.mean(y - p, axis=-1), "softmax", ONE_HOT),
    "focal": ("categorical_focal_crossentropy", "softmax", ONE_HOT),
}


@pytest.mark.parametrize(("loss", "activation", "y"), NOT_RECOGNISED.values(), ids=NOT_RECOGNISED.keys())
def test_other_losses_are_left_to_keras(loss, activation, y):
    assert recognised(loss, activation, y) is None


def test_an_overridden_call_is_left_to_keras():
    class Doubled(losses.CategoricalCrossentropy):
        def call(self, y_true, y_pred):
            return 2 * super().call(y_true, y_pred)

    assert recognised(Doubled(), "softmax", ONE_HOT) is None


def test_a_strict_training_leaves_clipped_probabilities_to_keras():
    model = compiled("categorical_crossentropy", "softmax")
    model._symbolic_build(data_batch=(np.zeros((12, 3), np.float32), ONE_HOT, None))
    assert find_cross_entropy(model, [model.output_shape], "softmax", strict=True) is None


SEGMENTATION = {
    "softmax": ({}, torch.nn.Softmax(-1), "softmax", {}),
    "softmax-strict": ({}, torch.nn.Softmax(-1), "softmax", {"strict": True}),
    "sigmoid": ({}, torch.nn.Sigmoid(), "sigmoid", {}),
    "logits": ({"from_logits": True}, torch.nn.Identity(), None, {}),
    "softmax-called-logits": ({"from_logits": True}, torch.nn.Softmax(-1), "softmax", {}),
    "ignored-class": ({"ignore_class": 1}, torch.nn.Softmax(-1), "softmax", {}),
    "ignored-and-summed": ({"ignore_class": 1, "reduction": "sum"}, torch.nn.Softmax(-1), "softmax", {}),
    "channels-first": ({"axis": 1}, torch.nn.Softmax(1), "softmax", {}),
}


@pytest.mark.parametrize("weight", [None, (2, 4, 3), (2, 4, 3, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("column", [False, True], ids=["maps", "maps-with-channel"])
@pytest.mark.parametrize("name", SEGMENTATION)
def test_class_numbers_of_pixels_are_trained_on_where_keras_cannot(name, column, weight):
    settings, activation, called, options = SEGMENTATION[name]
    theirs = losses.SparseCategoricalCrossentropy(**settings)
    axis = settings.get("axis", -1)
    shape, label_shape = ((2, 5, 4, 3), (2, 4, 3)) if axis == 1 else ((2, 4, 3, 5), (2, 4, 3))
    random = np.random.default_rng(1)
    values = random.standard_normal(shape).astype(np.float32)
    y = random.integers(0, 5, label_shape)
    y = np.expand_dims(y, axis) if column else y
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, keras.layers.Conv2D(shape[-1], 1)(inputs))
    model.compile("sgd", theirs)
    model._symbolic_build(data_batch=(values, y, None))
    ours = find_cross_entropy(model, [model.output_shape], called, **options)
    sample_weight = None if weight is None else torch.linspace(0, 2, int(np.prod(weight))).reshape(weight)
    scores = torch.tensor(values, requires_grad=True)
    target = torch.as_tensor(y)
    assert ours.takes(scores, target, sample_weight)
    loss, reported = ours(scores if ours.folded else activation(scores), target, sample_weight)
    loss.backward()
    whole = sample_weight if weight != (2, 1, 1) else sample_weight.expand(label_shape).clone()
    expected = theirs(target, activation(torch.tensor(values)), whole)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert reported.item() == pytest.approx(expected.item(), rel=1e-5)
    one_hot = torch.nn.functional.one_hot(target.reshape(label_shape), 5).movedim(-1, axis).float()
    again = torch.tensor(values, requires_grad=True)
    weights = torch.ones(label_shape) if weight is None else sample_weight.reshape(weight[:3])
    if "ignore_class" in settings:
        weights = weights * (target.reshape(label_shape) != 1)
    dense = losses.CategoricalCrossentropy(
        from_logits=settings.get("from_logits", False), axis=axis, reduction="sum"
    )(one_hot, activation(again), weights.broadcast_to(label_shape))
    dense.backward()
    torch.testing.assert_close(scores.grad, again.grad * (loss / dense).item(), rtol=1e-4, atol=1e-7)


def test_unusual_shapes_are_not_taken():
    ours = recognised("categorical_crossentropy", "softmax", ONE_HOT)
    assert ours.takes(torch.zeros(12, 5), torch.zeros(12, 5), torch.zeros(12))
    assert not ours.takes(torch.zeros(12, 5), torch.zeros(12, 1), None)
    assert not ours.takes(torch.zeros(12, 5), torch.zeros(12, 5), torch.zeros(12, 5))


def test_the_compiled_weight_is_kept():
    assert recognised("categorical_crossentropy", "softmax", ONE_HOT, loss_weights=[0.25]).weight == 0.25


@pytest.mark.parametrize(
    "regularizer",
    [
        keras.regularizers.L1(0.3),
        keras.regularizers.L2(0.2),
        keras.regularizers.L1L2(0.1, 0.2),
        keras.regularizers.OrthogonalRegularizer(0.5),
        lambda w: keras.ops.sum(w**4),
    ],
    ids=["l1", "l2", "l1-l2", "orthogonal", "function"],
)
def test_penalties_equal_keras(regularizer):
    values = RANDOM.standard_normal((4, 3)).astype(np.float32)
    results = []
    for ours in (True, False):
        variable = keras.Variable(values)
        variable.regularizer = regularizer
        weight = torch.tensor(values, requires_grad=True)
        loss = Penalties([variable], [weight])() if ours else regularizer(weight)
        loss.backward()
        results.append((loss.item(), weight.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)


def test_without_regularizers_there_is_no_penalty():
    assert not Penalties([keras.Variable(np.zeros(3))], [torch.zeros(3)])


README = Path(convscope.__file__).parent / "lowering" / "README.md"
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((40, 6)).astype(np.float32)
TARGETS = np.eye(3, dtype=np.float32)[GENERATOR.integers(0, 3, 40)]
Y = TARGETS[:, :1]
# What a metric needs beside its thresholds.
REQUIRED = {
    "BinaryIoU": {"target_class_ids": [0, 1]},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.4},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
}
SETTINGS = {"threshold": (0.3, 0.0, 1.0), "thresholds": (0.3, [0.2, 0.6]), "num_thresholds": (7,)}


def _found():
    """Every metric of Keras with a setting for thresholds, and the values that it takes."""
    for name, kind in inspect.getmembers(keras.metrics, inspect.isclass):
        parameters = inspect.signature(kind.__init__).parameters
        for setting, values in SETTINGS.items():
            for value in values if setting in parameters else ():
                try:
                    kind(**REQUIRED.get(name, {}) | {setting: value})
                except (TypeError, ValueError):
                    continue
                yield name, setting, value


FOUND = list(_found())


def _trained(train, name, settings, activation, units):
    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense(units, activation=activation)
    model = keras.Sequential([keras.Input((6,)), dense])
    metric = getattr(keras.metrics, name)(**settings)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=activation is None), metrics=[metric])
    y = Y if units == 1 else TARGETS
    return train(model, X, y, batch_size=16, verbose=0, shuffle=False).history


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(
    ("activation", "units"), [("sigmoid", 3), (None, 1)], ids=["probabilities", "logits"]
)
@pytest.mark.parametrize(("name", "setting", "value"), FOUND, ids=str)
def test_thresholds_mean_what_they_mean_in_keras(name, setting, value, activation, units):
    settings = REQUIRED.get(name, {}) | {setting: value, "name": "measured"}
    expected = _trained(keras.Model.fit, name, settings, activation, units)
    found = _trained(
        lambda *data, **how: convscope.fit(*data, engine="fast", precision="float32", **how),
        name,
        settings,
        activation,
        units,
    )
    assert sorted(found) == sorted(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FOUND}))
def test_the_docs_name_every_metric_with_thresholds(name):
    rows = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)


def test_a_threshold_that_changes_in_training_is_seen():
    class Moves(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002  Keras gives them
            metric._fn_kwargs["threshold"] = 0.9

    histories = []
    for train in (keras.Model.fit, convscope.fit):
        keras.utils.set_random_seed(1)
        metric = keras.metrics.BinaryAccuracy()
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, activation="sigmoid")])
        model.compile("sgd", "binary_crossentropy", metrics=[metric])
        history = train(model, X, Y, verbose=0, shuffle=False, callbacks=[Moves()]).history
        histories.append(history["binary_accuracy"])
    np.testing.assert_allclose(*histories)
