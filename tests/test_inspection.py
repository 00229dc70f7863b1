"""Probes into a network, held against SciPy, autograd written out, and formulas for linear models."""

import captum.attr
import keras
import numpy as np
import pytest
import torch
from keras import layers
from odd_networks import channels_first, residual, separable, strided
from scipy.signal import correlate
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from convscope import inspection
from convscope.errors import UnknownNameError, UsageError
from convscope.inspection.forward import fitting_batch, run
from convscope.lowering.graph import read_graph
from convscope.networks import build


@pytest.fixture(scope="module")
def deep():
    keras.utils.set_random_seed(1338)
    model = build("deep", (16, 16, 1), classes=4)
    for layer in model.layers:  # without biases and from a black baseline, one step would be exact
        if layer.weights:
            layer.bias.assign(np.random.default_rng(0).normal(0, 0.2, tuple(layer.bias.shape)))
    return model


@pytest.fixture(scope="module")
def linear():
    """Build scores = x · weights + biases, on images of 4×5×2."""
    keras.utils.set_random_seed(1338)
    model = keras.Sequential(
        [keras.Input((4, 5, 2)), layers.Flatten(), layers.Dense(3, activation="softmax")]
    )
    model.layers[-1].bias.assign([0.1, -0.2, 0.3])
    return model


def image_for(model: keras.Model, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, model.input_shape[1:]).astype("float32")


def linear_weights(model: keras.Model, target: int) -> np.ndarray:
    return np.float64(model.layers[-1].get_weights()[0][:, target]).reshape(4, 5, 2)


# ---- filters, feature maps, embeddings


def test_filters_are_the_kernels(deep):
    kernel, bias = deep.layers[1].get_weights()
    found = inspection.filters(deep, "conv2d_2")
    np.testing.assert_array_equal(found.kernels[5, :, :, 7], kernel[:, :, 7, 5])
    np.testing.assert_array_equal(found.biases, bias)


def test_first_convolution_is_the_default(deep):
    assert inspection.filters(deep).layer == "conv2d_1"


def test_filters_of_a_depthwise_convolution_look_at_one_channel():
    model = separable()
    kernel = model.layers[1].get_weights()[0]  # (3, 3, 3, 2)
    found = inspection.filters(model, 1)
    assert found.kernels.shape == (6, 3, 3, 1)
    np.testing.assert_array_equal(found.kernels[2 * 2 + 1, :, :, 0], kernel[:, :, 2, 1])


def test_filters_of_another_layer_are_refused(deep):
    with pytest.raises(UsageError, match=r"Expected a convolution, got dense_1 \(Dense, output 128\)"):
        inspection.filters(deep, "dense_1")


def test_filters_need_a_convolution(linear):
    with pytest.raises(UsageError, match="Expected a network with a convolution"):
        inspection.filters(linear)


def test_feature_maps_are_correlations(deep):
    image = image_for(deep)
    kernel, bias = (np.float64(weight) for weight in deep.layers[0].get_weights())
    expected = np.maximum(0, correlate(np.float64(image), kernel[..., 3], mode="valid")[..., 0] + bias[3])
    maps = inspection.feature_maps(deep, image)
    assert [layer.layer for layer in maps] == [layer.name for layer in deep.layers]
    np.testing.assert_allclose(maps[0].values[..., 3], expected, rtol=1e-5, atol=1e-6)


def test_feature_maps_end_in_the_prediction(deep):
    image = image_for(deep)
    expected = deep.predict(image[None], verbose=0)[0]
    np.testing.assert_allclose(
        inspection.feature_maps(deep, image)[-1].values, expected, rtol=1e-5, atol=1e-7
    )


def test_feature_maps_have_their_channels_last_in_any_order():
    shapes = [layer.values.shape for layer in inspection.feature_maps(channels_first(), np.ones((3, 12, 15)))]
    assert shapes == [(6, 8, 4), (6, 8, 4), (3, 4, 4), (2, 3, 4), (24,), (6,)]


def test_embeddings_enter_the_last_layer(deep):
    images = np.stack([image_for(deep, seed) for seed in range(5)])
    rows = inspection.embeddings(deep, images, batch_size=2)
    kernel, bias = deep.layers[-1].get_weights()
    scores = np.exp(rows @ kernel + bias)
    expected = deep.predict(images, verbose=0)
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), expected, rtol=1e-5)


def test_embeddings_of_a_network_that_pools_at_its_end():
    model = strided()
    assert inspection.embeddings(model, np.ones((2, 17, 14, 3))).shape == (2, 6)


# ---- attribution


def test_grad_cam_is_its_formula(deep):
    image = image_for(deep)
    found = inspection.grad_cam(deep, image, class_index=2)
    maps = torch.tensor(inspection.feature_maps(deep, image)[1].values, dtype=torch.float64)  # (12, 12, 64)
    maps.requires_grad_()
    pooled = torch.nn.functional.max_pool2d(maps.permute(2, 0, 1)[None], 2).permute(0, 2, 3, 1).flatten()
    first, second = (
        [torch.tensor(weight, dtype=torch.float64) for weight in layer.get_weights()]
        for layer in deep.layers
        if layer.name.startswith("dense")
    )
    score = ((pooled @ first[0] + first[1]).relu() @ second[0] + second[1])[2]
    (gradient,) = torch.autograd.grad(score, maps)
    expected = (maps * gradient.mean((0, 1))).sum(-1).relu().detach().numpy()
    np.testing.assert_allclose(found.coarse, expected, rtol=1e-4, atol=1e-6)
    assert found.score == pytest.approx(float(score.detach()), rel=1e-5)
    assert (found.layer, found.values.shape, found.signed) == ("conv2d_2", (16, 16), False)


def test_grad_cam_is_captums_where_that_understands_the_layout():
    keras.utils.set_random_seed(0)
    model = channels_first()
    image = image_for(model)
    found = inspection.grad_cam(model, image, class_index=1, layer=2)

    def scores(batch):
        x = batch
        for layer in model.layers[:-1]:
            x = layer(x, training=False) if layer.name.startswith("batch") else layer(x)
        return x @ model.layers[-1].kernel.value + model.layers[-1].bias.value

    oracle = captum.attr.LayerGradCam(scores, model.layers[2])
    expected = oracle.attribute(torch.tensor(image[None]), target=1, relu_attributions=True)
    np.testing.assert_allclose(found.coarse, expected[0, 0].detach().numpy(), rtol=1e-4, atol=1e-7)


def test_grad_cam_plus_plus_is_its_formula_on_one_map():
    """On a linear head the gradients are the weights, and the paper's equations can be followed by hand."""
    model = keras.Sequential([keras.Input((3, 3, 1)), layers.Conv2D(2, 1), layers.Flatten(), layers.Dense(2)])
    kernel, weights = np.array([[[[1.0, 2.0]]]]), np.random.default_rng(0).normal(size=(18, 2))
    model.set_weights([kernel, np.zeros(2), weights, np.zeros(2)])
    image = image_for(model)
    maps = np.float64(image) * kernel[0, 0]  # (3, 3, 2)
    gradient = np.float32(weights[:, 1]).astype(float).reshape(3, 3, 2)
    alpha = gradient**2 / (2 * gradient**2 + gradient**3 * maps.sum((0, 1)))
    channel_weights = (alpha * np.maximum(gradient, 0)).sum((0, 1))
    expected = np.maximum(0, (maps * channel_weights).sum(-1))
    found = inspection.grad_cam_plus_plus(model, image, class_index=1)
    np.testing.assert_allclose(found.coarse, expected, rtol=1e-4, atol=1e-6)


def test_a_dead_map_gives_no_evidence(deep):
    dead = keras.models.clone_model(deep)
    dead.layers[1].set_weights([np.zeros((3, 3, 32, 64)), np.full(64, -1.0)])
    assert not inspection.grad_cam_plus_plus(dead, image_for(dead)).values.any()


@pytest.mark.parametrize("method", [inspection.grad_cam, inspection.grad_cam_plus_plus], ids=["cam", "++"])
def test_class_activation_maps_work_on_other_architectures(method):
    model = residual()
    found = method(model, image_for(model))
    assert (found.layer, found.values.shape) == ("branch", (12, 12))
    assert found.values.min() >= 0


def test_grad_cam_of_frozen_weights(deep):
    frozen = keras.models.clone_model(deep)
    frozen.set_weights(deep.get_weights())
    frozen.trainable = False
    np.testing.assert_allclose(
        inspection.grad_cam(frozen, image_for(deep)).coarse, inspection.grad_cam(deep, image_for(deep)).coarse
    )


def test_integrated_gradients_of_a_linear_model_are_weight_times_input(linear):
    image = image_for(linear)
    baseline = np.full((4, 5, 2), 0.25, "float32")
    found = inspection.integrated_gradients(linear, image, class_index=1, baseline=baseline)
    expected = ((np.float64(image) - baseline) * linear_weights(linear, 1)).sum(-1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-6)
    assert found.completeness.error < 1e-5


@pytest.mark.parametrize("target", range(4), ids="class{}".format)
def test_integrated_gradients_add_up(deep, target):
    found = inspection.integrated_gradients(deep, image_for(deep), class_index=target)
    assert found.completeness.holds
    assert found.values.sum() == pytest.approx(found.completeness.difference, rel=0.01)


def test_integrated_gradients_take_more_steps_until_they_add_up(deep):
    found = inspection.integrated_gradients(deep, image_for(deep), class_index=0, steps=1)
    assert found.completeness.steps > 1
    assert found.completeness.holds


def test_gradients_that_do_not_add_up_are_told(linear):
    found = inspection.integrated_gradients(linear, np.zeros((4, 5, 2)), class_index=0)
    assert found.completeness.holds  # nothing to explain, nothing explained
    crooked = inspection.Completeness(total=1.0, difference=2.0, steps=64)
    assert not crooked.holds


def test_occlusion_of_a_linear_model_is_what_the_patch_contributed(linear):
    image = image_for(linear)
    found = inspection.occlusion(linear, image, class_index=2, window=1, stride=1)
    expected = (np.float64(image) * linear_weights(linear, 2)).sum(-1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)


def test_occlusion_averages_over_patches(linear):
    image = image_for(linear)
    contribution = (np.float64(image) * linear_weights(linear, 0)).sum(-1)
    found = inspection.occlusion(linear, image, class_index=0, window=2, stride=1)
    assert found.values[0, 0] == pytest.approx(contribution[:2, :2].sum(), rel=1e-4)
    windows = [contribution[r : r + 2, c : c + 2].sum() for r in (0, 1) for c in (0, 1)]
    assert found.values[1, 1] == pytest.approx(np.mean(windows), rel=1e-4)


@pytest.mark.parametrize(("side", "window"), [(28, 4), (56, 8)], ids=str)
def test_the_patch_grows_with_the_image(side, window):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((side, side, 1)), layers.Flatten(), layers.Dense(3)])
    image = image_for(model)
    expected = inspection.occlusion(model, image, window=window, stride=window // 2)
    np.testing.assert_array_equal(inspection.occlusion(model, image).values, expected.values)


def test_occlusion_works_with_channels_first():
    model = channels_first()
    found = inspection.occlusion(model, image_for(model), window=4, stride=4)
    assert found.values.shape == (12, 15)


def test_the_predicted_class_is_explained_by_default(deep):
    image = image_for(deep)
    predicted = int(deep.predict(image[None], verbose=0).argmax())
    assert inspection.grad_cam(deep, image).class_index == predicted
    assert inspection.occlusion(deep, image).class_index == predicted
    assert inspection.integrated_gradients(deep, image).class_index == predicted


def test_weights_and_gradients_stay_as_they_were(deep):
    before = deep.get_weights()
    image = image_for(deep)
    inspection.grad_cam(deep, image)
    inspection.integrated_gradients(deep, image)
    inspection.maximise_class(deep, 1, steps=2)
    assert all((a == b).all() for a, b in zip(before, deep.get_weights(), strict=True))
    assert all(variable.value.grad is None for variable in deep.trainable_variables)


def test_logits_are_taken_from_before_any_last_softmax():
    """A Softmax layer, an Activation layer, a softmax inside Dense and none at all give the same scores."""
    image = np.random.default_rng(0).uniform(size=(6, 6, 1)).astype("float32")
    weights, scores = None, []
    for tail in ([layers.Softmax()], [layers.Activation("softmax")], []):
        model = keras.Sequential(
            [keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3), *tail]
        )
        weights = weights or model.get_weights()
        model.set_weights(weights)
        scores.append(inspection.grad_cam(model, image, class_index=1).score)
    within = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3, activation="softmax")]
    )
    within.set_weights(weights)
    scores.append(inspection.grad_cam(within, image, class_index=1).score)
    np.testing.assert_allclose(scores, scores[0], rtol=1e-5)


REFUSED = {
    "class": (lambda m, x: inspection.grad_cam(m, x, 4), UsageError, "a class from 0 to 3, got 4"),
    "negative class": (lambda m, x: inspection.occlusion(m, x, -1), UsageError, "got -1"),
    "flat layer": (
        lambda m, x: inspection.grad_cam(m, x, 0, "dense_1"),
        UsageError,
        "a layer whose output is a set of feature maps, got dense_1 with 128",
    ),
    "layer": (lambda m, x: inspection.grad_cam(m, x, 0, "conv_2"), UnknownNameError, "Did you mean"),
    "window": (lambda m, x: inspection.occlusion(m, x, window=17), UsageError, "a window of 1 to 16 pixels"),
    "stride": (lambda m, x: inspection.occlusion(m, x, window=2, stride=3), UsageError, "and stride 3"),
    "steps": (lambda m, x: inspection.integrated_gradients(m, x, steps=0), UsageError, "steps of at least 1"),
    "baseline": (
        lambda m, x: inspection.integrated_gradients(m, x, baseline=np.zeros((3, 3, 1))),
        UsageError,
        "images of 16×16×1, got 3×3×1",
    ),
    "attribution": (
        lambda m, x: inspection.deletion(m, x, np.zeros((4, 4))),
        UsageError,
        "an attribution of 16×16, got 4×4",
    ),
    "channel": (
        lambda m, _: inspection.maximise_filter(m, "conv2d_1", 32),
        UsageError,
        "a channel of conv2d_1 from 0 to 31, got 32",
    ),
    "maximised class": (lambda m, _: inspection.maximise_class(m, 9), UsageError, "a class from 0 to 3"),
    "limits": (
        lambda m, _: inspection.maximise_class(m, 0, limits=(1, 1)),
        UsageError,
        "limits in rising order",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ask", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_questions_are_refused(deep, ask, error, message):
    with pytest.raises(error, match=message):
        ask(deep, image_for(deep))


def test_network_without_class_scores_is_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3)])
    with pytest.raises(UsageError, match="one score for each class, got output of 4×4×2"):
        inspection.grad_cam(model, np.zeros((6, 6, 1)))


def test_two_inputs_are_refused():
    a, b = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    model = keras.Model([a, b], layers.Add()([a, b]))
    with pytest.raises(UsageError, match="a network with one input, got 2 inputs"):
        inspection.feature_maps(model, np.zeros((4, 4, 1)))


# ---- deletion and insertion


def test_deletion_follows_the_probability(linear):
    image = image_for(linear)
    importance = (image * linear_weights(linear, 1)).sum(-1)
    curve = inspection.deletion(linear, image, importance, class_index=1, steps=20)
    order = np.argsort(-importance.ravel(), kind="stable")
    for step in (0, 1, 7, 20):
        changed = image.copy().reshape(20, 2)
        changed[order[:step]] = 0
        expected = linear.predict(changed.reshape(1, 4, 5, 2), verbose=0)[0, 1]
        assert curve.probabilities[step] == pytest.approx(expected, rel=1e-5)
    assert curve.area == pytest.approx(np.trapezoid(curve.probabilities, np.linspace(0, 1, 21)), rel=1e-6)


def test_insertion_ends_where_deletion_begins(linear):
    image = image_for(linear)
    gone = inspection.deletion(linear, image, np.ones((4, 5)), class_index=0)
    come = inspection.insertion(linear, image, np.ones((4, 5)), class_index=0)
    assert come.probabilities[-1] == pytest.approx(gone.probabilities[0], rel=1e-6)
    assert come.probabilities[0] == pytest.approx(gone.probabilities[-1], rel=1e-6)


@pytest.mark.parametrize(
    "measure", [inspection.deletion, inspection.insertion], ids=["deletion", "insertion"]
)
def test_true_importance_beats_chance_and_its_opposite_does_not(linear, measure):
    image = image_for(linear)
    importance = (image * linear_weights(linear, 1)).sum(-1)
    assert measure(linear, image, importance, class_index=1).better_than_chance
    assert not measure(linear, image, -importance, class_index=1).better_than_chance


def test_checks_of_several_attributions_are_those_of_each(deep):
    image = image_for(deep)
    maps = [inspection.grad_cam(deep, image), inspection.occlusion(deep, image)]
    for one, (gone, come) in zip(maps, inspection.check_attributions(deep, image, maps), strict=True):
        for shared, alone in (
            (gone, inspection.deletion(deep, image, one.values)),
            (come, inspection.insertion(deep, image, one.values)),
        ):
            assert (shared.kind, shared.class_index) == (alone.kind, alone.class_index)
            np.testing.assert_allclose(shared.probabilities, alone.probabilities, atol=1e-6)
            assert (shared.area, shared.random_area) == pytest.approx((alone.area, alone.random_area))


def test_values_that_are_needed_again_are_kept_until_then():
    graph = read_graph(residual())  # its shortcuts take a value past several layers
    batch = torch.rand(2, *graph.input_shapes[0])
    with torch.no_grad():
        every = run(graph, batch)
        output = graph.outputs[0]
        only = run(graph, batch, keep=[output])
    assert set(only) == {output}
    assert torch.equal(only[output], every[output])


def test_large_images_go_through_in_small_batches():
    inputs = keras.Input((512, 512, 3))
    features = keras.layers.Conv2D(64, 3)(keras.layers.Conv2D(32, 3)(inputs))
    graph = read_graph(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(features)))
    assert fitting_batch(graph, 64) == 1
    assert fitting_batch(read_graph(build("deep")), 64) == 64


def test_deletion_works_with_channels_first():
    model = channels_first()
    curve = inspection.deletion(model, image_for(model), np.ones((12, 15)), class_index=1, steps=4)
    np.testing.assert_allclose(curve.fractions, [0, 0.25, 0.5, 0.75, 1])


# ---- synthesis


def test_maximised_image_excites_its_filter_more(deep):
    made = inspection.maximise_filter(deep, "conv2d_2", 5, steps=24)
    again = inspection.feature_maps(deep, made.image)[1].values[..., 5].mean()
    assert made.gain > 0
    assert made.scores[-1] == pytest.approx(again, rel=1e-4)
    assert made.scores.shape == (25,)
    assert (made.image.min() >= 0, made.image.max() <= 1) == (True, True)


def test_maximised_class_is_predicted(deep):
    made = inspection.maximise_class(deep, 3, steps=40, limits=(-1, 1))
    assert deep.predict(made.image[None], verbose=0).argmax() == 3


def test_a_maximised_class_is_named(deep):
    assert inspection.maximise_class(deep, 2, steps=1).target == "class 2"
    names = ["cat", "dog", "hen", "cow"]
    assert inspection.maximise_class(deep, 2, steps=1, class_names=names).target == "class hen"


def test_same_seed_makes_the_same_image(deep):
    first, second, other = (
        inspection.maximise_class(deep, 1, steps=3, seed=seed).image for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_synthesis_of_an_exciting_pixel():
    """A filter that looks at one pixel of one colour wants that colour bright and the other dark."""
    model = keras.Sequential([keras.Input((5, 5, 2)), layers.Conv2D(1, 1)])
    model.set_weights([np.array([1.0, -1.0]).reshape(1, 1, 2, 1), np.zeros(1)])
    made = inspection.maximise_filter(model, 0, 0, steps=60)
    np.testing.assert_allclose(made.image, np.broadcast_to([1.0, 0.0], (5, 5, 2)), atol=1e-6)


def test_smooth_images_are_smoother(deep):
    rough = inspection.maximise_class(deep, 0, steps=24, smoothness=0).image
    smooth = inspection.maximise_class(deep, 0, steps=24, smoothness=5).image
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.5 * np.abs(np.diff(rough, axis=0)).mean()


def test_synthesis_with_channels_first_gives_channels_last():
    assert inspection.maximise_filter(channels_first(), 0, 1, steps=2).image.shape == (12, 15, 3)


def test_synthesis_needs_a_fixed_size():
    image = keras.Input((None, None, 1))
    model = keras.Model(image, layers.GlobalMaxPooling2D()(layers.Conv2D(2, 3)(image)))
    with pytest.raises(UsageError, match="a network for images of a fixed size, got n×n×1"):
        inspection.maximise_class(model, 0)


# ---- neighbours and maps


def test_nearest_is_scipys_cosine():
    generator = np.random.default_rng(0)
    known, queries = generator.normal(size=(40, 7)), generator.normal(size=(5, 7))
    distances = cdist(queries, known, "cosine")
    found = inspection.nearest(known, queries, count=4)
    np.testing.assert_array_equal(found.indices, np.argsort(distances, axis=1)[:, :4])
    np.testing.assert_allclose(found.similarities, 1 - np.sort(distances, axis=1)[:, :4], rtol=1e-5)


def test_nearest_knows_the_empty_row_and_ties():
    found = inspection.nearest([[0, 0], [1, 0], [2, 0]], [[1, 0]], count=3)
    assert found.indices.tolist() == [[1, 2, 0]]
    assert found.similarities.tolist() == [[1, 1, 0]]


def test_pca_is_the_projection_with_most_variance():
    rows = np.random.default_rng(0).normal(size=(30, 6)) * [5, 3, 1, 1, 1, 1]
    found = inspection.embedding_map(rows, "pca")
    expected = PCA(2, svd_solver="full").fit(rows)
    np.testing.assert_allclose(found.points.std(0, ddof=1) ** 2, expected.explained_variance_, rtol=1e-5)
    assert found.explained == pytest.approx(expected.explained_variance_ratio_.sum())


def test_tsne_keeps_groups_together_and_repeats():
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.normal(size=(20, 5)), generator.normal(size=(20, 5)) + 20])
    first, second = (inspection.embedding_map(rows, "tsne", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    near = inspection.nearest(first.points - first.points.mean(0), first.points - first.points.mean(0), 2)
    assert (near.indices[:, 1] // 20 == np.arange(40) // 20).mean() > 0.9


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_embeddings_all_alike_give_one_place_or_at_least_numbers(method):
    assert np.isfinite(inspection.embedding_map(np.ones((8, 3)), method).points).all()


BAD_ROWS = {
    "features": (
        lambda: inspection.nearest(np.ones((3, 2)), np.ones((1, 3))),
        "queries with 2 features, got 3",
    ),
    "count": (lambda: inspection.nearest(np.ones((3, 2)), np.ones((1, 2)), 4), "a count from 1 to 3, got 4"),
    "rank": (lambda: inspection.nearest(np.ones(3), np.ones((1, 2))), r"embeddings of shape \(n, features\)"),
    "few": (lambda: inspection.embedding_map(np.ones((2, 2))), "at least 3 rows of features, got 2×2"),
    "method": (
        lambda: inspection.embedding_map(np.ones((4, 2)), "umap"),
        "method 'tsne' or 'pca', got 'umap'",
    ),
}


@pytest.mark.parametrize(("ask", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_impossible_embeddings_are_refused(ask, message):
    with pytest.raises(UsageError, match=message):
        ask()
