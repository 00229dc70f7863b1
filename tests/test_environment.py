"""A helper process computes beside this one, and whether there is one changes no result."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from convscope import environment
from convscope.data.dataset import split_indices
from convscope.environment import begin_helper, beside
from convscope.errors import DataError
from convscope.evaluation import Evaluation
from convscope.plotting.exercise import LARGE_FIGURES, SMALL_FIGURES, draw_figures, draw_png_files
from convscope.preprocessing import Preprocess


@pytest.fixture
def helper(monkeypatch):
    monkeypatch.setattr(environment, "_helper", None)
    monkeypatch.setattr(environment, "share_of_threads", lambda workers: 2 // workers)
    begin_helper(gc.collect)
    yield environment._helper
    environment._helper.shutdown()


def test_without_a_helper_all_is_computed_here(monkeypatch):
    monkeypatch.setattr(environment, "_helper", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begin_helper(gc.collect)  # one thread leaves no room for it
    assert beside(os.getpid)() == os.getpid()


def test_where_no_process_can_be_begun_all_is_computed_here(monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "no semaphores here")

    monkeypatch.setattr(environment, "_helper", None)
    monkeypatch.setattr(environment, "share_of_threads", lambda workers: 2 // workers)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", refuse)
    begin_helper(gc.collect)
    assert beside(os.getpid)() == os.getpid()


def test_a_helper_gives_the_same_figures_from_another_process_until_it_dies(helper):
    assert beside(os.getpid)() != os.getpid()
    assert beside(os.getpid, size=2**30)() == os.getpid()
    rng = np.random.default_rng(0)
    evaluation = Evaluation.from_probabilities(rng.dirichlet([1, 1, 1], 12), rng.integers(0, 3, 12))
    images = rng.integers(0, 256, (12, 8, 8, 1), np.uint8)
    facts = LARGE_FIGURES, evaluation, images, {}, "a test"
    assert beside(draw_png_files, *facts)() == draw_png_files(*facts)
    with pytest.raises(ZeroDivisionError):
        beside(divmod, 1, 0)()
    labels = rng.integers(0, 3, 50)
    in_helper = [*split_indices(labels, 0.3, 1), Preprocess.fit(images).scale]
    with pytest.raises(DataError, match="Expected enough examples to split, got 1"):
        split_indices(labels[:1], 0.3, 1, stratify=False)
    beside(os._exit, 1)
    assert beside(divmod, 7, 2)() == (3, 1)
    assert beside(os.getpid)() == os.getpid()
    assert helper is environment._helper
    here = [*split_indices(labels, 0.3, 1), Preprocess.fit(images).scale]
    assert all(map(np.array_equal, in_helper, here))


def test_every_figure_is_drawn_in_one_of_the_halves():
    evaluation = Evaluation.from_probabilities(np.eye(3), np.arange(3))
    images, history = np.zeros((3, 8, 8, 1), np.uint8), {"loss": [1.0]}
    assert not set(SMALL_FIGURES) & set(LARGE_FIGURES)
    assert set(draw_figures(evaluation, images, history)) == {*SMALL_FIGURES, *LARGE_FIGURES}
    assert "history" not in draw_figures(evaluation, images)


def test_what_a_helper_loads_is_not_torch():
    code = (
        "import sys, convscope.report.evaluated, convscope.plotting.exercise; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
