"""Every activation function of Keras, in every position, becomes operations that give what Keras gives."""

import inspect

import keras
import numpy as np
import pytest
import torch

from convscope.lowering import emit, lower, optimise

L = keras.layers
# All that keras.activations has; threshold cannot be an activation, it needs two numbers.
NAMES = [
    name
    for name, thing in vars(keras.activations).items()
    if inspect.isfunction(thing) and name not in ("get", "serialize", "deserialize", "threshold")
]
# These look at several elements, or change the shape: Keras's own function, between native operations.
BY_FUNCTION = {"glu", "sparsemax"}


def chain(shape, layer):
    return keras.Sequential([keras.Input(shape), layer])


def called(function):
    entering = keras.Input((4, 6))
    return keras.Model(entering, function(entering))


POSITIONS = {
    "Activation": lambda a: chain((4, 6), L.Activation(a)),
    "its function": lambda a: chain((4, 6), L.Activation(getattr(keras.activations, a))),
    "Dense": lambda a: chain((6,), L.Dense(4, activation=a)),
    "EinsumDense": lambda a: chain((6, 2), L.EinsumDense("abc,cd->abd", (None, 4), activation=a)),
    "EinsumDense of tokens": lambda a: chain((6, 2), L.EinsumDense("abc,bd->adc", (4, 2), activation=a)),
    "Conv1D": lambda a: chain((6, 2), L.Conv1D(4, 3, activation=a)),
    "Conv2D": lambda a: chain((6, 6, 2), L.Conv2D(4, 3, activation=a)),
    "Conv3D": lambda a: chain((4, 4, 4, 2), L.Conv3D(4, 3, activation=a)),
    "DepthwiseConv1D": lambda a: chain((6, 2), L.DepthwiseConv1D(3, activation=a)),
    "DepthwiseConv2D": lambda a: chain((6, 6, 2), L.DepthwiseConv2D(3, activation=a)),
    "SeparableConv1D": lambda a: chain((6, 2), L.SeparableConv1D(4, 3, activation=a)),
    "SeparableConv2D": lambda a: chain((6, 6, 2), L.SeparableConv2D(4, 3, activation=a)),
    "Conv1DTranspose": lambda a: chain((4, 2), L.Conv1DTranspose(4, 3, activation=a)),
    "Conv2DTranspose": lambda a: chain((4, 4, 2), L.Conv2DTranspose(4, 3, activation=a)),
    "Conv3DTranspose": lambda a: chain((3, 3, 3, 2), L.Conv3DTranspose(4, 3, activation=a)),
    "Lambda": lambda a: chain((4, 6), L.Lambda(getattr(keras.activations, a))),
}


def held_against_keras(model):
    """Compare values and the inputs' gradients; return the kinds of the program's ops."""
    program = lower(model)
    network = emit(program, model)
    images = np.random.default_rng(1).normal(0, 2, (3, *model.input_shape[1:])).astype("float32")
    found = []
    for run in (network, model):
        entering = torch.tensor(images, requires_grad=True)
        result = run(entering)
        result.square().sum().backward()
        found.append((result.detach(), entering.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
    return {op.kind for op in program}


# Read from their own `call`, as Conv1D and Conv2DTranspose are.
ALIKE = ("Conv3D", "DepthwiseConv1D", "SeparableConv1D", "Conv1DTranspose", "Conv3DTranspose")


@pytest.mark.parametrize(
    "position",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in POSITIONS],
)
def test_no_activation_of_a_layer_runs_as_a_keras_layer(position):
    for name in NAMES:
        kinds = held_against_keras(POSITIONS[position](name))
        assert "KerasCall" not in kinds, name


def test_as_functions_they_are_activations_too():
    for name in NAMES:
        function = getattr(keras.ops, name, None)
        if function is not None:
            kinds = held_against_keras(called(function))
            assert kinds == ({"Operation"} if name in BY_FUNCTION else {"Activate"}), name


SETTINGS = {
    "gelu": lambda x: keras.ops.gelu(x, approximate=False),
    "gelu, approximate": lambda x: keras.ops.gelu(x, approximate=True),
    "relu": lambda x: keras.activations.relu(x, negative_slope=0.1, max_value=1.5, threshold=0.3),
    "relu, nothing": lambda x: keras.activations.relu(x, max_value=0.0),
    "leaky relu": lambda x: keras.ops.leaky_relu(x, negative_slope=0.4),
    "elu": lambda x: keras.ops.elu(x, alpha=0.5),
    "celu": lambda x: keras.ops.celu(x, alpha=0.5),
    "softmax": lambda x: keras.ops.softmax(x, axis=1),
    "log softmax": lambda x: keras.ops.log_softmax(x, axis=1),
    "exp": keras.ops.exp,
}


@pytest.mark.parametrize("function", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_function_s_settings_are_kept(function):
    assert held_against_keras(called(function)) == {"Activate"}


OTHERS = {
    "soft shrink": lambda x: keras.ops.soft_shrink(x, threshold=0.2),
    "squareplus": lambda x: keras.ops.squareplus(x, b=2),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS.keys())
def test_a_setting_that_is_not_known_is_left_to_keras_s_function(function):
    assert held_against_keras(called(function)) == {"Operation"}


def test_a_function_of_whole_numbers_keeps_its_type():
    entering = keras.Input((4,), dtype="int32")
    model = keras.Model(entering, keras.ops.relu(entering))
    numbers = torch.tensor([[-1, 0, 1, 2]], dtype=torch.int32)
    assert torch.equal(emit(lower(model), model)(numbers), model(numbers))


def test_a_call_may_name_the_functions_that_keras_s_symbols_do_not_take():
    class Block(L.Layer):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(6)

        def call(self, x):
            x = keras.activations.mish(self.dense(x))
            return keras.activations.sparsemax(keras.activations.hard_silu(x))

    kinds = held_against_keras(chain((4, 6), Block()))
    assert kinds == {"Dense", "Activate", "Operation"}


def test_a_softmax_that_is_called_as_a_function_leaves_the_program_for_the_loss():
    entering = keras.Input((6,))
    model = keras.Model(entering, keras.ops.softmax(L.Dense(3)(keras.ops.relu(L.Dense(4)(entering)))))
    program, _ = optimise(lower(model), precision="float32")
    assert [op.kind for op in program] == ["Dense", "Dense"]
    assert emit(program, model).output_activation == "softmax"
