"""Convolutions of three by three as Winograd computes them, forward and back, in compiled loops."""

import dataclasses

import keras
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses
from lowering_cases import image_batch, optimised, small
from test_lowering_kernels import compare, finished, random

from convscope.errors import UsageError
from convscope.lowering import emit, lower, planner
from convscope.lowering.convolutions import WinogradConvolution
from convscope.lowering.cpu import compiled
from convscope.lowering.kernels import Epilogue, apply
from convscope.lowering.planner import PlanContext, adapt_plan, apply_plan, plan_of

L = keras.layers


@pytest.fixture(params=[Epilogue(), Epilogue(relu=True), Epilogue(relu=True, ceiling=2.0)], ids=str)
def epilogue(request):
    return request.param


def convolved(images, kernel, bias=None, padding=(1, 1)):
    image, weights = images.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
    return F.conv2d(image, weights, bias, padding=padding).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("size", "channels", "filters", "padding"),
    [
        ((8, 8), 16, 16, (1, 1)),
        ((3, 3), 16, 32, (0, 0)),  # a single result
        ((1, 2), 16, 16, (1, 1)),  # smaller than the kernel
        ((7, 10), 32, 16, (1, 0)),  # tiles that end beyond the results
        ((21, 18), 48, 32, (0, 1)),  # several pieces
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_values_and_gradients_are_those_of_float64(size, channels, filters, padding, count, epilogue):
    images, kernel = random(count, *size, channels), random(3, 3, channels, filters, seed=1)
    bias = random(filters, seed=2)
    result = apply(WinogradConvolution, images, kernel, bias, padding, epilogue)

    def reference(x, k, b):
        found = finished(convolved(x, k, b, padding), epilogue)
        return found if epilogue.ceiling is None else found.clamp_max(epilogue.ceiling)

    compare(result, [images, kernel, bias], reference, torch.float32)


@pytest.mark.parametrize(("channels", "filters"), [(16, 16), (64, 64), (128, 96)])
def test_rounding_stays_within_what_is_documented(channels, filters):
    images, kernel = random(4, 16, 16, channels), random(3, 3, channels, filters, seed=1)
    gradient = random(4, 16, 16, filters, seed=2).detach()
    wide = [tensor.detach().double().requires_grad_() for tensor in (images, kernel)]
    found, expected = (
        apply(WinogradConvolution, images, kernel, None, (1, 1), Epilogue()), convolved(*wide)
    )  # fmt: skip
    found.backward(gradient)
    expected.backward(gradient.double())
    pairs = (found, expected), (images.grad, wide[0].grad), (kernel.grad, wide[1].grad)
    for one, truth in pairs:
        assert float((one - truth).detach().abs().max()) < 3e-6 * float(truth.detach().abs().max())


def test_frozen_weights_and_first_images_cost_no_gradient(monkeypatch):
    images, kernel, bias = random(2, 6, 6, 16), random(3, 3, 16, 16, seed=1), random(16, seed=2)
    apply(WinogradConvolution, images.detach(), kernel.detach(), bias, (1, 1), Epilogue()).sum().backward()
    assert images.grad is kernel.grad is None
    assert bias.grad.tolist() == [72.0] * 16
    monkeypatch.setattr(compiled, "winograd_kernel_gradient", lambda *_: pytest.fail("nobody wants it"))
    apply(WinogradConvolution, images, kernel.detach(), None, (1, 1), Epilogue()).sum().backward()
    assert images.grad is not None


def test_no_images_give_no_gradient(epilogue):
    images, kernel, bias = torch.zeros(0, 6, 6, 16), random(3, 3, 16, 16), random(16)
    apply(WinogradConvolution, images, kernel, bias, (1, 1), epilogue).sum().backward()
    assert kernel.grad.count_nonzero() == bias.grad.count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(bad, epilogue):
    images, kernel = random(1, 6, 6, 16), random(3, 3, 16, 16, seed=1)
    with torch.no_grad():
        images[0, 5, 0, 3] = bad
    result = apply(WinogradConvolution, images, kernel, None, (1, 1), epilogue)
    assert result[0, 4:, :2].isnan().any()
    result.sum().backward()
    assert not kernel.grad.isfinite().all()


def test_second_derivatives_are_refused():
    images, kernel = random(1, 6, 6, 16), random(3, 3, 16, 16, seed=1)
    total = apply(WinogradConvolution, images, kernel, None, (1, 1), Epilogue()).square().sum()
    with pytest.raises(NotImplementedError, match=r"^A lowered network has first derivatives only"):
        torch.autograd.grad(total, kernel, create_graph=True)


# In a program


def planned(program, algorithm):
    first, *others = (op.name for op in program if op.kind in ("Conv2D", "Dense"))
    plan = plan_of(program)
    return {first: {**plan[first], "algorithm": algorithm}, **{name: plan[name] for name in others}}


SUITABLE = {
    "valid": lambda: [L.Conv2D(16, 3, activation="relu")],
    "same, dropout": lambda: [L.Conv2D(32, 3, padding="same", activation="relu"), L.Dropout(0.25)],
    "ReLU6": lambda: [L.Conv2D(16, 3, activation="relu6", use_bias=False)],
    "leaky": lambda: [L.Conv2D(16, 3), L.LeakyReLU()],
    "frozen batch norm": lambda: [L.Conv2D(16, 3), L.BatchNormalization(trainable=False)],
}


@pytest.mark.parametrize("name", SUITABLE)
def test_both_algorithms_give_the_same_network(name):
    model = small(*SUITABLE[name]())
    program = optimised(model)
    x = torch.tensor(image_batch((3, 9, 8, 16)), dtype=torch.float32)
    found = []
    for algorithm in ("direct", "winograd"):
        network = emit(program, model, planned(program, algorithm))
        network.begin_step(1, 2)
        network(x, training=True).sum().backward()
        gradients = [weight.grad.clone() for weight in network.weights.values() if weight.requires_grad]
        with torch.no_grad():
            found.append([network(x), *gradients])
        for weight in network.weights.values():
            weight.grad = None
    for direct, same in zip(*found, strict=True):
        torch.testing.assert_close(direct, same, rtol=1e-4, atol=1e-4)


def test_prediction_follows_the_weights():
    model = small(L.Conv2D(16, 3, padding="same", activation="relu"))
    program = optimised(model, training=False)
    network, plain = emit(program, model, planned(program, "winograd")), emit(lower(model), model)
    x = torch.tensor(image_batch((3, 9, 8, 16)), dtype=torch.float32)
    with torch.no_grad():
        for factor in (1.0, 2.0):
            network.weights[program.ops[0].kernel].mul_(factor)
            torch.testing.assert_close(network(x), plain(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (lambda: L.Conv2D(16, 3, strides=2), 16),
        (lambda: L.Conv2D(16, 3, dilation_rate=2), 16),
        (lambda: L.Conv2D(32, 3, groups=2), 32),
        (lambda: L.Conv2D(16, 5), 16),
        (lambda: L.Conv2D(20, 3), 16),
        (lambda: L.Conv2D(16, 3), 20),
        (lambda: L.Conv2D(144, 3), 128),
        (lambda: L.DepthwiseConv2D(3), 16),
    ],
)
def test_others_have_no_such_candidate(layer, channels):
    context = PlanContext(True, False, "float32", 8, "cpu")
    program = optimised(small(layer(), channels=channels))
    assert {choice.algorithm for choice in planner._candidates(program.ops[0], context)} == {"direct"}
    with pytest.raises(UsageError, match=r"^Expected algorithm 'direct' .* got 'winograd'"):
        apply_plan(program, planned(program, "winograd"))


def test_it_is_measured_beside_torchs_own(monkeypatch):
    op = optimised(small(L.Conv2D(16, 3))).ops[0]
    context = PlanContext(True, False, "float32", 8, "cpu")
    candidates = planner._candidates(op, context)
    assert [choice.algorithm for choice in candidates] == ["winograd", "direct"]
    assert len(planner._Bench(op, (None, 9, 8, 16), context, wants_gradient=True).seconds(candidates)) == 2
    bfloat16 = dataclasses.replace(context, precision="bfloat16")
    assert {choice.algorithm for choice in planner._candidates(op, bfloat16)} == {"direct"}
    monkeypatch.setattr(compiled, "available", lambda: False)
    assert [choice.algorithm for choice in planner._candidates(op, context)] == ["direct"]


def test_a_plan_with_it_is_translated_where_nothing_compiles(monkeypatch):
    plan = planned(optimised(small(L.Conv2D(16, 3))), "winograd")
    monkeypatch.setattr(compiled, "available", lambda: False)
    adapted, (line,) = adapt_plan(plan, training=True)
    assert {choice["algorithm"] for choice in adapted.values()} == {"direct"}
    assert "compiled loops" in line
