"""Where the run comes from: its data, and what somebody needs to repeat it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from convscope.contents import Contents
from convscope.report.formatting import count, percent
from convscope.report.media import Album

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
    """Describe the data of a run.

    Gives ``counts``, ``preparation``, ``fingerprint``, ``classes`` with examples, ``images_missing``.
    """
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
    """Gather what somebody needs to repeat the run.

    Gives ``command``, ``settings``, ``versions``, ``device``, ``files``, ``plan``.
    """
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
