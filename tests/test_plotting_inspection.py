"""Figures of what inspection finds: drawn from its arrays alone, grey and colour, few and many."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from convscope.errors import UsageError
from convscope.plotting import (
    attribution_picture,
    plot_attribution,
    plot_embedding_map,
    plot_faithfulness,
    plot_feature_maps,
    plot_filters,
    plot_health,
    plot_neighbours,
    plot_recomputed,
    plot_synthesis,
)
from convscope.plotting.style import RED

RNG = np.random.default_rng(0)


def drawn(figure):
    """Lay the figure out, so that a fault which shows only then is found."""
    figure.draw_without_rendering()
    return figure


def filters(count=6, channels=3):
    return SimpleNamespace(
        layer="conv", kernels=RNG.normal(size=(count, 3, 3, channels)), biases=np.zeros(count)
    )


POSITIVE, NEGATIVE, WHITE = (np.array(colour) for colour in ((213, 94, 0), (0, 114, 178), (255, 255, 255)))


def coloured(values, limit):
    """Mix white with red for positive numbers, with blue for negative ones: (…) → (…, 3)."""
    share = np.abs(values)[..., None] / limit
    return (1 - share) * WHITE + share * np.where(values[..., None] >= 0, POSITIVE, NEGATIVE)


class TestFilters:
    def test_one_scale_around_zero_for_all(self):
        layer = filters()
        figure = drawn(plot_filters(layer, channel=2))
        images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
        kernels = layer.kernels[..., 2]
        for image, kernel in zip(images, kernels, strict=True):
            np.testing.assert_allclose(image, coloured(kernel, np.abs(kernels).max()), atol=2)
        assert figure.get_suptitle() == "conv: 6 filters of 3×3×3, input channel 2"
        low, high = figure.axes[-1].get_ylim()  # the scale beside them
        assert -low == high == np.abs(kernels).max()

    def test_the_mean_over_channels_and_no_more_than_asked_for(self):
        layer = filters(count=20)
        figure = drawn(plot_filters(layer, count=9))
        images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
        assert len(images) == 9
        kernels = layer.kernels[:9].mean(axis=3)
        np.testing.assert_allclose(images[0], coloured(kernels[0], np.abs(kernels).max()), atol=2)

    @pytest.mark.parametrize("channel", [-1, 3], ids=str)
    def test_refuses_a_channel_that_does_not_exist(self, channel):
        with pytest.raises(UsageError, match=f"Expected a channel from 0 to 2, got {channel}"):
            plot_filters(filters(), channel)

    def test_filters_of_zeros(self):
        drawn(plot_filters(SimpleNamespace(layer="c", kernels=np.zeros((1, 1, 1, 1)), biases=np.zeros(1))))


def layer(values, name="layer"):
    return SimpleNamespace(layer=name, type="Conv2D", values=np.asarray(values, dtype=np.float32))


class TestFeatureMaps:
    def test_one_layer_beside_the_image(self):
        maps = layer(RNG.normal(size=(5, 4, 40)))
        figure = drawn(plot_feature_maps(maps, np.zeros((5, 4, 1)), count=10))
        assert sum(bool(axes.images) for axes in figure.axes) == 11
        np.testing.assert_allclose(figure.axes[1].images[0].get_array(), maps.values[:, :, 0])
        assert figure.get_suptitle() == "layer (Conv2D): 5×4×40"

    def test_every_layer_has_a_row(self):
        layers = [layer(RNG.normal(size=(5, 5, 3))), layer(RNG.normal(size=300)), layer(RNG.normal(size=10))]
        figure = drawn(plot_feature_maps(layers, np.zeros((5, 5, 3)), count=2))
        names = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
        assert names == ["image\n5×5×3", "layer\nConv2D\n5×5×3", "layer\nConv2D\n300", "layer\nConv2D\n10"]

    def test_a_silent_map_says_its_value(self):
        figure = drawn(plot_feature_maps(layer(np.zeros((4, 4, 1)))))
        assert figure.axes[0].get_title() == "channel 0 (all 0)"

    def test_refuses_nothing(self):
        with pytest.raises(UsageError, match="Expected at least one layer, got none"):
            plot_feature_maps([])


def attribution(values, **more):
    settings = {"method": "occlusion", "class_index": 1, "signed": True, "layer": None, "completeness": None}
    return SimpleNamespace(values=np.asarray(values, dtype=np.float32), **{**settings, **more})


class TestAttributions:
    @pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (3, 6, 5)], ids=str)
    def test_every_kind_of_image(self, shape):
        maps = [
            attribution(RNG.normal(size=(6, 5))),
            attribution(RNG.random((6, 5)), method="grad_cam", signed=False, layer="conv2d_2"),
        ]
        figure = drawn(plot_attribution(RNG.random(shape), maps, ["cat", "dog"]))
        assert [axes.get_title() for axes in figure.axes[1:3]] == ["Occlusion\nfor dog", "Grad-CAM\nfor dog"]
        assert figure.axes[2].get_xlabel() == "at conv2d_2"
        corners = [axes.get_position() for axes in figure.axes[:3]]
        np.testing.assert_allclose([corner.y0 for corner in corners], corners[0].y0)  # side by side
        np.testing.assert_allclose([corner.y1 for corner in corners], corners[0].y1)

    def test_a_smooth_map_keeps_its_contrast_and_a_signed_one_shows_its_small_values(self):
        white = np.full((2, 1, 1), 255, np.uint8)
        smooth = attribution([[0.25], [1.0]], signed=False)
        signed = attribution([[-0.25], [1.0]])
        for found, least in ((smooth, 0.9 * 0.25), (signed, 0.9 * 0.5)):
            picture = attribution_picture(white, found)
            shares = (255 - picture[:, 0].astype(float)) / (
                255 - np.where(found.values < 0, NEGATIVE, POSITIVE)
            )
            np.testing.assert_allclose(shares, [[least] * 3, [0.9] * 3], atol=0.02)
            panel = plot_attribution(white, found).axes[1]
            np.testing.assert_array_equal(panel.images[0].get_array(), picture)

    def test_completeness_is_written_below(self):
        sums = SimpleNamespace(total=9.18, difference=9.17)
        seen = attribution(np.ones((4, 4)), method="integrated_gradients", completeness=sums)
        assert plot_attribution(np.zeros((4, 4)), seen).axes[1].get_xlabel() == "adds up to 9.18 of 9.17"

    def test_an_attribution_of_nothing(self):
        drawn(plot_attribution(np.zeros((4, 4)), [attribution(np.zeros((4, 4)), signed=False)]))

    def test_refuses_what_does_not_fit(self):
        with pytest.raises(UsageError, match=r"Expected attributions of shape \(4, 4\), got \(5, 5\)"):
            plot_attribution(np.zeros((4, 4)), attribution(np.zeros((5, 5))))
        with pytest.raises(UsageError, match="Expected at least one attribution, got none"):
            plot_attribution(np.zeros((4, 4)), [])

    def test_deletion_and_insertion(self):
        fractions = np.linspace(0, 1, 5)
        curves = [
            SimpleNamespace(
                kind="deletion",
                class_index=2,
                fractions=fractions,
                probabilities=1 - fractions,
                area=0.5,
                random_area=0.6,
            ),
            SimpleNamespace(
                kind="insertion",
                class_index=2,
                fractions=fractions,
                probabilities=fractions,
                area=0.5,
                random_area=0.4,
            ),
        ]
        figure = drawn(plot_faithfulness(curves))
        assert figure.axes[1].get_title() == "Insertion: area 0.500 (random 0.400)"
        np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 1 - fractions)
        with pytest.raises(UsageError, match="Expected at least one curve, got none"):
            plot_faithfulness([])

    def test_each_curve_may_name_the_method_that_it_checks(self):
        curve = SimpleNamespace(
            kind="deletion", class_index=2, fractions=np.linspace(0, 1, 5), probabilities=np.ones(5),
            area=0.5, random_area=0.6,
        )  # fmt: skip
        figure = drawn(plot_faithfulness([curve] * 4, ["grad_cam", "occlusion", "mine", "grad_cam"]))
        titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
        assert titles == ["Grad-CAM", "Occlusion", "mine", "Grad-CAM"]
        with pytest.raises(UsageError, match="Expected 1 methods, one for each curve, got 2"):
            plot_faithfulness([curve], ["grad_cam", "occlusion"])


class TestEmbeddings:
    def test_neighbours_stand_beside_their_query(self):
        known = RNG.random((9, 4, 4))
        found = SimpleNamespace(
            indices=np.array([[3, 8], [0, 1]]), similarities=np.array([[0.9, 0.8], [1, 0.5]])
        )
        figure = drawn(
            plot_neighbours(known[:2], known, found, query_labels=["a", "b"], known_labels=["n"] * 9)
        )
        assert len(figure.axes) == 6
        np.testing.assert_allclose(figure.axes[2].images[0].get_array(), known[8])
        assert figure.axes[2].get_xlabel() == "0.800"
        assert figure.axes[3].get_title() == "b"

    def test_refuses_other_numbers_of_queries(self):
        found = SimpleNamespace(indices=np.array([[0]]), similarities=np.array([[1.0]]))
        with pytest.raises(UsageError, match="Expected 1 queries, one for each row of neighbours, got 2"):
            plot_neighbours(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), found)

    @pytest.mark.parametrize(("classes", "named"), [(2, True), (10, True), (100, False)], ids=str)
    def test_any_number_of_classes(self, classes, named):
        labels = np.arange(3 * classes) % classes
        points = SimpleNamespace(points=RNG.normal(size=(3 * classes, 2)), method="tsne", explained=None)
        axes = drawn(plot_embedding_map(points, labels)).axes[0]
        assert len(axes.collections) == classes
        assert (axes.get_legend() is not None) == named
        looks = {
            (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
            for dots in axes.collections
        }
        assert len(looks) == min(classes, 96)  # eight colours and twelve markers

    def test_classes_without_points_are_left_out(self):
        points = SimpleNamespace(points=RNG.normal(size=(4, 2)), method="pca", explained=0.5)
        axes = drawn(plot_embedding_map(points, [0, 0, 2, 2], ["a", "b", "c"])).axes[0]
        assert [text.get_text() for text in axes.get_legend().texts] == ["a", "c"]


def recomputed(inputs, weights, **more):
    settings = {
        "layer": "conv2d_1", "type": "Conv2D", "position": (0, 1), "channel": 2, "bias": 0.5, "total": 1.0,
        "activation": "relu", "value": 1.0, "network_value": 1.0, "inside": None, "sums": None,
        "lines": ("sum = 1",), "agrees": True,
    }  # fmt: skip
    return SimpleNamespace(inputs=np.asarray(inputs, float), weights=weights, **{**settings, **more})


class TestRecomputed:
    def test_the_channels_that_contribute_most_are_written_out(self):
        inputs, weights = np.ones((2, 2, 6)), np.zeros((2, 2, 6))
        weights[:, :, 4], weights[:, :, 1], weights[0, 0, 0] = 3.0, -2.0, 0.25
        figure = drawn(plot_recomputed(recomputed(inputs, weights)))
        titles = [axes.get_title() for sub in figure.subfigs[:1] for axes in sub.axes]
        assert titles[:6] == [
            "input channel 4", "× weights", "= products, sum 12",
            "input channel 1", "× weights", "= products, sum −8",
        ]  # fmt: skip
        assert figure.get_suptitle() == "conv2d_1 (Conv2D) at row 0, column 1, channel 2: 1"
        texts = [text.get_text() for text in figure.subfigs[0].texts]
        assert "and 2 more input channels, whose products sum to 0" in texts

    def test_padding_is_marked(self):
        inside = np.array([[False, True], [True, True]])
        figure = drawn(plot_recomputed(recomputed(np.zeros((2, 2, 1)), np.ones((2, 2, 1)), inside=inside)))
        assert [text.get_text() for text in figure.subfigs[0].axes[0].texts] == ["pad", "0", "0", "0"]

    def test_pooling_has_no_weights(self):
        figure = drawn(plot_recomputed(recomputed(np.ones((2, 2, 1)), None)))
        assert [axes.get_title() for axes in figure.subfigs[0].axes] == ["input"]

    def test_a_row_of_numbers(self):
        figure = drawn(plot_recomputed(recomputed(np.arange(-30, 30), np.ones(60), position=None)))
        axes = figure.subfigs[0].axes[0]
        assert axes.get_title() == "The 20 largest of 60 products"
        assert axes.containers[0][0].get_height() == -30

    def test_a_softmax_shows_all_units(self):
        found = recomputed(np.ones(4), np.ones(4), position=None, sums=np.array([1.0, 2.0, 3.0]))
        bars = drawn(plot_recomputed(found)).subfigs[0].axes[0].containers[0]
        assert [bar.get_height() for bar in bars] == [1, 2, 3]
        assert bars[2].get_facecolor() == to_rgba(RED)

    def test_a_single_number_needs_no_chart(self):
        figure = drawn(plot_recomputed(recomputed([1.0], None, position=None)))
        assert not figure.subfigs[0].axes

    def test_a_disagreement_is_loud(self):
        found = recomputed(np.ones((1, 1, 1)), np.ones((1, 1, 1)), agrees=False, network_value=2.0)
        text = plot_recomputed(found).subfigs[1].axes[0].texts[0].get_text()
        assert text == "sum = 1\nNOT EQUAL to the network's own number, 2."

    def test_large_windows_are_drawn_without_numbers(self):
        figure = drawn(plot_recomputed(recomputed(np.ones((11, 11, 1)), np.ones((11, 11, 1)))))
        assert not figure.subfigs[0].axes[0].texts


class TestHealthAndSynthesis:
    def test_health_names_dead_units_and_missing_numbers(self):
        layers = [
            SimpleNamespace(
                layer="conv", activation_std=0.5, relative_gradient=1e-3, units=8, dead=(1, 2), zero_share=0.4
            ),
            SimpleNamespace(
                layer="relu", activation_std=0.0, relative_gradient=None, units=8, dead=None, zero_share=1.0
            ),
        ]
        activations, gradients, silence = drawn(plot_health(layers)).axes
        assert [text.get_text() for text in activations.texts] == ["0.5", "–"]
        assert [text.get_text() for text in gradients.texts] == ["0.001", "–"]
        assert [text.get_text() for text in silence.texts] == ["2 of 8 dead"]
        with pytest.raises(UsageError, match="Expected at least one layer, got none"):
            plot_health([])

    def test_synthesised_images_in_colour(self):
        found = [
            SimpleNamespace(target=f"class {n}", image=RNG.random((5, 5, 3)), scores=np.arange(3.0))
            for n in range(7)
        ]
        figure = drawn(plot_synthesis(found))
        assert len(figure.axes) == 7
        assert figure.axes[6].get_title() == "class 6\nscore 0 to 2"
        with pytest.raises(UsageError, match="Expected at least one synthesised image, got none"):
            plot_synthesis([])


def test_inspection_s_own_results_are_drawn():
    """The real dataclasses have the fields that the stand-ins above have."""
    from convscope import inspection, networks

    model = networks.build("simple", (8, 8, 1), classes=3)
    images = RNG.random((12, 8, 8, 1)).astype(np.float32)
    labels = np.arange(12) % 3
    rows = inspection.embeddings(model, images)
    attributions = [inspection.grad_cam(model, images[0]), inspection.integrated_gradients(model, images[0])]
    for figure in (
        plot_filters(inspection.filters(model), count=8),
        plot_feature_maps(inspection.feature_maps(model, images[0]), images[0], count=2),
        plot_attribution(images[0], attributions),
        plot_faithfulness([inspection.deletion(model, images[0], attributions[0].values, steps=4)]),
        plot_neighbours(images[:1], images, inspection.nearest(rows, rows[:1], count=2)),
        plot_embedding_map(inspection.embedding_map(rows, "pca"), labels),
        plot_recomputed(inspection.recompute(model, images[0], "conv2d_1", (0, 0), 3)),
        plot_recomputed(inspection.recompute(model, images[0], "dense_1", channel=1)),
        plot_synthesis(inspection.maximise_class(model, 1, steps=2)),
        plot_health(inspection.layer_health(model, images, labels)),
    ):
        drawn(figure)
