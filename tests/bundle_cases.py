"""A small trained run, and ways to damage one; shared by the tests of bundles, exports and prediction."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

import convscope
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.preparation import prepare
from convscope.experiment.results import (
    examine_parts,
    write_evaluation,
    write_novelty,
    write_statistics,
    write_training,
)
from convscope.export import load_statistics
from convscope.runs import RunDirectory


def small_network(shape=(28, 28, 1), classes=10) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(8, 5, strides=3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Dense(classes, activation="softmax"),
        ],
        name="small",
    )


def write_run(folder: Path, model, dataset, config, prepared) -> Path:
    """Write what an experiment writes, without its figures."""
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    write_training(run, model, prepared.preprocess, {"loss": [1.0]})
    write_statistics(run, prepared.train)
    evaluations, distances, novelty = examine_parts(model, prepared, load_statistics(run))
    write_novelty(run, novelty)
    write_evaluation(run, evaluations, distances)
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
    }
    record = {"status": "completed", "config": config.to_json(), "data": data}
    run.write_json("run.json", record | {"network": {"name": model.name}})
    return folder


def train_small_run(folder: Path) -> Path:
    """Train the small network on the digits, in about a second."""
    dataset = convscope.load("digits")
    config = ExperimentConfig("simple")
    prepared = prepare(dataset, config)
    keras.utils.set_random_seed(0)
    model = small_network()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    convscope.fit(
        model,
        prepared.train.images,
        prepared.train.labels,
        preprocess=prepared.preprocess,
        epochs=6,
        seed=0,
        verbose=0,
        deterministic=True,
    )
    return write_run(folder, model, dataset, config, prepared)


def copy_of(run: Path, folder: Path) -> Path:
    """Copy a run, so that a test may damage it."""
    shutil.copytree(run, folder)
    return folder


def rewrite_json(file: Path, **changes) -> None:
    """Change entries of a JSON object; None removes one."""
    value = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(
        json.dumps({key: item for key, item in value.items() if item is not None}), encoding="utf-8"
    )


def read_zip(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(file: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def rewrite_config(file: Path, change, target: Path) -> Path:
    """Copy a ``.keras`` file with another configuration; the checksums are right."""
    members = read_zip(file)
    config = json.loads(members["config.json"])
    change(config)
    return write_zip(target, members | {"config.json": json.dumps(config).encode()})


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
