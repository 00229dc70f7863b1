"""The accuracies that real seeds give: what a right solution reaches, and no more than it can.

``bands.json`` holds, for each network, dataset and number of training images, the lowest and the highest
validation accuracy after each epoch over several seeds; ``benchmarks/bands.py`` measures them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

# Seeds not tried yet may fall outside what the few tried ones gave: the range is widened by this share of
# itself on both sides, and by a little of the error rate.
WIDENING = 0.75
ERROR_SLACK = 0.15


class Band(NamedTuple):
    """The lowest and highest accuracy that is credible, from 0 to 1."""

    low: float
    high: float


def band_of(network: str, dataset: str, images: int, epochs: int) -> Band:
    """Find the band of a training: of the measured number of images nearest to its own, within 20 %.

    Beyond the measured epochs the last counts; ``(0.8, 1)`` for a setting that was not measured.
    """
    measured = [
        entry
        for entry in _measured()
        if entry["network"] == network
        and entry["dataset"] == dataset
        and abs(entry["images"] - images) <= 0.2 * images
    ]
    if not measured:
        return Band(0.8, 1.0)
    nearest = min(measured, key=lambda entry: abs(entry["images"] - images))
    epoch = min(epochs, len(nearest["low"])) - 1
    return _widened(nearest["low"][epoch], nearest["high"][epoch])


def _widened(low: float, high: float) -> Band:
    spread = WIDENING * (high - low)
    slack = ERROR_SLACK * (1 - (low + high) / 2)
    return Band(max(0.0, low - spread - slack), min(1.0, high + spread + slack))


@cache
def _measured() -> list[dict[str, Any]]:
    text = resources.files("convscope.teaching.grading").joinpath("bands.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)["bands"]
    return entries
