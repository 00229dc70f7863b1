"""The look at a folder before training: what is planted is named, nothing else is, and nothing is changed."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from messy import UNUSABLE, plant, resaved
from photographs import encoded, photograph, tree_of, write_classes
from PIL import Image

from convscope.cli.datasets import check, check_first
from convscope.data import ingest as ingest_module
from convscope.data import sources
from convscope.data.ingest import ReadOptions, open_path
from convscope.data.loading import load
from convscope.data.quality import (
    SEVERITIES,
    check_collection,
    check_path,
    contact_sheet,
    measure,
    tree_accuracy,
)
from convscope.data.sources import base
from convscope.data.sources.folder import read_folder
from convscope.errors import DataError, DataNotFoundError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def photos(tmp_path):
    """A clean folder, two classes of thirty."""
    write_classes(tmp_path / "photos", count=30)
    return tmp_path / "photos"


def named(report):
    return {finding.kind: set(finding.names) for finding in report.findings if finding.names}


def kinds(report):
    return [finding.kind for finding in report.findings]


def test_a_clean_folder_has_no_findings(photos):
    report = check_path(photos)[0]
    assert (report.findings, report.meaningless, report.left_out) == ((), "", ())
    assert (report.files, report.used, report.size) == (60, 60, (32, 32, 3))
    assert report.counts == {"train": {"cat": 30, "dog": 30}}


def copy_of_real_photographs(target):
    source = os.environ.get("CONVSCOPE_DATA")
    if not source or not (Path(source) / "cifar10-mini").is_dir():
        pytest.skip("CONVSCOPE_DATA names no folder with cifar10-mini")
    shutil.copytree(Path(source) / "cifar10-mini", target)
    return sorted(target.rglob("*.jpg"))


def copy_of_drawn_photographs(target):
    paths = []
    for part, count in (("train", 60), ("test", 20)):
        paths += write_classes(target / part, ("cat", "dog", "owl"), count, seed=len(part))
    return [resaved(path, "JPEG", ".jpg", quality=95) for path in paths]


@pytest.mark.parametrize("copy", [copy_of_drawn_photographs, copy_of_real_photographs], ids=["drawn", "real"])
def test_every_planted_file_is_named_and_nothing_else(copy, tmp_path):
    folder = tmp_path / "messy"
    paths = copy(folder)
    planted = plant(folder, paths)
    before = tree_of(folder)
    report = check_path(folder)[0]
    assert named(report) == planted
    assert set(report.left_out) == set().union(*(planted[kind] for kind in UNUSABLE))
    assert report.used == len(paths) - len(report.left_out)
    assert report.meaningless == ""
    dataset = load(folder)
    used = {*dataset.train.names, *dataset.test.names}
    assert len(used) == report.used
    for kind in set(planted) - UNUSABLE:
        assert planted[kind] <= used
    assert {name for name, _ in dataset.left_out} == set(report.left_out)
    assert tree_of(folder) == before


def test_before_training_every_file_that_is_left_out_is_named(photos, capsys):
    planted = plant(photos, sorted(photos.rglob("*.png")))
    check_first(str(photos), {"resize": "letterbox"}, quiet=False)
    said = {line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()}
    assert said >= set().union(*(planted[kind] for kind in UNUSABLE))


def test_the_look_before_training_gives_the_images_so_that_they_are_read_once(photos, monkeypatch):
    seen = []
    monkeypatch.setattr(sources, "read_folder", lambda root: seen.append(root) or read_folder(root))
    dataset = check_first(str(photos), {"size": 16}, quiet=True)
    assert seen == [photos]
    assert dataset == load(photos, size=16)
    assert check_first("digits", {}, quiet=True) is None


def test_before_training_meaningless_data_are_refused(photos):
    for path in (photos / "dog").glob("*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"data that a network can learn from, got none\. Only 1 class"):
        check_first(str(photos), {}, quiet=True)


def test_a_rotated_photograph_is_used_upright(photos):
    from messy import rotated

    path = photos / "cat" / "003.png"
    original = np.asarray(Image.open(path)).astype(int)
    rotated(path)
    dataset = load(photos)
    everything = [*zip(dataset.train.names, dataset.train.images, strict=True)]
    everything += zip(dataset.test.names, dataset.test.images, strict=True)
    assert np.abs(dict(everything)["cat/003.jpg"] - original).mean() < 5


def test_the_quick_part_leaves_out_pixel_statistics(photos):
    (photos / "cat" / "000.png").write_bytes(encoded(np.full((32, 32, 3), 7, np.uint8), "PNG"))
    assert kinds(check_path(photos, quick=True)[0]) == []
    assert named(check_path(photos)[0]) == {"blank": {"cat/000.png"}}


def test_duplicates_are_told_from_near_duplicates(photos):
    shutil.copy(photos / "cat" / "004.png", photos / "cat" / "zz.png")
    path = photos / "dog" / "yy.png"
    shutil.copy(photos / "dog" / "005.png", path)
    resaved(path, "JPEG", ".jpg", quality=80)
    report = check_path(photos)[0]
    assert named(report) == {"duplicate": {"cat/zz.png"}, "near_duplicate": {"dog/yy.jpg"}}
    assert report.find("duplicate").details == ("like cat/004.png",)


def test_the_same_image_under_two_labels_is_a_contradiction(photos):
    shutil.copy(photos / "cat" / "004.png", photos / "dog" / "zz.png")
    finding = check_path(photos)[0].find("conflicting")
    assert dict(zip(finding.names, finding.details, strict=True)) == {
        "cat/004.png": "cat",
        "dog/zz.png": "dog",
    }


def divided(folder, train=20, test=20):
    write_classes(folder / "train", count=train, seed=1)
    write_classes(folder / "test", count=test, seed=2)
    return folder


def test_images_on_both_sides_of_a_split_are_leakage(tmp_path):
    folder = divided(tmp_path / "photos")
    shutil.copy(folder / "train" / "cat" / "004.png", folder / "test" / "cat" / "zz.png")
    report = check_path(folder)[0]
    assert named(report) == {"leakage": {"test/cat/zz.png"}}
    assert report.find("leakage").severity == "error"
    assert report.meaningless == ""


def test_a_test_part_that_was_seen_is_meaningless(tmp_path):
    folder = divided(tmp_path / "photos")
    shutil.rmtree(folder / "test")
    shutil.copytree(folder / "train", folder / "test")
    assert check_path(folder)[0].meaningless == (
        "40 of 40 images to test on were seen in training: test on others."
    )


def test_a_class_missing_from_a_part_is_named(tmp_path):
    folder = divided(tmp_path / "photos")
    shutil.rmtree(folder / "test" / "dog")
    finding = check_path(folder)[0].find("missing_class")
    assert (finding.names, finding.details) == (("dog",), ("not in test",))


def test_imbalance_and_few_images_are_said(tmp_path):
    write_classes(tmp_path / "photos", ("cat",), 40)
    write_classes(tmp_path / "photos", ("dog",), 4, seed=1)
    report = check_path(tmp_path / "photos", quick=True)[0]
    assert report.find("imbalance").message == "cat has 10.0 times the training images of dog."
    assert report.find("few_images").details == ("4 images",)


@pytest.mark.parametrize(
    ("size", "kind"), [((200, 32), "odd_size"), ((4, 4), "odd_size"), ((32, 32), None)], ids=str
)
def test_odd_sizes_are_named(photos, size, kind):
    picture = Image.fromarray(photograph(99, 32)).resize(size)
    picture.save(photos / "cat" / "000.png")
    expected = {kind: {"cat/000.png"}} if kind else {}
    assert {
        key: value for key, value in named(check_path(photos)[0]).items() if key == "odd_size"
    } == expected


def test_sizes_that_all_differ_are_not_odd(tmp_path):
    folder = tmp_path / "photos"
    for number, path in enumerate(write_classes(folder, count=20)):
        Image.open(path).resize((30 + number, 60 - number)).save(path)
    assert "odd_size" not in kinds(check_path(folder)[0])


def test_an_image_far_darker_than_the_rest_is_named(photos):
    for path in sorted(photos.rglob("*.png")):
        pixels = np.asarray(Image.open(path)).astype(float)
        grey = 150 + (pixels - pixels.mean()) * 0.3 + int(path.stem) % 7
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
    path = photos / "dog" / "007.png"
    Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)
    finding = check_path(photos)[0].find("brightness")
    assert (finding.names, finding.details) == (("dog/007.png",), ("far darker",))


def test_what_betrays_the_class_is_said(photos):
    for path in sorted((photos / "cat").glob("*.png")):
        resaved(path, "JPEG", ".jpg", quality=95)
    for path in sorted((photos / "dog").glob("*.png")):
        pixels = np.array(Image.open(path))
        pixels[[0, -1]], pixels[:, [0, -1]] = 255, 255
        Image.fromarray(pixels).save(path)
    assert {"betrayed_by_file", "betrayed_by_border"} <= set(kinds(check_path(photos)[0]))


def test_pixels_that_say_nothing_betray_nothing():
    rng = np.random.default_rng(0)
    accuracy, kappa = tree_accuracy(rng.normal(size=(600, 5)), rng.integers(0, 3, 600))
    assert accuracy < 0.45
    assert abs(kappa) < 0.15


def test_too_few_images_say_nothing():
    assert tree_accuracy(np.arange(20.0)[:, None], np.arange(20) // 10) == (0.0, 0.0)


def test_measures_are_those_of_their_formulas():
    image = photograph(5, 12)
    result = measure(image[None])
    grey = image.astype(np.float64).mean(axis=2)
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    assert result["brightness"][0] == pytest.approx(grey.mean(), rel=1e-5)
    assert result["contrast"][0] == pytest.approx(grey.std(), rel=1e-5)
    assert result["sharpness"][0] == pytest.approx(np.log1p(inner.std()), rel=1e-5)
    assert result["colour"][0, :3] == pytest.approx(image.mean(axis=(0, 1)), rel=1e-5)


def test_rows_sorted_by_class_are_said_of_tables_only(tmp_path, photos):
    images = np.stack([photograph(number, 8, 1) for number in range(40)])
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) // 20)
    assert "sorted_order" in kinds(check_path(tmp_path / "data.npz")[0])
    np.savez(tmp_path / "mixed.npz", images=images, labels=np.arange(40) % 2)
    assert "sorted_order" not in kinds(check_path(tmp_path / "mixed.npz")[0])
    assert "sorted_order" not in kinds(check_path(photos)[0])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: shutil.rmtree(folder / "dog"), "Expected at least 2 classes with images"),
        (lambda folder: [path.write_bytes(b"") for path in folder.rglob("*.png")], "got 60 images: empty"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.png")], "got no files"),
        (
            lambda folder: [path.write_bytes(b"") for path in (folder / "dog").glob("*.png")],
            "Only 1 class with training images",
        ),
        (
            lambda folder: (
                [shutil.copy(folder / "cat" / "000.png", path) for path in folder.rglob("0[1-9]*.png")]
                + [shutil.copy(folder / "cat" / "000.png", path) for path in folder.rglob("00[1-9].png")]
                + [shutil.copy(folder / "cat" / "000.png", folder / "dog" / "000.png")]
            ),
            "All images are the same",
        ),
        (
            lambda folder: [
                shutil.copy(path, folder / "dog" / path.name) for path in (folder / "cat").glob("*")
            ],
            "60 of 60 images are there under two labels",
        ),
        (
            lambda folder: (
                [path.unlink() for path in (folder / "dog").glob("0[012][1-9].png")]
                + [path.unlink() for path in (folder / "dog").glob("0[12]0.png")]
            ),
            "dog has 1 image",
        ),
    ],
    ids=["one-class", "all-empty", "no-images", "one-usable", "all-same", "two-labels", "lone"],
)
def test_meaningless_data_are_called_so(photos, spoil, reason):
    spoil(photos)
    report = check_path(photos)[0]
    assert reason in report.meaningless


def test_floating_point_pixels_come_with_the_command_that_converts_them(photos):
    """With the range of all of them in it, and before anything else."""
    for name, low, high in (("f", -0.5, 1), ("g", 0, 2.5)):
        values = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
        Image.fromarray(values).save(photos / "cat" / f"{name}.tif")
    found = check_path(photos)[0].find("unsupported")
    assert found.names == ("cat/f.tif", "cat/g.tif")
    assert found.advice.startswith("Convert each by the range of all: python")
    assert "- -0.5) / (2.5 - -0.5)" in found.advice


def test_where_nothing_can_be_used_every_file_is_named(photos):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    report = check_path(photos)[0]
    assert (len(report.left_out), report.files, report.used) == (60, 60, 0)


def test_a_path_to_nothing_is_an_error(tmp_path):
    with pytest.raises(DataNotFoundError, match="nothing at"):
        check_path(tmp_path / "nothing")[0]


def test_a_report_is_json(photos):
    (photos / "cat" / "000.png").write_bytes(b"")
    (photos / "cat" / "001.png").rename(photos / "cat" / os.fsdecode(b"\xff.png"))
    row = json.loads(json.dumps(check_path(photos)[0].to_json()))
    assert row["left_out"] == ["cat/000.png"]
    assert row["findings"][0]["names"] == ["cat/000.png"]
    assert [finding["severity"] for finding in row["findings"]] == ["error", "warning"]
    assert row["findings"][1]["names"] == ["cat/\\xff.png"]


def test_severities_are_ordered(photos):
    plant(photos, sorted(photos.rglob("*.png")))
    severities = [SEVERITIES.index(finding.severity) for finding in check_path(photos)[0].findings]
    assert severities == sorted(severities)
    assert set(severities) == {0, 1, 2}


@pytest.mark.posix("symbolic links that anybody may make")
def test_findings_of_a_kind_are_one_row(photos):
    (photos / "cat" / "broken.png").symlink_to("nowhere.png")
    report = check_path(photos)[0]
    assert named(report) == {"missing": {"cat/broken.png"}}
    assert len(kinds(report)) == len(set(kinds(report)))


def test_arrays_are_looked_at_too(tmp_path):
    digits = load("digits")
    parts = {"x_train": digits.train.images, "y_train": digits.train.labels}
    parts |= {"x_test": digits.test.images, "y_test": digits.test.labels}
    np.savez(tmp_path / "digits.npz", **parts)
    report = check_path(tmp_path / "digits.npz")[0]
    assert (report.files, report.used, report.meaningless) == (1797, 1797, "")
    assert report.find("leakage").severity == "warning"  # small digits are much alike, but none is the same


def test_a_contact_sheet_shows_some_of_each_class(photos):
    collection = open_path(photos)
    sheet = contact_sheet(collection, columns=4)
    assert sheet.images.shape == (2, 4, 32, 32, 3)
    assert all(caption.startswith("cat/") for caption in sheet.captions[0])
    position = list(collection.names).index(sheet.captions[1][2])
    assert (sheet.images[1, 2] == collection.images[position]).all()


def test_a_contact_sheet_leaves_white_where_images_are_few(tmp_path):
    write_classes(tmp_path / "photos", count=2)
    sheet = contact_sheet(open_path(tmp_path / "photos"), columns=4)
    assert (sheet.images[:, 2:] == 255).all()
    assert sheet.captions[0][2:] == ("", "")


def test_the_verdict_names_what_matters_most(photos):
    assert check_path(photos)[0].verdict == (
        "These data can be trained on as they are; nothing needs to be done first."
    )
    (photos / "cat" / "000.png").write_bytes(b"")
    assert check_path(photos)[0].verdict.endswith(
        "The most important thing to look at: 1 file: empty, zero bytes. Copy or download it again."
    )
    shutil.copy(photos / "cat" / "004.png", photos / "dog" / "zz.png")
    assert "Decide which label is right." in check_path(photos)[0].verdict
    for path in (photos / "dog").glob("*.png"):
        path.write_bytes(b"")
    report = check_path(photos)[0]
    assert report.verdict.startswith("These data cannot be trained on as they are. Only 1 class")
    assert (report.to_json()["trainable"], report.to_json()["verdict"]) == (False, report.verdict)


def test_the_last_line_of_the_look_is_the_verdict(photos, capsys):
    check(photos)
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith(f"Verdict: {check_path(photos)[0].verdict}")


def test_a_report_cannot_be_changed(photos):
    report = check_collection(open_path(photos), "photos")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.used = 0


# Many files, in parts


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Forty images in parts of seven, some of them damaged, one the same as another."""
    rng = np.random.default_rng(0)
    root = tmp_path / "many"
    for number in range(40):
        place = root / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number % 3, 24, 3), np.uint8)).save(
            place / f"{number}.png"
        )
    (root / "cat" / "bad.png").write_bytes(b"no image")
    (root / "dog" / "cut.png").write_bytes((root / "dog" / "1.png").read_bytes()[:400])
    (root / "dog" / "copy.png").write_bytes((root / "dog" / "3.png").read_bytes())
    for file in root.rglob("*.png"):
        os.utime(file, (1, 1))
    monkeypatch.setattr(base, "CHUNK", 7)
    monkeypatch.setattr(base, "SETTLED_SECONDS", -1)
    monkeypatch.setattr(ingest_module, "KEPT", 1)
    return root


def test_a_report_is_the_same_with_any_number_of_processes(many, tmp_path, monkeypatch):
    reports, pixels = [], []
    for processes in (1, 2):
        monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / f"cache-{processes}"))
        told = []
        report, collection = check_path(
            many,
            options=ReadOptions(processes=processes),
            progress=lambda *both, told=told: told.append(both),
        )
        reports.append(report.to_json())
        pixels.append(collection.images)
        assert told[-1] == (43, 43)
        assert list((tmp_path / f"cache-{processes}" / "parts").iterdir()) == []
    assert reports[0] == reports[1]
    assert {finding["kind"] for finding in reports[0]["findings"]} >= {
        "not_an_image",
        "truncated",
        "duplicate",
    }
    np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize("stopped_in", ["_look_at", "_decode"])
def test_what_was_read_before_it_is_stopped_is_not_read_again(many, own_cache, monkeypatch, stopped_in):
    log = {"_look_at": [], "_decode": []}
    is_stopped = True

    def noting(name, work):
        def note(*arguments):
            log[name].append([image for image, read in arguments[-1] if read is not None])
            if is_stopped and name == stopped_in and len(log[name]) == 4:
                raise KeyboardInterrupt
            return work(*arguments)

        return note

    for name in log:
        monkeypatch.setattr(ingest_module, name, noting(name, getattr(ingest_module, name)))
    with pytest.raises(KeyboardInterrupt):
        check_path(many)[0]
    is_stopped = False
    report = check_path(many)[0]
    looked = [name for part in log["_look_at"] for name in part]
    assert len(looked) == 43 + 7 * (stopped_in == "_look_at")
    decoded = [name for part in log["_decode"] for name in part]
    assert len(set(decoded)) == 42  # what the first look found to be no image is passed over
    assert len(decoded) - len(set(decoded)) <= 7
    assert list((own_cache / "parts").iterdir()) == []
    monkeypatch.setenv("CONVSCOPE_CACHE", str(own_cache / "undisturbed"))
    assert check_path(many)[0] == report


def test_the_command_takes_workers(many, typed, tmp_path):
    answer = typed("data", "check", str(many), "--workers", "2", "--json", "--quick", cwd=tmp_path)
    assert json.loads(answer.stdout)["used"] == 41
    refused = typed("data", "check", str(many), "--workers", "0", cwd=tmp_path)
    assert (refused.returncode, "from 1 to 64 workers, got 0" in refused.stderr) == (2, True)
