"""Likely wrong labels: planted ones are found, and degenerate data do no harm."""

import numpy as np
import pytest
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from prediction_cases import case, predictions, random_case
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from convscope.errors import DataError, UsageError
from convscope.evaluation import Evaluation, check_labels, out_of_sample_probabilities
from convscope.plotting import plot_label_issues


def test_flipped_labels_of_mnist_are_found(real_mnist):
    """Of 10 % flipped labels at least 90 % stand among the first 15 % of the ranking."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(real_mnist.train.labels))[:10_000]
    pixels = real_mnist.train.images[chosen].reshape(10_000, -1) / 255
    labels = real_mnist.train.labels[chosen].copy()
    flipped = rng.permutation(10_000)[:1_000]
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, 1_000)) % 10

    def neighbours(train, predict):
        model = make_pipeline(PCA(40, random_state=0), KNeighborsClassifier(10, weights="distance"))
        return model.fit(pixels[train], labels[train]).predict_proba(pixels[predict])

    with threadpool_limits(1):  # 37 s instead of 2 when other programs keep the cores busy
        check = check_labels(out_of_sample_probabilities(labels, 10, neighbours), labels)
    assert np.isin(flipped, check.ranking[:1_500]).mean() >= 0.9
    assert 800 <= check.suspects <= 1_300
    assert np.isin(check.ranking[: check.suspects], flipped).mean() > 0.8


@case
def test_scores_are_cleanlabs_and_sorted(probabilities, labels):
    check = Evaluation.from_probabilities(probabilities, labels).label_check
    expected = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    np.testing.assert_allclose(check.scores, expected[check.ranking], rtol=1e-9, atol=1e-12)
    assert (np.diff(check.scores) >= 0).all()
    assert sorted(check.ranking) == list(range(len(labels)))
    assert check.suspects is None or 0 <= check.suspects <= len(labels)


def test_without_errors_nothing_is_suspect():
    labels = np.arange(40) % 4
    assert check_labels(np.eye(4)[labels], labels).suspects == 0


def overlapping(skill, wrong, classes=10, count=2_000, seed=0):
    """Predict classes that overlap, calibrated, and change a share of the labels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    scores = rng.normal(size=(count, classes))
    scores[np.arange(count), truth] += skill
    labels = np.where(rng.random(count) < wrong, (truth + rng.integers(1, classes, count)) % classes, truth)
    return softmax(skill * scores, axis=1), labels, labels != truth


@pytest.mark.parametrize("skill", [0.2, 1.0, 2.0], ids=["chance", "a third right", "two thirds right"])
def test_a_network_that_is_often_wrong_accuses_no_label(skill):
    probabilities, labels, _ = overlapping(skill, 0.0)
    check = check_labels(probabilities, labels)
    assert check.suspects is None
    assert len(check.ranking) == len(labels)
    evaluation = Evaluation.from_probabilities(probabilities, labels)
    drawing = plot_label_issues(np.zeros((len(labels), 4, 4)), evaluation)
    assert drawing.axes[0].get_title() == "Which labels are wrong cannot be told"


@pytest.mark.parametrize("wrong", [0.05, 0.1], ids=str)
def test_the_suspects_of_a_good_network_are_mostly_wrong_labels(wrong):
    probabilities, labels, changed = overlapping(3.0, wrong)
    check = check_labels(probabilities, labels)
    assert changed[check.ranking[: check.suspects]].mean() > 0.5


@settings(max_examples=30)
@given(predictions())
def test_scores_are_within_bounds_and_equal_ones_keep_their_order(drawn):
    table, labels, _ = drawn
    check = check_labels(table, labels)
    assert ((check.scores >= 0) & (check.scores <= 1)).all()
    ties = np.diff(check.scores) == 0
    assert (np.diff(check.ranking)[ties] > 0).all()


class TestOutOfSample:
    def test_every_image_is_predicted_by_a_network_that_has_not_seen_it(self):
        seen = []

        def record(train, predict):
            assert not set(train) & set(predict)
            seen.extend(predict)
            return np.full((len(predict), 3), 1 / 3)

        _, labels = random_case(50, 3)
        table = out_of_sample_probabilities(labels, 3, record)
        assert sorted(seen) == list(range(50))
        assert table.shape == (50, 3)

    def test_the_seed_decides_the_folds(self):
        def which(seed):
            parts = []
            labels = np.arange(30) % 3
            out_of_sample_probabilities(
                labels,
                3,
                lambda _, predict: parts.append(predict.tolist()) or np.eye(3)[labels[predict]],
                seed=seed,
            )
            return parts

        assert which(1) == which(1) != which(2)

    def test_a_rare_class_is_no_obstacle(self):
        labels = np.array([0] * 20 + [1])
        table = out_of_sample_probabilities(labels, 2, lambda _, predict: np.full((len(predict), 2), 0.5))
        assert np.isfinite(table).all()

    @pytest.mark.parametrize("folds", [1, 6], ids=str)
    def test_impossible_folds_are_refused(self, folds):
        with pytest.raises(
            UsageError, match=f"from 2 to 5 folds, the images of the largest class, got {folds}"
        ):
            out_of_sample_probabilities([0] * 5 + [1] * 4, 2, lambda *_: None, folds=folds)

    def test_bad_probabilities_are_refused(self):
        with pytest.raises(DataError, match="Expected finite probabilities"):
            out_of_sample_probabilities(
                [0, 1, 0, 1], 2, lambda _, predict: np.full((len(predict), 2), np.nan), folds=2
            )
