"""Subclassed models, and layers made of layers, as people write them: read from their own `call`."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as L  # noqa: N812  many layers are written below
from keras import ops
from training_cases import CLASSES, assert_close, assert_same_history, images, weights

import convscope
from convscope.errors import LoweringError
from convscope.lowering import emit, lower
from convscope.lowering.structure import ModelStructure

X, Y = images(40)


class Residual(L.Layer):
    """Two convolutions beside a shortcut."""

    def __init__(self, filters, stride=1):
        super().__init__()
        self.convolutions = [L.Conv2D(filters, 3, step, "same", use_bias=False) for step in (stride, 1)]
        self.norms = [L.BatchNormalization() for _ in range(2)]
        self.filters, self.stride, self.short = filters, stride, None

    def build(self, shape):
        if self.stride > 1 or shape[-1] != self.filters:
            self.short = L.Conv2D(self.filters, 1, self.stride, use_bias=False)

    def call(self, x, training=None):
        y = ops.relu(self.norms[0](self.convolutions[0](x), training=training))
        y = self.norms[1](self.convolutions[1](y), training=training)
        return ops.relu(y + (x if self.short is None else self.short(x)))


class Excited(L.Layer):
    """Squeeze and excite."""

    def build(self, shape):
        self.pool = L.GlobalAveragePooling2D(keepdims=True)
        self.narrow = L.Dense(shape[-1] // 2, activation="relu")
        self.widen = L.Dense(shape[-1], activation="sigmoid")

    def call(self, x):
        return x * self.widen(self.narrow(self.pool(x)))


class Encoder(L.Layer):
    """Projects patches and adds an embedding of their positions."""

    def __init__(self, count, width):
        super().__init__()
        self.count, self.project, self.embed = count, L.Dense(width), L.Embedding(count, width)

    def call(self, patches):
        positions = ops.expand_dims(ops.arange(start=0, stop=self.count, step=1), axis=0)
        return self.project(patches) + self.embed(positions)


class Scaled(L.Layer):
    """Computes otherwise in training, with a layer of its own there and functions."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(6)

    def call(self, x, training=False):
        x = self.dense(x)
        return ops.tanh(x) * 0.9 if training else x


class Network(keras.Model):
    """A stem, blocks in a loop, a head."""

    def __init__(self, last="softmax"):
        super().__init__()
        self.stem, self.blocks = L.Conv2D(6, 3, activation="relu"), [Residual(6), Excited(), Residual(8, 2)]
        self.pool, self.head = L.GlobalAveragePooling2D(), L.Dense(CLASSES, activation=last)
        self.factor = 1.0

    def call(self, x, training=None):  # noqa: ARG002  its layers hear of it
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x)) * self.factor


def made(kind=Network):
    keras.utils.set_random_seed(4)
    model = kind()
    model(X[:2])
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    return model


class Regularized(L.Layer):
    """Normalizes always, and drops in a branch of its own."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm, self.drop = L.Dense(6), L.BatchNormalization(), L.Dropout(0.5)

    def call(self, x, training=False):
        x = self.norm(self.dense(x), training=training)
        if training:
            x = self.drop(x, training=training)
        return ops.relu(x)


LAYERS = {
    "residual": (lambda: Residual(4, 2), (8, 8, 3)),
    "excited": (Excited, (6, 6, 4)),
    "encoder": (lambda: Encoder(5, 4), (5, 3)),
    "scaled": (Scaled, (4,)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_made_of_layers_becomes_their_operations(make, shape):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input(shape), make()])
    program = lower(model)
    assert "KerasCall" not in {op.kind for op in program}
    network, entering = emit(program, model), torch.rand(6, *shape)
    for training in (False, True):
        torch.testing.assert_close(
            network(entering, training=training), model(entering, training=training), rtol=1e-4, atol=1e-5
        )


def test_a_layer_that_drops_in_training_alone_is_read_without_a_mark():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((7,)), Regularized()])
    before, generator = weights(model), torch.get_rng_state()
    program = lower(model)
    assert {op.kind for op in program} == {"Dense", "BatchNormalization", "Dropout", "Activate", "ByMode"}
    assert all(np.array_equal(one, other) for one, other in zip(weights(model), before, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
    network, entering = emit(program, model), torch.rand(200, 7)
    network.begin_step(1, 2)
    torch.testing.assert_close(network(entering), model(entering))
    without = ops.relu(model.layers[0].norm(model.layers[0].dense(entering), training=True))
    found = network(entering, training=True)
    kept = found > 0
    torch.testing.assert_close(found[kept], 2 * without[kept], rtol=1e-4, atol=1e-5)
    assert 0.4 < kept.sum() / (without > 0).sum() < 0.6


def test_a_subclassed_model_trains_as_keras_trains_it():
    ours, theirs = made(), made()
    found = convscope.fit(ours, X, Y, batch_size=20, epochs=2, shuffle=False, verbose=0, precision="float32")
    expected = theirs.fit(X, Y, batch_size=20, epochs=2, shuffle=False, verbose=0)
    assert found.engine == "fast"
    assert_same_history(found, expected, 1e-4)
    assert_close(weights(ours), weights(theirs), 1e-3)
    assert_close([convscope.predict(ours, X, engine="fast")], [np.asarray(ours.predict(X, verbose=0))], 1e-4)


def test_a_model_that_does_not_take_the_flag_trains_as_it_predicts_and_is_left_to_keras():
    class Untold(Network):
        def call(self, x):
            return super().call(x)

    ours, theirs = made(Untold), made(Untold)
    with pytest.warns(UserWarning, match="call takes training, got Untold, without which Keras trains"):
        found = convscope.fit(ours, X, Y, batch_size=20, shuffle=False, verbose=0)
    assert_same_history(found, theirs.fit(X, Y, batch_size=20, shuffle=False, verbose=0))
    assert_close(weights(ours), weights(theirs))


def test_a_model_of_several_named_outputs_keeps_their_names():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.flat, self.one, self.other = L.Flatten(), L.Dense(2), L.Dense(3)

        def call(self, x):
            x = self.flat(x)
            return {"one": self.one(x), "other": self.other(x)}

    model = Two()
    expected = model(X[:4])
    found = emit(lower(model), model)(torch.tensor(X[:4]))
    assert list(found) == ["one", "other"]
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name])


def test_images_of_another_size_than_it_was_built_on_are_left_to_keras():
    model = made()
    larger = np.random.default_rng(0).random((3, 12, 10, 1), np.float32)
    with pytest.raises(LoweringError, match=r"inputs of shape \(8, 8, 1\), on which it was built"):
        emit(lower(model), model)(torch.tensor(larger))
    expected = np.asarray(model.predict(larger, verbose=0))
    np.testing.assert_allclose(convscope.predict(model, larger), expected, rtol=1e-5)


@pytest.mark.parametrize("first", [L.Rescaling(1 / 255), None], ids=["a layer reads them", "its call does"])
def test_whole_numbers_are_what_keras_makes_of_them(first):
    class Bytes(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.flat = first, L.Flatten()

        def call(self, x):
            return self.flat(self.first(x) if self.first else x * 2)  # a byte overflows

    model = Bytes()
    pixels = np.arange(0, 256, 4, dtype=np.uint8).reshape(4, 4, 4, 1)
    expected = np.asarray(model(pixels)).astype("float32")
    np.testing.assert_allclose(convscope.predict(model, pixels, engine="auto"), expected, rtol=1e-6)


def test_a_model_that_is_changed_is_read_again_and_one_that_trained_is_not():
    model = made()
    structure = ModelStructure(model, lower(model))
    convscope.fit(model, X, Y, verbose=0)
    model.fit(X, Y, verbose=0, validation_split=0.5)
    model.evaluate(X, Y, verbose=0)
    before = convscope.predict(model, X, engine="fast")
    assert structure.is_current
    model.factor = 2.0
    assert not structure.is_current
    np.testing.assert_allclose(convscope.predict(model, X, engine="fast"), 2 * before, rtol=1e-5)
