"""Every known layer and option gives what Keras gives: values, gradients, statistics."""

from itertools import combinations, product

import keras
import numpy as np
import pytest
import torch
from covering import case_id, covering
from lowering_cases import assert_parity, built, image_batch, scrambled

from convscope.arithmetic.layers import LAYERS
from convscope.lowering import emit, lower, optimise
from convscope.lowering.layers import base

L = keras.layers
IMAGE = (7, 8, 4)
FIRST = {"data_format": "channels_first"}

CASES = {
    "conv": ([lambda: L.Conv2D(6, 3)], IMAGE),
    "conv relu": ([lambda: L.Conv2D(6, 3, activation="relu")], IMAGE),
    "conv tanh": ([lambda: L.Conv2D(6, 3, activation="tanh")], IMAGE),
    "conv no bias": ([lambda: L.Conv2D(6, 3, use_bias=False, activation="relu")], IMAGE),
    "conv same": ([lambda: L.Conv2D(6, 3, padding="same")], IMAGE),
    "conv same even kernel": ([lambda: L.Conv2D(6, (2, 4), padding="same")], IMAGE),
    "conv 1×1 strides": ([lambda: L.Conv2D(6, 1, strides=2, activation="relu")], (9, 8, 3)),
    "conv 1×1 strides same": ([lambda: L.Conv2D(16, 1, strides=(3, 2), padding="same")], (9, 8, 1)),
    "conv 1×1 strides channels first": ([lambda: L.Conv2D(6, 1, strides=2, **FIRST)], (3, 9, 8)),
    "conv same strides": ([lambda: L.Conv2D(6, 3, strides=2, padding="same", activation="relu")], IMAGE),
    "conv strides": ([lambda: L.Conv2D(6, (3, 2), strides=(2, 3))], IMAGE),
    "conv dilation": ([lambda: L.Conv2D(6, 3, dilation_rate=2)], IMAGE),
    "conv dilation same": ([lambda: L.Conv2D(6, (3, 2), dilation_rate=(2, 3), padding="same")], IMAGE),
    "conv groups": ([lambda: L.Conv2D(6, 3, groups=2, activation="relu")], IMAGE),
    "conv channels first": ([lambda: L.Conv2D(6, 3, activation="relu", **FIRST)], (4, 7, 8)),
    "conv one channel": ([lambda: L.Conv2D(6, 3, activation="relu")], (9, 8, 1)),
    "depthwise": ([lambda: L.DepthwiseConv2D(3, activation="relu")], IMAGE),
    "depthwise multiplier": ([lambda: L.DepthwiseConv2D(3, 2, "same", depth_multiplier=3)], IMAGE),
    "depthwise dilation": ([lambda: L.DepthwiseConv2D(2, dilation_rate=2, use_bias=False)], IMAGE),
    "depthwise channels first": ([lambda: L.DepthwiseConv2D(3, **FIRST)], (4, 7, 8)),
    "separable": ([lambda: L.SeparableConv2D(5, 3, activation="relu")], IMAGE),
    "separable same": ([lambda: L.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2)], IMAGE),
    "separable channels first": ([lambda: L.SeparableConv2D(5, 3, use_bias=False, **FIRST)], (4, 7, 8)),
    "dense": ([lambda: L.Dense(5)], (6,)),
    "dense relu": ([lambda: L.Dense(5, activation="relu")], (6,)),
    "dense softmax": ([lambda: L.Dense(5, activation="softmax")], (6,)),
    "dense sigmoid": ([lambda: L.Dense(1, activation="sigmoid")], (6,)),
    "dense no bias": ([lambda: L.Dense(5, use_bias=False)], (6,)),
    "dense rank 4": ([lambda: L.Dense(5, activation="relu")], IMAGE),
    "flatten": ([L.Flatten, lambda: L.Dense(3)], IMAGE),
    "flatten channels first": ([lambda: L.Flatten(**FIRST), lambda: L.Dense(3)], (4, 7, 8)),
    "reshape": ([lambda: L.Reshape((4, -1))], IMAGE),
    "max pool": ([lambda: L.MaxPooling2D(2)], IMAGE),
    "max pool odd": ([lambda: L.MaxPooling2D(2)], (7, 9, 4)),
    "max pool overlapping": ([lambda: L.MaxPooling2D(3, strides=2)], IMAGE),
    "max pool same": ([lambda: L.MaxPooling2D(3, strides=2, padding="same")], IMAGE),
    "max pool channels first": ([lambda: L.MaxPooling2D((2, 3), **FIRST)], (4, 7, 8)),
    "average pool": ([lambda: L.AveragePooling2D(2)], IMAGE),
    "average pool same": ([lambda: L.AveragePooling2D(3, strides=1, padding="same")], IMAGE),
    "average pool same lopsided": ([lambda: L.AveragePooling2D(3, strides=2, padding="same")], (8, 8, 4)),
    "average pool channels first": ([lambda: L.AveragePooling2D(2, padding="same", **FIRST)], (4, 7, 8)),
    "global average": ([L.GlobalAveragePooling2D], IMAGE),
    "global max": ([lambda: L.GlobalMaxPooling2D(keepdims=True)], IMAGE),
    "global average channels first": ([lambda: L.GlobalAveragePooling2D(keepdims=True, **FIRST)], (4, 7, 8)),
    "batch norm": ([lambda: L.BatchNormalization(momentum=0.7)], IMAGE),
    "batch norm plain": ([lambda: L.BatchNormalization(center=False, scale=False)], IMAGE),
    "batch norm scale only": ([lambda: L.BatchNormalization(center=False, epsilon=0.1)], (6,)),
    "batch norm axis 1": ([lambda: L.BatchNormalization(axis=1)], IMAGE),
    "batch norm frozen": ([lambda: L.BatchNormalization(trainable=False)], IMAGE),
    "conv then batch norm": (
        [lambda: L.Conv2D(6, 3, use_bias=False), L.BatchNormalization, lambda: L.Activation("relu")],
        IMAGE,
    ),
    "conv bias then batch norm": ([lambda: L.Conv2D(6, 3), L.BatchNormalization, L.ReLU], IMAGE),
    "depthwise then batch norm": (
        [lambda: L.DepthwiseConv2D(3, depth_multiplier=2), L.BatchNormalization],
        IMAGE,
    ),
    "dense then batch norm": ([lambda: L.Dense(5), L.BatchNormalization, L.ReLU], (6,)),
    "conv then frozen batch norm": (
        [lambda: L.Conv2D(6, 3), lambda: L.BatchNormalization(trainable=False), L.ReLU],
        IMAGE,
    ),
    "conv then batch norm channels first": (
        [lambda: L.Conv2D(6, 3, **FIRST), lambda: L.BatchNormalization(axis=1), L.ReLU],
        (4, 7, 8),
    ),
    "layer norm": ([L.LayerNormalization], IMAGE),
    "layer norm axes": ([lambda: L.LayerNormalization(axis=(1, 2, 3), center=False)], IMAGE),
    "layer norm offset only": ([lambda: L.LayerNormalization(scale=False)], IMAGE),
    "layer norm of sixteens": ([L.LayerNormalization], (5, 32)),
    "group norm": ([lambda: L.GroupNormalization(2)], IMAGE),
    "group norm of all": ([lambda: L.GroupNormalization(1)], (4, 3, 16)),
    "dense gelu": ([lambda: L.Dense(32, activation="gelu"), lambda: L.Dense(3)], (4, 6)),
    "dense silu no bias": ([lambda: L.Dense(16, activation="silu", use_bias=False)], (6,)),
    "conv gelu": ([lambda: L.Conv2D(16, 3, activation="gelu")], IMAGE),
    "group norm of each channel": ([lambda: L.GroupNormalization(-1, center=False)], IMAGE),
    "group norm channels first": ([lambda: L.GroupNormalization(2, axis=1, scale=False)], (4, 7, 8)),
    "group norm of a row": ([lambda: L.GroupNormalization(2, epsilon=0.1)], (6,)),
    "conv relu clipped": ([lambda: L.Conv2D(6, 3), lambda: L.ReLU(0.5)], IMAGE),
    "conv frozen batch norm clipped": (
        [
            lambda: L.DepthwiseConv2D(3),
            lambda: L.BatchNormalization(trainable=False),
            lambda: L.ReLU(0.5),
        ],
        IMAGE,
    ),
    "relu max": ([lambda: L.ReLU(max_value=1.0)], IMAGE),
    "relu 6": ([lambda: L.ReLU(6.0)], IMAGE),
    "relu slope": ([lambda: L.ReLU(negative_slope=0.3)], IMAGE),
    "relu threshold": ([lambda: L.ReLU(max_value=2.0, negative_slope=0.2, threshold=0.5)], IMAGE),
    "leaky relu": ([lambda: L.LeakyReLU(negative_slope=0.1)], IMAGE),
    "prelu": ([L.PReLU], IMAGE),
    "prelu shared": ([lambda: L.PReLU(shared_axes=[1, 2])], IMAGE),
    "elu": ([lambda: L.ELU(alpha=0.5)], IMAGE),
    "softmax": ([L.Softmax], (6,)),
    "softmax axis": ([lambda: L.Softmax(axis=1)], IMAGE),
    "zero padding": ([lambda: L.ZeroPadding2D(((1, 2), (0, 3)))], IMAGE),
    "zero padding channels first": ([lambda: L.ZeroPadding2D((1, 2), **FIRST)], (4, 7, 8)),
    "cropping": ([lambda: L.Cropping2D(((1, 2), (0, 3)))], IMAGE),
    "cropping channels first": ([lambda: L.Cropping2D((1, 2), **FIRST)], (4, 7, 8)),
    "center crop": ([lambda: L.CenterCrop(4, 5)], IMAGE),
    "center crop channels first": ([lambda: L.CenterCrop(4, 3, **FIRST)], (4, 7, 8)),
    "resizing": ([lambda: L.Resizing(4, 11)], IMAGE),
    "resizing nearest": ([lambda: L.Resizing(4, 11, interpolation="nearest")], IMAGE),
    "resizing smoothly": ([lambda: L.Resizing(4, 5, interpolation="bilinear", antialias=True)], IMAGE),
    "resizing cropped": ([lambda: L.Resizing(4, 5, crop_to_aspect_ratio=True)], IMAGE),
    "resizing padded": ([lambda: L.Resizing(9, 12, pad_to_aspect_ratio=True, fill_value=0.5)], IMAGE),
    "resizing channels first": ([lambda: L.Resizing(4, 5, **FIRST)], (4, 7, 8)),
    "upsampling nearest": ([lambda: L.UpSampling2D((2, 3))], IMAGE),
    "upsampling bilinear": ([lambda: L.UpSampling2D((2, 3), interpolation="bilinear")], IMAGE),
    "upsampling channels first": ([lambda: L.UpSampling2D(2, **FIRST)], (4, 7, 8)),
    "rescaling": ([lambda: L.Rescaling(1 / 255, offset=-0.5)], IMAGE),
    "rescaling that adds only": ([lambda: L.Rescaling(1.0, offset=2.0)], IMAGE),
    "rescaling by nothing": ([lambda: L.Rescaling(1.0)], IMAGE),
    "rescaling per channel": ([lambda: L.Rescaling([0.1, 0.2, 0.3, 0.4])], IMAGE),
    "normalization": ([lambda: L.Normalization(mean=[1.0, 2, 3, 4], variance=[0.5, 1, 2, 4])], IMAGE),
    "normalization inverse": ([lambda: L.Normalization(mean=3.0, variance=2.0, invert=True)], IMAGE),
    "relu before max pool": ([lambda: L.Conv2D(6, 3, activation="relu"), lambda: L.MaxPooling2D(2)], IMAGE),
    "leaky relu before max pool": ([lambda: L.Conv2D(6, 3), L.LeakyReLU, L.MaxPooling2D], IMAGE),
    "gelu before max pool": ([lambda: L.Conv2D(6, 3, activation="gelu"), L.MaxPooling2D], IMAGE),
    "relu before average pool": (
        [lambda: L.Conv2D(6, 3, activation="relu"), lambda: L.AveragePooling2D(2)],
        IMAGE,
    ),
}

ACTIVATIONS = [
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "softsign",
    "soft_shrink",
    "sparse_plus",
    "squareplus",
    "tanh",
    "tanh_shrink",
    "hard_tanh",
    "hard_shrink",
    "sigmoid",
    "hard_sigmoid",
    "log_sigmoid",
    "sparse_sigmoid",
    "hard_silu",
    "exponential",
    "softmax",
    "log_softmax",
    "linear",
]


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def training(request):
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_layer_in_float32(case, training):
    layers, shape = CASES[case]
    assert_parity(built([make() for make in layers], shape), [image_batch((3, *shape))], training)


@pytest.mark.parametrize("case", [name for name in CASES if "softmax" not in name])
def test_layer_in_bfloat16(case):
    layers, shape = CASES[case]
    model = built([make() for make in layers], shape)
    # A ReLU behind rounded and normalized values: those near zero may change their sign.
    gradient = 0.1 if "batch norm" in case and len(layers) > 2 else None
    assert_parity(model, [image_batch((3, *shape))], True, "bfloat16", gradient=gradient)


@pytest.mark.parametrize(
    "case", ["conv relu", "conv same strides", "max pool odd", "batch norm", "dense rank 4"]
)
def test_a_batch_of_one(case, training):
    layers, shape = CASES[case]
    assert_parity(built([make() for make in layers], shape), [image_batch((1, *shape))], training)


@pytest.mark.parametrize("spoilt", ["image", "kernel", "bias"])
@pytest.mark.parametrize("case", ["conv relu", "conv relu clipped", "conv one channel", "depthwise"])
def test_what_is_not_a_number_stays_none_behind_a_relu(case, spoilt, training):
    layers, shape = CASES[case]
    model, images = built([make() for make in layers], shape), image_batch((3, *shape))
    if spoilt == "image":
        images[1, 3, 3, 0] = np.nan
    else:
        weight = getattr(model.layers[0], spoilt)
        values = weight.numpy()
        values[..., 0] = np.nan
        weight.assign(values)
    program, _ = optimise(lower(model), training=training, deterministic=True)
    with torch.set_grad_enabled(training):
        found = emit(program, model)(torch.from_numpy(images), training=training)
    assert model(images).isnan().any()
    assert found.isnan().any()


def test_statistics_of_a_single_element(training):
    # Keras's variance of one element is zero, where the unbiased one would be 0/0.
    model = built([L.BatchNormalization()], (5,))
    assert_parity(model, [image_batch((1, 5))], training, gradient=1e-3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_function(name):
    assert_parity(built([L.Activation(name)], IMAGE), [image_batch((2, *IMAGE))], training=False)


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"])
def test_merging(kind, training):
    inputs = [keras.Input(IMAGE), keras.Input(IMAGE)]
    model = keras.Model(inputs, getattr(L, kind)()(inputs))
    assert_parity(model, [image_batch((2, *IMAGE), seed) for seed in (0, 1)], training)


def test_merging_of_several_ranks():
    inputs = [keras.Input(IMAGE), keras.Input((4,)), keras.Input((1, 1, 4))]
    model = keras.Model(inputs, L.Add()(inputs))
    shapes = [(2, *IMAGE), (2, 4), (2, 1, 1, 4)]
    assert_parity(model, [image_batch(shape) for shape in shapes], training=False)


@pytest.mark.parametrize("axis", [1, -1])
def test_concatenation(axis):
    shapes = [(3, 8, 4), (5, 8, 4)] if axis == 1 else [(7, 8, 2), (7, 8, 3)]
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, L.Concatenate(axis=axis)(inputs))
    assert_parity(model, [image_batch((2, *shape)) for shape in shapes], training=True)


def test_arithmetic_with_operators():
    x = keras.Input((4,))
    y = keras.Input((4,))
    model = keras.Model([x, y], 2.0 - (x * 3.0 + y) * (x - y) - 1.0)
    assert_parity(model, [image_batch((2, 4)), image_batch((2, 4), 1)], training=True)


def test_unsigned_bytes_are_rescaled():
    image = keras.Input(IMAGE)
    model = scrambled(keras.Model(image, L.Conv2D(3, 3)(L.Rescaling(1 / 255)(image))))
    pixels = (image_batch((2, *IMAGE)) * 40 + 128).clip(0, 255).astype("uint8")
    assert_parity(model, [pixels], training=True)


SIZES = [(6, 6), (7, 9), (5, 12)]
ORDERS = ["channels_last", "channels_first"]
CONVOLUTION = {
    "size": SIZES,
    "kernel": [1, 2, 3, (3, 2), (5, 1)],
    "padding": ["valid", "same"],
    "step": [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)],  # stride and dilation: Keras refuses both together
    "data_format": ORDERS,
    "channels": [(1, 4, 1), (4, 6, 1), (4, 6, 2)],  # inner, filters, groups
    "training": [False, True],
}
POOLING = {
    "size": SIZES,
    "pool": [1, 2, 3, (2, 3), (3, 1)],
    "strides": [None, 1, 2, 3],
    "padding": ["valid", "same"],
    "data_format": ORDERS,
    "kind": ["MaxPooling2D", "AveragePooling2D"],
    "precision": ["float32", "bfloat16"],
}


def sweep(settings):
    """Try every pair of settings by default, and every three of them where there is time."""
    pairs = covering(settings, 2)
    triples = [case for case in covering(settings, 3) if case not in pairs]
    rare = [pytest.param(case, marks=pytest.mark.slow) for case in triples]
    return pytest.mark.parametrize("case", [*pairs, *rare], ids=[case_id(case) for case in pairs + triples])


@sweep(CONVOLUTION)
def test_convolution_sweep(case):
    (inner, filters, groups), (strides, dilation) = case["channels"], case["step"]
    size, kernel, data_format = case["size"], case["kernel"], case["data_format"]
    height = kernel if isinstance(kernel, int) else max(kernel)
    if case["padding"] == "valid" and (height - 1) * dilation + 1 > min(size):
        size = (13, 14)
    layer = L.Conv2D(
        filters, kernel, strides, case["padding"], data_format, dilation, groups, activation="relu"
    )
    shape = (*size, inner) if data_format == "channels_last" else (inner, *size)
    assert_parity(built([layer], shape), [image_batch((2, *shape))], case["training"])


@sweep(POOLING)
def test_pooling_sweep(case):
    # The convolution in front makes the pooled images bfloat16 where that is asked for.
    data_format, kind, precision = case["data_format"], case["kind"], case["precision"]
    shape = (*case["size"], 3) if data_format == "channels_last" else (3, *case["size"])
    layers = [
        L.Conv2D(4, 1, data_format=data_format, activation="relu"),
        getattr(L, kind)(case["pool"], case["strides"], case["padding"], data_format=data_format),
    ]
    model = built(layers, shape)
    # Where rounding makes two elements equal, the gradient goes to the other one.
    gradient = 0.4 if precision == "bfloat16" and kind == "MaxPooling2D" else None
    assert_parity(model, [image_batch((2, *shape))], True, precision, gradient=gradient)


@pytest.mark.parametrize("strength", [2, 3])
def test_a_sweep_holds_every_combination(strength):
    cases = covering(POOLING, strength)
    for names in combinations(POOLING, strength):
        wanted = set(product(*(POOLING[name] for name in names)))
        assert {tuple(case[name] for name in names) for case in cases} == wanted


def test_moving_statistics_do_not_depend_on_what_memory_held_before(monkeypatch):
    """torch.batch_norm weighs the statistics it is given by zero, and zero times NaN is NaN."""
    model = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.BatchNormalization()])
    network = emit(lower(model), model)
    full_of_nan = torch.full_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: full_of_nan(tensor, float("nan")))
    network(torch.rand(8, 4, 4, 2), training=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state.values())


def test_every_layer_that_is_lowered_has_a_record():
    assert {kind.__name__ for kind in base._READERS} <= set(LAYERS)
