"""The log of the test set: counts every use, refuses choices, trusts no damaged log."""

import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from bundle_cases import copy_of

import convscope
from convscope.data.loading import load
from convscope.errors import RunError, UnknownNameError, UsageError
from convscope.evaluation import test_set_log
from convscope.export import load_bundle
from convscope.model_files import open_model


@pytest.mark.parametrize("purpose", test_set_log.PURPOSES)
def test_every_allowed_purpose_is_counted(purpose):
    record = test_set_log.add_use(None, purpose, by="report")
    assert test_set_log.count(record) == 1
    assert record["consultations"][0]["purpose"] == purpose
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("purpose", test_set_log.CHOICES)
def test_every_choice_is_refused_with_its_reason(purpose):
    with pytest.raises(
        UsageError, match="Expected the test set to be asked for a final answer only, got a"
    ) as caught:
        test_set_log.add_use(None, purpose)
    assert f" {purpose}. Use the validation data: {test_set_log.CHOICES[purpose]}." in str(caught.value)


def test_an_unknown_purpose_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'comparison'"):
        test_set_log.add_use(None, "comparisons")


def test_the_stored_record_stays_as_it_is():
    stored = test_set_log.add_use(None, "final evaluation")
    test_set_log.add_use(stored, "report")
    assert test_set_log.count(stored) == 1


def test_no_use_is_forgotten_however_many_there_are():
    log = None
    for number in range(300):
        log = test_set_log.add_use(log, "report", by=str(number))
    assert [entry["by"] for entry in log["consultations"]] == [str(number) for number in range(300)]
    assert "used 300 times" in test_set_log.describe(log)


def test_moments_are_kept_in_universal_time():
    summer = datetime(2024, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    assert (
        test_set_log.add_use(None, "report", when=summer)["consultations"][0]["when"]
        == "2024-07-01T10:00:00+00:00"
    )
    now = datetime.fromisoformat(test_set_log.add_use(None, "report")["consultations"][0]["when"])
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=10)


@pytest.mark.parametrize(
    ("purposes", "words"),
    [
        ([], "The test set of this run has not been used."),
        (["report"], "The test set of this run was used once: report."),
        (["report"] * 2, "The test set of this run was used twice: 2 × report."),
        (
            ["final evaluation", "comparison", "comparison"],
            "The test set of this run was used 3 times: 1 × final evaluation, 2 × comparison.",
        ),
    ],
    ids=str,
)
def test_reports_say_how_often(purposes, words):
    record = None
    for purpose in purposes:
        record = test_set_log.add_use(record, purpose)
    assert test_set_log.describe(record) == words


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
    with pytest.raises(RunError, match=r"Expected a (log of the test set's uses|use of the test set)"):
        test_set_log.add_use(record, "report")


def uses(run):
    file = run / test_set_log.TEST_SET_LOG
    entries = json.loads(file.read_text())["consultations"] if file.is_file() else []
    return [(entry["purpose"], entry["by"]) for entry in entries]


class TestEvaluationInANotebook:
    """``convscope.evaluate`` with the network of a run."""

    @pytest.fixture
    def run(self, digits_run, tmp_path):
        return copy_of(digits_run, tmp_path / "run")

    @pytest.fixture
    def digits(self):
        return load("digits")

    @pytest.mark.parametrize("chosen", [slice(None), slice(3, 40), slice(60, 10, -2)], ids=str)
    def test_of_test_images_is_counted(self, run, digits, chosen):
        bundle = load_bundle(run)
        images, labels = digits.test.images[chosen], digits.test.labels[chosen]
        convscope.evaluate(bundle.model, images, labels, preprocess=bundle.preprocess)
        assert uses(run) == [("error analysis", "convscope.evaluate")]

    def test_of_prepared_test_images_is_counted(self, run, digits):
        prepared = load_bundle(run).preprocess.apply(digits.test.images)
        convscope.evaluate(open_model(str(run)), prepared, digits.test.labels)
        assert len(uses(run)) == 1

    def test_is_shown_where_it_cannot_be_counted(self, run, digits, read_only):
        read_only(run)
        bundle = load_bundle(run)
        found = convscope.evaluate(
            bundle.model, digits.test.images, digits.test.labels, preprocess=bundle.preprocess
        )
        assert uses(run) == []
        assert str(found).startswith(str(found.evaluation))
        for shown in (str(found), found._repr_html_()):
            assert "test_consultations.json, got Read-only file system. The answer is complete" in shown

    def test_of_other_images_is_not(self, run, digits):
        bundle = load_bundle(run)
        images, labels = digits.train.images[:300], digits.train.labels[:300]
        convscope.evaluate(bundle.model, images, labels, preprocess=bundle.preprocess)
        assert uses(run) == []

    def test_with_a_network_of_no_run_is_not(self, run):
        model = convscope.build("simple", load_bundle(run).preprocess.input_shape)
        convscope.evaluate(model, np.zeros((4, *model.input_shape[1:]), np.float32), np.arange(4))
        assert uses(run) == []
