"""Looking inside a finished run: one test image, one layer, one activation, as numbers and as figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope import inspection, plotting
from convscope.data.catalog import load_again
from convscope.data.splits import split_indices
from convscope.errors import UsageError, sentence, unknown_name
from convscope.evaluation import test_set_log
from convscope.export import load_bundle
from convscope.runs import RUN_FILE, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.data.catalog import Dataset, Split
    from convscope.errors import RunError
    from convscope.export import Bundle
    from convscope.inspection import Attribution, FaithfulnessCurve, Neighbours, Recomputed, Synthesis

# Similar images are searched among this many of those trained on: their embeddings take a second or two.
SEARCHED = 5_000
SIMILAR = 8
# t-SNE of this many images takes some seconds.
MAPPED = 1_000


@dataclass(frozen=True)
class Similar:
    """The training images that are most like an image in the last hidden layer.

    Attributes
    ----------
    names, classes : tuple of str
        Of the images and of their true classes, the most similar first.
    similarities : tuple of float
        Cosine similarities.
    searched : int
        Among how many training images.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    similarities: tuple[float, ...]
    searched: int


@dataclass(frozen=True)
class Probe:
    """What one test image does inside a network.

    Attributes
    ----------
    image_name : str
        The image.
    true, predicted : str
        Names of its class and of the class that the network gives it.
    probability : float
        Of the predicted class.
    recomputed : Recomputed
        One activation with its arithmetic.
    attributions : tuple of Attribution
        What the network looks at, by several methods.
    deletions, insertions : tuple of FaithfulnessCurve
        One for each attribution: does the probability fall when what it marks is taken away, and rise when
        it is put back.
    similar : Similar
        The training images most like it.
    syntheses : tuple of Synthesis
        Images made to excite the predicted class, and the channel of the layer where it has feature maps.
    figures : dict of str to Figure
        By the name of a file.
    uncounted : RunError or None
        What to raise behind the answer where the disk refused to keep the count of the test set's use.
    """

    image_name: str
    true: str
    predicted: str
    probability: float
    recomputed: Recomputed
    attributions: tuple[Attribution, ...]
    deletions: tuple[FaithfulnessCurve, ...]
    insertions: tuple[FaithfulnessCurve, ...]
    similar: Similar
    syntheses: tuple[Synthesis, ...]
    figures: dict[str, Figure] = field(repr=False)
    uncounted: RunError | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the numbers as JSON values."""
        return {
            "image": self.image_name,
            "true": self.true,
            "predicted": self.predicted,
            "probability": self.probability,
            "activation": self.recomputed.to_json(),
            "attributions": [
                _attribution_as_json(*found)
                for found in zip(self.attributions, self.deletions, self.insertions, strict=True)
            ],
            "similar": vars(self.similar),
            "syntheses": [
                {"target": one.target, "score_before": float(one.scores[0]), "score": float(one.scores[-1])}
                for one in self.syntheses
            ],
        }


def _attribution_as_json(
    attribution: Attribution, gone: FaithfulnessCurve, come: FaithfulnessCurve
) -> dict[str, Any]:
    whole = attribution.completeness
    return {
        "method": attribution.method,
        "deletion_area": gone.area,
        "deletion_area_in_random_order": gone.random_area,
        "insertion_area": come.area,
        "insertion_area_in_random_order": come.random_area,
        "better_than_chance": gone.better_than_chance and come.better_than_chance,
        "completeness": vars(whole) | {"holds": whole.holds} if whole else None,
    }


def probe_run(
    path: str | Path,
    image: int,
    layer: str | None = None,
    position: tuple[int, int] | None = None,
    channel: int = 0,
    *,
    with_map: bool = False,
) -> Probe:
    """Look inside a run's network with one of its test images, which is counted as a use of the test set.

    Parameters
    ----------
    path : str or Path
        The run directory.
    image : int
        The test image, from 0.
    layer : str, optional
        The layer to look at; the first one when left out.
    position : pair of int, optional
        Row and column of the activation to recompute; the middle when left out.
    channel : int
        Its channel, or the unit of a dense layer.
    with_map : bool
        Draw a map of the last hidden layer too, by t-SNE of up to 1,000 test images; it takes some seconds.

    Returns
    -------
    Probe

    Raises
    ------
    UsageError
        If the run has no such image, layer, position or channel.
    DataError
        If the data of the run are no longer to be had.
    """
    run = open_run(path)
    record = run.read_json(RUN_FILE)
    dataset = load_again(record["data"])
    bundle = load_bundle(path)
    if not 0 <= image < len(dataset.test):
        raise UsageError(sentence(f"a test image from 0 to {len(dataset.test) - 1}", image))
    model = bundle.model
    names = [one.name for one in model.layers]
    layer = layer or names[0]
    if layer not in names:
        raise unknown_name("layer", layer, names)

    uncounted = test_set_log.try_to_log_use(run, "inspection", by="inspect")
    pixels = dataset.test.images[image : image + 1]
    prepared = bundle.preprocess.apply(pixels)[0]
    probabilities = bundle.predict(pixels)[0]
    recomputed = inspection.recompute(model, prepared, layer, position, channel)
    attributions = tuple(method(model, prepared) for method in _methods(model))
    deletions = tuple(inspection.deletion(model, prepared, one.values) for one in attributions)
    insertions = tuple(inspection.insertion(model, prepared, one.values) for one in attributions)
    trained_on = _trained_on(dataset, record["config"])
    found = _find_similar(bundle, trained_on, pixels)
    syntheses = _synthesise(bundle, trained_on, layer, channel, int(probabilities.argmax()))
    figures = {
        **_figures(model, prepared, layer, bundle.class_names, recomputed, attributions),
        "deletion": plotting.plot_faithfulness(deletions, _method_names(attributions)),
        "insertion": plotting.plot_faithfulness(insertions, _method_names(attributions)),
        "similar": _draw_similar(bundle, trained_on, pixels, found),
        "synthesis": plotting.plot_synthesis(syntheses),
    }
    if with_map:
        figures["map"] = _draw_map(bundle, dataset.test)
    return Probe(
        image_name=str(dataset.test.names[image]),
        true=bundle.class_names[int(dataset.test.labels[image])],
        predicted=bundle.class_names[int(probabilities.argmax())],
        probability=float(probabilities.max()),
        recomputed=recomputed,
        attributions=attributions,
        deletions=deletions,
        insertions=insertions,
        similar=_describe_similar(trained_on, found, bundle.class_names),
        syntheses=syntheses,
        figures=figures,
        uncounted=uncounted,
    )


def _trained_on(dataset: Dataset, config: dict[str, Any]) -> Split:
    """Take training images as the run did, without those that it held back; no more than are searched."""
    train, share = dataset.train, config.get("validation_share", 0)
    chosen = np.arange(len(train))
    if dataset.validation is None and share:
        seed = config["training"]["seed"]
        chosen, _ = split_indices(train.labels, share, seed, config.get("stratify", True), train.groups)
    return train.take(chosen[:SEARCHED])


def _find_similar(bundle: Bundle, trained_on: Split, pixels: Any) -> Neighbours:
    known, asked = (
        inspection.embeddings(bundle.model, bundle.preprocess.apply(images))
        for images in (trained_on.images, pixels)
    )
    return inspection.nearest(known, asked, min(SIMILAR, len(known)))


def _describe_similar(trained_on: Split, found: Neighbours, class_names: tuple[str, ...]) -> Similar:
    places = found.indices[0]
    return Similar(
        names=tuple(str(trained_on.names[place]) for place in places),
        classes=tuple(class_names[int(trained_on.labels[place])] for place in places),
        similarities=tuple(map(float, found.similarities[0])),
        searched=len(trained_on),
    )


def _draw_similar(bundle: Bundle, trained_on: Split, pixels: Any, found: Neighbours) -> Figure:
    places = found.indices[0]
    ordered = type(found)(np.arange(len(places))[None], found.similarities)
    labels = [bundle.class_names[int(trained_on.labels[place])] for place in places]
    pictures = bundle.preprocess.conform([trained_on.images[place] for place in places])
    asked = bundle.preprocess.conform(pixels)
    return plotting.plot_neighbours(asked, pictures, ordered, query_labels=["asked"], known_labels=labels)


def _synthesise(
    bundle: Bundle, trained_on: Split, layer: str, channel: int, class_index: int
) -> tuple[Synthesis, ...]:
    """Make the images that the predicted class, and the channel where it is a feature map, respond to."""
    model = bundle.model
    seen = bundle.preprocess.apply(trained_on.images[:100])
    limits = (float(seen.min()), float(seen.max()))
    made = [inspection.maximise_class(model, class_index, limits=limits)]
    if len(model.get_layer(layer).output.shape) == len(model.input_shape):
        made.append(inspection.maximise_filter(model, layer, channel, limits=limits))
    return tuple(made)


def _draw_map(bundle: Bundle, test: Split) -> Figure:
    rows = inspection.embeddings(bundle.model, bundle.preprocess.apply(test.images[:MAPPED]))
    return plotting.plot_embedding_map(
        inspection.embedding_map(rows), test.labels[:MAPPED], bundle.class_names
    )


def _method_names(attributions: tuple[Attribution, ...]) -> list[str]:
    return [one.method for one in attributions]


def _methods(model: Any) -> list[Any]:
    """List the ways of attribution that a network allows: Grad-CAM needs a convolution."""
    everywhere = [inspection.integrated_gradients, inspection.occlusion]
    convolutional = any("Conv" in type(layer).__name__ for layer in model.layers)
    return [inspection.grad_cam, inspection.grad_cam_plus_plus, *everywhere] if convolutional else everywhere


def _figures(
    model: Any, image: Any, layer: str, class_names: tuple[str, ...], recomputed: Any, attributions: Any
) -> dict[str, Figure]:
    """Draw what was found."""
    maps = inspection.feature_maps(model, image)
    figures = {
        "feature_maps": plotting.plot_feature_maps(maps, image),
        "activation": plotting.plot_recomputed(recomputed),
        "attribution": plotting.plot_attribution(image, attributions, class_names),
    }
    chosen = next((one for one in maps if one.layer == layer), None)
    if chosen is not None:
        figures[f"feature_maps_{layer}"] = plotting.plot_feature_maps(chosen, image)
    if hasattr(model.get_layer(layer), "kernel_size"):
        figures[f"filters_{layer}"] = plotting.plot_filters(inspection.filters(model, layer))
    return figures
