"""Prediction on the lowered program, held against Keras's own."""

import copy

import keras
import numpy as np
import pytest
import torch
from lowering_cases import require_precision_here
from training_cases import images, network

import convscope
from convscope.errors import LoweringError, UnknownNameError, UsageError
from convscope.training.predictor import predictor_of

X, Y = images()


@pytest.mark.parametrize("engine", ["auto", "fast", "keras"])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 70, 100])
def test_outputs_equal_keras(engine, batch_size):
    model = network(dropout=0.5)
    found = convscope.predict(model, X, batch_size, engine=engine)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_close():
    require_precision_here("bfloat16", training=False)
    model = network()
    found = convscope.predict(model, X, precision="bfloat16")
    np.testing.assert_allclose(found, model.predict(X, verbose=0), atol=2e-2)


def test_new_weights_are_used_at_once():
    model = network()
    before = convscope.predict(model, X)
    model.set_weights([np.zeros(w.shape) for w in model.get_weights()])
    assert not np.allclose(before, 0.2)
    np.testing.assert_allclose(convscope.predict(model, X), 0.2, rtol=1e-6)


def test_further_training_counts_at_once():
    model = network(optimizer="adam")
    convscope.predict(model, X)
    convscope.fit(model, X, Y, verbose=0, seed=1)
    np.testing.assert_allclose(convscope.predict(model, X), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


def test_the_program_is_lowered_once():
    model = network()
    first = predictor_of(model, "float32")
    convscope.predict(model, X)
    assert predictor_of(model, "float32") is first
    assert predictor_of(model, "auto") is not first


def test_moved_variables_are_found_again():
    model = network()
    first = predictor_of(model, "float32")
    for variable in model.weights:
        variable._value.data = variable._value.data.clone()
    assert not first.is_current
    assert predictor_of(model, "float32") is not first


def test_a_global_setting_of_keras_that_changes_counts_at_once():
    narrow = keras.layers.Normalization(axis=-1, mean=0.25, variance=1e-4)
    model = keras.Sequential([keras.Input(X.shape[1:]), narrow, keras.layers.Flatten()])
    before, epsilon = convscope.predict(model, X), keras.config.epsilon()
    keras.config.set_epsilon(0.5)  # the least deviation that Normalization divides by
    try:
        found = convscope.predict(model, X)
        np.testing.assert_allclose(found, model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
        assert not np.allclose(found, before)
    finally:
        keras.config.set_epsilon(epsilon)


class Doubling(keras.layers.Layer):
    """Holds a layer that somebody may replace."""

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(3)

    def call(self, x):
        return 2 * self.inner(x)


def changeable():
    """A model with a part for each kind of change."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(np.array([2.0], np.float32), name="rescaling"),
            keras.layers.Normalization(mean=0.0, variance=1.0, name="normalization"),
            keras.layers.Conv2D(3, 3, padding="same", name="conv"),
            keras.layers.BatchNormalization(name="batch"),
            keras.Sequential([keras.layers.MaxPooling2D(2), keras.layers.AveragePooling2D(2)], name="nested"),
            keras.layers.Flatten(),
            Doubling(),
            keras.layers.Dense(5, activation="softmax", name="last"),
        ]
    )


def pop_and_add(model):
    model.pop()
    model.add(keras.layers.Dense(4))


def change_nested(model):
    model.get_layer("nested").pop()
    model.get_layer("nested").add(keras.layers.MaxPooling2D(2))


def change_in_place(model):
    model.get_layer("rescaling").scale[0] = 3.0


def adapt(model):
    model.get_layer("normalization").mean = torch.tensor(3.0)


def replace_sublayer(model):
    model.layers[-2]._tracker.unlock()  # as tools do that put adapters into a network
    model.layers[-2].inner = keras.layers.Dense(3)
    model.layers[-2].inner.build((None, 12))


def replace_call(model):
    model.get_layer("conv").call = lambda x: x[..., :3] * keras.ops.ones((3,))


def hook(model):
    model.get_layer("last").register_forward_hook(lambda _layer, _inputs, output: output + 1)


def hook_model(model):
    model.register_forward_hook(lambda _layer, _inputs, output: output + 1)


CHANGES = {
    "pop-and-add": pop_and_add,
    "nested": change_nested,
    "activation": lambda model: setattr(model.get_layer("conv"), "activation", keras.activations.tanh),
    "dilation": lambda model: setattr(model.get_layer("conv"), "dilation_rate", (2, 2)),
    "epsilon": lambda model: setattr(model.get_layer("batch"), "epsilon", 0.5),
    "in-place": change_in_place,
    "adapt": adapt,
    "sublayer": replace_sublayer,
    "call": replace_call,
    "hook": hook,
    "hook-of-the-model": hook_model,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_model_is_computed_as_it_is_now(change):
    keras.utils.set_random_seed(1)
    model = changeable()
    before = convscope.predict(model, X)
    change(model)
    model.predict_function = None
    expected = model.predict(X, verbose=0)
    assert expected.shape != before.shape or not np.allclose(expected, before, atol=1e-3)
    np.testing.assert_allclose(convscope.predict(model, X), expected, rtol=1e-5, atol=1e-6)


def test_normalization_that_is_adapted_again_counts_at_once():
    normalization = keras.layers.Normalization()
    model = keras.Sequential([keras.Input((8, 8, 1)), normalization])
    for factor in (1, 10):
        normalization.adapt(factor * X)
        np.testing.assert_allclose(convscope.predict(model, X), model.predict(X, verbose=0), atol=1e-6)


def test_use_and_training_do_not_change_the_structure():
    model = changeable()
    model.compile("adam", "categorical_crossentropy")
    convscope.fit(model, X, Y, verbose=0, deterministic=True)
    first = predictor_of(model, "float32")
    model.fit(X, Y, verbose=0)
    model.predict(X, verbose=0)
    convscope.fit(model, X, Y, verbose=0, deterministic=True)
    assert predictor_of(model, "float32") is first


def test_a_model_that_has_predicted_can_be_saved_and_copied(tmp_path):
    model = network()
    expected = convscope.predict(model, X)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(convscope.predict(loaded, X), expected)
    np.testing.assert_array_equal(convscope.predict(copy.deepcopy(model), X), expected)
    assert [weight.name for weight in model.weights] == [weight.name for weight in loaded.weights]


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_raw_images_are_prepared(engine):
    pixels = np.round(X / X.max() * 255).astype(np.uint8)
    preprocess = convscope.Preprocess.fit(pixels, "minmax")
    model = network()
    found = convscope.predict(model, pixels, preprocess=preprocess, engine=engine, batch_size=16)
    np.testing.assert_allclose(
        found, model.predict(preprocess.apply(pixels), verbose=0), rtol=1e-5, atol=1e-6
    )


INPUTS = {
    "torch": lambda: torch.from_numpy(X),
    "float64": lambda: X.astype(np.float64),
    "no-channel": lambda: X[..., 0],
    "loader": lambda: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X)), batch_size=16
    ),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_kinds_of_input(make):
    model = network()
    np.testing.assert_allclose(
        convscope.predict(model, make()), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_several_outputs_keep_their_structure():
    image = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(image)
    model = keras.Model(image, {"a": keras.layers.Dense(2)(flat), "b": keras.layers.Dense(3)(flat)})
    found, expected = convscope.predict(model, X, 16), model.predict(X, verbose=0)
    assert sorted(found) == ["a", "b"]
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(2)

    def call(self, x):
        x = self.dense(self.flat(x))
        return x if keras.ops.max(x) > -1 else -x  # which a record of its calls does not show


def test_a_subclassed_model_predicts_through_keras():
    model = Subclassed()
    np.testing.assert_allclose(convscope.predict(model, X), model.predict(X, verbose=0), rtol=1e-6)
    with pytest.raises(LoweringError, match="the subclassed Subclassed"):
        convscope.predict(model, X, engine="fast")


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_images_of_another_shape_are_refused(engine):
    with pytest.raises(UsageError, match=r"^Expected images of shape \(8, 8, 1\), got \(9, 8, 1\).$"):
        convscope.predict(network(), np.zeros((3, 9, 8, 1), np.float32), engine=engine)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"engine": "fats"}, UnknownNameError, "Did you mean 'fast'"),
        ({"precision": "int8"}, UnknownNameError, "Expected one of the precisions"),
        ({"batch_size": 0}, UsageError, r"^Expected batch_size of at least 1, a whole number, got 0.$"),
        ({"preprocess": object()}, UsageError, r"^Expected uint8 images beside preprocess, got float32"),
    ],
    ids=["engine", "precision", "batch-size", "preprocess"],
)
def test_mistakes_are_told_in_one_sentence(arguments, kind, message):
    with pytest.raises(kind, match=message):
        convscope.predict(network(), X, **arguments)


class Written(keras.callbacks.Callback):
    """Keeps what Keras tells of a prediction, and stops it after some batches."""

    def __init__(self, stop_after=100):
        super().__init__()
        self.calls, self.stop_after = [], stop_after

    def on_predict_begin(self, logs=None):  # noqa: ARG002  Keras gives it
        self.calls.append("begin")

    def on_predict_batch_begin(self, batch, logs=None):  # noqa: ARG002  Keras gives it
        self.calls.append(batch)

    def on_predict_batch_end(self, batch, logs=None):
        self.calls.append((batch, tuple(logs["outputs"].shape)))
        self.model.stop_predicting = batch + 1 >= self.stop_after

    def on_predict_end(self, logs=None):  # noqa: ARG002  Keras gives it
        self.calls.append("end")


PREDICTED = {
    "verbose": {"verbose": 2},
    "batch-size": {"batch_size": 16},
    "steps": {"batch_size": 16, "steps": 2},
    "steps-alone": {"steps": 4},
    "callbacks": {"callbacks": True},
    "stopped": {"callbacks": 2, "batch_size": 7},
    "callbacks-and-steps": {"callbacks": True, "steps": 3},
    "in-keras-order": (16, 0, 2, None),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize("name", PREDICTED)
def test_the_arguments_of_keras_mean_the_same(name, engine, capsys):
    given = PREDICTED[name]
    results, calls, printed = [], [], []
    for ours in (True, False):
        model, written = network(), []
        arguments, options = (given, {}) if isinstance(given, tuple) else ((), {"verbose": 0} | given)
        if options.get("callbacks"):
            written = [Written(options["callbacks"] if options["callbacks"] is not True else 100)]
            options = options | {"callbacks": written}
        if ours:
            results.append(convscope.predict(model, X, *arguments, engine=engine, **options))
        else:
            results.append(model.predict(X, *arguments, **options))
        calls.append([callback.calls for callback in written])
        printed.append("3/3" in capsys.readouterr().out)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
    assert calls[0] == calls[1]
    assert printed[0] == printed[1] == (name == "verbose")


def test_steps_end_a_stream():
    stream = ((X[first : first + 10],) for first in range(0, 70, 10))
    assert convscope.predict(network(), stream, steps=3, engine="fast").shape == (30, 5)


@pytest.mark.parametrize("name", ["batch_size", "steps"])
def test_batches_must_be_counted(name):
    with pytest.raises(UsageError, match=f"{name} of at least 1"):
        convscope.predict(network(), X, **{name: 0})


class OwnStep(keras.Model):
    def predict_step(self, data):
        return 2 * super().predict_step(data)


class OwnFunction(keras.Model):
    def make_predict_function(self, *_):
        self.predict_function = lambda data: 2 * self(data[0][0], training=False)


class OwnPredict(keras.Model):
    def predict(self, x, **arguments):
        return 2 * super().predict(x, **arguments)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("kind", [OwnStep, OwnFunction, OwnPredict])
def test_a_model_that_predicts_in_its_own_way_is_left_to_keras(kind):
    inputs = keras.Input((8, 8, 1))
    model = kind(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    plain = keras.Model(model.inputs, model.outputs)
    np.testing.assert_allclose(convscope.predict(model, X), 2 * convscope.predict(plain, X), rtol=1e-5)
    with pytest.raises(LoweringError, match=f"{kind.__name__}, which has a .*predict.* of its own"):
        convscope.predict(model, X, engine="fast")


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_predict_function_set_by_hand_is_left_to_keras():
    model = network()
    model.predict(X[:1], verbose=0)  # Keras makes its own
    assert convscope.predict(model, X, engine="fast").shape == (70, 5)
    model.predict_function = lambda data: torch.ones(len(data[0][0]), 1)
    assert convscope.predict(model, X).tolist() == [[1.0]] * 70


class AgainstItsBatch(keras.layers.Layer):
    """Looks at all rows of a batch at once."""

    def call(self, inputs):
        return inputs - keras.ops.mean(inputs, axis=0, keepdims=True)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_layer_that_looks_at_the_batch_sees_keras_batches():
    model = keras.Sequential([keras.Input((8, 8, 1)), AgainstItsBatch()])
    found = convscope.predict(model, X, engine="fast")
    np.testing.assert_allclose(found, model.predict(X, verbose=0), atol=1e-6)


def _fused_step(model):
    model(X).log()[:, 0].mean().backward()
    torch.optim.Adam(model.parameters(), lr=0.1, fused=True).step()


def _change_of_data(model):
    model.layers[0].kernel.value.data.mul_(3)


@pytest.mark.parametrize("change", [_fused_step, _change_of_data])
def test_changes_that_torch_does_not_count_are_seen(change):
    model = network()
    convscope.predict(model, X)
    change(model)
    np.testing.assert_allclose(convscope.predict(model, X), model.predict(X, verbose=0), atol=1e-5)
