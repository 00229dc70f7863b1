"""Cross-validation: each image is answered by the one network that never saw it."""

import json

import numpy as np
import pytest
from photographs import write_classes

import convscope
from convscope.data.dataset import Dataset, fold_indices
from convscope.data.loading import load_again, take_fold
from convscope.errors import DataError, UsageError
from convscope.evaluation import Evaluation
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.several import cross_validate
from convscope.runs import RUN_FILE, RunDirectory

FOLDS = 3


def test_every_example_is_in_one_fold_in_proportion():
    labels = np.repeat([0, 1, 2], [30, 60, 9])
    folds = fold_indices(labels, FOLDS, seed=5)
    assert sorted(np.concatenate(folds)) == list(range(99))
    assert [np.bincount(labels[fold]).tolist() for fold in folds] == [[10, 20, 3]] * FOLDS


def test_near_duplicates_stay_in_one_fold():
    labels = np.repeat([0, 1], 30)
    groups = np.arange(60) // 2
    for fold in fold_indices(labels, FOLDS, seed=5, groups=groups):
        assert set(np.bincount(groups[fold])) <= {0, 2}


def test_too_few_images_for_so_many_folds():
    with pytest.raises(DataError, match="at least 4 different images of each class for 4 folds, got 3"):
        fold_indices(np.repeat([0, 1], [9, 3]), 4, seed=0)


def test_a_test_part_of_the_data_is_left_out_of_all_folds():
    digits = convscope.load("digits")
    fold = take_fold(digits, 1, FOLDS, seed=5)
    assert sorted([*fold.train.names, *fold.test.names]) == sorted(digits.train.names)
    assert "The test images of the data are not used." in fold.notes[-1]


def test_images_that_were_held_back_take_part(tmp_path):
    write_classes(tmp_path / "pets", count=10)
    dataset = convscope.load(tmp_path / "pets", size=16)
    assert dataset.test_held_back
    folds = [convscope.load(tmp_path / "pets", size=16, fold=(number, 2, 5)) for number in (1, 2)]
    names = [name for fold in folds for name in fold.test.names]
    assert sorted(names) == sorted([*dataset.train.names, *dataset.test.names])
    assert folds[0].fingerprint != folds[1].fingerprint


@pytest.mark.parametrize("number", [0, 4])
def test_a_fold_that_is_none(number):
    with pytest.raises(UsageError, match="a fold from 1 to 3"):
        take_fold(convscope.load("digits"), number, FOLDS, seed=5)


def test_each_image_is_answered_by_the_network_that_never_saw_it(tmp_path):
    digits = convscope.load("digits")
    few = take_fold(digits, 1, 8, seed=0)  # 180 images
    some = few.test.take(np.arange(len(few.test) // FOLDS * FOLDS - 1))  # folds of different sizes
    small = Dataset("few", some, digits.test, digits.class_names, "a" * 64)
    training = TrainingConfig(epochs=1, batch_size=32, precision="float32", deterministic=True)
    config = ExperimentConfig("simple", training=training)
    found = cross_validate(config, small, FOLDS, tmp_path, with_report=False)
    assert sorted(found.evaluation.name_of(row) for row in range(len(small.train))) == sorted(
        small.train.names
    )
    accuracies = [result.test.accuracy for result in found.results]
    images = [result.test.images for result in found.results]
    assert found.evaluation.accuracy == pytest.approx(np.average(accuracies, weights=images))
    losses = [result.test.loss for result in found.results]
    assert found.evaluation.loss == pytest.approx(np.average(losses, weights=images), rel=1e-9)
    assert found.evaluation.loss != pytest.approx(np.average(losses), rel=1e-9)
    for result in found.results:
        arrays = RunDirectory(result.run).read_arrays("predictions.npz")
        assert set(arrays["test_names"]).isdisjoint(arrays["validation_names"])
    summary = RunDirectory(found.folder).read_json("cross_validation.json")
    assert [fold["accuracy"] for fold in summary["folds"]] == accuracies
    stored = RunDirectory(found.folder).read_arrays("out_of_fold.npz")
    again = Evaluation.from_probabilities(stored["probabilities"], stored["labels"])
    assert again.confusion.tolist() == found.evaluation.confusion.tolist()
    assert (found.folder / "figures/confusion_matrix.png").is_file()
    assert (found.folder / "figures/reliability.png").is_file()


def test_the_command_and_what_its_runs_remember(typed, tmp_path):
    command = ["train", "digits", "--network", "simple", "--epochs", "1", "--folds", "2", "--no-report"]
    done = typed(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert len(shown["runs"]) == 2
    assert shown["cross_validation"]["evaluation"]["images"] == 1437
    record = RunDirectory(tmp_path / shown["runs"][1]["run"]).read_json(RUN_FILE)
    assert record["data"]["reading"]["fold"] == [2, 2, 1338]
    assert len(load_again(record["data"]).test) == record["data"]["counts"]["test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds of at least 2"),
        (["--folds", "3", "--seeds", "2"], "--folds or --seeds"),
    ],
)
def test_folds_that_cannot_be(typed, tmp_path, options, message):
    done = typed("train", "digits", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
