"""Reliability and temperatures against their definitions; one decision for a run, which everything reads."""

import json

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from prediction_cases import case, predictions, random_case
from report_runs import make_dataset, make_evaluation, make_run, render_report

from convscope.contents import read_record
from convscope.errors import UsageError
from convscope.evaluation import Calibration, Evaluation, apply_temperature, fit_temperature
from convscope.evaluation.calibration import FEWEST_ERRORS, FEWEST_IMAGES, reliability
from convscope.export import load_bundle, load_calibration
from convscope.runs import RunDirectory

# float64 sums in another order
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def binned_by_hand(probabilities, labels, bins):
    """The definition, image by image and bin by bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = largest = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
            largest = max(largest, gap)
    return expected, largest


class TestCalibration:
    @case
    @pytest.mark.parametrize("bins", [1, 7, 15], ids=str)
    def test_reliability_equals_its_definition(self, probabilities, labels, bins):
        found = reliability(probabilities, labels, bins)
        expected, largest = binned_by_hand(probabilities, labels, bins)
        np.testing.assert_allclose(found.expected_error, expected, **TIGHT)
        np.testing.assert_allclose(found.largest_error, largest, **TIGHT)
        assert found.counts.sum() == len(labels)

    def test_a_bin_holds_its_upper_edge(self):
        found = reliability(np.array([[0.6, 0.4], [0.8, 0.2], [1.0, 0.0]]), np.array([0, 0, 0]), bins=5)
        assert found.counts.tolist() == [0, 0, 1, 1, 1]
        assert np.isnan(found.confidence[0])

    def test_no_bins_are_refused(self):
        with pytest.raises(UsageError, match="Expected at least one bin, got 0"):
            reliability(np.array([[1.0, 0.0]]), np.array([0]), 0)

    def test_temperature_is_that_of_the_logits(self):
        rng = np.random.default_rng(1)
        logits = rng.normal(size=(50, 5)) * 6
        scaled = apply_temperature(scipy.special.softmax(logits, axis=1), 2.5)
        np.testing.assert_allclose(scaled, scipy.special.softmax(logits / 2.5, axis=1), rtol=1e-9)

    @pytest.mark.parametrize("true", [0.4, 1.0, 3.0], ids=str)
    def test_the_temperature_that_made_the_data_is_found(self, true):
        rng = np.random.default_rng(2)
        calibrated = scipy.special.softmax(rng.normal(size=(20_000, 5)) * 2, axis=1)
        labels = (calibrated.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
        distorted = apply_temperature(calibrated, 1 / true)
        assert fit_temperature(distorted, labels) == pytest.approx(true, rel=0.03)

    def test_the_temperature_minimises_the_loss(self):
        probabilities, labels = random_case(500, 6, skill=0.5)
        found = fit_temperature(probabilities, labels)
        grid = np.geomspace(0.05, 20, 401)
        losses = [
            Evaluation.from_probabilities(apply_temperature(probabilities, t), labels).log_loss for t in grid
        ]
        assert found == pytest.approx(grid[np.argmin(losses)], rel=1.6e-2)  # one step of the grid

    def test_without_errors_the_lowest_temperature_is_kept(self):
        assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])) == pytest.approx(0.05)

    def test_with_errors_only_the_highest_is_kept(self):
        assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 0])) == pytest.approx(20)

    def test_probabilities_of_zero_stay_finite(self):
        table = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        assert np.isfinite(fit_temperature(table, np.array([0, 1, 1])))
        assert np.isfinite(apply_temperature(table, 3.0)).all()

    @pytest.mark.parametrize("temperature", [0, -1, float("nan")], ids=str)
    def test_impossible_temperatures_are_refused(self, temperature):
        with pytest.raises(UsageError, match="Expected a temperature above 0, got"):
            apply_temperature(np.array([[0.5, 0.5]]), temperature)

    @given(predictions(), st.floats(0.1, 10))
    def test_temperature_keeps_predictions_and_one_changes_nothing(self, drawn, temperature):
        table, _, _ = drawn
        scaled = apply_temperature(table, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1, rtol=1e-9)
        best = np.take_along_axis(scaled, table.argmax(axis=1)[:, None], axis=1)[:, 0]
        assert (best >= scaled.max(axis=1) - 1e-12).all()
        np.testing.assert_allclose(apply_temperature(table, 1.0), table, atol=1e-9)

    @given(predictions())
    def test_bounds(self, drawn):
        table, labels, _ = drawn
        found = Evaluation.from_probabilities(table, labels).reliability
        assert 0 <= found.expected_error <= found.largest_error + 1e-12 <= 1 + 1e-9


def drawn(seed, temperature=0.4, count=4000):
    """Draw labels from calibrated probabilities, which are then sharpened or softened."""
    rng = np.random.default_rng(seed)
    calibrated, _ = random_case(count, 5, seed, skill=0.0)
    labels = (calibrated.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return Evaluation.from_probabilities(apply_temperature(calibrated, temperature), labels)


@pytest.mark.parametrize("distorted", [0.4, 2.5], ids=["too sure", "not sure enough"])
def test_probabilities_are_calibrated_on_other_data(distorted):
    found = Calibration.fit(drawn(1, distorted))
    before = drawn(2, distorted)
    after = before.calibrated(found.temperature)
    assert found.used
    assert found.temperature == pytest.approx(1 / distorted, rel=0.1)
    assert after.reliability.expected_error < 0.2 * before.reliability.expected_error
    assert after.log_loss < before.log_loss
    np.testing.assert_array_equal(after.predictions, before.predictions)
    assert after.loss == before.loss  # what Keras's evaluate says of the network itself


def test_a_temperature_of_the_right_data_is_the_smallest_log_loss():
    validation = drawn(1)
    expected = fit_temperature(validation.probabilities, validation.labels)
    assert Calibration.fit(validation).temperature == pytest.approx(expected, abs=1e-4)


def test_calibrated_probabilities_stay_to_the_last_bit():
    # Of 20 data sets that need no temperature hardly one gets one, and its effect is small.
    found = [Calibration.fit(drawn(seed, 1.0, 500)) for seed in range(20)]
    assert sum(one.used for one in found) <= 2
    assert all(abs(np.log(one.fitted)) < 0.3 for one in found)
    unused = next(one for one in found if not one.used)
    evaluation = drawn(3)
    assert evaluation.calibrated(unused.temperature) is evaluation


def table(images, errors):
    probabilities = np.tile([0.99, 0.01], (images, 1))
    labels = np.zeros(images, np.int64)
    labels[:errors] = 1
    return Evaluation.from_probabilities(probabilities, labels)


@pytest.mark.parametrize(
    ("images", "errors", "reason"),
    [
        (7, 3, "7 validation images are too few"),
        (FEWEST_IMAGES - 1, 20, "images are too few"),
        (500, FEWEST_ERRORS - 1, "9 validation errors are too few"),
        (500, 1, "1 validation error is too few"),
        (500, 0, "0 validation errors are too few"),
    ],
)
def test_too_few_images_or_errors_are_nothing_to_calibrate_on(images, errors, reason):
    found = Calibration.fit(table(images, errors))
    assert not found.used
    assert found.fitted is None
    assert reason in found.sentence()


def test_a_temperature_that_does_not_hold_on_other_images_is_not_used():
    # Softened by what three fifths of the images say, while the others would have to be sharpened.
    rng = np.random.default_rng(0)
    probabilities = np.tile([0.6, 0.4], (60, 1))
    labels = (rng.random(60) < 0.42).astype(np.int64)
    found = Calibration.fit(Evaluation.from_probabilities(probabilities, labels))
    assert not found.used
    assert found.fitted is not None
    assert "does not improve" in found.sentence()


def test_a_temperature_is_judged_by_images_that_it_was_not_fitted_on():
    # All errors are among the images that are left out together: the others, all right, say to sharpen.
    labels = np.zeros(60, np.int64)
    labels[::5][:10] = 1
    probabilities = np.tile([1 - 1e-6, 1e-6], (60, 1))
    found = Calibration.fit(Evaluation.from_probabilities(probabilities, labels))
    assert found.fitted > 1
    assert not found.used


def test_a_temperature_that_costs_calibration_is_not_used():
    # The first class is right as often as it says; of the others, the third is far more likely than that.
    labels = np.repeat([0, 1, 2], [600, 200, 200])[np.random.default_rng(0).permutation(1000)]
    evaluation = Evaluation.from_probabilities(np.tile([0.6, 0.39, 0.01], (1000, 1)), labels)
    found = Calibration.fit(evaluation)
    softened = evaluation.calibrated(found.fitted)
    assert found.fitted > 1.2 and softened.log_loss < evaluation.log_loss
    assert softened.reliability.expected_error > evaluation.reliability.expected_error
    assert not found.used
    assert "does not improve the calibration" in found.sentence()


def test_the_decision_survives_its_file():
    found = Calibration.fit(drawn(1))
    assert Calibration.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert Calibration.from_json({"temperature": 2.0}).temperature == 2


def overconfident_run(folder, count):
    """Write a run whose validation predictions are far too sure."""
    dataset = make_dataset(4, (12, 12, 1), count)
    path, dataset = make_run(folder, dataset=dataset, right=0.7)
    return path, dataset


def test_report_prediction_and_evaluation_of_a_run_agree(tmp_path, typed):
    path, dataset = overconfident_run(tmp_path / "run", 400)
    bundle, contents = load_bundle(path), read_record(path)
    assert bundle.temperature == contents.calibration.temperature > 1.2
    with np.load(path / "predictions.npz") as stored:
        own = stored["test_probabilities"].astype(np.float64)
    expected = apply_temperature(own, bundle.temperature)
    np.testing.assert_allclose(contents.evaluations["test"].probabilities, expected, rtol=1e-6)
    written = json.loads((path / "evaluation.json").read_text())["test"]
    first = written["worst_errors"][0]
    assert first["probability_predicted"] == pytest.approx(expected[first["index"]].max(), rel=1e-6)
    answer = typed("evaluate", str(path), "--json", cwd=tmp_path)
    shown = json.loads(answer.stdout)
    assert shown["temperature"]["temperature"] == bundle.temperature
    assert shown["worst_errors"] == written["worst_errors"]
    page = render_report(path, dataset=dataset)
    assert f"temperature {bundle.temperature:.2f}" in page
    assert f"T = {bundle.temperature:.3f}" in page


def test_few_validation_images_give_no_temperature_anywhere(tmp_path):
    path, dataset = overconfident_run(tmp_path / "run", 40)
    assert load_bundle(path).temperature == 1
    stored = json.loads((path / "calibration.json").read_text())
    assert stored["temperature"] == 1
    assert stored["images"] == 40
    page = render_report(path, dataset=dataset)
    assert "No temperature is used: 40 validation images are too few" in page
    assert "after temperature scaling" not in page


def test_a_run_that_recorded_a_temperature_keeps_it(tmp_path):
    path, dataset = overconfident_run(tmp_path / "run", 40)
    RunDirectory(path).write_json("calibration.json", {"temperature": 3.0, "images": 40})
    assert load_calibration(RunDirectory(path)).temperature == load_bundle(path).temperature == 3
    assert "T = 3.000" in render_report(path, dataset=dataset)


def test_the_page_has_one_opinion_about_confidence(tmp_path):
    path, dataset = make_run(tmp_path / "run", dataset=make_dataset(4, (12, 12, 1), 400), right=0.7)
    page = render_report(path, dataset=dataset)
    opinions = [words for words in ("too sure of itself", "less sure than it could be") if words in page]
    assert opinions == ["too sure of itself"]
    assert "nderconfident" not in page


def test_a_temperature_that_harms_the_test_images_is_said_to(tmp_path):
    dataset = make_dataset(4, (12, 12, 1), 400)
    path, dataset = make_run(tmp_path / "run", dataset=dataset, right=0.7)
    good = make_evaluation(dataset.test, dataset.class_names, 1.0, 5)
    arrays = RunDirectory(path).read_arrays("predictions.npz")
    RunDirectory(path).write_arrays(
        "predictions.npz", {**arrays, "test_probabilities": good.probabilities.astype(np.float32)}
    )
    page = render_report(path, dataset=dataset)
    assert "It stays all the same: the test images judge the choice" in page
