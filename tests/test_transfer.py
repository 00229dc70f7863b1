"""Training on a pretrained backbone: the optimizer's factors, the stages, the choice."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import convscope
from convscope.errors import UnknownNameError, UsageError

FACTORS = {"first": 0.25, "second": 0.5}


def small_model(optimizer: keras.optimizers.Optimizer | str) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="relu", name="first"),
            keras.layers.Dense(4, activation="relu", name="second"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    model.compile(optimizer, "categorical_crossentropy")
    return model


def torch_twin(model: keras.Model) -> list[torch.nn.Linear]:
    layers = []
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data = torch.tensor(kernel.T.copy())
        linear.bias.data = torch.tensor(bias.copy())
        layers.append(linear)
    return layers


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_layer_learns_at_its_own_rate(name: str) -> None:
    """The oracle are torch's own parameter groups; epsilon stands elsewhere there, so it is small."""
    rate = 0.05 if name == "sgd" else 0.01
    ours, theirs = {
        "sgd": (
            keras.optimizers.SGD(rate, momentum=0.9),
            lambda groups: torch.optim.SGD(groups, momentum=0.9),
        ),
        "adam": (
            keras.optimizers.Adam(rate, epsilon=1e-8),
            lambda groups: torch.optim.Adam(groups, eps=1e-8),
        ),
        "adamw": (
            keras.optimizers.AdamW(rate, weight_decay=0.1, epsilon=1e-8),
            lambda groups: torch.optim.AdamW(groups, eps=1e-8, weight_decay=0.1),
        ),
    }[name]
    model = small_model(ours)
    twin = torch_twin(model)
    groups = [
        {"params": layer.parameters(), "lr": rate * factor}
        for layer, factor in zip(twin, (0.25, 0.5, 1.0), strict=True)
    ]
    optimizer = theirs(groups)
    generator = np.random.default_rng(1)
    x = generator.standard_normal((32, 6), np.float32)
    y = np.eye(3, dtype=np.float32)[generator.integers(3, size=32)]
    convscope.fit(
        model, x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, engine="fast", precision="float32",
        rate_factors=FACTORS,
    )  # fmt: skip
    for _ in range(3):
        for first in range(0, 32, 8):
            scores = torch.tensor(x[first : first + 8])
            for number, layer in enumerate(twin):
                scores = layer(scores) if number == 2 else layer(scores).relu()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, torch.tensor(y[first : first + 8])).backward()
            optimizer.step()
    for layer, linear in zip(model.layers, twin, strict=True):
        kernel, bias = layer.get_weights()
        np.testing.assert_allclose(kernel, linear.weight.detach().numpy().T, atol=5e-4)
        np.testing.assert_allclose(bias, linear.bias.detach().numpy(), atol=5e-4)


@pytest.mark.parametrize(
    ("optimizer", "engine", "factors", "error"),
    [
        ("nadam", "auto", FACTORS, UsageError),
        ("adadelta", "auto", FACTORS, UsageError),
        ("sgd", "keras", FACTORS, UsageError),
        ("sgd", "auto", {"frist": 0.5}, UnknownNameError),
    ],
    ids=["nadam", "no rule", "engine", "no such layer"],
)
def test_factors_that_nobody_would_follow_are_refused(
    optimizer: str, engine: str, factors: dict[str, float], error: type[Exception]
) -> None:
    model = small_model(optimizer)
    x, y = np.zeros((8, 6), np.float32), np.eye(3, dtype=np.float32)[np.zeros(8, int)]
    with pytest.raises(error):
        convscope.fit(model, x, y, verbose=0, engine=engine, rate_factors=factors)
