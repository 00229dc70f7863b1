"""Which rows make which batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convscope.errors import UsageError
from convscope.training.data import BatchPlan, epoch_order, plan_batches

plans = st.builds(
    BatchPlan,
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    shuffle=st.sampled_from([True, False, "batch"]),
    seed=st.integers(0, 2**31),
)


@given(plan=plans, epoch=st.integers(0, 5))
def test_an_epoch_visits_each_row_once(plan, epoch):
    batches = [plan.rows_of(epoch, step) for step in range(plan.steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(plan.rows))
    assert [len(batch) for batch in batches[:-1]] == [plan.batch_size] * (plan.steps - 1)


@given(plan=plans, steps=st.integers(1, 12), first=st.integers(0, 3))
def test_epochs_of_a_given_length_share_a_pass_out_and_stop_at_its_end(plan, steps, first):
    cut = BatchPlan(plan.rows, plan.batch_size, plan.shuffle, plan.seed, steps, first)
    for beginning in (first, first + -(-plan.steps // steps)):  # of the first pass, and of the second
        whole = [plan.rows_of(beginning, step).tolist() for step in range(plan.steps)]
        epochs = range(beginning, beginning + -(-plan.steps // steps))
        pieces = [
            cut.rows_of(epoch, step).tolist() for epoch in epochs for step in range(cut.steps_of(epoch))
        ]
        assert pieces == whole
        assert [cut.offset_of(epoch) for epoch in epochs] == list(range(0, plan.steps, steps))


def test_ten_seeds_and_ten_epochs_give_a_hundred_orders():
    orders = {tuple(epoch_order(seed, epoch, 30).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_is_numpys_own():
    expected = np.random.default_rng([1338, 4]).permutation(100)
    assert np.array_equal(epoch_order(1338, 4, 100), expected)


def test_the_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 3


def test_shuffling_in_batches_keeps_each_batch_together():
    plan = BatchPlan(20, 6, "batch", 3)
    assert sorted(plan.rows_of(0, 1).tolist()) == list(range(6, 12))
    assert plan.rows_of(0, 1).tolist() != plan.rows_of(1, 1).tolist()


@pytest.mark.parametrize(
    ("batch_size", "steps", "expected"),
    [(None, None, 32), (None, 7, 15), (8, 7, 8), (8, None, 8)],
    ids=["default", "from-steps", "both", "given"],
)
def test_the_batch_size_is_found_as_in_keras(batch_size, steps, expected):
    assert plan_batches(100, batch_size, steps, True, 0).batch_size == expected


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps", "message"),
    [
        (0, 8, None, r"^Expected at least one example, got 0.$"),
        (5, 0, None, r"^Expected batch_size of at least 1, a whole number, got 0.$"),
        (5, 2.5, None, r"^Expected batch_size of at least 1, a whole number, got 2.5.$"),
        (5, True, None, r"^Expected batch_size of at least 1, a whole number, got True.$"),
        (5, 8, -1, r"^Expected steps_per_epoch of at least 1, a whole number, got -1.$"),
    ],
    ids=["no-rows", "zero", "fraction", "bool", "negative-steps"],
)
def test_impossible_batches_are_refused(rows, batch_size, steps, message):
    with pytest.raises(UsageError, match=message):
        plan_batches(rows, batch_size, steps, True, 0)
