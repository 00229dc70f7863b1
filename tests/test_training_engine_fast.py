"""Objects that do not do what their Keras class says, and changes that come late: as in Keras."""

import keras
import numpy as np
import pytest
import torch
from training_cases import Diary, assert_close, assert_same_history, identical, images, network, weights

import convscope
from convscope.errors import UsageError
from convscope.lowering import LoweredNetwork
from convscope.training import engine_fast
from convscope.training.events import EngineChange
from convscope.training.step import Trainer

CALM = {"verbose": 0, "seed": 5, "shuffle": False, "precision": "float32", "deterministic": True}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Training with Keras's own fit"),
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),  # as a generator does in Keras, too
]


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


def gradient_hooked(model):
    model.get_layer("conv").kernel.value.register_hook(lambda gradient: gradient * 2)
    return model


ALTERED = {
    "loss class": lambda: network(loss=Doubled()),
    "loss": lambda: network(loss=double(keras.losses.CategoricalCrossentropy(), "call")),
    "optimizer": lambda: network(optimizer=still(keras.optimizers.SGD(0.1))),
    "convolution": lambda: doubled_layer("conv", "convolution_op"),
    "metric": lambda: network(metrics=[accuracy()]),
    "gradient hook": lambda: gradient_hooked(network()),
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


def counted(x, y, size=10):
    """A generator of batches, and the numbers of those that were asked for."""
    asked = []

    def batches():
        for number in range(len(x) // size):
            asked.append(number)
            rows = slice(number * size, (number + 1) * size)
            yield x[rows], y[rows]

    return batches(), asked


def breaking(moment):
    """Let the fast engine fail while it prepares, in its first step, or when that has moved the weights."""

    def fail(*_, **__):
        raise RuntimeError("no such kernel")

    owner, name = {
        "preparation": (engine_fast, "optimise"),
        "first step": (Trainer, "_loss"),
        "first update": (Trainer, "_record"),
    }[moment]
    return lambda monkeypatch: monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("moment", ["preparation", "first step", "first update"])
def test_where_the_fast_engine_fails_keras_gets_every_batch_and_no_call_comes_twice(moment, monkeypatch):
    x, y = images()
    seen = []
    events = []
    for engine in ("auto", "keras"):
        model, diary = network(), Diary()
        stream, asked = counted(x, y)
        validation, checked = counted(x, y)
        if engine == "auto":
            breaking(moment)(monkeypatch)
        history = convscope.fit(
            model, stream, validation_data=validation, engine=engine, callbacks=[diary],
            listeners=[events.append], **CALM,
        )  # fmt: skip
        assert history.engine == "keras"
        seen.append((asked, checked, [call[:2] for call in diary.calls], history.history, weights(model)))
        monkeypatch.undo()
    assert seen[0][:3] == seen[1][:3]
    assert seen[0][2].count(("on_train_begin", [])) == 1
    assert seen[0][3] == seen[1][3]
    changes = [event.engine for event in events if isinstance(event, EngineChange)]
    assert changes == ([] if moment == "preparation" else ["keras"])
    assert identical(seen[0][4], seen[1][4])


def test_a_generator_is_read_as_keras_reads_it():
    x, y = images()
    read = []
    for fit in (convscope.fit, lambda model, x, **_: model.fit(x, shuffle=False, verbose=0)):
        stream, asked = counted(x, y)
        model = network()
        fit(model, stream, **CALM)
        read.append((asked, weights(model)))
    assert read[0][0] == read[1][0] == list(range(7))
    assert_close(read[0][1], read[1][1])


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_an_empty_generator_is_refused(engine):
    with pytest.raises(UsageError, match="a generator of at least one batch, got an empty one"):
        convscope.fit(network(), (batch for batch in ()), **CALM | {"engine": engine})


def hooked(model):
    """Let a layer's output be doubled; a model with hooks of its own cannot be lowered."""
    if not model._forward_hooks:
        model.register_forward_hook(lambda *_: None)


HOOKS = {
    "model": hooked,
    "layer": lambda model: model.get_layer("conv").register_forward_hook(lambda *args: 2 * args[-1]),
    "call": lambda model: setattr(model, "call", lambda x, original=model.call, **_: original(x)),
}


@pytest.mark.parametrize("moment", ["on_train_batch_end", "on_epoch_begin", "on_test_begin"])
@pytest.mark.parametrize("change", HOOKS.values(), ids=list(HOOKS))
def test_what_a_callback_changes_in_the_middle_costs_no_training(change, moment):
    x, y = images()
    models = [network(optimizer=keras.optimizers.SGD(0.05)) for _ in range(2)]
    changed = [False, False]

    def once(number):
        def hook(model):
            if not changed[number]:
                changed[number] = True
                change(model)

        return hook

    found, expected = (
        convscope.fit(
            model, x, y, epochs=3, engine=engine, validation_split=0.2, batch_size=16,
            callbacks=[Change(once(number), moment), diary := Diary()], **CALM,
        )
        for number, (model, engine) in enumerate(zip(models, ("auto", "keras"), strict=True))
    )  # fmt: skip
    assert all(changed)
    assert_same_history(found, expected, 1e-4)
    assert_close(*map(weights, models), 1e-4)
    assert [name for name, *_ in diary.calls].count("on_train_begin") == 1
    assert found.engine == "fast" or found.reason


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


WRONG = {
    "y": (
        {"loss": "mse"},
        lambda x, y: (x, y[:, :4]),
        r"targets of shape \(n, 5\) for mean_squared_error, got",
    ),
    "y-numbers": ({"loss": "mae"}, lambda x, y: (x, y.argmax(1)), r"targets of shape \(n, 5\) for mean_abs"),
    "y-rank": ({"loss": "mse"}, lambda x, y: (x, y[:, None]), r"targets of shape \(n, 5\) for mean_squared"),
    "weights": ({}, lambda x, y: (x, y, np.ones((len(x), 3))), r"sample_weight of shape \(n,\), got \(.*3\)"),
    "weights-mse": ({"loss": "mse"}, lambda x, y: (x, y, y), r"sample_weight of shape \(n,\), got \(.*5\)"),
    "image": ({}, lambda x, y: (x[:, :7], y), r"images of shape \(8, 8, 1\), got \(7, 8, 1\)"),
    "rows": ({}, lambda x, y: (x, y[1:]), r"the same number of rows in x, y and sample_weight, got"),
    "label": (
        {"loss": "sparse_categorical_crossentropy"},
        lambda x, y: (x, y.argmax(1) + 1),
        r"class numbers from 0 to 4, one for each output, got 5",
    ),
    "one-hot": (
        {"loss": "sparse_categorical_crossentropy"},
        lambda x, y: (x, y),
        r"class numbers of shape \(n,\) for sparse_categorical_crossentropy",
    ),
}


class Batches(keras.utils.PyDataset):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.parts


@pytest.mark.parametrize("form", ["arrays", "generator", "dataset"])
@pytest.mark.parametrize(("compiled", "spoil", "message"), WRONG.values(), ids=list(WRONG))
def test_data_that_do_not_fit_are_told_in_a_sentence(compiled, spoil, message, form):
    parts = spoil(*images())
    model = network(**compiled)
    data = {"arrays": dict(zip(("x", "y", "sample_weight"), parts, strict=False)),
            "generator": {"x": (batch for batch in [parts])}, "dataset": {"x": Batches(parts)}}  # fmt: skip
    before = weights(model)
    with pytest.raises(UsageError, match=f"Expected {message}"):
        convscope.fit(model, **data[form], **CALM)
    assert identical(before, weights(model))


FITTING = {
    "column": ({"loss": "mse", "units": 1, "last": None}, lambda y: y.argmax(1)),
    "spread": ({"loss": "mse", "units": 1, "last": None}, lambda y: y),
    "flat": ({"loss": "mae"}, lambda y: y[:, :1]),
}


@pytest.mark.parametrize(("compiled", "targets"), FITTING.values(), ids=list(FITTING))
def test_targets_that_keras_stretches_are_taken(compiled, targets):
    x, y = images()
    found, expected = (
        convscope.fit(network(**compiled, metrics=()), x, targets(y), engine=engine, **CALM)
        for engine in ("fast", "keras")
    )
    assert_same_history(found, expected, 1e-4)


WEIGHTS = {
    "pixels": ({}, (20, 6, 6)),
    "pixel-column": ({}, (20, 6, 6, 1)),
    "images": ({}, (20, 1, 1)),
    "another-axis": ({"axis": 1}, (20, 6, 5)),
}


@pytest.mark.parametrize(("settings", "shape"), WEIGHTS.values(), ids=list(WEIGHTS))
def test_weights_that_keras_takes_are_taken(settings, shape):
    found = []
    for engine in ("fast", "keras"):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(5, 3, activation="sigmoid")])
        model.compile("sgd", keras.losses.CategoricalCrossentropy(**settings))
        y, weights = (np.random.default_rng(0).random(shape) for shape in ((20, 6, 6, 5), shape))
        x = images(20)[0]
        found.append(convscope.fit(model, x, y, sample_weight=weights, engine=engine, **CALM))
    assert_same_history(*found, 1e-4)


def twice(original):
    def patched(self, *args, **kwargs):
        return 2 * original(self, *args, **kwargs)

    return patched


def patch_convolution(monkeypatch, _):
    monkeypatch.setattr(keras.layers.Conv2D, "call", twice(keras.layers.Conv2D.call))


def patch_loss(monkeypatch, _):
    kind = keras.losses.CategoricalCrossentropy
    monkeypatch.setattr(kind, "call", twice(kind.call))


def set_metric(_, model):
    model.metrics[1].metrics[0]._fn = lambda y, outputs: keras.ops.mean(outputs, axis=-1)


@pytest.mark.parametrize("change", [patch_convolution, patch_loss, set_metric])
@pytest.mark.parametrize("late", [False, True], ids=["before", "in-training"])
def test_a_class_that_was_patched_and_a_metric_of_another_function_are_seen(change, late, monkeypatch):
    x, y = images()
    results = []
    for engine in ("fast", "keras"):
        model = network(loss=keras.losses.CategoricalCrossentropy(), optimizer=keras.optimizers.SGD(0.01))
        convscope.fit(model, x[:10], y[:10], engine=engine, **CALM)  # Keras makes its metrics
        callbacks = [Change(lambda model: change(monkeypatch, model), "on_epoch_begin", 1)] if late else []
        if not late:
            change(monkeypatch, model)
        history = convscope.fit(model, x, y, epochs=3, engine=engine, callbacks=callbacks, **CALM)
        results.append((history, weights(model), [convscope.predict(model, x, engine=engine)]))
        monkeypatch.undo()
    assert_same_history(results[0][0], results[1][0], 1e-4)
    assert_close(results[0][1], results[1][1], 1e-4)
    assert_close(results[0][2], results[1][2], 1e-4)


def test_a_prediction_that_fails_on_the_fast_engine_is_kerass(monkeypatch, caplog):
    x, _ = images()
    model = network()
    expected = model.predict(x, verbose=0)
    monkeypatch.setattr(LoweredNetwork, "__call__", lambda *_, **__: 1 / 0)
    with caplog.at_level("INFO", "convscope"):
        assert_close([convscope.predict(model, x)], [expected])
        assert_close(
            [convscope.predict(model, ((x[:10],) for _ in range(2)))], [np.tile(expected[:10], (2, 1))]
        )
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(ZeroDivisionError):
        convscope.predict(model, x, engine="fast")


@pytest.mark.parametrize(
    "change", [*HOOKS.values(), lambda model: setattr(model.get_layer("drop"), "rate", 1)]
)
def test_what_a_callback_changes_in_a_prediction_counts(change):
    x, _ = images()
    outputs = []
    for engine in ("auto", "keras"):
        changed = Change(change, "on_predict_batch_begin", 1)
        outputs.append(convscope.predict(network(), x, callbacks=[changed], engine=engine))
    assert_close(outputs[:1], outputs[1:])
