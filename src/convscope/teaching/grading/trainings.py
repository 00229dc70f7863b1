"""Whether a training went as it should: the right data on each side, and a result that real seeds give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import sentence
from convscope.evaluation import Evaluation
from convscope.teaching.grading.architectures import judge_network
from convscope.teaching.grading.bands import band_of
from convscope.teaching.grading.values import row_counts
from convscope.teaching.grading.verdict import require

Array = NDArray[Any]

# The loss that training reports and the one computed anew differ by rounding only.
LOSS_TOLERANCE = 0.02
LEAKED_SHARE = 0.01  # a few images may truly occur twice
ONE_HOT_LOSSES = ("categorical_crossentropy", "categoricalcrossentropy")


def judge_training(
    name: str,
    model: Any,
    history: Any,
    data_name: str,
    train: tuple[Array, Array],
    val: tuple[Array, Array],
    test: tuple[Array, Array],
    batch_size: int,
    epochs: int,
) -> str:
    """Judge a training by its history and by what the model makes of the validation images now.

    The parts are pairs of network input and one-hot targets; the name of the data decides the band.
    """
    classes = train[1].shape[1]
    judge_network(name, model, train[0].shape[1:], classes)
    _require_compiled(model)
    curves = _read_history(history, epochs)
    _require_parts_apart(train[0], val[0])
    _require_steps(history, len(train[0]), len(val[0]), batch_size)
    _require_validated_on(model, curves["val_loss"][-1], val, test, train)
    accuracy = curves["val_accuracy"][-1]
    _require_in_band(accuracy, name, data_name, len(train[0]), epochs)
    return f"{accuracy:.2%} of the validation images after {epochs} epochs, as it should be."


def _require_compiled(model: Any) -> None:
    require(
        getattr(model, "compiled", False),
        sentence("a compiled model", "one without a loss"),
        'model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])',
    )
    loss = model.loss
    found = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", loss)
    sparse = "sparse" in str(found)
    require(
        str(found).lower() in ONE_HOT_LOSSES,
        sentence('the loss "categorical_crossentropy"', f'"{found}"'),
        "The sparse one takes class numbers; these targets are one-hot rows."
        if sparse
        else "For one probability per class and one-hot targets it is the cross-entropy over the classes.",
    )
    from_logits = getattr(loss, "get_config", dict)().get("from_logits", False)
    require(
        not from_logits,
        sentence("a loss of probabilities", "from_logits=True"),
        "The network ends in a softmax already.",
    )


def _read_history(history: Any, epochs: int) -> Mapping[str, Any]:
    curves: Mapping[str, Any] = getattr(history, "history", history)
    require(
        isinstance(curves, Mapping) and "loss" in curves,
        sentence("`history` as convscope.fit gives it back", type(history).__name__),
        "history = convscope.fit(model, …)",
    )
    require(
        "accuracy" in curves,
        sentence("the accuracy in the history", ", ".join(curves)),
        'model.compile(…, metrics=["accuracy"])',
    )
    require(
        "val_loss" in curves and "val_accuracy" in curves,
        sentence("the loss and accuracy of validation data in the history", ", ".join(curves)),
        "convscope.fit(…, validation_data=(x_val, y_val))",
    )
    require(
        len(curves["loss"]) == epochs,
        sentence(f"{epochs} epochs", len(curves["loss"])),
        "epochs=EPOCHS. To train anew, build and compile the model again first.",
    )
    require(
        np.isfinite(curves["loss"]).all(),
        sentence("a finite loss", curves["loss"][-1]),
        "Are the images scaled to 0 to 1?",
    )
    return curves


def _require_parts_apart(train: Array, val: Array) -> None:
    shared = sum((row_counts(train) & row_counts(val)).values())
    require(
        shared <= LEAKED_SHARE * len(val),
        sentence("no validation image in `x_train`", f"{shared:,} of {len(val):,}"),
        "The network knows these images already: their accuracy says nothing about new ones.",
    )


def _require_steps(history: Any, train: int, val: int, batch_size: int) -> None:
    """Compare the number of steps with the images that should have been seen."""
    steps = (getattr(history, "params", None) or {}).get("steps")
    if steps is None:
        return
    expected, with_val = math.ceil(train / batch_size), math.ceil((train + val) / batch_size)
    leaked = steps == with_val
    found = f"{steps} steps" + (", as many as training and validation images together take" if leaked else "")
    require(
        steps == expected,
        sentence(
            f"{expected} steps in an epoch, for {train:,} images in batches of {batch_size}",
            found,
        ),
        "Train on x_train alone; validation images must stay new to the network."
        if leaked
        else "convscope.fit(model, x_train, y_train, batch_size=BATCH_SIZE, …)",
    )


def _require_validated_on(
    model: Any,
    reported: float,
    val: tuple[Array, Array],
    test: tuple[Array, Array],
    train: tuple[Array, Array],
) -> None:
    """Find out from the loss which images the training validated with."""
    if _agree(reported, _loss(model, val)):
        return
    others = {"test": test, "training": (train[0][: len(val[0])], train[1][: len(val[0])]), "all": train}
    culprit = next((part for part, pair in others.items() if _agree(reported, _loss(model, pair))), None)
    if culprit == "test":
        found = "the loss of the test images"
        hint = "The test images answer one question, at the very end; choices are made on validation images."
    elif culprit:
        found = "the loss of training images"
        hint = "The network knows its training images by heart; validation images are new to it."
    else:
        found = f"a loss of {reported:.4f} where the model now has {_loss(model, val):.4f}"
        hint = "Was the model changed after its training? Build, compile and train it again."
    require(
        False,
        sentence("validation with (x_val, y_val)", found),
        hint,
        "validation_data=(x_val, y_val)",
    )


def _loss(model: Any, pair: tuple[Array, Array]) -> float:
    from convscope.training.api import predict

    return Evaluation.from_probabilities(predict(model, pair[0]), pair[1]).loss


def _agree(first: float, second: float) -> bool:
    return abs(first - second) <= LOSS_TOLERANCE * second + 1e-4


def _require_in_band(accuracy: float, name: str, data_name: str, images: int, epochs: int) -> None:
    band = band_of(name, data_name, images, epochs)
    seeds = f"{band.low:.1%} to {band.high:.1%} of the validation images right, as other seeds do"
    require(
        accuracy >= band.low,
        sentence(seeds, f"{accuracy:.2%}"),
        "The network learns, but not what it could. Are the images scaled? Do images and targets belong "
        "together?",
        'Adam with its own learning rate: model.compile("adam", …).',
    )
    require(
        accuracy <= band.high,
        sentence(seeds, f"{accuracy:.2%}, too good to be true"),
        "Has the network seen these images before?",
    )
