"""Folders of images: every usual layout, sizes that differ, what is left out, and the cache behind it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import encoded, photograph, tree_of, write_classes
from PIL import Image

import convscope
from convscope.data import cache, ingest
from convscope.data.ingest import ReadOptions, Survey, choose_shape, open_path
from convscope.data.loading import load
from convscope.data.quality import check_path
from convscope.data.sources import base
from convscope.data.sources.base import order_classes
from convscope.data.sources.folder import read_folder, walk
from convscope.errors import DataError, DataNotFoundError, UnknownNameError, UsageError
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.preparation import prepare
from convscope.export import Bundle
from convscope.prediction import predict_files
from convscope.preprocessing import Preprocess

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def photos(tmp_path):
    write_classes(tmp_path / "photos", count=10)
    return tmp_path / "photos"


def by_name(dataset):
    """Map the name of each image to its part, class and pixels."""
    rows = {}
    for part in ("train", "validation", "test"):
        if (split := getattr(dataset, part)) is not None:
            for name, label, image in zip(split.names, split.labels, split.images, strict=True):
                rows[name] = (part, dataset.class_names[label], image)
    return rows


def test_without_parts_a_test_part_is_held_back(photos):
    dataset = load(photos)
    assert (len(dataset.train), len(dataset.test), dataset.validation) == (16, 4, None)
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.name == "photos"
    assert dataset.notes[0].startswith("No test part was found: 4 images are held back")
    rows = by_name(dataset)
    assert len(rows) == 20
    assert all(name.split("/")[0] == label for name, (_, label, _) in rows.items())
    assert (rows["dog/007.png"][2] == photograph([0, 1, 7])).all()


def test_a_class_that_the_held_back_part_lacks_is_named(tmp_path):
    for seed, (name, number) in enumerate({"cat": 22, "dog": 23, "rare": 2}.items()):
        write_classes(tmp_path / "photos", (name,), number, seed=seed)
    dataset = load(tmp_path / "photos")
    assert np.bincount(dataset.test.labels, minlength=3)[2] == 0
    assert "none of rare, too few to be divided; the other classes in proportion" in dataset.notes[0]


def test_the_held_back_part_follows_the_seed_and_is_not_the_last_rows(photos):
    parts = [tuple(load(photos, seed=seed).test.names) for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]
    assert parts[0] != ("cat/008.png", "cat/009.png", "dog/008.png", "dog/009.png")


def test_near_duplicates_stay_on_one_side(photos):
    for path in sorted(photos.rglob("*.png")):
        path.with_suffix(".jpg").write_bytes(encoded(np.asarray(Image.open(path)), "JPEG", quality=85))
    for seed in range(5):
        rows = by_name(load(photos, seed=seed))
        assert all(
            rows[name][0] == rows[name.replace(".png", ".jpg")][0] for name in rows if name.endswith("png")
        )


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "validation", "Testing"),
        ("train", "dev", "test"),
        ("train", "val", "hold-out"),
        ("train", "valid", "evaluation_set"),
    ],
    ids="-".join,
)
def test_parts_are_kept(tmp_path, names):
    for seed, name in enumerate(names):
        write_classes(tmp_path / "photos" / name, count=4 - seed, seed=seed)
    dataset = load(tmp_path / "photos")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (8, 6, 4)
    assert dataset.notes == ()
    assert f"{names[1]}/dog/002.png" in set(dataset.validation.names)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train", "eval", "test"), (8, 6, 4)),
        (("train", "evaluation", "holdout"), (8, 6, 4)),
        (("train", "val", "eval"), (8, 6, 4)),
        (("train", "eval"), (8, 0, 6)),
    ],
    ids=["eval-test", "evaluation-holdout", "val-eval", "eval"],
)
def test_eval_is_the_validation_part_beside_a_test_part(tmp_path, names, sizes):
    for seed, name in enumerate(names):
        write_classes(tmp_path / "photos" / name, count=4 - seed, seed=seed)
    dataset = load(tmp_path / "photos")
    validation = len(dataset.validation) if dataset.validation else 0
    assert (len(dataset.train), validation, len(dataset.test)) == sizes


def test_two_folders_for_one_part_are_said(tmp_path):
    for seed, name in enumerate(("train", "val", "test", "eval")):
        write_classes(tmp_path / "photos" / name, count=4, seed=seed)
    found = {finding.kind: finding for finding in open_path(tmp_path / "photos").findings}
    assert found["united_part"].names == ("eval", "test")


def test_two_folders_for_each_of_two_parts_are_said_apart(tmp_path):
    for seed, name in enumerate(("train", "training", "test", "testing")):
        write_classes(tmp_path / "photos" / name, count=4, seed=seed)
    report = check_path(tmp_path / "photos", quick=True)[0]
    said = [finding.names for finding in report.findings if finding.kind == "united_part"]
    assert said == [("train", "training"), ("test", "testing")]


def test_a_class_in_a_folder_that_is_no_part_gets_its_own_advice(tmp_path):
    for seed, name in enumerate(("train", "test")):
        write_classes(tmp_path / "photos" / name, count=4, seed=seed)
    write_classes(tmp_path / "photos" / "extra", ("bird",), count=3, seed=2)
    (finding,) = open_path(tmp_path / "photos").findings
    assert (finding.kind, finding.severity, len(finding.names)) == ("no_part", "error", 3)
    assert "extra, which is no part" in finding.message and "one of the parts" in finding.advice
    assert load(tmp_path / "photos").left_out[0] == ("extra/bird/000.png", "no part")


def test_a_part_of_an_unknown_name_is_refused(tmp_path):
    for seed, name in enumerate(("train", "test", "unseen")):
        write_classes(tmp_path / "photos" / name, count=4, seed=seed)
    with pytest.raises(DataError, match=r"train, val and test, got unseen, which holds the class cat"):
        load(tmp_path / "photos")


def test_sites_of_which_one_has_a_class_more_are_no_classes(tmp_path):
    write_classes(tmp_path / "photos" / "north", ("cat", "dog"), 5)
    write_classes(tmp_path / "photos" / "south", ("bird", "cat", "dog"), 5, seed=1)
    with pytest.raises(DataError, match="which hold nearly the same folders bird, cat, dog"):
        load(tmp_path / "photos")


def test_a_folder_may_be_called_by_a_fraction(tmp_path):
    write_classes(tmp_path / "lenses", ("0.5", "1.5"), 5)
    assert load(tmp_path / "lenses").class_names == ("0.5", "1.5")


def test_a_class_of_trains_is_a_class(tmp_path):
    write_classes(tmp_path / "photos", ("car", "train", "training"), 5)
    assert load(tmp_path / "photos").class_names == ("car", "train", "training")


ARCHIVES = {
    "doubled": ("training_set/training_set/", "test_set/test_set/", "single_prediction/"),
    "doubled-once": ("training_set/training_set/", "test_set/", ""),
    "prefixed": ("seg_train/seg_train/", "seg_test/seg_test/", "seg_pred/seg_pred/"),
    "suffixed": ("train_data/", "test_data/", ""),
    "numbered": ("train80/", "test20/", ""),
    "years": ("train2017/", "test2017/", ""),
    "joined": ("TrainSet/images/", "TestSet/images/", ""),
    "wrapped": ("archive/my data/x_train/", "archive/my data/x_test/", ""),
    "upper": ("TRAIN/", "TEST/", ""),
}


@pytest.mark.parametrize(("train", "test", "beside"), ARCHIVES.values(), ids=ARCHIVES)
def test_the_layouts_of_archives_are_understood(tmp_path, train, test, beside):
    root = tmp_path / "download"
    write_classes(root / train, count=6)
    write_classes(root / test, count=3, seed=1)
    if beside:
        (root / beside).mkdir(parents=True)
        (root / beside / "1.png").write_bytes(encoded(photograph(5), "PNG"))
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test), dataset.validation) == (12, 6, None)
    assert dataset.left_out == ()
    found = {finding.kind: finding.names for finding in open_path(root).findings}
    assert found == ({"unlabelled": (f"{beside}1.png",)} if beside else {})


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["north/", "south/"], "got north, south, which all hold the same folders cat, dog. Name the parts"),
        (
            [f"site{n}/" for n in range(5)],
            "got site0, site1, site2, site3 …, which all hold the same",
        ),
        (["train/fold_0/", "train/fold_1/"], "got fold_0, fold_1, which all hold the same folders cat, dog"),
    ],
    ids=["places", "many", "folds-inside"],
)
def test_folders_that_all_hold_the_same_are_no_classes(tmp_path, folders, message):
    for seed, name in enumerate(folders):
        write_classes(tmp_path / "photos" / name, count=3, seed=seed)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "photos")


@pytest.mark.parametrize(
    "names",
    [
        ("fold_0", "fold_1"),
        ("training_set", "test_set"),
        ("train", "test"),
        ("cat", "dog", "test"),
        ("val20", "x"),
    ],
    ids="-".join,
)
def test_names_of_parts_are_no_classes(tmp_path, names):
    write_classes(tmp_path / "photos", names, 5)
    with pytest.raises(DataError, match=r"which are called like parts\. Name the parts train, val and test"):
        load(tmp_path / "photos")


def test_names_that_merely_sound_like_parts_are_classes(tmp_path):
    names = ("subset of x", "test_tube", "train_station", "trains", "valid")
    write_classes(tmp_path / "photos", names, 5)
    assert load(tmp_path / "photos").class_names == names


def test_views_of_different_kinds_are_no_parts(tmp_path):
    write_classes(tmp_path / "photos" / "cat", ("front", "side"), 5)
    write_classes(tmp_path / "photos" / "dog", ("front", "back"), 5, seed=1)
    assert load(tmp_path / "photos").class_names == ("cat", "dog")


@pytest.mark.parametrize("part", ["", "train/", "test/"])
def test_a_class_of_which_no_image_is_read_is_an_error(tmp_path, part):
    for seed, name in enumerate({"train/", part} if part else {""}):
        write_classes(tmp_path / "photos" / name, ("ant", "cat", "dog"), 5, seed=seed)
    for path in sorted((tmp_path / "photos" / part / "dog").glob("*.png")):
        Image.open(path).save(path.with_suffix(".TGA"))
        path.unlink()
    with pytest.raises(DataError, match=rf"only \.TGA files and the like in {part}dog. Save them as PNG"):
        load(tmp_path / "photos")


def test_a_folder_of_documents_is_no_class_and_that_is_said(photos):
    (photos / "docs").mkdir()
    (photos / "docs" / "paper.pdf").write_bytes(b"%PDF-1.7")
    (photos / "labels").mkdir()
    (photos / "labels" / "1.xml").write_text("<a/>")
    collection = open_path(photos)
    assert collection.class_names == ("cat", "dog")
    assert {finding.kind: finding.names for finding in collection.findings}["empty_folder"] == (
        "docs",
        "labels",
    )


NFC, NFD = "Käse", unicodedata.normalize("NFD", "Käse")


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [
        ((NFC, "Brot"), (NFD, "Brot"), ("Brot", NFC)),
        (("cat ", "dog"), ("cat", "dog  "), ("cat", "dog")),
        (("Cat", "Dog"), ("cat", "dog"), ("Cat", "Dog")),
    ],
    ids=["unicode", "blanks", "case"],
)
def test_names_that_look_the_same_are_one_class(tmp_path, train, test, shown):
    write_classes(tmp_path / "photos" / "train", train, 5)
    write_classes(tmp_path / "photos" / "test", test, 5, seed=1)
    dataset = load(tmp_path / "photos")
    assert dataset.class_names == shown
    assert np.bincount(dataset.test.labels).tolist() == np.bincount(dataset.train.labels).tolist() == [5, 5]
    assert [finding.kind for finding in open_path(tmp_path / "photos").findings] == ["united_class"]


def test_letters_are_told_apart_by_their_case(tmp_path):
    write_classes(tmp_path / "letters", ("A", "a", "B"), 5)
    assert load(tmp_path / "letters").class_names == ("A", "B", "a")


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_part_without_a_trained_class_is_refused(tmp_path, part):
    write_classes(tmp_path / "photos" / "train", ("cat", "dog"), 15)
    write_classes(tmp_path / "photos" / part, ("Katze", "Hund"), 5, seed=1)
    with pytest.raises(
        DataError, match=f"Expected {part} images of classes that photos has training images of"
    ):
        load(tmp_path / "photos")
    assert f"No class of {part} has training images" in check_path(tmp_path / "photos")[0].meaningless


def test_a_folder_around_the_folder_is_entered(tmp_path):
    write_classes(tmp_path / "download" / "photos-1.0" / "train", count=5)
    write_classes(tmp_path / "download" / "photos-1.0" / "test", count=5, seed=1)
    dataset = load(tmp_path / "download")
    assert (len(dataset.train), len(dataset.test)) == (10, 10)
    assert dataset.train.names[0] == "photos-1.0/train/cat/000.png"


def test_images_may_lie_deeper_in_their_class(tmp_path):
    paths = write_classes(tmp_path / "photos", count=6)
    (tmp_path / "photos" / "cat" / "2024").mkdir()
    paths[0].rename(tmp_path / "photos" / "cat" / "2024" / "x.png")
    assert by_name(load(tmp_path / "photos"))["cat/2024/x.png"][1] == "cat"


def test_classes_that_are_numbers_are_ordered_as_numbers():
    assert order_classes(["10", "2", "1"]) == ("1", "2", "10")
    assert order_classes(["b10", "b2"]) == ("b10", "b2")


def test_what_is_hidden_or_clutter_is_passed_over(photos):
    for name in (".DS_Store", "Thumbs.db", "._000.png", ".hidden.jpg"):
        (photos / "cat" / name).write_bytes(b"\xff\xd8\xff not an image")
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", "#recycle"):
        (photos / name).mkdir()
        (photos / name / "a.png").write_bytes(encoded(photograph(9), "PNG"))
    report = open_path(photos)
    assert (report.findings, len(report.labels)) == ((), 20)


def test_other_files_are_reported_and_images_found_by_content(photos):
    (photos / "cat" / "notes.txt").write_text("meow")
    (photos / "cat" / "phone.jxl").write_bytes(b"\0\0\0\x0cJXL ")
    (photos / "cat" / "camera.nef").write_bytes(encoded(photograph(1), "TIFF"))
    (photos / "stray.png").write_bytes(encoded(photograph(2), "PNG"))
    (photos / "cat" / "x.dat").write_bytes(encoded(photograph(3), "PNG"))
    (photos / "empty").mkdir()
    found = {finding.kind: finding.names for finding in open_path(photos).findings}
    assert found == {
        "unsupported": ("cat/camera.nef", "cat/phone.jxl"),
        "no_class": ("stray.png",),
        "other_file": ("cat/notes.txt",),
        "empty_folder": ("empty",),
    }
    dataset = load(photos)
    assert "cat/x.dat" in by_name(dataset)
    assert dict(dataset.left_out) == {
        "cat/phone.jxl": ".jxl",
        "cat/camera.nef": ".nef",
        "stray.png": "no class",
    }
    assert dataset.notes[-1].startswith("3 files could not be used: cat/camera.nef (.nef)")


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same_data(photos, workers, monkeypatch, tmp_path):
    alone = load(photos, workers=0)
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "another"))
    helped = load(photos, workers=workers)
    assert helped.fingerprint == alone.fingerprint
    assert helped.train.names == alone.train.names


@pytest.mark.parametrize("workers", [-1, 65])
def test_a_number_of_workers_that_cannot_be_is_refused(photos, workers):
    with pytest.raises(UsageError, match=f"from 0 to 64 workers, got {workers}"):
        load(photos, workers=workers)


@pytest.mark.posix("symbolic links that anybody may make")
def test_links_are_followed_but_not_in_circles(tmp_path):
    write_classes(tmp_path / "pool", count=5)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat").symlink_to(tmp_path / "pool" / "cat")
    (photos / "dog").mkdir()
    (photos / "dog" / "a.png").symlink_to(tmp_path / "pool" / "dog" / "000.png")
    (photos / "dog" / "up").symlink_to("..")
    (photos / "dog" / "self").symlink_to("self")
    (photos / "dog" / "gone.png").symlink_to("nowhere")
    (photos / "cat2").symlink_to(tmp_path / "pool" / "cat")
    walked = walk(photos)
    assert len(walked.files) == 6
    found = {finding.kind: set(finding.names) for finding in walked.findings}
    assert found == {
        "symlink_loop": {"dog/up", "dog/self"},
        "missing": {"dog/gone.png"},
        "repeated_link": {"cat2"},
    }


@pytest.mark.posix("symbolic links that anybody may make")
def test_folders_that_link_to_one_another_end(tmp_path):
    for one in "abcdef":
        (tmp_path / "web" / one).mkdir(parents=True)
        (tmp_path / "web" / one / "x.txt").write_text("x")
    for one in "abcdef":
        for other in "abcdef":
            (tmp_path / "web" / one / f"to_{other}").symlink_to(f"../{other}")
    begin = time.perf_counter()
    assert len(walk(tmp_path / "web").files) < 100
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.mkdir(), "got no files. Formats: JPEG, PNG, Webp, BMP, GIF, TIFF."),
        (lambda root: write_classes(root, ("cat",)), "at least 2 classes with images in .*, got only 'cat'"),
        (
            lambda root: (
                write_classes(root.parent / "x") and shutil.copytree(root.parent / "x" / "cat", root)
            ),
            "6 images that lie in no class's folder. Move each class",
        ),
        (
            lambda root: (root.mkdir(), (root / "a.jxl").write_text("")),
            r"only \.jxl files. Save them as JPEG",
        ),
        (lambda root: (root.mkdir(), (root / "a.txt").write_text("")), "1 file, none of them an image"),
    ],
    ids=["nothing", "one-class", "flat", "jxl", "text"],
)
def test_a_folder_without_classes_says_why(tmp_path, make, message):
    make(tmp_path / "photos")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "photos")


def test_a_path_to_nothing_and_an_unknown_name_are_told_apart(tmp_path):
    with pytest.raises(DataNotFoundError, match="nothing at"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(UnknownNameError, match="Did you mean 'mnist'"):
        load("mnits")


def test_an_archive_of_another_kind_is_to_be_unpacked(tmp_path):
    (tmp_path / "photos.7z").write_bytes(b"7z")
    with pytest.raises(DataError, match="Unpack it first"):
        load(tmp_path / "photos.7z")


def surveyed(*sizes, channels=3):
    rows = Survey.empty(len(sizes))
    rows.heights[:], rows.widths[:] = zip(*sizes, strict=True)
    rows.channels[:] = channels
    return rows


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(32, 32)] * 3, (32, 32)),
        ([(28, 31)] * 3, (28, 31)),
        ([(224, 224)] * 3, (96, 96)),
        ([(480, 640)] * 3, (72, 96)),
        ([(480, 640), (640, 480), (500, 500)], (96, 96)),
        ([(30, 40), (34, 38), (50, 60)], (32, 40)),
        ([(2, 2), (3, 3)], (8, 8)),
    ],
    ids=str,
)
def test_the_common_size_suits_most_images(sizes, shape):
    assert choose_shape(surveyed(*sizes), ReadOptions(), "photos") == (*shape, 3)


def test_a_size_that_is_asked_for_wins():
    assert choose_shape(surveyed((10, 10)), ReadOptions((20, 30), 1), "photos") == (20, 30, 1)


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), min_size=1, max_size=20))
def test_the_common_size_is_never_large(sizes):
    shape = choose_shape(surveyed(*sizes), ReadOptions(), "photos")
    assert all(1 <= side <= ingest.LARGEST_SIDE for side in shape[:2])


def test_images_of_several_sizes_are_brought_to_one_and_that_is_said(photos):
    Image.fromarray(photograph(8, 64)[:20]).save(photos / "cat" / "000.png")
    dataset = load(photos)
    assert dataset.input_shape == (32, 32, 3)
    assert (
        dataset.notes[0]
        == "The images have sizes from 32×32 to 20×64; all are brought to 32×32 by letterbox."
    )


@pytest.mark.parametrize("resize", ["letterbox", "crop", "stretch"])
def test_loading_and_prediction_bring_an_image_to_size_in_the_same_way(photos, resize):
    picture = photograph(8, 64)[:40]
    Image.fromarray(picture).save(photos / "cat" / "000.png")
    dataset = load(photos, resize=resize)
    assert dataset.resize == resize
    preprocess = Preprocess.fit(dataset.train.images, "unit", resize=dataset.resize)
    stored = by_name(dataset)["cat/000.png"][2]
    assert (preprocess.resize_to_input([picture])[0] == stored).all()


def test_grey_images_stay_grey_and_mixed_ones_become_rgb(tmp_path):
    for number, path in enumerate(write_classes(tmp_path / "photos", count=5)):
        path.write_bytes(encoded(photograph(number, 16, 1), "PNG"))
    assert load(tmp_path / "photos").input_shape == (16, 16, 1)
    assert load(tmp_path / "photos", channels=3).input_shape == (16, 16, 3)
    (tmp_path / "photos" / "cat" / "x.png").write_bytes(encoded(photograph(9, 16), "PNG"))
    assert load(tmp_path / "photos").input_shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "a height and a width from 1 to 4096 pixels, got 0"),
        ({"channels": 2}, "1 or 3 channels, got 2"),
        ({"resize": "letterbx"}, "Did you mean 'letterbox'"),
    ],
    ids=["size", "channels", "resize"],
)
def test_options_that_cannot_be_are_refused(photos, options, message):
    with pytest.raises(UsageError, match=message):
        load(photos, **options)


def test_a_named_dataset_keeps_its_size():
    with pytest.raises(UsageError, match="no size or channels for digits"):
        load("digits", size=32)


def counting(monkeypatch):
    calls = []
    original = ingest.decode
    monkeypatch.setattr(
        ingest, "decode", lambda raw, name, depth: calls.append(name) or original(raw, name, depth)
    )
    return calls


def deep_folder(root, shift, dtype=np.uint16, suffix=".png"):
    """Write grey images of 8 bits and some of 8 + ``shift`` bits, of which one uses all."""
    for name, seed in (("cat", 0), ("dog", 1)):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = photograph([seed, number], 32, 1)[..., 0]
            deep = pixels.astype(dtype) << shift
            deep[0, 0] = (256 << shift) - 1 if number == 3 else 0
            picture = pixels if number == 5 else deep
            Image.fromarray(picture).save(root / name / f"{number}{suffix}")
    return root


@pytest.mark.parametrize(
    ("shift", "dtype", "suffix"),
    [
        (4, np.uint16, ".png"),
        (2, np.uint16, ".tif"),
        (8, np.uint16, ".png"),
        (0, np.uint16, ".png"),
        (4, np.int32, ".tif"),
        (12, np.int32, ".tif"),
    ],
    ids=["12-bit-png", "10-bit-tiff", "16-bit", "8-in-16", "12-in-32", "20-in-32"],
)
def test_deep_images_have_the_range_of_their_set(tmp_path, shift, dtype, suffix):
    """One rule for all: none is stretched by itself, and one of 8 bits stays as it is."""
    dataset = load(deep_folder(tmp_path / "scans", shift, dtype, suffix))
    assert dataset.depth == 8 + shift
    assert any("bits have" in note for note in dataset.notes) == (shift != 8)
    for name, (_, label, image) in by_name(dataset).items():
        number = int(Path(name).stem)
        expected = photograph([int(label == "dog"), number], 32, 1)
        if number != 5:
            expected[0, 0] = 255 if number == 3 else 0
        assert (image == expected).all(), name


def test_prediction_reads_deep_files_as_training_did(tmp_path):
    dataset = load(deep_folder(tmp_path / "scans", 4))
    prepared = prepare(dataset, ExperimentConfig("simple"))
    preprocess = Preprocess.from_files(prepared.preprocess.to_files())
    assert preprocess.depth == 12
    assert preprocess.describe()[0] == "files of more than 8 bits: the upper 8 of 12"
    bundle = Bundle(preprocess, ("cat", "dog"), forward=lambda pixels: np.full((len(pixels), 2), 0.5))
    [prediction] = predict_files(bundle, [tmp_path / "scans" / "cat" / "2.png"])
    expected = photograph([0, 2], 32, 1)
    expected[0, 0] = 0
    assert (prediction.pixels == expected).all()


def test_images_are_decoded_once(photos, monkeypatch):
    calls = counting(monkeypatch)
    first = load(photos)
    assert len(calls) == 20
    second = load(photos)
    assert len(calls) == 20
    assert first.fingerprint == second.fingerprint
    assert list(first.test.names) == list(second.test.names)


def test_files_that_have_not_changed_are_not_even_read(photos, monkeypatch):
    monkeypatch.setattr(base, "SETTLED_SECONDS", -1)
    load(photos)
    monkeypatch.setattr(ingest, "read_header", None)
    assert len(load(photos).train) == 16


def test_files_that_changed_a_moment_ago_are_always_read(photos, monkeypatch):
    # Their time may not tell if they change again: clocks of file systems tick slowly.
    assert read_folder(photos).signature == ""
    monkeypatch.setattr(base, "SETTLED_SECONDS", -1)
    assert read_folder(photos).signature != ""


def test_a_file_that_changed_is_read_again_even_if_size_and_time_are_the_same(photos, monkeypatch):
    monkeypatch.setattr(base, "SETTLED_SECONDS", -1)
    path = photos / "cat" / "000.bmp"
    Image.fromarray(photograph(50)).save(path)
    (photos / "cat" / "000.png").unlink()
    before, status = load(photos), path.stat()
    Image.fromarray(photograph(51)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after = load(photos)
    assert after.fingerprint != before.fingerprint
    assert (by_name(after)["cat/000.bmp"][2] == photograph(51)).all()


def test_the_same_content_elsewhere_is_not_decoded_again(photos, tmp_path, monkeypatch):
    first = load(photos)
    calls = counting(monkeypatch)
    shutil.copytree(photos, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == first.fingerprint
    assert calls == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        # Pixels of the right length are trusted: they were on the disk before the store got its name.
        *[("pixels", damage) for damage in ("cut", "gone")],
        *[(name, damage) for name in ("arrays.npz", "notes.json") for damage in ("cut", "gone", "noise")],
    ],
)
def test_a_damaged_store_is_made_anew(photos, own_cache, name, damage):
    first = load(photos)
    (file,) = own_cache.glob(f"images/*/{name}")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7] if damage == "cut" else b"noise")
    assert load(photos).fingerprint == first.fingerprint
    assert len(list(own_cache.glob("scratch/*"))) == 0


def test_a_full_disk_is_said_and_leaves_nothing(photos, own_cache, monkeypatch):
    def full(self, images):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.StoreWriter, "append", full)
    with pytest.raises(DataError, match=r"free space in the cache .*, got a full disk. Make room"):
        load(photos)
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_said(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"to write into the cache .*Set CONVSCOPE_CACHE"):
        load(photos)


def test_several_processes_may_load_the_same_folder_at_once(photos, own_cache):
    code = f"""
from pathlib import Path
from convscope.data.ingest import ReadOptions, ingest
from convscope.data.sources.folder import read_folder
print(ingest(read_folder(Path({str(photos)!r})), ReadOptions()).images.sum())
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert len({run.communicate(timeout=60)[0] for run in runs}) == 1
    assert all(run.returncode == 0 for run in runs)
    assert len(list(own_cache.glob("images/*"))) == 1
    assert list(own_cache.glob("scratch/*")) == []


BUILD = """
import logging, os, sys, time
from convscope.data import ingest
from convscope.data.loading import load

logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("convscope.progress").setLevel(logging.INFO)
look = ingest._look_at

def look_slowly(*arguments):
    print("reads", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    return look(*arguments)

ingest._look_at = look_slowly
print("images:", len(load(sys.argv[1]).train))
"""
WAITING = "Waiting for another process that decodes these images"


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
def test_whoever_comes_second_waits_and_reads(photos, own_cache, killed):
    for path in photos.rglob("*"):
        os.utime(path, (1, 1))
    time.sleep(2.1)  # until then their change times are too young to be trusted
    gate = own_cache.with_name("gate")
    command = [sys.executable, "-u", "-c", BUILD, str(photos), str(gate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert "reads\n" in iter(first.stdout.readline, "")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            assert f"{WAITING}\n" in iter(second.stdout.readline, "")
            if killed:
                first.kill()
                first.wait()
            gate.touch()
            rest = second.communicate()[0].splitlines()
    assert rest[-1].startswith("images: ")
    assert ("reads" in rest) is killed
    assert [path for path in own_cache.glob("known/*") if path.suffix == ".lock"] == []


def test_what_a_killed_process_left_is_removed_after_a_day(photos, own_cache):
    for name, age_seconds in (("old", 90_000), ("new", 60)):
        (own_cache / "scratch" / name).mkdir(parents=True)
        os.utime(own_cache / "scratch" / name, (time.time() - age_seconds,) * 2)
    load(photos)
    assert [path.name for path in own_cache.glob("scratch/*")] == ["new"]


def test_loading_changes_nothing_in_the_folder(photos):
    before = tree_of(photos)
    load(photos)
    load(photos, size=16, resize="crop")
    assert tree_of(photos) == before


def test_progress_is_told(photos):
    calls = []
    load(photos, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (20, 20)


def test_a_folder_that_is_memory_mapped_gives_the_same_dataset(photos, monkeypatch):
    small = load(photos)
    monkeypatch.setattr(cache, "IN_MEMORY", 4 * 32 * 32 * 3)
    large = load(photos)
    assert isinstance(large.train.images, cache.PixelStore)
    assert large.fingerprint == small.fingerprint
    assert (np.asarray(large.train.images) == small.train.images).all()


def test_the_public_door_loads_a_folder(photos):
    assert len(convscope.load(photos).train) == 16


@given(st.sets(st.text("aβ19²٣ ", min_size=1, max_size=4), min_size=1, max_size=6))
def test_class_names_of_any_kind_are_ordered(names):
    assert sorted(order_classes(list(names))) == sorted(names)


class EntryOfWindows:
    """An entry of a folder as Windows gives it: quickly, and without what tells one folder from another."""

    def __init__(self, entry):
        self.name, self.path, self.is_symlink, self._entry = entry.name, entry.path, entry.is_symlink, entry

    def stat(self):
        found = list(self._entry.stat())
        found[1] = found[2] = 0  # st_ino and st_dev
        return os.stat_result(found)


def test_folders_in_folders_are_no_circle_on_windows(tmp_path, monkeypatch):
    write_classes(tmp_path / "set" / "train")
    real = os.scandir

    @contextlib.contextmanager
    def scan(folder):
        with real(folder) as entries:
            yield [EntryOfWindows(entry) for entry in entries]

    monkeypatch.setattr(os, "scandir", scan)
    found = walk(tmp_path)
    assert found.findings == [] and all(file.startswith("set/train/") for file in found.files)
    assert len(found.files) > 1
