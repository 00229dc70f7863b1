"""Looking inside a finished run: what is found, what is drawn, and where the images come from."""

import json

import numpy as np
import pytest
from PIL import Image
from report_runs import make_dataset, make_run
from sklearn.metrics.pairwise import cosine_similarity

from convscope import cli, probes
from convscope.errors import UnknownNameError, UsageError
from convscope.evaluation import test_set_log
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.preparation import prepare
from convscope.export import load_bundle
from convscope.inspection import embeddings, feature_maps

CONFIG = ExperimentConfig("simple", scaling="unit", training=TrainingConfig(epochs=1, seed=3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    dataset = make_dataset(4, count=80)
    path, dataset = make_run(
        tmp_path_factory.mktemp("probed") / "run", dataset=dataset, record={"config": CONFIG.to_json()}
    )
    return path, dataset


@pytest.fixture
def at_hand(made, monkeypatch):
    """The run, whose data are in memory instead of on a disk."""
    path, dataset = made
    monkeypatch.setattr(probes, "load_again", lambda _recorded: dataset)
    return path, dataset


def test_a_probe_holds_every_look_and_its_checks(at_hand):
    path, dataset = at_hand
    before = test_set_log.count(json.loads((path / test_set_log.TEST_SET_LOG).read_text()))
    probe = probes.probe_run(path, 5, "conv2d_1", (0, 9), 2)
    used = json.loads((path / test_set_log.TEST_SET_LOG).read_text())["consultations"]
    assert [entry["purpose"] for entry in used[before:]] == ["inspection"]
    assert probe.image_name == dataset.test.names[5]
    assert (probe.recomputed.layer, probe.recomputed.position) == ("conv2d_1", (0, 9))
    assert probe.recomputed.difference < 1e-5
    assert probe.true == dataset.class_names[dataset.test.labels[5]]
    methods = ["grad_cam", "grad_cam_plus_plus", "integrated_gradients", "occlusion"]
    assert [one.method for one in probe.attributions] == methods
    assert [curve.kind for curve in probe.deletions + probe.insertions] == ["deletion"] * 4 + [
        "insertion"
    ] * 4
    assert probe.attributions[2].completeness.holds
    assert [one.target for one in probe.syntheses] == [f"class {probe.predicted}", "conv2d_1, filter 2"]
    for name in ("deletion", "insertion"):
        assert f"probability of {probe.predicted}" == probe.figures[name].axes[0].get_ylabel()
    assert set(probe.figures) == {
        "feature_maps", "activation", "attribution", "feature_maps_conv2d_1", "filters_conv2d_1",
        "deletion", "insertion", "similar", "synthesis",
    }  # fmt: skip
    assert json.loads(json.dumps(probe.to_json()))["attributions"][2]["completeness"]["holds"]


def test_the_activation_of_a_probe_is_the_strongest_of_its_layer(at_hand):
    path, dataset = at_hand
    bundle = load_bundle(path)
    (prepared,) = bundle.preprocess.apply(dataset.test.images[[3]])
    first = feature_maps(bundle.model, prepared)[0].values  # (h, w, c)
    found = probes.probe_run(path, 3).recomputed
    assert (found.layer, found.network_value) == ("conv2d_1", first.max())
    assert first[found.position][found.channel] == first.max()
    found = probes.probe_run(path, 3, channel=2).recomputed
    assert (found.channel, found.network_value) == (2, first[..., 2].max())


def test_a_file_is_probed_without_a_use_of_the_test_set(at_hand, tmp_path, typed):
    path, dataset = at_hand
    Image.fromarray(np.kron(dataset.test.images[4, :, :, 0], np.ones((3, 3), np.uint8))).save(
        tmp_path / "my own 4.png"
    )
    before = (path / test_set_log.TEST_SET_LOG).read_text()
    done = typed("inspect", str(path), "--image", "my own 4.png", "--figures", "drawn", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("my own 4.png: predicted ")
    assert (path / test_set_log.TEST_SET_LOG).read_text() == before
    assert (tmp_path / "drawn" / "image_my_own_4_activation.png").is_file()


@pytest.mark.parametrize(
    ("image", "message"),
    [("missing.png", "no such file. Check its path."), ("text.png", "Expected text.png to be an image")],
)
def test_what_is_no_image_is_refused_in_one_line(at_hand, tmp_path, typed, image, message):
    (tmp_path / "text.png").write_text("no pixels")
    done = typed("inspect", str(at_hand[0]), "--image", image, cwd=tmp_path)
    assert done.returncode == 3
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_similar_images_are_the_nearest_of_those_trained_on(at_hand):
    path, dataset = at_hand
    trained_on = prepare(dataset, CONFIG).train
    bundle = load_bundle(path)
    known, asked = (
        embeddings(bundle.model, bundle.preprocess.apply(images))
        for images in (trained_on.images, dataset.test.images[[7]])
    )
    likeness = cosine_similarity(asked, known)[0]
    found = probes.probe_run(path, 7).similar
    assert found.searched == len(trained_on) == 56
    np.testing.assert_allclose(found.similarities, np.sort(likeness)[::-1][:8], rtol=1e-5)
    for name, similarity in zip(found.names, found.similarities, strict=True):
        assert likeness[trained_on.names.index(name)] == pytest.approx(similarity, rel=1e-5)


@pytest.mark.slow
def test_a_map_is_drawn_where_it_is_asked_for(at_hand):
    figure = probes.probe_run(at_hand[0], 0, with_map=True).figures["map"]
    assert "t-SNE" in figure.axes[0].get_title()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((80,), UsageError, "a test image from 0 to 79, got 80"),
        ((0, "conv2d_9"), UnknownNameError, "Did you mean 'conv2d_1'"),
        ((0, "conv2d_1", (10, 0)), UsageError, "got"),
    ],
    ids=["image", "layer", "position"],
)
def test_what_a_run_does_not_have_is_refused(at_hand, arguments, error, message):
    with pytest.raises(error, match=message):
        probes.probe_run(at_hand[0], *arguments)


def test_a_run_that_cannot_be_written_costs_count_and_figures_and_not_the_answer(at_hand, read_only, typed):
    path, _dataset = at_hand
    read_only(path)
    done = typed("inspect", path.name, "--image", "1", cwd=path.parent)
    assert done.returncode == 3
    assert "the network gives" in done.stdout and "Figures: none" in done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert "test_consultations.json, got Read-only file system. The answer is complete" in lines[0]
    assert "figures/image_1_" in lines[1] and "Read-only file system" in lines[1]


@pytest.mark.slow
def test_the_command_prints_the_arithmetic_and_the_checks(at_hand, tmp_path, monkeypatch, capsys):
    command = ["convscope", "inspect", str(at_hand[0]), "--image", "1", "--figures", str(tmp_path / "f")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    for part in (
        "the network gives",
        "Grad-CAM++",
        "add up to",
        "of 56 training images",
        "An image made for class",
    ):
        assert part in printed
    assert len(list((tmp_path / "f").glob("image_1_*.png"))) == 9
