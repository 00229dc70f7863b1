"""A run → one HTML file: all that it carries, and the modules in ``page/`` bundled into two scripts."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from convscope import web_page
from convscope.contents import Contents, read_contents
from convscope.data import drift
from convscope.evaluation import Evaluation, test_set_log
from convscope.evaluation.novelty import NEIGHBOURS, Novelty, signs_of
from convscope.explorer.layers import Layer, channels_last, read_layers
from convscope.export import Bundle
from convscope.inspection import LayerDescription, describe, feature_maps
from convscope.lowering.graph import read_graph
from convscope.preprocessing import Preprocess
from convscope.runs import RunDirectory, write_file

PAGE = Path(__file__).parent / "page"
FILE = "explorer.html"
MAIN, WORKER = "main.js", "worker.js"
COLOURS = PAGE / "colours.css"  # of the report and a server's pages too
BASE = PAGE / "base.css"  # of the report too
STYLES = ("colours.css", "base.css", "style.css", "walk.css", "train.css")

IMAGES, WORST = 200, 24
# Bytes of test images; more of them are compressed as photographs.
IMAGE_BYTES = 1_500_000
JPEG_QUALITY = 90
# What evaluating all images may cost, in multiply-adds: some ten seconds of a browser.
MOST_PRODUCTS = 25_000_000_000
REFERENCES = 2
# Of a layer's values so many are compared, evenly spread, and of all layers so many together.
COMPARED, ALL_COMPARED = 4096, 150_000
# A page with more characters carries its kernels as float16, and one that is still larger as int8.
LARGEST = 8_000_000
_SEED = 1338

_IMPORT = re.compile(r'^import\s+\{([^}]*)\}\s+from\s+"\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export\s+((?:async\s+)?(?:function\*?|class|const|let)\s+(\w+))", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """The page of a run: its file, how many layers it computes, and which it only shows."""

    file: Path
    layers: int
    shown_only: tuple[str, ...]
    weight_bits: int

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.file.stat().st_size

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "explorer": str(self.file),
            "bytes": self.bytes,
            "layers": self.layers,
            "live_layers": self.layers - len(self.shown_only),
            "shown_only": list(self.shown_only),
            "weight_bits": self.weight_bits,
        }


def write_page(
    run: str | Path | Contents,
    out: str | Path | None = None,
    *,
    images: int = IMAGES,
    data: str | Path | None = None,
    consulted_by: str = "",
) -> Written:
    """Write a run's page into its directory or a file; ``consulted_by`` counts the look at the test set."""
    contents = run if isinstance(run, Contents) else read_contents(run, data=data)
    if consulted_by and contents.images is not None:
        test_set_log.log_use(RunDirectory(contents.path), "inspection", by=consulted_by)
    payload = make_payload(contents, images=images)
    file = contents.path / FILE if out is None else Path(out)
    write_file(file, fill(payload).encode())
    layers = payload["network"]["layers"]
    shown_only = tuple(layer["name"] for layer in layers if not layer["live"])
    return Written(file, len(layers), shown_only, payload["weights"]["bits"])


def render_page(run: str | Path | Contents, *, served: bool = False) -> str:
    """Make a run's page: HTML that needs nothing but itself; one that is ``served`` may ask its server."""
    return fill(make_payload(run), served)


def fill(payload: dict[str, Any], served: bool = False) -> str:
    """Put a payload into the page; style and script are sealed by their hashes: nothing else runs."""
    text = json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return web_page.fill(
        web_page.templates(PAGE).get_template("index.html"),
        web_page.read_joined(PAGE / name for name in STYLES),
        bundle(MAIN),
        title=payload["title"],
        served=served,
        worker=Markup(bundle(WORKER)),  # noqa: S704  the package's own files
        payload=Markup(text.replace("<", "\\u003c")),  # noqa: S704  no tag can end it
    )


@cache
def bundle(*entries: str) -> str:
    """Join modules and all that they import into one script: each in a function, imported ones first."""
    modules: dict[str, str] = {}
    for entry in entries:
        _collect(entry, modules, ())
    return '"use strict";\nconst modules = {};\n' + "\n".join(modules.values())


def _collect(name: str, modules: dict[str, str], above: tuple[str, ...]) -> None:
    if name in modules:
        return
    if name in above:
        raise ValueError(f"{' imports '.join((*above, name))}: modules in a circle")
    source = (PAGE / name).read_text(encoding="utf-8")
    for found in _IMPORT.finditer(source):
        _collect(found[2], modules, (*above, name))
    exported = [found[2] for found in _EXPORT.finditer(source)]
    body = _EXPORT.sub(r"\1", _IMPORT.sub(r'const {\1} = modules["\2"];\n', source))
    if left := re.search(r"^(import|export)\b.*", body, re.MULTILINE):
        raise ValueError(f"{name}: expected import {{ a }} from or export in front of a name, got {left[0]}")
    modules[name] = (
        f'modules["{name}"] = (() => {{\n{body.strip()}\nreturn {{ {", ".join(exported)} }};\n}})();'
    )


Array = NDArray[Any]


def make_payload(run: str | Path | Contents, *, images: int = IMAGES) -> dict[str, Any]:
    """Gather what the page of a run carries, as JSON values; arrays are packed by `pack`.

    Of a network whose page would pass 8 MB, the kernels are rounded to float16 or int8, and everything
    that the page is held against is computed with these.
    """
    contents = run if isinstance(run, Contents) else read_contents(run)
    bundle = contents.bundle
    preprocess = bundle.preprocess
    chosen = _choose(contents, images, describe(bundle.model).macs or 0)
    pictures = {} if chosen is None else _images(chosen)
    bits = _bits(bundle.model.count_params(), len(str(pictures)))
    described = describe_network(bundle.model, bits)
    return {
        "title": f"{contents.network_name}, {contents.data_name}",
        "run": str(contents.path),
        "classes": list(bundle.class_names),
        "input": {
            "height": preprocess.height,
            "width": preprocess.width,
            "channels": preprocess.channels,
        },
        "temperature": bundle.temperature,
        "preprocess": _preprocess(preprocess),
        **described,
        "rounding": _rounding(bundle, chosen) if bits < 32 else None,
        "references": _references(bundle, chosen),
        "images": pictures,
        "unlike": _unlike(bundle, LARGEST - len(str(pictures)) - len(str(described)) - 6 * ALL_COMPARED),
    }


def describe_network(model: Any, bits: int = 32) -> dict[str, Any]:
    """Describe a Keras model as ``page/network.js`` takes it: ``network`` and ``weights``.

    With fewer than 32 bits its kernels are rounded, also in the model itself.
    """
    graph = read_graph(model)
    layers = read_layers(graph)
    entries, packed = pack_weights(layers, _round_weights(layers, bits), bits)
    described = describe(model).layers
    return {
        "network": {
            "input": list(channels_last(graph.input_shapes[0], graph)),
            "layers": [
                describe_layer(index, layer, entry, one)
                for index, (layer, entry, one) in enumerate(zip(layers, entries, described, strict=True))
            ],
        },
        "weights": packed,
    }


def describe_layer(index: int, layer: Layer, weights: Any, described: LayerDescription) -> dict[str, Any]:
    """Describe a layer for the page; ``weights`` say where each of its own begins."""
    return {
        "index": index,
        "name": layer.call.name,
        "type": layer.call.type,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "inputs": list(layer.inputs),
        "weights": weights,
        "activation": layer.activation,
        "settings": dict(layer.settings),
        "live": not layer.reason,
        "reason": layer.reason,
        "shares": layer.shares,
        "cost": described.macs or 0,
        "parameters": described.parameters,
    }


def pack(array: Array) -> dict[str, Any]:
    """Put an array into JSON: its bytes, sorted by their significance, compressed, in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    planes = little.view(np.uint8).reshape(-1, array.dtype.itemsize).T  # (bytes of a number, numbers)
    text = base64.b64encode(gzip.compress(planes.tobytes(), 9, mtime=0)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": text}


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Test images of the page: an even sample, by which it measures, and behind it the worst errors."""

    images: NDArray[np.uint8]  # (n, h, w, c)
    places: NDArray[np.int64]  # (n,)
    sample: int
    evaluation: Evaluation


def _choose(contents: Contents, most: int, macs: int) -> _Chosen | None:
    """Choose test images, fewer of those that are large or that a network takes long for."""
    evaluation = contents.test
    if contents.images is None or evaluation is None:
        return None
    affordable = max(1, MOST_PRODUCTS // max(macs, 1))
    count = min(evaluation.images, most, affordable)
    sample = np.sort(np.random.default_rng(_SEED).permutation(evaluation.images)[:count])
    worst = evaluation.worst_errors(min(WORST, affordable))
    places = np.concatenate([sample, np.setdiff1d(worst, sample)]).astype(np.int64)
    return _Chosen(contents.images[places], places, count, evaluation)


def _images(chosen: _Chosen) -> dict[str, Any]:
    """Describe the test images: all pixels, or as many photographs as there is room for."""
    evaluation = chosen.evaluation
    fits = chosen.images.nbytes <= IMAGE_BYTES
    jpegs = [] if fits else _jpegs(chosen.images)
    count = len(chosen.places) if fits else len(jpegs)
    places = chosen.places[:count]
    worst = set(evaluation.worst_errors(WORST).tolist())
    return {
        "pixels": pack(chosen.images) if fits else None,
        "jpegs": jpegs,
        "labels": evaluation.labels[places].tolist(),
        "names": [evaluation.name_of(index) for index in places.tolist()],
        "places": places.tolist(),
        "probabilities": pack(evaluation.probabilities[places].astype(np.float32)),  # (n, classes)
        "sample": min(chosen.sample, count),
        "worst": [place for place, index in enumerate(places.tolist()) if index in worst],
        "all": evaluation.images,
        "accuracy": evaluation.accuracy,
    }


def _jpegs(images: NDArray[np.uint8]) -> list[str]:
    """Encode photographs, as many as fit into the room for images."""
    found: list[str] = []
    room = IMAGE_BYTES
    for image in images:
        buffer = io.BytesIO()
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
        room -= buffer.tell() * 4 // 3
        if room < 0 and found:
            break
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found


def _preprocess(preprocess: Preprocess) -> dict[str, Any]:
    return {
        "height": preprocess.height,
        "width": preprocess.width,
        "channels": preprocess.channels,
        "scaling": preprocess.scaling,
        "resize": preprocess.resize,
        "limits": preprocess.limits,
        "scale": pack(preprocess.scale),
        "offset": pack(preprocess.offset),
        "steps": preprocess.describe(),
    }


def _bits(kernels: int, others: int) -> int:
    """Choose how many bits a weight has, so that the page keeps below its size."""
    # Compressed float32 takes about 3.6 bytes, float16 1.8, int8 0.9; base64 four characters for three.
    room = (LARGEST - others - 6 * ALL_COMPARED) * 3 / 4
    return next((bits for bits in (32, 16) if kernels * bits / 8 * 0.93 < room), 8)


def _round_weights(layers: Sequence[Layer], bits: int) -> list[dict[str, Array]]:
    """Round kernels, and let the network itself compute with these from now on."""
    rounded = []
    for layer in layers:
        own = {name: _round(value, bits) for name, value in layer.weights.items()}
        rounded.append(own)
        if bits < 32 and own and layer.shares is None:
            layer.call.operation.set_weights(list(own.values()))
    return rounded


def _is_kernel(array: Array) -> bool:
    return array.ndim > 1


def _round(array: Array, bits: int) -> Array:
    if bits == 32 or not _is_kernel(array):
        return array
    if bits == 16:
        return array.astype(np.float16).astype(np.float32)
    whole, scale = _quantize(array)
    return whole.astype(np.float32) * scale


def _quantize(array: Array) -> tuple[Array, Array]:
    """Write a kernel as int8 times a float32 for each place of its last axis longer than 1."""
    axis = max((axis for axis, length in enumerate(array.shape) if length > 1), default=array.ndim - 1)
    others = tuple(one for one in range(array.ndim) if one != axis)
    scale = (np.abs(array).max(axis=others, keepdims=True) / 127).astype(np.float32)
    whole = np.round(array / np.where(scale > 0, scale, 1)).astype(np.int8)
    return whole, scale


def pack_weights(
    layers: Sequence[Layer], weights: Sequence[Mapping[str, Array]], bits: int = 32
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Put all weights behind each other; a layer's entries say where each of its own begins."""
    exact: list[Array] = []
    short: list[Array] = []
    entries: list[dict[str, Any]] = []
    position = 0
    for layer, own in zip(layers, weights, strict=True):
        if layer.shares is not None:
            entries.append(entries[layer.shares])
            continue
        entry: dict[str, Any] = {}
        for name, array in own.items():
            entry[name] = {"shape": list(array.shape), "start": position}
            position += array.size
            if bits == 32 or not _is_kernel(array):
                exact.append(array.ravel())
                continue
            entry[name]["bits"] = bits
            if bits == 16:
                short.append(array.astype(np.float16).ravel())
            else:
                whole, scale = _quantize(layer.weights[name])
                short.append(whole.ravel())
                exact.append(scale.ravel())
                entry[name]["scales"] = scale.size
        entries.append(entry)
    packed = {"exact": pack(np.concatenate([np.zeros(0, np.float32), *exact]))}
    if short:
        packed["short"] = pack(np.concatenate(short))
    return entries, {"bits": bits, "count": position, **packed}


def _rounding(bundle: Bundle, chosen: _Chosen | None) -> dict[str, Any] | None:
    """Say what rounding does to predictions: how many stay the same, and how far one moves."""
    if chosen is None:
        return None
    exact = chosen.evaluation.probabilities[chosen.places]
    found = bundle.predict(chosen.images)
    same = np.count_nonzero(found.argmax(axis=1) == exact.argmax(axis=1))
    return {"images": len(exact), "same": int(same), "largest": float(np.abs(found - exact).max())}


def _references(bundle: Bundle, chosen: _Chosen | None) -> dict[str, Any]:
    """Run some images through the network as Keras does, and keep some values of every layer.

    Of a layer that the page does not compute all values are kept, so that it can show them.
    """
    preprocess = bundle.preprocess
    shape = preprocess.image_shape
    if chosen is None:
        pixels = np.random.default_rng(_SEED).integers(0, 256, (REFERENCES, *shape), np.uint8)
        places = [-1] * REFERENCES
    else:
        first = np.unique([len(chosen.places) - 1, 0])[::-1][:REFERENCES]  # the worst error and a common one
        pixels, places = chosen.images[first], first.tolist()
    inputs = preprocess.apply(pixels)
    layers = read_layers(read_graph(bundle.model))
    most = max(64, min(COMPARED, ALL_COMPARED // max(len(layers), 1)))
    values: list[Array] = []
    counts: list[int] = []
    for image in inputs:
        for layer, maps in zip(layers, feature_maps(bundle.model, image), strict=True):
            flat = maps.values.astype(np.float32).ravel()
            count = flat.size if layer.reason else min(flat.size, most)
            values.append(flat[np.arange(count) * flat.size // count])
            counts.append(count)
    return {
        "pixels": pack(pixels),  # (k, h, w, c)
        "places": places,
        "counts": counts[: len(layers)],
        "values": pack(np.concatenate(values)),
    }


def _unlike(bundle: Bundle, room: int) -> dict[str, Any] | None:
    """Give what `predict` warns by: the ranges of training images, and where they lie among features."""
    statistics, novelty = bundle.statistics, bundle.novelty
    if statistics is None:
        return None
    return {
        "ranges": statistics.ranges,
        "floors": drift.FEATURES,
        "margin": drift.MARGIN,
        "flat": drift.FLAT,
        "dark": drift.FAR_TOO_DARK,
        "novelty": None if novelty is None else _novelty(novelty, room),
    }


def _novelty(novelty: Novelty, room: int) -> dict[str, Any] | None:
    """Give the training images' features, if there is room, and the signs that add up longer ones."""
    if not math.isfinite(novelty.limit) or novelty.known.nbytes * 4 / 3 > room:
        return None
    features, dimensions = novelty.features, novelty.known.shape[1]
    signs = None if features <= dimensions else pack(signs_of(features).astype(np.int8))  # (sums, dimensions)
    return {
        "known": pack(novelty.known),
        "features": features,
        "dimensions": dimensions,
        "signs": signs,
        "neighbours": NEIGHBOURS,
        "limit": novelty.limit,
    }
