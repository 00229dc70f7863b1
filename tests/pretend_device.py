"""A device that is none: torch tensors that say they lie on ``pretend:0``, and behave as a GPU's do.

Its arithmetic is the processor's, on a tensor inside that nobody else sees. So what fails here would fail on
a GPU: tensors of two devices in one operation, NumPy reading a tensor that lies elsewhere, oneDNN's
operations, the address of a tensor given to a compiled loop, a random generator of the processor. Numbers of
float64 are refused, as on Apple's ``mps``.

``pytest -p pretend_device`` loads it, in a process of its own: torch keeps a device for good.
"""

import os
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,  # torch's public way needs a backend in C++
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"
os.environ["KERAS_TORCH_DEVICE"] = NAME


class Address(int):
    """Where a tensor of the device lies; no loop on the processor may read there."""


class PretendTensor(torch.Tensor):
    """A tensor of the device; ``inner`` holds its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: torch.Tensor) -> None:
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"The device {NAME!r} has no {inner.dtype}.")
        self.inner = inner

    def __repr__(self) -> str:
        return f"PretendTensor({self.inner!r})"

    def numpy(self) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return Address(self.inner.data_ptr())

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


class Generator(torch.Generator):
    """A random generator that knows for which device it was made."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, device="cpu")
        made.made_for = torch.device(device).type
        return made


class Module(_DummyBackendModule):
    """What ``torch.cuda`` is to a GPU; the state of its random generator is the seed that was set last."""

    def __init__(self) -> None:
        self._seed = torch.zeros(1, dtype=torch.int64)

    def mem_get_info(self, _device: Any) -> tuple[int, int]:
        return 1 << 30, 1 << 31

    def manual_seed_all(self, seed: int) -> None:
        self._seed = torch.tensor([seed])

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return self._seed

    def set_rng_state(self, state: torch.Tensor, _device: Any = None) -> None:
        self._seed = state


# Operations that bring numbers from one device to another.
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_foreach_copy_")
# These take indices and single numbers of the processor, as a GPU's do.
_INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")


def is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do one operation on the inner tensors."""
    name = operation._schema.name
    if not name.startswith("aten::") and not name.startswith("prims::"):
        raise NotImplementedError(f"Could not run '{name}' with arguments from the '{NAME}' backend.")
    wrappers: dict[int, PretendTensor] = {}
    foreign: list[torch.Tensor] = []

    def unwrapped(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            wrappers[id(value.inner)] = value
            return value.inner
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            foreign.append(value)
        if isinstance(value, torch.Generator) and getattr(value, "made_for", None) != NAME:
            raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu'")
        return value

    target = kwargs.get("device")
    inner_args, inner_kwargs = tree_map(unwrapped, (args, kwargs))
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu") if is_ours(target) else target
    if foreign and name not in _COPIES + _INDEXING:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in foreign)
        raise RuntimeError(f"{name}: tensors on {NAME}:0 and others, {shapes}, on {foreign[0].device}")
    shapes = {key: tensor.inner.shape for key, tensor in wrappers.items()}
    result = operation(*inner_args, **inner_kwargs)
    assert all(wrappers[key].inner.shape == shape for key, shape in shapes.items()), f"{name} changed a shape"
    if name.startswith("aten::_foreach_") and name.endswith("_"):
        torch.autograd.graph.increment_version(args[0])  # as a GPU's kernels do
    stays = is_ours(target) if target is not None else True
    if name == "aten::copy_" and not isinstance(args[0], PretendTensor):
        stays = False

    def wrapped(value: Any) -> Any:
        if not stays or not isinstance(value, torch.Tensor):
            return value
        known = wrappers.get(id(value))
        return PretendTensor(value) if known is None else known

    return tree_map(wrapped, result)


def _fallback(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an operation that makes a tensor out of none."""
    return run(operation, args, kwargs)


def _copy_from(source: torch.Tensor, target: PretendTensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy from the processor, as ``torch.tensor`` does, past the dispatch of subclasses."""
    target.inner.copy_(source)
    return target


def _making(overload: str) -> Any:
    """Return an operation that makes its tensor on the processor and says that it lies on the device."""
    name, _, kind = overload.removeprefix("aten::").partition(".")
    operation = getattr(getattr(torch.ops.aten, name), kind or "default")
    return lambda *args, **kwargs: run(operation, args, kwargs)


def _watch_loops() -> None:
    from convscope.lowering.cpu import compiled

    plain = compiled._run

    def watched(loop: Any, *arguments: Any, **settings: Any) -> None:
        assert not any(isinstance(one, Address) for one in arguments), f"{loop} on {NAME}"
        plain(loop, *arguments, **settings)

    compiled._run = watched


def _record_steps() -> None:
    from recorded_graphs import RecordedGraphs

    from convscope.training import capture

    capture.RECORDERS[NAME] = RecordedGraphs


_setup_privateuseone_for_python_backend(NAME, Module())
_library = torch.library.Library("_", "IMPL")
_library.fallback(_fallback, "PrivateUse1")
_copying = torch.library.Library("aten", "IMPL")
_copying.impl("_copy_from", _copy_from, "PrivateUse1")
for _overload in ("arange", "arange.start", "arange.start_step"):
    # Torch's own would make an empty tensor and enlarge it, which ours cannot.
    _copying.impl(_overload, _making(f"aten::{_overload}"), "PrivateUse1")
torch.Generator = Generator
_watch_loops()
_record_steps()
