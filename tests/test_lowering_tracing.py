"""Layers with a call of their own, and functions between layers, are computed as what they are made of."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as L  # noqa: N812  as in the other tests of layers
from keras import ops
from lowering_cases import assert_parity, image_batch, scrambled

import convscope
from convscope.lowering import emit, lower
from convscope.lowering.kernels import Shard

IMAGE = (8, 8, 6)


class Patches(L.Layer):
    """Cuts images into patches, by the batch's own length."""

    def call(self, images):
        shape = ops.shape(images)
        patches = ops.image.extract_patches(images, size=2)
        return ops.reshape(patches, (shape[0], 16, 4 * shape[3]))


class Positions(L.Layer):
    """Adds an embedding of positions that nothing but their number decides, and a token for the class."""

    def __init__(self):
        super().__init__()
        self.projection, self.embedding = L.Dense(5), L.Embedding(16, 5)

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, 5), initializer="zeros")
        self.projection.build(shape)
        self.embedding.build(())

    def call(self, x):
        x = self.projection(x) + self.embedding(ops.arange(16))
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, 5))
        return ops.concatenate([token, x], axis=1)


class Louder(L.Layer):
    """Computes something else in training, by functions alone; the length of the batch enters it."""

    def call(self, x, training=False):
        if not training:
            return ops.tanh(x)
        return ops.reshape(ops.reshape(x, (ops.shape(x)[0], 64, 6)) / 2.0, (-1, 8, 8, 6))


class StochasticDepth(L.Layer):
    """Leaves a branch out, for each image by chance (Huang et al., 2016)."""

    def __init__(self, rate, seed=None):
        super().__init__()
        self.rate, self.seeds = rate, keras.random.SeedGenerator(seed)

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return x / (1 - self.rate) * ops.floor(1 - self.rate + keras.random.uniform(shape, seed=self.seeds))


class Latents(L.Layer):
    """Learned vectors, the same for each image, that read positions of the image."""

    def __init__(self):
        super().__init__()
        self.embedding = L.Embedding(64, 6)

    def build(self, _shape):
        self.vectors = self.add_weight(shape=(1, 3, 6), initializer="random_normal")
        self.embedding.build(())

    def call(self, x):
        tokens = ops.reshape(x, (-1, 64, 6)) + self.embedding(ops.expand_dims(ops.arange(64), 0))
        return ops.broadcast_to(self.vectors, (ops.shape(x)[0], 3, 6)), tokens


class Scale(L.Layer):
    """Layer scale."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.shift = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        return x * self.gamma + self.shift


class Windows(L.Layer):
    """Windows of an image as a batch of their own, attention in each (Liu et al., Swin, 3.2)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.drop, self.scale = L.Dense(18), L.Dense(6), L.Dropout(0.0), Scale()

    def call(self, x, training=None):
        _, height, width, channels = ops.shape(x)
        x = ops.roll(x, shift=(-1, -1), axis=(1, 2))
        x = ops.reshape(x, (-1, height // 4, 4, width // 4, 4, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 16, channels))
        rows = ops.shape(x)[0]
        qkv = ops.transpose(ops.reshape(self.qkv(x), (rows, 16, 3, 2, 3)), (2, 0, 3, 1, 4))
        scores = ops.softmax((qkv[0] * 3**-0.5) @ ops.transpose(qkv[1], (0, 1, 3, 2)))
        x = ops.transpose(self.drop(scores, training=training) @ qkv[2], (0, 2, 1, 3))
        x = self.scale(self.out(ops.reshape(x, (rows, 16, channels))))
        x = ops.reshape(x, (-1, height // 4, width // 4, 4, 4, channels))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))


class Mixer(L.Layer):
    """Mixes tokens, then channels (Tolstikhin et al., "MLP-Mixer"); parts of it are models."""

    def __init__(self):
        super().__init__()
        self.tokens = keras.Sequential([L.Dense(8, activation="gelu"), L.Dense(16), L.Dropout(0.0)])
        self.channels = keras.Sequential([L.Dense(8, activation="gelu"), L.Dense(24)])
        self.norm = L.LayerNormalization()

    def build(self, shape):
        self.norm.build(shape)
        self.tokens.build((None, shape[2], shape[1]))
        self.channels.build(shape)

    def call(self, x):
        mixed = ops.transpose(self.tokens(ops.transpose(self.norm(x), (0, 2, 1))), (0, 2, 1))
        x = x + mixed
        return x + self.channels(self.norm(x))


class Both(L.Layer):
    """Two inputs and two outputs, one by its name."""

    def build(self, x_shape, other_shape):
        self.gate = self.add_weight(shape=(x_shape[-1], other_shape[-1]), initializer="ones")

    def call(self, x, other):
        return {"sum": x + other @ self.gate, "product": ops.tanh(x) * other}


def of_functions(x):
    first, second = ops.split(x, 2, axis=-1)
    y = ops.concatenate([ops.square(first), second[..., 1:], first / (1.0 + ops.abs(second))], axis=-1)
    y = ops.power(ops.sqrt(1.0 + ops.square(y)), 1.5) - ops.mean(y, axis=(1, 2), keepdims=True)
    rows = ops.reshape(ops.transpose(y, (0, 3, 1, 2)), (-1, 8, 64))
    return ops.matmul(rows, ops.transpose(rows, (0, 2, 1))) / ops.sum(ops.abs(rows))


def both(x):
    parts = Both()(x, L.Dense(6)(x))
    return ops.stack([parts["sum"], parts["product"]], axis=1)


def after(x, *made):
    for layer in made:
        x = layer(x)
    return x


MODELS = {
    "functions": of_functions,
    "patches and positions": lambda x: Positions()(Patches()(x)),
    "scale": lambda x: after(x, Scale()),
    "windows": lambda x: after(x, Windows()),
    "mixer": lambda x: Mixer()(Patches()(x)),
    "another branch in training": lambda x: after(x, L.Dense(6), Louder(), L.Dense(3)),
    "latents": lambda x: L.MultiHeadAttention(2, 4)(*Latents()(x)),
    "several": both,
    "lambda": lambda x: after(x, L.Lambda(lambda y: ops.relu(y) * 2.0)),
    "permute": lambda x: after(x, L.Permute((3, 1, 2))),
    "repeated": lambda x: after(x, L.Flatten(), L.RepeatVector(3)),
    "one-dimensional": lambda x: after(
        x, L.Reshape((64, 6)), L.Conv1D(4, 3, padding="same", activation="gelu"), L.GlobalAveragePooling1D()
    ),
    "three-dimensional": lambda x: after(
        x, L.Reshape((4, 4, 4, 6)), L.Conv3D(3, 2, padding="same", activation="relu"), L.AveragePooling3D(2)
    ),
    "transposed convolution": lambda x: after(x, L.Conv2DTranspose(4, 3, strides=2, padding="same")),
    "rms": lambda x: after(x, L.RMSNormalization()),
    "einsum": lambda x: after(x, L.EinsumDense("abcd,de->abce", (None, None, 3), bias_axes="e")),
}


def made(make):
    image = keras.Input(IMAGE)
    return scrambled(keras.Model(image, make(image)))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_layer_is_computed_as_what_it_is_made_of(make, training):
    model = made(make)
    assert not [str(op.call) for op in lower(model) if op.kind == "KerasCall"]
    assert_parity(model, [image_batch((5, *IMAGE))], training)


def depth(seed=None, rate=0.25):
    image = keras.Input(IMAGE)
    return scrambled(keras.Model(image, image + StochasticDepth(rate, seed)(L.Dense(6)(image))))


def test_stochastic_depth_draws_for_each_image_in_each_step():
    model = depth()
    kinds = ["Dense", "Draw", "Affine", "Affine", "Operation", "Merge", "ByMode", "Merge"]
    assert [op.kind for op in lower(model)] == kinds
    assert_parity(model, [image_batch((5, *IMAGE))], training=False)
    network, images = emit(lower(model), model), torch.tensor(image_batch((4000, *IMAGE)))

    def kept(seed, step):
        network.begin_step(seed, step)
        branch = network(images, training=True) - images
        plain = network(images) - images
        shares = (branch * plain).sum((1, 2, 3)) / plain.square().sum((1, 2, 3))
        torch.testing.assert_close(branch, shares[:, None, None, None] * plain, rtol=1e-4, atol=1e-4)
        return (shares * 0.75).round(decimals=3).tolist()

    first = kept(1, 1)
    assert set(first) == {0.0, 1.0}
    assert abs(sum(first) / 4000 - 0.75) < 0.03
    assert kept(1, 1) == first
    assert kept(1, 2) != first != kept(2, 1)


def test_a_branch_left_out_gets_no_gradient():
    model = depth(rate=0.5)
    network, images = emit(lower(model), model), torch.tensor(image_batch((1, *IMAGE)))
    found = set()
    for step in range(20):
        network.begin_step(0, step)
        network(images, training=True).sum().backward()
        bias = next(weight for path, weight in network.weights.items() if path.endswith("bias"))
        found.add(float(bias.grad[0]))
        bias.grad = None
    assert found == {0.0, 128.0}


def test_processes_draw_the_rows_that_one_would_draw():
    model = depth()
    network, images = emit(lower(model), model), torch.tensor(image_batch((6, *IMAGE)))
    network.begin_step(0, 0)
    whole = network(images, training=True)
    for first in (0, 3):
        network.begin_step(0, 0, shard=Shard(first, 3, 6, lambda tensor: tensor))
        torch.testing.assert_close(
            network(images[first : first + 3], training=True), whole[first : first + 3]
        )


def test_draws_of_a_seed_of_ones_own_stay_keras():
    assert "KerasCall" in [op.kind for op in lower(depth(seed=7))]


def test_what_only_the_other_mode_needs_is_not_computed():
    model = depth()
    network = emit(lower(model), model)
    lengths = {training: len(schedule) for training, schedule in network._schedules.items()}
    assert lengths == {True: 8, False: 3}


class Custom(L.Layer):
    def __init__(self, call):
        super().__init__()
        self.factor, self.count, self.drop = 2.0, 0, L.Dropout(0.5)
        self.model = keras.Sequential([keras.Input((8,)), L.BatchNormalization()])
        self._call = call

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.state = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        return self._call(self, x, training)


def counting(layer, x, training):
    layer.count += 1
    return x * layer.factor


def assigning(layer, x, training):
    layer.state.assign(1.0)
    return x


def always_dropping(layer, x, training):
    return layer.drop(x, training=True)


def reading(layer, x, training):
    return x * float(layer.drop.rate + ops.convert_to_numpy(layer.state))


def told_of_its_model(layer, x, training):
    return layer.model(x, training=False)


SEEN = []
SEEN_TIMES = 0


def noting(layer, x, training):
    SEEN.append(x)
    return x


def counting_elsewhere(layer, x, training):
    global SEEN_TIMES  # noqa: PLW0603  what it is about
    SEEN_TIMES += 1
    return x


def printing(layer, x, training):
    print("a step")  # noqa: T201  what it is about
    return x


AS_THEY_ARE = {
    "adds to a list elsewhere": noting,
    "counts elsewhere": counting_elsewhere,
    "prints": printing,
    "a model with a flag of its own": told_of_its_model,
    "random numbers of Keras": lambda layer, x, training: x + keras.random.normal((8,)),
    "random numbers of NumPy": lambda layer, x, training: x * np.random.rand(),  # noqa: NPY002
    "random numbers of torch": lambda layer, x, training: x * float(torch.rand(1)),
    "changes itself": counting,
    "changes a variable": assigning,
    "looks at a variable": reading,
    "a flag of its own": always_dropping,
    "looks at the batch": lambda layer, x, training: x * (ops.shape(x)[0] + 1.0),
    "computes on a part's weight": lambda layer, x, training: x * layer.drop.seed_generator.state[0],
}


@pytest.mark.parametrize("call", AS_THEY_ARE.values(), ids=AS_THEY_ARE.keys())
def test_what_is_not_certain_runs_as_a_keras_layer(call):
    layer = Custom(call)
    x = keras.Input((8,))
    model = keras.Model(x, layer(x))
    before = layer.count, layer.state.numpy(), layer.drop.seed_generator.state.numpy().tolist()
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    names = keras.backend.get_uid("multiply")
    assert [op.kind for op in lower(model)] == ["KerasCall"]
    assert keras.backend.get_uid("multiply") == names + 1
    assert (layer.count, layer.state.numpy(), layer.drop.seed_generator.state.numpy().tolist()) == before
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]  # noqa: NPY002


def test_a_trace_leaves_no_mark_on_the_layers():
    model = made(MODELS["windows"])
    layer = model.layers[1]
    calls = [len(part._inbound_nodes) for part in layer._flatten_layers()]
    attributes = {name: id(value) for name, value in vars(layer).items()}
    lower(model)
    assert [len(part._inbound_nodes) for part in layer._flatten_layers()] == calls
    assert {name: id(value) for name, value in vars(layer).items()} == attributes


def doubled(x):
    return x * 2.0


class Doubling(L.Layer):
    factor = 1.0

    def call(self, x):
        return doubled(x) * self.factor


@pytest.mark.parametrize("change", ["setting", "method", "function"])
def test_a_layer_that_is_changed_is_read_again(change, monkeypatch):
    x = keras.Input((4,))
    layer = Doubling()
    model = keras.Model(x, layer(x))
    images = image_batch((3, 4))
    np.testing.assert_allclose(convscope.predict(model, images), images * 2, rtol=1e-6)
    if change == "setting":
        layer.factor = 3.0
    elif change == "method":
        monkeypatch.setattr(Doubling, "call", lambda _self, x: x * 6.0)
    else:
        monkeypatch.setitem(globals(), "doubled", lambda x: x * 6.0)
    np.testing.assert_allclose(convscope.predict(model, images), images * 6, rtol=1e-6)


def test_training_with_what_was_traced_is_keras_training():
    x, y = image_batch((32, *IMAGE)), np.arange(32) % 3
    found = {}
    for name, fit in (("keras", keras.Model.fit), ("fast", convscope.fit)):
        image = keras.Input(IMAGE)
        hidden = L.Flatten()(Positions()(Patches()(Windows()(image))))
        model = scrambled(keras.Model(image, L.Dense(3, activation="softmax")(hidden)))
        model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
        settings = {} if name == "keras" else {"engine": "fast", "precision": "float32"}
        history = fit(model, x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, **settings)
        found[name] = history.history["loss"], [weight.numpy() for weight in model.weights]
    np.testing.assert_allclose(found["fast"][0], found["keras"][0], rtol=1e-4)
    for one, other in zip(found["fast"][1], found["keras"][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_a_layer_that_notes_its_input_elsewhere_is_called_in_each_step(engine):
    seen = []

    class Noting(L.Layer):
        def call(self, x, training=None):
            if training:
                seen.append(float(ops.mean(x)))
            return x

    model = keras.Sequential([keras.Input((3,)), Noting(), L.Dense(1)])
    model.compile("sgd", "mse")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    convscope.fit(model, x, x[:, :1], batch_size=2, shuffle=False, epochs=2, engine=engine, verbose=0)
    assert seen[-4:] == [2.5, 8.5] * 2
