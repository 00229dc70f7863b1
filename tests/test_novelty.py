"""Images unlike the training's, and images of unknown things: distances, limits, warnings, shares."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import norm, t
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

import convscope
from convscope.data.drift import TrainingStatistics
from convscope.errors import DataError, LoweringError
from convscope.evaluation import wilson_interval
from convscope.evaluation.novelty import DIMENSIONS, Novelty, check_unknown, reduce, separate
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.preparation import prepare
from convscope.experiment.results import examine_parts
from convscope.export import load_bundle
from convscope.export.exporting import export_run
from convscope.inspection import embeddings
from convscope.runs import RunDirectory
from convscope.training.api import predict_with_features


def draw_letters(count):
    """Letters as light and as thick as the digits, of the same size."""
    rng, pictures = np.random.default_rng(0), []
    for number in range(count):
        picture = Image.new("L", (56, 56))
        font = ImageFont.load_default(size=int(rng.integers(34, 44)))
        letter = "ABEFGHKMNPRWX"[number % 13]
        ImageDraw.Draw(picture).text((28, 28), letter, 255, font, "mm", stroke_width=2)
        picture = picture.rotate(float(rng.normal(0, 8))).resize((28, 28), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(picture)[..., None])
    return np.stack(pictures)


def features_of(rng, count, length=40):
    return np.abs(rng.normal(1, 0.3, (count, length))).astype(np.float32)


def test_distances_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    known, asked = reduce(features_of(rng, 300)), features_of(rng, 700)
    searched = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(known.astype(np.float16))
    expected = searched.kneighbors(asked / np.linalg.norm(asked, axis=1, keepdims=True))[0].mean(axis=1)
    found = Novelty(known.astype(np.float16), 40).distances(asked)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_fewer_training_images_than_neighbours_are_enough():
    found = Novelty(np.eye(2, 3, dtype=np.float16), 3).distances(np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(found, [2**0.5 / 2, 2**0.5 / 2, 2**0.5])


def test_long_features_are_shortened_and_keep_their_angles():
    rows = features_of(np.random.default_rng(1), 30, 7_000) - 1
    rows[1::2] = rows[::2] + 0.3 * rows[1::2]
    short = reduce(rows)
    exact = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert short.shape == (30, DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-5)
    assert np.abs(short @ short.T - exact @ exact.T).max() < 5 / DIMENSIONS**0.5
    # What a run wrote is read by other versions: the sums stay the same.
    assert reduce(np.eye(1, 1_000, 600, dtype=np.float32)).nonzero()[1].tolist() == [600 - DIMENSIONS]


@pytest.mark.parametrize("count", [49, 60, 100, 1000])
def test_the_limit_lets_two_in_a_hundred_through(count):
    rng = np.random.default_rng(2)
    novelty = Novelty(np.ones((1, 1), np.float16), 1)
    shares = []
    for _ in range(200):
        limit = novelty.calibrated(rng.random(count).astype(np.float32), np.zeros(count, bool)).limit
        shares.append(1 - limit)  # of further numbers between 0 and 1
    assert np.mean(shares) < 0.024
    assert np.mean(shares) > 0.012


def test_few_validation_images_give_a_limit_beyond_them():
    distances = np.exp(np.random.default_rng(3).normal(-1, 0.2, 9)).astype(np.float32)
    found = Novelty(np.ones((1, 1), np.float16), 1).calibrated(distances, np.zeros(9, bool))
    logs = np.log(distances.astype(float))
    expected = logs.mean() + t.ppf(0.98, 8) * np.std(logs, ddof=1) * (1 + 1 / 9) ** 0.5
    assert found.limit == pytest.approx(np.exp(expected), rel=1e-6)
    assert found.limit > distances.max()


def test_false_alarms_are_counted_whatever_raised_them():
    distances, otherwise = np.linspace(0, 1, 100, dtype=np.float32), np.zeros(100, bool)
    otherwise[:3] = True
    found = Novelty(np.ones((1, 1), np.float16), 1).calibrated(distances, otherwise)
    assert (found.limit, found.alarms, found.validation) == (pytest.approx(98 / 99), 4, 100)
    assert "4 were called unlike them too (4.0 %, 1.6 to 9.8 %)" in found.sentence()
    assert found.to_json()["false_alarms"] == 4


def test_too_few_validation_images_set_no_limit():
    found = Novelty(np.ones((1, 1), np.float16), 1).calibrated(np.ones(4, np.float32), np.zeros(4, bool))
    assert (found.validation, found.limit) == (0, np.inf)


def change(**arrays):
    return lambda stored: stored | arrays


DAMAGES = {
    "no features": lambda stored: {"numbers": stored["numbers"]},
    "no limit": lambda stored: {"known": stored["known"]},
    "other numbers": change(numbers=np.zeros(3)),
    "an infinite limit": change(numbers=np.array([4, np.inf, 10, 1])),
    "more alarms than images": change(numbers=np.array([4, 0.5, 10, 11])),
    "no images": change(known=np.zeros((0, 4), np.float16)),
    "another length": change(known=np.zeros((3, 5), np.float16)),
    "another type": change(known=np.zeros((3, 4))),
    "NaN": change(known=np.full((3, 4), np.nan, np.float16)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage):
    whole = Novelty(np.ones((3, 4), np.float16) / 2, 4, 0.5, 10, 1).to_arrays()
    assert Novelty.from_arrays(whole).limit == 0.5
    with pytest.raises(DataError, match="Expected features of training images and their limit"):
        Novelty.from_arrays(DAMAGES[damage](whole))


def test_features_of_another_network_are_refused():
    with pytest.raises(DataError, match="Expected 4 features"):
        Novelty(np.ones((3, 4), np.float16), 4).distances(np.ones((2, 5), np.float32))


def dense_head(x):
    return layers.Dense(3, activation="softmax")(x)


def nested(x):
    inner = keras.Sequential([layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D()])
    return dense_head(layers.Dropout(0.5)(inner(x)))


def branches(x):
    sides = [layers.Conv2D(3, 3, padding="same", activation=name)(x) for name in ("relu", "tanh")]
    return dense_head(layers.Flatten()(layers.MaxPooling2D()(layers.Concatenate()(sides))))


def normalized(x):
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    return dense_head(layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x))))


HEADS = {"nested": nested, "branches": branches, "normalized": normalized}


@pytest.mark.parametrize("head", HEADS)
def test_features_are_what_enters_the_last_dense_layer(head):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, HEADS[head](inputs))
    images = np.random.default_rng(4).random((130, 8, 8, 2)).astype(np.float32)
    outputs, features = predict_with_features(model, images)
    np.testing.assert_allclose(features, embeddings(model, images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs, convscope.predict(model, images), rtol=1e-5, atol=1e-6)


def test_a_network_that_ends_in_a_convolution_has_features():
    inputs = keras.Input((8, 8, 1))
    maps = layers.Conv2D(3, 1)(layers.Conv2D(5, 3, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Softmax()(layers.GlobalAveragePooling2D()(maps)))
    outputs, features = predict_with_features(model, np.ones((2, 8, 8, 1), np.float32))
    assert (outputs.shape, features.shape) == ((2, 3), (2, 6 * 6 * 5))


def test_a_network_that_cannot_be_lowered_is_evaluated_all_the_same(monkeypatch):
    dataset = convscope.load("digits")
    prepared = prepare(dataset, ExperimentConfig("simple"))
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), dense_layer()])

    def refuse(*_arguments, **_options):
        raise LoweringError("Expected another network.")

    monkeypatch.setattr("convscope.training.api.predict_with_features", refuse)
    evaluations, distances, novelty = examine_parts(model, prepared, None)
    assert (set(evaluations), distances, novelty) == ({"validation", "test"}, {}, None)


def test_features_of_training_images_that_are_known_are_not_computed_again(monkeypatch):
    prepared = prepare(convscope.load("digits"), ExperimentConfig("simple"))
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), dense_layer()])
    computed = []

    def counting(model, images, preprocess):
        computed.append(len(images))
        return predict_with_features(model, images, preprocess)

    monkeypatch.setattr("convscope.training.api.predict_with_features", counting)
    own = examine_parts(model, prepared, None)[2]
    features = predict_with_features(model, prepared.train.images, prepared.preprocess)[1]
    computed.clear()
    told = examine_parts(model, prepared, None, features)[2]
    assert sum(computed) == len(prepared.validation) + len(prepared.test)
    np.testing.assert_array_equal(told.known, own.known)
    assert (told.limit, told.features) == (own.limit, own.features)


def dense_layer():
    return layers.Dense(10, activation="softmax")


def test_letters_are_unlike_digits_and_digits_are_not(digits_run):
    bundle, digits = load_bundle(digits_run), convscope.load("digits")
    letters = draw_letters(130)
    _, warnings = bundle.predict_with_warnings(letters)
    by_pixels = TrainingStatistics.fit(digits.train.images).drift_warnings(letters)
    caught = np.mean([bool(found) for found in warnings])
    assert caught > 0.9
    assert caught > np.mean([bool(found) for found in by_pixels])
    assert any(found[0].startswith("unfamiliar: ") for found in warnings if found)
    probabilities, warnings = bundle.predict_with_warnings(digits.test.images)
    low, high = bundle.novelty.interval
    assert low - 0.02 <= np.mean([bool(found) for found in warnings]) <= high + 0.02
    np.testing.assert_array_equal(probabilities, bundle.predict(digits.test.images))


def test_one_image_gets_one_kind_of_warning(digits_run):
    images = 255 - convscope.load("digits").test.images[:20]
    bundle = load_bundle(digits_run)
    _, distances = bundle.predict_with_distances(images)
    assert all(map(bundle.novelty.warning, distances))  # unfamiliar too, because they are inverted
    _, found = bundle.predict_with_warnings(images)
    assert all(len(warnings) == 1 and warnings[0].startswith("inverted: ") for warnings in found)


def test_a_run_from_before_predicts_as_it_did(digits_run, tmp_path):
    old = shutil.copytree(digits_run, tmp_path / "old")
    (old / "novelty.npz").unlink()
    letters = draw_letters(13)
    bundle = load_bundle(old)
    assert bundle.novelty is None
    probabilities, warnings = bundle.predict_with_warnings(letters)
    np.testing.assert_array_equal(probabilities, load_bundle(digits_run).predict(letters))
    assert warnings == bundle.statistics.drift_warnings(letters)


def test_an_export_for_keras_warns_as_its_run_does(digits_run, tmp_path):
    letters = draw_letters(13)
    run = shutil.copytree(digits_run, tmp_path / "run")  # an export counts a use of its test set
    folder = export_run(run, "keras", tmp_path / "export", data="digits").path
    expected, found = (load_bundle(one).predict_with_warnings(letters)[1] for one in (run, folder))
    assert expected == found
    assert any(found)


def test_predict_says_how_often_it_is_wrong_about_that(typed, digits_run, tmp_path):
    for number, picture in enumerate(draw_letters(4)):
        Image.fromarray(picture[..., 0]).save(tmp_path / f"{number}.png")
    said = typed("predict", str(digits_run), ".", cwd=tmp_path).stdout
    assert re.search(r"unlike the training images; read their labels with doubt", said)
    assert re.search(r"validation images, which are like them, \d+ (was|were) called unlike them too", said)


def scores(known, unknown, gap, seed=0, decimals=8):
    rng = np.random.default_rng(seed)
    return (
        norm.cdf(rng.normal(gap, 1, known)).round(decimals),
        norm.cdf(rng.normal(0, 1, unknown)).round(decimals),
    )


@pytest.mark.parametrize("decimals", [1, 8], ids=["many ties", "no ties"])
@pytest.mark.parametrize("gap", [-1.0, 0.0, 2.0])
def test_separation_is_that_of_scikit_learn(gap, decimals):
    known, unknown = scores(300, 170, gap, decimals=decimals)
    found = separate(known, unknown)
    truth, both = np.repeat([1, 0], [300, 170]), np.concatenate([known, unknown])
    assert found.area == pytest.approx(roc_auc_score(truth, both), abs=1e-12)
    false, true, thresholds = roc_curve(truth, both, drop_intermediate=False)
    place = np.argmax(true >= 0.95)
    assert found.passing.value == pytest.approx(false[place], abs=1e-12)
    assert found.threshold == thresholds[place]


def test_the_interval_of_an_area_holds_the_true_one_in_95_of_100_samples():
    true = norm.cdf(1.0 / 2**0.5)
    held = [true in separate(*scores(80, 60, 1.0, seed)).interval for seed in range(300)]
    assert 0.91 < np.mean(held) < 0.985


def test_shares_are_counted_with_and_without_abstaining():
    known, right = np.array([0.95, 0.85, 0.6, 0.4]), np.array([True, True, True, False])
    found = check_unknown(known, right, np.array([0.92, 0.7, 0.45]), abstain=0.8)
    assert [(one.count, one.of) for one in found.sure[0.5]] == [(3, 4), (2, 3)]
    assert [(one.count, one.of) for one in found.sure[0.9]] == [(1, 4), (1, 3)]
    assert [(one.count, one.of) for one in found.stopped] == [(2, 4), (2, 3)]
    assert (found.right_stopped.count, found.right_stopped.of) == (1, 3)
    assert found.sure[0.9][1].interval == wilson_interval(1, 3)
    assert set(found.separations) == {"probability"}
    json.dumps(found.to_json(), allow_nan=False)


def test_a_network_that_is_always_wrong_has_no_right_answers_to_lose():
    found = check_unknown(np.array([0.5]), np.array([False]), np.array([0.5]), abstain=0.8)
    assert found.to_json()["abstain"]["right_answers"]["share"] is None
    assert str(found.right_stopped) == "none"
    assert found.separations["probability"].area == 0.5


def test_far_images_are_the_unknown_ones():
    probabilities = np.array([0.9, 0.9])
    distances = np.array([0.1, 0.2], np.float32), np.array([0.7, 0.15], np.float32)
    found = check_unknown(probabilities, np.ones(2, bool), probabilities, abstain=0.5, distances=distances)
    assert found.separations["distance"].area == 0.75
    assert found.separations["distance"].threshold == pytest.approx(-0.2)


def test_nothing_cannot_be_compared():
    with pytest.raises(DataError, match="Expected known and unknown images, got 0 and 1"):
        check_unknown(np.empty(0), np.empty(0, bool), np.ones(1), abstain=0.5)


@pytest.fixture
def run(digits_run, tmp_path):
    """A run of its own, because looking at a test set is counted in it."""
    return shutil.copytree(digits_run, tmp_path / "run")


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "letters"
    folder.mkdir()
    for number, picture in enumerate(draw_letters(60)):
        Image.fromarray(picture[..., 0]).save(folder / f"{number}.png")
    return folder


def test_letters_are_judged_by_a_network_of_digits(typed, run, letters, tmp_path):
    done = typed("evaluate", str(run), "--unknown", str(letters), "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (done.returncode, found["part"], found["known"], found["unknown"]) == (0, "validation", 432, 60)
    assert found["separation"]["distance"]["auroc"] > 0.97
    assert found["separation"]["distance"]["auroc"] > found["separation"]["probability"]["auroc"]
    assert found["warned"]["unknown"]["share"] > 0.8
    assert found["warned"]["known"]["share"] < 0.05
    assert not (run / "test_consultations.json").exists()  # only validation images were looked at
    said = typed("evaluate", str(run), "--unknown", str(letters), "--abstain", "0.6", cwd=tmp_path).stdout
    assert "Known: 432 validation images of digits. Unknown: 60 images in" in said
    assert "unknown images get a label with a probability of 0.9 or more" in said
    assert "Abstaining below 0.6 stops" in said
    assert "AUROC: how often" in said


def test_looking_at_the_test_images_is_counted(typed, run, letters, tmp_path):
    (letters.parent / "broken.png").write_bytes(b"no image")
    folder = str(letters.parent)
    done = typed("evaluate", str(run), "--unknown", folder, "--part", "test", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (done.returncode, found["part"], found["unknown"], len(found["failures"])) == (3, "test", 60, 1)
    log = json.loads((run / "test_consultations.json").read_text())["consultations"]
    assert [(entry["purpose"], entry["by"]) for entry in log] == [("error analysis", "evaluate --unknown")]


def test_a_run_from_before_is_judged_by_probabilities_alone(typed, run, letters, tmp_path):
    (run / "novelty.npz").unlink()
    directory = RunDirectory(run)
    arrays = directory.read_arrays("predictions.npz")
    kept = {name: values for name, values in arrays.items() if not name.endswith("_distances")}
    directory.write_arrays("predictions.npz", kept)
    found = json.loads(typed("evaluate", str(run), "--unknown", str(letters), "--json", cwd=tmp_path).stdout)
    assert set(found["separation"]) == {"probability"}
    assert found["warned"]["known"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--unknown", "nowhere"], 3, "Expected nowhere to be an image, got no such file"),
        (["--unknown", "."], 3, "Expected images in ., got none"),
        (["--unknown", ".", "--abstain", "2"], 2, "Expected a threshold above 0 and up to 1, got 2"),
        (["--abstain", "0.5"], 2, "Expected --abstain beside --unknown"),
        (["--unknown", ".", "--part", "train"], 2, "Expected the part validation or test, got 'train'"),
    ],
)
def test_what_cannot_be_judged_is_refused(typed, run, tmp_path, arguments, code, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = typed("evaluate", str(run), *arguments, cwd=empty)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
