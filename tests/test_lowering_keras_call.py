"""Layers that run as Keras layers: each thing that such a layer may have or do, held against Keras's fit."""

import keras
import numpy as np
import pytest
import torch
from keras import layers, ops

import convscope
from convscope.errors import LoweringError
from convscope.lowering import lower

RNG = np.random.default_rng(0)
X, Y = RNG.random((48, 4), np.float32), np.arange(48) % 3


class Weights(layers.Layer):
    """A weight with regularizer and constraint, and constants of other types."""

    def build(self, shape):
        self.factor = self.add_weight(
            shape=(shape[-1],),
            initializer="ones",
            regularizer="l2",
            constraint=keras.constraints.MinMaxNorm(),
        )
        self.shift = self.add_weight(shape=(), initializer="ones", dtype="float64", trainable=False)
        self.count = self.add_weight(shape=(), initializer="ones", dtype="int32", trainable=False)

    def call(self, x):
        return x * self.factor + ops.cast(self.shift, "float32") * ops.cast(self.count, "float32")


class TorchModule(layers.Layer):
    """A torch module: parameters, and buffers that training moves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))

    def call(self, x):
        return self.module(x)


class Counting(layers.Layer):
    """A state that every call changes, also at inference."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        self.calls.assign_add(1.0)
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, axis=0))
        return x - self.mean


class Assigning(layers.Layer):
    """A weight that training moves, and the layer's own call as well."""

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), initializer="zeros")

    def call(self, x):
        self.shift.assign(0.5 * self.shift)
        return x + self.shift


class Measuring(layers.Layer):
    """A metric of its own."""

    def __init__(self):
        super().__init__()
        self.tracker = keras.metrics.Mean(name="inner")

    def call(self, x):
        self.tracker.update_state(ops.mean(x))
        return x


class Losing(layers.Layer):
    """Losses of its own and of its parts."""

    def __init__(self):
        super().__init__(activity_regularizer="l2")
        self.part = layers.Dense(4, activity_regularizer="l1", kernel_regularizer="l2")

    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return self.part(self.part(x))


class Remembering(layers.Layer):
    """Python's own attributes, a branch on the training flag, a part that is frozen."""

    def __init__(self):
        super().__init__()
        self.factor = 1.0
        self.fixed = layers.Dense(4, trainable=False)

    def call(self, x, training=False):
        self.factor = self.factor * 0.9 if training else self.factor
        return self.fixed(x) * self.factor


class Splitting(layers.Layer):
    """Several outputs under names."""

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(4), layers.BatchNormalization()

    def call(self, x):
        return {"one": self.one(x), "two": self.two(x)}


def sequential(*middle):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), *middle, layers.Dense(3, activation="softmax")]
    )


def tied():
    """One layer in three places: inside another, beside it, and twice."""
    shared = layers.Dense(4)

    class Using(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = shared

        def call(self, x):
            return self.inner(x)

    x = keras.Input((4,))
    using = Using()
    return keras.Model(x, layers.Dense(3, activation="softmax")(using(using(shared(x)))))


def several():
    x = keras.Input((4,))
    parts = Splitting()(x)
    return keras.Model(x, layers.Dense(3, activation="softmax")(parts["one"] * parts["two"]))


def hooked():
    model = sequential()
    model.layers[0].register_forward_hook(lambda _layer, _inputs, output: output * 2)
    return model


KINDS = {
    "weights": lambda: sequential(Weights()),
    "torch-module": lambda: sequential(TorchModule()),
    "torch-module-itself": lambda: sequential(
        layers.TorchModuleWrapper(torch.nn.Linear(4, 4), output_shape=(None, 4))
    ),
    "state": lambda: sequential(Counting()),
    "assigned-weight": lambda: sequential(Assigning()),
    "metric": lambda: sequential(Measuring()),
    "losses": lambda: sequential(Losing()),
    "training-flag": lambda: sequential(Remembering()),
    "named-outputs": several,
    "tied-weights": tied,
    "hook": hooked,
    "moving-statistics-inside": lambda: sequential(keras.layers.Pipeline([layers.BatchNormalization()])),
    "spectral-norm": lambda: sequential(layers.SpectralNormalization(layers.Dense(4))),
}


def state_of(model):
    """Every number that a training may move, by its place."""
    numbers = [v.numpy() for v in model.variables if "seed" not in v.path]
    return numbers + [buffer.detach().numpy().copy() for buffer in model.buffers()]


def trained(make, train):
    keras.utils.set_random_seed(3)
    torch.manual_seed(3)
    model = make()
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    history = train(model)
    return history.history, state_of(model), model.predict(X, verbose=0)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_layer_of_its_own_kind_trains_as_in_keras(make):
    settings = {"epochs": 3, "shuffle": False, "validation_data": (X[:10], Y[:10]), "verbose": 0}
    expected = trained(make, lambda model: model.fit(X, Y, **settings))
    found = trained(
        make, lambda model: convscope.fit(model, X, Y, precision="float32", engine="fast", **settings)
    )
    assert found[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        np.testing.assert_allclose(found[0][name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)


def test_a_layer_of_unknown_output_shape_is_named():
    model = sequential(layers.TorchModuleWrapper(torch.nn.Linear(4, 4), name="raw"))
    with pytest.raises(LoweringError, match=r"got 'raw' \(TorchModuleWrapper\)"):
        lower(model)


class Unmasked(layers.Layer):
    def compute_mask(self, inputs, mask=None):  # noqa: ARG002  Keras's signature
        return ops.not_equal(inputs[..., 0], 0.0)

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (layers.Masking(), "Masking"),
        (Unmasked(), "Unmasked"),
        (keras.Sequential([layers.Masking()]), "Sequential|Masking"),
    ],
    ids=["masking", "own", "nested"],
)
def test_a_mask_is_left_to_keras(layer, name):
    model = keras.Sequential([keras.Input((4, 3)), layer, layers.LSTM(2)])
    with pytest.raises(LoweringError, match=rf"\(({name})\) makes or passes on a mask"):
        lower(model)


class Watching(layers.Layer):
    """Keeps what it sees in training."""

    seen = None

    def call(self, x, training=False):
        self.seen = x.detach().numpy() if training else self.seen
        return x


class Flipping(layers.Layer):
    """Two random layers inside one that runs as it is."""

    def __init__(self):
        super().__init__()
        self.parts = [layers.RandomFlip("horizontal"), layers.RandomFlip("vertical")]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, x, training=False):
        return self.parts[1](self.parts[0](x)) if training else x


def flips(layer):
    """Train on images that tell from one pixel how they were flipped."""
    image = np.tile(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), (256, 1, 1, 1))
    watching = Watching()
    model = keras.Sequential([keras.Input((4, 4, 1)), layer, watching, layers.Flatten(), layers.Dense(1)])
    model.compile("sgd", "mse")
    convscope.fit(model, image, np.zeros(256), batch_size=256, verbose=0, seed=5, engine="fast")
    return watching.seen[:, 0, 0, 0]


def pipeline():
    return layers.Pipeline([layers.RandomFlip("horizontal"), layers.RandomFlip("vertical")])


@pytest.mark.parametrize("make", [pipeline, Flipping], ids=["traced", "as it is"])
def test_random_layers_inside_a_layer_draw_apart(make):
    seen = flips(make())
    values, counts = np.unique(seen, return_counts=True)
    assert values.tolist() == [0, 3, 12, 15]
    assert counts.min() > 30
    np.testing.assert_array_equal(seen, flips(make()))


def test_a_seed_of_ones_own_stays_and_goes_on_as_in_keras():
    def make():
        return sequential(layers.GaussianNoise(0.5, seed=7))

    settings = {"epochs": 2, "shuffle": False, "verbose": 0}
    expected = trained(make, lambda model: model.fit(X, Y, **settings))
    found = trained(make, lambda model: convscope.fit(model, X, Y, precision="float32", **settings))
    np.testing.assert_allclose(found[0]["loss"], expected[0]["loss"], rtol=1e-5)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4)


def test_prediction_changes_state_as_in_keras():
    models = [sequential(Counting()) for _ in range(2)]
    models[0].predict(X, batch_size=16, verbose=0)
    convscope.predict(models[1], X, batch_size=16, engine="fast")
    assert [float(model.layers[1].calls.value) for model in models] == [3, 3]
