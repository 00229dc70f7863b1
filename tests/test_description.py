"""Descriptions of networks, held against Keras, and receptive fields against torch's gradients."""

import json

import keras
import numpy as np
import pytest
import torch
from odd_networks import ODD_NETWORKS, nested

from convscope.errors import UnknownNameError, UsageError
from convscope.inspection import describe, explain_kernel_layouts, feature_maps
from convscope.lowering.graph import read_graph
from convscope.networks import NETWORKS, build

ALL_NETWORKS = {**{name: lambda name=name: build(name) for name in NETWORKS}, **ODD_NETWORKS}

EXERCISE = {
    "simple": [320, 216_330],
    "dense": [320, 2_769_024, 1_290],
    "deep": [320, 18_496, 1_179_776, 1_290],
    "stages": [320, 9_248, 18_496, 36_928, 819_712, 5_130],
}


@pytest.fixture(scope="module", params=ALL_NETWORKS.values(), ids=ALL_NETWORKS)
def model(request):
    return request.param()


def run(model: keras.Model, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Call every layer in turn; return what each gives, by the layer's name."""
    graph = read_graph(model)
    values, outputs = {graph.inputs[0]: image}, {}
    for call in graph.calls:
        values.update(zip(call.outputs, call(values), strict=True))
        outputs[call.name] = values[call.outputs[0]]
    return outputs


def test_shapes_and_weights_are_those_of_the_running_network(model):
    outputs = run(model, torch.zeros((1, *model.input_shape[1:])))
    description = describe(model)
    assert {layer.name: layer.output_shape for layer in description.layers} == {
        name: tuple(output.shape[1:]) for name, output in outputs.items()
    }
    # A shared layer's weights are listed at each use.
    listed = {layer.name.partition(":")[0]: layer.weight_shapes for layer in description.layers}
    assert [shape for shapes in listed.values() for shape in shapes] == [
        tuple(w.shape) for w in model.weights
    ]


def test_calls_end_in_the_models_own_output(model):
    image = torch.tensor(
        np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])), dtype=torch.float32
    )
    *_, last = run(model, image).values()
    expected = model(image, training=False)
    torch.testing.assert_close(last, expected, rtol=1e-6, atol=1e-7)


def test_parameters_add_up_to_keras_count(model):
    description = describe(model)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert description.parameters == model.count_params()
    assert description.trainable_parameters == trainable
    assert sum(layer.parameters for layer in description.layers) == model.count_params()


def test_every_layer_has_its_arithmetic(model):
    unknown = [
        layer.name
        for layer in describe(model).layers
        if "no arithmetic known" in layer.arithmetic[0] or "Keras reports" in layer.arithmetic[0]
    ]
    # An operation outside a layer (x * 0.5) has shapes, but no arithmetic.
    assert len(unknown) == (1 if model.name == "nested" else 0)


@pytest.mark.parametrize(("name", "parameters"), EXERCISE.items(), ids=EXERCISE)
def test_parameters_are_those_of_the_exercise(name, parameters):
    layers = describe(build(name)).layers
    assert [layer.parameters for layer in layers if layer.parameters] == parameters


def test_arithmetic_of_the_first_network():
    conv, flatten, dense = describe(build("simple")).layers
    assert "height and width: ⌊(28 − 3)/1⌋ + 1 = 26" in conv.arithmetic
    assert "parameters: 3·3·1·32 + 32 = 320" in conv.arithmetic
    assert "length: 26·26·32 = 21,632" in flatten.arithmetic
    assert "parameters: 21,632·10 + 10 = 216,330" in dense.arithmetic


def seen_pixels(model: keras.Model, name: str) -> list[tuple[int, int]]:
    """Find the rows and columns of the image that a layer's middle position sees, by gradients."""
    first = describe(model).channels_first
    shape = (48, *model.input_shape[1:])
    image = torch.tensor(np.random.default_rng(1).normal(size=shape), dtype=torch.float32)
    output = run(model, image.requires_grad_())[name]
    if output.ndim == 4:
        output = output.movedim(1, -1) if first else output
        output = output[:, output.shape[1] // 2, output.shape[2] // 2]
    (gradient,) = torch.autograd.grad(output.sum(), image)
    touched = (gradient.movedim(1, -1) if first else gradient).abs().amax((0, -1)) > 0  # (h, w)
    return [tuple(np.flatnonzero(touched.any(axis).numpy())[[0, -1]].tolist()) for axis in (1, 0)]


def image_axes(shape: tuple[int, ...], first: bool) -> tuple[int, ...]:
    if len(shape) != 3:
        return 1, 1
    return shape[1:] if first else shape[:2]


def expected_pixels(layer, image, first) -> list[tuple[int, int]]:
    """Place the described field at the middle position, cut to the image."""
    lengths = image_axes(layer.output_shape, first)
    extents = []
    for axis, field in enumerate(layer.fields):
        start = field.start + (lengths[axis] // 2) * field.jump
        extents.append((int(max(0, start)), int(min(image[axis], start + field.size) - 1)))
    return extents


FIELDS = {
    "deep": ("max_pooling2d_1", "flatten_1"),
    "stages": ("conv2d_4", "max_pooling2d_2", "flatten_1"),
    "strided": None,
    "dilated": None,
    "residual": None,
    "separable": None,
    "channels_first": None,
}


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_field_is_where_gradients_arrive(name):
    keras.utils.set_random_seed(0)
    model = ALL_NETWORKS[name]()
    description = describe(model)
    layers = [
        layer
        for layer in description.layers
        if layer.fields
        and layer.type != "Softmax"
        and layer.name in (FIELDS[name] or [layer.name])
        and not (layer.type == "Dense" and len(layer.output_shape) == 1)
    ]
    image, first = image_axes(description.input_shape, description.channels_first), description.channels_first
    expected = {layer.name: expected_pixels(layer, image, first) for layer in layers}
    assert {layer.name: seen_pixels(model, layer.name) for layer in layers} == expected


def test_json_has_the_promised_keys():
    description = json.loads(json.dumps(describe(build("deep")).to_json()))
    assert description["parameters"] == 1_199_882
    assert {
        "name", "type", "input_shape", "output_shape", "weight_shapes", "parameters", "macs",
        "receptive_field", "arithmetic",
    } <= description["layers"][0].keys()  # fmt: skip
    assert description["layers"][0]["weight_shapes"] == [[3, 3, 1, 32], [32]]
    assert description["layers"][0]["output_shape"] == [26, 26, 32]
    assert description["layers"][0]["receptive_field"] == [3, 3]
    assert description["layers"][0]["macs"] == 26 * 26 * 32 * 9


def test_nested_model_is_opened_and_shared_weights_are_counted_once():
    layers = {layer.name: layer for layer in describe(nested()).layers}
    assert layers["block/inner"].parameters == 3 * 3 * 4 * 4 + 4
    assert layers["block/inner:2"].parameters == 0
    assert layers["block/inner:2"].receptive_field == (7, 7)
    assert "shared" in layers["block/inner:2"].arithmetic[-1]


def test_image_of_any_size_leaves_lengths_open():
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(image)
    x = keras.layers.MaxPooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    description = describe(model)
    conv, pool, pooled, dense = description.layers
    assert conv.output_shape == (None, None, 8)
    assert (conv.parameters, conv.macs, description.macs) == (224, None, None)
    assert pool.receptive_field == (4, 4)
    assert pooled.receptive_field is None
    assert dense.macs == 16


def test_layer_of_ones_own_gets_keras_shapes():
    class Conv2D(keras.layers.Conv2D):
        """A layer that only looks like Keras's."""

    model = keras.Sequential([keras.Input((8, 8, 1)), Conv2D(2, 3), keras.layers.Flatten()])
    own, flatten = describe(model).layers
    assert own.arithmetic == ("no arithmetic known for Conv2D; shapes and weights are as Keras reports them",)
    assert (own.output_shape, own.parameters, own.macs, own.receptive_field) == ((6, 6, 2), 20, None, None)
    assert flatten.receptive_field is None


def test_layer_changed_by_hand_shows_only_keras_numbers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.layers[0].enable_lora(rank=2)
    (dense,) = describe(model).layers
    assert dense.arithmetic[0].startswith("Keras reports output 3 and weights ")
    assert dense.macs is None


def test_two_inputs_have_no_common_receptive_field():
    a, b = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    model = keras.Model([a, b], keras.layers.Add()([keras.layers.Conv2D(1, 3, padding="same")(a), b]))
    conv, add = describe(model).layers
    assert conv.receptive_field == (3, 3)
    assert add.receptive_field is None
    assert add.input_shape == ((8, 8, 1), (8, 8, 1))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    "model",
    [Subclassed(name="own"), keras.Sequential([keras.layers.Dense(2)])],
    ids=["subclassed", "no input shape"],
)
def test_model_without_a_graph_is_refused(model):
    with pytest.raises(UsageError, match="Expected a Sequential or functional model that knows its input"):
        describe(model)


def test_unknown_layer_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'conv2d_2'"):
        read_graph(build("deep")).call("conv2d_3")


def test_layer_number_out_of_range():
    with pytest.raises(UsageError, match="Expected a layer number below 3, got 7"):
        read_graph(build("simple")).call(7)


def test_layouts_name_the_shapes_that_torch_would_hold():
    model = build("deep")
    lines = explain_kernel_layouts(describe(model))
    conv = torch.nn.Conv2d(32, 64, 3)
    assert f"conv2d_2: Keras (3, 3, 32, 64), torch {tuple(conv.weight.shape)}" in "\n".join(lines)
    assert "dense_1: Keras (9216, 128), torch (128, 9216)" in "\n".join(lines)
    assert "row (y·12 + x)·64 + c" in lines[-1]


def test_layouts_transpose_as_they_say():
    """Follow the printed transpositions and find the same numbers as Keras."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 6, 6, 2)).astype("float32")
    separable = keras.layers.SeparableConv2D(3, 3, depth_multiplier=2, use_bias=False)
    expected = separable(image).detach().numpy()
    depthwise, pointwise = (np.asarray(weight) for weight in separable.get_weights())
    x = torch.tensor(image.transpose(0, 3, 1, 2))
    x = torch.conv2d(x, torch.tensor(depthwise.reshape(3, 3, 1, 4).transpose(3, 2, 0, 1)), groups=2)
    x = torch.conv2d(x, torch.tensor(pointwise.transpose(3, 2, 0, 1)))
    np.testing.assert_allclose(x.numpy().transpose(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-6)
    model = keras.Sequential([keras.Input((6, 6, 2)), separable])
    lines = explain_kernel_layouts(describe(model))
    assert "keras_kernel.reshape(3, 3, 1, 4).transpose(3, 2, 0, 1)" in lines[2]
    assert "keras_kernel.transpose(3, 2, 0, 1)" in lines[3]


def test_no_layouts_without_kernels():
    assert explain_kernel_layouts(describe(keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]))) == ()


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50V2", "DenseNet121", "EfficientNetB0"])
def test_published_architectures_are_described(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    description = describe(model)
    assert description.parameters == model.count_params()
    assert not [layer.name for layer in description.layers if "Keras reports" in layer.arithmetic[0]]


def test_a_nested_model_that_does_more_than_its_graph_stays_one_call():
    """Its layers one by one would not give what the network gives."""
    layers = keras.layers
    inner = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, name="inside")], name="inner")
    model = keras.Sequential([keras.Input((6, 6, 1)), inner, layers.Flatten(name="flat")])
    assert [call.name for call in read_graph(model).calls] == ["inner/inside", "flat"]
    inner.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert [call.name for call in read_graph(model).calls] == ["inner", "flat"]
    image = np.ones((6, 6, 1), "float32")
    shown = feature_maps(model, image)[-1].values
    np.testing.assert_allclose(shown, np.asarray(model(image[None]).detach())[0], rtol=1e-6)
