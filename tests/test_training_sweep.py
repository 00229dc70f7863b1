"""Output activation × loss × metric × target form: the fast engine's loss, metrics and steps are Keras's own.

Weights of the examples and of the classes go round among the cases. Training and validation are held against
Keras's ``fit`` and ``evaluate``, the gradients by the step of SGD that they make.
"""

import itertools

import keras
import numpy as np
import pytest
from training_cases import assert_close

import convscope

losses, metrics = keras.losses, keras.metrics
ROWS, CLASSES = 13, 5
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((ROWS, 4)).astype(np.float32)


class OwnLoss(losses.Loss):
    """What nobody but Keras can compute."""

    def call(self, y_true, y_pred):
        return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)


def own_metric(y_true, y_pred):
    """A metric that is a plain function."""
    return keras.ops.mean(keras.ops.cast(y_pred > 0.5, "float32"), axis=-1)


def _targets(shape):
    """Every form in which targets of an output of this shape are given."""
    *lead, classes = shape
    numbers = RANDOM.integers(0, max(classes, 2), (ROWS, *lead))
    if classes == 1:
        return {
            "column": numbers[..., None].astype(np.float32),
            "flat": numbers.astype(np.float32),
            "int-column": numbers[..., None],
            "bool": numbers.astype(bool),
            "probability": RANDOM.random((ROWS, *lead, 1), np.float32),
        }
    one_hot = np.eye(classes, dtype=np.float32)[numbers]
    return {
        "numbers": numbers,
        "uint8": numbers.astype(np.uint8),
        "float-numbers": numbers.astype(np.float32),
        "number-column": numbers[..., None],
        "one-hot": one_hot,
        "int-one-hot": one_hot.astype(np.int64),
        "bool-one-hot": one_hot.astype(bool),
        "soft": RANDOM.dirichlet(np.ones(classes), (ROWS, *lead)).astype(np.float32),
        "several": RANDOM.integers(0, 2, (ROWS, *lead, classes)).astype(np.float32),
    }


SHAPES = {"unit": (1,), "classes": (CLASSES,), "map": (3, 2, 1), "class-map": (3, 2, CLASSES)}
TARGETS = {name: _targets(shape) for name, shape in SHAPES.items()}
NUMBERS = ("numbers", "uint8", "float-numbers", "number-column")
ROWS_OF_CLASSES = ("one-hot", "int-one-hot", "bool-one-hot", "soft", "several")
ACTIVATIONS = (None, "softmax", "sigmoid", "relu")

SPARSE = {
    "sparse": lambda: "sparse_categorical_crossentropy",
    "sparse-logits": lambda: losses.SparseCategoricalCrossentropy(from_logits=True),
    "sparse-ignored": lambda: losses.SparseCategoricalCrossentropy(ignore_class=1),
    "sparse-ignored-logits-weighted-mean": lambda: losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0, reduction="mean_with_sample_weight"
    ),
    "sparse-sum": lambda: losses.SparseCategoricalCrossentropy(reduction="sum"),
    "by-shape": lambda: "crossentropy",
}
BINARY = {
    "binary": lambda: "binary_crossentropy",
    "binary-logits": lambda: losses.BinaryCrossentropy(from_logits=True),
    "binary-smoothed": lambda: losses.BinaryCrossentropy(label_smoothing=0.2),
    "binary-smoothed-logits-sum": lambda: losses.BinaryCrossentropy(
        from_logits=True, label_smoothing=0.2, reduction="sum"
    ),
    "binary-weighted-mean": lambda: losses.BinaryCrossentropy(reduction="mean_with_sample_weight"),
    "binary-focal": lambda: losses.BinaryFocalCrossentropy(apply_class_balancing=True),
    "binary-focal-logits": lambda: losses.BinaryFocalCrossentropy(from_logits=True),
}
OTHERS = {
    "mse": lambda: "mse",
    "mae": losses.MeanAbsoluteError,
    "huber": losses.Huber,
    "hinge": losses.Hinge,
    "poisson": losses.Poisson,
    "dice": losses.Dice,
    "own": OwnLoss,
}
CATEGORICAL = {
    "categorical": lambda: "categorical_crossentropy",
    "categorical-logits": lambda: losses.CategoricalCrossentropy(from_logits=True),
    "categorical-smoothed-weighted-mean": lambda: losses.CategoricalCrossentropy(
        label_smoothing=0.2, reduction="mean_with_sample_weight"
    ),
    "categorical-smoothed-logits-sum": lambda: losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.2, reduction="sum"
    ),
    "categorical-focal": losses.CategoricalFocalCrossentropy,
    "categorical-hinge": losses.CategoricalHinge,
    "kl": losses.KLDivergence,
}
THRESHOLDS = (
    lambda: metrics.BinaryAccuracy(name="half"),
    lambda: metrics.BinaryAccuracy(threshold=0.3, name="third"),
    lambda: metrics.Precision(thresholds=[0.2, 0.4], name="precision"),
    lambda: metrics.AUC(20, name="auc"),
    lambda: metrics.FalseNegatives(thresholds=0.1, name="missed"),
)
OF_UNITS = (*THRESHOLDS, lambda: metrics.AUC(20, from_logits=True, name="auc-logits"), lambda: "mse")
OF_ROWS = (
    *THRESHOLDS,
    lambda: metrics.CategoricalAccuracy(name="hits"),
    lambda: metrics.TopKCategoricalAccuracy(2, name="top"),
    lambda: metrics.F1Score(threshold=0.3, average="macro", name="f1"),
)
OF_NUMBERS = (
    lambda: metrics.SparseCategoricalAccuracy(name="hits"),
    lambda: metrics.SparseTopKCategoricalAccuracy(2, name="top"),
)
OF_MAPS = THRESHOLDS[:3]
# output → target forms, losses, metrics
GROUPS = {
    "unit": (tuple(TARGETS["unit"]), BINARY | OTHERS | {"by-shape": SPARSE["by-shape"]}, OF_UNITS),
    "classes-by-rows": (ROWS_OF_CLASSES, BINARY | CATEGORICAL | OTHERS, OF_ROWS),
    "classes-by-numbers": (NUMBERS, SPARSE, OF_NUMBERS),
    "map": (("column", "int-column", "probability"), BINARY | OTHERS, OF_MAPS),
    "class-map": (ROWS_OF_CLASSES, CATEGORICAL | BINARY, OF_MAPS),
}
WEIGHTS = ("none", "per-example", "column", "per-class")


def _cases():
    """Each activation, loss and target form; the forms of some losses take turns, and so do the weights."""
    turn = itertools.count()
    for group, (forms, of_group, measured) in GROUPS.items():
        for loss, activation in itertools.product(of_group, ACTIVATIONS):
            if group in ("unit", "map") and activation == "softmax":
                continue  # it is 1 whatever the network says
            number = next(turn)
            for form in dict.fromkeys((forms[number % len(forms)], forms[(number + 2) % len(forms)])):
                weights = WEIGHTS[(number + forms.index(form)) % len(WEIGHTS)]
                if group in ("map", "class-map"):
                    weights = "none" if weights == "per-class" else weights  # Keras has none for pixels
                yield group, activation, loss, form, weights, measured


CASES = list(_cases())
COMBINATIONS = sum(1 + len(measured) for *_, measured in CASES)


def _parameters():
    for number, case in enumerate(CASES):
        marks = () if number % 24 == 0 else pytest.mark.slow
        yield pytest.param(*case, id="-".join(map(str, case[:5])), marks=marks)


def _model(shape, activation, loss, measured, weighted):
    units = int(np.prod(shape))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), keras.layers.Reshape(shape)])
    model.layers[0].set_weights([np.linspace(-2, 2, 4 * units).reshape(4, units), np.zeros(units)])
    if activation is not None:
        model.add(keras.layers.Activation(activation))
    model.compile(
        keras.optimizers.SGD(0.5),
        loss(),
        metrics=["accuracy", *(make() for make in measured)],
        weighted_metrics=[make() for make in weighted],
    )
    return model


def _weighted(measured, loss):
    """The metrics that heed the examples' weights."""
    if measured is not OF_NUMBERS:
        return (
            lambda: metrics.BinaryAccuracy(threshold=0.4, name="weighted-share"),
            lambda: metrics.MeanSquaredError(name="weighted-mse"),
            lambda: own_metric,
        )
    # Keras on torch multiplies the batch's weights by the mask in place, before the metrics see them.
    return () if "ignored" in loss else (lambda: "accuracy",)


def _weights(kind, shape):
    """The arguments that give examples their weights, and the weights of the validation."""
    weight = np.linspace(0, 2, ROWS).astype(np.float32)
    if kind == "none":
        return {}, None
    if kind == "per-class":
        return {"class_weight": {0: 2.0, 1: 0.5}}, None
    if len(shape) > 1:  # an own weight for each element, as Keras has it
        weight = np.broadcast_to(weight.reshape(-1, *[1] * (len(shape) - 1)), (ROWS, *shape[:-1])).copy()
    if kind == "column":
        weight = weight[..., None]
    return {"sample_weight": weight}, weight[:5]


def test_there_are_enough_combinations():
    assert COMBINATIONS >= 400
    assert len({case[:4] for case in CASES}) == len(CASES)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(("group", "activation", "loss", "form", "weights", "measured"), list(_parameters()))
def test_loss_metrics_and_gradients_equal_keras(group, activation, loss, form, weights, measured):
    output = group.partition("-by-")[0]
    shape, y, make = SHAPES[output], TARGETS[output][form], GROUPS[group][1][loss]
    arguments, weight = _weights(weights, shape)
    weighted = _weighted(measured, loss)
    fast, slow = (_model(shape, activation, make, measured, weighted) for _ in range(2))
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0} | arguments
    # Apart from each other: in one call, Keras on torch gives the validation's counts as the training's.
    expected = slow.fit(X, y, **arguments).history
    validated = slow.evaluate(X[:5], y[:5], 8, sample_weight=weight, verbose=0, return_dict=True)
    expected |= {f"val_{name}": [value] for name, value in validated.items()}
    validation = (X[:5], y[:5]) if weight is None else (X[:5], y[:5], weight)
    found = convscope.fit(
        fast,
        X,
        y,
        engine="fast",
        precision="float32",
        deterministic=True,
        validation_data=validation,
        **arguments,
    ).history
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-5, err_msg=name)
    assert_close(fast.get_weights(), slow.get_weights(), 1e-3)
