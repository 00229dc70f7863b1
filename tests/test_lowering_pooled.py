"""Convolutions with max-pooling behind them: Winograd forward; back by the gradients that get through."""

import dataclasses

import keras
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses
from lowering_cases import image_batch, keras_pass, lowered_pass, optimised, small
from test_lowering_kernels import compare, finished, random

from convscope.errors import UsageError
from convscope.lowering import emit, lower, planner
from convscope.lowering.convolutions import PooledConvolution
from convscope.lowering.cpu import compiled
from convscope.lowering.kernels import Epilogue, apply
from convscope.lowering.masks import Mask
from convscope.lowering.planner import PlanContext, adapt_plan, apply_plan, plan_of

L = keras.layers


@pytest.fixture(params=[Epilogue(), Epilogue(relu=True)], ids=["plain", "relu"])
def epilogue(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["oneDNN", "Winograd"])
def winograd(request):
    return request.param


def pooled(images, kernel, bias=None):
    convolved = F.conv2d(images.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), bias)
    return F.max_pool2d(convolved, 2).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("size", "kernel_size", "channels", "filters"),
    [
        ((8, 8), (3, 3), 32, 64),
        ((9, 12), (3, 3), 16, 5),  # an odd row of results is ignored
        ((4, 4), (3, 3), 48, 16),  # one tile
        ((31, 6), (2, 5), 16, 7),  # columns · channels is no multiple of three vectors
        ((7, 40), (1, 1), 80, 3),
        ((30, 30), (3, 3), 64, 40),  # rows of tiles in several blocks
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_values_and_gradients_are_those_of_float64(size, kernel_size, channels, filters, count, epilogue):
    images, kernel = random(count, *size, channels), random(*kernel_size, channels, filters, seed=1)
    bias = random(filters, seed=2)
    result = apply(PooledConvolution, images, kernel, bias, epilogue, False)
    compare(
        result, [images, kernel, bias], lambda x, k, b: finished(pooled(x, k, b), epilogue), torch.float32
    )


def test_more_images_than_parts():
    images, kernel = random(70, 6, 6, 16), random(3, 3, 16, 4, seed=1)
    compare(
        apply(PooledConvolution, images, kernel, None, Epilogue(), False),
        [images, kernel],
        pooled,
        torch.float32,
    )


def test_a_dropout_that_scales(winograd):
    images, kernel = random(2, 8, 6, 16), random(3, 3, 16, 16, seed=1)
    keep = (torch.arange(2 * 3 * 2 * 16) % 4 > 0).to(torch.int32)
    epilogue = Epilogue(relu=True, keep=lambda *_: Mask(keep, 1, (2, 3, 2, 16)), scale=2.0)

    def reference(x, k):
        return torch.relu(pooled(x, k)) * keep.view(2, 3, 2, 16) * 2.0

    compare(
        apply(PooledConvolution, images, kernel, None, epilogue, winograd),
        [images, kernel],
        reference,
        torch.float32,
    )


def test_frozen_weights_and_first_images_cost_no_gradient(monkeypatch):
    images, kernel, bias = random(2, 6, 6, 16), random(3, 3, 16, 4, seed=1), random(4, seed=2)
    apply(PooledConvolution, images, kernel.detach(), None, Epilogue(), False).sum().backward()
    assert images.grad is not None
    monkeypatch.setattr(compiled, "_pooled_image_gradient", lambda *_: pytest.fail("nobody wants it"))
    apply(PooledConvolution, images.detach(), kernel.detach(), bias, Epilogue(), False).sum().backward()
    assert kernel.grad is None
    assert bias.grad.tolist() == [8.0] * 4


def test_no_images_give_no_gradient(winograd):
    images, kernel, bias = torch.zeros(0, 6, 6, 16), random(3, 3, 16, 16), random(16)
    apply(PooledConvolution, images, kernel, bias, Epilogue(), winograd).sum().backward()
    assert kernel.grad.count_nonzero() == bias.grad.count_nonzero() == 0


@pytest.mark.parametrize(
    ("size", "channels", "filters"),
    [((4, 4), 16, 16), ((5, 9), 48, 32), ((12, 17), 32, 16), ((28, 30), 16, 64)],  # up to eight pieces
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_winograd_gives_the_values_and_gradients_of_float64(size, channels, filters, count, epilogue):
    images, kernel = random(count, *size, channels), random(3, 3, channels, filters, seed=1)
    bias = random(filters, seed=2)
    result = apply(PooledConvolution, images, kernel, bias, epilogue, True)
    compare(
        result, [images, kernel, bias], lambda x, k, b: finished(pooled(x, k, b), epilogue), torch.float32
    )


def test_winograd_rounds_as_oneDNN_does():  # noqa: N802  its name
    images, kernel = random(4, 20, 20, 64).detach(), random(3, 3, 64, 32, seed=1).detach()
    truth = pooled(images.double(), kernel.double())
    errors = []
    for winograd in (False, True):
        found = apply(PooledConvolution, images, kernel, None, Epilogue(), winograd)
        errors.append(float((found - truth).norm() / truth.norm()))
    assert errors[1] < 3 * errors[0]
    assert errors[1] < 1e-6


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (5, 5)], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_pixel_that_is_not_a_number_stays_visible(bad, place, epilogue, winograd):
    images, kernel = random(1, 6, 6, 16).detach(), random(3, 3, 16, 16, seed=1).detach()
    images[(0, *place, 3)] = bad
    result = apply(PooledConvolution, images, kernel, None, epilogue, winograd)
    above, left = (min(1, max(0, index - 1) // 2) for index in place)
    assert not result[0, above, left].isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_a_number_stays_visible(bad, epilogue):
    images, kernel = random(1, 6, 6, 16), random(3, 3, 16, 4, seed=1)
    result = apply(PooledConvolution, images, kernel, None, epilogue, False)
    gradient = torch.zeros_like(result)
    gradient[0, 1, 0] = bad
    result.backward(gradient)
    assert not images.grad.isfinite().all()
    assert not kernel.grad.isfinite().all()


def test_second_derivatives_are_refused():
    images, kernel = random(1, 6, 6, 16), random(3, 3, 16, 4, seed=1)
    total = apply(PooledConvolution, images, kernel, None, Epilogue(), False).square().sum()
    with pytest.raises(NotImplementedError, match=r"^A lowered network has first derivatives only"):
        torch.autograd.grad(total, kernel, create_graph=True)


# In a program


PLAIN = [lambda: L.Conv2D(8, 3, activation="relu"), lambda: L.MaxPooling2D(2), lambda: L.Dropout(0.25)]
SAME = [lambda: L.Conv2D(8, (3, 2), padding="same"), L.LeakyReLU, lambda: L.MaxPooling2D(2)]
FROZEN = [
    lambda: L.Conv2D(8, 3), lambda: L.BatchNormalization(trainable=False), lambda: L.MaxPooling2D(2),
]  # fmt: skip

WINOGRAD = [lambda: L.Conv2D(16, 3, padding="same", activation="relu"), lambda: L.MaxPooling2D(2)]
NAMES = ["valid, dropout", "same", "frozen batch norm", "Winograd"]


@pytest.mark.parametrize("layers", [PLAIN, SAME, FROZEN, WINOGRAD], ids=NAMES)
def test_a_pooling_is_computed_with_its_convolution(layers):
    model = small(*(layer() for layer in layers))
    program = optimised(model)
    assert [op.kind for op in program] == ["Conv2D", "Flatten", "Dense"]
    assert program.ops[0].choice.algorithm == ("winograd" if layers is WINOGRAD else "pooled")
    if layers is not PLAIN:  # dropout draws other numbers in Keras
        images = [image_batch((3, 9, 8, 16))]
        found, expected = lowered_pass(model, images, True, "float32"), keras_pass(model, images, True)
        for path, gradient in expected.weight_gradients.items():
            if gradient is not None:
                torch.testing.assert_close(
                    torch.tensor(found.weight_gradients[path]), torch.tensor(gradient), rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize(
    "layers",
    [
        [L.Conv2D(8, 3, strides=2), L.MaxPooling2D(2)],
        [L.Conv2D(8, 3, dilation_rate=2), L.MaxPooling2D(2)],
        [L.Conv2D(8, 3, groups=2), L.MaxPooling2D(2)],
        [L.DepthwiseConv2D(3), L.MaxPooling2D(2)],
        [L.Conv2D(8, 3, activation="gelu"), L.MaxPooling2D(2)],
        [L.Conv2D(8, 3), L.MaxPooling2D(3, strides=2)],
        [L.Conv2D(8, 3), L.MaxPooling2D(2, padding="same")],
        [L.Conv2D(8, 3), L.AveragePooling2D(2)],
        [L.Conv2D(8, 3), L.BatchNormalization(), L.MaxPooling2D(2)],
    ],
    ids=lambda layers: " ".join(type(layer).__name__ for layer in layers),
)
def test_other_poolings_and_convolutions_stay_apart(layers):
    assert any(op.kind == "Pool2D" for op in optimised(small(*layers)))


def test_few_channels_prediction_and_other_devices_stay_apart():
    apart = [
        optimised(small(L.Conv2D(8, 3), L.MaxPooling2D(2), channels=20)),
        optimised(small(L.Conv2D(8, 3), L.MaxPooling2D(2)), training=False),
        optimised(small(L.Conv2D(8, 3), L.MaxPooling2D(2)), device="cuda"),
    ]
    assert all([op.kind for op in program] == ["Conv2D", "Pool2D", "Flatten", "Dense"] for program in apart)


def test_a_convolution_that_others_read_stays_apart():
    image = keras.Input((9, 8, 16))
    convolved = L.Conv2D(8, 3)(image)
    heads = [L.MaxPooling2D(2)(convolved), L.GlobalAveragePooling2D()(convolved)]
    assert any(op.kind == "Pool2D" for op in optimised(keras.Model(image, heads)))


def test_all_algorithms_give_the_same_network():
    model = small(L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(2), L.Dropout(0.25))
    program = optimised(model)
    x = torch.tensor(image_batch((3, 9, 8, 16)), dtype=torch.float32)
    found = []
    for algorithm in ("direct", "pooled", "winograd"):
        plan = plan_of(program)
        first = next(iter(plan))
        network = emit(program, model, {**plan, first: {**plan[first], "algorithm": algorithm}})
        network.begin_step(1, 2)
        network(x, training=True).sum().backward()
        gradients = [weight.grad.clone() for weight in network.weights.values()]
        with torch.no_grad():
            found.append([network(x), *gradients])
        network.refresh()
        for weight in network.weights.values():
            weight.grad = None
    for other in found[1:]:
        for direct, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(direct, same, rtol=1e-5, atol=1e-4)


def test_prediction_is_winograds_too_and_follows_the_weights():
    model = small(*(layer() for layer in WINOGRAD), L.Dropout(0.25))
    program = optimised(model, training=False)
    assert program.ops[0].choice.algorithm == "winograd"
    network, plain = emit(program, model), emit(lower(model), model)
    x = torch.tensor(image_batch((3, 9, 8, 16)), dtype=torch.float32)
    with torch.no_grad():
        for factor in (1.0, 2.0):
            network.weights[program.ops[0].kernel].mul_(factor)
            torch.testing.assert_close(network(x), plain(x), rtol=1e-5, atol=1e-5)


def test_it_is_measured_beside_torchs_own_and_the_rule_keeps_it():
    op = optimised(small(*(layer() for layer in PLAIN))).ops[0]
    context = PlanContext(True, False, "float32", 8, "cpu")
    assert {choice.algorithm for choice in planner._candidates(op, context)} == {"direct", "pooled"}
    bench = planner._Bench(op, (None, 9, 8, 16), context, wants_gradient=True)
    assert len(bench.seconds(planner._candidates(op, context))) == 2
    bfloat16 = dataclasses.replace(context, precision="bfloat16")
    assert {choice.algorithm for choice in planner._candidates(op, bfloat16)} == {"direct"}


def test_a_plan_with_it_is_refused_where_nothing_is_pooled_and_translated_where_nothing_compiles(monkeypatch):
    program = optimised(small(*(layer() for layer in PLAIN)))
    plan = plan_of(program)
    monkeypatch.setattr(compiled, "available", lambda: False)
    adapted, (line,) = adapt_plan(plan, training=True)
    assert {choice["algorithm"] for choice in adapted.values()} == {"direct"}
    assert "compiled loops" in line
    apart = lower(small(L.Conv2D(8, 3)))
    wrong = {name: {**choice, "algorithm": "pooled"} for name, choice in plan_of(apart).items()}
    with pytest.raises(UsageError, match=r"^Expected algorithm 'direct' .* got 'pooled'"):
        apply_plan(apart, wrong)
