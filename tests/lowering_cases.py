"""Compare a lowered network with Keras itself: forward values, gradients, statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import torch

from convscope.lowering import emit, lower, optimise
from convscope.lowering.ir import Program
from convscope.lowering.processor import describe_bfloat16, takes_bfloat16

# Relative to the largest element; bfloat16 in the Euclidean norm, because single elements round by chance.
FORWARD_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 2e-2


def require_precision_here(precision: str, training: bool = True) -> None:
    """Skip a test that needs bfloat16 convolutions where the processor has none."""
    if precision == "bfloat16" and not takes_bfloat16(training):
        pytest.skip(f"{describe_bfloat16(training)}: nothing to compare in bfloat16")


@dataclass
class Pass:
    """What one forward and backward pass gives."""

    outputs: list[np.ndarray]
    input_gradients: list[np.ndarray | None]
    weight_gradients: dict[str, np.ndarray | None]
    state: dict[str, np.ndarray]


def image_batch(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Random images around zero, so that every branch of an activation is taken.

    They, and the weights below, are exact in bfloat16: otherwise a rounded sum near zero may change its sign,
    and with it the derivative of a ReLU, which says nothing about the computation.
    """
    return rounded(np.random.default_rng(seed).normal(size=shape))


def built(layers: Sequence[keras.layers.Layer], shape: Sequence[int]) -> keras.Model:
    """A sequential model whose variables all differ from their neutral start."""
    model = keras.Sequential([keras.Input(tuple(shape)), *layers])
    return scrambled(model)


def small(*layers: keras.layers.Layer, channels: int = 16) -> keras.Model:
    """Build a classifier of three classes that begins with layers, for images of nine by eight."""
    return built([*layers, keras.layers.Flatten(), keras.layers.Dense(3)], (9, 8, channels))


def optimised(model: keras.Model, **settings: Any) -> Program:
    """Lower a model and run the passes, in float32 and by fixed rules unless the settings say otherwise."""
    return optimise(lower(model), **{"deterministic": True, "precision": "float32", **settings})[0]


def rounded(values: np.ndarray) -> np.ndarray:
    """Round to what bfloat16 can hold."""
    return torch.tensor(values, dtype=torch.float32).bfloat16().float().numpy()


def scrambled(model: keras.Model, seed: int = 1) -> keras.Model:
    """Give every variable random values; variances stay positive."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if "seed" in variable.path or variable.dtype != "float32":
            continue
        values = generator.uniform(-0.5, 0.5, variable.shape)
        if "variance" in variable.path or "gamma" in variable.path:
            values = np.abs(values) + 0.5
        variable.assign(rounded(values))
    return model


@contextmanager
def without_onednn() -> Iterator[None]:
    """Let torch compute by its own loops; its public switch warns of another one."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def keras_pass(model: keras.Model, inputs: Sequence[np.ndarray], training: bool) -> Pass:
    """Run Keras and put its state back, so that the other side starts from the same."""
    before = {v.path: v.numpy().copy() for v in model.non_trainable_variables}
    tensors = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
    # Not by oneDNN, which is what is tested; on some processors it also breaks the heap in the gradient of a
    # strided 1×1 convolution.
    with without_onednn():
        outputs = keras.tree.flatten(model(_packed(tensors), training=training))
        _weighted_sum(outputs).backward()
    state = {v.path: v.numpy().copy() for v in model.non_trainable_variables if "seed" not in v.path}
    gradients = {v.path: _array(v.value.grad) for v in model.trainable_variables}
    for variable in model.trainable_variables:
        variable.value.grad = None
    for variable in model.non_trainable_variables:
        variable.assign(before[variable.path])
    return Pass([_array(y) for y in outputs], [_array(x.grad) for x in tensors], gradients, state)


def lowered_pass(model: keras.Model, inputs: Sequence[np.ndarray], training: bool, precision: str) -> Pass:
    """Run the lowered network with all its passes."""
    program, _ = optimise(lower(model), training=training, deterministic=True, precision=precision)
    network = emit(program, model)
    tensors = [torch.tensor(x, requires_grad=x.dtype == np.float32) for x in inputs]
    network.begin_step(seed=0, step=0)
    outputs = keras.tree.flatten(network(_packed(tensors), training=training))
    _weighted_sum(outputs).backward()
    gradients = {path: _array(w.grad) for path, w in network.weights.items() if w.requires_grad}
    state = {v.path: v.numpy().copy() for v in model.non_trainable_variables if "seed" not in v.path}
    return Pass([_array(y) for y in outputs], [_array(x.grad) for x in tensors], gradients, state)


def assert_parity(
    model: keras.Model,
    inputs: Sequence[np.ndarray],
    training: bool,
    precision: str = "float32",
    forward: float | None = None,
    gradient: float | None = None,
) -> None:
    """Assert that the lowered network computes what Keras computes."""
    require_precision_here(precision, training)
    forward = forward or (FORWARD_TOLERANCE if precision == "float32" else BFLOAT16_TOLERANCE)
    gradient = gradient or (GRADIENT_TOLERANCE if precision == "float32" else BFLOAT16_TOLERANCE)
    norm = np.inf if precision == "float32" else 2
    expected = keras_pass(model, inputs, training)
    found = lowered_pass(model, inputs, training, precision)
    for index, (one, other) in enumerate(zip(found.outputs, expected.outputs, strict=True)):
        _assert_close(one, other, forward, norm, f"output {index}")
    for index, (one, other) in enumerate(zip(found.input_gradients, expected.input_gradients, strict=True)):
        _assert_close(one, other, gradient, norm, f"gradient of input {index}")
    assert list(found.weight_gradients) == [v.path for v in model.trainable_variables]
    # A bias in front of a normalization has a gradient that cancels to zero: the others measure its error.
    sizes = [
        np.linalg.norm(other.ravel(), norm)
        for other in expected.weight_gradients.values()
        if other is not None
    ]
    for path, other in expected.weight_gradients.items():
        largest = max(sizes, default=0.0)
        _assert_close(found.weight_gradients[path], other, gradient, norm, f"gradient of {path}", largest)
    assert found.state.keys() == expected.state.keys()
    for path, value in found.state.items():
        _assert_close(value, expected.state[path], forward, norm, f"state {path}")


def _assert_close(one, other, tolerance: float, norm: float, what: str, scale: float = 0.0) -> None:
    assert (one is None) == (other is None), f"{what}: {one} against {other}"
    if one is None:
        return
    assert one.shape == other.shape, f"{what}: shape {one.shape} against {other.shape}"
    one, other = one.astype("float64").ravel(), other.astype("float64").ravel()
    error = np.linalg.norm(one - other, norm)
    scale = max(scale, np.linalg.norm(other, norm))
    assert error <= tolerance * scale + 1e-7, f"{what}: error {error} of {scale}"


def _weighted_sum(outputs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return sum((y * torch.randn(y.shape, generator=generator).to(y.device)).sum() for y in outputs)


def _packed(tensors):
    return tensors[0] if len(tensors) == 1 else tensors


def _array(tensor):
    return None if tensor is None else tensor.detach().cpu().numpy()
