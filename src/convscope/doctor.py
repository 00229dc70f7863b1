"""What somebody needs to know about a machine where convscope misbehaves, and a test of two seconds."""

from __future__ import annotations

import functools
import importlib.util
import logging
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import keras
import numpy as np

import convscope
from convscope.data.builtin import mnist_folders
from convscope.environment import cache_folder, versions
from convscope.lowering import devices, processor
from convscope.lowering.cpu import compiled
from convscope.training.api import fit, predict

_PROGRESS = logging.getLogger("convscope.progress")

# Relative to the largest number: outputs, and what some steps change about the weights, which is small.
_TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2}
_CHANGES = 2e-3
_SHAPE, _CLASSES, _ROWS = (12, 12, 1), 4, 64


@dataclass(frozen=True)
class Check:
    """One part of the self-test."""

    name: str  # of what was held against Keras
    passed: bool
    detail: str  # the largest difference, or what was raised
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """Facts by section and name, and the self-test."""

    facts: dict[str, dict[str, str]]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every part of the self-test did."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {"passed": self.passed, **self.facts, "checks": [asdict(check) for check in self.checks]}


def examine() -> Diagnosis:
    """Gather the facts about this machine, and test that the engine computes what Keras computes on it."""
    _PROGRESS.info("Looking at this machine")
    facts = {
        "processor": _processor_facts(),
        "engine": _engine_facts(),
        "versions": {**versions(), **_versions_of("numba", "llvmlite", "pillow", "captum", "cleanlab")},
        "places": _places(),
    }
    return Diagnosis(facts, tuple(_self_test()))


def _processor_facts() -> dict[str, str]:
    here = processor.this_processor()
    simulated = f" (named by {processor.OVERRIDE})" if here.simulated else ""
    return {
        "name": here.name,
        "architecture": f"{here.architecture}, {platform.platform(terse=True)}",
        "class": here.kind.name + simulated,
        "instruction sets": " ".join(here.instruction_sets) or "none that matter",
        "cores": f"{here.physical_cores} physical, {here.logical_cores} logical",
    }


def _engine_facts() -> dict[str, str]:
    team = processor.openmp()
    return {
        "devices": ", ".join(devices.device_names()),
        "bfloat16 in prediction": _bfloat16(training=False),
        "bfloat16 in training": _bfloat16(training=True),
        "compiled loops": _compiled_loops(),
        "fused convolution": "yes" if processor.fused_convolution() is not None else "no",
        "OpenMP": team.library if team else "not found; the compiled loops use one thread",
        "threads": str(devices.describe_device()["torch_threads"]),
    }


def _compiled_loops() -> str:
    if compiled.available():
        return f"yes, for {compiled.target()}"
    known = importlib.util.find_spec("numba") is None
    why = "numba is not installed" if known else "`convscope --debug doctor` says why"
    return f"no: torch's own operations, which take longer ({why})"


def _bfloat16(training: bool) -> str:
    if not processor.takes_bfloat16(training):
        return "no: " + processor.describe_bfloat16(training)
    return f"yes, {processor.bfloat16_speed(training):.1f} times as fast as float32"


def _versions_of(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _places() -> dict[str, str]:
    cache = cache_folder()
    beside = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(beside).free
    mnist = next((folder for folder in mnist_folders() if folder.is_dir()), None)
    return {
        "convscope": str(next(iter(convscope.__path__))),
        "cache": f"{cache}{'' if cache.is_dir() else ' (not made yet)'}",
        "free space there": f"{free / 2**30:.1f} GB",
        "MNIST": str(mnist) if mnist else "not here; `convscope data fetch mnist` gets it",
    }


def _self_test() -> list[Check]:
    """Train and predict with a tiny network, beside Keras."""
    generator = np.random.default_rng(0)
    x = generator.random((_ROWS, *_SHAPE), np.float32)
    y = generator.integers(0, _CLASSES, _ROWS)
    checks = [
        _checked(f"prediction in {precision}", functools.partial(_prediction, x, precision))
        for precision in _TOLERANCES
        if precision == "float32" or processor.takes_bfloat16(training=False)
    ]
    return [
        *checks,
        _checked("training in float32", lambda: _training(x, y)),
        _checked("training with precision auto", lambda: _learning(x, y)),
    ]


def _checked(name: str, difference: Callable[[], tuple[float, float]]) -> Check:
    _PROGRESS.info("Testing %s beside Keras", name)
    began = time.perf_counter()
    try:
        found, allowed = difference()
    except Exception as error:  # it belongs into the table, beside what works
        return Check(name, False, f"{type(error).__name__}: {error}", time.perf_counter() - began)
    detail = f"differs from Keras by {found:.1e}, allowed {allowed:.0e}"
    return Check(name, bool(found <= allowed), detail, time.perf_counter() - began)


def _model(dropout: float = 0.0) -> keras.Model:
    """Make a network of every kind of compiled loop and product, the same one at each call."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(_SHAPE),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(dropout, seed=0),
            layers.Dense(32, activation="relu"),
            layers.Dense(_CLASSES, activation="softmax"),
        ]
    )
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        scale = np.prod(variable.shape[:-1]) ** -0.5
        variable.assign(generator.uniform(-scale, scale, variable.shape))
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    return model


def _prediction(x: Any, precision: str) -> tuple[float, float]:
    model = _model()
    return _distance(predict(model, x, precision=precision), model(x)), _TOLERANCES[precision]


def _training(x: Any, y: Any) -> tuple[float, float]:
    """Compare what one epoch of both engines does to the weights, without dropout, in the same order."""
    before, ours, theirs = _model().get_weights(), _model(), _model()
    for model, engine in ((ours, "fast"), (theirs, "keras")):
        fit(model, x, y, batch_size=16, shuffle=False, engine=engine, precision="float32", verbose=0)
    weights = zip(before, ours.get_weights(), theirs.get_weights(), strict=True)
    return max(_distance(a - start, b - start) for start, a, b in weights), _CHANGES


def _learning(x: Any, y: Any) -> tuple[float, float]:
    """Train as anybody would, and compare the prediction of what came out with Keras's."""
    model = _model(dropout=0.25)
    fit(model, x, y, batch_size=16, seed=0, verbose=0)
    return _distance(predict(model, x), model(x)), _TOLERANCES["float32"]


def _distance(found: Any, expected: Any) -> float:
    found, expected = (keras.ops.convert_to_numpy(values) for values in (found, expected))
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
