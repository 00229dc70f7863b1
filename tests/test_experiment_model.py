"""Networks from files: what they say themselves is taken, what fits for certain is adapted, else refused."""

import json
import warnings
from dataclasses import replace

import keras
import numpy as np
import pytest

from convscope.data.loading import load
from convscope.errors import DataError, UnknownNameError, UsageError
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.preparation import adapt_network, image_shape_of, settle_input
from convscope.experiment.running import run_experiment
from convscope.export import load_bundle
from convscope.model_files import load_model
from convscope.networks import build, require_network
from convscope.training.dry_runs import scales_its_input
from convscope.training.events import Notice

layers = keras.layers


def sequential(*inner, shape=(8, 8, 3), batch=None, units=2, activation="softmax"):
    head = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(units, activation=activation)]
    return keras.Sequential([keras.Input(batch_shape=(batch, *shape)), *inner, *head])


def functional(change, shape=(8, 8, 3)):
    inputs = keras.Input(shape)
    outputs = layers.Flatten()(layers.Conv2D(4, 3)(change(inputs)))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(outputs))


def normalization(images):
    layer = layers.Normalization()
    layer.adapt(images)
    return layer


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.float32)
SCALING = {
    "rescaling": lambda: sequential(layers.Rescaling(1 / 255)),
    "rescaling-to-1": lambda: sequential(layers.Rescaling(1 / 127.5, offset=-1)),
    "normalization": lambda: sequential(normalization(PIXELS)),
    "augmented-first": lambda: sequential(layers.RandomFlip("horizontal"), layers.Rescaling(1 / 255)),
    "division": lambda: functional(lambda x: x / 255.0),
    "caffe": lambda: functional(lambda x: (x - 127.5) * 0.0078),
    "nested": lambda: functional(sequential(layers.Rescaling(1 / 255), shape=(8, 8, 3)).layers[0]),
    "backbone": lambda: keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.Sequential([layers.RandomZoom(0.1), layers.Resizing(6, 6)]),
            functional(layers.Rescaling(1 / 255), (6, 6, 3)),
        ]
    ),
    "open": lambda: sequential(layers.Rescaling(1 / 255), shape=(None, None, 3)),
    "fixed-batch": lambda: sequential(layers.Rescaling(1 / 255), batch=1),
}
NO_SCALING = {
    "none": sequential,
    "of-fractions": lambda: sequential(layers.Rescaling(2.0, offset=-1)),
    "fitted-on-fractions": lambda: sequential(normalization(PIXELS / 255)),
    "batch-normalization": lambda: sequential(layers.BatchNormalization()),
    "resizing": lambda: sequential(layers.Resizing(6, 6), layers.MaxPooling2D()),
    "too-late": lambda: sequential(layers.Conv2D(3, 1), layers.Rescaling(1 / 255)),
}


@pytest.mark.parametrize("make", SCALING.values(), ids=SCALING)
def test_a_network_that_scales_its_input_gets_raw_pixels(make):
    model = make()
    assert scales_its_input(model)
    config, notes = settle_input(ExperimentConfig("simple", scaling="standard"), model)
    assert config.scaling == "raw"
    assert notes == [
        "The network scales its input itself: it gets raw pixels, 0 to 255, in place of standard scaling."
    ]


@pytest.mark.parametrize("make", NO_SCALING.values(), ids=NO_SCALING)
def test_a_network_that_does_not_keeps_the_scaling_that_was_asked_for(make):
    config = ExperimentConfig("simple", scaling="unit")
    assert settle_input(config, make()) == (config, [])


@pytest.mark.parametrize("ending", ["dense", "activation"])
@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_one_sigmoid_unit_becomes_two_softmax_units_of_the_same_function(ending, kind):
    if ending == "dense":
        model = sequential(units=1, activation="sigmoid")
    else:
        model = sequential(units=1, activation=None)
        model.add(layers.Activation("sigmoid"))
    if kind == "functional":
        model = keras.models.clone_model(keras.Model(model.inputs, model.outputs))
    model.layers[-1 if ending == "dense" else -2].bias.assign([0.3])
    images = PIXELS / 255
    adapted, notes = adapt_network(model, (8, 8, 3), 2)
    second = model.predict(images, verbose=0)  # the sigmoid is the probability of the second class
    probabilities = adapted.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities, np.hstack([1 - second, second]), atol=1e-6)
    assert notes == ["The network ends in one sigmoid unit: it became two softmax units that say the same."]
    assert model.output_shape == (None, 1)  # the one that was given stays


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_units_without_an_activation_get_softmax(kind):
    model = sequential(units=3, activation=None)
    if kind == "functional":
        model = keras.models.clone_model(keras.Model(model.inputs, model.outputs))
    model.layers[-1].bias.assign([0.3, -0.2, 0.0])
    adapted, notes = adapt_network(model, (8, 8, 3), 3)
    logits = model.predict(PIXELS / 255, verbose=0).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adapted.predict(PIXELS / 255, verbose=0), shares, atol=1e-6)
    assert notes == ["The network ends in 3 units without an activation: they got softmax."]
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("ending", [keras.ops.relu, keras.ops.softmax], ids=["relu", "softmax"])
def test_units_with_an_operation_behind_them_stay(ending):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, ending(layers.Dense(2)(layers.Flatten()(inputs))))
    assert adapt_network(model, (8, 8, 3), 2) == (model, [])


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_another_activation_than_softmax_is_refused(activation):
    """Two sigmoid units of an untrained network add up to about 1, so that its numbers do not tell."""
    with pytest.raises(UsageError, match=rf"add up to 1, got {activation}. End it in keras.layers.Dense\(2"):
        adapt_network(sequential(activation=activation), (8, 8, 3), 2)


def test_what_is_no_probability_is_refused_before_the_training(tmp_path):
    inputs = keras.Input((28, 28, 1))
    outputs = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "mine.keras")
    with pytest.raises(UsageError, match=r"probabilities that add up to 1 .* End the network with softmax"):
        train_file(tmp_path / "mine.keras", two_digits())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "batch"), [((None, None, 3), None), ((8, 8, 3), 4)], ids=["open", "fixed-batch"]
)
def test_an_open_size_and_a_fixed_batch_are_replaced(shape, batch):
    model = sequential(shape=shape, batch=batch)
    adapted, notes = adapt_network(model, (8, 8, 3), 2)
    assert adapted.input_shape == (None, 8, 8, 3)
    assert len(notes) == 1
    images = PIXELS[:4] / 255
    before, after = (one.predict(images, batch_size=4, verbose=0) for one in (model, adapted))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_a_network_that_fits_is_left_alone():
    model = sequential()
    adapted, notes = adapt_network(model, (8, 8, 3), 2)
    assert adapted is model
    assert notes == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: sequential(units=1, activation=None), r"shape \(None, 1\). End it in keras.layers.Dense\(2"),
        (lambda: sequential(units=5), r"2 outputs.*shape \(None, 5\)"),
        (lambda: sequential(units=1, activation="tanh"), r"2 outputs"),
    ],
    ids=["logit", "five", "tanh"],
)
def test_an_ending_that_does_not_fit_is_refused_with_what_to_change(model, message):
    with pytest.raises(UsageError, match=message):
        adapt_network(model(), (8, 8, 3), 2)


def test_the_channel_axis_is_the_networks():
    model = build("simple", (3, 12, 12), 2, "channels_first")
    config, notes = settle_input(ExperimentConfig("simple"), model)
    assert config.data_format == "channels_first"
    assert notes == ["The network takes its images channels_first: they are given to it so."]
    config, _ = settle_input(replace(config), sequential())
    assert config.data_format == "channels_last"
    assert image_shape_of(sequential(shape=(None, 9, 1)), "channels_last") == (None, 9, 1)


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 8, None)])
def test_channels_that_no_image_has_are_refused(shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(UsageError, match=r"1 or 3 channels .* Give the network an input such as keras.Input"):
        settle_input(ExperimentConfig("simple"), model)


def test_a_network_that_was_never_built_is_refused_with_what_to_do(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of saving it
        keras.Sequential([layers.Flatten(), layers.Dense(2)]).save(tmp_path / "model.keras")
    with pytest.raises(DataError, match=r"a network that has been built, .* Begin it with keras.Input"):
        load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("x.h5", r"keras.models.load_model\('x.h5'\).save\('x.keras'\)"),
        ("models/my.net.hdf5", r"load_model\('models/my.net.hdf5'\).save\('my.keras'\)"),
        ("x.weights.h5", r"holds weights alone: build the network, model.load_weights\('x.weights.h5'\)"),
        ("x.pt", "as Keras saves them"),
        ("saved/model", r"Save the network as a .keras file: model.save\('model.keras'\)"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_to_do(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for refuse in (require_network, ExperimentConfig, build):
        with pytest.raises(DataError, match=rf"got no file {name}. Check its path.$"):
            refuse(name)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    for refuse in (require_network, ExperimentConfig, build):
        with pytest.raises(UsageError, match=rf"the name of a network or a .keras file, got {name}.*{hint}"):
            refuse(name)
    with pytest.raises(UnknownNameError, match="Did you mean 'deep'"):
        require_network("depe")


def two_digits():
    """80 training images of a 0 or a 1, and the test images of these."""
    digits = load("digits")
    chosen = np.flatnonzero(digits.train.labels < 2)[:80]
    tested = np.flatnonzero(digits.test.labels < 2)
    return replace(
        digits, train=digits.train.take(chosen), test=digits.test.take(tested), class_names=("0", "1")
    )


def train_file(file, dataset, batch_size=16):
    """Train the network of a file for an epoch; give the result, and what was said."""
    training = TrainingConfig(epochs=1, batch_size=batch_size, deterministic=True)
    notices = []
    result = run_experiment(
        ExperimentConfig(str(file), training=training),
        dataset,
        file.parent / "run",
        [lambda event: notices.append(event.text) if isinstance(event, Notice) else None],
        with_report=False,
    )
    return result, "\n".join(notices)


def test_an_adapted_normalization_is_trained_from_its_file(tmp_path):
    """Keras counts the images that it has adapted to, a whole number without an axis among the weights."""
    dataset = two_digits()
    layer = layers.Normalization()
    layer.adapt(dataset.train.images.astype(np.float32))
    sequential(layer, shape=(28, 28, 1)).save(tmp_path / "mine.keras")
    assert any(weight.shape == () for weight in load_model(tmp_path / "mine.keras").weights)
    result, said = train_file(tmp_path / "mine.keras", dataset)
    assert "raw pixels" in said
    kept = load_bundle(result.run).network.layers[0]
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(one.mean) for one in (kept, layer)))


def test_a_batch_has_no_more_images_than_there_are(tmp_path):
    sequential(shape=(28, 28, 1)).save(tmp_path / "mine.keras")
    result, said = train_file(tmp_path / "mine.keras", two_digits(), batch_size=100_000)
    assert "There are 56 training images: one batch of all of them, not 100000." in said
    record = json.loads((result.run / "run.json").read_text())
    assert record["config"]["training"]["batch_size"] == 56


def test_a_run_keeps_what_was_adapted(tmp_path):
    """A sigmoid network with Rescaling, an open size and a fixed batch trains, and predicts as it trained."""
    head = [layers.GlobalAveragePooling2D(), layers.Dense(1, activation="sigmoid")]
    keras.Sequential(
        [keras.Input(batch_shape=(16, None, None, 1)), layers.Rescaling(1 / 255), layers.Conv2D(8, 3), *head]
    ).save(tmp_path / "mine.keras")
    dataset = two_digits()
    result, said = train_file(tmp_path / "mine.keras", dataset)
    assert "raw pixels" in said
    assert "two softmax units" in said
    assert "became (None, 28, 28, 1)" in said
    assert json.loads((result.run / "run.json").read_text())["config"]["scaling"] == "raw"
    bundle = load_bundle(result.run)
    assert bundle.preprocess.scaling == "raw"
    assert bundle.network.input_shape == (None, 28, 28, 1)
    if bundle.temperature == 1:
        np.testing.assert_allclose(bundle.predict(dataset.test.images), result.test.probabilities, atol=1e-6)
