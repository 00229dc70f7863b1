"""Metrics with thresholds, held against Keras on probabilities and logits; the docs name all of them."""

import inspect
from pathlib import Path

import keras
import numpy as np
import pytest

import convscope

README = Path(convscope.__file__).parent / "lowering" / "README.md"
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((40, 6)).astype(np.float32)
ONE_HOT = np.eye(3, dtype=np.float32)[RANDOM.integers(0, 3, 40)]
Y = ONE_HOT[:, :1]
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
    y = Y if units == 1 else ONE_HOT
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
