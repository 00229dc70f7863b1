"""Image files in, predictions out: every file is answered for, and none is touched."""

import csv
import hashlib
import io
import json
import os
import re
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import convscope
from convscope import prediction
from convscope.cli import main
from convscope.errors import UsageError
from convscope.export import Bundle, load_bundle
from convscope.prediction import Failure, Prediction, draw_sheet, predict_files


@pytest.fixture(scope="module")
def bundle(digits_run):
    return load_bundle(digits_run)


@pytest.fixture(scope="module")
def images():
    return convscope.load("digits").test.images


def png(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, images):
    """Eight digits, one of them inverted, in a folder with things that are no images."""
    place = tmp_path / "digits"
    (place / "more").mkdir(parents=True)
    for number in range(6):
        (place / f"{number}.png").write_bytes(png(images[number]))
    (place / "more" / "6.PNG").write_bytes(png(images[6]))
    (place / "more" / "inverted.png").write_bytes(png(255 - images[7]))
    (place / "notes.txt").write_text("no image")
    (place / ".hidden.png").write_bytes(b"")
    return place


def names(results):
    return [one.name for one in results]


def test_files_are_predicted_like_the_images_in_them(bundle, folder, images):
    paths = [folder / f"{number}.png" for number in range(6)]
    results = list(predict_files(bundle, paths))
    expected = bundle.predict(images[:6])
    assert names(results) == [str(path) for path in paths]
    assert [one.label for one in results] == [bundle.class_names[row.argmax()] for row in expected]
    assert [one.probability for one in results] == pytest.approx(expected.max(axis=1), abs=1e-6)
    for one, row in zip(results, expected, strict=True):
        assert [value for _, value in one.ranked] == pytest.approx(np.sort(row)[:-4:-1], abs=1e-6)


def test_a_folder_means_the_images_below_it_in_order(bundle, folder):
    results = list(predict_files(bundle, [folder]))
    found = [str(folder / f"{number}.png") for number in range(6)]
    assert names(results) == [*found, str(folder / "more" / "6.PNG"), str(folder / "more" / "inverted.png")]


def test_what_looks_unlike_the_training_images_is_named(bundle, folder):
    odd = {one.name: one.drift_warnings for one in predict_files(bundle, [folder]) if one.drift_warnings}
    assert list(odd) == [str(folder / "more" / "inverted.png")]
    assert odd[str(folder / "more" / "inverted.png")][0].startswith("inverted: ")


def test_a_run_without_statistics_compares_nothing(bundle, folder):
    bare = Bundle(bundle.preprocess, bundle.class_names, forward=bundle.forward)
    assert all(one.drift_warnings == () for one in predict_files(bare, [folder]))


@pytest.mark.parametrize(("threshold", "abstains"), [(0.01, 0), (1.0, 8)], ids=["never", "always"])
def test_a_threshold_makes_predictions_abstain(bundle, folder, threshold, abstains):
    results = list(predict_files(bundle, [folder], abstain=threshold))
    assert sum(one.abstained for one in results) == abstains
    assert [one.to_json()["label"] is None for one in results] == [one.abstained for one in results]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_an_impossible_threshold_is_refused_before_anything_is_read(bundle, threshold):
    with pytest.raises(UsageError, match="Expected a threshold above 0 and up to 1"):
        predict_files(bundle, ["nothing"], abstain=threshold)


def test_what_cannot_be_read_is_named_and_the_rest_predicted(bundle, folder, tmp_path):
    (tmp_path / "page.png").write_bytes(b"<html>")
    (tmp_path / "short.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (tmp_path / "nothing.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    inputs = [
        tmp_path / "page.png",
        folder / "0.png",
        tmp_path / "short.png",
        tmp_path / "nothing.png",
        tmp_path / "absent.png",
        tmp_path / "empty",
        "zero\0byte.png",
        folder / "1.png",
    ]
    results = list(predict_files(bundle, inputs))
    assert [type(one) for one in results] == [
        Failure, Prediction, Failure, Failure, Failure, Failure, Failure, Prediction,
    ]  # fmt: skip
    reasons = [one.reason for one in results if isinstance(one, Failure)]
    words = ("HTML page", "cut short", "empty", "no such file", "got none", "zero byte")
    assert [word in reason for word, reason in zip(words, reasons, strict=True)] == [True] * 6
    assert not any("\n" in reason for reason in reasons)


@pytest.mark.posix("symbolic links that anybody may make")
def test_links_in_a_circle_are_named(bundle, folder):
    (folder / "more" / "again").symlink_to(folder)
    results = list(predict_files(bundle, [folder]))
    assert len([one for one in results if isinstance(one, Prediction)]) == 8
    [failure] = [one for one in results if isinstance(one, Failure)]
    assert "leads back to a folder" in failure.reason


def test_a_name_that_is_no_text_is_shown_as_it_can_be(bundle, tmp_path, images):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(png(images[0]))
    [result] = predict_files(bundle, [path])
    assert result.name.endswith(r"caf\xe9.png")
    json.dumps(result.to_json()).encode()


def test_more_files_than_fit_into_one_go_keep_their_order(bundle, folder, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK", 3)
    inputs = [folder / "0.png", "absent.png", *(folder / f"{number}.png" for number in range(1, 6))]
    assert names(predict_files(bundle, inputs)) == [str(one) for one in inputs]


def test_results_come_before_all_inputs_are_read(bundle, folder, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK", 1)
    asked = []

    def inputs():
        for number in range(4):
            asked.append(number)
            yield folder / f"{number}.png"

    results = predict_files(bundle, inputs())
    next(results)
    assert asked == [0]


# Standard input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"], ids=["lines", "zeros", "Windows lines"])
def test_standard_input_may_list_paths(bundle, folder, separator):
    paths = [folder / "0.png", folder / "more"]
    content = separator.join(os.fsencode(path) for path in paths) + separator
    results = list(predict_files(bundle, ["-"], standard_input=lambda: content))
    assert names(results) == [
        str(folder / "0.png"),
        *(str(folder / "more" / n) for n in ("6.PNG", "inverted.png")),
    ]


def test_standard_input_may_be_an_image(bundle, folder):
    content = (folder / "0.png").read_bytes()
    [result] = predict_files(bundle, ["-"], standard_input=lambda: content)
    [expected] = predict_files(bundle, [folder / "0.png"])
    assert (result.name, result.ranked) == ("-", expected.ranked)


def test_empty_standard_input_is_named(bundle):
    [failure] = predict_files(bundle, ["-"], standard_input=lambda: b" \n")
    assert failure.reason == "Expected an image or a list of paths on standard input, got nothing."


# What the network sees ------------------------------------------------------------------------------------


def test_the_sheet_shows_preprocessed_inputs_with_what_was_made_of_them(bundle, folder):
    predictions = list(predict_files(bundle, [folder]))
    figure = draw_sheet(bundle, predictions)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 8
    expected = bundle.preprocess.apply(predictions[0].pixels[None])[0, ..., 0]
    assert np.asarray(shown[0].images[0].get_array(), float) == pytest.approx(expected, abs=1 / 255)
    assert shown[0].get_title() == f"{predictions[0].label} ({predictions[0].probability:.2f})"
    assert shown[0].get_xlabel().endswith("0.png")


def test_a_sheet_of_nothing_says_so(bundle):
    figure = draw_sheet(bundle, [])
    assert "No image could be read." in " ".join(text.get_text() for text in figure.findobj(match=_is_text))


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")


# The command line -----------------------------------------------------------------------------------------


@pytest.fixture
def command(digits_run, monkeypatch, capsys):
    """Run ``convscope predict`` in this process; give exit code and output."""

    def run(*arguments):
        words = ["convscope", "predict", str(digits_run), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, *capsys.readouterr()

    return run


def tree(folder):
    """Everything about a folder that must not change."""
    return {
        path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_command_prints_one_json_object(command, folder, bundle):
    before = tree(folder)
    code, output, _ = command(folder, "--json")
    printed = json.loads(output)
    assert code == 0
    assert printed["failures"] == []
    assert printed["class_names"] == list(bundle.class_names)
    expected = [one.to_json() for one in predict_files(bundle, [folder])]
    assert printed["predictions"] == expected
    labels = [one["label"] for one in expected]
    assert printed["counts"] == {name: labels.count(name) for name in bundle.class_names}
    assert tree(folder) == before


def test_the_command_prints_csv(command, folder, bundle):
    code, output, error = command(folder, "absent.png", "--csv", "--abstain", "1")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert code == 3
    assert [row["file"] for row in rows] == [*names(predict_files(bundle, [folder])), "absent.png"]
    assert {row["abstained"] for row in rows[:-1]} == {"True"}
    assert {row["label"] for row in rows} == {""}
    assert float(rows[0]["probability"]) > float(rows[0]["second_probability"]) > 0
    assert "absent.png to be an image" in rows[-1]["error"]
    assert "absent.png to be an image" in error


def test_the_command_shows_a_table_and_its_doubts(command, folder, bundle):
    code, output, error = command(folder, folder / "nothing.png")
    assert code == 3
    labels = Counter(one.label for one in predict_files(bundle, [folder]))
    counts = re.fullmatch(r"In all 9: (.+)", output.splitlines()[-1])[1]
    expected = [f"{label} ({count})" for label, count in labels.items()]
    assert sorted(counts.split(", ")) == sorted([*expected, "not read (1)"])
    assert "8 predicted" in output
    assert "1 of 8 unlike the training images" in output
    assert "inverted.png: inverted: its border is at grey level 255" in output
    assert re.fullmatch(
        r"Error: Expected .*nothing.png to be an image, got no such file.*path.", error.strip()
    )


def test_a_doubt_about_several_images_is_told_once(command, folder, tmp_path):
    place = tmp_path / "several"
    place.mkdir()
    for number in range(5):
        Image.open(folder / "more" / "inverted.png").save(place / f"{number}.png")
    for number in range(12):
        (place / f"cut-{number}.png").write_bytes((folder / "0.png").read_bytes()[:60])
    code, output, error = command(place)
    assert code == 3
    lines = [line for line in output.splitlines() if "inverted" in line]
    names = ", ".join(str(place / f"{number}.png") for number in range(3))
    begin = f"  5 images inverted: {names} and 2 more; of the first one its border is at grey level 255,"
    assert len(lines) == 1 and lines[0].startswith(begin)
    assert output.splitlines()[-1].startswith("In all 17: ") and output.endswith(", not read (12)\n")
    refused = error.strip().splitlines()
    assert len(refused) == 11 and all(line.startswith("Error: ") for line in refused)
    assert refused[-1] == "Error: 2 more could not be read; --csv lists them all."


def test_the_command_draws_what_the_network_sees(command, folder, tmp_path):
    code, output, _ = command(folder, "--show", tmp_path / "sheet.png")
    assert code == 0
    assert f"What the network sees: {tmp_path / 'sheet.png'}" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0.png", "--show", "0.png"), "Expected a new file for --show, got 0.png, which is there"),
        (("0.png", "--show", "sheet.jpg"), "Expected a file that ends in .png for --show, got sheet.jpg"),
        (("0.png", "--show", "no/such/sheet.png"), "Expected a file in an existing folder for --show"),
        (("0.png", "--json", "--csv"), "Expected --csv or --json, got both"),
        (("0.png", "--abstain", "2"), "Expected a threshold above 0 and up to 1, got 2.0"),
        (("0.png", "--abstain", "much"), "Invalid value for '--abstain'"),
        ((), "Missing argument"),
    ],
    ids=["over a photo", "no PNG", "no folder", "two formats", "threshold", "no number", "no file"],
)
def test_a_wrong_command_is_refused_in_a_line_or_two(command, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    before = tree(folder)
    code, output, error = command(*arguments)
    assert code == 2
    assert output == ""
    assert message in error
    assert error.strip().count("\n") <= 1
    assert tree(folder) == before


def test_an_image_in_the_place_of_the_run_is_told_so(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["convscope", "predict", "0.png"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Expected a run before the images, got the file 0.png. To take the newest run: convscope" in error
    assert "convscope predict latest 0.png" in error


def test_a_folder_that_is_no_run_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convscope", "predict", str(folder), str(folder / "0.png")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 3
    assert "Expected a run directory with run.json" in capsys.readouterr().err
