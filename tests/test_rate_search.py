"""The search for a learning rate: what is chosen from a curve, and that the network is left alone."""

import keras
import numpy as np
import pytest
from training_cases import identical, images, network, weights

import convscope
from convscope.errors import DivergedError, UsageError
from convscope.plotting import plot_rate_search
from convscope.training.dry_runs import RATE_STEPS, choose_rate, find_learning_rate
from convscope.training.schedules import Exponential

X, Y = images()
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
    search = find_learning_rate(model, X, Y, seed=7, batch_size=16, engine=engine, deterministic=True)
    assert identical(before, weights(model))
    assert float(model.optimizer.learning_rate) == np.float32(0.01)
    assert 1e-4 < search.found < 0.5
    assert search.losses[: RATE_STEPS // 4].std() < 0.2  # nothing is learned at a millionth


def test_a_training_at_the_found_rate_learns():
    model = network(optimizer=keras.optimizers.SGD(1e-9))
    search = find_learning_rate(model, X, Y, seed=7, batch_size=16, deterministic=True)
    model.optimizer.learning_rate = search.found
    history = convscope.fit(model, X, Y, seed=7, batch_size=16, epochs=15, verbose=0).history
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
