"""Compiled loops: the same on one thread and on many, and the same as what torch's own operations give."""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import numba
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses
from lowering_cases import built

from convscope.lowering import emit, kernels, lower, optimise
from convscope.lowering.cpu import (
    compiled,
    convolution,
    loops,
    normalization,
    pooled,
    products,
    rows,
    vectors,
    winograd,
)
from convscope.lowering.cpu.compiled import WindowGeometry
from convscope.lowering.kernels import bfloat16_copy, copy_of, declare_copy_current
from convscope.lowering.masks import Mask, hashed_fields, make_mask, mix, threshold_of
from convscope.lowering.processor import openmp

L = keras.layers
CPU = torch.device("cpu")
WIDTHS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


@pytest.fixture(params=WIDTHS, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def threads():
    """Set the number of torch's threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lanes(count, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-(2**15), 2**15, (count,), generator=generator, dtype=torch.int32)
    return Mask(integers.to(WIDTHS[dtype]), 2, ())


# One thread or many


def hashed(_dtype):
    words = torch.empty(20_000, dtype=torch.int64)
    compiled.hash_counters(words, mix(1, 2, 3), 2, 1)
    return words


def dropped(x, mask):
    result = torch.empty_like(x)
    compiled.drop(x, result, mask)
    return result


def pixels(dtype):
    return numbers(16, 13, 12, 32, dtype=dtype)


def photographs():
    return numbers(16, 14, 12, 2)


def windows():
    return WindowGeometry.of((16, 14, 12, 2), (3, 2, 2, 32), (1, 1), (1, 1))


def convolved(dtype, relu=True):
    kernel, bias = numbers(3, 2, 2, 32, seed=5), numbers(32, seed=6)
    return compiled.few_channel_convolution(photographs(), kernel, bias, windows(), relu, dtype, signed=True)


def normalized(images, gradient):
    result, *kept = compiled.normalize(images, None, None, 1e-3, 6.0, gradient)
    found = compiled.normalize_back(gradient, images, result, None, *kept, 6.0, True, True)
    return torch.cat([part.flatten() for part in (result, *kept, *found)])


def adam_step(gradient, copy=None):
    weights, moments, squares = (numbers(gradient.numel(), seed=seed) for seed in (7, 8, 9))
    squares.abs_()
    compiled.adam(weights, gradient, moments, squares, (0.01, 0.9, 0.1, 0.999, 0.001, 1e-7), copy)
    return weights, moments, squares


WORK = {
    "hash": hashed,
    "drop": lambda dtype: dropped(numbers(40, 30, 32, dtype=dtype), lanes(5000, dtype)),
    "tile max": lambda dtype: torch.cat(
        [part.float() for part in compiled.tile_max(pixels(dtype), True, lanes(9000, dtype))]
    ),
    "tile max back": lambda dtype: compiled.tile_max_back(
        numbers(16, 6, 6, 32, dtype=dtype),
        torch.randint(0, 5, (16, 6, 6, 32), generator=torch.Generator().manual_seed(4)).to(torch.uint8),
        torch.Size((16, 13, 12, 32)),
    ),
    "few-channel convolution": lambda dtype: convolved(dtype)[0],
    "few-channel gradient": lambda dtype: torch.cat(
        compiled.few_channel_gradient(photographs(), numbers(16, 12, 11, 32, dtype=dtype), None, windows())
        [:1]
    ),
    "pooled gradients": lambda _dtype: torch.cat(
        [part.flatten() for part in compiled.pooled_gradients(
            numbers(16, 14, 12, 32), numbers(3, 3, 32, 8, seed=5), numbers(16, 6, 5, 8, seed=6),
            torch.randint(0, 5, (16, 6, 5, 8), generator=torch.Generator().manual_seed(4)).to(torch.uint8),
            (True, True),
        )]
    ),
    "winograd": lambda _dtype: torch.cat(
        [part.float() for part in compiled.winograd_tile_max(
            numbers(16, 14, 12, 32), compiled.transformed_kernel(numbers(3, 3, 32, 16, seed=5)), None, True,
            lanes(5000, torch.float32),
        )]
    ),
    "winograd convolution": lambda _dtype: compiled.winograd_convolution(
        numbers(16, 14, 13, 32), compiled.winograd_kernel(numbers(3, 3, 32, 16, seed=5)), None, (1, 0), True
    ),
    "winograd kernel gradient": lambda _dtype: compiled.winograd_kernel_gradient(
        numbers(16, 14, 13, 32), numbers(16, 14, 11, 16, seed=5), (1, 0)
    ),
    "products": lambda _dtype: torch.cat(
        [
            part.flatten()
            for part in (
                compiled.dense_product(numbers(20, 4096), numbers(4096, 32, seed=5)),
                compiled.dense_input_gradient(numbers(20, 32), numbers(4096, 32, seed=5)),
                compiled.dense_kernel_gradient(numbers(20, 4096), numbers(20, 32, seed=5)),
            )
        ]
    ),
    "normalization": lambda _dtype: normalized(numbers(16, 13, 12, 24), numbers(16, 13, 12, 24, seed=5)),
    "adam": lambda dtype: adam_step(numbers(50_000, seed=2).to(dtype))[0],
}  # fmt: skip


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_many_threads_give_the_same_bits_as_one(work, dtype, threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(work(dtype))
    assert results[0].float().abs().sum() > 0
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_calling_thread_does_it_alone_where_there_is_no_team(monkeypatch, threads, dtype):
    threads(2)
    expected = compiled.tile_max(pixels(dtype), False, None)
    monkeypatch.setattr(compiled, "openmp", lambda: None)
    found = compiled.tile_max(pixels(dtype), False, None)
    assert all(map(torch.equal, found, expected))


@pytest.mark.skipif(sys.platform != "linux", reason="torch's Windows build shows no functions of its OpenMP")
def test_torch_has_a_team_on_linux():
    team = openmp()
    assert team is not None
    assert team.number != team.size != 0


@pytest.fixture(scope="module")
def other_process():
    """Run two loops in a program that does nothing else, where large blocks are given back at once."""
    script = (
        "import os, torch; from convscope.lowering.cpu import compiled; torch.set_num_threads(3); "
        "x = torch.zeros(64, 32, 32, 32); compiled.tile_max(x, True, None); "
        "tasks = '/proc/self/task'; print(len(os.listdir(tasks)) if os.path.isdir(tasks) else 0); "
        "x, g = torch.ones(2, 3, 1002, 1), torch.ones(2, 1, 1000, 64); "
        "w = compiled.WindowGeometry.of(x.shape, (3, 3, 1, 64), (1, 1), (1, 1)); "
        "print(compiled.few_channel_gradient(x, g, None, w)[0].unique().tolist())"
    )
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout.split("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_work_is_really_shared(other_process):
    """It has as many threads as torch was told to use."""
    assert int(other_process[1][0]) >= 3


def test_without_a_folder_to_keep_them_in_loops_are_compiled_anew(monkeypatch):
    kept = []

    def cfunc(_signature, cache=False, **_options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return kept.append

    monkeypatch.setattr(numba, "cfunc", cfunc)
    loops._loop("a loop")
    assert kept == ["a loop"]


@pytest.mark.parametrize(
    "module",
    [convolution, loops, normalization, pooled, products, rows, winograd],
    ids=lambda module: module.__name__,
)
def test_what_numba_keeps_is_of_these_vectors(module):
    """Change ``VECTORS`` where vectors.py is used, with it: users would go on with what is compiled."""
    text = Path(vectors.__file__).read_bytes()
    assert hashlib.sha256(text).hexdigest().startswith(module.VECTORS)
    assert len(module.VECTORS) == 16


# Masks


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.25, 0.75, 3 / 16, 15 / 16], ids=str)
@pytest.mark.parametrize("key", [0, 12345, (1 << 64) - 1])
def test_words_are_those_that_other_devices_make(rate, key):
    bits, threshold = threshold_of(rate)
    words = torch.empty(1000, dtype=torch.int64)
    compiled.hash_counters(words, key, 0, 0)
    assert torch.equal(words, hashed_fields(words, key, 0, 0))
    compiled.hash_counters(words, key, bits, threshold)
    expected = hashed_fields(words, key, bits, threshold)
    for place in range(0, 64, bits):
        assert torch.equal(words >> place & 1, expected >> place & 1)


@pytest.mark.parametrize("rate", [0.5, 0.25, 1 / 256, 0.3], ids=str)
@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 4, 5, 6), (64, 12, 12, 16)], ids=str)
def test_a_mask_drops_what_it_says(rate, shape, dtype):
    mask = make_mask(rate, shape, mix(5, 6, 7), WIDTHS[dtype], CPU)
    x = numbers(*shape, dtype=dtype)
    expected = x * mask.unpack()
    assert torch.equal(mask.apply(x), expected)
    assert torch.equal(mask.apply(x, out=x), expected)
    assert torch.equal(x, expected)


def test_a_mask_of_another_shape_is_spread(dtype):
    keep = torch.tensor([1, 0, 1], dtype=WIDTHS[dtype])
    mask = Mask(keep, 1, (1, 1, 3))
    x = numbers(4, 5, 3, dtype=dtype)
    assert torch.equal(mask.apply(x), x * keep)


def test_no_elements_are_no_hindrance(dtype):
    mask = make_mask(0.5, (0, 1, 1, 4), 1, WIDTHS[dtype], CPU)
    assert mask.apply(numbers(0, 3, 3, 4, dtype=dtype)).shape == (0, 3, 3, 4)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("spread", ["expanded", "sliced", "contiguous", "channels_last"])
def test_the_gradient_loses_what_the_tensor_lost(order, spread, dtype):
    """However the gradient lies in memory."""
    x = numbers(4, 6, 5, 3, dtype=dtype).contiguous(memory_format=order).requires_grad_()
    mask = make_mask(0.5, x.shape, 9, WIDTHS[dtype], CPU)
    result = kernels.apply(kernels.Drop, x, mask, 1.0)
    gradient = {
        "expanded": torch.ones(4, 6, 1, 1, dtype=dtype).expand(4, 6, 5, 3),
        "sliced": torch.ones(4, 9, 5, 3, dtype=dtype)[:, 2:8],
        "contiguous": torch.ones(4, 6, 5, 3, dtype=dtype),
        "channels_last": torch.ones(4, 6, 5, 3, dtype=dtype).contiguous(memory_format=torch.channels_last),
    }[spread]
    result.backward(gradient)
    assert torch.equal(x.grad != 0, result != 0)


def test_gaps_in_memory_are_no_hindrance(dtype):
    mask = make_mask(0.5, (6, 4), 3, WIDTHS[dtype], CPU)
    x = numbers(6, 8, dtype=dtype)[:, ::2]
    assert not compiled.suits(x)
    assert torch.equal(mask.apply(x), x * mask.unpack())


# Pooling


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(2, 2), (5, 4), (13, 12), (1, 6)], ids=str)
def test_tile_max_takes_the_largest_and_says_where_it_was(size, relu, dtype):
    x = numbers(3, *size, 5, dtype=dtype, seed=3)
    mask = lanes(90, dtype)
    result, places = compiled.tile_max(x, relu, mask)
    kept = Mask(mask.lanes, mask.bits, tuple(result.shape)).unpack() if result.numel() else 1
    expected = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) if min(size) > 1 else result
    expected = torch.relu(expected) if relu else expected
    assert torch.equal(result, expected * kept)
    assert torch.equal(places == 0, (expected * kept == 0))
    back = compiled.tile_max_back(result, places, x.shape)
    assert back.count_nonzero() == result.count_nonzero()
    assert torch.equal(back[back != 0], x[back != 0])


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_a_number_wins(bad, relu, dtype):
    x = torch.tensor([[torch.inf, 1.0], [bad, -2.0]], dtype=dtype).view(1, 2, 2, 1)
    result, places = compiled.tile_max(x, relu, None)
    assert result.isnan().all()
    assert places.item() == 3


def test_infinities_are_ordinary(dtype):
    x = torch.tensor([[-torch.inf, -1.0], [-torch.inf, -2.0]], dtype=dtype).view(1, 2, 2, 1)
    assert compiled.tile_max(x, False, None)[0].item() == -1.0
    assert compiled.tile_max(x.neg(), False, None)[0].item() == torch.inf


# Shallow convolutions


@pytest.mark.parametrize("relu", [False, True])
def test_signs_say_what_is_positive(relu, dtype):
    result, signs = convolved(dtype, relu)
    bits = (signs.unsqueeze(-1) >> torch.arange(16, dtype=torch.int16)) & 1
    assert torch.equal(bits.view(result.shape).bool(), result > 0)


def test_windows_are_worked_out_once():
    again = WindowGeometry.of((16, 14, 12, 2), (3, 2, 2, 32), (1, 1), (1, 1))
    assert again is windows()
    assert again.count == 12
    assert again.taps.numel() % 3 == 0


def test_rooms_between_passes_outlive_them(other_process):
    """A loop that writes to a block it has let go ends the program."""
    assert (other_process[0], other_process[1][1]) == (0, "[2000.0]")


def test_another_default_type_changes_nothing():
    expected = compiled.few_channel_gradient(photographs(), numbers(16, 12, 11, 32), None, windows())
    gradient, images = numbers(16, 12, 11, 32), photographs()
    torch.set_default_dtype(torch.float64)
    try:
        found = compiled.few_channel_gradient(images, gradient, None, windows())
        result, _ = compiled.few_channel_convolution(
            images, numbers(3, 2, 2, 32).float(), None, windows(), False, torch.float32
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))
    assert result.dtype is torch.float32


def test_no_images_give_no_gradient():
    none = WindowGeometry.of((0, 14, 12, 2), (3, 2, 2, 32), (1, 1), (1, 1))
    kernel, bias = compiled.few_channel_gradient(
        torch.zeros(0, 14, 12, 2), torch.zeros(0, 12, 11, 32), None, none
    )
    assert kernel.shape == (12, 32)
    assert kernel.count_nonzero() == bias.count_nonzero() == 0


def test_weights_on_another_device_do_not_reach_a_loop(monkeypatch):
    model = built([L.Conv2D(16, 3)], (9, 8, 1))
    network = emit(optimise(lower(model), deterministic=True)[0], model)
    calls = []
    loop = compiled.few_channel_convolution
    monkeypatch.setattr(compiled, "few_channel_convolution", lambda *a, **k: calls.append(a) or loop(*a, **k))
    network(torch.zeros(1, 9, 8, 1))
    assert len(calls) == 1
    # What torch makes of two devices is its own business.
    with contextlib.suppress(RuntimeError, NotImplementedError):
        network.to("meta")(torch.zeros(1, 9, 8, 1))
    assert len(calls) == 1


# Adam


@pytest.mark.parametrize("gradient_type", [torch.float32, torch.bfloat16], ids=str)
def test_adam_updates_as_its_formula_says(gradient_type):
    gradient = numbers(20_001, seed=2).to(gradient_type)
    copy = torch.empty(20_001, dtype=torch.bfloat16)
    weights, moments, squares = adam_step(gradient, copy)
    w, m, v = (numbers(20_001, seed=seed).double() for seed in (7, 8, 9))
    v, g = v.abs(), gradient.double()
    m += (g - m) * 0.1
    v += (g * g - v) * 0.001
    w -= 0.01 * m / (v.sqrt() + 1e-7)
    for found, expected in ((moments, m), (squares, v), (weights, w)):
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(copy, weights.bfloat16())


def test_a_copy_keeps_what_is_not_a_number():
    weights = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38])
    weights[0].view(torch.int32).fill_(0x7FFFFFFF)
    copy = torch.empty(4, dtype=torch.bfloat16)
    zeros = torch.zeros(4)
    numbers_ = (0.0, 0.9, 0.1, 0.999, 0.001, 1e-7)
    compiled.adam(weights, zeros, zeros.clone(), zeros.clone(), numbers_, copy)
    assert torch.equal(copy.isnan(), weights.isnan())
    assert copy[1:].tolist() == weights.bfloat16()[1:].tolist()


# Narrow copies


def test_a_bfloat16_copy_follows_its_weight():
    weight = torch.ones(3)
    first = bfloat16_copy(weight)
    assert first.dtype is torch.bfloat16
    weight.mul_(2)
    assert bfloat16_copy(weight) is first
    assert first.tolist() == [2.0, 2.0, 2.0]


def test_a_copy_declared_current_is_not_made_again():
    weight = torch.ones(3)
    copy = bfloat16_copy(weight)
    weight.add_(1)
    copy.fill_(7)
    declare_copy_current(weight)
    assert bfloat16_copy(weight).tolist() == [7.0, 7.0, 7.0]
    weight.add_(1)
    assert bfloat16_copy(weight).tolist() == [3.0, 3.0, 3.0]


def test_a_network_that_is_refreshed_forgets_its_copies():
    model = built([L.Flatten(), L.Dense(4), L.Dense(2)], (3, 3, 1))
    network = emit(lower(model), model)
    weight = next(iter(network.weights.values()))
    bfloat16_copy(weight)
    weight.data.fill_(5.0)  # torch does not count this
    network.refresh()
    assert bfloat16_copy(weight).unique().tolist() == [5.0]


def test_a_copy_goes_with_its_weight():
    assert copy_of(torch.ones(2)) is None
    declare_copy_current(torch.ones(2))  # nothing to declare
