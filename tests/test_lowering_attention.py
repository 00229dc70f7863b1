"""Attention and products over several axes give what Keras gives."""

import keras
import numpy as np
import pytest
import torch
from lowering_cases import assert_parity, image_batch, scrambled

from convscope.lowering import emit, lower, optimise

L = keras.layers
TOKENS = (7, 6)


def attends(*, to=None, called=None, **settings):
    x = keras.Input(TOKENS)
    inputs = [x] if to is None else [x, keras.Input(to)]
    attention = L.MultiHeadAttention(2, 3, **settings)
    return scrambled(keras.Model(inputs, L.Dense(4)(attention(x, inputs[-1], **(called or {})))))


CASES = {
    "itself": {},
    "no bias": {"use_bias": False},
    "other values": {"value_dim": 5, "output_shape": 8},
    "another": {"to": (5, 4)},
    "in training without dropout": {"dropout": 0.0},
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention(case, training, precision):
    model = attends(**case)
    assert "Attention" in {op.kind for op in lower(model)}
    shapes = [tuple(one.shape[1:]) for one in model.inputs]
    inputs = [image_batch((4, *shape), seed) for seed, shape in enumerate(shapes)]
    # Biases of keys have a gradient that cancels to zero; scores amplify what bfloat16 rounds.
    assert_parity(model, inputs, training, precision, gradient=0.06 if precision == "bfloat16" else None)


@pytest.mark.parametrize(
    "case",
    [
        {"called": {"use_causal_mask": True}},
        {"use_gate": True},
        {"sliding_window": 3},
        {"called": {"attention_mask": np.tril(np.ones((1, 7, 7), bool))}},
    ],
    ids=["causal", "gate", "window", "mask"],
)
def test_attention_of_another_kind_gives_what_keras_gives(case):
    model = attends(**case)
    assert "Attention" not in {op.kind for op in lower(model)}
    assert_parity(model, [image_batch((4, *TOKENS))], training=True)


def test_dropout_of_attention_drops_shares_and_keeps_their_sum():
    model = attends(dropout=0.5)
    program, _ = optimise(lower(model), deterministic=True, precision="float32")
    network = emit(program, model)
    x = torch.from_numpy(image_batch((64, *TOKENS)))

    def outputs(seed, step, training=True):
        network.begin_step(seed, step)
        with torch.no_grad():
            return network(x, training=training)

    torch.testing.assert_close(outputs(1, 1), outputs(1, 1), rtol=0, atol=0)
    assert not torch.equal(outputs(1, 1), outputs(1, 2))
    many = torch.stack([outputs(1, step) for step in range(400)])
    off = (many.mean(0) - outputs(1, 1, training=False)).abs() / (many.std(0) / 20 + 1e-6)
    assert float(off.mean()) < 1.5


PRODUCTS = {
    "one axis": ("abc,cd->abd", (7, 5), "d"),
    "into two": ("abc,cde->abde", (7, 2, 3), "de"),
    "from two": ("abcd,cde->abe", (7, 5), None),
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_products_over_several_axes(case, training):
    equation, shape, bias = case
    x = keras.Input((7, 6) if equation.index(",") == 3 else (7, 3, 2))
    layer = L.EinsumDense(equation, shape, bias_axes=bias, activation="gelu")
    model = scrambled(keras.Model(x, layer(x)))
    kinds = {op.kind for op in lower(model)}
    assert "Dense" in kinds
    assert not kinds & {"KerasCall", "Operation"}
    assert_parity(model, [image_batch((4, *x.shape[1:]))], training)


@pytest.mark.parametrize("case", [("abc,cd->adb", (5, 7), None), ("abc,cd->abd", (7, 5), "bd")])
def test_other_equations_are_not_taken_for_a_product(case):
    equation, shape, bias = case
    x = keras.Input((7, 6))
    model = scrambled(keras.Model(x, L.EinsumDense(equation, shape, bias_axes=bias)(x)))
    assert "Dense" not in {op.kind for op in lower(model)}
    assert_parity(model, [image_batch((4, 7, 6))], training=True)


class Token(L.Layer):
    """Learned vectors in front of others, or alone."""

    def __init__(self, alone):
        super().__init__()
        self.alone = alone

    def build(self, input_shape):
        self.vectors = self.add_weight(shape=(1, 2, input_shape[-1]), name="vectors")

    def call(self, x):
        vectors = keras.ops.broadcast_to(self.vectors, (keras.ops.shape(x)[0], 2, x.shape[-1]))
        return vectors if self.alone else keras.ops.concatenate([vectors, x], axis=1)


@pytest.mark.parametrize("alone", [True, False], ids=["latents", "class token"])
def test_learned_tokens_look_at_others(alone):
    x = keras.Input(TOKENS)
    token = Token(alone)(x) if alone else Token(alone)(x)[:, :1]
    model = scrambled(keras.Model(x, L.MultiHeadAttention(2, 3)(token, x)))
    assert "Attention" in {op.kind for op in lower(model)}
    assert_parity(model, [image_batch((4, *TOKENS))], training=True)


def test_tokens_of_some_images_are_left_to_keras():
    x = keras.Input(TOKENS)
    model = keras.Model(x, L.MultiHeadAttention(2, 3)(x[:1, :], x))
    assert "Attention" not in {op.kind for op in lower(model)}
