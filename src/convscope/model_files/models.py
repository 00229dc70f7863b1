"""Networks out of files: a checked configuration, a rehearsal without memory, then the weights."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import convscope
from convscope import networks
from convscope.environment import cache_folder
from convscope.errors import ConvscopeError, DataError, expected_got, reason
from convscope.model_files.allowed import read_config
from convscope.runs import RUN_FILE, RunDirectory, open_run

if TYPE_CHECKING:
    import keras

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
# The members of a .keras file and how many bytes each may have; VGG16's weights take 0.55 GB.
MEMBERS = {METADATA: 2**20, CONFIG: 2**24, WEIGHTS: 2**31}
# Arrays of preprocessing, statistics and predictions.
ARRAY_BYTES = 2**28
# Keras stores its members as they are; one that shrinks a hundredfold is there to fill the memory.
LARGEST_RATIO = 100
SMALL = 2**20


def read_archive(file: Path, wanted: Iterable[str] = (CONFIG, WEIGHTS)) -> dict[str, bytes]:
    """Read members of a ``.keras`` file, checked against their checksums.

    What is no such archive, is damaged, or holds other or larger members than a network needs is refused.
    """
    try:
        with _open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = _checked_members(archive, file)
            return {name: _read_member(archive, members, name, file) for name in wanted}
    except DataError:
        raise
    # Python's zipfile raises almost anything on damaged bytes: BadZipFile, zlib.error, EOFError,
    # NotImplementedError, RuntimeError, struct.error …
    except Exception as error:
        raise not_a_network(file, error) from error


def read_arrays(content: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of an npz file that somebody else may have written; none holds Python objects."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > ARRAY_BYTES:
            expected = f"{name} to hold at most {_megabytes(ARRAY_BYTES)}"
            raise DataError(expected_got(expected, _megabytes(size)))
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            read = {key: arrays[key] for key in arrays.files}
        for key, value in read.items():  # NumPy gives the bytes of what does not begin as an array
            if not isinstance(value, np.ndarray):
                raise DataError(expected_got(f"{name} to hold NumPy arrays", f"{key}, which is none"))
        return read
    except DataError:
        raise
    except Exception as error:  # as above: zipfile and NumPy's header reader raise almost anything
        raise DataError(expected_got(f"{name} to hold NumPy arrays", reason(error))) from error


def not_a_network(file: Path, error: BaseException) -> DataError:
    """Make the error for a file that holds no Keras network."""
    return DataError(expected_got(f"{file} to be a Keras model", reason(error), "Save it again."))


def _open_regular(file: Path) -> IO[bytes]:
    """Open a file; a pipe or a device would never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError(expected_got(f"{file} to be a Keras model", "something that is no regular file"))
        return file.open("rb")
    except FileNotFoundError as error:
        raise DataError(expected_got("a Keras model", f"no file {file}", "Check its path.")) from error
    except OSError as error:
        raise DataError(expected_got(f"to be able to read {file}", error.strerror)) from error


def _checked_members(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """List the members by name, if they are those of a ``.keras`` file and of a sensible size."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if strange := sorted(set(names) - set(MEMBERS)):
        expected = f"only {', '.join(MEMBERS)} in {file}"
        hint = "Layers that need more files are not those of image classifiers."
        raise DataError(expected_got(expected, reason(ValueError(strange[0])), hint))
    if len(set(names)) != len(names):
        raise DataError(expected_got(f"each member once in {file}", f"{len(names)} members"))
    for info in infos:
        limit = MEMBERS[info.filename]
        if info.file_size > limit:
            expected = f"{info.filename} in {file} to have at most {_megabytes(limit)}"
            raise DataError(expected_got(expected, _megabytes(info.file_size)))
        if info.file_size > max(SMALL, LARGEST_RATIO * info.compress_size):
            expected = f"{info.filename} in {file} to be compressed at most {LARGEST_RATIO}-fold"
            raise DataError(expected_got(expected, f"{info.file_size:,} bytes out of {info.compress_size:,}"))
    return {info.filename: info for info in infos}


def _read_member(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, file: Path
) -> bytes:
    """Read one member whole; zipfile checks its CRC at the end."""
    if name not in members:
        raise DataError(expected_got(f"{name} in {file}", "an archive without it", "Save the model again."))
    with archive.open(members[name]) as stream:
        content = stream.read(members[name].file_size)
        # Asking for one byte more makes zipfile notice what is beyond the declared size, and check the CRC.
        if stream.read(1) or len(content) != members[name].file_size:
            raise DataError(expected_got(f"{name} in {file} to be whole", f"{len(content):,} bytes"))
    return content


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


MODEL_FILE = "model.keras"
WEIGHTS_FILE = "weights.safetensors"

# Keras works shapes out with a batch of 83 and then of 89 images.
REHEARSED_BATCH = 89
# The values in one layer's output for one image; VGG16 at 1,000×1,000 pixels has as many.
MOST_VALUES = 2**26
READ_SECONDS = 120
HDF5_READER = Path(__file__).with_name("hdf5.py")

# A network that was loaded from a run carries the run's path under this name.
_SOURCE = "_convscope_run"


def load_model(file: Path) -> keras.Model:
    """Load a ``.keras`` file that anybody may have written, not compiled; no code in it is run."""
    file = Path(file)
    members = read_archive(file)
    config = read_config(members[CONFIG], str(file))
    weights = _read_hdf5(members[WEIGHTS], file)
    with _keras_errors(file):
        model = _build(config, file, _count(weights))
        _assign_by_layer(model, weights)
    return model


def load_run_model(run: RunDirectory) -> keras.Model:
    """Load the network of a run or an export: the configuration from JSON, the weights from safetensors."""
    has_config = (run.path / CONFIG).is_file()
    where = run.path / (CONFIG if has_config else MODEL_FILE)
    content = run.read_bytes(CONFIG) if has_config else read_archive(where, [CONFIG])[CONFIG]
    config = read_config(content, str(where))
    weights = read_weights(run.read_bytes(WEIGHTS_FILE), str(run.path / WEIGHTS_FILE))
    with _keras_errors(where):
        model = _build(config, where, _count(weights))
        _assign_by_place(model, weights, run.path / WEIGHTS_FILE)
    setattr(model, _SOURCE, run.path.absolute())
    return model


def run_of(model: keras.Model) -> RunDirectory | None:
    """Find the run that a network was loaded from; None for one that was built, or whose run is gone."""
    path = getattr(model, _SOURCE, None)
    return RunDirectory(path) if path is not None and (path / RUN_FILE).is_file() else None


def read_weights(content: bytes, source: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of a safetensors file, all of them finite."""
    from safetensors.numpy import load

    try:
        weights: dict[str, NDArray[Any]] = load(content)
    except Exception as error:  # safetensors raises its own error, but KeyError and others for odd headers
        raise DataError(expected_got(f"{source} to hold weights", reason(error))) from error
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise DataError(expected_got(f"finite weights in {source}", f"NaN or infinity in {name}"))
    return weights


def write_weights(model: keras.Model) -> bytes:
    """Give a model's weights as a safetensors file.

    The keys are ``0003/network/dense_1/bias``: a weight's place among the model's weights, then its path.
    Paths alone would not do: two nested networks may have layers of the same name, and a path changes with
    what stands around a network.
    """
    from safetensors.numpy import save

    named = {f"{place:04d}/{weight.path}": weight.numpy() for place, weight in enumerate(model.weights)}
    return save({name: np.asarray(value, order="C") for name, value in named.items()})


def open_model(
    target: str,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    data_format: str | None = None,
) -> keras.Model:
    """Find the network that a person means by a run directory, a ``.keras`` file or a name.

    The rest is for a network by name: the shape of an image (28×28×1), the classes (10), the channel axis.
    """
    path = Path(target)
    if path.is_dir():
        return load_run_model(open_run(path))
    if path.suffix == ".keras":
        return load_model(path)
    return networks.build(target, input_shape or (28, 28, 1), classes or 10, data_format)


@contextmanager
def _keras_errors(file: Path) -> Iterator[None]:
    """Turn whatever Keras raises about a file into one sentence."""
    try:
        yield
    except ConvscopeError:
        raise
    # Layers raise what their damaged settings make of it: TypeError, IndexError, ZeroDivisionError …
    except Exception as error:
        raise not_a_network(file, error) from error


def _build(config: dict[str, Any], source: Path, available: int) -> keras.Model:
    """Build the network that a checked configuration describes, once it is known to fit into memory."""
    import keras

    if keras.backend.backend() == "torch":
        needed = _count_needed(config)
        if needed > available:
            expected = f"as many weights in the file as {source} describes ({needed:,})"
            raise DataError(expected_got(expected, f"{available:,}", "The file is damaged; save it again."))
    return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _count_needed(config: dict[str, Any]) -> int:
    """Count the weights of the network that a configuration describes; each is rehearsed once."""
    import keras

    known = f"{convscope.__version__} {keras.__version__} {MOST_VALUES} {json.dumps(config, sort_keys=True)}"
    file = cache_folder() / "networks" / hashlib.sha256(known.encode()).hexdigest()
    with suppress(OSError, ValueError):
        return int(file.read_text())
    # What Keras notes down while it builds is known to one thread only, and goes with it.
    with ThreadPoolExecutor(1) as thread:
        needed = thread.submit(_build_without_memory, copy.deepcopy(config)).result()  # Keras changes it
    with suppress(OSError):  # a cache that cannot be written costs only time
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(needed))
    return needed


def _build_without_memory(config: dict[str, Any]) -> int:
    """Build the network with tensors that have shapes and no memory; count its weights."""
    import keras

    # Weights without values need no arithmetic; to do it without memory torch would import its compiler.
    with _size_limit(), keras.device("meta"), keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    if not model.built:
        hint = "Begin it with keras.Input((64, 64, 3)), or call model.build(...), and save it again."
        expected = "a network that has been built"
        raise DataError(expected_got(expected, "one without the shape of its input", hint))
    for shape in _output_shapes(model):
        _require_size(shape, math.prod(length or 1 for length in shape), MOST_VALUES)
    return int(model.count_params())


def _output_shapes(model: keras.Model) -> Iterator[tuple[int | None, ...]]:
    """Give the shape of everything that a network's layers and operations compute; nested ones too."""
    import keras

    from convscope import _keras_internals as internals

    graph = internals.graph_of_sequential(model) if isinstance(model, keras.Sequential) else model
    for operation in graph.operations:
        for node in internals.inbound_nodes(operation):
            for output in node.outputs:
                yield tuple(output.shape)
        if isinstance(operation, keras.Model):
            yield from _output_shapes(operation)


def _require_size(shape: Iterable[int | None], values: int, limit: int) -> None:
    """Refuse a result that would fill the memory."""
    if values > limit:
        expected = f"a network whose layers compute at most {MOST_VALUES:,} values for an image"
        raise DataError(expected_got(expected, "×".join("n" if one is None else f"{one}" for one in shape)))


def _size_limit() -> Any:
    """Make a mode of torch in which an operation with too large a result is an error."""
    import torch

    from convscope._torch_internals import TorchDispatchMode, tree_leaves

    class SizeLimit(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types it so
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # else torch imports its compiler, for two seconds, to tell it to look away

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:  # the signature is torch's
            result = function(*args, **(kwargs or {}))
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    _require_size(value.shape, value.numel(), REHEARSED_BATCH * MOST_VALUES)
            return result

    return SizeLimit()  # type: ignore[no-untyped-call]  # as above


def _count(weights: Mapping[str, NDArray[Any]]) -> int:
    """Count the numbers in all arrays."""
    return sum(value.size for value in weights.values())


def _assign_by_place(model: keras.Model, weights: Mapping[str, NDArray[Any]], source: Path) -> None:
    """Give each weight of a model the array with its place and the last part of its path."""
    expected = [f"{place:04d}/{weight.path.split('/')[-1]}" for place, weight in enumerate(model.weights)]
    found = {f"{name.split('/')[0]}/{name.split('/')[-1]}": value for name, value in weights.items()}
    if odd := sorted(set(expected) ^ set(found)):
        what = f"{odd[0]} {'only in the file' if odd[0] in found else 'missing from the file'}"
        raise DataError(expected_got(f"the weights of the network in {source}", what))
    for weight, name in zip(model.weights, expected, strict=True):
        if found[name].shape != tuple(weight.shape):
            shape = tuple(weight.shape)
            raise DataError(expected_got(f"{name} in {source} of shape {shape}", found[name].shape))
        weight.assign(found[name])


def _assign_by_layer(model: keras.Model, weights: Mapping[str, NDArray[Any]]) -> None:
    """Let Keras match arrays with layers, out of a clean HDF5 file that only this process wrote."""
    import h5py

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / WEIGHTS
        with h5py.File(file, "w") as store:
            for path, value in weights.items():
                store[path] = value
        model.load_weights(file)


def _read_hdf5(content: bytes, file: Path) -> dict[str, NDArray[Any]]:
    """Read the weights of an HDF5 file in a process of its own, which may crash without harm."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / WEIGHTS, Path(scratch) / WEIGHTS_FILE
        source.write_bytes(content)
        command = [sys.executable, "-I", str(HDF5_READER), str(source), str(target), str(len(content))]
        # Each thread of a linear algebra library reserves address space, and none is needed here.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(  # noqa: S603  our own script, with paths that we chose
                command, capture_output=True, timeout=READ_SECONDS, env=environment, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise not_a_network(file, TimeoutError("weights that take minutes to read")) from error
        if done.returncode != 0:
            complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
            found = complaint[-1] if complaint and done.returncode > 0 else "weights that crash their reader"
            raise not_a_network(file, ValueError(found))
        return read_weights(target.read_bytes(), str(file))
