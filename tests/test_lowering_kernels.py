"""Each fused kernel against torch's plain operations in float64."""

import platform

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses
from lowering_cases import require_precision_here

from convscope.lowering import cpu
from convscope.lowering.convolutions import Convolution, FewChannelConvolution, Geometry, Order
from convscope.lowering.cpu import compiled
from convscope.lowering.kernels import (
    Drop,
    Epilogue,
    FusedNormalization,
    MatrixProduct,
    RowNormalization,
    Smooth,
    TileMaxPool,
    apply,
    batch_statistics,
    normalize,
)
from convscope.lowering.masks import Mask, bits_type

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[Epilogue(), Epilogue(relu=True)], ids=["plain", "relu"])
def epilogue(request):
    return request.param


def random(*shape, dtype=torch.float32, seed=0):
    """Numbers that bfloat16 can hold."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(dtype)
    return numbers.requires_grad_()


def close(found, expected, dtype):
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    assert (found - expected).norm() <= TOLERANCE[dtype] * expected.norm() + 1e-6


def compare(result, arguments, reference, dtype):
    """Compare values and all gradients with those of a function in float64."""
    wide = [None if a is None else a.detach().double().requires_grad_() for a in arguments]
    expected = reference(*wide)
    close(result, expected, dtype)
    gradient = random(*expected.shape, dtype=torch.float32, seed=9).detach()
    result.backward(gradient.to(result.dtype))
    expected.backward(gradient.double())
    for argument, truth in zip(arguments, wide, strict=True):
        if argument is not None:
            assert argument.grad.dtype is argument.dtype
            close(argument.grad, truth.grad, dtype)


def finished(result, epilogue):
    return torch.relu(result) if epilogue.relu else result


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_convolution(dtype, epilogue, groups, biased):
    require_precision_here(str(dtype).removeprefix("torch."))
    images = random(3, 9, 8, 4, dtype=dtype)
    kernel, bias = random(3, 2, 4 // groups, 6, seed=1), random(6, seed=2) if biased else None
    geometry = Geometry((2, 1), (1, 0), (1, 2), groups)
    result = apply(Convolution, images, kernel, bias, geometry, Order(), epilogue)

    def reference(x, k, b):
        found = F.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), b, (2, 1), (1, 0), (1, 2), groups)
        return finished(found, epilogue).permute(0, 2, 3, 1)

    compare(result, [images, kernel, bias], reference, dtype)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 3)], ids=str)
@pytest.mark.parametrize(("channels", "filters"), [(1, 16), (2, 32), (3, 16)])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_few_channel_convolution(dtype, epilogue, strides, channels, filters, biased):
    image = random(3, 9, 8, channels)
    kernel, bias = random(3, 2, channels, filters, seed=1), random(filters, seed=2) if biased else None
    geometry = Geometry(strides, dilation=(1, 2))
    result = apply(FewChannelConvolution, image, kernel, bias, geometry, epilogue, dtype)
    assert result.dtype is dtype

    def reference(x, k, b):
        found = F.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), b, strides, dilation=(1, 2))
        return finished(found, epilogue).permute(0, 2, 3, 1)

    compare(result, [image, kernel, bias], reference, dtype)


@pytest.mark.parametrize("scale", [None, 2.0])
def test_a_first_convolution_needs_no_gradient_of_its_images(dtype, epilogue, scale):
    if scale and epilogue.relu:
        keep = (torch.arange(3 * 7 * 7 * 16) % 4 > 0).to(bits_type(dtype))
        epilogue = Epilogue(relu=True, keep=lambda *_: Mask(keep, 1, (3, 7, 7, 16)), scale=scale)
    image = random(3, 9, 8, 1).detach()
    kernel, bias = random(3, 2, 1, 16, seed=1), random(16, seed=2)
    result = apply(FewChannelConvolution, image, kernel, bias, Geometry(), epilogue, dtype)

    def reference(k, b):
        found = F.conv2d(image.double().permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), b).permute(0, 2, 3, 1)
        found = torch.relu(found) if epilogue.relu else found
        return found if epilogue.keep is None else found * keep.view(3, 7, 7, 16) * scale

    compare(result, [kernel, bias], reference, dtype)


@pytest.mark.parametrize("size", [(3, 2), (3, 3), (4, 8), (17, 5)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 70])
def test_few_channel_convolution_of_any_size(dtype, size, count):
    image, kernel = random(count, *size, 1), random(3, 2, 1, 16, seed=1)
    result = apply(FewChannelConvolution, image, kernel, None, Geometry(), Epilogue(), dtype)

    def reference(x, k):
        return F.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1)).permute(0, 2, 3, 1)

    compare(result, [image, kernel], reference, dtype)


def test_a_few_channel_convolution_rounds_as_torch_does():
    image = torch.rand(2, 8, 8, 1, generator=torch.Generator().manual_seed(0))
    image[1, :, :, 0] = torch.tensor(
        [1.0, 1.00390625, 1.01171875, -1.00390625, 3e38, torch.inf, torch.nan, 0.0]
    )
    image[1, 0, 6].view(torch.int32).fill_(0x7FFFFFFF)  # rounded as a number it would become −0
    kernel = torch.ones(1, 1, 1, 16)
    result = apply(FewChannelConvolution, image, kernel, None, Geometry(), Epilogue(), torch.bfloat16)
    torch.testing.assert_close(result, image.bfloat16().expand(2, 8, 8, 16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (2, 2)], ids=str)
def test_tile_max_pool(dtype, epilogue, size):
    # All elements differ, so that rounding cannot make two of them equal.
    count = 2 * size[0] * size[1] * 3
    places = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    numbers = (torch.arange(count) - count // 2)[places].view(2, *size, 3) / 8
    images = numbers.to(dtype).requires_grad_()
    result = apply(TileMaxPool, images, epilogue)
    compare(
        result,
        [images],
        lambda x: finished(F.max_pool2d(x.permute(0, 3, 1, 2), 2), epilogue).permute(0, 2, 3, 1),
        dtype,
    )


def test_tile_max_pool_with_a_dropout_that_scales(dtype):
    images = random(2, 6, 4, 16, dtype=dtype)
    keep = (torch.arange(2 * 3 * 2 * 16) % 4 > 0).to(bits_type(dtype))
    epilogue = Epilogue(relu=True, keep=lambda *_: Mask(keep, 1, (2, 3, 2, 16)), scale=2.0)

    def reference(x):
        pooled = torch.relu(F.max_pool2d(x.permute(0, 3, 1, 2), 2)).permute(0, 2, 3, 1)
        return pooled * keep.view(2, 3, 2, 16) * 2.0

    compare(apply(TileMaxPool, images, epilogue), [images], reference, dtype)


def test_of_equal_elements_the_first_gets_the_gradient(dtype):
    images = torch.ones(1, 4, 4, 2, dtype=dtype, requires_grad=True)
    apply(TileMaxPool, images, Epilogue()).sum().backward()
    plain = torch.ones(1, 2, 4, 4, requires_grad=True)
    F.max_pool2d(plain, 2).sum().backward()
    assert torch.equal(images.grad.float(), plain.grad.permute(0, 2, 3, 1))


def test_a_tie_across_rows_goes_where_torch_sends_it():
    tile = torch.tensor([[1.0, 5.0], [5.0, 2.0]])
    images = tile.view(1, 2, 2, 1).clone().requires_grad_()
    apply(TileMaxPool, images, Epilogue()).sum().backward()
    assert images.grad.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


def test_what_is_not_a_number_stays_visible(dtype, epilogue):
    images = torch.zeros(1, 2, 2, 1, dtype=dtype)
    images[0, 1, 1, 0] = -torch.nan
    assert apply(TileMaxPool, images, epilogue).isnan().all()


@pytest.mark.parametrize("scale", [1.0, 4 / 3])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_matrix_product(dtype, epilogue, scale, biased):
    x, kernel = random(6, 8, dtype=dtype), random(8, 5, seed=1)
    bias = random(5, seed=2) if biased else None
    result = apply(MatrixProduct, x, kernel, bias, scale, epilogue, dtype)

    def reference(x, k, b):
        found = scale * (x @ k)
        return finished(found if b is None else found + b, epilogue)

    compare(result, [x, kernel, bias], reference, dtype)


@pytest.mark.parametrize("scale", [1.0, 4 / 3])
@pytest.mark.parametrize(
    ("count", "inputs", "outputs"),
    [(1, 16, 16), (7, 48, 32), (13, 80, 16), (6, 528, 48), (70, 4128, 16), (9, 4128, 10), (2, 32, 1)],
    ids=str,
)
def test_a_matrix_product_in_tiles(count, inputs, outputs, scale, epilogue):
    x, kernel, bias = random(count, inputs), random(inputs, outputs, seed=1), random(outputs, seed=2)
    result = apply(MatrixProduct, x, kernel, bias, scale, epilogue, torch.float32, True)
    compare(result, [x, kernel, bias], lambda a, k, b: finished(scale * (a @ k) + b, epilogue), torch.float32)


SMOOTH = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("turned", [False, True], ids=["as it lies", "channels last"])
def test_smooth(dtype, name, turned):
    x = random(3, 8, 5, 6, dtype=dtype)
    entering = x.permute(0, 3, 1, 2) if turned else x
    result = apply(Smooth, entering, name)
    assert result.stride() == entering.stride()
    compare(result, [x], lambda wide: SMOOTH[name](wide.permute(0, 3, 1, 2) if turned else wide), dtype)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_everywhere(name):
    """Far from zero, and of what is not a number, it gives what torch gives, forward and back."""
    numbers = torch.cat([torch.linspace(-120, 120, 4093), torch.tensor([torch.inf, torch.nan, 0.0])])
    x, wide = numbers.clone().requires_grad_(), numbers.double().requires_grad_()
    result, expected = apply(Smooth, x, name), SMOOTH[name](wide)
    torch.testing.assert_close(result.double(), expected, rtol=3e-7, atol=3e-7, equal_nan=True)
    result.backward(torch.ones(4096))
    expected.backward(torch.ones(4096).double())
    here = numbers.isfinite()
    torch.testing.assert_close(x.grad[here].double(), wide.grad[here], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_a_smooth_matrix_product(dtype, name, biased):
    x, kernel, bias = random(40, 12, dtype=dtype), random(12, 32, seed=1), random(32, seed=2)
    bias = bias if biased else None
    result = apply(MatrixProduct, x, kernel, bias, 1.5, Epilogue(), dtype, False, name)

    def reference(x, k, b):
        product = 1.5 * (x @ k)
        return SMOOTH[name](product if b is None else product + b)

    compare(result, [x, kernel, bias], reference, dtype)


@pytest.mark.parametrize("weights", ["both", "scale", "offset", "none"])
@pytest.mark.parametrize("axes", [1, 2])
def test_row_normalization(dtype, weights, axes):
    x = random(37, 3, 32, dtype=dtype)
    gamma = random(32, seed=1) if weights in ("both", "scale") else None
    beta = random(32, seed=2) if weights in ("both", "offset") else None
    result = apply(RowNormalization, x, gamma, beta, 1e-3, axes)

    def reference(x, g, b):
        found = F.layer_norm(x, x.shape[-axes:], eps=1e-3)
        found = found if g is None else found * g
        return found if b is None else found + b

    compare(result, [x, gamma, beta], reference, dtype)


def test_a_matrix_product_in_tiles_of_what_lies_otherwise_or_nowhere():
    turned, kernel = random(32, 5).detach().t(), random(32, 16, seed=1)
    compare(
        apply(MatrixProduct, turned, kernel, None, 1.0, Epilogue(), torch.float32, True), [kernel],
        lambda k: turned.double() @ k, torch.float32,
    )  # fmt: skip
    kernel.grad = None
    apply(
        MatrixProduct, torch.zeros(0, 32), kernel, None, 1.0, Epilogue(), torch.float32, True
    ).sum().backward()
    assert kernel.grad.count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible_in_tiles(bad):
    x, kernel = random(3, 32).detach(), random(32, 16, seed=1)
    x[1, 20] = bad
    result = apply(MatrixProduct, x, kernel, None, 1.0, Epilogue(), torch.float32, True)
    assert result.isfinite().all(1).tolist() == [True, False, True]
    result[0].sum().backward()
    assert kernel.grad[20].isfinite().logical_not().all()  # zero times what is not finite


def test_a_matrix_product_wider_than_its_input_rounds_nothing_forward():
    x, kernel = random(6, 8, dtype=torch.bfloat16), random(8, 5, seed=1)
    kernel = (kernel.detach() * 1.001).requires_grad_()  # more digits than bfloat16 has
    result = apply(MatrixProduct, x, kernel, None, 1.0, Epilogue(), torch.float32)
    assert result.dtype is torch.float32
    close(result, x.detach().double() @ kernel.detach().double(), torch.float32)
    compare(result, [x, kernel], lambda x, k: x @ k, torch.bfloat16)


def test_drop(dtype):
    x = random(4, 6, dtype=dtype)
    keep = (torch.arange(24).view(4, 6) % 3 > 0).to(bits_type(dtype))
    mask = Mask(keep.flatten(), 1, (4, 6))
    compare(apply(Drop, x, mask, 1.5), [x], lambda x: x * keep * 1.5, dtype)


def test_a_tail_drops_behind_relu(dtype):
    keep = (torch.arange(24).view(4, 6) % 4 > 0).to(bits_type(dtype))
    x, kernel = random(4, 8, dtype=dtype), random(8, 6, seed=1)
    epilogue = Epilogue(relu=True, keep=lambda *_: Mask(keep.flatten(), 1, (4, 6)), scale=2.0)
    result = apply(MatrixProduct, x, kernel, None, 1.0, epilogue, x.dtype)
    compare(result, [x, kernel], lambda x, k: torch.relu(x @ k) * keep * 2.0, dtype)


def test_second_derivatives_are_refused():
    x, kernel = random(2, 3), random(3, 2, seed=1)
    total = apply(MatrixProduct, x, kernel, None, 1.0, Epilogue(), x.dtype).square().sum()
    with pytest.raises(NotImplementedError, match=r"^A lowered network has first derivatives only"):
        torch.autograd.grad(total, x, create_graph=True)


def test_frozen_weights_cost_no_gradient():
    images, kernel = random(2, 6, 6, 3), random(3, 3, 3, 4, seed=1).detach()
    apply(Convolution, images, kernel, None, Geometry(), Order(), Epilogue()).sum().backward()
    assert images.grad is not None
    assert kernel.grad is None


def test_memory_is_kept_where_glibc_is():
    expected = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
    assert cpu.keep_memory() == expected


def test_memory_is_left_alone_elsewhere(monkeypatch):
    monkeypatch.setattr(cpu.platform, "system", lambda: "Darwin")
    assert cpu.keep_memory.__wrapped__() is False


@pytest.mark.parametrize("shape", [(128, 48, 48, 8), (3, 5, 7, 2), (1, 1, 1, 3), (64, 10)], ids=str)
def test_batch_statistics_are_those_of_float64(shape):
    images = torch.from_numpy(np.random.default_rng(0).normal(5, 3, shape).astype(np.float32))
    mean, variance = batch_statistics(images)
    wide = images.double().reshape(-1, shape[-1])
    deviation = wide.var(0, correction=0).sqrt() if len(wide) > 1 else torch.ones(shape[-1])
    assert ((mean - wide.mean(0)).abs() <= 1e-6 * deviation + 1e-12).all()
    expected = wide.var(0, correction=0)
    assert ((variance - expected).abs() <= 1e-6 * expected + 1e-12).all()


@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("ceiling", [None, float("inf"), 1.5], ids=["plain", "relu", "clipped"])
@pytest.mark.parametrize("shape", [(4, 6, 6, 24), (2, 8, 8, 3), (600, 16), (3, 5, 16, 80)], ids=str)
def test_normalization_in_loops_is_that_of_float64(shape, ceiling, with_residual):
    images, gamma, beta = random(*shape), random(shape[-1], seed=1), random(shape[-1], seed=2)
    residual = random(*shape, seed=3) if with_residual else None
    assert compiled.suits_normalization(images)
    result, mean, variance = normalize(FusedNormalization, images, gamma, beta, 1e-3, residual, ceiling)

    def reference(x, gamma, beta, residual):
        axes = tuple(range(x.dim() - 1))
        true_variance, true_mean = torch.var_mean(x, axes, correction=0)
        close(mean, true_mean, torch.float32)
        close(variance, true_variance, torch.float32)
        y = (x - true_mean) * torch.rsqrt(true_variance + 1e-3) * gamma + beta
        y = y if residual is None else y + residual
        return y if ceiling is None else y.clamp(0, ceiling)

    compare(result, [images, gamma, beta, residual], reference, torch.float32)


def test_normalization_in_loops_keeps_its_digits_far_from_zero():
    images = random(32, 16, 16, 16).detach() + 1000
    _, mean, variance = normalize(FusedNormalization, images, None, None, 1e-3, None, None)
    wide = images.double().reshape(-1, 16)
    assert (mean - wide.mean(0)).abs().max() < 1e-4
    assert ((variance - wide.var(0, correction=0)).abs() / wide.var(0, correction=0)).max() < 1e-5


@pytest.mark.parametrize("ceiling", [None, float("inf"), 6.0], ids=["plain", "relu", "clipped"])
def test_what_is_not_a_number_stays_visible_behind_normalization(ceiling):
    images = random(4, 6, 6, 16).detach()
    images[0, 0, 0, 3] = float("nan")
    result, *_ = normalize(FusedNormalization, images, None, None, 1e-3, None, ceiling)
    assert result[..., 3].isnan().all()
    assert result.isnan().sum() == 4 * 6 * 6
