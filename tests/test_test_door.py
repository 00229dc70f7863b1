"""The door to the test set: counts every consultation, refuses choices, trusts no damaged record."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from convscope.errors import RunError, UnknownNameError, UsageError
from convscope.evaluation import Evaluation, test_door


def evaluation(p_true):
    return Evaluation.from_probabilities([[p_true, 1 - p_true]] * 4, [0, 0, 0, 0])


@pytest.mark.parametrize("purpose", test_door.PURPOSES)
def test_every_allowed_purpose_is_counted(purpose):
    record = test_door.consult(None, purpose, by="report")
    assert test_door.count(record) == 1
    assert record["consultations"][0]["purpose"] == purpose
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("purpose", test_door.CHOICES)
def test_every_choice_is_refused_with_its_reason(purpose):
    with pytest.raises(
        UsageError, match="Expected the test set to be asked for a final answer only, got a"
    ) as caught:
        test_door.consult(None, purpose)
    assert f" {purpose}. Use the validation data: {test_door.CHOICES[purpose]}." in str(caught.value)


def test_an_unknown_purpose_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'comparison'"):
        test_door.consult(None, "comparisons")


def test_the_stored_record_stays_as_it_is():
    stored = test_door.consult(None, "final evaluation")
    test_door.consult(stored, "report")
    assert test_door.count(stored) == 1


def test_moments_are_kept_in_universal_time():
    summer = datetime(2024, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    assert (
        test_door.consult(None, "report", when=summer)["consultations"][0]["when"]
        == "2024-07-01T10:00:00+00:00"
    )
    now = datetime.fromisoformat(test_door.consult(None, "report")["consultations"][0]["when"])
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=10)


@pytest.mark.parametrize(
    ("purposes", "words"),
    [
        ([], "The test set of this run has not been consulted."),
        (["report"], "The test set of this run was consulted once: report."),
        (["report"] * 2, "The test set of this run was consulted twice: 2 × report."),
        (
            ["final evaluation", "comparison", "comparison"],
            "The test set of this run was consulted 3 times: 1 × final evaluation, 2 × comparison.",
        ),
    ],
    ids=str,
)
def test_reports_say_how_often(purposes, words):
    record = test_door.new_record()
    for purpose in purposes:
        record = test_door.consult(record, purpose)
    assert test_door.describe(record) == words


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"format": 2, "consultations": []},
        {"format": 1, "consultations": 3},
        {"format": 1, "consultations": ["report"]},
        {"format": 1, "consultations": [{"purpose": "choice of model"}]},
    ],
    ids=["empty", "other format", "a number", "text", "forged choice"],
)
def test_a_damaged_record_is_not_taken_for_an_empty_one(record):
    with pytest.raises(
        RunError, match=r"Expected a (record of test-set consultations|test-set consultation)"
    ):
        test_door.consult(record, "report")


class TestChoosing:
    def test_by_accuracy_and_by_loss(self):
        candidates = {"bad": evaluation(0.2), "sure": evaluation(0.9), "fair": evaluation(0.7)}
        assert test_door.choose(candidates, "validation", "loss") == "sure"
        assert test_door.choose(candidates, "validation") == "sure"
        assert test_door.choose({"fair": evaluation(0.7), **candidates}, "validation") == "fair"

    def test_on_test_data_is_refused_with_the_reason(self):
        with pytest.raises(
            UsageError, match=r"final answer only, got a choice of model\. Use the validation data: the"
        ):
            test_door.choose({"a": evaluation(0.9)}, "test")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (({}, "validation"), UsageError, "Expected at least one candidate, got none"),
            (
                ({"a": evaluation(0.9)}, "training"),
                UsageError,
                "Expected a choice by validation data, got by training",
            ),
            (({"a": evaluation(0.9)}, "validation", "acuracy"), UnknownNameError, "Did you mean 'accuracy'"),
        ],
        ids=["none", "training data", "metric"],
    )
    def test_refuses(self, arguments, error, message):
        with pytest.raises(error, match=message):
            test_door.choose(*arguments)
