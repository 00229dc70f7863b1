"""Temperature scaling: fitted here, judged there."""

import json

import numpy as np
import pytest
from prediction_cases import random_case

from convscope.errors import UsageError
from convscope.evaluation import Evaluation, apply_temperature, scale_temperature


def overconfident(seed, temperature=0.4):
    """Labels drawn from calibrated probabilities, which are then sharpened."""
    rng = np.random.default_rng(seed)
    calibrated, _ = random_case(4000, 5, seed, skill=0.0)
    labels = (calibrated.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    return Evaluation.from_probabilities(apply_temperature(calibrated, temperature), labels)


def test_an_overconfident_network_is_calibrated_on_other_data():
    found = scale_temperature(overconfident(1), overconfident(2))
    assert found.temperature == pytest.approx(1 / 0.4, rel=0.1)
    assert found.after.reliability.expected_error < 0.2 * found.before.reliability.expected_error
    assert found.after.log_loss < found.before.log_loss
    np.testing.assert_array_equal(found.after.predictions, found.before.predictions)
    assert found.sentence().startswith("Overconfident: at temperature 2.")


@pytest.mark.parametrize(
    ("temperature", "word"), [(0.4, "Overconfident"), (2.5, "Underconfident")], ids=["sharp", "soft"]
)
def test_the_sentence_names_the_fault(temperature, word):
    assert scale_temperature(overconfident(1, temperature), overconfident(2)).sentence().startswith(word)


def test_calibrated_data_stay_as_they_are():
    first = scale_temperature(overconfident(1), overconfident(1)).after
    assert scale_temperature(first, first).sentence().startswith("Well calibrated: at temperature 1.00")


def test_json_is_plain():
    content = json.loads(
        json.dumps(scale_temperature(overconfident(1), overconfident(2)).to_json(), allow_nan=False)
    )
    assert content["after"]["expected_error"] < content["before"]["expected_error"]


def test_other_classes_are_refused():
    two = Evaluation.from_probabilities([[0.9, 0.1]], [0])
    with pytest.raises(
        UsageError, match="Expected two evaluations of the same classes, got different class names"
    ):
        scale_temperature(overconfident(1), two)
