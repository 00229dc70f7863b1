"""Looking inside a finished run: one test image, one layer, one activation, as numbers and as figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope import plotting
from convscope.bundle import load_bundle
from convscope.data.catalog import load_again
from convscope.errors import UsageError, sentence, unknown_name
from convscope.runs import RUN_FILE, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.inspection import Attribution, FaithfulnessCurve, Recomputed


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
    deletions : tuple of FaithfulnessCurve
        One for each attribution: does the probability fall when what it marks is taken away.
    figures : dict of str to Figure
        By the name of a file.
    """

    image_name: str
    true: str
    predicted: str
    probability: float
    recomputed: Recomputed
    attributions: tuple[Attribution, ...]
    deletions: tuple[FaithfulnessCurve, ...]
    figures: dict[str, Figure] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Give the numbers as JSON values."""
        return {
            "image": self.image_name,
            "true": self.true,
            "predicted": self.predicted,
            "probability": self.probability,
            "activation": self.recomputed.to_json(),
            "attributions": [
                {
                    "method": attribution.method,
                    "deletion_area": curve.area,
                    "random_area": curve.random_area,
                    "better_than_chance": curve.better_than_chance,
                }
                for attribution, curve in zip(self.attributions, self.deletions, strict=True)
            ],
        }


def probe_run(
    path: str | Path,
    image: int,
    layer: str | None = None,
    position: tuple[int, int] | None = None,
    channel: int = 0,
) -> Probe:
    """Look inside a run's network with one of its test images.

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
    from convscope import inspection

    dataset = load_again(open_run(path).read_json(RUN_FILE)["data"])
    bundle = load_bundle(path)
    if not 0 <= image < len(dataset.test):
        raise UsageError(sentence(f"a test image from 0 to {len(dataset.test) - 1}", image))
    model = bundle.model
    names = [one.name for one in model.layers]
    layer = layer or names[0]
    if layer not in names:
        raise unknown_name("layer", layer, names)

    pixels = dataset.test.images[image : image + 1]
    prepared = bundle.preprocess.apply(pixels)[0]
    probabilities = bundle.predict(pixels)[0]
    recomputed = inspection.recompute(model, prepared, layer, position, channel)
    methods = _methods(model)
    attributions = tuple(method(model, prepared) for method in methods)
    deletions = tuple(inspection.deletion(model, prepared, one.values) for one in attributions)
    return Probe(
        image_name=str(dataset.test.names[image]),
        true=bundle.class_names[int(dataset.test.labels[image])],
        predicted=bundle.class_names[int(probabilities.argmax())],
        probability=float(probabilities.max()),
        recomputed=recomputed,
        attributions=attributions,
        deletions=deletions,
        figures=_figures(model, prepared, layer, bundle.class_names, recomputed, attributions),
    )


def _methods(model: Any) -> list[Any]:
    """List the ways of attribution that a network allows: Grad-CAM needs a convolution."""
    from convscope import inspection

    everywhere = [inspection.integrated_gradients, inspection.occlusion]
    convolutional = any("Conv" in type(layer).__name__ for layer in model.layers)
    return [inspection.grad_cam, inspection.grad_cam_plus_plus, *everywhere] if convolutional else everywhere


def _figures(
    model: Any, image: Any, layer: str, class_names: tuple[str, ...], recomputed: Any, attributions: Any
) -> dict[str, Figure]:
    """Draw what was found."""
    from convscope import inspection

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
