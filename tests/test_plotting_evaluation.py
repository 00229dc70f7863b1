"""Figures of calibration, ranking, coverage, comparisons and contact sheets, on every kind of prediction."""

import numpy as np
import pytest
from prediction_cases import CASES, random_case

from convscope.errors import UsageError
from convscope.evaluation import Evaluation, compare, compare_seeds
from convscope.plotting import (
    plot_comparison,
    plot_confused_pairs,
    plot_coverage,
    plot_differences,
    plot_examples,
    plot_label_issues,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
    plot_seed_comparison,
)


def drawn(figure):
    """Lay the figure out, so that a fault which shows only then is found."""
    figure.draw_without_rendering()
    return figure


def evaluate(name):
    return Evaluation.from_probabilities(*CASES[name])


def pictures(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, *shape), dtype=np.uint8)


@pytest.mark.parametrize(
    "name", ["one image", "one class only", "no errors", "all ties", "a thousand classes"]
)
def test_every_figure_can_be_drawn(name):
    """Whatever the predictions are; these are the ones in which something is missing or too much."""
    probabilities, labels = CASES[name]
    result = Evaluation.from_probabilities(probabilities, labels)
    for figure in (
        plot_reliability(result.reliability),
        plot_roc(result),
        plot_precision_recall(result),
        plot_coverage(result.coverage),
        plot_confused_pairs(result.confused_pairs(), result.class_names),
        plot_label_issues(pictures(len(labels), 1), result, count=3),
        plot_examples(pictures(len(labels)), result, np.unique(labels)[:2].tolist(), count=2),
    ):
        drawn(figure)


class TestReliability:
    def test_bars_are_the_accuracies_of_the_bins(self):
        found = evaluate("ten classes").reliability
        figure = plot_reliability(found)
        bars = [bar for container in figure.axes[0].containers for bar in container]
        heights = [bar.get_height() for bar in sorted(bars, key=lambda bar: bar.get_x())]
        np.testing.assert_allclose(heights, found.accuracy[found.counts > 0])
        assert f"expected calibration error {found.expected_error:.2%}" in figure.axes[0].get_title()

    def test_before_and_after_stand_side_by_side(self):
        run = evaluate("ten classes")
        figure = drawn(plot_reliability(run.reliability, run.calibrated(2.0).reliability))
        assert [axes.get_title().split("\n")[0] for axes in figure.axes[:2]] == [
            "As predicted",
            "After temperature scaling",
        ]


class TestCurves:
    def test_the_seven_classes_with_the_smallest_areas_are_drawn(self):
        result = evaluate("ten classes")
        figure = plot_roc(result)
        smallest = np.argsort(result.areas.roc)[:7]
        texts = [text.get_text() for text in figure.axes[0].get_legend().texts]
        assert texts == [f"{index}: {result.areas.roc[index]:.4f}" for index in smallest]

    def test_chosen_classes_are_drawn_as_they_are(self):
        result = evaluate("two classes")
        figure = plot_precision_recall(result, [1])
        curve = result.curve(1)
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), curve.recall)
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), curve.precision)

    def test_says_when_no_class_has_a_curve(self):
        figure = drawn(plot_roc(evaluate("one class only")))
        assert figure.axes[0].texts[0].get_text() == "no class has a curve"

    def test_refuses_a_class_that_does_not_exist(self):
        with pytest.raises(UsageError, match="Expected a class from 0 to 1, got 5"):
            plot_roc(evaluate("two classes"), [5])


class TestCoverage:
    def test_operating_points_are_marked(self):
        probabilities, labels = random_case(2000, 4, skill=4.0)
        result = Evaluation.from_probabilities(probabilities, labels)
        texts = [text.get_text() for text in plot_coverage(result.coverage).axes[0].get_legend().texts]
        point = result.coverage.for_accuracy(0.999)
        assert texts[-2] == f"99.9% of {point.coverage:.1%}, from confidence {point.threshold:.5f}"

    def test_a_point_that_answers_next_to_nothing_is_not_marked(self):
        table, labels = random_case(2000, 10, skill=0.2)
        table[0] = np.eye(10)[labels[0]]  # one image that is sure and right
        result = Evaluation.from_probabilities(table, labels)
        assert 0 < result.coverage.for_accuracy(0.99).coverage < 0.05
        (text,) = plot_coverage(result.coverage).axes[0].get_legend().texts
        assert text.get_text().startswith("all answered: ")

    def test_without_errors_nothing_needs_marking(self):
        axes = drawn(plot_coverage(evaluate("no errors").coverage)).axes[0]
        assert [text.get_text() for text in axes.get_legend().texts] == ["all answered: 100.00%"]


class TestPairsAndSheets:
    def test_pairs_are_written_out(self):
        result = Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1], ["cat", "dog"])
        axes = plot_confused_pairs(result.confused_pairs(), result.class_names).axes[0]
        assert axes.texts[0].get_text() == "1 (100.0%)"

    def test_no_confused_pairs(self):
        figure = plot_confused_pairs([], ["a", "b"])
        assert figure.axes[0].texts[0].get_text() == "No class was taken for another."

    def test_suspect_labels_come_with_their_images_and_names(self):
        labels = np.repeat([0, 1], 30)
        table = np.where(labels[:, None] == [0, 1], 0.97, 0.03)
        table[4] = [0.02, 0.98]  # looks like the other class
        images = pictures(60, 3)
        result = Evaluation.from_probabilities(table, labels, ["cat", "dog"], [f"{n}.jpg" for n in range(60)])
        figure = drawn(plot_label_issues(images, result))
        (axes,) = figure.axes
        assert axes.get_title() == "labelled cat\nlooks like dog (0.98)"
        assert axes.get_xlabel() == "4.jpg"
        np.testing.assert_allclose(axes.images[0].get_array(), images[4] / 255)

    def test_examples_run_from_the_hardest_to_the_easiest(self):
        probabilities, labels = random_case(60, 3)
        result = Evaluation.from_probabilities(probabilities, labels, ["a", "b", "c"])
        figure = plot_examples(pictures(60), result, [1], count=2)
        order = [*result.hardest(1, 2), *result.easiest(1, 2)[::-1]]
        shown = [float(axes.get_title().split()[-1]) for axes in figure.axes]
        np.testing.assert_allclose(shown, probabilities[order, 1], atol=0.005)

    @pytest.mark.parametrize(("classes", "count"), [([], 4), ([0], 0)], ids=["no class", "no image"])
    def test_refuses_nothing(self, classes, count):
        with pytest.raises(UsageError, match="Expected at least one class and one image of each kind"):
            plot_examples(pictures(300), evaluate("two classes"), classes, count)


def two_runs(shift=1.0):
    labels = np.arange(200) % 3
    runs = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(200, 3))
        logits[np.arange(200), labels] += 1 + shift * (seed - 1)
        weights = np.exp(logits)
        runs.append(Evaluation.from_probabilities(weights / weights.sum(axis=1, keepdims=True), labels))
    return runs


class TestComparisons:
    @pytest.mark.parametrize(
        ("shift", "title"),
        [(4.0, "deep is better than simple"), (0.0, "simple and deep: the difference could be chance")],
        ids=["better", "chance"],
    )
    def test_the_title_is_the_verdict(self, shift, title):
        found = compare(*two_runs(shift), "simple", "deep")
        figure = drawn(plot_comparison(found))
        assert figure.get_suptitle() == title
        points = [line.get_xdata()[0] for line in figure.axes[0].lines[1::2]]
        np.testing.assert_allclose(points, [100 * found.accuracy_a, 100 * found.accuracy_b])

    def test_every_seed_is_drawn(self):
        runs = two_runs()
        figure = drawn(plot_seed_comparison(compare_seeds([runs[0]] * 3, [runs[1]], "a", "b")))
        assert [len(line.get_xdata()) for line in figure.axes[0].lines[::2]] == [3, 1]

    def test_images_of_every_kind_of_difference_are_shown(self):
        a, b = two_runs()
        found = compare(a, b)
        figure = drawn(plot_differences(pictures(200, 1), a, b, found, count=6))
        total = found.only_a_right.size + found.only_b_right.size + found.both_wrong.size
        assert figure.get_suptitle() == f"6 of {total} images on which A and B differ"
        signs = [axes.get_title().count("✓") for axes in figure.axes]
        assert sorted(signs) == [0, 0, 1, 1, 1, 1]

    def test_says_when_there_is_no_difference(self):
        a, _ = two_runs()
        assert plot_differences(pictures(200), a, a, compare(a, a)).axes[0].get_title() == "No difference"
