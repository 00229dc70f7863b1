"""Images of things that a network has no class for: how sure it is of them, and how they are told apart."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from test_novelty import draw_letters

from convscope.errors import DataError
from convscope.evaluation import wilson_interval
from convscope.evaluation.unknown import check_unknown, separate
from convscope.runs import RunDirectory


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
