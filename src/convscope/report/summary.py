"""The run as a whole: how good the network is and how sure that is, its data, and how to repeat it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from convscope.contents import Contents
from convscope.evaluation import Evaluation, Interval
from convscope.networks import PUBLISHED, Published
from convscope.plotting import plot_intervals
from convscope.report.formatting import THIN, Album, chart, count, name, percent, plural, points

# The published results are those of MNIST after this many epochs.
PUBLISHED_DATA, PUBLISHED_EPOCHS = "mnist", 10
WORST_CONFUSIONS = 3
OUTCOMES = {
    "interrupted": "The training was interrupted",
    "diverged": "The training diverged",
    "running": "The training was still running, or was cut off,",
}


def summary(contents: Contents) -> dict[str, Any]:
    """Say how good the network is, how sure that is, and against what it was compared."""
    judged = contents.judged
    if judged is None:
        return {
            "headline": None,
            "sentences": _unfinished(contents),
            "rows": [],
            "chart": None,
            "facts": _facts(contents, None),
        }
    part, evaluation = judged
    rows = _rows(contents, evaluation, part)
    return {
        "headline": {"share": evaluation.accuracy, "interval": evaluation.accuracy_interval, "part": part},
        "sentences": [_result(contents, part, evaluation), *_comparisons(contents, part, evaluation)],
        "rows": rows,
        "chart": _chart(rows),
        "facts": _facts(contents, evaluation),
    }


def epochs_done(contents: Contents) -> int:
    """Count the finished epochs."""
    return max((len(values) for values in contents.history.values()), default=0)


def epochs_planned(contents: Contents) -> int | None:
    """Return how many epochs were asked for, where the run says so."""
    planned = dict(contents.record["config"].get("training", {})).get("epochs")
    return planned if isinstance(planned, int) else None


def published(contents: Contents) -> Published | None:
    """Find the exercise's published result for this network, if it is about the same data."""
    return PUBLISHED.get(contents.network_name) if contents.data_name == PUBLISHED_DATA else None


def _result(contents: Contents, part: str, evaluation: Evaluation) -> str:
    right = evaluation.images - evaluation.errors
    low, high = evaluation.accuracy_interval
    text = (
        f"The network {name(contents.network_name)} is right for {count(right)} of "
        f"{count(evaluation.images)} {part} images of {name(contents.data_name)}. "
        f"With 95{THIN}% confidence its accuracy on such images lies between {percent(low)} and "
        f"{percent(high)}."
    )
    if part != "test":
        text += " The run has no predictions for test images; choices made on validation data flatter them."
    return text


def _comparisons(contents: Contents, part: str, evaluation: Evaluation) -> list[str]:
    """Say what guessing would reach, where the network is wrong, and what others reached."""
    majority = _majority(evaluation)
    frequent = evaluation.class_names[int(evaluation.support.argmax())]
    guess = f"Always answering “{name(frequent)}”, the most frequent class,"
    sentences = [f"{guess} would be right for {percent(majority)}."]
    if evaluation.errors:
        sentences.append(f"Most often wrong: {_confusions(evaluation)}.")
    known = published(contents)
    if known is not None and part == "test":
        sentences.append(_beside_published(contents, evaluation, known))
    return sentences


def _confusions(evaluation: Evaluation) -> str:
    """Name the most frequent confusions, each with how many images of its class it takes."""
    names = [name(class_name) for class_name in evaluation.class_names]
    return ", ".join(
        f"“{names[pair.true]}” taken for “{names[pair.predicted]}” "
        f"({pair.images} of {evaluation.support[pair.true]})"
        for pair in evaluation.confused_pairs(WORST_CONFUSIONS)
    )


def _beside_published(contents: Contents, evaluation: Evaluation, known: Published) -> str:
    difference = evaluation.accuracy - known.test_accuracy
    side = "above" if difference > 0 else "below"
    gap = (
        f"{points(difference)} {side} it" if abs(difference) >= 5e-5 else "the same to a hundredth of a point"
    )
    inside = known.test_accuracy in evaluation.accuracy_interval
    verdict = "so the difference could be chance" if inside else "so the difference is more than chance"
    sentence = (
        f"The exercise’s published result for this network is {percent(known.test_accuracy)}; this run is "
        f"{gap}. The published value lies {'inside' if inside else 'outside'} the interval, {verdict}"
    )
    epochs = epochs_done(contents)
    if epochs != PUBLISHED_EPOCHS:
        return (
            f"{sentence} – but it was trained for {plural(epochs, 'epoch')}, the published one for "
            f"{PUBLISHED_EPOCHS}."
        )
    return f"{sentence}."


@dataclass(frozen=True)
class Row:
    """One line of the comparison; ``own`` is the number that the report is about."""

    what: str
    share: float
    interval: Interval | None = None
    own: bool = False


def _rows(contents: Contents, evaluation: Evaluation, part: str) -> list[Row]:
    """List what the accuracy is compared with, each with its interval on one scale."""
    rows = [Row(f"this run, {part} images", evaluation.accuracy, evaluation.accuracy_interval, own=True)]
    validation = contents.evaluations.get("validation")
    if part == "test" and validation is not None:
        rows.append(Row("this run, validation images", validation.accuracy, validation.accuracy_interval))
    known = published(contents)
    if known is not None:
        rows.append(Row("the exercise’s published result", known.test_accuracy))
    return [*rows, Row("always the most frequent class", _majority(evaluation))]


def _chart(rows: list[Row]) -> Markup:
    """Draw the comparison on one scale; its last row is the baseline."""
    *own, guess = rows
    figure = plot_intervals(
        [row.what for row in own],
        [row.share for row in own],
        [row.interval for row in own],
        (guess.what, guess.share),
    )
    described = "; ".join(f"{row.what} {percent(row.share)}" for row in rows)
    return chart(figure, "Accuracy with its 95 % interval", f"{described}.", figure.axes)


def _majority(evaluation: Evaluation) -> float:
    return float(evaluation.support.max() / evaluation.images)


def _unfinished(contents: Contents) -> list[str]:
    """Say why there is no evaluation, and what there is instead."""
    status = str(contents.record.get("status", "unknown"))
    happened = OUTCOMES.get(status, f"The run’s status is “{name(status)}”")
    done, planned = epochs_done(contents), epochs_planned(contents)
    progress = f" after {plural(done, 'whole epoch')}" + (f" of {planned}" if planned else "")
    sentences = [f"{happened}{progress}, so there is no evaluation."]
    accuracies = contents.history.get("val_accuracy", [])
    if accuracies:
        sentences.append(
            f"At the end of the last whole epoch {percent(accuracies[-1])} of the validation images were "
            "recognised."
        )
    return sentences


def _facts(contents: Contents, evaluation: Evaluation | None) -> list[tuple[str, str]]:
    """List the numbers that a reader looks for next."""
    facts = []
    if evaluation is not None:
        facts.append(("errors", f"{count(evaluation.errors)} of {count(evaluation.images)}"))
        facts.append(("loss", f"{evaluation.loss:.4f}"))
    parameters = contents.record["network"].get("parameters")
    facts.append(("parameters", count(parameters)))
    facts.append(("epochs", count(epochs_done(contents))))
    return facts


PART_NAMES = ("train", "validation", "test")
CLASSES_WITH_PICTURES = 12
# Ways to bring an image to size that are explained where they are named.
PREPARATION_WORDS = ("letterbox", "crop", "stretch")
PICTURES_OF_A_CLASS = 6
MANY_CLASSES = 20
# Where the run's files are described; others are listed without a word.
FILES = {
    "run.json": "this record",
    "history.csv": "loss and metrics of each epoch",
    "model.keras": "the trained network",
    "weights.safetensors": "its weights alone",
    "preprocess.json": "what its input must go through",
    "preprocess.npz": "the arrays of that",
    "predictions.npz": "probabilities, labels and names of validation and test images",
    "evaluation.json": "every number of the evaluation",
    "calibration.json": "the temperature that calibrates probabilities",
    "statistics.json": "what the training images look like",
    "novelty.npz": "where training images lie in feature space, and how far from them is unlike them",
    "test_consultations.json": "how often the test set was looked at, and why",
    "report.html": "this page",
}


def data(contents: Contents, album: Album) -> dict[str, Any]:
    """Describe the data of a run: parts, preparation, and classes with examples."""
    record = contents.record["data"]
    judged = contents.judged
    classes = []
    if judged is not None:
        part, evaluation = judged
        for label, class_name in enumerate(evaluation.class_names):
            support = int(evaluation.support[label])
            classes.append(
                {
                    "name": class_name,
                    "count": count(support),
                    "share": percent(support / evaluation.images, 1),
                    "examples": _examples(evaluation.labels, label, album)
                    if part == "test" and evaluation.classes <= CLASSES_WITH_PICTURES
                    else [],
                }
            )
    counts = record.get("counts", {})
    return {
        "name": contents.data_name,
        "part": judged[0] if judged else "",
        "counts": [(part, counts[part]) for part in PART_NAMES if part in counts],
        "preparation": record.get("preparation", []),
        "words": [word for word in PREPARATION_WORDS if word in " ".join(record.get("preparation", []))],
        "fingerprint": record.get("fingerprint", ""),
        "class_names": contents.class_names,
        "classes": classes,
        "many": len(classes) > MANY_CLASSES,
        "pictures": any(entry["examples"] for entry in classes),
        "images_missing": contents.images_missing if judged else "",
    }


def reproduction(contents: Contents) -> dict[str, Any]:
    """Gather what somebody needs to repeat the run."""
    record = contents.record
    config = dict(record["config"])
    training = config.pop("training", {})
    device = record["device"]
    return {
        "command": record.get("command", ""),
        "seed": record.get("seed"),
        "commit": record.get("source_commit"),
        "fingerprint": record["data"].get("fingerprint", ""),
        "settings": [
            (key.replace("_", " "), _value(value))
            for key, value in {**config, **training}.items()
            if value is not None and value != {}  # what was left open says nothing
        ],
        "versions": list(record["versions"].items()),
        "device": [(key.replace("_", " "), _value(value)) for key, value in device.items()],
        "plan": json.dumps(record["plan"], indent=2) if record.get("plan") else "",
        "files": _files(contents),
    }


def _examples(labels: Any, label: int, album: Album) -> list[str]:
    """Show the first images of a class."""
    places = np.flatnonzero(labels == label)[:PICTURES_OF_A_CLASS]
    return [picture for place in places if (picture := album.picture(int(place)))]


def _value(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):  # what is 0 or left open is not done
        done = {key: one for key, one in value.items() if one and one != "none"}
        return ", ".join(f"{key} {_value(one)}" for key, one in done.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    return str(value)


def _files(contents: Contents) -> list[tuple[str, int, str]]:
    """List the files of the run, without those of its folders."""
    files = (one for one in contents.path.iterdir() if one.is_file() and not one.name.startswith("."))
    return [(file.name, file.stat().st_size, FILES.get(file.name, "")) for file in sorted(files)]
