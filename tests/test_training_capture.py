"""Captured steps: the same bits as steps that run as they are, on a stand-in for CUDA graphs."""

from contextlib import contextmanager
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import torch
from recorded_graphs import RecordedGraphs
from training_cases import images, network, weights

import convscope
from convscope.augmentation import Augmentation
from convscope.networks import NETWORKS
from convscope.training import capture
from convscope.training.capture import MOST_KINDS, WARM_UP, StaticTensors, StepRunner
from convscope.training.events import EpochEnd, Notice, StepEnd
from convscope.training.schedules import Cosine, OneCycle

X, Y = images()
PIXELS = np.random.default_rng(5).integers(0, 256, (70, 8, 8, 1), np.uint8)
PREPROCESS = convscope.Preprocess.fit(PIXELS)
STRONG = Augmentation(
    rotate=10, shift=0.1, zoom=0.1, erase=0.3, contrast=0.2, flip="both", mixup=0.2, cutmix=1
)
optimizers = keras.optimizers


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Let the processor record steps, and compute with torch's operations alone."""
    monkeypatch.setitem(capture.RECORDERS, "cpu", RecordedGraphs)
    monkeypatch.setattr(RecordedGraphs, "made", [])
    monkeypatch.setattr("convscope.lowering.cpu.compiled.available", lambda: False)
    monkeypatch.setattr("convscope.lowering.convolutions.fused_convolution", lambda _device: None)


def train(make, monkeypatch, *, captured, x=X, y=Y, **settings):
    """Train a fresh model; return everything that it ends with, and the notices."""
    monkeypatch.setenv("CONVSCOPE_CAPTURE", "on" if captured else "off")
    RecordedGraphs.made.clear()
    heard = []
    model = make()
    given = {"batch_size": 16, "epochs": 2, "seed": 1, "verbose": 0, "deterministic": True, "engine": "fast"}
    given |= {"listeners": [heard.append], "precision": "float32"} | settings
    history = convscope.fit(model, x, y, **given).history
    slots = [np.array(keras.ops.convert_to_numpy(one.value)) for one in model.optimizer.variables]
    said = [event.text for event in heard if isinstance(event, Notice) and "captured" in event.text]
    return [*weights(model), *slots, *history.values()], said


def assert_captured_as_uncaptured(make, monkeypatch, kinds=1, **settings):
    expected, _ = train(make, monkeypatch, captured=False, **settings)
    assert not RecordedGraphs.made
    found, said = train(make, monkeypatch, captured=True, **settings)
    assert said == []
    (graphs,) = RecordedGraphs.made
    assert len(graphs.recordings) >= kinds
    assert graphs.replays > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    return found


@pytest.mark.parametrize(
    "name", [name if name == "simple" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_a_named_network_trains_to_the_same_bits(name, monkeypatch):
    generator = np.random.default_rng(1)
    x = generator.random((40, 28, 28, 1), np.float32)
    y = np.eye(10, dtype=np.float32)[generator.integers(0, 10, 40)]

    def make():
        keras.utils.set_random_seed(0)
        model = convscope.build(name, (28, 28, 1), 10)
        model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
        return model

    assert_captured_as_uncaptured(make, monkeypatch, x=x, y=y, batch_size=8, epochs=1)


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: optimizers.Adam(0.01),
    "amsgrad": lambda: optimizers.AdamW(0.01, weight_decay=0.1, amsgrad=True),
    "nadam": lambda: optimizers.Nadam(0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "lion": lambda: optimizers.Lion(0.01),
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.1),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.01),
    "global-clipnorm": lambda: optimizers.Adam(0.01, global_clipnorm=0.1),
    "ema": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.AdamW(0.01, gradient_accumulation_steps=2, weight_decay=0.1),
    "decaying-rate": lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.01, 2, 0.5)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_moves_the_weights_to_the_same_bits(make, monkeypatch):
    assert_captured_as_uncaptured(lambda: network(dropout=0.25, optimizer=make()), monkeypatch)


FORMS = {
    "schedule": {"schedule": Cosine(0.1, 20)},
    "momenta": {"schedule": OneCycle(0.01, 20, momenta=(0.7, 0.9))},
    "class-weights": {"class_weight": {0: 2.0, 3: 0.5}},
    "sample-weights": {"sample_weight": np.linspace(0, 1, 70)},
    "rate-factors": {"rate_factors": {"conv": 0.1}},
    "unshuffled-float64": {"x": X.astype(np.float64), "y": Y.astype(np.float64), "shuffle": False},
    "raw": {"x": PIXELS, "preprocess": PREPROCESS},
    "augmented": {"x": PIXELS, "preprocess": PREPROCESS, "augment": STRONG, "epochs": 5},
    "resized": {"x": PIXELS.repeat(2, axis=1), "preprocess": PREPROCESS},
    "validated": {"validation_data": (X[:40], Y[:40]), "kinds": 2},
    # The last step before a validation is a replay: what it changed must have been counted.
    "without-a-short-batch": {"x": X[:64], "y": Y[:64], "validation_data": (X[:40], Y[:40]), "epochs": 4},
    "bfloat16": {"precision": "bfloat16", "validation_data": (X[:40], Y[:40]), "kinds": 2},
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_every_form_of_training_gives_the_same_bits(settings, monkeypatch):
    if settings.get("precision") == "bfloat16" and not convscope.lowering.processor.takes_bfloat16(True):
        pytest.skip("this processor has no bfloat16 convolutions")
    settings = {"epochs": 4} | settings if "validation_data" in settings else settings
    assert_captured_as_uncaptured(lambda: network(dropout=0.3, optimizer="adam"), monkeypatch, **settings)


def test_a_short_last_batch_is_captured_by_itself(monkeypatch):
    assert_captured_as_uncaptured(network, monkeypatch, kinds=2, epochs=6)


def test_batch_normalization_and_residual_connections_are_captured(monkeypatch):
    def make():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.8)(x))
        y = keras.layers.Add()([x, keras.layers.DepthwiseConv2D(3, padding="same")(y)])
        y = keras.layers.SpatialDropout2D(0.2)(keras.layers.AveragePooling2D(2)(y))
        y = keras.layers.LayerNormalization()(keras.layers.GlobalAveragePooling2D()(y))
        outputs = keras.layers.Dense(5, activation="softmax", kernel_regularizer="l2")(y)
        model = keras.Model(inputs, outputs)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    assert_captured_as_uncaptured(make, monkeypatch, y=Y.argmax(1), validation_data=(X, Y.argmax(1)))


def test_a_training_that_was_interrupted_in_an_epoch_goes_on_with_the_same_bits(monkeypatch):
    whole = assert_captured_as_uncaptured(lambda: network(dropout=0.3, optimizer="adam"), monkeypatch)
    states = []

    def keep(event):
        if isinstance(event, StepEnd) and (event.epoch, event.step) == (1, 1):
            states.append(event.snapshot())

    train(lambda: network(dropout=0.3, optimizer="adam"), monkeypatch, captured=True, listeners=[keep])
    resumed, _ = train(
        lambda: network(dropout=0.3, optimizer="adam"), monkeypatch, captured=True, resume_from=states[0]
    )
    for one, other in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_captured_steps_agree_with_those_of_the_processor(monkeypatch):
    def make():
        return network(dropout=0.25, optimizer="adam")

    found, _ = train(make, monkeypatch, captured=True)
    monkeypatch.delitem(capture.RECORDERS, "cpu")
    expected, _ = train(make, monkeypatch, captured=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class Halver(keras.callbacks.Callback):
    """Changes what a captured step has in it."""

    def on_epoch_end(self, _epoch, _logs=None):
        optimizer = self.model.optimizer
        optimizer.learning_rate = optimizer.learning_rate * 0.5
        optimizer.momentum = 0.5
        layer = self.model.get_layer("dense")
        layer.set_weights([0.9 * one for one in layer.get_weights()])


def test_what_a_callback_changes_after_an_epoch_counts(monkeypatch):
    make = lambda: network(optimizer=optimizers.SGD(0.1, momentum=0.9))  # noqa: E731
    assert_captured_as_uncaptured(
        make, monkeypatch, callbacks=[Halver()], validation_data=(X, Y), batch_size=8, epochs=3
    )


class Watcher(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass


@keras.saving.register_keras_serializable("capture")
class Strange(keras.layers.Layer):
    def call(self, x):
        return x * float(np.array(2.0)) if len(x) else x


def with_a_strange_layer():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.GaussianNoise(0.1), keras.layers.Flatten(),
         keras.layers.Dense(5, activation="softmax")]
    )  # fmt: skip
    model.compile("sgd", "categorical_crossentropy")
    return model


REASONS = {
    "callback": (network, {"callbacks": [Watcher()]}, "the callback Watcher looks at every batch"),
    "layer": (with_a_strange_layer, {}, "runs as a Keras layer"),
    "optimizer": (lambda: network(optimizer="ftrl"), {}, "Keras computes the optimizer ftrl"),
    "loss": (lambda: network(loss="mse"), {}, "Keras computes the loss"),
    "metric": (lambda: network(metrics=[keras.metrics.AUC(name="auc")]), {}, "Keras computes a metric, auc"),
}


@pytest.mark.parametrize(("make", "settings", "reason"), REASONS.values(), ids=REASONS)
def test_what_cannot_be_captured_runs_as_it_is_and_says_why(make, settings, reason, monkeypatch):
    expected, _ = train(make, monkeypatch, captured=False, **settings)
    found, said = train(make, monkeypatch, captured=True, validation_data=(X, Y), **settings)
    assert len(said) == 1
    assert reason in said[0]
    assert said[0].startswith("Steps are not captured as a CUDA graph: ")
    for one, other in zip(found, [*expected[: len(found)]], strict=False):
        np.testing.assert_array_equal(one, other)


def test_an_error_of_the_device_leaves_the_step_to_be_run_as_it_is(monkeypatch):
    expected, _ = train(network, monkeypatch, captured=False)

    class Refusing(RecordedGraphs):
        def record(self, function):
            super().record(function)
            raise RuntimeError("CUDA error: operation not permitted\nmore")

    monkeypatch.setitem(capture.RECORDERS, "cpu", Refusing)
    found, said = train(network, monkeypatch, captured=True)
    assert said == [
        "Steps are not captured as a CUDA graph: CUDA refused it (CUDA error: operation not permitted)."
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_reads_nothing_from_the_device(monkeypatch):
    """Losses are read when somebody asks: with nobody listening, that is at the ends of epochs."""
    read = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: read.append(1) or item(self))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda _self: read.append(1))
    train(network, monkeypatch, captured=True, batch_size=4, epochs=1)
    few = len(read)
    read.clear()
    train(network, monkeypatch, captured=True, batch_size=1, epochs=1)
    assert len(read) == few


# Prediction


def test_captured_predictions_are_those_of_the_network_and_follow_its_weights(monkeypatch):
    monkeypatch.setattr("convscope.training.predictor.DEVICE_BATCH_SIZE", 16)
    model = network(dropout=0.3)
    x = np.concatenate([X, X[:21]])  # five batches of 16, and one of 11

    def predicted(**how):
        return convscope.predict(model, x, engine="fast", **how)

    for _ in range(WARM_UP + 1):
        np.testing.assert_allclose(predicted(), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(predicted(), predicted())
        model.set_weights([0.9 * one for one in model.get_weights()])
    (graphs,) = RecordedGraphs.made
    assert len(graphs.recordings) == 2
    before = graphs.replays
    fresh = network(dropout=0.3)
    fresh.set_weights(model.get_weights())
    monkeypatch.setenv("CONVSCOPE_CAPTURE", "off")
    np.testing.assert_array_equal(predicted(), convscope.predict(fresh, x, engine="fast"))
    assert graphs.replays > before


def test_raw_images_and_streams_are_predicted(monkeypatch):
    model = network()
    found = [convscope.predict(model, PIXELS, preprocess=PREPROCESS, batch_size=8) for _ in range(2)]
    monkeypatch.delitem(capture.RECORDERS, "cpu")
    expected = convscope.predict(network(), PIXELS, preprocess=PREPROCESS, batch_size=8)
    for one in found:
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)


# The runner alone


def runner_of(function, changed=(), said=None):
    graphs, heard = RecordedGraphs(torch.device("cpu")), [] if said is None else said
    runner = StepRunner(torch.device("cpu"), graphs, lambda: list(changed), heard.append)
    return graphs, lambda key=(), **values: runner(key, values, function)


def test_a_number_that_python_had_is_found_out():
    rate = [0.0]
    total = torch.zeros(())
    _, run = runner_of(lambda tensors: total.add_(tensors["x"].sum() * rate[0]))
    for step in range(WARM_UP + 3):
        rate[0] = float(step)
        run(x=torch.ones(3))
    # What a captured step had in it when it was recorded stays.
    assert total.item() == 3 * (0 + 1 + 2 + 3 + 3 + 3)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: x.sum().item(), "waits for a number from the device (_local_scalar_dense)"),
        (lambda x: x[x > 0], "waits for a number from the device (index)"),
        (lambda x: x.nonzero(), "waits for a number from the device (nonzero)"),
        (torch.rand_like, "draws random numbers from torch (rand_like)"),
    ],
    ids=["item", "mask", "nonzero", "random"],
)
def test_what_a_device_would_refuse_is_seen_in_the_warm_up(operation, reason):
    said = []
    graphs, run = runner_of(lambda tensors: operation(tensors["x"]), said=said)
    for _ in range(WARM_UP + 2):
        run(x=torch.ones(3))
    assert said == [f"Steps are not captured as a CUDA graph: a step {reason}."]
    assert not graphs.recordings


def test_what_a_step_would_change_elsewhere_is_seen():
    elsewhere = torch.zeros(())
    inspector = capture.Inspector(torch.device("meta"))
    with inspector:
        elsewhere.add_(1)
    assert inspector.found == "a step changes what lies elsewhere (add_)"


def test_batches_of_ever_other_shapes_are_not_captured():
    said = []
    graphs, run = runner_of(lambda tensors: tensors["x"].sum(), said=said)
    for count in range(1, MOST_KINDS + 9):
        assert run(x=torch.ones(count)) == count
    assert not graphs.recordings
    assert said == [f"Steps are not captured as a CUDA graph: batches come in more than {MOST_KINDS} shapes."]


def test_each_kind_of_step_is_recorded_by_itself():
    graphs, run = runner_of(lambda tensors: tensors["x"] * 2)
    for step in range(3 * (WARM_UP + 2)):
        count = 1 + step % 3
        torch.testing.assert_close(run(x=torch.full((count,), float(step))), torch.full((count,), 2.0 * step))
    assert len(graphs.recordings) == 3


def test_a_replay_counts_as_a_change():
    weight = torch.zeros(3)
    _, run = runner_of(lambda tensors: weight.add_(tensors["x"]), changed=[weight])
    for _ in range(WARM_UP + 1):
        run(x=torch.ones(3))
    before = weight._version
    run(x=torch.ones(3))
    assert weight._version > before


def test_static_tensors_keep_their_place_and_take_every_type():
    values = {
        "rows": torch.arange(5),
        "flags": torch.tensor([True, False, True]),
        "number": torch.tensor(0.25),
        "large": torch.arange(20_000, dtype=torch.float32),
        "narrow": torch.ones(3, 2, dtype=torch.bfloat16),
    }
    static = StaticTensors(values, torch.device("cpu"))
    places = {name: tensor.data_ptr() for name, tensor in static.named.items()}
    for factor in (1, 2):
        static.write({name: value * factor for name, value in values.items() if name != "flags"}
                     | {"flags": values["flags"]})  # fmt: skip
        for name, tensor in static.named.items():
            assert tensor.data_ptr() == places[name]
            expected = values[name] if name == "flags" else values[name] * factor
            assert torch.equal(tensor, expected), name
            assert tensor.dtype == values[name].dtype


class FakeStream:
    """A stream that does at once what it is told, and notes what it waited for."""

    def __init__(self, device=None):
        self.device, self.waited = device, []

    def wait_stream(self, other):
        self.waited.append(other)

    wait_event = wait_stream

    def synchronize(self):
        self.waited.append("host")

    def record(self, stream):
        self.waited.append(stream)


@pytest.fixture
def fake_cuda(monkeypatch):
    """What capture uses of ``torch.cuda``, doing nothing; gives the stream on which Python works."""
    current = [FakeStream()]

    @contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    @contextmanager
    def graph(_graph, *, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        current.append(stream)
        yield
        current.pop()  # as in torch: not after an error

    fakes = {
        "Stream": FakeStream, "Event": FakeStream, "current_stream": lambda _device: current[-1],
        "stream": on, "graph": graph, "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: "replayed"),
        "set_stream": current.append,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    return lambda: current[-1]


def test_large_values_come_by_two_buffers_in_turn_and_wait_for_what_was_read(fake_cuda):
    target = torch.zeros(3)
    stage = capture._Stage({"x": target})
    for step in range(5):
        stage.write({"x": torch.full((3,), float(step))})
        assert target.tolist() == [step] * 3
    ours = fake_cuda()
    for slot in stage._slots:
        assert slot.arrived in ours.waited  # before the device reads the buffer
        assert slot.used in stage._stream.waited  # before it is written again
        assert "host" in slot.arrived.waited  # before its page-locked memory is
        assert ours in slot.used.waited


def test_a_cuda_graph_is_recorded_on_its_own_stream_and_an_error_leads_back(fake_cuda):
    before = fake_cuda()
    graphs = capture.CudaGraphs(torch.device("cuda:0"))
    seen = []
    with graphs.warming_up():
        seen.append(fake_cuda())
    replay = graphs.record(lambda: seen.append(fake_cuda()))
    assert replay() == "replayed"
    assert seen[0] is seen[1] is not before  # gradients would wait for the stream on which they began
    assert before.waited == [seen[0]]
    assert seen[0].waited == [before]

    def fail():
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        graphs.record(fail)
    assert fake_cuda() is before


def test_no_step_is_captured_on_a_processor(monkeypatch):
    monkeypatch.delitem(capture.RECORDERS, "cpu")
    assert not capture.suits(torch.device("cpu"))
    assert capture.graphs_on(torch.device("cpu")) is None


def test_epochs_end_with_the_numbers_of_their_steps(monkeypatch):
    heard = []
    train(network, monkeypatch, captured=True, listeners=[heard.append], epochs=2)
    ends = [event for event in heard if isinstance(event, EpochEnd)]
    assert all(np.isfinite(event.logs["loss"]) for event in ends)
    assert len(ends) == 2
