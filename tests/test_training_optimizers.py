"""Optimizer steps held against Keras's own, on the same gradients."""

import keras
import numpy as np
import pytest
import torch

from convscope.errors import UsageError
from convscope.lowering.kernels import bfloat16_copy
from convscope.training.optimizers import KerasStep, RuleStep, has_rule, plan_step
from convscope.training.schedules import Rate

SHAPES = {"kernel": (3, 3, 2, 4), "bias": (4,), "dense_kernel": (20, 5)}

optimizers = keras.optimizers
CASES = {
    "sgd": lambda: optimizers.SGD(0.1),
    "sgd-momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "sgd-nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optimizers.Adam(0.01),
    "adam-betas": lambda: optimizers.Adam(0.01, beta_1=0.7, beta_2=0.95, epsilon=1e-3),
    "adam-amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "adamw-amsgrad": lambda: optimizers.AdamW(0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda: optimizers.RMSprop(0.01),
    "rmsprop-momentum": lambda: optimizers.RMSprop(0.01, momentum=0.9),
    "rmsprop-centered": lambda: optimizers.RMSprop(0.01, centered=True),
    "rmsprop-centered-momentum": lambda: optimizers.RMSprop(0.01, rho=0.8, momentum=0.5, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "nadam": lambda: optimizers.Nadam(0.01),
    "lion": lambda: optimizers.Lion(0.01),
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.5),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.3),
    "global-clipnorm": lambda: optimizers.Adam(0.01, global_clipnorm=0.5, epsilon=0.1),
    "weight-decay": lambda: optimizers.RMSprop(0.01, weight_decay=0.05),
    "ema": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8),
    "ema-overwrite": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "accumulation-ema": lambda: optimizers.Adam(
        0.01, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2
    ),
    "accumulation-clip-decay": lambda: optimizers.AdamW(
        0.01, gradient_accumulation_steps=2, weight_decay=0.1, clipnorm=0.3
    ),
    "exponential-decay": lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.01, 5, 0.5)),
    "piecewise": lambda: optimizers.SGD(
        optimizers.schedules.PiecewiseConstantDecay([3, 7], [0.1, 0.05, 0.01])
    ),
    "cosine-warmup": lambda: optimizers.SGD(
        optimizers.schedules.CosineDecay(0.0, 15, warmup_target=0.1, warmup_steps=5)
    ),
    "callable-rate": lambda: optimizers.SGD(lambda: 0.05),
}


def make_variables(constraint=None):
    generator = np.random.default_rng(0)
    variables = [
        keras.Variable(generator.standard_normal(shape).astype(np.float32), name=name)
        for name, shape in SHAPES.items()
    ]
    variables[0].constraint = constraint
    return variables


def gradients(step):
    generator = np.random.default_rng([1, step])
    scale = 10.0 ** generator.uniform(-2, 0.5)
    return [
        torch.from_numpy((scale * generator.standard_normal(s)).astype(np.float32)) for s in SHAPES.values()
    ]


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def run_keras(optimizer, variables, steps):
    optimizer.build(variables)
    for step in range(steps):
        optimizer.apply(gradients(step), variables)


def run_ours(optimizer, variables, steps, kind=RuleStep):
    optimizer.build(variables)
    update = kind(optimizer, variables, [variable.value.detach() for variable in variables])
    go_on(update, range(steps))
    return update


def do_step(update):
    update.update(update.numbers(), update.step)
    update.advance()


def go_on(update, steps):
    for step in steps:
        for weight, gradient in zip(update._weights, gradients(step), strict=True):
            weight.grad = gradient
        do_step(update)


def assert_close(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-3)


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_steps_equal_keras(make, steps):
    theirs, ours = make_variables(), make_variables()
    their_optimizer, our_optimizer = make(), make()
    assert has_rule(our_optimizer)
    run_keras(their_optimizer, theirs, steps)
    run_ours(our_optimizer, ours, steps)
    assert_close(values(ours), values(theirs), 1e-5)
    assert_close(values(our_optimizer.variables), values(their_optimizer.variables), 1e-5)


NARROW = ["adam", "adam-amsgrad", "adamw", "global-clipnorm", "accumulation-clip-decay", "ema"]


@pytest.mark.parametrize("make", [CASES[name] for name in NARROW], ids=NARROW)
def test_a_bfloat16_gradient_counts_as_its_float32_value(make):
    results = []
    for wide in (False, True):
        variables, optimizer = make_variables(), make()
        optimizer.build(variables)
        update = RuleStep(optimizer, variables, [variable.value.detach() for variable in variables])
        for step in range(4):
            for weight, gradient in zip(update._weights, gradients(step), strict=True):
                narrow = gradient.bfloat16()
                weight.grad = narrow.float() if wide else narrow
            do_step(update)
        results.append(values(variables))
    assert all(map(np.array_equal, *results))


@pytest.mark.parametrize("size", [np.nan, 1e25, -np.inf])
def test_what_is_no_number_is_not_hidden(size):
    theirs, ours = make_variables(), make_variables()
    their_optimizer, our_optimizer = optimizers.Adam(0.01), optimizers.Adam(0.01)
    their_optimizer.build(theirs)
    our_optimizer.build(ours)
    update = RuleStep(our_optimizer, ours, [variable.value.detach() for variable in ours])
    for _ in range(3):
        bad = [torch.full(shape, size) for shape in SHAPES.values()]
        their_optimizer.apply(bad, theirs)
        for weight, gradient in zip(update._weights, bad, strict=True):
            weight.grad = gradient.clone()
        do_step(update)
    for found, expected in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_weight_in_another_order_of_memory_is_updated_where_it_belongs():
    theirs, ours = (
        [keras.Variable(torch.arange(120.0).view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))]
        for _ in range(2)
    )
    gradient = torch.arange(120.0).view(2, 3, 4, 5) - 60
    their_optimizer, our_optimizer = optimizers.Adam(0.1), optimizers.Adam(0.1)
    their_optimizer.build(theirs)
    our_optimizer.build(ours)
    their_optimizer.apply([gradient], theirs)
    update = RuleStep(our_optimizer, ours, [ours[0].value.detach()])
    update._weights[0].grad = gradient
    do_step(update)
    assert_close(values(ours), values(theirs), 1e-6)


def test_other_rules_get_float32_gradients():
    variables, optimizer = make_variables(), optimizers.SGD(0.1)
    optimizer.build(variables)
    weights = [variable.value.detach().requires_grad_() for variable in variables]
    RuleStep(optimizer, variables, weights)
    assert all(weight.grad_dtype is torch.float32 for weight in weights)


def test_adam_writes_the_bfloat16_copies_of_its_weights():
    variables, optimizer = make_variables(), optimizers.Adam(0.01)
    optimizer.build(variables)
    update = RuleStep(optimizer, variables, [variable.value.detach() for variable in variables])
    copies = [bfloat16_copy(weight) for weight in update._weights]
    go_on(update, range(2))
    for copy, weight in zip(copies, update._weights, strict=True):
        assert torch.equal(copy, weight.bfloat16())
        copy.zero_()
        assert bfloat16_copy(weight).count_nonzero() == 0, "it was made again"


@pytest.mark.parametrize(
    "make",
    [lambda: optimizers.Adam(0.01), lambda: optimizers.SGD(0.1, momentum=0.8)],
    ids=["adam", "momentum"],
)
def test_moments_of_vanished_gradients_never_become_denormal(make):
    """Denormal numbers make each step several times slower, and move no weight."""
    theirs, ours = make_variables(), make_variables()
    their_optimizer, our_optimizer = make(), make()
    run_keras(their_optimizer, theirs, 2)
    update = run_ours(our_optimizer, ours, 2)
    nothing = [torch.zeros(shape) for shape in SHAPES.values()]
    for _ in range(830):
        their_optimizer.apply(nothing, theirs)
        for weight, gradient in zip(update._weights, nothing, strict=True):
            weight.grad = gradient
        do_step(update)
    assert count_denormals(their_optimizer) > 0
    assert count_denormals(our_optimizer) == 0
    assert_close(values(ours), values(theirs), 1e-5)


def count_denormals(optimizer):
    smallest = np.finfo(np.float32).smallest_normal
    return sum(int(((np.abs(v) > 0) & (np.abs(v) < smallest)).sum()) for v in values(optimizer.variables))


def test_constraint_applies_after_each_update():
    theirs, ours = (make_variables(keras.constraints.MaxNorm(0.7, axis=[0, 1, 2])) for _ in range(2))
    run_keras(optimizers.SGD(0.1), theirs, 5)
    run_ours(optimizers.SGD(0.1), ours, 5)
    assert_close(values(ours), values(theirs), 1e-5)
    assert np.linalg.norm(values(ours)[0], axis=(0, 1)).max() < 2


def test_excluded_weights_do_not_decay():
    theirs, ours = make_variables(), make_variables()
    for variables, run in ((theirs, run_keras), (ours, run_ours)):
        optimizer = optimizers.AdamW(0.01, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_list=[variables[2]], var_names=["bias"])
        run(optimizer, variables, 5)
    assert_close(values(ours), values(theirs), 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.Ftrl(0.1),
        lambda: optimizers.Adamax(0.01),
        lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1)),
    ],
    ids=["ftrl", "adamax", "loss-scale"],
)
def test_other_optimizers_run_through_keras(make):
    theirs, ours = make_variables(), make_variables()
    assert not has_rule(make())
    run_keras(make(), theirs, 3)
    optimizer = make()
    update = run_ours(optimizer, ours, 3, kind=KerasStep)
    assert_close(values(ours), values(theirs), 1e-6)
    assert isinstance(plan_step(optimizer, ours, [v.value.detach() for v in ours]), KerasStep)
    assert float(update.scale(torch.tensor(1.0))) == float(optimizer.scale_loss(torch.tensor(1.0)))


def test_subclass_of_adam_runs_through_keras():
    class Halved(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    assert not has_rule(Halved())


def test_training_goes_on_from_the_optimizers_own_variables():
    once, twice = make_variables(), make_variables()
    run_ours(optimizers.Adam(0.01), once, 6)
    optimizer = optimizers.Adam(0.01)
    run_ours(optimizer, twice, 3)
    go_on(RuleStep(optimizer, twice, [variable.value.detach() for variable in twice]), range(3, 6))
    assert all(np.array_equal(a, b) for a, b in zip(values(once), values(twice), strict=True))
    assert int(optimizer.iterations.value) == 6


def test_a_weight_without_gradient_stays():
    variables = make_variables()
    before = values(variables)
    optimizer = optimizers.Adam(0.01)
    optimizer.build(variables)
    weights = [variable.value.detach() for variable in variables]
    update = RuleStep(optimizer, variables, weights)
    weights[1].grad = gradients(0)[1]
    do_step(update)
    after = values(variables)
    assert np.array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


def test_every_update_counts_as_a_change_of_the_weights():
    variables = make_variables()
    optimizer = optimizers.Adam(0.01)
    before = [variable.value._version for variable in variables]
    run_ours(optimizer, variables, 1)
    assert all(v.value._version > old for v, old in zip(variables, before, strict=True))


def test_a_new_learning_rate_is_read_on_refresh():
    theirs, ours = make_variables(), make_variables()
    their_optimizer, our_optimizer = optimizers.SGD(0.1), optimizers.SGD(0.1)
    run_keras(their_optimizer, theirs, 1)
    their_optimizer.learning_rate = 0.5
    run_keras(their_optimizer, theirs, 1)
    update = run_ours(our_optimizer, ours, 1)
    our_optimizer.learning_rate = 0.5
    update.refresh()
    go_on(update, [0])
    assert_close(values(ours), values(theirs), 1e-6)


@pytest.mark.parametrize("kind", [RuleStep, KerasStep])
def test_a_rate_sets_learning_rate_and_momentum(kind):
    variables = make_variables()
    optimizer = optimizers.Adam(0.01)
    update = run_ours(optimizer, variables, 1, kind)
    update.set_rate(Rate(0.25, 0.7))
    assert float(optimizer.learning_rate.value) == 0.25
    assert optimizer.beta_1 == 0.7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)),
            "Expected a number as the optimizer's learning rate beside schedule, got ExponentialDecay.",
        ),
        (
            lambda: optimizers.SGD(0.1, name="plain"),
            "Expected an optimizer with momentum beside this schedule, got plain.",
        ),
    ],
    ids=["schedule", "no-momentum"],
)
def test_a_rate_that_the_optimizer_cannot_follow_is_refused(make, message):
    update = run_ours(make(), make_variables(), 1)
    with pytest.raises(UsageError, match="^" + message):
        update.set_rate(Rate(0.1, 0.9))


def test_an_unknown_variable_is_refused_as_in_keras():
    optimizer = optimizers.SGD(0.1)
    optimizer.build(make_variables())
    strangers = make_variables()
    with pytest.raises(ValueError, match="Unknown variable"):
        RuleStep(optimizer, strangers, [v.value.detach() for v in strangers])
