"""What convscope uses of torch beyond its documented interface, each with the reason.

All of it was seen with torch 2.13.0, and none is promised to stay: the bound on torch in ``pyproject.toml``
follows from this module. ``tests/test_torch_internals.py`` tests each, and fails where a version moves it.
``cli/startup.py`` hides torch's compiler before torch is imported, so it cannot look that up here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["TorchDispatchMode", "WeakTensorKeyDictionary", "tree_leaves"]

# TorchDispatchMode, tree_leaves: to refuse results that are too large while a foreign network is built.
# WeakTensorKeyDictionary: tensors compare by element, so no other dictionary holds them.

Tensor = torch.Tensor

# Operations on lists of tensors, as torch.optim uses them: one call for all weights, where a loop would cost
# a small network as much as its step.
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_addcdiv_ = torch._foreach_addcdiv_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_clamp_max_ = torch._foreach_clamp_max_
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_copy_ = torch._foreach_copy_
foreach_div = torch._foreach_div
foreach_div_ = torch._foreach_div_
foreach_maximum_ = torch._foreach_maximum_
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_sign_ = torch._foreach_sign_
foreach_sqrt = torch._foreach_sqrt
foreach_sqrt_ = torch._foreach_sqrt_
foreach_sub_ = torch._foreach_sub_
foreach_zero_ = torch._foreach_zero_
# Adam's whole update in one pass over memory: torch.optim.Adam has slots of its own, Keras's stay in Keras.
fused_adam_ = torch._fused_adam_

# Backward passes of torch's own operations, for functions that compute something else in between. An autograd
# graph inside an autograd function would keep what ours throw away.
aten = torch.ops.aten
convolution_backward = aten.convolution_backward
threshold_backward = aten.threshold_backward
hardtanh_backward = aten.hardtanh_backward
batch_norm_backward = aten.native_batch_norm_backward
# The documented batch_norm and group_norm refuse a single value for a channel, which Keras takes.
batch_norm = torch.batch_norm
group_norm = torch.group_norm
# Mean and variance in one pass over memory; var_mean takes several times as long on images.
batch_norm_update_stats = torch.batch_norm_update_stats

# Where a module keeps the hooks that were put on it, to see that it does not do what its class says.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def shrink_(tensor: Tensor, threshold: float) -> None:
    """Set to zero in place what is not further from it than a threshold; the public function makes a copy."""
    aten.hardshrink.out(tensor, threshold, out=tensor)


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place: what was derived from it is made again only then."""
    return tensor._version


def onednn_operation(name: str) -> Any | None:
    """Return an operation of oneDNN that torch registers for its compiler; None in a build without it.

    ``_convolution_pointwise`` computes an activation inside the convolution, which saves a pass over memory.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, name, None)


def onednn_accepts_bfloat16() -> bool:
    """Say whether oneDNN takes bfloat16 on this processor; not whether that is fast, nor backward too."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return False


def cpu_supports(name: str) -> bool:
    """Say whether the processor has an instruction set; ``torch.cpu.get_capabilities`` says it since 2.11."""
    return bool(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)())


def cpu_libraries() -> list[Path]:
    """List the file of torch's CPU operations, through which its OpenMP library can be reached."""
    return sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Say whether somebody put a hook on a tensor's gradient; torch has no documented way to ask."""
    hooks = tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)
    return any(map(bool, hooks))
