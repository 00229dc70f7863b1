"""Experiments that are steered: augmentation, weights, rates, deadlines and stops, and their resumption."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from run_cases import assert_same_training, interrupt_at, weights_of

from convscope.augmentation import Augmentation
from convscope.data.dataset import Dataset, Split, fingerprint
from convscope.errors import InterruptedRunError, UnknownNameError, UsageError
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.fitting import say_how_it_ended, schedule_and_callbacks
from convscope.experiment.planning import divide_time
from convscope.experiment.preparation import build_model, prepare
from convscope.experiment.running import resume_experiment, run_experiment
from convscope.recipes import RECIPES, suggest, with_small_batches
from convscope.runs import open_run
from convscope.training.events import EpochEnd, Notice, StepEnd, TrainBegin, TrainEnd
from convscope.training.schedules import Rate

SHORT = TrainingConfig(epochs=3, batch_size=64, deterministic=True)
STEERED = ExperimentConfig(
    "simple",
    data="digits",
    augmentation=Augmentation(shift=0.1, mixup=0.2),
    training=replace(
        SHORT, epochs=4, schedule="plateau", learning_rate=0.05, class_weights="balanced", patience=1,
        until=0.999, monitor="accuracy",
    ),
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        pytest.param("fast", interrupt_at(StepEnd, 1, 7), id="fast"),
        pytest.param("keras", interrupt_at(EpochEnd, 1), id="keras", marks=pytest.mark.slow),
    ],
)
def test_a_steered_training_is_resumed_bit_for_bit(digits, tmp_path, engine, moment):
    config = replace(STEERED, training=replace(STEERED.training, engine=engine))
    whole = run_experiment(config, digits, tmp_path / "whole", with_report=False)
    with pytest.raises(InterruptedRunError):
        run_experiment(config, digits, tmp_path / "cut", [moment], with_report=False)
    resumed = resume_experiment(tmp_path / "cut")
    assert_same_training(whole.run, resumed.run)
    recorded = open_run(resumed.run).read_json("run.json")["config"]
    assert ExperimentConfig.from_json(recorded) == config


@pytest.mark.slow
def test_a_found_learning_rate_is_kept_with_its_figure_and_for_resumption(digits, tmp_path):
    config = ExperimentConfig(
        "simple", data="digits", preflight=True, training=replace(SHORT, find_learning_rate=True)
    )
    heard = []
    listeners = [interrupt_at(EpochEnd, 1), lambda event: heard.append(getattr(event, "text", ""))]
    with pytest.raises(InterruptedRunError):
        run_experiment(config, digits, tmp_path / "cut", listeners, with_report=False)
    recorded = open_run(tmp_path / "cut").read_json("run.json")["config"]["training"]
    assert 1e-4 < recorded["learning_rate"] < 0.1
    assert any(text.startswith(f"learning rate: {recorded['learning_rate']:.2g}, a tenth") for text in heard)
    assert any(text.startswith("preflight: the network overfits one batch of 32 images in") for text in heard)
    assert (tmp_path / "cut/figures/learning-rate.png").read_bytes().startswith(b"\x89PNG")
    resume_experiment(tmp_path / "cut")
    known = replace(config, preflight=False, training=replace(SHORT, learning_rate=recorded["learning_rate"]))
    run_experiment(known, digits, tmp_path / "known", with_report=False)
    assert_same_training(tmp_path / "known", tmp_path / "cut")


@pytest.mark.slow
def test_a_training_ends_at_its_deadline(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # a busy machine must not decide here
    config = ExperimentConfig("simple", data="digits", training=replace(SHORT, within=4.0, schedule="cosine"))
    heard, began = [], time.perf_counter()
    listeners = [heard.append, lambda event: heard.append(time.perf_counter())]
    result = run_experiment(config, digits, tmp_path / "run", listeners, with_report=False)
    record = open_run(result.run).read_json("run.json")
    assert 1.0 <= record["timetable"]["seconds"] <= 4.0
    assert result.seconds == pytest.approx(record["timetable"]["seconds"], abs=0.3)
    ended = heard[next(i for i, event in enumerate(heard) if isinstance(event, TrainEnd)) + 1]
    assert ended - began <= 4.3
    assert record["ended"]["learning_rate"] < 1e-6  # of 1e-3; the last step may come a moment too early
    assert record["ended"]["after"] == pytest.approx(ended - began, abs=0.2)
    begin = next(event for event in heard if isinstance(event, TrainBegin))
    assert begin.epochs == record["timetable"]["epochs"]
    assert any(isinstance(event, Notice) and event.text.startswith("deadline: ") for event in heard)


@pytest.mark.parametrize("setting", [{"until": 0.9}, {"patience": 3}], ids=["until", "patience"])
def test_stopping_by_the_validation_needs_one(digits, tmp_path, setting):
    config = ExperimentConfig(
        "simple", data="digits", validation_share=0, training=replace(SHORT, **setting)
    )  # fmt: skip
    with pytest.raises(
        UsageError, match=r"^Expected validation images to stop by with (until|patience), got"
    ):
        run_experiment(config, digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_training_batches_are_augmented_and_no_others(digits, tmp_path, monkeypatch, engine):
    seen, draw = [], Augmentation.draw

    def watched(self, images, height, width, *, seed, epoch, step):
        seen.append((seed, epoch, step, images))
        return draw(self, images, height, width, seed=seed, epoch=epoch, step=step)

    monkeypatch.setattr(Augmentation, "draw", watched)
    training = replace(SHORT, epochs=2, batch_size=512, engine=engine)
    config = ExperimentConfig(
        "simple", data="digits", augmentation=Augmentation(shift=0.1), training=training
    )
    run_experiment(config, digits, tmp_path / "run", with_report=False)
    batches = [(1338, epoch, step, size) for epoch in (0, 1) for step, size in enumerate((512, 493))]
    assert sorted(set(seen)) == batches
    assert len(seen) <= len(batches) + 1  # the first one is looked at before the training


def test_a_network_whose_outputs_do_not_fit_is_refused_before_anything_is_written(digits, tmp_path):
    import keras

    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="sigmoid")]
    keras.Sequential(layers).save(tmp_path / "mine.keras")
    config = ExperimentConfig(str(tmp_path / "mine.keras"), data="digits", preflight=True, training=SHORT)
    with pytest.raises(UsageError, match="probabilities that add up to 1, got sigmoid"):
        run_experiment(config, digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_preflight_changes_nothing(digits, tmp_path):
    for name, preflight in (("with", True), ("without", False)):
        config = ExperimentConfig(
            "deep", data="digits", preflight=preflight, training=replace(SHORT, epochs=1)
        )
        run_experiment(config, digits, tmp_path / name, with_report=False)
    assert_same_training(tmp_path / "with", tmp_path / "without")


@pytest.mark.parametrize(("monitor", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_what_was_asked_for_becomes_callbacks(monitor, mode):
    training = replace(SHORT, patience=4, monitor=monitor, until=0.97)
    config = ExperimentConfig("simple", training=training)
    epochs, schedule, callbacks = schedule_and_callbacks(build_model(config, (8, 8, 1), 10), config, 100, {})
    stopping, until = callbacks
    assert stopping.restore_best_weights
    assert (stopping.patience, stopping.monitor, stopping.mode) == (4, f"val_{monitor}", mode)
    assert stopping.restore_best_weights
    assert (until.target, until.monitor) == (0.97, "val_accuracy")
    assert (epochs, schedule) == (3, None)


@pytest.mark.parametrize("name", ["one-cycle", "cosine"])
def test_a_schedule_is_as_long_as_the_training(name):
    config = ExperimentConfig("simple", training=replace(SHORT, schedule=name, learning_rate=0.1))
    _, schedule, _ = schedule_and_callbacks(build_model(config, (8, 8, 1), 10), config, 100, {})
    steps = 3 * math.ceil(100 / 64)
    assert schedule(steps).learning_rate < 2e-5 < schedule(steps - 1).learning_rate
    assert max(schedule(step).learning_rate for step in range(steps)) > 0.05


@pytest.mark.parametrize(
    ("settings", "restores", "patience"),
    [
        ({}, None, None),
        ({"keep": "last"}, None, None),
        ({"keep": "best"}, True, math.inf),
        ({"patience": 4}, True, 4),
        ({"patience": 4, "keep": "last"}, False, 4),
    ],
    ids=str,
)
def test_the_best_epoch_or_the_last_one_is_kept(settings, restores, patience):
    config = ExperimentConfig("simple", training=replace(SHORT, **settings))
    _, _, callbacks = schedule_and_callbacks(build_model(config, (8, 8, 1), 10), config, 100, {})
    if restores is None:
        assert callbacks == []
    else:
        [stopping] = callbacks
        assert (stopping.restore_best_weights, stopping.patience) == (restores, patience)


def test_without_a_validation_the_last_epoch_is_kept(digits, tmp_path):
    training = replace(SHORT, epochs=1, keep="best")
    config = ExperimentConfig("simple", data="digits", validation_share=0, training=training)
    heard = []
    run = run_experiment(config, digits, tmp_path / "run", [heard.append]).run
    assert open_run(run).read_json("run.json")["kept_epoch"] is None
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert "Without validation no epoch is the best: the network has the weights of the last one." in said


class Spoiling:
    """A schedule that learns for two epochs and unlearns everything in the others."""

    def __call__(self, step):
        return Rate(0.1 if step < 2 * math.ceil(1005 / 64) else 3.0)


SPOILED = replace(SHORT, epochs=4, optimizer="sgd", schedule="cosine", learning_rate=0.1)


@pytest.fixture
def spoiling(monkeypatch):
    monkeypatch.setattr("convscope.experiment.fitting.make_schedule", lambda *_: Spoiling())


@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
@pytest.mark.parametrize("engine", ["fast", pytest.param("keras", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("spoiling")
def test_the_network_of_the_best_epoch_is_evaluated_and_kept(digits, tmp_path, engine, monitor):
    training = replace(SPOILED, engine=engine, keep="best", monitor=monitor)
    config = ExperimentConfig("simple", data="digits", training=training)
    result = run_experiment(config, digits, tmp_path / "run", with_report=False)
    validated = result.history[f"val_{monitor}"]
    best = max(validated) if monitor == "accuracy" else min(validated)
    epoch = validated.index(best) + 1
    assert open_run(result.run).read_json("run.json")["kept_epoch"] == epoch < 3
    assert getattr(result.validation, monitor) == pytest.approx(best, abs=0.02)  # bfloat16
    stopped = replace(training, epochs=epoch, keep="last")
    run_experiment(replace(config, training=stopped), digits, tmp_path / "stopped", with_report=False)
    kept, expected = weights_of(result.run), weights_of(tmp_path / "stopped")
    assert all(np.array_equal(kept[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        pytest.param("fast", interrupt_at(StepEnd, 3, 2), id="fast"),
        pytest.param("keras", interrupt_at(EpochEnd, 2), id="keras", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("spoiling")
def test_the_best_epoch_is_remembered_by_a_resumed_training(digits, tmp_path, engine, moment):
    config = ExperimentConfig("simple", data="digits", training=replace(SPOILED, engine=engine, keep="best"))
    whole = run_experiment(config, digits, tmp_path / "whole", with_report=False)
    with pytest.raises(InterruptedRunError):
        run_experiment(config, digits, tmp_path / "cut", [moment], with_report=False)
    resumed = resume_experiment(tmp_path / "cut")
    kept = open_run(resumed.run).read_json("run.json")["kept_epoch"]
    assert kept == open_run(whole.run).read_json("run.json")["kept_epoch"] < 3
    assert_same_training(whole.run, resumed.run)


def test_what_ended_a_training_is_said():
    training = TrainingConfig(until=0.9, patience=2)
    history = {"loss": [1.0, 1.0, 1.0], "val_loss": [0.5, 0.3, 0.4], "val_accuracy": [0.8, 0.91, 0.92]}
    assert say_how_it_ended(training, history) == [
        "90% validation accuracy reached in epoch 3: 92.00%.",
        "The validation loss was best in epoch 2 of 3: 0.3000. The network has the weights of that epoch.",
    ]
    assert say_how_it_ended(TrainingConfig(), history) == []
    in_time = {"after": 59.96, "learning_rate": 1e-6, "passes": 2.5}
    assert say_how_it_ended(TrainingConfig(), history, in_time) == [
        "The training ended 60.0 s after the start, at a learning rate of 1.0e-06."
    ]
    assert (
        "only 4% of the training images"
        in say_how_it_ended(TrainingConfig(), history, in_time | {"passes": 0.04})[1]
    )


def test_epochs_of_fine_tuning_are_counted_without_the_head_alone():
    training = TrainingConfig(until=0.9, monitor="accuracy", keep="best")
    history = {"loss": [1.0] * 4, "val_accuracy": [0.8, 0.7, 0.85, 0.82]}
    missed, kept = say_how_it_ended(training, history, head=True)
    assert missed == "90% validation accuracy was not reached in 3 epochs: 85.00% at best, in epoch 2."
    assert kept == (
        "The validation accuracy was best in epoch 2 of 3 of fine-tuning: 85.00%. "
        "The network has the weights of that epoch."
    )
    averaged = {"loss": [1.0] * 5, "val_accuracy": [0.8, 0.7, 0.85, 0.82, 0.86]}
    last = TrainingConfig(until=0.9, keep="last")
    [missed] = say_how_it_ended(last, averaged, head=True, averaged=True)
    assert missed.endswith("in 3 epochs: 86.00% at best, with the average of the weights.")
    alone = {"loss": [1.0], "val_accuracy": [0.95]}
    assert say_how_it_ended(training, alone, head=True) == [
        "90% validation accuracy reached with the head alone: 95.00%."
    ]


@pytest.mark.parametrize(
    ("within", "left", "afterwards", "expected"),
    [(600, 590, 10, 556), (60, 40, 20, 17.6), (60, -5, 6, 15)],
    ids=["all-in-time", "much-comes-afterwards", "a-least-share"],
)
def test_time_is_divided(within, left, afterwards, expected):
    assert divide_time(within, left, afterwards) == pytest.approx(expected)


def images_of(shape, names, count=40):
    labels = np.arange(count) % len(names)
    part = Split(np.zeros((count, *shape), np.uint8), labels, [f"{i}" for i in range(count)])
    return Dataset("mine", part, part, names, fingerprint(part, class_names=names))


@pytest.mark.parametrize(
    ("dataset", "flip", "network"),
    [
        (images_of((32, 32, 3), ("cat", "dog")), "horizontal", "normalized"),
        (images_of((32, 32, 1), ("cat", "dog")), "none", "normalized"),
        (images_of((32, 32, 3), ("7", "12")), "none", "normalized"),
        (images_of((32, 32, 3), ("b", "d")), "none", "normalized"),
        (images_of((28, 28, 1), ("0", "1")), "none", "deep"),
    ],
    ids=["photographs", "grey", "numbers", "letters", "like-mnist"],
)
def test_settings_suit_the_images(dataset, flip, network):
    config = suggest(dataset)
    assert (config.augmentation.flip, config.network) == (flip, network)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_named_data_keep_the_settings_of_the_exercise(name):
    dataset = replace(images_of((32, 32, 3), ("cat", "dog")), name=name)
    assert suggest(dataset) == ExperimentConfig() == RECIPES["exercise"]


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 1), (28, 28, 1)], ids=str)
@pytest.mark.parametrize("network", [None, "deep"])
def test_of_own_images_the_best_epoch_is_kept(shape, network):
    assert suggest(images_of(shape, ("cat", "dog")), network).training.keeps == "best"


@pytest.mark.parametrize("count", [12, 40, 41, 100, 333, 640, 2_000])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_an_epoch_has_at_least_eight_steps(count, share):
    dataset = images_of((8, 8, 3), ("cat", "dog"), count)
    config = replace(suggest(dataset), validation_share=share)
    smaller = with_small_batches(config, dataset)
    images = len(prepare(dataset, smaller).train)
    batch = smaller.training.batch_size
    assert math.ceil(images / batch) >= min(8, images)
    assert batch == 64 or math.ceil(images / (batch + 1)) < 8
    expected = 0.01 * math.sqrt(batch / 64)
    assert smaller.training.learning_rate == pytest.approx(expected, rel=0.05)


def test_named_data_keep_their_batches(digits):
    config = suggest(digits)
    assert with_small_batches(config, digits) is config


def test_the_help_of_train_says_what_applies_to_own_images(typed, tmp_path):
    page = " ".join(typed("train", "--help", cwd=tmp_path).stdout.split())
    exercise, own = (RECIPES[name] for name in ("exercise", "photographs"))
    for before, after in (
        (exercise.network, own.network),
        (exercise.training.epochs, own.training.epochs),
        (exercise.training.batch_size, own.training.batch_size),
        (exercise.validation_share, own.validation_share),
        (exercise.scaling, own.scaling),
        ("the optimizer's", own.training.learning_rate),
    ):
        assert f"[default: {before}; own images: {after}" in page
    assert f"own images and --within: {own.training.schedule}" in page


def test_another_network_is_not_trained_at_the_rate_of_the_suggested_one():
    dataset = images_of((32, 32, 3), ("cat", "dog"))
    config = suggest(dataset, network="deep")
    assert config.training == TrainingConfig(keep="best")
    assert config.augmentation.flip == "horizontal"


def test_more_images_are_gone_through_less_often():
    few, many = (images_of((8, 8, 3), ("cat", "dog"), count) for count in (100, 20_000))
    assert suggest(few).training.epochs > suggest(many).training.epochs >= 10


def test_a_run_file_of_an_earlier_version_is_still_read():
    values = json.loads(json.dumps(ExperimentConfig("simple").to_json()))
    for name in ("augmentation", "preflight"):
        del values[name]
    for name in ("within", "until", "patience", "monitor", "class_weights", "find_learning_rate"):
        del values["training"][name]
    assert ExperimentConfig.from_json(values) == ExperimentConfig("simple")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"within": 0}, "a time above 0 s"),
        ({"within": math.inf}, "a time above 0 s"),
        ({"until": 1.5}, "an accuracy above 0 % and up to 100 %"),
        ({"patience": 0}, "patience of at least 1"),
        ({"learning_rate": math.nan}, "a learning rate above 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=f"^Expected {message}"):
        TrainingConfig(**settings)


@pytest.mark.parametrize("setting", ["class_weights", "monitor", "schedule"])
def test_unknown_settings_are_refused(setting):
    with pytest.raises(UnknownNameError, match=r"^Expected one of the "):
        TrainingConfig(**{setting: "balanzed"})
