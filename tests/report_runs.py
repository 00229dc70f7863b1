"""Runs made without training, for the tests of the report: quick, and odd in whatever way a test needs."""

import numpy as np

from convscope.contents import TEST_SET_LOG
from convscope.data.dataset import Dataset, Split, fingerprint
from convscope.evaluation import Evaluation, test_set_log
from convscope.experiment.results import write_evaluation, write_training
from convscope.networks import build
from convscope.preprocessing import Preprocess
from convscope.report.rendering import write_report
from convscope.runs import RunDirectory

HISTORY = {
    "loss": [0.9, 0.5, 0.35, 0.3],
    "accuracy": [0.7, 0.85, 0.9, 0.91],
    "val_loss": [0.6, 0.45, 0.4, 0.42],
    "val_accuracy": [0.8, 0.88, 0.9, 0.9],
}


def make_split(part, count, classes, shape, names, seed):
    """Make images in which each class is bright somewhere else."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = generator.integers(0, 60, (count, *shape), dtype=np.uint8)
    rows, columns = labels % shape[0], (labels // shape[0]) % shape[1]
    images[np.arange(count), rows, columns] = 250
    named = [names(part, index) for index in range(count)]
    return Split(images, labels.astype(np.int64), named)


def make_dataset(classes=10, shape=(12, 12, 1), count=240, class_names=None, names=None, seed=0):
    """Make a small dataset."""
    names = names or (lambda part, index: f"made/{part}/{index:04d}")
    class_names = tuple(class_names or map(str, range(classes)))
    train, test = (
        make_split(part, count, classes, shape, names, seed + place)
        for place, part in enumerate(("train", "test"))
    )
    return Dataset("made", train, test, class_names, fingerprint(train, test, class_names=class_names))


def make_evaluation(split, class_names, right, seed):
    """Predict a share of the images rightly, with some doubt."""
    generator = np.random.default_rng(seed)
    count, classes = len(split), len(class_names)
    scores = generator.normal(size=(count, classes))
    answers = split.labels.copy()
    wrong = generator.permutation(count)[: round((1 - right) * count)]
    answers[wrong] = (answers[wrong] + generator.integers(1, classes, len(wrong))) % classes
    scores[np.arange(count), answers] += 6
    powers = np.exp(scores)
    table = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    exact = table / table.sum(1, keepdims=True)
    order = exact.argsort(1)[:, -1]
    exact[np.arange(count), order], exact[np.arange(count), answers] = (
        exact[np.arange(count), answers].copy(),
        exact[np.arange(count), order].copy(),
    )
    return Evaluation.from_probabilities(exact, split.labels, class_names, split.names)


def make_run(
    folder,
    *,
    dataset=None,
    model=None,
    right=0.9,
    history=HISTORY,
    status="completed",
    name="simple",
    parts=("validation", "test"),
    record=None,
):
    """Write a run directory; return it and its dataset."""
    dataset = dataset or make_dataset()
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    channels_first = model is not None and model.input_shape[1] == dataset.input_shape[2]
    data_format = "channels_first" if channels_first else "channels_last"
    preprocess = Preprocess.fit(dataset.train.images, "unit", data_format)
    classes = len(dataset.class_names)
    model = model or build("simple", preprocess.input_shape, classes)
    write_training(run, model, preprocess, history)
    if parts:
        splits = {"validation": dataset.train, "test": dataset.test}
        evaluations = {
            part: make_evaluation(splits[part], dataset.class_names, right, place)
            for place, part in enumerate(parts)
        }
        write_evaluation(run, evaluations)
        run.write_json(TEST_SET_LOG, test_set_log.add_use(None, "final evaluation", by="test"))
    run.write_json(
        "run.json",
        {
            "status": status,
            "command": "convscope train made --network simple",
            "config": {"network": name, "training": {"epochs": 4, "seed": 1338}},
            "seed": 1338,
            "seconds": 12.5,
            "data": {
                "name": dataset.name,
                "source": "made",
                "reading": {},
                "fingerprint": dataset.fingerprint,
                "counts": {"train": len(dataset.train), "test": len(dataset.test)},
                "class_names": list(dataset.class_names),
                "preparation": ["one step", "another step"],
            },
            "network": {"name": name, "parameters": model.count_params()},
            "versions": {"python": "3.11", "keras": "3.15"},
            "device": {"torch_device": "cpu"},
            "source_commit": None,
            **(record or {}),
        },
    )
    return folder, dataset


def render_report(path, dataset=None):
    """Write a run's report; return the page."""
    return write_report(path, dataset=dataset).read_text(encoding="utf-8")
