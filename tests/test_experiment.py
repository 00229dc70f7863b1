"""Experiments: what is prepared, what is written, and that an interruption changes nothing."""

import errno
import os
from contextlib import nullcontext
from dataclasses import replace

import keras
import numpy as np
import pytest
from run_cases import assert_same_training, interrupt_at

import convscope
from convscope import networks
from convscope.data.dataset import Dataset, Split, fingerprint
from convscope.errors import DataError, DivergedError, InterruptedRunError, RunError, UsageError
from convscope.experiment import running
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.preparation import build_model, prepare
from convscope.experiment.running import resume_experiment, run_experiment
from convscope.runs import RunDirectory, describe_runs, open_run, write_errors_named
from convscope.training.events import EpochEnd, Notice, RunEnd, StepEnd, TrainBegin

SHORT = ExperimentConfig(
    "simple", data="digits", training=TrainingConfig(epochs=3, batch_size=64, deterministic=True)
)


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def whole_run(digits, tmp_path_factory):
    """A training that nothing interrupted."""
    return run_experiment(SHORT, digits, tmp_path_factory.mktemp("whole") / "run", with_report=False)


def test_the_scaler_sees_the_training_part_only(digits):
    prepared = prepare(digits, SHORT)
    expected = convscope.Preprocess.fit(prepared.train.images)
    np.testing.assert_array_equal(prepared.preprocess.scale, expected.scale)
    names = [set(part.names) for part in prepared.parts.values()]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]


def test_all_images_are_trained_on_where_no_share_is_held_back(digits):
    prepared = prepare(digits, replace(SHORT, validation_share=0))
    assert prepared.validation is None
    assert len(prepared.train) == len(digits.train)


def test_images_are_brought_to_the_size_that_a_network_takes(digits):
    prepared = prepare(digits, SHORT, image_shape=(16, 20, 3))
    assert prepared.train.images.shape[1:] == (16, 20, 3)
    assert prepared.preprocess.input_shape == (16, 20, 3)


def test_images_brought_to_size_in_another_way_are_refused(digits):
    with pytest.raises(UsageError, match=r"brought to their size by letterbox.* got by crop\."):
        prepare(replace(digits, resize="crop"), SHORT)


def test_the_same_seed_gives_the_same_first_weights_and_another_seed_others(digits):
    kernels = [
        build_model(replace(SHORT, training=replace(SHORT.training, seed=seed)), (28, 28, 1), 10)
        .layers[0]
        .kernel.numpy()
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_a_configuration_survives_the_run_file(whole_run):
    recorded = open_run(whole_run.run).read_json("run.json")["config"]
    assert ExperimentConfig.from_json(recorded) == SHORT


def test_the_run_records_what_it_needs_to_be_repeated(whole_run, digits):
    record = open_run(whole_run.run).read_json("run.json")
    assert record["status"] == "completed"
    assert record["data"]["fingerprint"] == digits.fingerprint
    assert record["data"]["reading"] == {"resize": "letterbox"}
    assert record["data"]["left_out"] == {}
    assert record["network"] == {"name": "simple", "parameters": 216_650}
    assert record["engine"] == "fast"
    assert record["plan"]
    assert not (whole_run.run / "checkpoint").exists()


def test_an_experiment_repeats_bit_for_bit(whole_run, digits, tmp_path):
    again = run_experiment(SHORT, digits, tmp_path / "run", with_report=False)
    assert_same_training(whole_run.run, again.run)


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        pytest.param("fast", interrupt_at(StepEnd, 0, 2), id="fast-first-epoch"),
        pytest.param("fast", interrupt_at(EpochEnd, 1), id="fast-between-epochs"),
        pytest.param("fast", interrupt_at(StepEnd, 2, 14), id="fast-last-epoch"),
        pytest.param("keras", interrupt_at(StepEnd, 2, 3), id="keras-last-epoch", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    digits, tmp_path, whole_run, engine, moment
):
    config = replace(SHORT, training=replace(SHORT.training, engine=engine))
    whole = whole_run if engine == "fast" else run_experiment(config, digits, tmp_path / "whole")
    with pytest.raises(InterruptedRunError, match="convscope resume"):
        run_experiment(config, digits, tmp_path / "cut", [moment])
    assert open_run(tmp_path / "cut").read_json("run.json")["status"] == "interrupted"
    best = max(open_run(tmp_path / "cut").read_table("history.csv").get("val_accuracy", []), default=None)
    assert best in [one["validation_accuracy"] for one in describe_runs(tmp_path)]
    resumed = resume_experiment(tmp_path / "cut")
    assert_same_training(whole.run, resumed.run)
    assert resumed.test.accuracy == whole.test.accuracy
    assert open_run(resumed.run).read_json("run.json")["status"] == "completed"


def test_a_training_under_way_is_listed_with_its_best_epoch_so_far(digits, tmp_path, no_figures):
    reached, listed = [], []

    def look(event):
        if isinstance(event, EpochEnd):
            listed.extend(describe_runs(tmp_path))
            reached.append(event.logs["val_accuracy"])

    run_experiment(SHORT, digits, tmp_path / "run", [look])
    assert [one["status"] for one in listed] == ["running"] * (
        len(reached) - 1
    )  # there after its first epoch
    assert [one["validation_accuracy"] for one in listed] == [
        max(reached[: number + 1]) for number in range(len(listed))
    ]


def at_once(event):
    """Behave like a person who presses Ctrl-C a second time before the first step is done."""
    if isinstance(event, TrainBegin):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        pytest.param("fast", at_once, id="fast-before-the-first-step"),
        pytest.param("keras", interrupt_at(StepEnd, 0, 1), id="keras-first-epoch"),
    ],
)
def test_a_training_that_was_stopped_before_its_first_checkpoint_begins_again(
    digits, tmp_path, engine, moment
):
    training = TrainingConfig(epochs=1, batch_size=256, deterministic=True, engine=engine)
    config = replace(SHORT, training=training, preflight=False)
    with pytest.raises(InterruptedRunError, match=r"`convscope resume '.*a cut'` begins again"):
        run_experiment(config, digits, tmp_path / "a cut", [moment], with_report=False)
    resumed = resume_experiment(tmp_path / "a cut")
    whole = run_experiment(config, digits, tmp_path / "whole", with_report=False)
    assert_same_training(whole.run, resumed.run)
    assert not (tmp_path / "a cut/report.html").exists()  # as it was said when it began


def once(monkeypatch, name, error):
    """Let a step of the recipe fail the first time."""
    real = getattr(running, name)

    def fail(*_, **__):
        monkeypatch.setattr(running, name, real)
        raise error

    monkeypatch.setattr(running, name, fail)


def test_an_interrupted_evaluation_is_resumed_without_training_again(
    digits, tmp_path, monkeypatch, whole_run
):
    once(monkeypatch, "examine_parts", KeyboardInterrupt())
    with pytest.raises(InterruptedRunError, match=r"`convscope resume .*cut` goes on after 3 epochs\."):
        run_experiment(SHORT, digits, tmp_path / "cut", with_report=False)
    resumed = resume_experiment(tmp_path / "cut")
    assert_same_training(whole_run.run, resumed.run)


def test_an_interrupted_report_leaves_a_completed_run(digits, tmp_path, monkeypatch):
    once(monkeypatch, "write_report", KeyboardInterrupt())
    with pytest.raises(InterruptedRunError, match="is complete but for its report"):
        run_experiment(SHORT, digits, tmp_path / "run")
    assert open_run(tmp_path / "run").read_json("run.json")["status"] == "completed"


@pytest.mark.parametrize("error", [None, BrokenPipeError(32, "nobody reads")], ids=["read", "not read"])
def test_the_result_is_there_before_the_report_which_follows_whatever_becomes_of_it(digits, tmp_path, error):
    told, seen = [], []

    def show(result):
        seen.append(
            (result, (result.run / "evaluation.json").exists(), (result.run / "report.html").exists())
        )
        if error is not None:
            raise error

    with pytest.raises(BrokenPipeError) if error else nullcontext():
        run_experiment(SHORT, digits, tmp_path / "run", [told.append], on_result=show)
    ((result, *existed),) = seen
    assert existed == [True, False]
    assert (tmp_path / "run" / "report.html").exists()
    assert result.test.accuracy == running.read_result(tmp_path / "run").test.accuracy
    assert [event.status for event in told if isinstance(event, RunEnd)] == ["completed"]


def test_a_trial_whose_test_images_cannot_be_evaluated_has_failed(digits, tmp_path, monkeypatch):
    run = running.run_trial(SHORT, digits, tmp_path / "run").run
    once(monkeypatch, "examine_parts", ZeroDivisionError("nothing to divide by"))
    told = []
    with pytest.raises(ZeroDivisionError):
        running.evaluate_on_test(run, [told.append], by="sweep")
    assert [event.status for event in told if isinstance(event, RunEnd)] == ["failed"]


def test_a_report_that_cannot_be_made_leaves_its_traceback_in_the_run(digits, tmp_path, monkeypatch):
    once(monkeypatch, "write_report", ZeroDivisionError("nothing to divide by"))
    told = []
    result = run_experiment(SHORT, digits, tmp_path / "run", [told.append])
    log = result.run / "log.txt"
    last = [event.text for event in told if isinstance(event, Notice)][-1]
    assert "ZeroDivisionError: nothing to divide by" in last and str(log) in last
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("write", "file"),
    [("write_arrays", r"(novelty|predictions)\.npz"), ("update_json", r"test_consultations\.json")],
    ids=["predictions", "count"],
)
def test_a_disk_that_fills_behind_the_evaluation_costs_no_number(digits, tmp_path, monkeypatch, write, file):
    def full(run, name, _arrays):
        with write_errors_named(run.path / name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = []
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, write, full)
        with pytest.raises(RunError, match=rf"{file}, got No space .* goes on after 3"):
            run_experiment(SHORT, digits, tmp_path / "run", [told.append], with_report=False)
    result = resume_experiment(tmp_path / "run")
    assert any(str(result.test) in event.text for event in told if isinstance(event, Notice))


@pytest.fixture
def interrupted(digits, tmp_path):
    with pytest.raises(InterruptedRunError):
        run_experiment(SHORT, digits, tmp_path / "cut", [interrupt_at(EpochEnd, 0)])
    return tmp_path / "cut"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(seed=7), "the seed of the run, 7"),
        (lambda record: record["data"].update(class_names=list("abcdefghij")), "the classes of the run"),
        (lambda record: record["network"].update(parameters=1), "the network of the run"),
        (lambda record: record["versions"].update(torch="1.0"), "the version of torch of the run, 1.0"),
    ],
    ids=["seed", "classes", "network", "version"],
)
def test_resuming_refuses_what_has_changed_and_names_it(interrupted, change, message):
    run = open_run(interrupted)
    record = run.read_json("run.json")
    change(record)
    run.write_json("run.json", record)
    with pytest.raises(RunError, match=message):
        resume_experiment(interrupted)


def test_the_command_resumes_and_says_what_can_be_done_next(interrupted, typed):
    done = typed("resume", interrupted.name, "--no-report", cwd=interrupted.parent)
    assert done.returncode == 0, done.stderr
    commands = [line.strip() for line in done.stdout.splitlines()[-2:]]
    assert commands == ["convscope report cut --open", "convscope predict cut IMAGE.png"]
    assert not (interrupted / "report.html").exists()


def notices(told):
    return [event.text for event in told if isinstance(event, Notice)]


def test_a_run_from_another_machine_goes_on_with_what_this_one_has(interrupted, monkeypatch):
    """As if it had begun on a server with bfloat16, and been copied to a laptop without."""
    run = open_run(interrupted)
    record = run.read_json("run.json")
    record["device"]["processor"] = "A Server's Processor"
    record["config"]["training"]["precision"] = "bfloat16"
    for entry in record["plan"].values():
        entry["precision"] = "bfloat16"
    run.write_json("run.json", record)
    monkeypatch.setenv("CONVSCOPE_PROCESSOR", "avx2")
    told = []
    result = resume_experiment(interrupted, [told.append], with_report=False)
    lines = notices(told)
    assert sum("A Server's Processor" in line and "last bits may differ" in line for line in lines) == 1
    assert sum("bfloat16, which this machine refuses" in line for line in lines) == 1
    assert sum("recorded plan has bfloat16" in line for line in lines) == 1
    assert result.test.accuracy > 0.5
    finished = open_run(interrupted).read_json("run.json")
    assert finished["device"]["processor"] == "A Server's Processor"
    assert [one["processor"] != "A Server's Processor" for one in finished["resumed_on"]] == [True]


def test_on_the_same_machine_no_bit_is_said_to_differ(interrupted):
    told = []
    resume_experiment(interrupted, [told.append], with_report=False, data="digits")
    assert not any("may differ" in line for line in notices(told))
    assert "resumed_on" not in open_run(interrupted).read_json("run.json")


def test_another_build_of_the_same_torch_will_do(interrupted):
    run = open_run(interrupted)
    record = run.read_json("run.json")
    record["versions"]["torch"] = record["versions"]["torch"].partition("+")[0] + "+cu130"
    run.write_json("run.json", record)
    resume_experiment(interrupted, with_report=False)


def test_resuming_refuses_other_data(interrupted):
    run = open_run(interrupted)
    record = run.read_json("run.json")
    record["data"]["fingerprint"] = "0" * 64
    run.write_json("run.json", record)
    with pytest.raises(DataError, match="data with the fingerprint 000000000000"):
        resume_experiment(interrupted)


def test_a_completed_run_is_not_resumed(whole_run):
    with pytest.raises(RunError, match=r"an unfinished run at .* got a completed one"):
        resume_experiment(whole_run.run)


def test_a_diverging_training_stops_and_its_last_checkpoint_is_finite(digits, tmp_path):
    from convscope.training.checkpoint import load_checkpoint

    config = replace(
        SHORT,
        training=replace(SHORT.training, optimizer="sgd", learning_rate=1e20, epochs=50, batch_size=256),
    )
    with pytest.raises(DivergedError, match="a finite loss in epoch"):
        run_experiment(config, digits, tmp_path / "run")
    if (tmp_path / "run").exists():
        state = load_checkpoint(tmp_path / "run")
        assert all(np.isfinite(array).all() for array in state.values())
        assert open_run(tmp_path / "run").read_json("run.json")["status"] == "diverged"


def coloured(classes, count=60, size=12):
    """Make a data set in which each class has its colour: any network can learn it."""
    generator = np.random.default_rng(0)
    colours = generator.uniform(0, 255, (classes, 3))

    def split(name):
        labels = np.arange(count) % classes
        noise = generator.normal(0, 5, (count, size, size, 3))
        images = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        return Split(images, labels.astype(np.int64), [f"{name}/{i}" for i in range(count)])

    train, test = split("train"), split("test")
    names = tuple(f"class <{i}>" for i in range(classes))
    return Dataset("coloured", train, test, names, fingerprint(train, test, class_names=names))


def test_colour_images_and_two_classes_go_all_the_way(tmp_path):
    training = replace(SHORT.training, epochs=6, batch_size=4)
    result = run_experiment(replace(SHORT, scaling="unit", training=training), coloured(2), tmp_path / "run")
    assert result.test.accuracy > 0.9


def test_channels_first_goes_all_the_way(digits, tmp_path):
    config = replace(SHORT, data_format="channels_first")
    result = run_experiment(config, digits, tmp_path / "run", with_report=False)
    assert result.test.accuracy > 0.8


def test_settings_are_said_as_they_are_used(digits, tmp_path):
    few = replace(digits, train=digits.train.take(np.arange(100)))
    told = []
    training = TrainingConfig(epochs=1, batch_size=128, deterministic=True)
    run_experiment(replace(SHORT, training=training), few, tmp_path / "run", [told.append], with_report=False)
    first = next(event.text for event in told if isinstance(event, Notice))
    assert first.startswith(
        "Settings: network simple, 1 epoch in batches of 70, adam with a learning rate of"
    )
    assert "of 0.001 (constant), augmentation: none" in first


def test_a_network_from_a_file_is_called_by_its_file_and_resumes(digits, tmp_path):
    """A run of an older version, which has the name that Keras gave, resumes too."""
    networks.build("simple", (28, 28, 1)).save(tmp_path / "mine.keras")
    config = replace(SHORT, network=str(tmp_path / "mine.keras"))
    with pytest.raises(InterruptedRunError):
        run_experiment(config, digits, tmp_path / "run", [interrupt_at(EpochEnd, 0)])
    run = open_run(tmp_path / "run")
    record = run.read_json("run.json")
    assert record["network"]["name"] == "mine"
    run.write_json("run.json", record | {"network": record["network"] | {"name": "sequential_7"}})
    assert resume_experiment(run.path, with_report=False).network == "mine"


def test_a_network_from_a_file_is_trained(digits, tmp_path):
    import keras

    layers = [keras.Input((20, 20, 3)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential(layers).save(tmp_path / "mine.keras")
    config = replace(SHORT, network=str(tmp_path / "mine.keras"))
    result = run_experiment(config, digits, tmp_path / "run", with_report=False)
    assert result.parameters == 20 * 20 * 3 * 10 + 10
    assert result.test.accuracy > 0.7


def test_own_images_are_read_in_the_size_of_a_network_from_a_file(tmp_path):
    """Resized twice is not the same as resized once, as prediction does it."""
    from convscope.cli.settings import _size_of_network

    networks.build("simple", (20, 24, 1), classes=2).save(tmp_path / "mine.keras")
    config = replace(SHORT, network=str(tmp_path / "mine.keras"))
    assert _size_of_network(config, "photos") == {"size": (20, 24), "channels": 1}
    assert _size_of_network(config, "digits") == _size_of_network(SHORT, "photos") == {}


def test_a_network_with_other_outputs_is_refused(digits, tmp_path):
    import keras

    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    keras.Sequential(layers).save(tmp_path / "mine.keras")
    with pytest.raises(UsageError, match="a network with 10 outputs"):
        run_experiment(replace(SHORT, network=str(tmp_path / "mine.keras")), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("outputs", ["logits", "sigmoid", "one logit"])
def test_what_a_compiled_loss_takes_is_evaluated_as_keras_does(outputs):
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(40, 6, 6, 1)).astype(np.float32), np.arange(40) % 2
    units, activation = (2, None) if outputs == "logits" else (1, None if "logit" in outputs else "sigmoid")
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(units, activation)]
    )
    binary, logits = units == 1, "logit" in outputs
    kind = keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    metric = keras.metrics.BinaryAccuracy(threshold=0.0 if logits else 0.5) if binary else "accuracy"
    model.compile("sgd", kind(from_logits=logits), metrics=[metric])
    loss, accuracy = model.evaluate(x, y, verbose=0)
    found = convscope.evaluate(model, x, y).evaluation
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.accuracy == pytest.approx(accuracy)
