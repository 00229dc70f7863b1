"""Cross-entropies from logits, held against Keras's loss objects in value and gradient."""

import keras
import numpy as np
import pytest
import torch

from convscope.training.losses import CrossEntropy, Penalties, find_cross_entropy

losses = keras.losses
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((12, 5)).astype(np.float32)
ONE_HOT = np.eye(5, dtype=np.float32)[RANDOM.integers(0, 5, 12)]
SOFT = RANDOM.dirichlet(np.ones(5), 12).astype(np.float32)
CASES = {
    "categorical": (losses.CategoricalCrossentropy, ONE_HOT, "softmax"),
    "categorical-soft-targets": (losses.CategoricalCrossentropy, SOFT, "softmax"),
    "sparse": (losses.SparseCategoricalCrossentropy, ONE_HOT.argmax(1), "softmax"),
    "sparse-column": (losses.SparseCategoricalCrossentropy, ONE_HOT.argmax(1)[:, None], "softmax"),
    "binary": (losses.BinaryCrossentropy, ONE_HOT, "sigmoid"),
}
ACTIVATIONS = {"softmax": lambda z: torch.softmax(z, -1), "sigmoid": torch.sigmoid, None: lambda z: z}


def compiled(loss, activation, units=5, **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, activation=activation)])
    model.compile("sgd", loss, **arguments)
    return model


def recognised(loss, activation, y, units=5, **arguments):
    model = compiled(loss, activation, units, **arguments)
    model._symbolic_build(data_batch=(np.zeros((12, 3), np.float32), y, None))
    return find_cross_entropy(model, activation)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("weight", [None, (12,), (12, 1)], ids=str)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("make", "y", "activation"), CASES.values(), ids=CASES.keys())
def test_value_and_gradient_equal_keras(make, y, activation, smoothing, from_logits, weight, reduction):
    arguments = {} if make is losses.SparseCategoricalCrossentropy else {"label_smoothing": smoothing}
    theirs = make(from_logits=from_logits, reduction=reduction, **arguments)
    ours = recognised(theirs, None if from_logits else activation, y)
    sample_weight = None if weight is None else torch.linspace(0, 2, 12).reshape(weight)
    results = []
    for compute in (
        lambda z: ours(z, torch.as_tensor(y), sample_weight),
        lambda z: theirs(y, z if from_logits else ACTIVATIONS[activation](z), sample_weight),
    ):
        logits = torch.tensor(LOGITS, requires_grad=True)
        loss = compute(logits)
        loss.backward()
        results.append((loss.item(), logits.grad))
    (our_loss, our_gradient), (their_loss, their_gradient) = results
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-6)


def test_extreme_logits_keep_their_gradient():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = CrossEntropy(losses.categorical_crossentropy)(logits, torch.tensor([[0.0, 1.0]]), None)
    loss.backward()
    assert loss.item() == 400
    assert logits.grad.tolist() == [[1.0, -1.0]]


NOT_RECOGNISED = {
    "mse": ("mse", "softmax", ONE_HOT),
    "softmax-called-logits": (losses.CategoricalCrossentropy(from_logits=True), "softmax", ONE_HOT),
    "linear-called-probabilities": ("categorical_crossentropy", None, ONE_HOT),
    "sigmoid-for-categorical": ("categorical_crossentropy", "sigmoid", ONE_HOT),
    "ignored-class": (losses.SparseCategoricalCrossentropy(ignore_class=0), "softmax", ONE_HOT.argmax(1)),
    "own-function": (lambda y, p: keras.ops.mean(y - p, axis=-1), "softmax", ONE_HOT),
    "focal": ("categorical_focal_crossentropy", "softmax", ONE_HOT),
    "mean-by-weights": (
        losses.CategoricalCrossentropy(reduction="mean_with_sample_weight"),
        "softmax",
        ONE_HOT,
    ),
}


@pytest.mark.parametrize(("loss", "activation", "y"), NOT_RECOGNISED.values(), ids=NOT_RECOGNISED.keys())
def test_other_losses_are_left_to_keras(loss, activation, y):
    assert recognised(loss, activation, y) is None


def test_an_overridden_call_is_left_to_keras():
    class Doubled(losses.CategoricalCrossentropy):
        def call(self, y_true, y_pred):
            return 2 * super().call(y_true, y_pred)

    assert recognised(Doubled(), "softmax", ONE_HOT) is None


def test_the_compiled_weight_is_kept():
    assert recognised("categorical_crossentropy", "softmax", ONE_HOT, loss_weights=[0.25]).weight == 0.25


@pytest.mark.parametrize(
    "regularizer",
    [
        keras.regularizers.L1(0.3),
        keras.regularizers.L2(0.2),
        keras.regularizers.L1L2(0.1, 0.2),
        keras.regularizers.OrthogonalRegularizer(0.5),
        lambda w: keras.ops.sum(w**4),
    ],
    ids=["l1", "l2", "l1-l2", "orthogonal", "function"],
)
def test_penalties_equal_keras(regularizer):
    values = RANDOM.standard_normal((4, 3)).astype(np.float32)
    results = []
    for ours in (True, False):
        variable = keras.Variable(values)
        variable.regularizer = regularizer
        weight = torch.tensor(values, requires_grad=True)
        loss = Penalties([variable], [weight])() if ours else regularizer(weight)
        loss.backward()
        results.append((loss.item(), weight.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)


def test_without_regularizers_there_is_no_penalty():
    assert not Penalties([keras.Variable(np.zeros(3))], [torch.zeros(3)])
