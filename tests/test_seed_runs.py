"""The verdicts of `compare` on real runs that differ in nothing but their seed.

tests/data/seed_runs.npz was written by benchmarks/seed_pairs.py: for `simple` (3 epochs) and `deep`
(2 epochs), trained on MNIST with several seeds each, which of the 10,000 test images each run got right, as
packed bits.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from convscope.evaluation import Evaluation, compare, compare_seeds


@pytest.fixture(scope="module")
def runs():
    """An evaluation of each run, as of a question with the answers right and wrong."""
    with np.load(Path(__file__).parent / "data" / "seed_runs.npz", allow_pickle=False) as stored:
        images = int(stored["images"])
        bits = {name: np.unpackbits(stored[name], axis=1)[:, :images] for name in ("simple", "deep")}
    labels = np.zeros(images, dtype=int)
    return {
        name: [Evaluation.from_probabilities(np.eye(2)[1 - row], labels) for row in rows]
        for name, rows in bits.items()
    }


def test_two_seeds_of_the_same_network_could_be_chance(runs):
    """In at least 90 of 100 pairs; McNemar's exact test alone would tell far more of them apart."""
    pairs = [pair for network in runs.values() for pair in itertools.combinations(network, 2)]
    drawn = np.random.default_rng(0).choice(len(pairs), 100, replace=False)
    found = [compare(*pairs[index]) for index in drawn]
    assert sum(one.verdict == "could be chance" for one in found) >= 90
    assert sum(one.p_value < 0.05 for one in found) > 20


def test_simple_and_deep_are_really_different(runs):
    found = [compare(a, b, "simple", "deep") for a, b in itertools.product(runs["simple"], runs["deep"])]
    assert {one.verdict for one in found} == {"better"}


def test_seeds_against_seeds_of_the_same_network_could_be_chance(runs):
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(100):
        order = rng.permutation(len(runs["simple"]))
        sides = [[runs["simple"][index] for index in part] for part in (order[:3], order[3:6])]
        verdicts.append(compare_seeds(*sides).verdict)
    assert verdicts.count("could be chance") >= 90


def test_three_seeds_of_each_tell_simple_from_deep(runs):
    found = compare_seeds(runs["simple"][:3], runs["deep"][:3], "simple", "deep")
    assert found.verdict == "better"
    assert found.difference > 5 * found.error_from_seeds > 0
