"""Tables, arrays, IDX and Parquet: the same images come out, whatever they were wrapped in."""

import csv
import gzip
import io
import json
import os
import struct
import sys
import unicodedata
import zipfile

import numpy as np
import pytest
from photographs import encoded, photograph, write_classes
from test_decode import mutated

from convscope.data import ingest
from convscope.data.ingest import open_path
from convscope.data.loading import load
from convscope.data.quality import check_path
from convscope.data.sources import arrays, base, find_source, table
from convscope.data.sources.arrays import ValueRange, find_layout
from convscope.errors import ConvscopeError, DataError

pytestmark = pytest.mark.usefixtures("own_cache")

COLOUR = np.stack([photograph([7, number], 12) for number in range(40)])
GREY = np.stack([photograph([8, number], 12, 1) for number in range(40)])
LABELS = np.arange(40) * 7 % 4


def write_csv(path, rows, header=None, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header] if header else [])
        writer.writerows(rows)
    return path


def everything(dataset):
    """Sort images and class names of all parts by the sum of the pixels, to compare them."""
    splits = [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    order = np.lexsort(images.reshape(len(images), -1).T)
    return images[order], [dataset.class_names[label] for label in labels[order]]


def expected(images, labels):
    order = np.lexsort(images.reshape(len(images), -1).T)
    return images[order], [str(label) for label in labels[order]]


def assert_same(dataset, images, labels):
    ours, theirs = everything(dataset), expected(images, labels)
    assert (ours[0] == theirs[0]).all()
    assert ours[1] == theirs[1]


# What is no table


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (encoded(COLOUR[0]), "a JPEG image. Get it again."),
        (b"PK\x03\x04" + bytes(50), "a ZIP archive, such as an Excel workbook. Save it as CSV"),
        (b"\xd0\xcf\x11\xe0" + bytes(50), "an Excel workbook. Save it as CSV"),
        (gzip.compress(b"path,label\n"), "a gzip archive. Unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS. Get the file itself: git lfs",
        ),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "an HTML page. Get it again."),
        (np.random.default_rng(0).bytes(600), "binary data. Get it again."),
        (bytes(600), "binary data. Get it again."),
    ],
    ids=["jpeg", "xlsx", "xls", "gzip", "lfs", "html", "noise", "zeros"],
)
def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path, content, found):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"labels.csv to be a text file, got {found}"):
        load(tmp_path / "labels.csv")
    write_classes(tmp_path / "photos", count=10)
    (tmp_path / "photos" / "labels.csv").write_bytes(content)
    source = find_source(tmp_path / "photos")
    assert any(found in finding.message for finding in source.findings)


def test_a_cell_that_is_too_long_is_said_to_be_none(tmp_path):
    packed = " ".join(["255"] * 40_000)
    (tmp_path / "large.csv").write_text(f"label,pixels\n1,{packed}\n2,{packed}\n")
    with pytest.raises(DataError, match=r"field limit \(131072\). Save images of so many pixels as files"):
        load(tmp_path / "large.csv")


def test_an_image_in_the_place_of_a_data_set_is_told_so(tmp_path):
    (tmp_path / "cat.png").write_bytes(encoded(COLOUR[0]))
    with pytest.raises(DataError, match=r"cat.png. Give the folder that holds a folder of images for each"):
        find_source(tmp_path / "cat.png")


# CSV of paths


@pytest.fixture
def photos(tmp_path):
    write_classes(tmp_path / "photos", count=10)
    return sorted((tmp_path / "photos").rglob("*.png"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_a_table_of_paths_and_labels(tmp_path, photos, delimiter):
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in photos]
    table = write_csv(tmp_path / "labels.csv", rows, ("path", "label"), delimiter)
    dataset = load(table)
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    names = [*dataset.train.names, *dataset.test.names]
    assert sorted(names) == [str(path.relative_to(tmp_path)) for path in photos]
    assert all(
        dataset.class_names[label] in name
        for name, label in zip(dataset.test.names, dataset.test.labels, strict=True)
    )


def test_a_table_without_a_header(tmp_path, photos):
    rows = [(path.parent.name, path.relative_to(tmp_path)) for path in photos]
    assert load(write_csv(tmp_path / "labels.csv", rows)).class_names == ("cat", "dog")


def test_a_column_of_parts(tmp_path, photos):
    parts = ["train", "train", "train", "Validation", "test"] * 4
    rows = [(path, path.parent.name, part) for path, part in zip(photos, parts, strict=True)]
    dataset = load(write_csv(tmp_path / "labels.csv", rows, ("Image", "Class", "Split")))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 4, 4)


@pytest.mark.parametrize("name", ["holdout", "hold-out", "Evaluation", "eval", "test set"])
def test_other_words_for_the_test_part(tmp_path, photos, name):
    rows = [(path, path.parent.name, name if n % 5 == 4 else "train") for n, path in enumerate(photos)]
    dataset = load(write_csv(tmp_path / "labels.csv", rows, ("path", "label", "split")))
    assert (len(dataset.train), len(dataset.test)) == (16, 4)


@pytest.mark.parametrize("word", ["secret", "", "2"])
def test_an_unknown_part_is_refused_with_its_row(tmp_path, photos, word):
    rows = [(path, path.parent.name, word if n == 4 else "train") for n, path in enumerate(photos)]
    table = write_csv(tmp_path / "labels.csv", rows, ("path", "label", "split"))
    with pytest.raises(DataError, match=rf"column 'split' in row 5 of labels\.csv, got '{word}'"):
        load(table)


def test_an_unknown_part_of_pixels_is_refused_with_its_row(tmp_path):
    rows = [[label, part, *pixels] for (label, *pixels), part in zip(
        pixel_rows(GREY, LABELS), ["train"] * 39 + ["secret"], strict=True)]  # fmt: skip
    header = ("label", "split", *(f"pixel{n}" for n in range(144)))
    with pytest.raises(DataError, match=r"column 'split' in row 40 of p\.csv, got 'secret'"):
        load(write_csv(tmp_path / "p.csv", rows, header))


def test_fractions_are_no_classes_of_a_table(tmp_path, photos):
    rows = [(path.relative_to(tmp_path), n % 2 + 0.5) for n, path in enumerate(photos)]
    with pytest.raises(DataError, match=r"cat/000\.png in row 1 of labels\.csv, got '0\.5'"):
        load(write_csv(tmp_path / "labels.csv", rows, ("path", "label")))


def test_ids_without_ending_in_a_folder_of_images(tmp_path, photos):
    (tmp_path / "images").mkdir()
    for number, path in enumerate(photos):
        path.rename(tmp_path / "images" / f"{number}.png")
    rows = [(number, "ab"[number % 2]) for number in range(20)]
    dataset = load(write_csv(tmp_path / "labels.csv", rows, ("id", "breed")))
    assert "images/7.png" in {*dataset.train.names, *dataset.test.names}


def test_a_folder_of_images_beside_their_table(tmp_path, photos):
    for path in photos:
        path.rename(tmp_path / "photos" / f"{path.parent.name}{path.name}")
    rows = [(path.name, path.name[:3]) for path in (tmp_path / "photos").glob("*.png")]
    write_csv(tmp_path / "photos" / "metadata.csv", rows, ("file_name", "label"))
    assert load(tmp_path / "photos").class_names == ("cat", "dog")


def test_tables_for_each_part(tmp_path, photos):
    for part, number in (("train", 0), ("val", 1), ("test", 2)):
        rows = [(path, path.parent.name) for path in photos[number::3]]
        write_csv(tmp_path / "photos" / f"my_{part}.csv", rows, ("path", "label"))
    for folder in ("cat", "dog"):
        (tmp_path / "photos" / folder).rename(tmp_path / folder)
    for part in ("train", "val", "test"):
        text = (tmp_path / "photos" / f"my_{part}.csv").read_text()
        (tmp_path / "photos" / f"my_{part}.csv").write_text(text.replace("photos/", ""))
    dataset = load(tmp_path / "photos")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (7, 7, 6)


def test_a_table_as_windows_writes_it(tmp_path, photos):
    """A spreadsheet's "Unicode text" is UTF-16 with tabs, and a path has backslashes."""
    lines = ["path\tlabel"]
    lines += [f"photos\\{path.parent.name}\\{path.name}\tThé {path.parent.name}" for path in photos]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "labels.csv").write_bytes("\r\n".join(lines).encode(encoding))
        dataset = load(tmp_path / "labels.csv")
        assert dataset.class_names == ("Thé cat", "Thé dog")
        assert len(dataset.train) + len(dataset.test) == 20


def test_a_damaged_utf_16_table_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes("path,label\na.png,b\n".encode("utf-16") + b"\x00")
    with pytest.raises(DataError, match="to be a CSV file"):
        load(tmp_path / "labels.csv")


def labels_of(dataset):
    splits = [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    return {
        name: dataset.class_names[label]
        for split in splits
        for name, label in zip(split.names, split.labels, strict=True)
    }


@pytest.fixture
def batches(tmp_path):
    """Images in folders that are no classes: who took them, or when."""
    write_classes(tmp_path / "photos" / "images", ("monday", "tuesday"), count=10)
    return tmp_path / "photos"


def rows_of(folder, label=lambda n: "ab"[n % 2]):
    files = sorted(folder.rglob("*.png"))
    return [(file.relative_to(folder).as_posix(), label(n)) for n, file in enumerate(files)]


@pytest.mark.parametrize("where", ["", "archive"], ids=["beside", "wrapped"])
def test_a_table_beside_folders_of_images_gives_the_labels(tmp_path, batches, where):
    rows = rows_of(batches)
    write_csv(batches / "labels.csv", rows, ("path", "label"))
    write_csv(batches / "classes.csv", [("0", "a"), ("1", "b")], ("id", "class"))
    (batches / "notes.csv").write_text("")
    root = batches
    if where:
        (tmp_path / where).mkdir()
        root = tmp_path / where
        batches.rename(root / "photos")
        rows = [(f"photos/{name}", label) for name, label in rows]
    assert labels_of(load(root)) == dict(rows)
    assert "labels.csv" in open_path(root).source.layout
    assert {finding.kind: finding.names for finding in open_path(root).findings} == {
        "lost_table": ("classes.csv",)
    }


def test_images_that_the_table_leaves_out_are_named(batches):
    rows = rows_of(batches)
    write_csv(batches / "labels.csv", rows[:15], ("path", "label"))
    assert load(batches).left_out == tuple((name, "not in table") for name, _ in rows[15:])


def test_the_parts_of_a_table_are_in_its_paths_where_no_column_tells_them(tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        write_classes(tmp_path / "photos" / part, ("monday", "tuesday"), count=6 - seed, seed=seed)
    write_csv(tmp_path / "photos" / "labels.csv", rows_of(tmp_path / "photos"), ("path", "label"))
    for path in (tmp_path / "photos", tmp_path / "photos" / "labels.csv"):
        dataset = load(path)
        assert dataset.class_names == ("a", "b")
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 10, 8)


@pytest.mark.parametrize(
    "table",
    [
        lambda rows: (("path", "label"), rows),
        lambda rows: (("path", "label"), [(name, f"the {label}") for name, label in rows[3:]]),
        lambda rows: (("id", "class"), [("0", "cat"), ("1", "dog")]),
        lambda rows: (("word", "meaning"), [("cat", "miaow")]),
        lambda rows: ((), [[n * 0.5 for n in range(20)] for _ in rows]),
        lambda rows: ((), []),
        lambda rows: (("filename", "class", "left", "top"), [(*row, 3, 4) for row in rows + rows]),
        lambda rows: (("path", "label"), [*rows[:-1], (rows[-1][0], "")]),
    ],
    ids=["same", "other-names", "classes", "words", "numbers", "empty", "boxes", "no-label"],
)
def test_a_table_that_says_nothing_else_leaves_a_good_folder_as_it_is(tmp_path, photos, table):
    root, alone = tmp_path / "photos", load(tmp_path / "photos")
    header, rows = table(rows_of(root, lambda n: ("cat", "dog")[n // 10]))
    write_csv(root / "table.csv", rows, header)
    assert load(root).fingerprint == alone.fingerprint
    said = [finding.message for finding in open_path(root).findings if finding.kind == "unused_table"]
    assert all("the folders give the labels" in message for message in said)
    assert len(said) == any(not label for _, label, *_ in rows)


def test_boxes_in_images_give_no_labels(tmp_path, batches):
    rows = rows_of(batches)
    write_csv(batches / "boxes.csv", [(*row, 3, 4) for row in rows + rows], ("filename", "class", "x", "y"))
    collection = open_path(batches)
    assert collection.class_names == ("monday", "tuesday")
    assert [(one.kind, one.names) for one in collection.findings if one.severity == "warning"] == [
        ("unused_table", ("boxes.csv",))
    ]


def test_a_table_of_something_else_is_no_cause_to_forget_what_is_wrong_with_the_folder(tmp_path):
    write_classes(tmp_path / "photos", ("cat",), 5)
    write_csv(tmp_path / "photos" / "classes.csv", [("0", "cat")], ("id", "class"))
    with pytest.raises(DataError, match=r"at least 2 classes .*\nExpected the files that .*classes\.csv"):
        load(tmp_path / "photos")


def test_tables_in_the_folders_of_parts(tmp_path, photos):
    """As dataset hubs ask for them: ``train/metadata.csv``."""
    for part, number in (("train", 0), ("test", 1)):
        (tmp_path / "hub" / part).mkdir(parents=True)
        for path in photos[number::2]:
            path.rename(tmp_path / "hub" / part / f"{path.parent.name}{path.name}")
        rows = [(path.name, path.name[:3]) for path in sorted((tmp_path / "hub" / part).glob("*.png"))]
        write_csv(tmp_path / "hub" / part / "metadata.csv", rows, ("file_name", "label"))
    dataset = load(tmp_path / "hub")
    assert (dataset.class_names, len(dataset.train), len(dataset.test)) == (("cat", "dog"), 10, 10)
    assert set(dataset.test.names) == {f"test/{p.name}" for p in (tmp_path / "hub" / "test").glob("*.png")}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "utf-8-sig", "utf-16"])
def test_letters_of_western_europe(tmp_path, photos, encoding):
    rows = [(path.relative_to(tmp_path).as_posix(), f"Käse {path.parent.name}") for path in photos]
    table = write_csv(tmp_path / "labels.csv", rows, ("path", "label"))
    table.write_bytes(table.read_bytes().decode().encode(encoding))
    assert load(table).class_names == ("Käse cat", "Käse dog")
    said = [finding.names for finding in open_path(table).findings if finding.kind == "encoding"]
    assert said == ([("labels.csv",)] if encoding in {"latin-1", "cp1252"} else [])


@pytest.mark.parametrize("on_disk", ["utf-8", "latin-1"])
def test_a_name_in_latin_1_leads_to_its_file(tmp_path, photos, on_disk):
    rows = []
    for number, path in enumerate(photos):
        name = f"Füße{number}.png"
        try:
            path.rename(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name.encode(on_disk)))
        except (OSError, UnicodeError):
            pytest.skip("a file system that wants Unicode")
        rows.append((f"photos/{name}", "ab"[number % 2]))
    table = write_csv(tmp_path / "labels.csv", rows, ("path", "label"))
    table.write_bytes(table.read_bytes().decode().encode("latin-1"))
    assert len(load(table).train) == 16


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_of_a_mac_are_found_by_a_table_that_spells_them_otherwise(tmp_path, photos, in_table, on_disk):
    rows = []
    for number, path in enumerate(photos):
        name = f"Käfer{number}.png" if number % 2 else f"Brot{number}.png"
        path.rename(tmp_path / "photos" / unicodedata.normalize(on_disk, name))
        rows.append((unicodedata.normalize(in_table, f"photos/{name}"), name[:4]))
    dataset = load(write_csv(tmp_path / "labels.csv", rows, ("path", "label")))
    assert (dataset.class_names, len(dataset.train)) == (("Brot", "Käfe"), 16)


@pytest.mark.parametrize(("label", "name"), [("0,5", None), ("-,5", None), ("3,0", "3"), ("1,2,3", "1,2,3")])
def test_fractions_with_a_comma_are_no_classes(tmp_path, photos, label, name):
    rows = [(path.relative_to(tmp_path), "x" if n % 2 else label) for n, path in enumerate(photos)]
    table = write_csv(tmp_path / "labels.csv", rows, ("path", "label"))
    if name is None:
        with pytest.raises(DataError, match=f"row 1 of labels.csv, got '{label}'"):
            load(table)
    else:
        assert load(table).class_names == (name, "x")


def test_eval_is_the_validation_part_of_tables_and_arrays_too(tmp_path, photos):
    parts = ["train", "train", "train", "eval", "test"] * 4
    rows = [(path, path.parent.name, part) for path, part in zip(photos, parts, strict=True)]
    datasets = [load(write_csv(tmp_path / "labels.csv", rows, ("path", "label", "split")))]
    pieces = {"train": slice(12), "eval": slice(12, 16), "test": slice(16, 20)}
    arrays = {f"x_{part}": GREY[rows] for part, rows in pieces.items()}
    arrays |= {f"y_{part}": LABELS[rows] for part, rows in pieces.items()}
    datasets.append(load(save_npz(tmp_path / "d.npz", **arrays)))
    for part, chosen in pieces.items():
        for what, values in (("images-idx3", GREY[..., 0]), ("labels-idx1", LABELS.astype(np.uint8))):
            (tmp_path / f"my-{part}-{what}-ubyte").write_bytes(idx(values[chosen]))
        write_parquet(tmp_path / "hub" / f"{part}-0.parquet", COLOUR[chosen], LABELS[chosen])
    datasets += [load(tmp_path / "my-train-images-idx3-ubyte"), load(tmp_path / "hub")]
    for dataset in datasets:
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 4, 4)


@pytest.fixture
def competition(tmp_path, photos):
    """Images beside ``train.csv``, and two tables from which nothing can be learned."""
    folder = tmp_path / "competition"
    folder.mkdir()
    for number, path in enumerate(photos):
        path.rename(folder / f"{number}.png")
    write_csv(folder / "train.csv", [(f"{n}.png", "ab"[n % 2]) for n in range(14)], ("image", "label"))
    write_csv(folder / "test.csv", [(f"{n}.png",) for n in range(14, 20)], ("image",))
    write_csv(
        folder / "sample_submission.csv", [(f"{n}.png", "a") for n in range(14, 20)], ("image", "label")
    )
    return folder


def test_a_competition_has_tables_that_are_not_learned_from(competition):
    dataset = load(competition)
    names = {*dataset.train.names, *dataset.test.names}
    assert names == {f"{number}.png" for number in range(14)}
    findings = {finding.kind: finding.names for finding in open_path(competition).findings}
    assert findings == {"no_labels": ("test.csv",), "submission": ("sample_submission.csv",)}


def test_a_column_of_empty_labels_is_none(competition):
    write_csv(competition / "test.csv", [(f"{n}.png", "") for n in range(14, 20)], ("image", "label"))
    assert len(open_path(competition).labels) == 14


def test_forms_of_an_answer_alone_are_refused(competition):
    (competition / "train.csv").rename(competition / "my_submission.csv")
    (competition / "test.csv").unlink()
    with pytest.raises(DataError, match=r"only my_submission\.csv, .*, whose labels are invented"):
        load(competition)


@pytest.mark.parametrize("label", ["nan", "NaN", ""])
def test_a_missing_label_in_a_table_is_no_class(tmp_path, photos, label):
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in photos]
    rows[4] = (rows[4][0], label)
    with pytest.raises(DataError, match=r"row 5 of labels\.csv, got ('nan'|'NaN'|an empty cell)"):
        load(write_csv(tmp_path / "labels.csv", rows, ("path", "label")))


def test_a_missing_file_is_named_and_left_out(tmp_path, photos):
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in photos]
    photos[3].unlink()
    dataset = load(write_csv(tmp_path / "labels.csv", rows, ("path", "label")))
    assert dataset.left_out == (("photos/cat/003.png", "no such file"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows in .*, got none"),
        ("path,label\n", "rows in .*, got none"),
        ("path,label\na.png,\n", "the files that .* names"),
        (
            "photos/cat/000.png,cat\nphotos/dog/000.png,\n",
            r"a label in row 2 of labels\.csv, got an empty cell",
        ),
        (
            "path,label\nphotos/cat/000.png,cat\nphotos/cat/001.png\n",
            "2 columns in row 2 of labels.csv, got 1",
        ),
        ("path,colour\nphotos/cat/000.png,red\n", "Name them 'path' and 'label'"),
        ("path,label\nphotos/cat/000.png,cat\n", "at least 2 classes"),
        ("path,x,label\nphotos/cat/000.png,1\n", "3 columns in row 1"),
        ("\0\0\0", "got"),
    ],
    ids=[
        "empty",
        "header-only",
        "no-files",
        "no-label",
        "short-row",
        "no-label-column",
        "one-class",
        "narrow",
        "nul",
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path, photos, content, message):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "labels.csv")


def test_a_name_that_no_file_can_have_is_left_out(tmp_path, photos):
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in photos]
    table = write_csv(tmp_path / "labels.csv", [*rows, ("a\0b.png", "cat")], ("path", "label"))
    assert load(table).left_out == ((r"a\x00b.png", "a name that no file can have"),)


# CSV of pixels


def pixel_rows(images, labels):
    return [[label, *image.reshape(-1)] for image, label in zip(images, labels, strict=True)]


@pytest.mark.parametrize("header", [True, False], ids=["header", "no-header"])
def test_a_table_of_grey_pixels(tmp_path, header):
    names = ["label", *[f"pixel{number}" for number in range(144)]]
    table = write_csv(tmp_path / "digits.csv", pixel_rows(GREY, LABELS), names if header else None)
    dataset = load(table)
    assert_same(dataset, GREY, LABELS)
    assert dataset.notes[0] == "The numbers were read as images of 12×12×1."
    assert dataset.train.names[0].startswith("digits/train/000")


@pytest.mark.parametrize("order", ["pixels", "planes"])
def test_a_table_of_colours_is_read_in_the_order_that_is_smooth(tmp_path, order):
    rows = COLOUR if order == "pixels" else COLOUR.transpose(0, 3, 1, 2)
    dataset = load(write_csv(tmp_path / "c.csv", pixel_rows(rows, LABELS)))
    assert_same(dataset, COLOUR, LABELS)
    assert ("plane by plane" in dataset.notes[0]) == (order == "planes")


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_label_in_the_last_column_is_found_without_a_header(tmp_path, images):
    rows = [[*row[1:], row[0]] for row in pixel_rows(images, LABELS)]
    dataset = load(write_csv(tmp_path / "c.csv", rows))
    assert_same(dataset, images, LABELS)


def test_a_word_in_the_last_column_is_the_label(tmp_path):
    rows = [[*row[1:], f"c{row[0]}"] for row in pixel_rows(GREY, LABELS)]
    assert load(write_csv(tmp_path / "c.csv", rows)).class_names == ("c0", "c1", "c2", "c3")


def test_digits_with_a_constant_corner_have_their_label_at_the_end(tmp_path):
    """As the UCI repository ships them, sorted by class here."""
    images = np.pad(GREY, ((0, 0), (2, 2), (2, 2), (0, 0)))
    rows = [[*row[1:], row[0]] for row in pixel_rows(images, np.sort(LABELS))]
    assert_same(load(write_csv(tmp_path / "c.csv", rows)), images, np.sort(LABELS))


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [(0, 0, "no columns"), (0.5, 0.25, "no columns"), (None, None, "2 columns")],
    ids=["constant", "fractions", "alike"],
)
def test_a_label_that_cannot_be_told_is_asked_for(tmp_path, first, last, found):
    rows = [row[1:] for row in pixel_rows(GREY, LABELS)]
    for number, row in enumerate(rows):
        row[0] = number % 4 if first is None else first * (number % 2)
        row[-1] = number // 10 if last is None else last * (number % 2)
    with pytest.raises(DataError, match=f"first or the last column of c.csv, .* got {found} that might"):
        load(write_csv(tmp_path / "c.csv", rows))


def test_fractions_are_scaled(tmp_path):
    dataset = load(write_csv(tmp_path / "c.csv", pixel_rows(GREY / 255, LABELS)))
    assert_same(dataset, GREY, LABELS)


def test_pixels_in_one_column_with_the_part_beside_them(tmp_path):
    parts = np.repeat(["Training", "PublicTest", "PrivateTest"], [20, 10, 10])
    rows = [
        (label, " ".join(map(str, image.reshape(-1))), part)
        for label, image, part in zip(LABELS, GREY, parts, strict=True)
    ]
    dataset = load(write_csv(tmp_path / "faces.csv", rows, ("emotion", "pixels", "Usage")))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (20, 10, 10)
    assert_same(dataset, GREY, LABELS)


def test_two_tables_of_pixels_and_one_without_labels(tmp_path):
    folder = tmp_path / "signs"
    folder.mkdir()
    names = ["label", *[f"pixel{number}" for number in range(144)]]
    write_csv(folder / "sign_train.csv", pixel_rows(GREY[:30], LABELS[:30]), names)
    write_csv(folder / "sign_test.csv", pixel_rows(GREY[30:], LABELS[30:]), names)
    write_csv(folder / "unlabelled.csv", [row[1:] for row in pixel_rows(GREY, LABELS)], names[1:])
    dataset = load(folder)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    assert open_path(folder).findings[0].names == ("unlabelled.csv",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[3].__setitem__(5, "x"), r"something else in rows 1 to 40 \(could not convert"),
        (lambda rows: rows[3].__setitem__(5, 256), "from 0 to 255, or from 0 to 1, got 20 to 256"),
        (lambda rows: rows[3].__setitem__(5, -1), "got -1 to"),
        (lambda rows: rows[3].__setitem__(5, "nan"), "got nan to nan"),
        (lambda rows: rows[3].pop(), "145 columns in row 4"),
        (lambda rows: [row.pop() for row in rows], r"flat squares, 1 or 3 channels, got shape \(40, 143\)"),
    ],
    ids=["word", "256", "negative", "nan", "short", "no-square"],
)
def test_a_table_of_something_else_is_refused(tmp_path, spoil, message):
    rows = pixel_rows(GREY.clip(20), LABELS)
    spoil(rows)
    with pytest.raises(DataError, match=message):
        load(write_csv(tmp_path / "c.csv", rows))


# npz


def save_npz(path, **content):
    np.savez_compressed(path, **content)
    return path


def test_arrays_without_labels_are_named(tmp_path):
    path = save_npz(tmp_path / "a.npz", x_train=GREY, y_train=LABELS, x_test=GREY[:4], masks=GREY)
    [finding] = open_path(path).findings
    assert (finding.kind, finding.names) == ("no_labels", ("x_test",))


def test_of_several_files_of_arrays_none_is_chosen_in_silence(tmp_path):
    for name in ("train", "test"):
        save_npz(tmp_path / f"{name}.npz", x=GREY, y=LABELS)
    with pytest.raises(DataError, match=r"one \.npz file in .*, got test\.npz, train\.npz\. Give the path"):
        load(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
        ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
    ],
    ids=["keras", "medmnist"],
)
def test_arrays_for_each_part(tmp_path, names):
    parts = [
        GREY[:20, ..., 0],
        LABELS[:20, None],
        GREY[20:30, ..., 0],
        LABELS[20:30, None],
        GREY[30:, ..., 0],
        LABELS[30:, None],
    ]
    dataset = load(save_npz(tmp_path / "d.npz", **dict(zip(names, parts, strict=True))))
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [20, 10, 10]
    assert_same(dataset, GREY, LABELS)


@pytest.mark.parametrize(
    "images",
    [
        COLOUR,
        COLOUR.transpose(0, 3, 1, 2),
        COLOUR.astype(np.float32) / 255,
        COLOUR.astype(np.float64),
        COLOUR.astype(np.int64),
        COLOUR.reshape(40, -1),
        COLOUR.transpose(0, 3, 1, 2).reshape(40, -1),
    ],
    ids=["nhwc", "nchw", "unit", "float", "int", "flat", "flat-planes"],
)
def test_arrays_of_every_order_and_range(tmp_path, images):
    assert_same(load(save_npz(tmp_path / "d.npz", images=images, labels=LABELS)), COLOUR, LABELS)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([f"class {label}" for label in LABELS]), tuple(f"class {label}" for label in range(4))),
        (np.char.encode(np.array([f"c{label}" for label in LABELS])), ("c0", "c1", "c2", "c3")),
        (np.eye(4, dtype=np.float32)[LABELS], ("0", "1", "2", "3")),
        (LABELS.astype(np.float64), ("0", "1", "2", "3")),
        (LABELS * 5, ("0", "5", "10", "15")),
    ],
    ids=["words", "bytes", "one-hot", "float", "gaps"],
)
def test_labels_of_every_kind(tmp_path, labels, names):
    dataset = load(save_npz(tmp_path / "d.npz", x=GREY, y=labels))
    assert dataset.class_names == names
    shown = {name: str(number) for number, name in enumerate(names)}
    assert [shown[name] for name in everything(dataset)[1]] == expected(GREY, LABELS)[1]


def test_class_names_of_an_archive_are_used_and_checked(tmp_path):
    names = np.array(["ant", "bee", "cow", "doe"])
    path = save_npz(tmp_path / "d.npz", x=GREY, y=LABELS, class_names=names)
    assert load(path).class_names == ("ant", "bee", "cow", "doe")
    path = save_npz(tmp_path / "e.npz", x=GREY, y=LABELS, class_names=names[:2])
    with pytest.raises(DataError, match=r"from 0 to 1, as the file names its classes, in y\[1\], got 3"):
        load(path)


WORDS = np.array(["ant", "bee", "cow", "doe"])


def spoiled(value, dtype=np.float64):
    labels = LABELS.astype(dtype)
    labels[5] = value
    return labels


@pytest.mark.parametrize("named", [True, False], ids=["class_names", "no-names"])
@pytest.mark.parametrize(
    "labels",
    [spoiled(0.5), spoiled(1.7), spoiled(np.nan), spoiled(np.inf), spoiled(1e300)],
    ids=["half", "1.7", "nan", "inf", "huge"],
)
def test_labels_that_are_no_classes_are_refused_with_their_row(tmp_path, labels, named):
    names = {"class_names": WORDS} if named else {}
    path = save_npz(tmp_path / "d.npz", x_train=GREY, y_train=labels, **names)
    with pytest.raises(DataError, match=r"y_train\[5\], got"):
        load(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (spoiled(7), r"from 0 to 3, as the file names its classes, in y\[5\], got 7"),
        (spoiled(-1, np.int64), r"from 0 to 3, as the file names its classes, in y\[5\], got -1"),
        (spoiled("emu", "U3"), r"one of the names ant, bee, cow, doe in y\[0\], got 0"),
        (np.where(np.arange(40) == 5, "emu", WORDS[LABELS]), r"ant, bee, cow, doe in y\[5\], got emu"),
        (LABELS.astype(np.complex64), "whole numbers or names in y, got complex64"),
        (np.full((40, 2), 0.5), r"one-hot rows, got \[0.5 0.5\] in y\[0\]"),
    ],
    ids=["above", "below", "numbers-as-text", "another-name", "complex", "shares"],
)
def test_labels_that_do_not_fit_the_class_names_are_refused_with_their_row(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        load(save_npz(tmp_path / "d.npz", x=GREY, y=labels, class_names=WORDS))


@pytest.mark.parametrize(
    "labels",
    [LABELS.astype(np.float32), WORDS[LABELS], np.char.add(WORDS[LABELS], " "), LABELS[:, None]],
    ids=["whole", "words", "blanks", "column"],
)
def test_labels_that_fit_the_class_names(tmp_path, labels):
    dataset = load(save_npz(tmp_path / "d.npz", x=GREY, y=labels, class_names=WORDS))
    assert dataset.class_names == tuple(WORDS)
    assert everything(dataset)[1] == [WORDS[int(label)] for label in expected(GREY, LABELS)[1]]


def test_a_name_twice_names_no_class(tmp_path):
    names = np.array(["ant", "bee", "ant", "doe"])
    with pytest.raises(DataError, match="a different name for each class in class_names, got 'ant' twice"):
        load(save_npz(tmp_path / "d.npz", x=GREY, y=LABELS, class_names=names))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_bits_are_black_and_white(tmp_path, dtype):
    bits = (GREY > 127).astype(dtype)
    path = save_npz(tmp_path / "d.npz", x=bits, y=LABELS)
    assert_same(load(path), bits.astype(np.uint8) * 255, LABELS)
    assert check_path(path, quick=True)[0].meaningless == ""


def test_all_parts_are_scaled_by_one_rule(tmp_path):
    """A test part that happens to be dark is not stretched on its own."""
    dark = (GREY > 127).astype(np.uint8)
    path = save_npz(tmp_path / "d.npz", x_train=GREY, y_train=LABELS, x_test=dark, y_test=LABELS)
    assert load(path).test.images.max() == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_whole_numbers_of_more_than_8_bits_keep_the_upper_8_of_those_in_use(tmp_path, dtype):
    deep = GREY.astype(dtype) * 16 + 7
    path = save_npz(tmp_path / "d.npz", x=np.clip(deep, 0, 4095), y=LABELS)
    assert_same(load(path), GREY, LABELS)


def test_large_arrays_are_read_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 12 * 12 * 3 * 7)
    assert_same(load(save_npz(tmp_path / "d.npz", x=COLOUR, y=LABELS)), COLOUR, LABELS)


def not_numpy(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")


def pickled(path):
    np.savez(path, x=np.array([{"a": 1}] * 3, object), y=LABELS)


def damaged(path):
    np.savez(path, x=COLOUR, y=LABELS)
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw)


def lying(path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + bytes(100))
        labels = io.BytesIO()
        np.save(labels, LABELS)
        archive.writestr("y.npy", labels.getvalue())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PK no"), "to be an .npz file"),
        (not_numpy, r"x\.npy in .* to be a NumPy array"),
        (pickled, "plain numbers in x.npy in .*, got Python objects"),
        (damaged, "x in .* to be whole, got Bad CRC-32"),
        (lying, "x in .* to be whole, got the array ends early"),
        (
            lambda path: np.savez(path, a=GREY),
            r"arrays x_train and y_train, or images and labels, in .*, got a\.",
        ),
        (lambda path: np.savez(path, x=GREY, y=LABELS[:-1]), "a label in y for each of 40 images, got 39"),
        (lambda path: np.savez(path, x=GREY[:0], y=LABELS[:0]), "images in x, got shape"),
        (lambda path: np.savez(path, x=GREY.astype(str), y=LABELS), "numbers in x, got <U3"),
        (lambda path: np.savez(path, x=np.asfortranarray(GREY), y=LABELS), "row-major order"),
        (lambda path: np.savez(path, x=GREY * 1000.0, y=LABELS), "from 0 to 255, or from 0 to 1"),
        (lambda path: np.savez(path, x=GREY, y=np.ones((40, 3))), "one label for each image in y"),
        (lambda path: np.savez(path, x=np.zeros((4, 5, 5, 2), np.uint8), y=LABELS[:4]), "1 or 3 channels"),
    ],
    ids=[
        *("no-zip", "no-array", "pickle", "damaged", "lying", "names", "count", "none", "words", "fortran"),
        *("range", "label-shape", "channels"),
    ],
)
def test_an_archive_that_cannot_be_is_refused(tmp_path, write, message):
    write(tmp_path / "d.npz")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d.npz")


# npy


def save_npy(folder, **content):
    folder.mkdir()
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_arrays_in_files_of_their_own_are_those_of_an_archive(tmp_path):
    parts = {"x_train": GREY[:20], "y_train": LABELS[:20], "x_test": GREY[20:] / 255, "y_test": LABELS[20:]}
    parts["class_names"] = WORDS
    folder = save_npy(tmp_path / "d", **parts, embeddings=np.zeros(3))
    (folder / "labels.csv").write_text("name,meaning\n0,ant\n", encoding="utf-8")  # no table of images
    archive = load(save_npz(tmp_path / "d.npz", **parts))
    for path in (folder, folder / "x_test.npy"):
        dataset = load(path)
        assert_same(dataset, GREY, WORDS[LABELS])
        assert (dataset.name, dataset.fingerprint) == ("d", archive.fingerprint)


def test_a_changed_file_of_an_array_is_read_anew(tmp_path):
    folder = save_npy(tmp_path / "d", images=GREY, labels=LABELS)
    before = load(folder).fingerprint
    np.save(folder / "labels.npy", LABELS[::-1])
    assert load(folder).fingerprint != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": GREY}, "arrays x_train and y_train, or images and labels, in .*, got x"),
        ({"x": GREY, "y": LABELS[:-1]}, "a label in y for each of 40 images, got 39"),
        ({"x": np.asfortranarray(GREY), "y": LABELS}, r"x\.npy in row-major order"),
    ],
    ids=["no-labels", "count", "fortran"],
)
def test_files_of_arrays_that_cannot_be_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load(save_npy(tmp_path / "d", **content) / "x.npy")


def test_a_file_that_is_no_array_is_refused(tmp_path):
    folder = save_npy(tmp_path / "d", y=LABELS)
    (folder / "x.npy").write_bytes(b"\x93NUMPY no")
    with pytest.raises(DataError, match=r"x\.npy to be a NumPy array"):
        load(folder)


# IDX


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gz", "plain"])
def test_idx_files_of_other_names(tmp_path, compress):
    ending = ".gz" if compress is gzip.compress else ""
    for part, rows in (("train", slice(0, 30)), ("test", slice(30, 40))):
        for what, array in (
            ("images-idx3", GREY[rows, ..., 0]),
            ("labels-idx1", LABELS[rows].astype(np.uint8)),
        ):
            (tmp_path / f"letters-{part}-{what}-ubyte{ending}").write_bytes(compress(idx(array)))
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    assert_same(dataset, GREY, LABELS)
    single = load(tmp_path / f"letters-train-images-idx3-ubyte{ending}")
    assert single.fingerprint == dataset.fingerprint


def test_idx_images_without_labels_are_named(tmp_path):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(GREY[..., 0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    [finding] = open_path(tmp_path).findings
    assert (finding.kind, finding.names) == ("no_labels", ("t10k-images-idx3-ubyte",))


def test_idx_labels_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GREY[..., 0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:-1].astype(np.uint8)))
    with pytest.raises(DataError, match="for each of 40 images, got shape"):
        load(tmp_path)


# Parquet


def write_parquet(path, images, labels, names=("ant", "bee", "cow", "doe"), struct_column=True, kind="PNG"):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [b"" if image is None else encoded(image, kind) for image in images]
    if struct_column:
        rows = [{"bytes": row, "path": f"{number}.png"} for number, row in enumerate(rows)]
    table = pa.table({"image": rows, "label": labels.tolist()})
    features = {"label": {"names": list(names or ()), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=7)
    return path


def test_parquet_as_dataset_hubs_ship_it(tmp_path):
    write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", COLOUR[:30], LABELS[:30])
    write_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", COLOUR[30:], LABELS[30:])
    dataset = load(tmp_path / "hub")
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    assert dataset.class_names == ("ant", "bee", "cow", "doe")
    assert dataset.train.names[4] == "train-00000-of-00001.parquet/4.png"
    assert (dataset.train.images == COLOUR[:30]).all()
    assert (dataset.train.labels == LABELS[:30]).all()


def test_parquet_with_plain_bytes_and_words(tmp_path):
    words = np.array(["owl", "cat", "dog", "emu"])[LABELS]
    path = write_parquet(tmp_path / "d.parquet", COLOUR, words, names=None, struct_column=False)
    dataset = load(path)
    assert dataset.class_names == ("cat", "dog", "emu", "owl")
    assert dataset.train.names[0] == "d.parquet/000000" or dataset.test.names[0] == "d.parquet/000000"


def test_parquet_files_that_list_their_classes_in_another_order_are_united_by_name(tmp_path):
    folder, other = tmp_path / "hub", ("doe", "cow", "emu", "ant")
    write_parquet(folder / "train-0.parquet", COLOUR[:20], LABELS[:20])
    write_parquet(folder / "train-1.parquet", COLOUR[20:], LABELS[20:], other)
    dataset = load(folder)
    names = [("ant", "bee", "cow", "doe")[label] for label in LABELS[:20]]
    names += [other[label] for label in LABELS[20:]]
    assert dataset.class_names == ("ant", "bee", "cow", "doe", "emu")
    for image, name in zip(*everything(dataset), strict=True):
        assert name == names[next(n for n in range(40) if (COLOUR[n] == image).all())]


def test_parquet_numbers_without_names_beside_files_with_names_are_refused(tmp_path):
    write_parquet(tmp_path / "hub" / "train-0.parquet", COLOUR[:20], LABELS[:20])
    write_parquet(tmp_path / "hub" / "train-1.parquet", COLOUR[20:], LABELS[20:], names=None)
    with pytest.raises(DataError, match=r"in train-1.parquet, as in train-0.parquet, got numbers only"):
        load(tmp_path / "hub")


def test_a_parquet_file_without_labels_is_passed_over(tmp_path):
    write_parquet(tmp_path / "hub" / "train-0.parquet", COLOUR[:30], LABELS[:30])
    write_parquet(tmp_path / "hub" / "test-0.parquet", COLOUR[30:], LABELS[30:] * 0 - 1)
    collection = open_path(tmp_path / "hub")
    assert len(collection.labels) == 30
    assert [(finding.kind, finding.names) for finding in collection.findings] == [
        ("no_labels", ("test-0.parquet",))
    ]


def test_a_damaged_image_in_parquet_is_named_and_left_out(tmp_path):
    dataset = load(write_parquet(tmp_path / "d.parquet", [*COLOUR[:3], None, *COLOUR[4:]], LABELS))
    assert dataset.left_out == (("d.parquet/3.png", "an empty file"),)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 no PAR1"), "to be a whole Parquet file"),
        (lambda path: write_parquet(path, COLOUR, LABELS, ("a", "b")), "labels of d.parquet from 0 to 1"),
        (lambda path: write_parquet(path, COLOUR, LABELS * 0, None), "at least 2 classes"),
    ],
    ids=["damaged", "labels", "one-class"],
)
def test_parquet_that_cannot_be_is_refused(tmp_path, write, message):
    write(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d.parquet")


def test_one_table_is_all_there_is_whatever_it_is_called(tmp_path):
    dataset = load(write_csv(tmp_path / "test.csv", pixel_rows(GREY, LABELS)))
    assert (len(dataset.train), len(dataset.test)) == (32, 8)


def test_parquet_without_images_says_what_is_there(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "d.parquet")
    with pytest.raises(
        DataError, match=r"a column of image bytes and a column 'label' .*, got the columns text, label"
    ):
        load(tmp_path / "d.parquet")


def test_without_pyarrow_a_person_is_told_what_to_install(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "d.parquet", COLOUR, LABELS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"no such package. Install it: pip install 'convscope\[parquet\]'"):
        load(path)


# All of them


def test_another_size_can_be_asked_for(tmp_path):
    dataset = load(
        save_npz(tmp_path / "d.npz", x=COLOUR, y=LABELS), size=(6, 8), channels=1, resize="stretch"
    )
    assert dataset.input_shape == (6, 8, 1)


def test_numbers_are_read_once(tmp_path, monkeypatch):
    path = save_npz(tmp_path / "d.npz", x=COLOUR, y=LABELS)
    first = load(path)
    monkeypatch.setattr(ingest, "_write_numbers", None)
    assert load(path).fingerprint == first.fingerprint
    monkeypatch.setattr(base, "SETTLED_SECONDS", -1)
    load(path)
    monkeypatch.setattr(ingest, "_digest", None)
    assert load(path).fingerprint == first.fingerprint


def test_a_table_of_pixels_is_not_parsed_again(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "c.csv", pixel_rows(GREY, LABELS))
    first = load(path)
    monkeypatch.setattr(table, "_numbers", None)
    assert load(path).fingerprint == first.fingerprint


def test_flat_rows_that_are_no_square_have_no_layout():
    with pytest.raises(DataError, match="flat squares"):
        find_layout(np.zeros((3, 7)), ValueRange(0, 1), "x")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"a folder of images, \.zip, .*\.parquet or IDX files, got"):
        find_source(tmp_path / "notes.txt")


def test_loading_a_table_changes_nothing(tmp_path):
    path = save_npz(tmp_path / "d.npz", x=COLOUR, y=LABELS)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    load(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def outcomes_of_mutation(folder, count, seed):
    """Look at damaged tables and arrays; anything but our own errors gets through."""
    write_csv(folder / "pixels.csv", pixel_rows(GREY, LABELS))
    save_npz(folder / "a.npz", x=COLOUR, y=LABELS)
    np.savez(folder / "b.npz", x_train=GREY, y_train=LABELS, x_test=GREY / 255, y_test=LABELS)
    write_parquet(folder / "a.parquet", COLOUR, LABELS)
    paths = write_classes(folder / "photos", count=4)
    rows = [(path.relative_to(folder), path.parent.name, "train") for path in paths]
    write_csv(folder / "paths.csv", rows, ("path", "label", "split"))
    (folder / "train-images-idx3-ubyte").write_bytes(idx(GREY[..., 0]))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    rng, refused = np.random.default_rng(seed), 0
    for path in [path for path in sorted(folder.iterdir()) if path.is_file()]:
        whole = path.read_bytes()
        for _ in range(count):
            path.write_bytes(mutated(rng, [whole]))
            try:
                check_path(path, quick=True)[0]
            except ConvscopeError as error:
                refused += 1
                assert len(str(error).splitlines()) <= 2
        path.write_bytes(whole)
    return refused


def test_damaged_tables_are_read_or_refused(tmp_path):
    (tmp_path / "data").mkdir()
    assert 10 < outcomes_of_mutation(tmp_path / "data", 12, seed=0) < 7 * 12


@pytest.mark.slow
def test_many_damaged_tables_are_read_or_refused(tmp_path):
    (tmp_path / "data").mkdir()
    assert 100 < outcomes_of_mutation(tmp_path / "data", 200, seed=1) < 7 * 200
