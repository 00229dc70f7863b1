"""The whole state of a training as arrays, and checkpoints of it that a crash cannot spoil.

Order and dropout masks are functions of the seed and of the absolute epoch and step; so weights, the
optimizer's variables, the position, the epoch's running sums and what callbacks remember are all there is.

Each checkpoint is a folder of its own: the arrays are written and synced, then the manifest with their
hashes, then the folder is renamed into place and its parents are synced. Reading takes the newest folder
whose manifest holds; older ones are removed only after a newer one is in place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import RunError, expected_got
from convscope.runs import sync_file, sync_folder

if TYPE_CHECKING:
    import keras

_PARTS = ("weights", "optimizer", "metrics", "callbacks")
_STOPPED = "stopped"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training, stopped between two steps; arrays by the paths of Keras's variables, in its order."""

    seed: int  # that order and masks follow
    epoch: int  # epochs that are over, counted from 0 whatever initial_epoch was
    step: int  # done inside the epoch that has begun; 0 between two epochs
    weights: Mapping[str, np.ndarray] = field(repr=False)  # moving statistics included
    optimizer: Mapping[str, np.ndarray] = field(repr=False)
    # Running sums inside the epoch.
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    history: Mapping[str, list[float]] = field(default_factory=dict)  # one value for each epoch
    callbacks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)  # what they remember
    stopped: bool = False  # whether model.stop_training was set: no further step is to be done

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flatten the state into one dictionary of arrays."""
        arrays = {"position": np.array([self.seed, self.epoch, self.step], np.int64)}
        for part in _PARTS:
            for number, (name, array) in enumerate(getattr(self, part).items()):
                arrays[f"{part}/{number:04d}/{name}"] = array
        for name, values in self.history.items():
            arrays[f"history/{name}"] = np.array(values, np.float64)
        if self.stopped:
            arrays[_STOPPED] = np.array([1], np.int64)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TrainingState:
        """Rebuild a state from what :meth:`to_arrays` gave."""
        if "position" not in arrays:
            expected = "a training state with its position"
            raise RunError(expected_got(expected, f"the keys {sorted(arrays)[:3]}"))
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
        history: dict[str, list[float]] = {}
        for key in sorted(arrays):
            part, _, rest = key.partition("/")
            if part == "history":
                history[rest] = np.asarray(arrays[key]).tolist()
            elif part in parts:
                parts[part][rest.partition("/")[2]] = arrays[key]
            elif key not in ("position", _STOPPED):
                raise RunError(expected_got("a part of a training state", repr(key)))
        seed, epoch, step = (int(number) for number in arrays["position"])
        return cls(seed, epoch, step, history=history, stopped=_STOPPED in arrays, **parts)


def snapshot(
    model: keras.Model,
    *,
    seed: int,
    epoch: int,
    step: int,
    history: Mapping[str, list[float]],
    metrics: Mapping[str, NDArray[Any]] | None = None,
    callbacks: Mapping[str, NDArray[Any]] | None = None,
) -> TrainingState:
    """Copy the training state out of a model that holds its current weights."""
    return TrainingState(
        seed,
        epoch,
        step,
        _named_values(model_variables(model)),
        _named_values(optimizer_variables(model.optimizer)),
        dict(metrics or {}),
        {name: list(values) for name, values in history.items()},
        dict(callbacks or {}),
        stopped=bool(model.stop_training),
    )


def load_state(model: keras.Model, state: TrainingState) -> None:
    """Put a training state into a compiled model and its optimizer."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    _assign("network", model_variables(model), state.weights)
    _assign("optimizer", optimizer_variables(model.optimizer), state.optimizer)


def model_variables(model: keras.Model) -> list[keras.Variable]:
    """List weights, moving statistics and seed states, without the metrics' variables."""
    metric_ids = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metric_ids]


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """List the optimizer's variables, those of a wrapped one included, in Keras's order."""
    inner = getattr(optimizer, "inner_optimizer", None)
    own = list(optimizer.variables)
    known = {id(variable) for variable in own}
    return own + [v for v in (inner.variables if inner else ()) if id(v) not in known]


def _named_values(variables: Sequence[keras.Variable]) -> dict[str, NDArray[Any]]:
    import keras

    values: dict[str, NDArray[Any]] = {}
    for variable in variables:
        name = variable.path
        while name in values:
            name += "'"
        values[name] = np.array(keras.ops.convert_to_numpy(variable.value))
    return values


def _assign(owner: str, variables: Sequence[keras.Variable], values: Mapping[str, NDArray[Any]]) -> None:
    """Assign by position: names may carry a number that depends on what else the process has built."""
    found = [tuple(value.shape) for value in values.values()]
    expected = [tuple(variable.shape) for variable in variables]
    if found != expected:
        raise RunError(expected_got(f"a state of this {owner}, shapes {expected}", found))
    for variable, value in zip(variables, values.values(), strict=True):
        variable.assign(value)


FOLDER = "checkpoint"
ARRAYS = "state.safetensors"
MANIFEST = "manifest.json"

Arrays = Mapping[str, NDArray[Any]]


def save_checkpoint(run: Path, position: tuple[int, int], arrays: Arrays) -> Path:
    """Write a checkpoint into a run and remove the older ones."""
    from safetensors.numpy import save

    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    target = folder / f"{position[0]:06d}-{position[1]:08d}"
    if not _is_whole(target):
        content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".saving-"))
        try:
            _write_synced(scratch / ARRAYS, content)
            manifest = {"files": {ARRAYS: hashlib.sha256(content).hexdigest()}}
            _write_synced(scratch / MANIFEST, json.dumps(manifest).encode())
            sync_folder(scratch)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same position
            scratch.replace(target)
            sync_folder(folder)
            sync_folder(run)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def load_checkpoint(run: Path) -> dict[str, NDArray[Any]] | None:
    """Read the newest whole checkpoint of a run."""
    from safetensors.numpy import load

    folder = run / FOLDER
    found = sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []
    for path in reversed(found):
        if _is_whole(path):
            return dict(load((path / ARRAYS).read_bytes()))
    if found:
        raise RunError(expected_got(f"a whole checkpoint in {folder}", "damaged ones only", "Train anew."))
    return None


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints of a run that is completed."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Say whether a checkpoint's manifest is there and its hashes hold."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        return bool(files) and all(
            hashlib.sha256((path / Path(name).name).read_bytes()).hexdigest() == digest
            for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(content)
        sync_file(stream)
