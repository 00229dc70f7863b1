"""What convscope computes on a GPU: everything that it computes on a CPU, with the same numbers.

``pytest -m gpu`` runs this on CUDA. CONVSCOPE_TEST_DEVICE names another device; ``tests/test_devices.py``
runs it on one that only pretends to be a GPU, so that a machine without any finds most of what would fail.
"""

import json
import os
import shutil

import keras
import numpy as np
import pytest
import torch
from bundle_cases import small_network
from keras import layers

import convscope
from convscope.augmentation import Augmentation
from convscope.errors import UsageError
from convscope.experiment.config import ExperimentConfig
from convscope.lowering.devices import current_device, device_of, require_device
from convscope.lowering.processor import takes_bfloat16
from convscope.networks import NETWORKS
from convscope.training import capture
from convscope.training.dry_runs import measure_throughput
from convscope.training.events import Notice
from convscope.training.schedules import OneCycle

NAME = os.environ.get("CONVSCOPE_TEST_DEVICE", "cuda")


def is_there(name):
    try:
        return bool(require_device(name))
    except UsageError:
        return False


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_there(NAME), reason=f"torch sees no device {NAME!r} on this machine"),
]

RNG = np.random.default_rng(1338)
IMAGES = RNG.integers(0, 256, (70, 12, 12, 1), np.uint8)
LABELS = RNG.integers(0, 3, 70)
X, Y = (IMAGES / 255).astype(np.float32), np.eye(3, dtype=np.float32)[LABELS]
# What the same weights give on two devices, which add in another order, in float32.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def on_the_device():
    """Build new models on the device, as a machine that has it does by default."""
    with keras.device(NAME):
        yield


def network(shape=(12, 12, 1), classes=3):
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def compiled(model, optimizer="adam", loss="categorical_crossentropy", metrics=("accuracy",)):
    model.compile(optimizer, loss, metrics=list(metrics))
    return model


def pair(make=network, **settings):
    """Make the same network twice: on the device, and on the CPU."""
    keras.utils.set_random_seed(0)
    there = make()
    with keras.device("cpu"):
        here = make()
        here.set_weights(there.get_weights())
        if settings:
            compiled(here, **settings)
    assert device_of(here).type == "cpu"
    assert device_of(there).type == torch.device(NAME).type
    return (compiled(there, **settings) if settings else there), here


def assert_close(found, expected, tolerance=TOLERANCE):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_trained_alike(one, other, tolerance=2e-3):
    """Compare nearly all weights: the sign of a vanishing gradient is chance, and Adam follows it."""
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    apart = np.concatenate([np.abs(first - second).ravel() for first, second in pairs])
    assert np.mean(apart > tolerance) < 0.01, np.sort(apart)[-20:]


def fit(model, x=X, y=Y, **settings):
    given = {"batch_size": 16, "epochs": 2, "seed": 1, "verbose": 0, "precision": "float32"} | settings
    return convscope.fit(model, x, y, **given).history


class Batches(keras.utils.PyDataset):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(16 * index, 16 * index + 16)
        return X[rows].astype(self.dtype), Y[rows]


# Prediction


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_a_named_network_predicts_as_on_the_cpu(name, order):
    shape = (28, 28, 1) if order == "channels_last" else (1, 28, 28)
    there, here = pair(lambda: convscope.build(name, shape, 10, order))
    x = RNG.random((5, *shape), dtype=np.float32)
    found = convscope.predict(there, x, engine="fast")
    assert_close(found, convscope.predict(here, x))
    assert_close(found, there.predict(x, verbose=0))


@pytest.mark.parametrize(
    "given",
    [
        lambda: X,
        lambda: X.astype(np.float64),
        lambda: torch.from_numpy(X),
        lambda: torch.from_numpy(X).to(NAME),
        lambda: X[..., 0],
        lambda: Batches("float32"),
    ],
    ids=["float32", "float64", "tensor", "tensor-on-the-device", "without-channels", "stream"],
)
@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_every_kind_of_input_is_predicted(given, engine):
    there, here = pair()
    found = convscope.predict(there, given(), engine=engine)
    assert_close(found, convscope.predict(here, X)[: len(found)])


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: torch.from_numpy(x).to(NAME)], ids=["array", "tensor"]
)
def test_raw_images_are_prepared_and_predicted(wrap):
    there, here = pair()
    preprocess = convscope.Preprocess.fit(IMAGES)
    larger = RNG.integers(0, 256, (9, 20, 17, 3), np.uint8)
    for images in (IMAGES, larger):
        found = convscope.predict(there, wrap(images), preprocess=preprocess)
        assert_close(found, convscope.predict(here, images, preprocess=preprocess))


@pytest.mark.skipif(not takes_bfloat16(training=False, device=NAME), reason="it takes no bfloat16")
def test_bfloat16_predicts_nearly_the_same():
    there, here = pair()
    found = convscope.predict(there, X, precision="bfloat16")
    np.testing.assert_allclose(found, convscope.predict(here, X), atol=0.02)


def test_a_model_on_the_cpu_computes_there_beside_a_gpu():
    there, here = pair(optimizer="adam")
    assert_close(convscope.predict(here, X), convscope.predict(there, X))
    fit(here, validation_data=(X, Y))
    assert device_of(here).type == "cpu"
    assert current_device().type == torch.device(NAME).type


# Training


def test_training_gives_the_weights_of_the_cpu():
    there, here = pair(optimizer="adam")
    ours, theirs = (fit(one, validation_data=(X, Y), engine="fast") for one in (there, here))
    assert device_of(there).type == torch.device(NAME).type
    assert_trained_alike(there, here)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=2e-2)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "clipped": lambda: keras.optimizers.Adam(clipnorm=0.1),
    "globally-clipped": lambda: keras.optimizers.SGD(0.01, global_clipnorm=0.1),
    "averaged": lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=2),
    "accumulated": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "scheduled": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 100)),
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    **{
        name: lambda name=name: keras.optimizers.get(name)
        for name in ("adamw", "rmsprop", "adagrad", "nadam", "lion", "ftrl")
    },
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_takes_the_steps_of_the_cpu(make):
    there, here = pair()
    compiled(there, make())
    with keras.device("cpu"):
        compiled(here, make())
    for one in (there, here):
        fit(one, x=X[:32], y=Y[:32], epochs=1, engine="fast")
    assert_trained_alike(there, here)


FORMS = {
    "auto": {"precision": "auto"},
    **({"bfloat16": {"precision": "bfloat16"}} if takes_bfloat16(training=True, device=NAME) else {}),
    "keras": {"engine": "keras"},
    "weights": {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
    "sample-weights": {"sample_weight": np.linspace(0, 1, 70)},
    "float64": {"x": X.astype(np.float64), "y": Y.astype(np.float64)},
    "tensors": {"x": torch.from_numpy(X), "y": torch.from_numpy(Y)},
    "split": {"validation_split": 0.3},
    "raw": {"x": IMAGES, "preprocess": convscope.Preprocess.fit(IMAGES)},
    "augmented": {
        "x": IMAGES,
        "preprocess": convscope.Preprocess.fit(IMAGES),
        "augment": Augmentation(rotate=10, shift=0.1, zoom=0.1, erase=0.3, contrast=0.2, mixup=0.2),
    },
    "resized": {
        "x": RNG.integers(0, 256, (70, 20, 17, 3), np.uint8),
        "preprocess": convscope.Preprocess.fit(IMAGES),
    },
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_every_form_of_training_works(settings):
    keras.utils.set_random_seed(0)
    model = compiled(network())
    history = fit(model, **{"x": X, "y": Y} | settings)
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


# Captured steps


@pytest.fixture
def recorded(monkeypatch):
    """Collect the steps that are recorded."""
    kind = torch.device(NAME).type
    if kind not in capture.RECORDERS:
        pytest.skip(f"nothing records steps on {kind}")
    make, steps = capture.RECORDERS[kind], []

    def counting(device):
        graphs = make(device)
        record = graphs.record
        graphs.record = lambda function: steps.append(function) or record(function)
        return graphs

    monkeypatch.setitem(capture.RECORDERS, kind, counting)
    return steps


def assert_captured_as_uncaptured(make, monkeypatch, recorded, **settings):
    """Train both ways; compare weights, optimizer, history and predictions bit for bit."""
    found, said = {}, []

    def listen(event):
        if isinstance(event, Notice) and "captured" in event.text:
            said.append(event.text)

    for switch in ("on", "off"):
        monkeypatch.setenv("CONVSCOPE_CAPTURE", switch)
        keras.utils.set_random_seed(0)
        model = compiled(make(), settings.get("optimizer", keras.optimizers.Adam)())
        how = {"x": X, "y": Y, "epochs": 5, "deterministic": True} | settings
        how.pop("optimizer", None)
        history = fit(model, engine="fast", validation_data=(how["x"], how["y"]), listeners=[listen], **how)
        slots = [keras.ops.convert_to_numpy(one.value) for one in model.optimizer.variables]
        found[switch] = [*model.get_weights(), *slots, *map(np.asarray, history.values())]
        if switch == "on":
            assert len(recorded) >= 2  # of training and of validation
            recorded.clear()
    assert (said, recorded) == ([], [])
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


CAPTURED = {
    **{name: FORMS[name] for name in ("auto", "weights", "sample-weights", "float64", "raw", "augmented")},
    "momentum": {"optimizer": lambda: keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=0.5)},
    "one-cycle": {"schedule": OneCycle(0.01, 25, momenta=(0.7, 0.9))},
}


@pytest.mark.parametrize("settings", CAPTURED.values(), ids=CAPTURED)
def test_captured_steps_give_the_bits_of_uncaptured_ones(settings, monkeypatch, recorded):
    assert_captured_as_uncaptured(network, monkeypatch, recorded, **settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_named_network_is_captured(name, monkeypatch, recorded):
    x = RNG.random((40, 28, 28, 1), dtype=np.float32)
    y = np.eye(10, dtype=np.float32)[RNG.integers(0, 10, 40)]
    make = lambda: convscope.build(name, (28, 28, 1), 10)  # noqa: E731
    assert_captured_as_uncaptured(make, monkeypatch, recorded, x=x, y=y, batch_size=8, epochs=2)


def test_data_too_large_for_the_device_are_brought_batch_by_batch(monkeypatch, recorded):
    monkeypatch.setattr("convscope.training.feeds._RESIDENT_SHARE", 0.0)
    x = RNG.integers(0, 256, (100, 40, 40, 2), np.uint8)  # a batch has more than CUDA takes over at once
    y = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 100)]
    make = lambda: network((40, 40, 2))  # noqa: E731
    how = {"preprocess": convscope.Preprocess.fit(x, scaling="unit"), "epochs": 3}
    assert_captured_as_uncaptured(make, monkeypatch, recorded, x=x, y=y, **how)


def test_captured_predictions_follow_the_weights(recorded):
    there, here = pair()
    for _ in range(6):
        assert_close(convscope.predict(there, X, engine="fast"), convscope.predict(here, X))
        for one in (there, here):
            one.set_weights([0.9 * weight for weight in one.get_weights()])
    assert recorded


def test_data_on_the_device_are_trained_on():
    model = compiled(network())
    x, y = (torch.from_numpy(one).to(NAME) for one in (X, Y))
    assert np.isfinite(fit(model, x, y, class_weight={0: 1.0, 1: 2.0})["loss"]).all()


@pytest.mark.parametrize(("engine", "dtype"), [("fast", "float64"), ("keras", "float32")])
def test_a_stream_is_trained_on(engine, dtype):
    model = compiled(network())
    batches = Batches(dtype)
    history = fit(model, batches, None, engine=engine, validation_data=batches, batch_size=None)
    assert np.isfinite(history["val_loss"]).all()


class Noisy(layers.Layer):
    """A layer that the fast engine does not know: it runs as it is."""

    def __init__(self):
        super().__init__()
        self.noise = layers.GaussianNoise(0.1)
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, x, training=None):
        return self.noise(x, training=training) * self.scale


def unusual():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Rescaling(2.0, offset=-1.0),
            layers.SeparableConv2D(8, 3, activation="gelu"),
            Noisy(),
            layers.SpatialDropout2D(0.2),
            layers.DepthwiseConv2D(3, padding="same", strides=2, activation="leaky_relu"),
            layers.AveragePooling2D(2, padding="same"),
            layers.LayerNormalization(),
            layers.PReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l2", kernel_constraint="max_norm"),
            layers.Softmax(),
        ]
    )


def test_layers_that_keras_runs_leave_the_generators_alone():
    there, here = pair(unusual)
    assert_close(convscope.predict(there, X, engine="fast"), convscope.predict(here, X))
    compiled(there, metrics=["accuracy", keras.metrics.AUC(), "categorical_crossentropy"])
    generators = torch.get_device_module(NAME)
    before = generators.get_rng_state().clone()
    history = fit(there, engine="fast", validation_data=(X, Y))
    assert np.isfinite(history["val_loss"]).all()
    assert torch.equal(generators.get_rng_state(), before)


LOSSES = {
    "sparse": (LABELS, "sparse_categorical_crossentropy"),
    "focal": (Y, "categorical_focal_crossentropy"),
    "mse": (Y, "mse"),
    "smoothed": (Y, lambda: keras.losses.CategoricalCrossentropy(label_smoothing=0.1)),
    "binary": (Y, "binary_crossentropy"),
}


@pytest.mark.parametrize(("y", "loss"), LOSSES.values(), ids=LOSSES)
def test_a_loss_is_that_of_the_cpu(y, loss):
    there, here = pair()
    for one, name in ((there, NAME), (here, "cpu")):
        with keras.device(name):
            compiled(one, loss=loss() if callable(loss) else loss)
    ours, theirs = (fit(one, X, y, epochs=1, batch_size=70) for one in (there, here))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-3)


def test_a_training_is_repeated_bit_for_bit():
    first, second = (compiled(pair()[0]) for _ in range(2))
    for one in (first, second):
        fit(one)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_that_lies_elsewhere_is_refused():
    with pytest.raises(UsageError, match=r"^Expected the device that holds the model"):
        fit(compiled(network()), device="cpu")


def test_trials_before_a_training_compute_on_the_device():
    from convscope.training.dry_runs import find_learning_rate, preflight

    model = compiled(network())
    assert measure_throughput(model, X, Y, seconds=0.01, batch_size=16).step_seconds > 0
    find_learning_rate(model, X, Y, batch_size=16)
    preflight(model, X, Y)


def test_float32_is_float32_on_a_gpu_and_the_setting_is_as_before():
    before = torch.backends.cudnn.conv.fp32_precision
    convscope.predict(network(), X)
    assert torch.backends.cudnn.conv.fp32_precision == before


# Inspection


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on-the-device", "on-the-cpu-beside-it"])
def test_a_network_is_looked_into(elsewhere):
    from convscope import inspection

    there, here = pair(small_network)
    model = here if elsewhere else there
    image, images = RNG.random((28, 28, 1)), RNG.random((9, 28, 28, 1))
    for method in (inspection.grad_cam, inspection.grad_cam_plus_plus, inspection.integrated_gradients,
                   inspection.occlusion):  # fmt: skip
        values = method(model, image, class_index=1).values
        np.testing.assert_allclose(values, method(here, image, class_index=1).values, atol=1e-3)
        assert 0 <= inspection.deletion(model, image, values, steps=4).area <= 1
        assert 0 <= inspection.insertion(model, image, values, steps=4).area <= 1
    for layer in model.layers:
        assert inspection.recompute(model, image, layer.name).agrees
    assert_close(inspection.embeddings(model, images), inspection.embeddings(here, images))
    assert len(inspection.feature_maps(model, image)) == len(model.layers)
    assert inspection.filters(model).kernels.shape == (8, 5, 5, 1)
    assert inspection.maximise_class(model, 1, steps=4).image.shape == (28, 28, 1)
    assert inspection.maximise_filter(model, model.layers[0].name, 1, steps=4).image.shape == (28, 28, 1)
    ours, theirs = (inspection.layer_health(one, images, np.arange(9) % 3) for one in (model, here))
    assert [one.dead for one in ours] == [one.dead for one in theirs]
    np.testing.assert_allclose(
        [one.gradient_scale or 0 for one in ours], [one.gradient_scale or 0 for one in theirs], rtol=1e-3
    )


# Runs


def read_predictions(folder):
    with np.load(folder / "predictions.npz") as arrays:
        return arrays["test_probabilities"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train a run on each device with the program itself; both start from the same weights."""
    from convscope.experiment.several import run_several

    folder = tmp_path_factory.mktemp("runs")
    dataset = convscope.load("digits")
    config = ExperimentConfig("simple", data="digits")
    config = ExperimentConfig.from_json(
        config.to_json() | {"training": config.training.to_dict() | {"epochs": 2, "precision": "float32"}}
    )
    made = {}
    for name in (NAME, "cpu"):
        with keras.device(name):
            made[name] = run_several({name: config}, dataset, folder, "gpu")[0].run
    return made


def test_a_run_says_on_which_device_it_was_trained(runs):
    recorded = {name: json.loads((run / "run.json").read_text())["device"] for name, run in runs.items()}
    assert recorded["cpu"]["torch_device"] == "cpu"
    assert recorded[NAME]["torch_device"] != "cpu"


def test_a_run_has_its_report(runs):
    for run in runs.values():
        assert "<svg" in (run / "report.html").read_text()


@pytest.mark.parametrize("trained", [NAME, "cpu"])
@pytest.mark.parametrize("opened", [NAME, "cpu"])
def test_a_run_of_one_device_predicts_the_same_on_the_other(runs, trained, opened):
    digits = convscope.load("digits")
    with keras.device(opened):
        bundle = convscope.load_bundle(runs[trained])
        found = bundle.predict(digits.test.images)
    assert device_of(bundle.model).type == torch.device(opened).type
    recorded = read_predictions(runs[trained])
    if bundle.temperature == 1:
        assert_close(found, recorded)
    np.testing.assert_array_equal(found.argmax(1), recorded.argmax(1))


@pytest.mark.parametrize("trained", [NAME, "cpu"])
@pytest.mark.parametrize("opened", [NAME, "cpu"])
def test_the_program_opens_a_run_of_one_device_on_the_other(typed, runs, tmp_path, trained, opened):
    run = shutil.copytree(runs[trained], tmp_path / "run")
    device = ("--device", opened)
    commands = {
        "inspect": ("inspect", run, "--image", "3", "--json"),
        "evaluate": ("evaluate", run, "--part", "validation", "--json"),
        "report": ("report", run, "--json"),
        "keras": ("export", run, "--format", "keras", "--json"),
        "torch": ("export", run, "--format", "torch", "--json"),
    }
    for name, command in commands.items():
        asked = device if name != "evaluate" else ()
        done = typed(*map(str, (*command, *asked)), cwd=tmp_path)
        assert done.returncode == 0, (name, done.stderr)
        assert json.loads(done.stdout)
    assert current_device().type == torch.device(NAME).type


def test_an_export_to_onnx_agrees_with_a_run_on_the_device(typed, runs, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # the exporter's bars would start a thread
    run = shutil.copytree(runs[NAME], tmp_path / "run")
    done = typed("export", str(run), "--device", NAME, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_training_that_was_stopped_goes_on_elsewhere():
    from convscope.training.events import EpochEnd

    states = {}
    there, here = pair(optimizer="adam")

    def keep(event):
        if isinstance(event, EpochEnd) and event.epoch == 0:
            states["after"] = event.snapshot()

    fit(there, listeners=[keep])
    fit(here, resume_from=states["after"])
    assert_trained_alike(here, there)
