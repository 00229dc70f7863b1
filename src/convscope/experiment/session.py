"""What a training works with, made anew from the configuration whenever it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from convscope import environment
from convscope.data.catalog import Dataset
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.model import (
    adapt_network,
    build_model,
    image_shape_of,
    load_network,
    settle_input,
)
from convscope.experiment.preparation import Prepared, prepare
from convscope.lowering.devices import device_of
from convscope.lowering.processor import describe_device
from convscope.training.events import Listener, Notice, tell

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Session:
    """What a training works with."""

    config: ExperimentConfig
    dataset: Dataset
    prepared: Prepared
    model: keras.Model


def begin_session(config: ExperimentConfig, dataset: Dataset, listeners: Sequence[Listener] = ()) -> Session:
    """Prepare the data and build the network; the same configuration gives the same session.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.
    dataset : Dataset
        What to do it with.
    listeners : sequence of callables
        Told how the data were prepared.

    Returns
    -------
    Session
    """
    loaded, notes = load_network(config), list(dataset.notes)
    image_shape = None
    if loaded is not None:
        config, settled = settle_input(config, loaded)
        image_shape, notes = image_shape_of(loaded, config.data_format), notes + settled
    prepared = prepare(dataset, config, image_shape)
    if loaded is not None:
        loaded, adapted = adapt_network(loaded, prepared.preprocess.input_shape, len(prepared.class_names))
        notes += adapted
    images = len(prepared.train)
    if config.training.batch_size > images:
        notes.append(
            f"There are {images} training images: one batch of all of them, not {config.training.batch_size}."
        )
        config = replace(config, training=replace(config.training, batch_size=images))
    model = build_model(config, prepared.preprocess.input_shape, len(prepared.class_names), loaded)
    settings = config.describe(float(model.optimizer.learning_rate))
    for line in (settings, *notes, *prepared.describe()):
        tell(tuple(listeners), Notice(line))
    return Session(config, dataset, prepared, model)


def describe_run(session: Session, dataset: Dataset) -> dict[str, Any]:
    """Gather what somebody needs to judge or repeat the run.

    Parameters
    ----------
    session : Session
        What the training works with.
    dataset : Dataset
        What the data were prepared from.

    Returns
    -------
    dict
        JSON values.
    """
    config, prepared, model = session.config, session.prepared, session.model
    return {
        "began": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "config": config.to_json(),
        "seed": config.training.seed,
        "data": {
            "name": dataset.name,
            "source": config.data,
            "reading": {**config.reading, "resize": config.resize},
            "fingerprint": dataset.fingerprint,
            "counts": {name: len(part) for name, part in prepared.parts.items()},
            "class_names": list(dataset.class_names),
            "left_out": dict(dataset.left_out),
            "preparation": prepared.describe(),
        },
        "network": {"name": config.network_name, "parameters": model.count_params()},
        **environment.describe(),
        "device": describe_device(device_of(model)),
    }
