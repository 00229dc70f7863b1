"""An export does what its run does, image by image, or it does not exist."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bundle_cases import copy_of, read_zip, rewrite_json, small_network
from onnx import TensorProto, helper
from PIL import Image

import convscope
from convscope.cli import main
from convscope.errors import DataError, ExportError, RunError, UnknownNameError, UsageError
from convscope.evaluation import test_set_log
from convscope.export import Bundle, exporting, load_bundle, onnx_files, torch_files
from convscope.export.exporting import (
    BATCHES,
    ExportReport,
    compare,
    export_run,
    find_images,
    measure_latency,
    require_agreement,
    run_in_batches,
)
from convscope.export.formats import FORMATS
from convscope.export.onnx_files import open_session
from convscope.networks import NETWORKS
from convscope.preprocessing import Preprocess
from convscope.runs import RunDirectory

IMAGES = 128
TOLERANCE = 1e-4  # float32


@pytest.fixture(scope="module")
def own_run(digits_run, tmp_path_factory):
    """Copy the run: an export is counted in it."""
    return copy_of(digits_run, tmp_path_factory.mktemp("exported") / "small")


@pytest.fixture(scope="module")
def images():
    return convscope.load("digits").test.images[:IMAGES]


@pytest.fixture(scope="module")
def exports(own_run, tmp_path_factory):
    """Export the run once in each format, ONNX with 8 bits, too; the reports by format."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "MOST_IMAGES", IMAGES)
        patch.setattr(exporting, "FEW", 8)
        return {
            format: export_run(own_run, format, folder / format, int8=format == "onnx") for format in FORMATS
        }


every_format = pytest.mark.parametrize("format", FORMATS)
every_exact_format = pytest.mark.parametrize("format", [name for name in FORMATS if name != "int8"])


@every_exact_format
@pytest.mark.parametrize("batch", BATCHES)
def test_an_export_predicts_what_its_run_does(own_run, exports, images, format, batch):
    found = run_in_batches(load_bundle(exports[format].path).predict, images[: 4 * batch], batch)
    expected = load_bundle(own_run).predict(images[: 4 * batch])
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


@every_format
def test_an_export_holds_what_a_run_knows(own_run, exports, format):
    run, export = load_bundle(own_run), load_bundle(exports[format].path)
    assert export.class_names == run.class_names
    assert export.temperature == run.temperature != 1
    assert export.statistics == run.statistics
    assert export.preprocess.describe() == run.preprocess.describe()


@every_exact_format
def test_an_export_knows_images_unlike_the_training_images_by_its_features(own_run, exports, images, format):
    run, export = load_bundle(own_run), load_bundle(exports[format].path)
    pixels = np.concatenate([images, 255 - images])
    (_, own), (_, theirs) = run.predict_with_distances(pixels), export.predict_with_distances(pixels)
    np.testing.assert_allclose(theirs, own, atol=1e-4)
    assert export.predict_with_warnings(pixels)[1] == run.predict_with_warnings(pixels)[1]


def test_in_8_bits_pixels_alone_are_looked_at(exports, images):
    for folder, int8 in ((exports["int8"].path, False), (exports["onnx"].path, True)):
        assert load_bundle(folder, int8=int8).predict_with_distances(images)[1] is None


def test_the_accuracy_of_an_export_is_a_use_of_the_test_images(own_run, exports):
    record = json.loads((own_run / test_set_log.TEST_SET_LOG).read_text())
    used = [entry for entry in record["consultations"] if entry["purpose"] == "export"]
    assert len(used) >= len(exports)


def test_a_run_that_cannot_be_written_costs_the_count_and_not_the_export(
    digits_run, tmp_path, read_only, typed, quick
):
    run = copy_of(digits_run, tmp_path / "small")
    read_only(run)
    done = typed("export", "small", "--format", "keras", "--out", "exported", cwd=tmp_path)
    assert done.returncode == 3
    assert "convscope predict exported IMAGE.png" in done.stdout
    assert "Export: exported" in done.stdout and (tmp_path / "exported" / "bundle.json").is_file()
    assert "small/test_consultations.json, got Read-only file system. The answer is complete" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_format_is_named_where_people_look(tmp_path, typed):
    shown = typed("export", "--help", cwd=tmp_path).stdout
    page = Path(__file__).parents[1].joinpath("docs", "own-images.md").read_text(encoding="utf-8")
    for name in FORMATS:
        assert re.search(rf"\b{name}\b", shown) and re.search(rf"`(--format )?{name}`", page), name


@every_format
def test_every_file_of_an_export_is_listed_with_its_hash(exports, format):
    folder = exports[format].path
    record = json.loads((folder / "bundle.json").read_text())
    assert set(record["files"]) | {"bundle.json"} == {file.name for file in folder.iterdir()}
    for name, digest in record["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert record["input"]["shape"] == ["n", 28, 28, 1]
    assert record["checked"]["images"] == f"{IMAGES} test images of digits"
    assert "/" not in json.dumps(record["source"])


@every_format
def test_the_guide_s_code_runs_as_it_stands(exports, format, monkeypatch):
    monkeypatch.chdir(exports[format].path)
    monkeypatch.syspath_prepend(exports[format].path)
    monkeypatch.setitem(sys.modules, "network", None)  # restored afterwards
    del sys.modules["network"]
    code, *alone = re.findall("```python\n(.*?)```", (exports[format].path / "README.md").read_text(), re.S)
    assert [part for part in alone if "keras.saving.load_model" in part] == alone
    assert len(alone) == (format == "keras")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert np.asarray(
        names["probabilities"].detach() if format == "torch" else names["probabilities"]
    ).shape == (1, 10)


@pytest.mark.parametrize(
    ("scaling", "resize", "data_format", "channels", "temperature"),
    [
        ("minmax", "letterbox", "channels_last", 1, 1.0),
        ("unit", "crop", "channels_last", 3, 1.7),
        ("standard", "stretch", "channels_first", 3, 0.6),
        ("raw", "letterbox", "channels_last", 3, 1.0),
    ],
    ids=["minmax", "unit", "standard", "raw"],
)
def test_the_guide_s_code_with_keras_alone_gives_the_same(
    tmp_path, monkeypatch, scaling, resize, data_format, channels, temperature
):
    generator = np.random.default_rng(5)
    images = generator.integers(20, 200, (12, 9, 8, channels), np.uint8)
    preprocess = convscope.Preprocess.fit(images, scaling, data_format, resize)
    head = [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input(preprocess.input_shape), *head])
    bundle = Bundle.from_model(model, preprocess, ("a", "b", "c"), temperature)
    picture = generator.integers(0, 256, (31, 44, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "IMAGE.png")
    model.save(tmp_path / "model.keras")
    for name, content in preprocess.to_files().items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    code = FORMATS["keras"].without_convscope(bundle)
    assert "convscope" not in code
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    np.testing.assert_allclose(names["probabilities"], bundle.predict([picture]), atol=1e-5)


@every_exact_format
def test_a_report_measures_run_and_export(exports, own_run, images, format):
    report = exports[format]
    run, export = report.networks[:2]
    labels = convscope.load("digits").test.labels
    assert (run.name, run.same_labels, run.largest_difference) == ("the run", 1, 0)
    assert export.same_labels == 1
    assert export.largest_difference <= TOLERANCE
    assert export.size == (report.path / export.name).stat().st_size
    chosen = np.unique(np.linspace(0, len(labels) - 1, IMAGES).astype(int))
    everything = convscope.load("digits").test.images[chosen]
    right = load_bundle(own_run).predict(everything).argmax(axis=1) == labels[chosen]
    assert export.accuracy == run.accuracy == pytest.approx(right.mean())
    assert set(export.milliseconds) == {1, 64}
    assert all(time > 0 for time in export.milliseconds.values())
    assert json.loads(json.dumps(report.to_json()))["format"] == format


def test_the_onnx_graph_takes_raw_pixels_in_any_number_and_size(exports, images):
    session = onnxruntime.InferenceSession(exports["onnx"].path / "model.onnx")
    [given] = session.get_inputs()
    assert (given.name, given.type) == ("pixels", "tensor(uint8)")
    assert given.shape == ["n", "height", "width", "channels"]
    assert session.run(None, {"pixels": np.zeros((2, 90, 40, 3), np.uint8)})[0].shape == (2, 10)
    assert "model.onnx takes images of any size; resized by it" in exports["onnx"].notes[0]
    for count in (1, 2, 7, 64):
        found, features = session.run(None, {"pixels": images[:count]})
        assert features.shape == (count, load_bundle(exports["onnx"].path).novelty.features)
        assert found.shape == (count, 10)
        assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_onnx_file_names_its_classes_and_its_opset(exports):
    model = onnx.load(exports["onnx"].path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", onnx_files.OPSET)]


@pytest.mark.parametrize("format", ["onnx", "int8"])
def test_eight_bits_are_smaller_and_almost_as_good(exports, own_run, format):
    report = exports[format]
    _, full, small = report.networks
    assert (full.name, small.name) == ("model.onnx", "model-int8.onnx")
    assert small.size < full.size
    assert small.accuracy > full.accuracy - 0.03
    assert set(small.milliseconds) == {1, 64}
    note = report.notes[1]
    assert "ranges from 512 training images" in note and f"of {IMAGES} validation images right" in note
    assert load_bundle(report.path, int8=True).class_names == tuple("0123456789")


def test_an_export_in_eight_bits_holds_nothing_else(exports, images):
    folder = exports["int8"].path
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "bundle.json", "model-int8.onnx", "preprocess.json", "preprocess.npz", "statistics.json",
    }  # fmt: skip
    assert "validation images" in json.loads((folder / "bundle.json").read_text())["checked"]["result"]
    found, again = load_bundle(folder).predict(images), load_bundle(folder, int8=True).predict(images)
    assert (found == again).all()
    other = load_bundle(exports["onnx"].path, int8=True).predict(images)
    assert found == pytest.approx(other, abs=TOLERANCE)


def test_the_keras_file_is_keras_s_own(exports, own_run):
    model = keras.saving.load_model(exports["keras"].path / "model.keras")
    source = load_bundle(own_run).model
    assert all(
        np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, source.weights, strict=True)
    )


def test_the_torch_file_holds_no_pickle(exports):
    with zipfile.ZipFile(exports["torch"].path / "model.pt2") as archive:
        for info in archive.infolist():
            assert not archive.read(info).startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK"))


def test_the_torch_program_runs_without_this_package(exports, images, own_run):
    program = torch.export.load(exports["torch"].path / "model.pt2").module()
    found = program(torch.from_numpy(images[:7])).detach().numpy()
    assert found == pytest.approx(load_bundle(own_run).predict(images[:7]), abs=TOLERANCE)


def test_the_module_is_source_that_runs_without_this_package_and_can_be_trained(exports, images, own_run):
    folder = exports["module"].path
    source = (folder / "network.py").read_text()
    assert "import convscope" not in source and "lifted_tensor" not in source
    weights = load_bundle(own_run).model.trainable_weights
    assert source.count("torch.nn.Parameter") == len(weights)
    model = load_bundle(own_run).model
    paths = [weight.path.removeprefix(f"{model.name}/") for weight in weights]
    assert all("/" in path for path in paths)  # a layer's name stands before the weight's
    assert all(f"self.{path.replace('/', '_')} = " in source for path in paths)
    code = "import torch\nfrom network import load\nnetwork = load('network.safetensors')\n"
    code += "p = network(torch.zeros((3, 28, 28, 1), dtype=torch.uint8))\np[:, 0].sum().backward()\n"
    code += "print([*p.shape], all(w.grad is not None for w in network.parameters()))\n"
    code += "import sys; print({'convscope', 'keras'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[3, 10] True", "set()"]


# Every kind of preprocessing ------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["minmax", "unit", "standard"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_preprocessing_and_calibration_are_part_of_the_graph(scaling, data_format, temperature):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 10, 3), np.uint8)
    preprocess = Preprocess.fit(pixels[:5], scaling, data_format)
    model = convscope.build("simple", preprocess.input_shape, 3, data_format)
    bundle = Bundle.from_model(model, preprocess, ("a", "b", "c"), temperature)
    with torch.no_grad():
        found = torch_files.RawNetwork(bundle)(torch.from_numpy(pixels)).numpy()
    assert found == pytest.approx(bundle.predict(pixels), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_every_named_network_exports(name, data_format, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 28, 28, 3), np.uint8)
    preprocess = Preprocess.fit(pixels, "standard", data_format)
    keras.utils.set_random_seed(1)
    model = convscope.build(name, preprocess.input_shape, 5, data_format)
    bundle = Bundle.from_model(model, preprocess, tuple("abcde"), 1.5)
    reference = bundle.predict(pixels)
    onnx_files.write_onnx(bundle, tmp_path / "model.onnx")
    files = tmp_path / "network.safetensors", tmp_path / "network.py"
    for forward in (
        torch_files.write_program(bundle, tmp_path / "model.pt2"),
        torch_files.write_module(bundle, *files),
        open_session(tmp_path / "model.onnx", (28, 28, 3), 5),
    ):
        require_agreement(forward, pixels, reference, name)


# Refusals -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(exporting, "MOST_IMAGES", 16)
    monkeypatch.setattr(exporting, "REPEATS", 1)


def test_an_export_that_disagrees_is_refused_and_leaves_nothing(own_run, tmp_path, monkeypatch, quick):
    def forgetful(bundle, file):
        file.write_bytes(b"something")
        return lambda pixels: bundle.forward(255 - pixels)

    monkeypatch.setitem(FORMATS, "keras", replace(FORMATS["keras"], write=forgetful))
    expected = r"Expected model\.keras to agree with its source, 1 images at a time, got \d+ of 16 labels"
    with pytest.raises(ExportError, match=expected) as caught:
        export_run(own_run, "keras", tmp_path / "made" / "export")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_resizes_otherwise_is_refused(own_run, tmp_path, monkeypatch, quick):
    def careless(bundle, file):
        file.write_bytes(b"something")
        return lambda pixels: bundle.predict(pixels[:, :28, :28])

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=careless))
    with pytest.raises(ExportError, match=r"Expected model\.onnx to resize images as its source does, got"):
        export_run(own_run, "onnx", tmp_path / "made" / "export")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(own_run, tmp_path, monkeypatch, quick):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_write_companions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_run(own_run, "keras", tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"format": "onxn"}, UnknownNameError, "Did you mean 'onnx'"),
        ({"format": "module", "int8": True}, UsageError, "Expected --format onnx with --int8, got module"),
        ({"format": "torch", "int8": True}, UsageError, "Expected --format onnx with --int8, got torch"),
        ({"format": "keras", "data": "mnits"}, UnknownNameError, "Did you mean 'mnist'"),
    ],
    ids=["format", "module", "int8", "data"],
)
def test_wrong_arguments_are_refused(own_run, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export_run(own_run, target=tmp_path / "export", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(own_run, tmp_path):
    with pytest.raises(RunError, match=r"Expected a new folder .*, got one that is there"):
        export_run(own_run, "keras", tmp_path)


def test_an_export_is_no_run(exports, tmp_path):
    with pytest.raises(RunError, match="Expected a run directory"):
        export_run(exports["onnx"].path, "keras", tmp_path / "export")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_what_to_install(own_run, tmp_path, monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UsageError, match=rf"Expected the package {package}, got none\. .*convscope\[onnx\]"):
        export_run(own_run, "onnx", tmp_path / "export")


def test_data_that_are_gone_are_replaced_by_random_pixels_and_that_is_said(own_run, tmp_path, quick):
    run = copy_of(own_run, tmp_path / "run")
    rewrite_json(run / "run.json", data={"name": "gone", "class_names": list("0123456789")})
    report = export_run(run, "keras", tmp_path / "export")
    assert "images of random pixels, for want of the data (Expected one of the datasets" in report.images
    assert report.networks[0].accuracy is None


def test_data_that_have_changed_are_not_used(own_run, tmp_path):
    run = copy_of(own_run, tmp_path / "run")
    names = list("0123456789")
    rewrite_json(run / "run.json", data={"name": "digits", "fingerprint": "0" * 64, "class_names": names})
    bundle = load_bundle(run)
    assert "random pixels" in find_images(RunDirectory(run), bundle).origin
    with pytest.raises(DataError, match="Expected the data of the run, got another fingerprint for digits"):
        find_images(RunDirectory(run), bundle, "digits")


# Loading an export ----------------------------------------------------------------------------------------


def tamper(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def rename_file(folder):
    record = json.loads((folder / "bundle.json").read_text())
    record["files"] = {"../run.json": "0" * 64}
    (folder / "bundle.json").write_text(json.dumps(record))


def flip(folder):
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


TAMPERS = {
    "a flipped bit": (flip, DataError, r"model\.onnx as it was exported, got other bytes"),
    "another file": (tamper("preprocess.json", b"{}"), DataError, "preprocess.json as it was exported"),
    "a missing file": (lambda folder: (folder / "model.onnx").unlink(), RunError, "model.onnx in the run"),
    "a path outside": (rename_file, RunError, r"Expected files inside .*, got '\.\./run\.json'"),
    "no list of files": (lambda f: rewrite_json(f / "bundle.json", files=None), RunError, "a list of files"),
    "another version": (lambda f: rewrite_json(f / "bundle.json", version=2), RunError, "of version 1"),
    "another format": (lambda f: rewrite_json(f / "bundle.json", format="exe"), RunError, "of version 1"),
    "no JSON": (tamper("bundle.json", b"{"), RunError, "to be JSON"),
}


@pytest.mark.parametrize("name", TAMPERS)
def test_a_tampered_export_is_refused(exports, tmp_path, name):
    damage, error, message = TAMPERS[name]
    folder = copy_of(exports["onnx"].path, tmp_path / "export")
    damage(folder)
    with pytest.raises(error, match=message):
        load_bundle(folder)


def test_eight_bits_must_have_been_exported(exports):
    with pytest.raises(UsageError, match="Expected an ONNX export with int8, got a keras export"):
        load_bundle(exports["keras"].path, int8=True)


def onnx_file(path, shape=(4, 4, 1), classes=2, outside=None):
    """Write a network of one reshaping, its weights in another file if there is one."""
    size = int(np.prod(shape))
    weights = helper.make_tensor("w", TensorProto.FLOAT, (size, classes), np.zeros(size * classes))
    if outside:
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(size, classes))
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=str(outside))
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["probabilities"]),
    ]
    given = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", *shape])
    made = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [given], [made], [weights]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_file_of_the_right_form_opens(tmp_path):
    forward = open_session(onnx_file(tmp_path / "model.onnx"), (4, 4, 1), 2)
    assert forward(np.zeros((300, 4, 4, 1), np.uint8)).shape == (300, 2)


@pytest.mark.parametrize("outside", ["secret.bin", "../secret.bin", "/etc/hostname"])
def test_an_onnx_file_cannot_read_other_files(tmp_path, monkeypatch, outside):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for place in (tmp_path, tmp_path / "inside"):
        (place / "secret.bin").write_bytes(bytes(4 * 32))
    file = onnx_file(tmp_path / "inside" / "model.onnx", outside=outside)
    with pytest.raises(DataError, match=r"model\.onnx to be an ONNX network"):
        open_session(file, (4, 4, 1), 2)


@pytest.mark.parametrize(
    ("shape", "classes"), [((4, 4, 3), 2), ((4, 4, 1), 3)], ids=["another input", "another output"]
)
def test_an_onnx_file_of_another_form_is_refused(tmp_path, shape, classes):
    with pytest.raises(DataError, match=r"model\.onnx with input and output"):
        open_session(onnx_file(tmp_path / "model.onnx"), shape, classes)


def test_text_is_no_onnx_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"model\.onnx to be an ONNX network"):
        open_session(tmp_path / "model.onnx", (4, 4, 1), 2)


# Comparing ------------------------------------------------------------------------------------------------


def rows(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("reference", "predicted", "mismatches", "holds"),
    [
        (rows([0.9, 0.1]), rows([0.9, 0.1]), 0, True),
        (rows([0.9, 0.1]), rows([0.90009, 0.09991]), 0, True),
        (rows([0.9, 0.1]), rows([0.9002, 0.0998]), 0, False),
        (rows([0.50002, 0.49998]), rows([0.49998, 0.50002]), 0, True),
        (rows([0.5001, 0.4999]), rows([0.4999, 0.5001]), 1, False),
        (rows([0.2, 0.8], [0.9, 0.1]), rows([0.8, 0.2], [0.9, 0.1]), 1, False),
        (rows([0.9, 0.1]), rows([np.nan, 0.1]), 0, False),
    ],
    ids=["equal", "close", "far", "tie", "no tie", "swapped", "NaN"],
)
def test_agreement_means_the_same_labels_and_probabilities(reference, predicted, mismatches, holds):
    found = compare(reference, predicted)
    assert found.mismatches == mismatches
    assert found.holds is holds


def test_agreement_is_asked_for_at_every_batch(images):
    asked = set()
    reference = np.full((64, 2), 0.5, np.float32)

    def forward(pixels):
        asked.add(len(pixels))
        return reference[: len(pixels)]

    require_agreement(forward, images[:64], reference, "x")
    assert asked == set(BATCHES)


def test_latency_is_measured_in_turns(images):
    turns = []
    networks = {name: lambda pixels, name=name: turns.append((name, len(pixels))) for name in ("a", "b")}
    found = measure_latency(networks, images[:3])
    assert turns[:4] == [("a", 1), ("b", 1)] * 2
    assert {length for _, length in turns} == {1, 64}
    assert set(found["a"]) == {1, 64}


# The command line -----------------------------------------------------------------------------------------


def test_the_command_prints_what_the_export_is_worth(own_run, tmp_path, monkeypatch, capsys, quick):
    monkeypatch.setattr(
        sys, "argv",
        ["convscope", "export", str(own_run), "--format", "keras", "--out", str(tmp_path / "export")],
    )  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        main()
    output = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "Checked on 16 test images of digits" in output
    assert "model.keras" in output
    assert (tmp_path / "export" / "bundle.json").is_file()


def test_the_command_prints_one_json_object(own_run, tmp_path, monkeypatch, capsys):
    report = ExportReport(tmp_path, "keras", "images", ())
    monkeypatch.setattr("convscope.export.exporting.export_run", lambda *_, **__: report)
    monkeypatch.setattr(sys, "argv", ["convscope", "export", str(own_run), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out) == report.to_json()


# Python, command line and ONNX ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A thousand real images and a run trained on their like: MNIST where it is, the digits otherwise."""
    from bundle_cases import write_run

    from convscope.experiment.config import ExperimentConfig
    from convscope.experiment.preparation import prepare

    here = os.environ.get("CONVSCOPE_DATA")
    dataset = convscope.load("mnist" if here else "digits")
    config = ExperimentConfig("simple")
    prepared = prepare(dataset, config)
    keras.utils.set_random_seed(0)
    model = small_network()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    train = prepared.train.take(np.arange(min(6_000, len(prepared.train))))
    convscope.fit(
        model, train.images, train.labels, preprocess=prepared.preprocess, epochs=4, seed=0, verbose=0
    )
    run = write_run(tmp_path_factory.mktemp("thousand") / "run", model, dataset, config, prepared)
    return run, np.concatenate([dataset.test.images, dataset.train.images])[:1000]


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_python_command_line_and_onnx_agree_on_a_thousand_images(
    thousand, tmp_path, monkeypatch, capsys, batch
):
    from PIL import Image

    from convscope import prediction

    run, images = thousand
    reference = run_in_batches(load_bundle(run).predict, images, batch)
    export = run.with_name("onnx")
    if not export.exists():
        export_run(run, "onnx", export)
    session = onnxruntime.InferenceSession(export / "model.onnx")
    found = run_in_batches(lambda pixels: session.run(None, {"pixels": pixels})[0], images, batch)
    assert compare(reference, found).holds
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number:04d}.png", compress_level=1)
    monkeypatch.setattr(prediction, "CHUNK", batch)
    monkeypatch.setattr(prediction, "RANKED", 10)
    monkeypatch.setattr(sys, "argv", ["convscope", "predict", str(run), str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    printed = json.loads(capsys.readouterr().out)["predictions"]
    shown = [{one["label"]: one["probability"] for one in row["ranked"]} for row in printed]
    names = load_bundle(run).class_names
    assert compare(reference, np.array([[row[name] for name in names] for row in shown], np.float32)).holds


def test_members_of_the_keras_file_are_the_three_known(exports):
    assert set(read_zip(exports["keras"].path / "model.keras")) == {
        "metadata.json",
        "config.json",
        "model.weights.h5",
    }
