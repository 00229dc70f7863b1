"""What people said that images really show: kept, undone, learned from."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from convscope.data.corrections import CorrectionStore, add_corrections, read_corrections, undo_correction
from convscope.data.dataset import Split, hold_back
from convscope.data.loading import load_again
from convscope.errors import DataError
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.preparation import prepare


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(pixels.shape[:2]) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(seed, size=28):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 1), np.uint8)


def landscape():
    """Draw something with large shapes, as a photograph has them."""
    shapes = Image.fromarray(drawn(50, 5)[..., 0] // 2).resize((28, 28), Image.Resampling.BICUBIC)
    return np.asarray(shapes)[..., None]


def test_corrections_are_read_in_the_order_in_which_they_came_and_the_latest_is_undone(tmp_path):
    folder = tmp_path / "kept"
    store = CorrectionStore(folder)
    labels = ["1", "2", "<b>3</b>", "../../4"]
    names = [store.keep(png(drawn(number)), label) for number, label in enumerate(labels)]
    assert [one.label for one in read_corrections(folder)] == labels
    assert [one.name for one in read_corrections(folder, 2)] == names[:2]
    assert (store.count, CorrectionStore(folder).size) == (4, store.size)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == names

    undone, left = undo_correction(folder)
    assert (undone.label, undone.image, left) == ("../../4", png(drawn(3)), 3)
    assert (folder / "undone" / names[3]).is_file()
    assert [one.name for one in read_corrections(folder)] == names[:3]
    assert CorrectionStore(folder).keep(png(drawn(9)), "9") > names[2]


def test_two_writers_never_take_the_same_number(tmp_path):
    first, second = CorrectionStore(tmp_path / "kept"), CorrectionStore(tmp_path / "kept")
    names = [writer.keep(png(drawn(number)), "1") for number in range(3) for writer in (first, second)]
    assert sorted({name[:6] for name in names}) == [f"{number:06d}" for number in range(1, 7)]


def test_corrections_become_training_images_and_nothing_that_is_tested_on(digits, tmp_path):
    store = CorrectionStore(tmp_path)
    train, test = digits.train, digits.test
    wrong = str((int(train.labels[3]) + 1) % 10)
    store.keep(png(drawn(1)), "7")
    store.keep(png(drawn(1)), "8")  # of the same image: the latest counts
    store.keep(png(np.zeros((50, 30, 3), np.uint8)), "0")  # another size, another number of channels
    store.keep(png(train.images[3]), wrong)
    store.keep(png(test.images[5]), "1")
    added = add_corrections(digits, tmp_path)
    assert len(added.train) == len(train) + 2
    assert added.train.labels[-2:].tolist() == [8, 0]
    np.testing.assert_array_equal(added.train.images[-2], drawn(1))
    assert added.train.labels[3] == int(wrong) and train.labels[3] != int(wrong)
    assert added.test is test
    assert "5 corrections" in added.notes[-1] and "1 left out" in added.notes[-1]
    assert added.fingerprint != digits.fingerprint

    store.keep(png(drawn(2)), "1")
    recorded = {"name": "digits", "reading": {"add": [str(tmp_path), 5]}, "fingerprint": added.fingerprint}
    assert load_again(recorded).fingerprint == added.fingerprint  # as the run saw them
    undo_correction(tmp_path)
    undo_correction(tmp_path)
    with pytest.raises(DataError, match="changed since"):
        load_again(recorded)


def test_each_further_image_is_in_a_group_of_its_own(digits, tmp_path):
    grouped = replace(digits.train, groups=np.arange(len(digits.train)) // 2)
    for number in range(3):
        CorrectionStore(tmp_path).keep(png(drawn(number)), "1")
    groups = add_corrections(replace(digits, train=grouped), tmp_path).train.groups
    assert len(set(groups[-3:].tolist())) == 3
    assert groups[-3:].min() > grouped.groups.max()


def test_corrections_and_their_near_copies_are_never_validated_on(digits, tmp_path):
    """Of the further images, a corrected label and a near-copy, whichever seed divides the rest."""
    train = digits.train
    grouped = replace(train, groups=np.arange(len(train)), images=train.images.copy())
    grouped.images[7] = view = landscape()
    store = CorrectionStore(tmp_path)
    for number in range(20):
        store.keep(png(drawn(number)), str(number % 10))
    store.keep(png(view + np.uint8(2)), "3")  # the same, brightened
    store.keep(png(grouped.images[3]), str((int(grouped.labels[3]) + 1) % 10))
    added = add_corrections(replace(digits, train=grouped), tmp_path)
    assert len(added.train) == len(grouped) + 21
    assert added.train.groups[-1] == added.train.groups[7]
    assert "never validated" in added.notes[-1]
    corrections = {3, 7, *range(len(grouped), len(added.train))}
    for seed in range(5):
        kept, held = hold_back(added.train, 0.3, seed)
        assert corrections <= set(kept.tolist())
        assert sorted([*kept, *held]) == list(range(len(added.train)))
        config = ExperimentConfig(data="digits", training=TrainingConfig(seed=seed))
        prepared = prepare(added, config)
        assert not any(name.startswith(tmp_path.name) for name in prepared.validation.names)
        assert len(prepared.train) + len(prepared.validation) == len(added.train)


def test_a_near_copy_of_a_test_image_is_left_out(digits, tmp_path):
    parts = [
        replace(part, groups=first + np.arange(len(part)), images=part.images.copy())
        for part, first in ((digits.train, 0), (digits.test, len(digits.train)))
    ]
    parts[1].images[4] = view = landscape()
    CorrectionStore(tmp_path).keep(png(view + np.uint8(2)), "3")
    added = add_corrections(replace(digits, train=parts[0], test=parts[1]), tmp_path)
    assert len(added.train) == len(digits.train) and "1 left out" in added.notes[-1]


def test_a_class_of_corrections_and_one_other_image_can_be_divided():
    images = np.zeros((8, 4, 4, 1), np.uint8)
    labels, only = np.array([0, 0, 0, 0, 0, 1, 1, 1]), np.arange(8) > 5
    train = Split(images, labels, list("abcdefgh"), training_only=only)
    kept, held = hold_back(train, 0.4, 1)
    assert sorted(kept.tolist())[-3:] == [5, 6, 7] and len(held) == 2
    with pytest.raises(DataError, match="corrections alone"):
        hold_back(replace(train, training_only=np.ones(8, np.bool_)), 0.4, 1)


def test_large_training_images_stay_on_disk(digits, tmp_path, monkeypatch):
    from convscope.data import cache

    for number in range(3):
        CorrectionStore(tmp_path).keep(png(drawn(number)), "1")
    whole = add_corrections(digits, tmp_path).train.images
    monkeypatch.setattr(cache, "IN_MEMORY", 1000)
    monkeypatch.setattr(cache, "COPY_BYTES", 784 * 100)
    mapped = add_corrections(digits, tmp_path).train.images
    assert isinstance(mapped, cache.PixelStore)
    np.testing.assert_array_equal(np.asarray(mapped), whole)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (b"[]", "list indices"),
        (b'{"version": 2}', "version 2"),
        (b'{"version": 1, "label": "1"}', "image"),
        (b'{"version": 1, "label": "1", "image": "*"}', "base64|data"),
    ],
)
def test_a_damaged_correction_is_named(content, found, tmp_path):
    file = tmp_path / "000001-0123456789abcdef.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=found) as error:
        read_corrections(tmp_path)
    assert str(file) in str(error.value)


def test_what_cannot_be_learned_from_is_refused(digits, tmp_path):
    with pytest.raises(DataError, match="got none"):
        read_corrections(tmp_path / "nothing")
    with pytest.raises(DataError, match="got none"):
        undo_correction(tmp_path)
    CorrectionStore(tmp_path).keep(png(drawn(0)), "cat")
    with pytest.raises(DataError, match=r"one of the classes 0, 1.*'cat'"):
        add_corrections(digits, tmp_path)
    undo_correction(tmp_path)
    CorrectionStore(tmp_path).keep(b"no image", "1")
    with pytest.raises(DataError, match="to be an image"):
        add_corrections(digits, tmp_path)


def test_a_training_learns_from_them_and_can_be_evaluated_again(typed, tmp_path, no_figures):
    store = CorrectionStore(tmp_path / "kept")
    for number in range(3):
        store.keep(png(drawn(number)), "1")
    options = ("--epochs", "1", "--network", "simple", "--no-preflight", "--out", "runs", "--json")
    done = typed("train", "digits", "--add", "kept", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.rglob("run.json")
    record = json.loads(run.read_text(encoding="utf-8"))["data"]
    assert record["reading"]["add"] == [str(tmp_path / "kept"), 3]
    assert sum(record["counts"].values()) == 1797 + 3
    assert load_again(record).train.names[-1].startswith("kept/000003-")


def test_the_command_line_takes_one_back(typed, tmp_path):
    CorrectionStore(tmp_path / "kept").keep(png(drawn(0)), "7")
    done = typed("data", "undo", "kept", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["left"]) == (0, 0)
    done = typed("data", "undo", "kept", cwd=tmp_path)
    assert done.returncode == 3 and "got none" in done.stderr
    done = typed("train", "digits", "--add", "kept", cwd=tmp_path)
    assert done.returncode == 3 and "corrections in kept" in done.stderr
    done = typed("train", "digits", "--add", "kept", "--folds", "3", cwd=tmp_path)
    assert done.returncode == 2
