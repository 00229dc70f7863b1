"""A listener that follows runs for one tool: what happens in them is sent, what fails is reported once.

A training neither ends nor waits long because a tool does not answer. What could not be sent is kept, and
tried once more when the run is complete. The id of the tracked run lies in the run, so that whoever resumes
the one goes on with the other.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import requests

from convscope.environment import missing
from convscope.errors import RunError, reason
from convscope.runs import RunDirectory
from convscope.tracking.tools import TOOLS, Earlier, Settings, Target, Tool, without_credentials
from convscope.training.events import EpochEnd, Event, Listener, RunBegin, RunEnd

TRACKING_FILE = "tracking.json"
_LOG = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("convscope.progress")

Say = Callable[[str], None]


def follow(targets: Sequence[Target], say: Say) -> list[Listener]:
    """Make the listeners that send runs to tools; ``say`` gets the one line about a tool that fails."""
    return [Follower(target, say) for target in targets]


def followed_by(run: str | Path, say: Say) -> list[Target]:
    """Find the tools that have followed a run; one whose package is missing is reported."""
    found = []
    for name, known in _known(RunDirectory(run)).items():
        if name in TOOLS and isinstance(known, dict):
            lacking = missing(TOOLS[name].package, TOOLS[name].extra)
            if lacking:
                say(f"This run goes on without {name}. {lacking}")
            else:
                found.append(Target(name, str(known.get("address", ""))))
    return found


class Delivery:
    """Calls of one tracked run, made in their order; those that fail are kept until the next try."""

    def __init__(self, tool: Tool, say: Say) -> None:
        self._tool, self._say = tool, say
        self._waiting: deque[Callable[[], object]] = deque()
        self.lost = False

    def send(self, *calls: Callable[[], object]) -> None:
        """Make calls, behind those that wait; once the tool has failed, they wait too."""
        self._waiting.extend(calls)
        if not self.lost:
            self.retry()

    def retry(self) -> None:
        """Make all calls that wait."""
        try:
            while self._waiting:
                self._waiting[0]()
                self._waiting.popleft()
            if self.lost:
                self._say(f"{self._tool.place} answers again, and has been told everything.")
            self.lost = False
        # Whatever a client raises must not cost an hour of training. Its traceback may show a password.
        except Exception as error:
            _LOG.debug("A tool for tracking failed.", exc_info=error)
            if not self.lost:
                self._say(
                    f"{self._tool.place} cannot be told: {_why(error)}. The training goes on without, and "
                    "tries again when it is over."
                )
            self.lost = True


def _why(error: BaseException) -> str:
    """Say why a client failed; that nobody answers stands below several layers of its own words."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, requests.ConnectionError | requests.Timeout):
            return "nobody answers"
        below = below.__cause__ or below.__context__
    return without_credentials(reason(error))


class Follower:
    """Sends what happens in runs, one after the other, to one tool."""

    def __init__(self, target: Target, say: Say) -> None:
        self._target, self._say = target, say
        self._delivery: Delivery | None = None
        self._epochs = 0

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, RunBegin):
            self._epochs = event.first_epoch
            self._tool = self._target.open()
            self._delivery = Delivery(self._tool, self._say)
            self._delivery.send(partial(self._begin, event.run, settings_of(event.record), event.first_epoch))
        elif self._delivery is None:
            return
        elif isinstance(event, EpochEnd):
            self._epochs = event.epoch + 1
            logs = {name: float(value) for name, value in event.logs.items()} | {"seconds": event.seconds}
            self._delivery.send(partial(self._tool.log, self._epochs, logs, time.time()))
        elif isinstance(event, RunEnd):
            self._end(event.run, event.status)

    def _begin(self, run: RunDirectory, settings: Settings, first_epoch: int) -> None:
        """Begin a tracked run, or go on with the one that this run knows."""
        name, address = self._target.name, self._target.address
        known = _known(run).get(name, {})
        earlier = Earlier(known["id"], first_epoch) if known.get("address") == address else None
        number = self._tool.begin("/".join(run.target.parts[-2:]), settings, earlier)
        found = {name: {"address": address, "id": number}}
        run.update_json(TRACKING_FILE, lambda value: {**(value or {}), **found})

    def _end(self, run: RunDirectory, status: str) -> None:
        """Send the result, and what could not be sent before."""
        delivery, self._delivery = self._delivery, None
        if delivery is None:
            return
        if status == "completed":
            _PROGRESS.info("Sending the run to %s", self._tool.place)
            delivery.send(partial(self._tool.conclude, scores_of(run), self._epochs, run.path))
        delivery.send(partial(self._tool.end, status))
        if delivery.lost and status == "completed":  # whoever presses Ctrl-C does not want to wait
            delivery.retry()


def _known(run: RunDirectory) -> dict[str, Any]:
    """Read which tracked runs belong to a run."""
    with suppress(RunError):
        return run.read_json(TRACKING_FILE)
    return {}


def settings_of(record: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Gather what a run's record says of how it is trained: by what name, and on what."""
    config = dict(record["config"])
    training = config.pop("training", {})
    data, network = record["data"], record["network"]
    facts = {
        **config,
        **training,
        "data": {"name": data["name"], "fingerprint": data["fingerprint"], **data.get("counts", {})},
        "network": {"name": network["name"], "parameters": network["parameters"]},
        "versions": record.get("versions"),
        "source_commit": record.get("source_commit"),
        "processor": record.get("device", {}).get("processor"),
        "device": record.get("device", {}).get("torch_device"),
    }
    return dict(_flat(facts))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Name nested values by dots; what was left out is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            plain = value if isinstance(value, bool | int | float) else str(value)
            yield f"{prefix}{name}", plain


def scores_of(run: RunDirectory) -> dict[str, float]:
    """Read what a run's evaluations say, each accuracy with the two ends of its 95 % interval."""
    scores: dict[str, float] = {}
    for part, found in run.read_json("evaluation.json").items():
        low, high = found["accuracy_interval"]
        values = {
            "accuracy": found["accuracy"],
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": found["loss"],
            "errors": found["errors"],
            "images": found["images"],
            "balanced_accuracy": found["balanced_accuracy"],
            "calibration_error": found["calibration"]["expected_error"],
        }
        scores |= {f"{part}/{name}": float(value) for name, value in values.items() if value is not None}
    return scores
