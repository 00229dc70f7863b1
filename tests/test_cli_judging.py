"""``convscope evaluate``, ``compare`` and ``report``, as a person types them."""

import errno
import json
import os
import shutil

import pytest
from report_runs import make_dataset, make_run

from convscope import runs as run_files
from convscope.contents import TEST_SET_LOG


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two runs on the same images, one of them better, and one on others."""
    folder, dataset = tmp_path_factory.mktemp("judged"), make_dataset(4, count=200)
    make_run(folder / "weak", dataset=dataset, right=0.6)
    make_run(folder / "strong", dataset=dataset, right=0.95, name="deep")
    make_run(folder / "elsewhere", dataset=make_dataset(4, count=200, seed=9))
    return folder


@pytest.fixture
def runs(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "runs")


def consultations(run):
    return [entry["purpose"] for entry in json.loads((run / TEST_SET_LOG).read_text())["consultations"]]


def test_a_comparison_gives_a_verdict_and_the_images_that_make_it(runs, typed):
    done = typed("compare", "weak", "strong", cwd=runs)
    assert done.returncode == 0
    assert done.stdout.startswith("deep is better than simple. On the same 200 test images")
    assert "images on which just one is right" in done.stdout
    assert "made/test/" in done.stdout
    assert consultations(runs / "weak") == ["final evaluation", "comparison"]


def test_a_run_compared_with_itself_differs_nowhere(runs, typed):
    done = typed("compare", "weak", "weak", "--json", cwd=runs)
    found = json.loads(done.stdout)
    assert (found["verdict"], found["agreement"]) == ("could be chance", 1)


def settle(run, **settings):
    """Record settings of the training as a run does."""
    record = json.loads((run / "run.json").read_text())
    record["config"]["training"] |= settings
    (run / "run.json").write_text(json.dumps(record))


def test_a_comparison_names_what_differs_in_the_trainings(runs, typed):
    settle(runs / "weak", epochs=1, batch_size=64, learning_rate=None)
    settle(runs / "strong", epochs=2, batch_size=64, learning_rate=0.01)
    done = typed("compare", "weak", "strong", cwd=runs)
    line = "They were trained differently: epochs 1 and 2; learning rate default and 0.01."
    assert line in done.stdout.splitlines()
    found = json.loads(typed("compare", "weak", "strong", "--json", cwd=runs).stdout)
    assert found["settings"] == {"epochs": [[1], [2]], "learning rate": [[None], [0.01]]}


def test_seeds_are_no_difference_between_sides_of_several_runs(runs, typed):
    settle(runs / "weak", seed=1)
    shutil.copytree(runs / "weak", runs / "other")
    settle(runs / "other", seed=2)
    done = typed("compare", "weak", "other", "--with", "strong", "--json", cwd=runs)
    assert json.loads(done.stdout)["settings"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "weak", "elsewhere"], 2, "Expected runs on the same data, got made"),
        (["compare", "weak"], 2, "Expected two runs, got 1. With several seeds: convscope compare"),
        (["compare", "weak", "nowhere"], 3, "nowhere"),
        (["evaluate", "weak", "--part", "train"], 2, "Expected the part validation or test, got 'train'"),
    ],
    ids=["other data", "one run", "no run", "no such part"],
)
def test_what_cannot_be_judged_is_refused_and_not_counted(runs, typed, arguments, code, message):
    done = typed(*arguments, cwd=runs)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert consultations(runs / "weak") == ["final evaluation"]


@pytest.mark.parametrize(("part", "purposes"), [("validation", 1), ("test", 2)])
def test_an_evaluation_shows_scores_and_counts_looks_at_the_test_set(runs, typed, part, purposes):
    done = typed("evaluate", "strong", "--part", part, cwd=runs)
    for word in (
        "95 % interval",
        "expected calibration error",
        "Brier score",
        "Most confused",
        "Worst errors",
    ):
        assert word in done.stdout
    assert len(consultations(runs / "strong")) == purposes


def test_an_evaluation_is_one_json_object(runs, typed):
    found = json.loads(typed("evaluate", "strong", "--json", cwd=runs).stdout)
    assert (found["part"], found["accuracy"]) == ("test", 0.95)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize("command", [["evaluate", "weak"], ["compare", "weak", "strong"]], ids=" ".join)
def test_a_disk_that_refuses_costs_the_count_and_not_the_answer(runs, typed, monkeypatch, command, reason):
    answer = typed(*command, cwd=runs).stdout

    def refuse(*_arguments, **_keywords):
        raise OSError(reason, os.strerror(reason))

    if reason == errno.EROFS:
        monkeypatch.setattr(run_files.FileLock, "acquire", refuse)
    else:
        monkeypatch.setattr(os, "fsync", refuse)
    done = typed(*command, cwd=runs)
    assert (done.returncode, done.stdout) == (3, answer)
    assert "to be able to write weak" in done.stderr and os.strerror(reason) in done.stderr
    assert "The answer is complete; only this use of the test set was not counted." in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
