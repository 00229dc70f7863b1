"""What is tried on copies: preflight, throughput, the search for a learning rate."""

import random

import keras
import numpy as np
import pytest
import torch
from training_cases import identical, images, network, optimizer_values, weights

import convscope
from convscope.errors import DivergedError, UsageError
from convscope.networks import NETWORKS
from convscope.plotting import plot_rate_search
from convscope.preprocessing import Preprocess, one_hot
from convscope.training.dry_runs import (
    RATE_STEPS,
    choose_rate,
    find_learning_rate,
    measure_throughput,
    preflight,
    spread_rows,
)
from convscope.training.schedules import Exponential

X, Y = images(200)
CLASSES = Y.shape[1]
L = keras.layers


def compiled(*layers, loss="categorical_crossentropy", optimizer="adam"):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.compile(optimizer, loss)
    return model


def dense(activation=None, units=CLASSES, **settings):
    return [L.Flatten(), L.Dense(units, activation=activation, **settings)]


def frozen():
    layers = dense("softmax")
    layers[1].trainable = False
    return compiled(*layers)


def not_a_number():
    model = compiled(*dense("softmax"))
    model.layers[1].set_weights([np.full((64, CLASSES), np.nan), np.zeros(CLASSES)])
    return model


FROM_LOGITS = keras.losses.CategoricalCrossentropy(from_logits=True)
UNFIT = {
    "logits": (lambda: compiled(*dense()), r"probabilities that add up to 1 .*got numbers from"),
    "sigmoid": (lambda: compiled(*dense("sigmoid")), r"probabilities that add up to 1 .*End the network"),
    "softmax-twice": (
        lambda: compiled(*dense("softmax"), loss=FROM_LOGITS),
        r"a network without softmax for categorical_crossentropy from logits, got probabilities",
    ),
    "frozen": (frozen, r"a network with weights to train, got none"),
    "not-a-number": (not_a_number, r"finite outputs of the network, got NaN or infinity"),
    "dead": (
        # Nothing passes a ReLU whose input is negative, and no gradient comes back.
        lambda: compiled(
            L.Flatten(), L.Dense(8, "relu", bias_initializer=keras.initializers.Constant(-1e6)),
            L.Dense(CLASSES, "softmax", use_bias=False),
        ),
        r"a network that overfits one batch of 32 images, got a loss of 1.61 after \d+ steps, 1.61 before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_a_network_that_cannot_learn_is_refused(name):
    make, message = UNFIT[name]
    with pytest.raises(UsageError, match=f"^Expected {message}") as found:
        preflight(make(), X, Y)
    assert len(str(found.value).splitlines()) == 1


def test_raw_pixels_are_warned_of():
    pixels = (255 * X / X.max()).astype(np.uint8)
    found = preflight(compiled(*dense("softmax")), pixels, Y)
    assert found.warning.startswith("Expected inputs scaled to about 0 to 1, got numbers from 0 to 25")


SCALED = {
    "scaled": (dense, 1.0, None),
    "rescaling": (lambda a: [L.Rescaling(1 / 255), *dense(a)], 255.0, None),
    "normalized": (lambda a: [L.BatchNormalization(), *dense(a)], 255.0, None),
    "preprocessed": (dense, 255.0, Preprocess),
    "nested": (lambda a: [keras.Sequential([L.Rescaling(1 / 255)]), *dense(a)], 255.0, None),
}


@pytest.mark.parametrize(("layers", "factor", "preprocess"), SCALED.values(), ids=SCALED.keys())
def test_scaled_inputs_are_not_warned_of(layers, factor, preprocess):
    x = factor * X / X.max()
    if preprocess is not None:
        x = x.astype(np.uint8)
        preprocess = Preprocess.fit(x, "minmax")
    assert preflight(compiled(*layers("softmax")), x, Y, preprocess=preprocess).warning is None


def test_the_right_labels_for_another_loss_are_asked_for():
    with pytest.raises(UsageError, match="class numbers"):
        preflight(compiled(*dense("softmax"), loss="sparse_categorical_crossentropy"), X, Y)


FIT = {
    "softmax": lambda: compiled(*dense("softmax")),
    "logits": lambda: compiled(*dense(), loss=FROM_LOGITS),
    "sparse": lambda: compiled(*dense("softmax"), loss="sparse_categorical_crossentropy"),
    "smoothed": lambda: compiled(
        *dense("softmax"), loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.3)
    ),
    "far-from-normalized": lambda: compiled(L.Rescaling(20.0), *dense("softmax")),
}


@pytest.mark.parametrize("name", FIT)
def test_a_network_that_can_learn_passes(name):
    targets = Y.argmax(1) if name == "sparse" else Y
    assert preflight(FIT[name](), X, targets, engine="fast").learned is not False


def test_a_network_that_can_learn_passes_with_kerass_own_fit():
    assert preflight(FIT["softmax"](), X, Y, engine="keras").learned is not False


@pytest.mark.parametrize("name", NETWORKS)
def test_no_named_network_is_refused(name):
    digits = convscope.load("digits")
    model = convscope.build(name)
    model.compile("adam", "categorical_crossentropy")
    part = digits.train.take(np.arange(300))
    trial = preflight(
        model, part.images, one_hot(part.labels, 10), preprocess=Preprocess.fit(part.images), seconds=60
    )
    assert trial.learned and trial.steps < 30


def state_of_everything(model):
    return (
        weights(model) + optimizer_values(model),
        random.getstate(),
        [np.asarray(part) for part in np.random.get_state()[1:]],  # noqa: NPY002
        torch.get_rng_state().numpy(),
    )


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize("trial", [preflight, measure_throughput], ids=lambda function: function.__name__)
def test_a_trial_leaves_no_trace(trial, engine):
    model = compiled(L.Dropout(0.3), *dense("softmax"))
    model.optimizer.build(model.trainable_variables)
    before = state_of_everything(model)
    trial(model, X, Y, engine=engine)
    after = state_of_everything(model)
    assert identical(before[0], after[0])
    assert before[1] == after[1]
    assert identical(before[2], after[2])
    assert (before[3] == after[3]).all()


def test_too_little_time_says_nothing():
    assert preflight(compiled(*dense("softmax")), X, Y, seconds=0).learned is None


def test_where_steps_are_slow_fewer_images_are_tried():
    ticks = iter(np.arange(0, 1e6, 10.0))
    trial = preflight(compiled(*dense("softmax")), X, Y, seconds=15, clock=lambda: next(ticks))
    assert (trial.images, trial.steps, trial.seconds) == (8, 3, 20)


def test_rows_are_spread_over_the_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 40)
    chosen = labels[spread_rows(labels, 12)]
    assert np.bincount(chosen).tolist() == [5, 3, 4]
    np.testing.assert_array_equal(spread_rows(one_hot(labels, 3), 12), spread_rows(labels, 12))


def test_throughput_is_that_of_the_steps():
    ticks = iter(np.arange(0, 1e6, 0.25))
    speed = measure_throughput(
        compiled(*dense("softmax")), X, Y, batch_size=4, seconds=2, clock=lambda: next(ticks)
    )
    assert speed.step_seconds == 0.25
    assert speed.image_seconds == 0.25 / 200
    assert speed.plan


FEW_X, FEW_Y = images()
RATES = np.geomspace(1e-6, 1, RATE_STEPS)


def valley(lowest, noise=0.0):
    """Losses that fall to their lowest at a rate, and rise steeply behind it."""
    distance = np.log10(RATES / lowest)
    losses = 2.3 - np.exp(-(distance**2)) + np.where(distance > 0, distance**2, 0)
    return losses + np.random.default_rng(0).normal(0, noise, RATE_STEPS)


@pytest.mark.parametrize("noise", [0.0, 0.05], ids=["smooth", "noisy"])
@pytest.mark.parametrize("lowest", [1e-3, 1e-2, 0.1])
def test_a_tenth_of_the_rate_of_the_lowest_loss_is_chosen(lowest, noise):
    assert choose_rate(RATES, valley(lowest, noise)).found == pytest.approx(lowest / 10, rel=0.8)


def test_what_comes_behind_infinity_does_not_count():
    losses = valley(1e-2)
    losses[90:] = np.nan
    search = choose_rate(RATES, losses)
    assert len(search.rates) == len(search.losses) == len(search.smoothed) == 90


def test_a_loss_that_was_never_finite_is_refused():
    with pytest.raises(DivergedError, match=r"^Expected a finite loss in at least 24 steps .* got 0 steps"):
        choose_rate(RATES, np.full(RATE_STEPS, np.nan))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_the_network_is_left_as_it_was(engine):
    model = network(dropout=0.3, optimizer=keras.optimizers.Adam(0.01))
    before = weights(model)
    search = find_learning_rate(model, FEW_X, FEW_Y, seed=7, batch_size=16, engine=engine, deterministic=True)
    assert identical(before, weights(model))
    assert float(model.optimizer.learning_rate) == np.float32(0.01)
    assert 1e-4 < search.found < 0.5
    assert search.losses[: RATE_STEPS // 4].std() < 0.2  # nothing is learned at a millionth


def test_a_training_at_the_found_rate_learns():
    model = network(optimizer=keras.optimizers.SGD(1e-9))
    search = find_learning_rate(model, FEW_X, FEW_Y, seed=7, batch_size=16, deterministic=True)
    model.optimizer.learning_rate = search.found
    history = convscope.fit(model, FEW_X, FEW_Y, seed=7, batch_size=16, epochs=15, verbose=0).history
    assert history["loss"][-1] < 0.98 * history["loss"][0]


@pytest.mark.parametrize(("low", "high", "steps"), [(0, 1, 10), (1, 0.1, 10), (0.1, 1, 1)])
def test_an_impossible_rise_is_refused(low, high, steps):
    with pytest.raises(UsageError, match=r"^Expected a"):
        Exponential(low, high, steps)


def test_the_figure_shows_rates_losses_and_the_choice():
    search = choose_rate(RATES, valley(1e-2, 0.05))
    figure = plot_rate_search(search.rates, search.losses, search.smoothed, search.found)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "training loss (cross-entropy, nats)")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["loss of a step", "averaged over its neighbours", f"chosen: {search.found:.2g}"]
    low, high = axes.get_ylim()
    assert low < search.smoothed.min() < search.smoothed[0] < high


def test_a_figure_of_nothing_is_refused():
    with pytest.raises(UsageError, match=r"^Expected as many losses as rates, at least one, got 2 rates"):
        plot_rate_search([0.1, 0.2], [1.0], [1.0], 0.1)
