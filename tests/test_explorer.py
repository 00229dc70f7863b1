"""The explorer's interpreter in a headless Chromium, held against Keras, torch and Python's preprocessing."""

import json

import keras
import numpy as np
import pytest
import torch

from convscope.arithmetic.activations import ACTIVATIONS
from convscope.evaluation.novelty import Novelty, reduce
from convscope.explorer.page import _novelty, bundle, describe_network, pack
from convscope.inspection import feature_maps, grad_cam, occlusion
from convscope.networks import build
from convscope.preprocessing import Preprocess, resize_to_input

pytestmark = pytest.mark.browser
layers = keras.layers

AGREES = 1e-5
# What a test sends: a network by name, and functions on arrays. `forward` gives every layer's values.
HARNESS = """
const { Network } = modules["network.js"];
const { unpack, unpackWeights } = modules["arrays.js"];
const { gradCam, occlusion } = modules["attribution.js"];
const made = async ({ network, weights }) =>
  new Network(network, await unpackWeights(weights, network.layers));
const plain = (value) => value && Array.from(value);
"""


@pytest.fixture(scope="module")
def javascript(browser):
    """Run functions of the page's modules."""
    context = browser.new_context()
    page = context.new_page()
    page.add_script_tag(content=bundle("arrays.js", "unlike.js", "arithmetic.js", "worker.js") + HARNESS)

    def run(body, **given):
        return page.evaluate(f"async (given) => {{ {body} }}", json.loads(json.dumps(given)))

    yield run
    context.close()


def forward(javascript, model, images):
    """Compute every layer's values for images (n, h, w, c); None for one that is not live."""
    described = describe_network(model)
    found = javascript(
        "const network = await made(given); const images = await unpack(given.images);"
        "return network.forward(images, given.n).map(plain);",
        **described,
        images=pack(images.astype(np.float32)),
        n=len(images),
    )
    shapes = [layer["shape"] for layer in described["network"]["layers"]]
    return described["network"]["layers"], [
        values and np.array(values, np.float32).reshape(len(images), *shape) if values is not None else None
        for values, shape in zip(found, shapes, strict=True)
    ]


def agree(javascript, model, images=None, live=True):
    """Hold every layer that is live against Keras."""
    shape = model.input_shape[1:]
    generator = np.random.default_rng(0)
    given = generator.normal(size=(2, *shape)).astype(np.float32) if images is None else images
    turned = np.moveaxis(given, 1, -1) if first_channels(model) and given.ndim == 4 else given
    described, found = forward(javascript, model, turned)
    assert all(layer["live"] for layer in described) is live, [one["reason"] for one in described]
    for image in range(len(given)):
        for layer, maps, values in zip(described, feature_maps(model, given[image]), found, strict=True):
            if not layer["live"]:
                assert values is None
            elif values is not None:
                largest = max(np.abs(maps.values).max(), 1e-6)
                assert np.abs(values[image] - maps.values).max() / largest < AGREES, layer["name"]


def first_channels(model):
    return any(getattr(layer, "data_format", "") == "channels_first" for layer in model.layers)


def randomized(model, seed=0):
    """Give every weight a random value, variances positive ones."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "float32":
            values = generator.normal(size=variable.shape) * 0.5
            variable.assign(np.abs(values) + 0.1 if "variance" in variable.name else values)
    return model


def chain(*rest, shape=(9, 11, 4)):
    return randomized(keras.Sequential([keras.Input(shape), *rest]))


CASES = {
    "conv": lambda: [layers.Conv2D(6, 3, activation="relu")],
    "conv same strided": lambda: [layers.Conv2D(5, (3, 2), strides=2, padding="same")],
    "conv dilated": lambda: [layers.Conv2D(3, 3, dilation_rate=(2, 1), padding="same", use_bias=False)],
    "conv groups": lambda: [layers.Conv2D(6, 3, groups=2, activation="tanh")],
    "conv 1x1": lambda: [layers.Conv2D(7, 1)],
    "depthwise": lambda: [layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)],
    "depthwise strided": lambda: [layers.DepthwiseConv2D((3, 5), strides=2, padding="same", use_bias=False)],
    "separable": lambda: [layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu")],
    "dense of places": lambda: [layers.Dense(5, activation="sigmoid")],
    "dense": lambda: [layers.Flatten(), layers.Dense(6, activation="softmax")],
    "max same": lambda: [layers.MaxPooling2D(3, strides=2, padding="same")],
    "max": lambda: [layers.MaxPooling2D((2, 3))],
    "average same": lambda: [layers.AveragePooling2D(3, strides=2, padding="same")],
    "average": lambda: [layers.AveragePooling2D((3, 2), strides=1)],
    "global average": lambda: [layers.GlobalAveragePooling2D(), layers.Dense(3)],
    "global max keeping": lambda: [layers.GlobalMaxPooling2D(keepdims=True), layers.Conv2D(3, 1)],
    "batch normalization": lambda: [layers.BatchNormalization(), layers.Activation("relu")],
    "batch normalization of rows": lambda: [layers.BatchNormalization(axis=1, scale=False, center=False)],
    "layer normalization": lambda: [layers.LayerNormalization()],
    "layer normalization of all": lambda: [layers.LayerNormalization(axis=(1, 2, 3))],
    "group normalization": lambda: [layers.GroupNormalization(groups=2)],
    "instance normalization": lambda: [layers.GroupNormalization(groups=-1)],
    "relu with settings": lambda: [layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2)],
    "leaky": lambda: [layers.LeakyReLU(0.3)],
    "elu": lambda: [layers.ELU(0.7)],
    "prelu": lambda: [layers.PReLU(shared_axes=[1, 2])],
    "softmax": lambda: [layers.Softmax()],
    "rescaling": lambda: [layers.Rescaling(2.0, offset=[1.0, 2.0, 3.0, 4.0])],
    "normalization": lambda: [layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1, 4, 9, 16])],
    "reshape": lambda: [layers.Reshape((11, 9, 4)), layers.Conv2D(2, 3), layers.Reshape((-1,))],
    "padding": lambda: [layers.ZeroPadding2D(((1, 2), (3, 0)))],
    "cropping": lambda: [layers.Cropping2D(((2, 0), (1, 1)))],
    "upsampling": lambda: [layers.UpSampling2D((2, 3))],
    "upsampling bilinear": lambda: [layers.UpSampling2D((2, 3), interpolation="bilinear")],
    "resizing": lambda: [layers.Resizing(5, 17), layers.Conv2D(3, 3)],
    "centre crop": lambda: [layers.CenterCrop(5, 6)],
    "transposed": lambda: [layers.Conv2DTranspose(5, 3, strides=2, activation="relu")],
    "transposed same": lambda: [layers.Conv2DTranspose(5, (4, 3), strides=(2, 3), padding="same")],
    "transposed wide steps": lambda: [layers.Conv2DTranspose(3, 2, strides=3, use_bias=False)],
    "transposed wide steps same": lambda: [layers.Conv2DTranspose(3, 2, strides=3, padding="same")],
    "transposed dilated": lambda: [layers.Conv2DTranspose(3, 3, dilation_rate=2, padding="same")],
    "permute": lambda: [layers.Permute((3, 1, 2)), layers.Flatten(), layers.RepeatVector(3)],
    "sequence": lambda: [
        layers.Reshape((99, 4)),
        layers.RMSNormalization(),
        layers.Dense(6, activation="softmax"),
        layers.GlobalAveragePooling1D(),
    ],
    "global maximum of a sequence": lambda: [layers.Reshape((99, 4)), layers.GlobalMaxPooling1D()],
    "augmentation": lambda: [
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.RandomZoom(0.2),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomContrast(0.2),
    ],
    "random": lambda: [layers.Dropout(0.5), layers.GaussianNoise(1.0), layers.SpatialDropout2D(0.5)],
    **{
        f"activation {name}": lambda name=name: [layers.Activation(name)]
        for name in ACTIVATIONS
        if name not in ("sparsemax", "glu", "threshold", "hard_swish", "swish")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_computes_what_keras_does(javascript, case):
    agree(javascript, chain(*case()))


ops = keras.ops
FUNCTIONS = {
    "arithmetic with numbers": lambda x: (2.5 - x * 3.0) / 4 + (1.0 + x - 0.5),
    "arithmetic of values": lambda x: x * x - (x + 3.0) / ops.exp(x),
    "a number for each channel": lambda x: x + np.array([1.0, 2.0, 3.0, 4.0], np.float32),
    "limits": lambda x: ops.maximum(ops.minimum(ops.clip(x, -1, 1), 0.5), -0.5),
    "extremes": lambda x: ops.maximum(x, -x) + ops.minimum(x, ops.square(x)),
    "each number": lambda x: ops.sqrt(ops.abs(x)) + x**2 + ops.log(ops.exp(x)) + ops.rsqrt(ops.square(x) + 1),
    "activations": lambda x: (
        ops.relu(x) + ops.sigmoid(x) + ops.tanh(x) + ops.gelu(x) + ops.gelu(x, False) + ops.silu(x)
    ),
    "activations with settings": lambda x: ops.leaky_relu(x, 0.3) + ops.elu(x, 0.7) + ops.relu6(x),
    "softmax": lambda x: ops.softmax(x) - ops.log_softmax(x, axis=-1),
    "means": lambda x: x - ops.mean(x, axis=(1, 2), keepdims=True),
    "reductions": lambda x: ops.concatenate(
        [ops.mean(x, axis=(1, 2)), ops.max(x, axis=(1, 2)), ops.min(x, axis=(1, 2)), ops.sum(x, axis=(1, 2))],
        axis=1,
    ),
    "over channels": lambda x: ops.concatenate(
        [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=3, keepdims=True), x], axis=-1
    ),
    "moves": lambda x: ops.transpose(x, (0, 3, 1, 2)) + ops.reshape(ops.flip(x, axis=2), (-1, 4, 9, 11)),
    "axes": lambda x: ops.reshape(ops.moveaxis(ops.swapaxes(x, 1, 3), -1, 1), (-1, 396)) + ops.reshape(
        ops.squeeze(ops.expand_dims(x, 1), 1), (-1, 396)
    ),
    "parts": lambda x: x[:, 1:, ::2, :3],
    "one channel": lambda x: x[..., 1],
    "resize": lambda x: ops.image.resize(x, (6, 20)),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_between_layers_computes_what_keras_does(javascript, function):
    image = keras.Input((9, 11, 4))
    agree(javascript, randomized(keras.Model(image, function(layers.Conv2D(4, 1)(image)))))


def attending(places=(4, 4), classes=3):
    """Build a network that cuts an image into patches, and lets them attend to each other."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 2, strides=2, activation="tanh")(image)
    x = layers.Reshape((16, 6))(x)
    x = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(3, 5, value_dim=4, name="attention")(x, x)
    x = layers.Add()([x, y])
    y = layers.Dense(6, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.GlobalAveragePooling1D()(layers.Add()([x, y]))
    return randomized(keras.Model(image, layers.Dense(classes, "softmax")(x)))


def test_attention_computes_what_keras_does(javascript):
    agree(javascript, attending())
    image = keras.Input((6, 4))
    few = layers.Dense(5)(image[:, :3])
    crossed = layers.MultiHeadAttention(2, 3, use_bias=False)(few, image, key=image)
    agree(javascript, randomized(keras.Model(image, crossed)))


RECOMPUTED = {
    "attention": attending,
    "transposed": lambda: chain(layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="tanh")),
    "resized": lambda: chain(layers.UpSampling2D(2, interpolation="bilinear"), layers.Resizing(5, 7)),
    "functions": lambda: functional(
        lambda x: ops.max(x[:, 1:], axis=(1, 2)) / (2.0 + ops.mean(ops.square(x), axis=(1, 2)))
    ),
    "gate": lambda: functional(lambda x: x * ops.sigmoid(ops.mean(x, axis=(1, 2), keepdims=True))),
    "sequence": lambda: functional(
        lambda x: ops.softmax(ops.transpose(ops.reshape(x, (-1, 99, 4)), (0, 2, 1)))
    ),
}  # fmt: skip


def functional(function, shape=(9, 11, 4)):
    image = keras.Input(shape)
    return randomized(keras.Model(image, function(layers.Conv2D(4, 1)(image))))


@pytest.mark.parametrize("build_", RECOMPUTED.values(), ids=RECOMPUTED)
def test_every_number_is_recomputed_and_leads_back_to_the_image(javascript, build_):
    model = build_()
    found = javascript(
        "const network = await made(given); const image = await unpack(given.image);"
        "const { recompute, wayBack } = modules['arithmetic.js'];"
        "const { placeAt, receptiveField } = modules['places.js'];"
        "const pass = { network, image, outputs: network.forward(image, 1), changes: {} };"
        "return network.layers.flatMap(({ index, name }) => [0, 1, 2].map((part) => {"
        "  const flat = Math.floor((part * (pass.outputs[index].length - 1)) / 2);"
        "  const place = placeAt(network.maps(index), flat);"
        "  const found = recompute(pass, index, place);"
        "  return [name, found && found.difference, wayBack(pass, index, place).at(-1).layer,"
        "    receptiveField(network, index, place)]; }));",
        **describe_network(model),
        image=pack(np.random.default_rng(9).normal(size=model.input_shape[1:]).astype(np.float32)),
    )
    for name, difference, end, field in found:
        assert difference is not None and difference < AGREES, name
        assert end == -1, name
        assert field["height"] > 0 and field["width"] > 0, name


def test_branches_and_nested_models_and_shared_layers(javascript):
    image = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same")
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1), layers.ReLU()], name="inner")
    a, b = shared(image), inner(shared(shared(image)))
    gate = layers.Reshape((1, 1, 4))(layers.GlobalAveragePooling2D()(a))
    merged = [
        layers.Add()([a, b]),
        layers.Multiply()([b, gate]),
        layers.Subtract()([a, b]),
        layers.Average()([a, b, image]),
        layers.Maximum()([a, b]),
        layers.Minimum()([a, b]),
    ]
    joined = layers.Concatenate()(merged)
    rows = layers.Concatenate(axis=1)([joined, joined])
    agree(javascript, randomized(keras.Model(image, rows)))


@pytest.mark.parametrize("moved", ["channels_first", "channels_last"])
def test_channels_first_comes_out_in_the_page_s_order(javascript, moved):
    order = {"data_format": "channels_first"}
    model = chain(
        layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", **order),
        layers.BatchNormalization(axis=1),
        layers.MaxPooling2D(2, **order),
        layers.Flatten(data_format=moved),
        layers.Dense(4, activation="softmax"),
        shape=(3, 9, 11),
    )
    agree(javascript, model)


def test_what_is_not_known_is_not_live_and_says_why(javascript):
    class Odd(layers.Layer):
        def call(self, x):
            return x + 1

    def twice(x):
        return x * 2

    for layer, reason in (
        (Odd(), "reason_own_code"),
        (layers.Dot(1), "reason_unknown_layer"),
        (layers.Conv2DTranspose(3, 3, strides=2, output_padding=1), "reason_setting"),
        (layers.Conv2D(3, 3, activation=twice), "reason_unknown_activation"),
        (layers.UpSampling2D(2, interpolation="bicubic"), "reason_setting"),
    ):
        image = keras.Input((9, 11, 4))
        x = layers.Conv2D(4, 3)(image)
        x = layer([x, x]) if isinstance(layer, layers.Dot) else layer(x)
        model = randomized(keras.Model(image, layers.Flatten()(x)))
        agree(javascript, model, live=False)
        described = describe_network(model)["network"]["layers"]
        assert [one["reason"] for one in described] == ["", reason, ""]


def test_changes_change_what_they_say(javascript):
    model = build("deep", (14, 14, 1))
    images = np.random.default_rng(1).random((2, 14, 14, 1), np.float32)
    described = describe_network(model)
    changes = {
        "weights": [{"layer": 0, "name": "kernel", "index": 5, "value": 2.0}],
        "zeroed": [{"layer": 1, "channel": 3}],
    }
    found, affected = javascript(
        "const network = await made(given); const images = await unpack(given.images);"
        "const one = network.forward(images, 2, given.changes);"
        "const known = network.forward(images, 2);"
        "const first = network.affected({ zeroed: given.changes.zeroed }).indexOf(true);"
        "const options = { known: known.slice(0, first), only: [network.last] };"
        "const again = network.forward(images, 2, { zeroed: given.changes.zeroed }, options);"
        "const kept = again.filter(Boolean).length;"
        "return [plain(one[network.last]), [first, plain(again[network.last]), kept]];",
        **described, images=pack(images), changes=changes,
    )  # fmt: skip
    kernel, bias = model.layers[1].get_weights()
    model.layers[1].set_weights([kernel * (np.arange(64) != 3), bias * (np.arange(64) != 3)])
    zeroed = np.asarray(model(images).detach())
    first, again, kept = affected
    assert first == 1 and kept == 1
    np.testing.assert_allclose(np.reshape(again, (2, 10)), zeroed, atol=1e-6)
    kernel, bias = model.layers[0].get_weights()
    kernel.ravel()[5] = 2
    model.layers[0].set_weights([kernel, bias])
    np.testing.assert_allclose(np.reshape(found, (2, 10)), np.asarray(model(images).detach()), atol=1e-6)


@pytest.mark.parametrize("bits", [16, 8])
def test_rounded_kernels_are_those_that_the_model_computes_with(javascript, bits):
    model = chain(
        layers.Conv2D(6, 3, activation="relu"),
        layers.DepthwiseConv2D(3),
        layers.BatchNormalization(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    )
    before = [weight.copy() for weight in model.get_weights()]
    describe_network(model, bits)  # rounding twice changes nothing more
    described = describe_network(model, bits)
    image = np.random.default_rng(2).normal(size=(1, 9, 11, 4)).astype(np.float32)
    found = javascript(
        "const network = await made(given); const images = await unpack(given.images);"
        "return plain(network.forward(images, 1)[network.last]);",
        **described,
        images=pack(image),
    )
    np.testing.assert_allclose(found, np.asarray(model(image).detach())[0], rtol=1e-5, atol=1e-5)
    assert not np.array_equal(before[0], model.get_weights()[0])


def test_grad_cam_and_occlusion_are_those_of_python(javascript):
    model = randomized(build("normalized", (12, 12, 3)))
    image = np.random.default_rng(3).normal(size=(12, 12, 3)).astype(np.float32)
    found = javascript(
        "const network = await made(given); const image = await unpack(given.image);"
        "return [plain(gradCam(network, image, 2)), plain(occlusion(network, image, 2))];",
        **describe_network(model),
        image=pack(image),
    )
    for values, method in zip(found, (grad_cam, occlusion), strict=True):
        expected = method(model, image, 2).values
        np.testing.assert_allclose(np.reshape(values, (12, 12)), expected, atol=1e-4 * np.abs(expected).max())


BEHIND = {
    "separable": lambda: [layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="tanh")],
    "layer normalization": lambda: [layers.LayerNormalization(), layers.LayerNormalization(axis=(1, 2, 3))],
    "group normalization": lambda: [layers.GroupNormalization(2)],
    "root mean square": lambda: [layers.RMSNormalization()],
    "transposed": lambda: [layers.Conv2DTranspose(3, 3, strides=2, padding="same")],
    "resized": lambda: [
        layers.UpSampling2D(2),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Cropping2D(2),
    ],
    "prelu": lambda: [layers.PReLU(shared_axes=[1, 2])],
    "sequence": lambda: [layers.Reshape((99, 4)), layers.Permute((2, 1)), layers.Dense(3, "tanh")],
    "maximum": lambda: [layers.Reshape((99, 4)), layers.GlobalMaxPooling1D()],
    "attention": lambda: [
        layers.Reshape((99, 4)),
        lambda x: layers.MultiHeadAttention(2, 3, value_dim=5)(x[:, :20], x, key=ops.tanh(x)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("rest", BEHIND.values(), ids=BEHIND)
def test_grad_cam_goes_back_through_what_stands_behind_the_maps(javascript, rest):
    image = keras.Input((9, 11, 3))
    x = maps = layers.Conv2D(4, 3, padding="same", activation="tanh", name="maps")(image)
    for layer in rest():
        x = layer(x)
    gate = ops.sigmoid(ops.mean(maps, axis=(1, 2)) / 2.0) * ops.maximum(maps, 0.1)[:, 4, 4]
    x = layers.Concatenate()([layers.Flatten()(x), gate])
    model = randomized(keras.Model(image, layers.Dense(3, "softmax")(x)))
    given = np.random.default_rng(3).normal(size=(9, 11, 3)).astype(np.float32)
    found = javascript(
        "const network = await made(given); const image = await unpack(given.image);"
        "return plain(gradCam(network, image, 2, { layer: 0 }));",
        **describe_network(model),
        image=pack(given),
    )
    expected = grad_cam(model, given, 2, layer="maps").values
    np.testing.assert_allclose(np.reshape(found, (9, 11)), expected, atol=1e-4 * np.abs(expected).max())


TRAINED = {
    "simple": lambda: build("simple", (12, 12, 1)),
    "pooled": lambda: keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="tanh"),
            layers.MaxPooling2D(2),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(8, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    ),
}


@pytest.mark.parametrize("what", ["last", "all"])
@pytest.mark.parametrize("name", TRAINED)
def test_ten_steps_of_sgd_equal_those_of_torch(javascript, name, what):
    model = TRAINED[name]()
    generator = np.random.default_rng(4)
    images = generator.random((40, 12, 12, 1), np.float32)
    labels = generator.integers(0, 10, 40)
    order = [generator.permutation(40)[:8].tolist() for _ in range(10)]
    found = javascript(
        "const { Training } = modules['sgd.js']; const network = await made(given);"
        "const images = await unpack(given.images);"
        "const training = new Training(network, images, given.labels, given);"
        "const look = { layer: network.last, name: 'kernel', index: 7 };"
        "const state = training.steps(10, look);"
        "return { ...state, weights: state.weights.map((one) => ({ ...one, values: plain(one.values) })) };",
        **describe_network(model),
        images=pack(images), labels=labels.tolist(), order=order, rate=0.1, what=what,
    )  # fmt: skip
    trained = model.layers[-1:] if what == "last" else [one for one in model.layers if one.weights]
    variables = [variable.value for layer in trained for variable in layer.trainable_variables]
    optimizer = torch.optim.SGD(variables, lr=0.1)
    losses = []
    for batch in order:
        optimizer.zero_grad()
        probabilities = model(images[batch], training=False)
        loss = torch.nn.functional.nll_loss(probabilities.log(), torch.from_numpy(labels[batch]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(found["losses"], losses, atol=1e-5)
    for one, variable in zip(found["weights"], variables, strict=True):
        np.testing.assert_allclose(one["values"], variable.detach().numpy().ravel(), atol=1e-5)
    look = found["look"]
    assert sum(term["product"] for term in look["terms"]) == pytest.approx(look["gradient"], abs=1e-7)
    assert look["after"] == pytest.approx(look["before"] - 0.1 * look["gradient"], abs=1e-6)


@pytest.mark.parametrize("resize", ["letterbox", "crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_brought_to_size_as_pillow_does(javascript, resize, channels):
    generator = np.random.default_rng(5)
    sizes = (
        (40, 61),
        (61, 40),
        (7, 9),
        (28, 28),
        (200, 13),
        (13, 200),
        (28, 55),
        (55, 28),
        (1, 1),
        (1, 90),
        (90, 1),
    )
    for height, width in sizes:
        picture = generator.integers(0, 256, (height, width, 3), np.uint8)
        opaque = np.concatenate([picture, np.full((height, width, 1), 255, np.uint8)], axis=2)
        found = javascript(
            "const pixels = await unpack(given.pixels);"
            "const { resize } = modules['preprocess.js'];"
            "return plain(resize(pixels, given.width, given.height, given.preprocessing));",
            pixels=pack(opaque), width=width, height=height,
            preprocessing={"height": 28, "width": 28, "channels": channels, "resize": resize},
        )  # fmt: skip
        expected = resize_to_input(picture, (28, 28), channels, resize)
        np.testing.assert_array_equal(np.reshape(found, (28, 28, channels)), expected)


@pytest.mark.parametrize("scaling", ["minmax", "unit", "standard", "raw"])
def test_pixels_are_scaled_as_python_does(javascript, scaling):
    images = np.random.default_rng(6).integers(20, 200, (30, 8, 8, 3), np.uint8)
    preprocess = Preprocess.fit(images, scaling)
    other = np.random.default_rng(7).integers(0, 256, (8, 8, 3), np.uint8)
    found = javascript(
        "const [scale, offset] = [await unpack(given.scale), await unpack(given.offset)];"
        "const pixels = await unpack(given.pixels);"
        "return plain(modules['preprocess.js'].scale(pixels, { limits: given.limits, scale, offset }));",
        pixels=pack(other), limits=preprocess.limits,
        scale=pack(preprocess.scale), offset=pack(preprocess.offset),
    )  # fmt: skip
    np.testing.assert_allclose(np.reshape(found, (8, 8, 3)), preprocess.apply(other[None])[0], atol=1e-6)


@pytest.mark.parametrize("features", [40, 1300])
def test_the_distance_from_training_images_is_that_of_python(javascript, features):
    generator = np.random.default_rng(8)
    known = reduce(generator.normal(size=(60, features)).astype(np.float32)).astype(np.float16)
    novelty = Novelty(known, features, limit=0.5, validation=100)
    image = generator.normal(size=(1, features)).astype(np.float32)
    found = javascript(
        "const { Novelty } = modules['unlike.js'];"
        "return (await Novelty.unpack(given.novelty)).distance(await unpack(given.image));",
        novelty=_novelty(novelty, 10**6),
        image=pack(image),
    )
    assert found == pytest.approx(novelty.distances(image)[0], abs=1e-5)
    assert _novelty(novelty, 1000) is None
