"""A trained network with what it needs to be used: preprocessing and class names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convscope import networks
from convscope.errors import DataError, sentence
from convscope.preprocessing import Preprocess
from convscope.runs import RUN_FILE, open_run

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Bundle:
    """A network, the preprocessing that it was trained with, and the names of its classes."""

    model: keras.Model
    preprocess: Preprocess
    class_names: tuple[str, ...]


def load_bundle(path: str | Path) -> Bundle:
    """Load the network of a run with all that it needs to predict.

    Parameters
    ----------
    path : str or Path
        A run directory.

    Returns
    -------
    Bundle

    Raises
    ------
    RunError
        If it is not a run directory.
    DataError
        If one of its files is damaged.
    """
    run = open_run(path)
    files = {name: run.read_bytes(name) for name in ("preprocess.json", "preprocess.npz")}
    class_names = tuple(run.read_json(RUN_FILE)["data"]["class_names"])
    return Bundle(load_model(run.path / "model.keras"), Preprocess.from_files(files), class_names)


def load_model(file: Path) -> keras.Model:
    """Load a ``.keras`` file in Keras's safe mode, which runs no code from the file.

    Parameters
    ----------
    file : Path
        As ``model.save`` wrote it.

    Returns
    -------
    keras.Model

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something that safe mode refuses.
    """
    import keras

    try:
        return keras.saving.load_model(file, safe_mode=True)
    # Keras and the formats below it raise many kinds of errors for a damaged file.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(sentence(f"{file} to be a Keras model", reason)) from error


def open_model(
    target: str,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    data_format: str | None = None,
) -> keras.Model:
    """Find the network that a person means.

    Parameters
    ----------
    target : str
        A run directory, a ``.keras`` file, or the name of a network.
    input_shape : tuple of int, optional
        Shape of one image, for a network by name; 28×28×1 when left out.
    classes : int, optional
        Number of classes, for a network by name; 10 when left out.
    data_format : str, optional
        Where the channel axis is, for a network by name.

    Returns
    -------
    keras.Model

    Raises
    ------
    UnknownNameError
        If it is none of them.
    ConvscopeError
        If it cannot be built or loaded.

    Examples
    --------
    >>> open_model("simple", (8, 8, 1), classes=2).output_shape
    (None, 2)
    """
    path = Path(target)
    if path.is_dir():
        return load_model(open_run(path).path / "model.keras")
    if path.suffix == ".keras":
        return load_model(path)
    return networks.build(target, input_shape or (28, 28, 1), classes or 10, data_format)
