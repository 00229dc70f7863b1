"""Looking inside a finished run: one image, one layer, one activation, as numbers and as figures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import inspection, plotting
from convscope.data.dataset import hold_back
from convscope.data.decode import decode, read_bytes
from convscope.data.loading import load_again
from convscope.environment import missing, require_package
from convscope.errors import UsageError, expected_got
from convscope.evaluation import test_set_log
from convscope.export import load_bundle
from convscope.runs import RUN_FILE, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.data.dataset import Dataset, Split
    from convscope.errors import RunError
    from convscope.export import Bundle
    from convscope.inspection import (
        Attribution,
        FaithfulnessCurve,
        FeatureMaps,
        Recomputed,
        Synthesis,
    )

_PROGRESS = logging.getLogger("convscope.progress")

# Similar images are searched among this many of those trained on: their embeddings take a second or two.
SEARCHED = 5_000
SIMILAR = 8
# How many of their pixels are prepared at a time: 16 MB as float32.
PREPARED = 2**22
# t-SNE of this many images takes some seconds.
MAPPED = 1_000
# Among so many training images the range of preprocessed pixels is looked for.
RANGED = 100


@dataclass(frozen=True)
class Similar:
    """The training images most like an image in the last hidden layer, the most similar first.

    Their names, the names of their classes, their cosine similarities, and among how many they were found.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    similarities: tuple[float, ...]
    searched: int


@dataclass(frozen=True)
class Probe:
    """What one image does inside a network, as numbers and as figures by the name of a file.

    The true class of an image that is none of the run's is None. Where the disk refused to keep the count of
    the test set's use, ``uncounted`` is what to raise behind the answer.
    """

    image_name: str
    true: str | None
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
        "completeness": vars(whole) | {"error": whole.error, "holds": whole.holds} if whole else None,
    }


def probe_run(
    path: str | Path,
    image: int | Path,
    layer: str | None = None,
    position: tuple[int, int] | None = None,
    channel: int | None = None,
    *,
    with_map: bool = False,
) -> Probe:
    """Look inside a run's network with one image.

    A number is that of a test image, whose use is counted; a path that of any image file. The layer is the
    first convolution unless named; what is left out of ``position`` (row and column) and ``channel`` is where
    the activation is strongest. ``with_map`` adds a map of up to 1,000 test images by t-SNE.
    """
    run = open_run(path)
    record = run.read_json(RUN_FILE)
    dataset = load_again(record["data"])
    bundle = load_bundle(path)
    pixels = _pixels(image, dataset.test, bundle)
    _PROGRESS.info("Looking inside the network")
    model, names = bundle.model, bundle.class_names
    prepared = bundle.preprocess.apply(pixels)[0]
    recomputed = inspection.Recomputation(model, prepared).strongest(layer, position, channel)

    uncounted = true = None
    if isinstance(image, int):
        uncounted = test_set_log.try_to_log_use(run, "inspection", by="inspect")
        true = names[int(dataset.test.labels[image])]
    probabilities = bundle.predict(pixels)[0]
    maps = inspection.feature_maps(model, prepared)
    chosen = next(one for one in maps if one.layer == recomputed.layer)
    attributions = tuple(method(model, prepared) for method in _methods(maps))
    checks = inspection.check_attributions(model, prepared, attributions)
    deletions, insertions = zip(*checks, strict=True)
    searched = _trained_on(dataset, record["config"])[:SEARCHED]
    similar, nearest = _find_similar(bundle, dataset.train, searched, pixels)
    some = dataset.train.images[searched[:RANGED]]
    syntheses = _synthesise(bundle, some, chosen, recomputed.channel, int(probabilities.argmax()))
    methods = [one.method for one in attributions]
    _PROGRESS.info("Drawing")
    figures = {
        **_draw_layers(model, prepared, maps, chosen),
        "activation": plotting.plot_recomputed(recomputed),
        "attribution": plotting.plot_attribution(prepared, attributions, names),
        "deletion": plotting.plot_faithfulness(deletions, methods, names),
        "insertion": plotting.plot_faithfulness(insertions, methods, names),
        "similar": nearest,
        "synthesis": plotting.plot_synthesis(syntheses),
    }
    if with_map:
        _PROGRESS.info("Drawing a map of the test images")
        figures["map"] = _draw_map(bundle, dataset.test)
    return Probe(
        image_name=str(dataset.test.names[image] if isinstance(image, int) else image),
        true=true,
        predicted=names[int(probabilities.argmax())],
        probability=float(probabilities.max()),
        recomputed=recomputed,
        attributions=attributions,
        deletions=deletions,
        insertions=insertions,
        similar=similar,
        syntheses=syntheses,
        figures=figures,
        uncounted=uncounted,
    )


def _pixels(image: int | Path, test: Split, bundle: Bundle) -> NDArray[np.uint8]:
    """Take a test image, or read a file and bring it to size: (1, h, w, c)."""
    if isinstance(image, int):
        if not 0 <= image < len(test):
            raise UsageError(expected_got(f"a test image from 0 to {len(test) - 1}", image))
        return test.images[image : image + 1]
    name = str(image)
    return bundle.preprocess.resize_to_input([decode(read_bytes(image, name), name, bundle.preprocess.depth)])


def _trained_on(dataset: Dataset, config: dict[str, Any]) -> NDArray[np.intp]:
    """List the training images that the run learned from: those that it did not hold back."""
    train, share = dataset.train, config.get("validation_share", 0)
    if dataset.validation is None and share:
        seed = config["training"]["seed"]
        return hold_back(train, share, seed, config.get("stratify", True))[0]
    return np.arange(len(train))


def _embed(bundle: Bundle, images: NDArray[np.uint8], places: NDArray[np.intp]) -> NDArray[np.float32]:
    """Take some images' embeddings: (places, features)."""
    some = max(1, PREPARED // images[0].size)
    return np.concatenate(
        [
            inspection.embeddings(bundle.model, bundle.preprocess.apply(images[places[start : start + some]]))
            for start in range(0, len(places), some)
        ]
    )


def _find_similar(
    bundle: Bundle, train: Split, searched: NDArray[np.intp], pixels: NDArray[np.uint8]
) -> tuple[Similar, Figure]:
    """Find the training images most like one, and draw them beside it."""
    known, asked = _embed(bundle, train.images, searched), _embed(bundle, pixels, np.arange(1))
    found = inspection.nearest(known, asked, min(SIMILAR, len(known)))
    places = searched[found.indices[0]]
    names = tuple(str(train.names[place]) for place in places)
    classes = tuple(bundle.class_names[int(train.labels[place])] for place in places)
    similar = Similar(names, classes, tuple(map(float, found.similarities[0])), len(searched))
    query, pictures = (
        bundle.preprocess.resize_to_input(images)
        for images in (pixels, [train.images[place] for place in places])
    )
    ordered = replace(found, indices=np.arange(len(places))[None])
    return similar, plotting.plot_neighbours(
        query, pictures, ordered, query_labels=["asked"], known_labels=classes
    )


def _synthesise(
    bundle: Bundle, images: NDArray[np.uint8], chosen: FeatureMaps, channel: int, class_index: int
) -> tuple[Synthesis, ...]:
    """Make the images that the predicted class, and the channel where it is a feature map, respond to."""
    seen = bundle.preprocess.apply(images)
    limits = (float(seen.min()), float(seen.max()))
    made = [
        inspection.maximise_class(bundle.model, class_index, limits=limits, class_names=bundle.class_names)
    ]
    if chosen.values.ndim == 3:
        made.append(inspection.maximise_filter(bundle.model, chosen.layer, channel, limits=limits))
    return tuple(made)


def _draw_map(bundle: Bundle, test: Split) -> Figure:
    rows = _embed(bundle, test.images, np.arange(min(MAPPED, len(test))))
    return plotting.plot_embedding_map(
        inspection.embedding_map(rows), test.labels[:MAPPED], bundle.class_names
    )


def _methods(maps: Sequence[FeatureMaps]) -> list[Any]:
    """List the ways of attribution that a network allows: Grad-CAM needs a convolution."""
    convolutional = any("Conv" in one.type for one in maps)
    if not convolutional:
        require_package("captum", "attribution")
    everywhere = [inspection.integrated_gradients, inspection.occlusion]
    by_maps = [inspection.grad_cam, inspection.grad_cam_plus_plus] if convolutional else []
    return by_maps + ([] if missing("captum", "attribution") else everywhere)


def _draw_layers(
    model: Any, image: Any, maps: Sequence[FeatureMaps], chosen: FeatureMaps
) -> dict[str, Figure]:
    """Draw what all layers make of an image, and the one looked at in detail."""
    figures = {
        "feature_maps": plotting.plot_feature_maps(maps, image),
        f"feature_maps_{chosen.layer}": plotting.plot_feature_maps(chosen, image),
    }
    if chosen.type in inspection.FILTERED:
        figures[f"filters_{chosen.layer}"] = plotting.plot_filters(inspection.filters(model, chosen.layer))
    return figures
