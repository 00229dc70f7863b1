"""Schedules are pure functions of the step."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convscope.errors import UnknownNameError, UsageError
from convscope.training.schedules import Constant, Cosine, OneCycle, Rate, make_schedule, plateau_rate

steps = st.integers(2, 500)
rates = st.floats(1e-6, 10)


def test_one_cycle_equals_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        0.5,
        total_steps=101,
        pct_start=0.26,
        base_momentum=0.7,
        max_momentum=0.9,
        final_div_factor=400,
    )
    # Torch counts its last step as the end of the cycle and its summit as one step earlier.
    ours = OneCycle(0.5, 100, rising=25.26 / 100, momenta=(0.7, 0.9))
    for step in range(100):
        group = optimizer.param_groups[0]
        rate = ours(step)
        assert rate.learning_rate == pytest.approx(group["lr"], rel=1e-9)
        assert rate.momentum == pytest.approx(group["momentum"], rel=1e-9)
        optimizer.step()
        theirs.step()


@given(peak=rates, count=steps, rising=st.floats(0.05, 0.95))
def test_one_cycle_stays_between_its_ends_and_its_peak(peak, count, rising):
    values = [OneCycle(peak, count, rising)(step).learning_rate for step in range(count + 1)]
    assert max(values) <= peak * (1 + 1e-12)
    assert values[0] == pytest.approx(peak / 25)
    assert values[-1] == pytest.approx(peak / 1e4)
    summit = int(np.argmax(values))
    assert np.all(np.diff(values[: summit + 1]) >= -1e-12 * peak)
    assert np.all(np.diff(values[summit:]) <= 1e-12 * peak)


@given(peak=rates, count=steps, data=st.data())
def test_cosine_warms_up_and_falls_to_its_floor(peak, count, data):
    warmup = data.draw(st.integers(0, count - 1))
    schedule = Cosine(peak, count, warmup, floor=0.1)
    values = [schedule(step).learning_rate for step in range(count + 5)]
    assert values[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    assert values[warmup] == pytest.approx(peak)
    assert values[count] == pytest.approx(peak * 0.1)
    assert values[count:] == [values[count]] * 5
    assert np.all(np.diff(values[: warmup + 1]) >= -1e-12 * peak)


def test_cosine_follows_its_formula():
    assert Cosine(0.2, 80)(20).learning_rate == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))


def test_constant_is_constant():
    assert Constant(0.3)(0) == Constant(0.3)(10**9) == Rate(0.3)


@given(st.lists(st.floats(0, 10), max_size=30))
def test_plateau_only_lowers(losses):
    sequence = [plateau_rate(losses[:end], 1.0) for end in range(len(losses) + 1)]
    assert sequence == sorted(sequence, reverse=True)
    assert sequence[0] == 1.0


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1, 0.9, 0.8, 0.7], 0.1),
        ([1, 1], 0.1),
        ([1, 1, 1], 0.05),
        ([1, 1, 1, 1, 1], 0.025),
        ([1, 1, 0.5, 1], 0.1),
        ([1, 0.99995, 0.9999], 0.05),
    ],
    ids=["falling", "one-wait", "two-waits", "four-waits", "new-best", "too-little"],
)
def test_plateau_counts_epochs_without_a_new_best(losses, expected):
    assert plateau_rate(losses, 0.1) == pytest.approx(expected)


def test_schedules_are_made_by_name():
    assert make_schedule("constant", 0.1, 10) is None
    assert make_schedule("cosine", 0.1, 10) == Cosine(0.1, 10)
    assert make_schedule("one-cycle", 0.1, 10) == OneCycle(0.1, 10)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: make_schedule("onecycle", 0.1, 10), UnknownNameError, "Did you mean 'one-cycle'"),
        (
            lambda: make_schedule("cosine", 0.0, 10),
            UsageError,
            r"^Expected a learning rate above 0, got 0.0.$",
        ),
        (lambda: OneCycle(0.1, 0), UsageError, r"^Expected a schedule of at least 1 step, got 0.$"),
        (
            lambda: OneCycle(0.1, 10, rising=1),
            UsageError,
            r"^Expected a rising share between 0 and 1, got 1.$",
        ),
        (lambda: Cosine(0.1, 10, 10), UsageError, r"^Expected warm-up of 0 to 9 steps, got 10.$"),
    ],
    ids=["name", "rate", "steps", "rising", "warm-up"],
)
def test_impossible_schedules_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
