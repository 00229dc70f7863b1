"""Which device a network computes on: a CPU, a GPU (``cuda``), Apple's ``mps``.

Keras puts a new tensor where ``with keras.device(...)`` says, otherwise where the environment variable
KERAS_TORCH_DEVICE says, otherwise on a GPU where torch sees one. A model computes where its weights lie,
wherever Keras would put new tensors now: whoever runs one does it in ``with computing_on(device_of(model))``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import torch

from convscope.errors import UsageError, expected_got
from convscope.lowering.processor import this_processor

_HINT = "Leave the device out for the best one there is."


def current_device() -> torch.device:
    """Return where Keras puts new tensors now; on another back end than torch, where torch does."""
    tensor = keras.ops.convert_to_tensor(0.0)
    return tensor.device if isinstance(tensor, torch.Tensor) else torch.get_default_device()


def device_of(model: Any) -> torch.device | None:
    """Return where a model's weights lie; None for a model without any, or on another back end than torch."""
    values = (weight.value for weight in model.weights)
    return next((value.device for value in values if isinstance(value, torch.Tensor)), None)


@contextmanager
def computing_on(device: torch.device | None) -> Iterator[None]:
    """Let Keras put its tensors on a device, and let a GPU compute float32 as float32, in repeatable order.

    By torch's default, cuDNN rounds the factors of a float32 convolution to 10 bits of mantissa (TF32), and
    may add in an order that changes from call to call. Both settings are as they were afterwards.
    """
    if device is None:
        yield
        return
    with keras.device(str(device)):
        if device.type != "cuda":
            yield
            return
        cudnn: Any = torch.backends.cudnn
        before = cudnn.conv.fp32_precision, cudnn.deterministic
        cudnn.conv.fp32_precision, cudnn.deterministic = "ieee", True
        try:
            yield
        finally:
            cudnn.conv.fp32_precision, cudnn.deterministic = before


def forked_generators(device: torch.device | None) -> AbstractContextManager[None]:
    """Leave torch's random generators of the CPU and of a device as they were, whatever happens inside."""
    if device is None or device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


@contextmanager
def seeded_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Let torch's random generators of the CPU and of a device begin at a seed, and put them back.

    ``torch.manual_seed`` notes a stack trace for each kind of device that is not there, at each call.
    """
    with forked_generators(device):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[
                torch.cuda.current_device() if device.index is None else device.index
            ].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


def require_device(name: str) -> torch.device:
    """Return a device by its name, ``cpu``, ``cuda:1`` …; raise UsageError if it is not there."""
    try:
        device = torch.device(name.lower())
        torch.zeros(1, device=device).item()  # torch finds out itself what is missing; "meta" holds no number
    except (RuntimeError, AssertionError, ValueError) as error:
        here = ["cpu", *(name for name in ("cuda", "mps") if _is_available(name))]
        expected = f"a device of this machine ({' or '.join(here)})"
        raise UsageError(expected_got(expected, repr(name), _HINT)) from error
    return device


def _is_available(name: str) -> bool:
    return bool(getattr(torch.backends, name).is_available() if name == "mps" else torch.cuda.is_available())


def device_names() -> list[str]:
    """Name what torch can compute on here, the fastest first."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def describe_device(used: torch.device | None = None) -> dict[str, Any]:
    """Return what the computation runs on, as a run records it: the device used, or the CPU."""
    processor = this_processor()
    used = used or torch.device("cpu")
    return {
        "torch_device": torch.cuda.get_device_name(used) if used.type == "cuda" else used.type,
        "processor": processor.name,
        "processor_class": processor.kind.name,
        "instruction_sets": list(processor.instruction_sets),
        "cores": processor.logical_cores,
        "torch_threads": torch.get_num_threads(),
    }
