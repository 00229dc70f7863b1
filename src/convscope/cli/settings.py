"""From settings as they are typed to what is trained: the data, and defaults that suit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.cli.datasets import check_first
from convscope.cli.output import say
from convscope.cli.parsing import read_augmentation, read_duration, read_share
from convscope.errors import ConvscopeError, DataNotFoundError, UsageError, expected_got

if TYPE_CHECKING:
    from convscope.data.dataset import Dataset
    from convscope.experiment.config import ExperimentConfig


# The settings of ``train`` that decide what is trained; a sweep searches among their values.
SETTINGS = (
    "network", "weights", "recipe", "epochs", "within", "until", "patience", "keep", "monitor", "augment",
    "class_weights", "batch_size", "optimizer", "optimizer_settings", "learning_rate", "find_learning_rate",
    "schedule", "label_smoothing", "validation_share", "scaling", "data_format", "resize", "size", "engine",
    "precision", "deterministic", "seed", "preflight",
)  # fmt: skip


def read_settings(data: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read settings of ``train`` as they are typed: those of the experiment, and those of its training."""
    from convscope.experiment.config import ExperimentConfig, TrainingConfig
    from convscope.networks import require_network

    refuse_both("--within", given.get("within"), "--epochs", given.get("epochs"))
    rate, find = given.get("learning_rate"), given.get("find_learning_rate")
    refuse_both("--find-learning-rate", find, "--learning-rate", rate)
    network, size = given.get("network"), given.get("size")
    if network is not None:
        require_network(network)  # before its data are read
    settings = {
        **given,
        "network": findable(network),
        "data": findable(data),
        "weights": findable(given.get("weights")),
        "reading": {"size": size} if size else {},
        "augmentation": read_augmentation(given["augment"]) if given.get("augment") else None,
        "within": read_duration(given["within"]) if given.get("within") else None,
        "until": read_share(given["until"]) if given.get("until") else None,
    }
    experiment, training = (
        {field.name: settings[field.name] for field in fields(config) if field.name in settings}
        for config in (ExperimentConfig, TrainingConfig)
    )
    return experiment, training


def check_settings(data: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that no training can have, before any data are read."""
    from convscope.experiment.config import ExperimentConfig
    from convscope.recipes import recipe

    base = recipe(given["recipe"]) if given.get("recipe") else ExperimentConfig()
    _applied(base, *read_settings(data, given))


def settle(
    data: str,
    given: Mapping[str, Any],
    *,
    workers: int | None = None,
    add: Path | None = None,
    quiet: bool = False,
    known: dict[str, Dataset] | None = None,
) -> tuple[ExperimentConfig, Dataset]:
    """Read the data and corrections to add; take for each setting that was left open what suits them.

    ``known`` keeps what was read, for the next one who reads the data in the same way.
    """
    from convscope.data.corrections import add_corrections, read_corrections
    from convscope.data.loading import load
    from convscope.experiment.config import ExperimentConfig
    from convscope.networks import pretrained
    from convscope.recipes import recipe as find_recipe
    from convscope.recipes import suggest, with_small_batches

    chosen = read_settings(data, given)
    network, recipe, scaling, size = (given.get(name) for name in ("network", "recipe", "scaling", "size"))
    base = find_recipe(recipe) if recipe else None
    left_open = recipe is None and scaling is None and given.get("data_format") is None
    if left_open and given.get("engine") != "keras":
        base, line = _pretrained_recipe(data, network, size)
        if line and not quiet:
            say(line)
    early = _applied(base or ExperimentConfig(), *chosen)  # a wrong name is refused before images are read
    if early.training.precision == "bfloat16":
        from convscope.lowering.devices import current_device
        from convscope.lowering.processor import require_precision

        require_precision("bfloat16", training=True, device=str(current_device()))
    _require_weights(early, scaling)
    reading = {**_size_of_network(early, data), **early.reading}
    reading_options = {"resize": early.resize, "workers": workers, **reading}
    corrections = [] if add is None else read_corrections(add)  # before the images, which are many
    known, key = {} if known is None else known, repr(sorted(reading_options.items()))
    if key not in known:
        known[key] = check_first(data, reading_options, quiet=quiet) or load(data, **reading_options)
    dataset = known[key]
    if add is not None:
        reading["add"] = [str(add.absolute()), len(corrections)]
        dataset = add_corrections(dataset, add, len(corrections), early.resize)
    if base is None or (recipe is None and pretrained.is_pretrained(base.network)):
        own_size = None if base is None else base.size
        base = replace(suggest(dataset, early.network if network or base else None), size=own_size)
    if given.get("batch_size") is None:
        share = given.get("validation_share")
        share = base.validation_share if share is None else share
        base = with_small_batches(replace(base, validation_share=share), dataset)
    return replace(_applied(base, *chosen), reading=reading), dataset


def _pretrained_recipe(
    data: str, network: str | None, size: int | None
) -> tuple[ExperimentConfig | None, str]:
    """Take a pretrained network where it was asked for, or where a person's photographs are few.

    Gives its settings, None for other networks, and a line that says what was chosen.
    """
    from convscope.data.builtin import CATALOG
    from convscope.data.ingest import peek
    from convscope.data.sources import find_source
    from convscope.networks import pretrained
    from convscope.recipes import choose_backbone, size_for_backbone
    from convscope.recipes import recipe as find_recipe

    line, asked = "", network is not None and pretrained.is_pretrained(network)
    if network is not None and not asked:
        return None, ""
    try:
        found = peek(find_source(Path(data))) if data not in CATALOG and Path(data).exists() else None
    except ConvscopeError:
        found = None  # reading the images will say it better
    if network is None:
        network, line = choose_backbone(*found) if found else (None, "")
    if network is None:
        return None, line
    own = size_for_backbone(*found[:2]) if found else None
    return replace(find_recipe("pretrained"), network=network, size=size or own), line


def _require_weights(config: ExperimentConfig, scaling: str | None) -> None:
    """Refuse a pretrained network whose weights are missing, and settings that do not fit."""
    from convscope.networks import pretrained

    if not pretrained.is_pretrained(config.network):
        if config.weights is not None:
            found = f"{config.network} with --weights"
            raise UsageError(expected_got(f"a pretrained network such as {pretrained.DEFAULT}", found))
        return
    if scaling is not None:
        hint = "Leave it out: the network takes its images as its weights were trained."
        raise UsageError(expected_got(f"no --scaling for {config.network}", scaling, hint))
    at_hand = config.weights is None and config.network != pretrained.DEFAULT  # or Keras downloads them
    if not at_hand and (text := pretrained.find_weights(config.network, config.weights)):
        raise DataNotFoundError(text)


def _size_of_network(config: ExperimentConfig, data: str) -> dict[str, Any]:
    """Read own images in the size of their network: resized once, as they will be for prediction."""
    from convscope.data.builtin import CATALOG
    from convscope.networks import pretrained

    if data not in CATALOG and pretrained.is_pretrained(config.network):
        return {"size": config.size or pretrained.DEFAULT_SIZE, "channels": 3}
    if config.network_file is None or data in CATALOG:
        return {}
    from convscope.experiment.preparation import image_shape_of, load_network, settle_input

    network = load_network(config)
    if network is None:
        return {}
    settled, _ = settle_input(config, network)
    height, width, channels = image_shape_of(network, settled.data_format)
    size = {} if height is None or width is None else {"size": (height, width)}
    return {**size, "channels": channels}


def findable(name: str | None) -> str | None:
    """Write a path so that a run finds it from anywhere; a name stays one beside a file called so."""
    from convscope.data.builtin import CATALOG
    from convscope.networks import NETWORKS

    if not name or name in (*CATALOG, *NETWORKS):
        return name
    return str(Path(name).resolve()) if Path(name).exists() else name


def refuse_both(name: str, value: object, other: str, value_of_other: object) -> None:
    """Refuse two options of which each decides what the other one does."""
    if value is not None and value_of_other is not None:
        raise UsageError(expected_got(f"{name} or {other}", "both", "Leave out one of the two."))


def _applied(
    base: ExperimentConfig, experiment: dict[str, Any], training: dict[str, Any]
) -> ExperimentConfig:
    """Replace in a configuration what was set; None stands for what was left open."""
    training = {name: value for name, value in training.items() if value is not None}
    if "within" in training and base.training.schedule == "constant":
        training = {"schedule": "one-cycle", **training}  # a deadline is there to be annealed to
    if "until" in training:
        training = {"monitor": "accuracy", **training}  # the epoch that reaches it has to be the best
    if "find_learning_rate" in training:
        training["learning_rate"] = None
    given = {name: value for name, value in experiment.items() if value is not None}
    return replace(base, training=replace(base.training, **training), **given)
