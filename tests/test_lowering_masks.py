"""Dropout: the right share, the right scale, other masks for other steps, the same for the same."""

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_cases import built, image_batch, require_precision_here

from convscope.lowering import emit, lower, optimise
from convscope.lowering.masks import keep_probability, make_mask, mix, threshold_of

L = keras.layers
CPU = torch.device("cpu")
RATES = [0.5, 0.25, 0.75, 3 / 16, 15 / 16, 1 / 256, 0.1, 0.3, 1 / 3, 0.9]


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate:.4f}")
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("count", [1 << 14, 1 << 20], ids=["few", "many"])
def test_a_mask_keeps_the_right_share(rate, dtype, count):
    kept = make_mask(rate, (count,), mix(1, 2, 3), dtype, CPU).unpack()
    assert kept.dtype is dtype
    assert set(kept.unique().tolist()) <= {0, 1}
    share = kept.double().mean().item()
    # Four standard deviations of a binomial share.
    assert abs(share - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / count) + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate:.4f}")
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
def test_a_hundred_million_draws_have_the_right_share(rate, dtype):
    masks = (make_mask(rate, (10_000_000,), mix(11, step, 0), dtype, CPU) for step in range(10))
    dropped = sum(1 - mask.unpack().double().mean().item() for mask in masks) / 10
    assert abs(dropped - rate) < 1e-3
    assert abs(dropped - rate) < 5 * np.sqrt(rate * (1 - rate) / 1e8) + 2**-17


@given(st.floats(0.0, 0.999))
def test_the_scale_undoes_the_share_that_is_really_dropped(rate):
    bits, threshold = threshold_of(rate)
    assert abs(threshold / 2**bits - rate) <= 2**-17
    assert keep_probability(rate) == 1 - threshold / 2**bits


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(0, 50))
def test_the_key_tells_its_parts_apart(seed, step, stream):
    keys = {
        mix(seed, step, stream),
        mix(seed + 1, step, stream),
        mix(seed, step + 1, stream),
        mix(seed, step, stream + 1),
    }
    assert len(keys) == 4
    assert all(0 <= key < 2**64 for key in keys)


def test_neighbouring_masks_are_independent():
    masks = [
        make_mask(0.5, (1 << 18,), mix(3, step, 0), torch.int16, CPU).unpack().double() - 0.5
        for step in range(4)
    ]
    limit = 5 * 0.25 / np.sqrt(1 << 18)
    for lag in (1, 2, 3, 7, 8, 64):
        assert abs((masks[0][lag:] * masks[0][:-lag]).mean().item()) < limit
    for other in masks[1:]:
        assert abs((masks[0] * other).mean().item()) < limit


@pytest.fixture
def network():
    model = built([L.Dropout(0.25), L.Dropout(0.25), L.Flatten()], (8, 8, 4))
    return emit(lower(model), model)


def passed(network, seed, step):
    network.begin_step(seed, step)
    return network(torch.ones(64, 8, 8, 4), training=True)


def test_masks_depend_on_seed_and_step_alone(network):
    assert torch.equal(passed(network, 1, 2), passed(network, 1, 2))
    assert not torch.equal(passed(network, 1, 2), passed(network, 1, 3))
    assert not torch.equal(passed(network, 1, 2), passed(network, 2, 2))


def test_two_dropouts_drop_different_elements(network):
    # Were the two masks equal, a quarter would be zero; independent, 1 − 0.75².
    zeros = (passed(network, 1, 2) == 0).double().mean().item()
    assert zeros == pytest.approx(1 - 0.75**2, abs=0.02)


def test_what_is_kept_is_scaled(network):
    result = passed(network, 1, 2)
    assert sorted(result.unique().tolist()) == pytest.approx([0.0, 16 / 9])
    assert result.mean().item() == pytest.approx(1.0, abs=0.03)


def test_inference_drops_nothing(network):
    assert torch.equal(network(torch.ones(2, 8, 8, 4)), torch.ones(2, 256))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.25, 0.3])
@pytest.mark.parametrize("place", ["pool", "convolution", "dense", "few channels"])
def test_dropout_fused_behind_relu_keeps_the_mean_and_its_gradient(precision, rate, place):
    require_precision_here(precision)
    layers = {
        "pool": [L.Conv2D(8, 3), L.ReLU(), L.MaxPooling2D(2), L.Dropout(rate), L.Flatten()],
        "convolution": [L.Conv2D(8, 3, activation="relu"), L.Dropout(rate), L.Flatten()],
        "dense": [L.Flatten(), L.Dense(64, activation="relu"), L.Dropout(rate)],
        "few channels": [L.Conv2D(16, 3, activation="relu"), L.Dropout(rate), L.Flatten()],
    }[place]
    shape = (10, 10, 1) if place == "few channels" else (10, 10, 2)
    model = built([*layers, L.Dense(4, use_bias=False)], shape)
    program, _ = optimise(lower(model), deterministic=True, precision=precision)
    assert "Dropout" not in [op.kind for op in program]
    network = emit(program, model)
    x = torch.tensor(image_batch((256, *shape)))
    with torch.no_grad():
        expected = network(x).mean(0)
        found = torch.stack([run(network, x, step).mean(0) for step in range(8)]).mean(0)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max() + 0.02
    check_gradient(network, x)


def run(network, x, step):
    network.begin_step(5, step)
    return network(x, training=True)


def check_gradient(network, x):
    """Compare the gradient of the last kernel with the activations that the mask let through."""
    path = list(network.weights)[-1]
    run(network, x, 0).sum().backward()
    found = network.weights[path].grad
    with torch.no_grad():
        before = network.weights[path].clone()
        network.weights[path].zero_()
        network.weights[path][:, 0] = torch.arange(len(before), dtype=torch.float32) % 7
        value = run(network, x, 0)[:, 0].sum()
        network.weights[path].copy_(before)
    weights = torch.arange(len(before), dtype=torch.float32) % 7
    assert (found[:, 0] * weights).sum().item() == pytest.approx(value.item(), rel=0.02)


def test_spatial_dropout_drops_whole_channels():
    model = built([L.SpatialDropout2D(0.5)], (5, 6, 16))
    network = emit(lower(model), model)
    network.begin_step(0, 0)
    result = network(torch.ones(8, 5, 6, 16), training=True)
    assert torch.equal(result, result[:, :1, :1].expand_as(result))
    assert 0.3 < (result == 0).double().mean().item() < 0.7


def test_dropout_of_images_in_channels_first_order():
    model = built([L.Conv2D(8, 3, data_format="channels_first"), L.Dropout(0.5)], (2, 9, 9))
    program, _ = optimise(lower(model), deterministic=True)
    network = emit(program, model)
    x = torch.tensor(image_batch((16, 2, 9, 9)))
    with torch.no_grad():
        plain = network(x)
        network.begin_step(1, 1)
        dropped = network(x, training=True)
    kept = dropped != 0
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(dropped[kept], 2 * plain[kept], rtol=2e-2, atol=1e-3)


def test_a_rate_of_one_drops_everything():
    model = built([L.Dropout(1.0)], (4,))
    assert emit(lower(model), model)(torch.ones(2, 4), training=True).abs().sum() == 0
