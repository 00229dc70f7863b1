"""A run as something that predicts: what is loaded, and that nothing of it is lost."""

import os

import keras
import numpy as np
import pytest
from bundle_cases import copy_of, npz, read_zip, rewrite_json, small_network, write_zip
from keras import layers
from safetensors.numpy import load_file, save_file

import convscope
from convscope.errors import ConvscopeError, DataError, RunError, UnknownNameError, UsageError
from convscope.evaluation import apply_temperature, fit_temperature
from convscope.export import Bundle, load_bundle
from convscope.model_files import load_model, open_model
from convscope.model_files.models import load_run_model, read_weights, write_weights
from convscope.preprocessing import Preprocess
from convscope.runs import RunDirectory


@pytest.fixture(scope="module")
def images():
    return convscope.load("digits").test.images


@pytest.fixture(scope="module")
def bundle(digits_run):
    return load_bundle(digits_run)


def test_a_bundle_predicts_what_the_network_of_the_run_does(bundle, digits_run, images):
    with np.load(digits_run / "predictions.npz") as stored:
        raw = stored["test_probabilities"].astype(np.float64)
    expected = apply_temperature(raw, bundle.temperature)
    assert bundle.predict(images) == pytest.approx(expected, abs=1e-5)  # float32
    assert bundle.class_names == tuple("0123456789")
    assert bundle.statistics is not None


def test_the_temperature_is_the_one_fitted_to_the_validation_predictions(bundle, digits_run):
    with np.load(digits_run / "predictions.npz") as stored:
        raw, labels = stored["validation_probabilities"], stored["validation_labels"]
    assert bundle.temperature == pytest.approx(fit_temperature(raw.astype(np.float64), labels), abs=1e-3)


def test_a_run_without_a_recorded_temperature_gets_the_same_one(bundle, digits_run, tmp_path):
    run = copy_of(digits_run, tmp_path / "run")
    (run / "calibration.json").unlink()
    assert load_bundle(run).temperature == pytest.approx(bundle.temperature, abs=1e-3)


def test_a_run_without_validation_predictions_stays_uncalibrated(digits_run, tmp_path):
    run = copy_of(digits_run, tmp_path / "run")
    for name in ("calibration.json", "predictions.npz", "statistics.json"):
        (run / name).unlink()
    loaded = load_bundle(run)
    assert loaded.temperature == 1
    assert loaded.statistics is None


def test_images_of_any_size_are_taken(bundle, images):
    large = images[0].repeat(3, axis=0).repeat(3, axis=1).repeat(3, axis=2)  # (84, 84, 3)
    found = bundle.predict([large, images[0]])
    assert found.shape == (2, 10)
    assert found[0].argmax() == found[1].argmax()


def test_no_images_give_no_predictions(bundle):
    assert bundle.predict([]).shape == (0, 10)


def test_floating_point_images_are_refused(bundle):
    with pytest.raises(DataError, match="Expected images as uint8"):
        bundle.predict(np.zeros((1, 28, 28, 1), np.float32))


def test_a_network_that_does_not_fit_its_class_names_is_refused():
    preprocess = Preprocess.fit(np.zeros((1, 28, 28, 1), np.uint8))
    with pytest.raises(DataError, match=r"Expected a network from .* to \(None, 3\), got one from"):
        Bundle.from_model(small_network(), preprocess, ("a", "b", "c"))


def test_nan_is_an_error_and_not_a_label(bundle):
    broken = Bundle(
        bundle.preprocess, bundle.class_names, forward=lambda pixels: np.full((len(pixels), 10), np.nan)
    )
    with pytest.raises(DataError, match=r"Expected probabilities, got NaN\."):
        broken.predict(np.zeros((1, 28, 28, 1), np.uint8))


def test_a_bundle_without_keras_says_that_it_can_only_predict(bundle):
    other = Bundle(bundle.preprocess, bundle.class_names, forward=bundle.forward)
    with pytest.raises(UsageError, match="It can only predict"):
        _ = other.model


# Damage ---------------------------------------------------------------------------------------------------


def remove(name):
    return lambda run: (run / name).unlink()


def write(name, content):
    return lambda run: (run / name).write_bytes(content)


def change(name, **values):
    return lambda run: rewrite_json(run / name, **values)


def change_weights(action):
    def damage(run):
        weights = load_file(run / "weights.safetensors")
        action(weights)
        save_file(weights, run / "weights.safetensors")

    return damage


def drop_first(weights):
    del weights[sorted(weights)[0]]


def rename_first(weights):
    weights["0000/other"] = weights.pop(sorted(weights)[0])


def reshape_first(weights):
    name = sorted(weights)[0]
    weights[name] = weights[name].reshape(-1)


def spoil_first(weights):
    weights[sorted(weights)[0]][...] = np.nan


DAMAGES = {
    "no record": (remove("run.json"), RunError, "Expected a run directory"),
    "record is no JSON": (write("run.json", b"{"), RunError, "to be JSON"),
    "no class names": (change("run.json", data=None), RunError, "names of the classes"),
    "one class": (change("run.json", data={"class_names": ["a"]}), RunError, "names of the classes"),
    "more classes": (change("run.json", data={"class_names": ["a"] * 11}), DataError, "Expected a network"),
    "no network": (remove("model.keras"), DataError, "a Keras model, got no file .*model.keras"),
    "network is text": (write("model.keras", b"hello"), DataError, "to be a Keras model, got File is not a"),
    "no weights": (remove("weights.safetensors"), RunError, "weights.safetensors in the run"),
    "weights are text": (write("weights.safetensors", b"hello"), DataError, "to hold weights"),
    "a weight is missing": (change_weights(drop_first), DataError, "as many weights in the file as"),
    "a weight has another name": (change_weights(rename_first), DataError, "0000/(kernel|other) (miss|only)"),
    "a weight has another shape": (change_weights(reshape_first), DataError, "of shape"),
    "a weight is NaN": (change_weights(spoil_first), DataError, "NaN or infinity in 0000"),
    "no preprocessing": (remove("preprocess.npz"), RunError, "preprocess.npz in the run"),
    "preprocessing is text": (write("preprocess.npz", b"PK\3\4 no zip"), DataError, "to hold NumPy arrays"),
    "scale of another shape": (
        write("preprocess.npz", npz(scale=np.ones(7, np.float32), offset=np.ones(7, np.float32))),
        DataError,
        "shape mismatch|finite scale",
    ),
    "scale is infinite": (
        write("preprocess.npz", npz(scale=np.full(1, np.inf), offset=np.zeros(1))),
        DataError,
        "finite scale",
    ),
    "a huge height": (change("preprocess.json", height=10**9), DataError, "a size of up to"),
    "a height in words": (change("preprocess.json", height="tall"), DataError, "a size of up to"),
    "two channels": (change("preprocess.json", channels=2), DataError, "1 or 3 channels"),
    "an unknown scaling": (change("preprocess.json", scaling="magic"), DataError, "a known scaling"),
    "a list for a scaling": (change("preprocess.json", scaling=[]), DataError, "a known scaling"),
    "one limit": (change("preprocess.json", limits=[0.0]), DataError, "two limits"),
    "an unknown setting": (change("preprocess.json", colour="red"), DataError, "preprocess.json"),
    "a temperature of 0": (change("calibration.json", temperature=0), RunError, "a temperature between"),
    "a temperature in words": (change("calibration.json", temperature="hot"), RunError, "a temperature"),
    "empty statistics": (change("statistics.json", ranges=None), DataError, "statistics of training images"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_in_a_line_or_two(digits_run, tmp_path, name):
    damage, kind, message = DAMAGES[name]
    run = copy_of(digits_run, tmp_path / "run")
    damage(run)
    with pytest.raises(kind, match=message) as caught:
        load_bundle(run)
    assert caught.value.exit_code == 3
    assert str(caught.value).count("\n") <= 1


def test_pickled_arrays_are_refused(digits_run, tmp_path):
    run = copy_of(digits_run, tmp_path / "run")
    content = npz(scale=np.array([{"a": 1}], dtype=object), offset=np.zeros(1))
    (run / "preprocess.npz").write_bytes(content)
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load_bundle(run)


def test_int8_is_for_exports(digits_run):
    with pytest.raises(UsageError, match="Expected an ONNX export with int8, got the run"):
        load_bundle(digits_run, int8=True)


# Networks -------------------------------------------------------------------------------------------------


def twins():
    """Two nested networks with layers of the same name: their weights have the same paths."""
    image = keras.Input((6, 6, 3))
    branches = []
    for number in range(2):
        inner = keras.Input((6, 6, 3))
        branch = keras.Model(inner, layers.Conv2D(4, 3, name="convolution")(inner), name=f"branch{number}")
        branches.append(branch(image))
    pooled = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    return keras.Model(image, layers.Dense(3, activation="softmax")(pooled))


def with_operations():
    image = keras.Input((6, 6, 3))
    doubled = keras.ops.relu(layers.Conv2D(3, 3, padding="same")(image) + image * 2.0)
    mean = keras.ops.mean(doubled, axis=(1, 2))
    return keras.Model(image, layers.Dense(3, activation="softmax")(mean))


def with_every_kind():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(1 / 2),
            layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),
            layers.RandomFlip(),
            layers.SeparableConv2D(4, 3, padding="same", depthwise_initializer="he_normal"),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.DepthwiseConv2D(3, depthwise_constraint="max_norm", depthwise_regularizer="l2"),
            layers.LayerNormalization(),
            layers.PReLU(),
            layers.SpatialDropout2D(0.1),
            layers.UpSampling2D(2),
            layers.AveragePooling2D(3),
            layers.Conv2D(4, 1, activation=keras.activations.gelu),
            layers.Flatten(),
            layers.Dense(3),
            layers.Softmax(),
        ]
    )


def inside_another():
    inner = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization()], name="inner")
    outer = keras.Sequential([inner, layers.Flatten(), layers.Dense(3, activation="softmax")])
    outer(np.zeros((1, 8, 8, 3), np.float32))
    return outer


NETWORKS = {
    "small": small_network,
    "twins": twins,
    "operations": with_operations,
    "every kind": with_every_kind,
    "nested": inside_another,
    "MobileNetV2": lambda: keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=3),
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name == "MobileNetV2" else name for name in NETWORKS
    ]
)
def saved(request, tmp_path):
    """A network with weights that no initializer would choose, and its file."""
    keras.utils.set_random_seed(3)
    model = NETWORKS[request.param]()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if not weight.dtype.startswith("float"):
            continue
        weight.assign(generator.uniform(0.1, 0.5, weight.shape))
    file = tmp_path / "model.keras"
    model.save(file)
    return model, file


def same_weights(model, other):
    return all(
        np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, other.weights, strict=True)
    )


def test_a_keras_file_comes_back_as_it_was_saved(saved):
    model, file = saved
    loaded = load_model(file)
    assert same_weights(model, loaded)
    image = np.random.default_rng(1).random((2, *model.input_shape[1:]), np.float32)
    found, expected = (
        keras.ops.convert_to_numpy(network(image, training=False)) for network in (loaded, model)
    )
    assert found == pytest.approx(expected, abs=1e-6)  # float32


def test_weights_in_a_run_come_back_as_they_were(saved, tmp_path):
    model, file = saved
    (tmp_path / "weights.safetensors").write_bytes(write_weights(model))
    assert same_weights(model, load_run_model(RunDirectory(file.parent)))


def test_a_compiled_file_loads_uncompiled(tmp_path):
    model = small_network()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(np.zeros((4, 28, 28, 1), np.float32), np.zeros(4), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert not loaded.compiled
    assert same_weights(model, loaded)


def test_weights_of_another_network_are_refused(tmp_path):
    small_network().save(tmp_path / "model.keras")
    other = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    other.save(tmp_path / "other.keras")
    members = read_zip(tmp_path / "model.keras")
    members["model.weights.h5"] = read_zip(tmp_path / "other.keras")["model.weights.h5"]
    write_zip(tmp_path / "mixed.keras", members)
    with pytest.raises(
        DataError, match=r"Expected as many weights in the file as .* describes \(.*\), got 10"
    ):
        load_model(tmp_path / "mixed.keras")


def test_safetensors_keep_every_bit():
    model = small_network()
    weights = read_weights(write_weights(model), "memory")
    assert [name.split("/")[0] for name in sorted(weights)] == [
        f"{place:04d}" for place in range(len(model.weights))
    ]


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("depe", UnknownNameError, "Did you mean 'deep'"),
        ("nothing.keras", DataError, r"a Keras model, got no file .*nothing\.keras"),
        (".", RunError, "Expected a run directory"),
    ],
    ids=["name", "file", "folder"],
)
def test_what_is_no_network_is_refused(target, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        open_model(target)


def test_a_run_opens_as_a_network(digits_run):
    assert open_model(str(digits_run)).name == "small"


@pytest.mark.posix("a named pipe")
def test_a_pipe_is_no_network(tmp_path):
    os.mkfifo(tmp_path / "model.keras")
    with pytest.raises(DataError, match="something that is no regular file"):
        load_model(tmp_path / "model.keras")


def test_every_error_is_one_of_ours(digits_run, tmp_path):
    run = copy_of(digits_run, tmp_path / "run")
    for file in run.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ConvscopeError):
        load_bundle(run)
