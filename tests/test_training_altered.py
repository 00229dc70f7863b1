"""Objects that do not do what their Keras class says, and changes that come late: as in Keras."""

import keras
import numpy as np
import pytest
import torch
from training_cases import assert_close, assert_same_history, images, network, weights

import convscope
from convscope.errors import UsageError

CALM = {"verbose": 0, "seed": 5, "shuffle": False, "precision": "float32", "deterministic": True}
pytestmark = pytest.mark.filterwarnings("ignore:Training with Keras's own fit")


class Doubled(keras.losses.CategoricalCrossentropy):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return 2 * super().__call__(y_true, y_pred, sample_weight)


def double(thing, name):
    """Replace one method of one object by one that gives twice as much."""
    original = getattr(thing, name)
    setattr(thing, name, lambda *args, **kwargs: 2 * original(*args, **kwargs))
    return thing


def still(optimizer):
    """Let an optimizer apply no gradients."""
    original = optimizer.apply
    optimizer.apply = lambda grads, variables=None: original([grad * 0 for grad in grads], variables)
    return optimizer


def doubled_layer(name, method):
    model = network(optimizer=keras.optimizers.SGD(0.05))
    double(model.get_layer(name), method)
    return model


def accuracy():
    metric = keras.metrics.CategoricalAccuracy(name="accuracy")
    original = metric.update_state
    metric.update_state = lambda y, outputs, sample_weight=None: original(y, 1 - outputs, sample_weight)
    return metric


ALTERED = {
    "loss class": lambda: network(loss=Doubled()),
    "loss": lambda: network(loss=double(keras.losses.CategoricalCrossentropy(), "call")),
    "optimizer": lambda: network(optimizer=still(keras.optimizers.SGD(0.1))),
    "convolution": lambda: doubled_layer("conv", "convolution_op"),
    "metric": lambda: network(metrics=[accuracy()]),
}


@pytest.mark.parametrize("make", ALTERED.values(), ids=list(ALTERED))
def test_what_is_altered_trains_as_in_keras(make):
    x, y = images()
    ours, theirs = make(), make()
    found = convscope.fit(ours, x, y, epochs=2, **CALM)
    expected = convscope.fit(theirs, x, y, epochs=2, engine="keras", **CALM)
    assert_same_history(found, expected, 1e-4)
    assert_close(weights(ours), weights(theirs), 1e-4)
    assert_close([convscope.predict(ours, x)], [ours.predict(x, verbose=0)])


def test_a_model_class_with_its_own_dunder_call_predicts_as_in_keras():
    class Doubling(keras.Model):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    inputs = keras.Input((4,))
    model = Doubling(inputs, keras.layers.Dense(2)(inputs))
    x = np.random.default_rng(0).random((4, 4), np.float32)
    assert_close([convscope.predict(model, x)], [model.predict(x, verbose=0)])


def unfreeze(model):
    model.get_layer("conv").trainable = not model.get_layer("conv").trainable


LATE = {
    "compile": lambda model: model.compile("adam", "categorical_crossentropy"),
    "hook": lambda model: model.register_forward_hook(lambda *_: None),
    "trainable": unfreeze,
}


class Change(keras.callbacks.Callback):
    def __init__(self, change, moment, epoch=None):
        super().__init__()
        self.change = change

        def hook(*args, **_):
            if epoch is None or args[0] == epoch:
                self.change(self.model)

        setattr(self, moment, hook)


@pytest.mark.parametrize("moment", ["on_train_end", "on_epoch_end"])
@pytest.mark.parametrize("change", LATE.values(), ids=list(LATE))
def test_what_is_changed_after_the_last_batch_breaks_nothing_off(change, moment):
    x, y = images()
    epoch = 1 if moment == "on_epoch_end" else None
    found, expected = (
        convscope.fit(
            network(), x, y, epochs=2, engine=engine, callbacks=[Change(change, moment, epoch)], **CALM
        )
        for engine in ("fast", "keras")
    )
    assert_same_history(found, expected, 1e-4)


@pytest.mark.parametrize("moment", ["on_train_begin", "on_train_batch_begin"])
def test_a_model_that_cannot_be_lowered_any_more_before_its_first_step_goes_to_keras(moment):
    x, y = images()
    epoch = 0 if moment == "on_train_batch_begin" else None
    history = convscope.fit(network(), x, y, callbacks=[Change(LATE["hook"], moment, epoch)], **CALM)
    assert history.engine == "keras"
    assert "hooks" in history.reason


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_trains_all_the_same(off):
    x, y = images()
    model, expected = network(), network()
    with off():
        convscope.fit(model, x, y, **CALM)
    convscope.fit(expected, x, y, **CALM)
    assert_close(weights(model), weights(expected))


def constrain(model):
    model.get_layer("conv").kernel.constraint = keras.constraints.MaxNorm(0.1)


SETTINGS = {
    "constraint": constrain,
    "reduction": lambda model: setattr(model.loss, "reduction", "sum"),
    "smoothing": lambda model: model.loss._fn_kwargs.update(label_smoothing=0.5),
    "loss": lambda model: double(model.loss, "call"),
    "optimizer": lambda model: still(model.optimizer),
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=list(SETTINGS))
def test_rules_and_settings_that_a_callback_changes_count(change):
    x, y = images()
    models = [
        network(loss=keras.losses.CategoricalCrossentropy(), optimizer=keras.optimizers.SGD(0.01))
        for _ in range(2)
    ]
    found, expected = (
        convscope.fit(
            model, x, y, epochs=3, engine=engine, callbacks=[Change(change, "on_epoch_begin", 1)], **CALM
        )
        for model, engine in zip(models, ("fast", "keras"), strict=True)
    )
    assert_same_history(found, expected, 1e-4)
    assert_close(*map(weights, models), 1e-4)


@pytest.mark.parametrize("wrong", [-1, 7])
def test_a_label_out_of_range_in_a_later_batch_is_told_in_a_sentence(wrong):
    x, y = images()
    labels = y.argmax(axis=1)
    model = network(loss="sparse_categorical_crossentropy")
    batches = [(x[:8], labels[:8]), (x[:8], np.array([wrong, *labels[1:8]]))]
    with pytest.raises(UsageError, match="class numbers from 0 to 4"):
        convscope.fit(model, (batch for batch in batches), **CALM)
