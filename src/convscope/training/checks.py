"""Whether data fit a model: told before the training, in words about images and labels."""

from __future__ import annotations

import keras
import numpy as np

from convscope.errors import UsageError, sentence
from convscope.training.inputs import ArrayInput, Input

_CATEGORICAL = "categorical_crossentropy"
_SPARSE = "sparse_categorical_crossentropy"


Shape = tuple[int | None, ...]


def input_shape(model: keras.Model) -> Shape | None:
    """Give the shape of a model's only input, without the batch axis.

    Parameters
    ----------
    model : keras.Model
        Built or not.

    Returns
    -------
    tuple or None
        None where the model is not built, or has several inputs.

    Examples
    --------
    >>> input_shape(keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()]))
    (28, 28, 1)
    """
    return _single_shape(model, "inputs")


def require_fitting_images(expected: Shape | None, data: Input | None) -> None:
    """Refuse images of another shape than the model's input.

    Parameters
    ----------
    expected : tuple or None
        See :func:`input_shape`; None lets everything pass.
    data : Input or None
        Streams and nested inputs pass: Keras and the network check each batch.

    Raises
    ------
    UsageError
        When height, width or channels differ.
    """
    if expected is None or not isinstance(data, ArrayInput) or keras.tree.is_nested(data.x):
        return
    found = getattr(data.preprocess, "input_shape", tuple(data.x.shape[1:]))
    with_channel, without_channel = (*found, 1), (found[:-1] if found and found[-1] == 1 else found)
    if not any(_matches(shape, expected) for shape in (found, with_channel, without_channel)):
        turned = len(found) == len(expected) and set(found) == set(expected)
        hint = "Look at the order of the axes: channels last or first?" if turned else ""
        raise UsageError(sentence(f"images of shape {expected}", found, hint))


def require_fitting_targets(model: keras.Model, data: Input | None) -> None:
    """Refuse labels that the compiled cross-entropy cannot read.

    Parameters
    ----------
    model : keras.Model
        Compiled; only one output with a categorical or sparse cross-entropy is looked at.
    data : Input or None
        Streams pass.

    Raises
    ------
    UsageError
        When class numbers stand where one-hot targets belong or the other way round, or a class number is
        not among the model's outputs.
    """
    if not isinstance(data, ArrayInput) or data.y is None or keras.tree.is_nested(data.y):
        return
    if isinstance(data.y, np.ndarray) and data.y.dtype.kind not in "fiub":
        raise UsageError(sentence("numbers as targets", f"an array of type {data.y.dtype}"))
    shape, loss = _single_shape(model, "outputs"), loss_name(model)
    if shape is None or len(shape) != 1 or shape[0] in (None, 1):
        return
    classes, found = shape[0], tuple(data.y.shape)
    if loss == _CATEGORICAL and found[1:] != (classes,):
        hint = f"One-hot encode the labels, or compile with {_SPARSE}."
        raise UsageError(sentence(f"one-hot targets of shape (n, {classes}) for {loss}", found, hint))
    if loss != _SPARSE:
        return
    if found[1:] not in ((), (1,)):
        hint = f"Give the class numbers, or compile with {_CATEGORICAL}."
        raise UsageError(sentence(f"class numbers of shape (n,) for {loss}", found, hint))
    lowest, highest = int(data.y.min()), int(data.y.max())
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(sentence(f"class numbers from 0 to {classes - 1}, one for each output", wrong))


def loss_name(model: keras.Model) -> str:
    """Name the compiled loss as Keras's functions are named; empty for what is not looked at.

    Parameters
    ----------
    model : keras.Model
        Compiled.

    Returns
    -------
    str
        Such as ``categorical_crossentropy``.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", keras.losses.MeanSquaredError())
    >>> loss_name(model)
    'mean_squared_error'
    """
    loss = model.loss
    if isinstance(loss, str):
        loss = None if loss in ("crossentropy", "ce") else keras.losses.get(loss)
    if getattr(loss, "_fn_kwargs", {}).get("ignore_class") is not None:
        return ""
    return str(getattr(getattr(loss, "fn", loss), "__name__", ""))


def _single_shape(model: keras.Model, side: str) -> Shape | None:
    """Give the shape of the only input or output, without the batch axis; None where there is none."""
    tensors = getattr(model, side, None) if model.built else None
    return tuple(tensors[0].shape[1:]) if tensors is not None and len(tensors) == 1 else None


def _matches(found: tuple[int, ...], expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        e is None or f == e for f, e in zip(found, expected, strict=True)
    )
