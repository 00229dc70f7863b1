"""MLflow, TensorBoard and Weights & Biases behind one protocol.

Passwords and tokens come from each tool's own environment variables and files alone: an address that holds
some is refused, and what is kept of an address in a run has none.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from convscope.environment import require_package
from convscope.errors import UsageError, expected_got, unknown_name

Settings = Mapping[str, str | int | float | bool]
PROJECT = "convscope"  # the experiment or project, unless the tool's own variable names another
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")


class Earlier(NamedTuple):
    """A tracked run that an earlier session began, and how many epochs the checkpoint has of it."""

    id: str
    epochs: int


class Tool(Protocol):
    """One tracked run. A method may raise whatever the tool's client raises, and is then called again."""

    place: str

    def begin(self, name: str, settings: Settings, earlier: Earlier | None) -> str:
        """Begin a tracked run, or go on with an earlier one; gives its id."""

    def log(self, epoch: int, metrics: Mapping[str, float], when: float) -> None:
        """Note an epoch, counted from 1, that was over at a time in seconds."""

    def conclude(self, scores: Mapping[str, float], epochs: int, folder: Path) -> None:
        """Note the final evaluation, and take the files of the run: figures, report, network."""

    def end(self, status: str) -> None:
        """End it: completed, interrupted, pruned, diverged or failed."""


class MLflow:
    """A run of an MLflow server; the run directory lies among its artifacts."""

    # A server that is gone costs seconds, not the four minutes of MLflow's own patience; a bar, addresses on
    # standard output and usage statistics for MLflow's makers are not asked for.
    _ENVIRONMENT: Mapping[str, str] = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    _STATUS: Mapping[str, str] = {"completed": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}
    _MOST_PARAMETERS = 100  # in one request

    def __init__(self, address: str) -> None:
        own = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._uri = own if without_credentials(own) == address else address
        self.place = f"MLflow at {address}"
        self._id: str | None = None
        self._logged = 0  # epochs that an earlier session has sent

    @contextmanager
    def _client(self) -> Iterator[Any]:
        before = {name: os.environ.get(name) for name in self._ENVIRONMENT}
        os.environ.update({name: value for name, value in self._ENVIRONMENT.items() if before[name] is None})
        try:
            from mlflow import MlflowClient

            yield MlflowClient(tracking_uri=self._uri)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)

    def begin(self, name: str, settings: Settings, earlier: Earlier | None) -> str:
        """Make a run with its parameters, or let one go on."""
        with self._client() as client:
            from mlflow.entities import Param

            if self._id is None and earlier and _exists(client, earlier.id):
                self._id = earlier.id
            if self._id is None:
                tags = {"mlflow.source.name": "convscope", "mlflow.source.type": "LOCAL"}
                self._id = client.create_run(_experiment(client), run_name=name, tags=tags).info.run_id
            else:
                client.update_run(self._id, status="RUNNING")
                self._logged = max(
                    (one.step for one in client.get_metric_history(self._id, "loss")), default=0
                )
            sent = client.get_run(self._id).data.params  # they cannot be changed
            missing = [Param(key, str(value)) for key, value in settings.items() if key not in sent]
            for begin in range(0, len(missing), self._MOST_PARAMETERS):
                client.log_batch(self._id, params=missing[begin : begin + self._MOST_PARAMETERS])
            return str(self._id)

    def log(self, epoch: int, metrics: Mapping[str, float], when: float) -> None:
        """Log metrics by epoch; those that an earlier session logged would stand there twice."""
        if epoch > self._logged:
            self._log(epoch, metrics, when)

    def _log(self, epoch: int, metrics: Mapping[str, float], when: float) -> None:
        with self._client() as client:
            from mlflow.entities import Metric

            sent = [Metric(name, value, int(1000 * when), epoch) for name, value in metrics.items()]
            client.log_batch(self._id, metrics=sent)

    def conclude(self, scores: Mapping[str, float], epochs: int, folder: Path) -> None:
        """Log the scores, and the run directory as artifacts."""
        self._log(epochs, scores, time.time())
        with self._client() as client:
            client.log_artifacts(self._id, str(folder))

    def end(self, status: str) -> None:
        """Set MLflow's status; the exact word is a tag."""
        with self._client() as client:
            client.set_tag(self._id, "status", status)
            client.set_terminated(self._id, self._STATUS.get(status, "FAILED"))


def _experiment(client: Any) -> str:
    """Find the experiment by MLflow's own variables, or make it."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # MLflow's page shows trainings, not conversations with a language model.
            return str(
                client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
            )
        except Exception:  # another process may have made it just now
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _exists(client: Any, run: str) -> bool:
    """Say whether a tracked run is still there."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


class TensorBoard:
    """A folder of event files: ``tensorboard --logdir FOLDER`` shows it."""

    def __init__(self, address: str) -> None:
        self.place = f"TensorBoard's files in {address}"
        self._folder = Path(address)
        self._writer: Any = None

    def begin(self, name: str, settings: Settings, earlier: Earlier | None) -> str:
        """Open a file; what an earlier session has written of later epochs is not shown."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = Path(earlier.id) if earlier else self._folder / name
        self._writer = SummaryWriter(str(folder), purge_step=earlier.epochs + 1 if earlier else None)
        if earlier is None:
            found = hparams(dict(settings), {"test/accuracy": 0.0})  # type: ignore[no-untyped-call]
            for summary in found[:2]:
                self._writer.file_writer.add_summary(summary)
            rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            self._writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
        self._writer.flush()
        return str(folder.absolute())

    def log(self, epoch: int, metrics: Mapping[str, float], when: float) -> None:
        """Write scalars by epoch."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, epoch, walltime=when)
        self._writer.flush()

    def conclude(self, scores: Mapping[str, float], epochs: int, folder: Path) -> None:
        """Write scores and figures, and where the run lies: event files hold no other files."""
        import numpy as np
        from PIL import Image

        for key, value in scores.items():
            self._writer.add_scalar(key, value, epochs)
        for file in sorted(folder.glob("figures/*.png")):
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(f"figures/{file.stem}", pixels, epochs, dataformats="HWC")
        self._writer.add_text("run", f"{folder.absolute()} (its report: report.html)", epochs)

    def end(self, status: str) -> None:
        """Close the file."""
        self._writer.add_text("status", status)
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, or of a server that speaks as theirs does."""

    _SECONDS = 60.0  # for what is still to be sent in the end

    def __init__(self, address: str) -> None:
        self.place = f"Weights & Biases at {address}" if address else "Weights & Biases"
        self._address = address
        self._run: Any = None

    def begin(self, name: str, settings: Settings, earlier: Earlier | None) -> str:
        """Begin a run, or resume one; what a person would be asked for is an error."""
        import wandb

        options: dict[str, Any] = {"base_url": self._address} if self._address else {}
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if online and not wandb.login(host=self._address or None, verify=False, prompt=False):
            hint = "`wandb login` keeps one; WANDB_MODE=offline does without."
            raise UsageError(expected_got("a key in WANDB_API_KEY", "none", hint))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            id=earlier.id if earlier else None,
            resume="allow" if earlier else None,
            config=dict(settings),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=20.0,
                finish_timeout=self._SECONDS,
                finish_timeout_raises=True,
                **options,
            ),
        )
        return str(self._run.id)

    def log(self, epoch: int, metrics: Mapping[str, float], when: float) -> None:  # noqa: ARG002  the protocol's
        """Log by epoch; the client sends it when it can."""
        self._run.log(dict(metrics), step=epoch)

    def conclude(self, scores: Mapping[str, float], epochs: int, folder: Path) -> None:
        """Log figures and scores, and the run directory as an artifact."""
        import wandb

        figures = {f"figures/{one.stem}": wandb.Image(str(one)) for one in folder.glob("figures/*.png")}
        self._run.log(figures, step=epochs)
        self._run.summary.update(dict(scores))
        artifact = wandb.Artifact(f"run-{self._run.id}", "run")
        artifact.add_dir(str(folder))
        self._run.log_artifact(artifact)

    def end(self, status: str) -> None:
        """Wait until all is sent, but not for ever."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "completed" else 1)


@dataclass(frozen=True)
class Kind:
    """What there is to know of a tool before anything of it is loaded."""

    tool: Callable[[str], Tool]
    package: str
    extra: str
    variable: str | None  # of the environment, that names the address
    default: str | None  # address; None where one has to be given

    def address(self) -> str | None:
        """Give the address that a person has not typed."""
        return os.environ.get(self.variable or "") or self.default


TOOLS: Mapping[str, Kind] = {
    "mlflow": Kind(MLflow, "mlflow", "mlflow", "MLFLOW_TRACKING_URI", None),
    "tensorboard": Kind(TensorBoard, "tensorboard", "tensorboard", None, "tensorboard"),
    "wandb": Kind(WeightsAndBiases, "wandb", "wandb", "WANDB_BASE_URL", ""),
}


@dataclass(frozen=True)
class Target:
    """A tool, and where it is; the address holds no password."""

    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.name}={self.address}"

    def open(self) -> Tool:
        """Make what one tracked run is sent with."""
        return TOOLS[self.name].tool(self.address)


def read_target(text: str) -> Target:
    """Read a tool's name, or NAME=ADDRESS.

    Examples
    --------
    >>> read_target("tensorboard=logs")
    Target(name='tensorboard', address='logs')
    """
    name, _, given = text.partition("=")
    if name not in TOOLS:
        raise unknown_name("tool", name, TOOLS)
    kind = TOOLS[name]
    require_package(kind.package, kind.extra)
    if given != without_credentials(given):
        hint = "Give them in the tool's own environment variables: what is typed here is kept with the run."
        raise UsageError(expected_got(f"an address of {name} without user and password", "some", hint))
    address = given or kind.address()
    if address is None:
        hint = "`mlflow server` starts one at http://127.0.0.1:5000."
        raise UsageError(
            expected_got("a server in --track mlflow=ADDRESS or in MLFLOW_TRACKING_URI", "none", hint)
        )
    return Target(name, without_credentials(address))


def read_targets(texts: Sequence[str]) -> list[Target]:
    """Read what a person has typed, each tool once."""
    found = {target.name: target for target in map(read_target, texts)}
    if len(found) < len(texts):
        raise UsageError(expected_got("each tool once in --track", ", ".join(texts)))
    return list(found.values())


def without_credentials(text: str) -> str:
    """Take user and password out of the addresses in a text.

    Examples
    --------
    >>> without_credentials("http://ann:secret@host:5000/path")
    'http://host:5000/path'
    """
    return _USER_AND_PASSWORD.sub("", text)
