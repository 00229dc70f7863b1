"""Measure the validation accuracies that real seeds give, for the checks of the lessons.

Trains the exercise's three networks as the lessons do, with a split and first weights of their own for each
seed, and writes the lowest and highest validation accuracy after each epoch to ``bands.json``.

    python benchmarks/bands.py [--seeds 5] [--only digits] [--networks dense]
"""

import argparse
import json
import os
from pathlib import Path

import convscope  # isort: skip  (it chooses Keras's back end, before Keras is imported)
import keras
import numpy as np
from sklearn.model_selection import train_test_split

from convscope import lessons
from convscope.environment import versions

TARGET = Path(convscope.__file__).parent / "teaching" / "grading" / "bands.json"
NETWORKS = ("simple", "dense", "deep")
SETTINGS = ("digits", "digits,quick", "mnist,quick", "mnist")
BATCH_SIZE = 128


def accuracies(network, data, epochs, seed):
    """Train once; return the validation accuracy after each epoch."""
    images_train, images_val, labels_train, labels_val = train_test_split(
        data.train.images, data.train.labels, test_size=0.3, random_state=seed
    )
    preprocess = convscope.Preprocess.fit(images_train)
    targets = [keras.utils.to_categorical(labels, 10) for labels in (labels_train, labels_val)]
    keras.utils.set_random_seed(seed)
    model = convscope.build(network)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    history = convscope.fit(
        model,
        preprocess.apply(images_train),
        targets[0],
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(preprocess.apply(images_val), targets[1]),
        seed=seed,
        verbose=0,
    )
    return len(images_train), history.history["val_accuracy"]


def measure(network, seeds):
    """Measure one network with the current settings."""
    data = lessons.load_data()
    epochs = lessons.epochs(data)
    runs = [accuracies(network, data, epochs, seed) for seed in range(seeds)]
    curves = np.array([curve for _, curve in runs])  # (seeds, epochs)
    entry = {"network": network, "dataset": data.name, "images": runs[0][0], "seeds": seeds}
    for name, values in (("low", curves.min(axis=0)), ("high", curves.max(axis=0))):
        entry[name] = [round(float(value), 5) for value in values]
    print(entry, flush=True)
    return entry


def key(entry):
    return entry["dataset"], entry["images"], entry["network"], len(entry["low"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=SETTINGS, nargs="*", default=SETTINGS)
    parser.add_argument("--networks", choices=NETWORKS, nargs="*", default=NETWORKS)
    arguments = parser.parse_args()
    for settings in arguments.only:
        os.environ["CONVSCOPE_LESSONS"] = settings
        for network in arguments.networks:
            write(measure(network, arguments.seeds))


def write(entry):
    """Put one measurement in the place of the former one with as many images; the longer training wins."""
    bands = json.loads(TARGET.read_text())["bands"] if TARGET.exists() else []
    kept = [old for old in bands if key(old) != key(entry)]
    text = {"how": "benchmarks/bands.py", "versions": versions(), "bands": sorted([*kept, entry], key=key)}
    TARGET.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
