"""A stand-in for CUDA graphs: records the operations of a step, then does them again on the same memory.

As on a GPU, nothing is computed while it records, whatever a step makes is unknown until it is replayed,
a number that Python had stays what it was, and torch counts no change that a replay makes.
"""

from contextlib import contextmanager, nullcontext
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from convscope.training.capture import obstacle_of


def tensors_of(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def memory_of(tensor):
    """The storage with a tensor's numbers; those of a pretended device lie on the processor."""
    return vars(tensor).get("inner", tensor).untyped_storage()


class RecordedGraphs:
    """Takes the place of ``CudaGraphs``; remembers what was recorded and replayed."""

    made: ClassVar = []

    def __init__(self, device):
        self.device, self.recordings, self.replays = device, [], 0
        self.made.append(self)

    def warming_up(self):
        return nullcontext()

    def record(self, function):
        recording = Recording(self.device)
        try:
            with recording:
                function()
        finally:
            recording.undo()
        self.recordings.append(recording)

        def replay():
            self.replays += 1
            recording.replay()

        return replay


class Recording(TorchDispatchMode):
    def __init__(self, device):
        super().__init__()
        self._device = device
        self.operations, self.from_outside, self._made = [], {}, {}

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tensors_of((args, kwargs)):
            memory = memory_of(tensor)
            if memory.data_ptr() not in self._made and memory.data_ptr() not in self.from_outside:
                self.from_outside[memory.data_ptr()] = (tensor, memory, memory.clone())
        result = operation(*args, **kwargs)
        reason = obstacle_of(operation, args, result, self._device)
        if reason is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {reason}")
        results = tensors_of(result)
        for tensor in results:
            memory = memory_of(tensor)
            if memory.data_ptr() not in self.from_outside:
                self._made[memory.data_ptr()] = memory
        self.operations.append((operation, args, kwargs, results))
        return result

    def undo(self):
        """Let nothing have been computed: old numbers where there were some, nonsense elsewhere."""
        for _, memory, before in self.from_outside.values():
            memory.copy_(before)
        for memory in self._made.values():
            memory.fill_(255)  # no number, as floating point

    def replay(self):
        with _disable_current_modes(), torch.no_grad(), self._uncounted():
            for operation, args, kwargs, results in self.operations:
                returns = [one.alias_info for one in operation._schema.returns]
                if any(alias is not None and not alias.is_write for alias in returns):
                    continue  # a view of the same memory
                for fresh, known in zip(tensors_of(operation(*args, **kwargs)), results, strict=True):
                    if memory_of(fresh).data_ptr() != memory_of(known).data_ptr():
                        known.copy_(fresh)

    @contextmanager
    def _uncounted(self):
        outside = tuple(tensor for tensor, _, _ in self.from_outside.values())
        with torch.autograd._unsafe_preserve_version_counter(outside):
            yield
