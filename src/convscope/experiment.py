"""An experiment from top to bottom: configuration → data → training → evaluation → run directory."""

from __future__ import annotations

import base64
import html
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import environment, networks, plotting
from convscope.data.catalog import Dataset, Split
from convscope.data.splits import split_indices
from convscope.errors import InterruptedRunError, UsageError, sentence, unknown_name
from convscope.evaluation import Evaluation
from convscope.preprocessing import DATA_FORMATS, RESIZES, SCALINGS, Preprocess, one_hot
from convscope.runs import RunDirectory, create_run
from convscope.training.config import TrainingConfig
from convscope.training.events import EpochEnd, Event, Notice

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides an experiment's outcome, apart from the data themselves.

    Parameters
    ----------
    network : str
        A name from ``convscope.networks``.
    scaling, data_format, resize : str
        As in ``Preprocess``.
    validation_share : float
        The share of the training images held back for validation, between 0 and 1.
    stratify : bool
        Keep the classes' proportions in both parts.
    training : TrainingConfig
        Epochs, batch size, optimizer, seed and the like.

    Examples
    --------
    >>> ExperimentConfig("simple").training.epochs
    10
    """

    network: str = "deep"
    scaling: str = "minmax"
    data_format: str = "channels_last"
    resize: str = "letterbox"
    validation_share: float = 0.3
    stratify: bool = True
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for kind, name, valid in (
            ("scaling", self.scaling, SCALINGS),
            ("data format", self.data_format, DATA_FORMATS),
            ("way to resize", self.resize, RESIZES),
        ):
            if name not in valid:
                raise unknown_name(kind, name, valid)
        if not 0 < self.validation_share < 1:
            raise UsageError(sentence("a validation share between 0 and 1", self.validation_share))


@dataclass(frozen=True)
class Prepared:
    """What the network will see: three parts, one preprocessing."""

    train: Split
    validation: Split
    test: Split
    preprocess: Preprocess
    class_names: tuple[str, ...]

    def describe(self) -> list[str]:
        """Say in words how the data were prepared, a line for each step."""
        parts = f"{len(self.train):,} for training, {len(self.validation):,} for validation"
        return [
            f"split of the training data: {parts}; {len(self.test):,} test images",
            *self.preprocess.describe(),
            f"one-hot targets of length {len(self.class_names)}",
        ]


@dataclass(frozen=True)
class Result:
    """What came out of an experiment, and where it lies."""

    run: Path
    network: str
    parameters: int
    seconds: float
    history: dict[str, list[float]]
    validation: Evaluation
    test: Evaluation


def run_experiment(
    config: ExperimentConfig,
    dataset: Dataset,
    target: Path,
    listeners: Sequence[Listener] = (),
    command: Sequence[str] = (),
) -> Result:
    """Do a whole experiment and write its run directory.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.
    dataset : Dataset
        What to do it with.
    target : Path
        The run directory to make.
    listeners : sequence of callables
        Each receives every training event.
    command : sequence of str
        The command line that led here, for the record.

    Returns
    -------
    Result
        The run's numbers.

    Raises
    ------
    ConvscopeError
        If data, network or training do not fit together, or the run cannot be written; no run is left.
    InterruptedRunError
        If a person stopped the training; a run with status ``interrupted`` is left, without an evaluation.
    """
    with create_run(target) as run:
        prepared = prepare(dataset, config)
        for step in prepared.describe():
            for listener in listeners:
                listener(Notice(step))
        model = build_model(config, prepared)
        training = train(model, prepared, config, listeners)
        record = {
            "command": shlex.join(command),
            **_record(config, dataset, prepared),
            "network": {"name": model.name, "parameters": model.count_params()},
            "seconds": training.seconds,
            **environment.describe(),
        }
        write_training(run, model, prepared.preprocess, training.history)
        if training.interrupted:
            run.write_json("run.json", record | {"status": "interrupted"})
        else:
            validation = predict_and_evaluate(model, prepared.validation, prepared)
            test = predict_and_evaluate(model, prepared.test, prepared)
            write_evaluation(run, validation, test)
            write_figures(run, test, prepared.test, training.history, f"{model.name} on {dataset.name}")
            run.write_json("run.json", record | {"status": "completed"})
    if training.interrupted:
        raise InterruptedRunError(
            f"Interrupted. {target} holds the network as it was then, without an evaluation."
        )
    return Result(
        target, model.name, model.count_params(), training.seconds, training.history, validation, test
    )


def prepare(dataset: Dataset, config: ExperimentConfig) -> Prepared:
    """Split the training images and fit the preprocessing on the part that is trained on.

    Parameters
    ----------
    dataset : Dataset
        As it was loaded.
    config : ExperimentConfig
        Shares, seed and scaling.

    Returns
    -------
    Prepared
        Still uint8: batches are preprocessed as they are needed.

    Examples
    --------
    >>> import convscope
    >>> prepared = prepare(convscope.load("digits"), ExperimentConfig())
    >>> len(prepared.train), len(prepared.validation)
    (1005, 432)
    """
    first, second = split_indices(
        dataset.train.labels, config.validation_share, config.training.seed, config.stratify
    )
    train = dataset.train.take(first)
    preprocess = Preprocess.fit(train.images, config.scaling, config.data_format, config.resize)
    return Prepared(train, dataset.train.take(second), dataset.test, preprocess, dataset.class_names)


def build_model(config: ExperimentConfig, prepared: Prepared) -> keras.Model:
    """Build and compile the network; the seed decides its first weights.

    Parameters
    ----------
    config : ExperimentConfig
        Network, optimizer and seed.
    prepared : Prepared
        Gives the input shape and the number of classes.

    Returns
    -------
    keras.Model
        Compiled for one-hot targets.
    """
    import keras

    training = config.training
    keras.utils.set_random_seed(training.seed)
    classes = len(prepared.class_names)
    model = networks.build(config.network, prepared.preprocess.input_shape, classes, config.data_format)
    optimizer = keras.optimizers.get(training.optimizer)
    if training.learning_rate is not None:
        optimizer.learning_rate = training.learning_rate
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=training.label_smoothing)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


@dataclass(frozen=True)
class Training:
    """What the training itself left behind."""

    history: dict[str, list[float]]
    seconds: float
    interrupted: bool


def train(
    model: keras.Model, prepared: Prepared, config: ExperimentConfig, listeners: Sequence[Listener] = ()
) -> Training:
    """Train a compiled model on the prepared data, validating each epoch.

    Parameters
    ----------
    model : keras.Model
        Compiled; holds the trained weights afterwards.
    prepared : Prepared
        The data.
    config : ExperimentConfig
        Epochs, batch size, seed, engine.
    listeners : sequence of callables
        Each receives every training event.

    Returns
    -------
    Training
        The history of the finished epochs; ``interrupted`` after Ctrl-C.
    """
    from convscope.training.fit import fit

    settings = config.training
    classes = len(prepared.class_names)
    history: dict[str, list[float]] = {}

    def remember(event: Event) -> None:
        if isinstance(event, EpochEnd):
            for name, value in event.logs.items():
                history.setdefault(name, []).append(float(value))

    begin = time.perf_counter()
    interrupted = False
    try:
        fit(
            model,
            prepared.train.images,
            one_hot(prepared.train.labels, classes),
            validation_data=(prepared.validation.images, one_hot(prepared.validation.labels, classes)),
            preprocess=prepared.preprocess,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=settings.seed,
            engine=settings.engine,
            precision=settings.precision,
            deterministic=settings.deterministic,
            listeners=[remember, *listeners],
            on_divergence="raise",
            verbose=0,
        )
    except KeyboardInterrupt:
        interrupted = True
    return Training(history, time.perf_counter() - begin, interrupted)


def predict_and_evaluate(model: keras.Model, part: Split, prepared: Prepared) -> Evaluation:
    """Predict a part of the data and hold the predictions against its labels.

    Parameters
    ----------
    model : keras.Model
        Trained.
    part : Split
        Images, labels and names.
    prepared : Prepared
        Gives the preprocessing and the class names.

    Returns
    -------
    Evaluation
        Computed once; tables, figures and JSON read it.
    """
    from convscope.training.fit import predict

    probabilities = predict(model, part.images, preprocess=prepared.preprocess)
    return Evaluation.from_probabilities(probabilities, part.labels, prepared.class_names, part.names)


def write_training(
    run: RunDirectory, model: keras.Model, preprocess: Preprocess, history: dict[str, list[float]]
) -> None:
    """Write the network, its preprocessing and the history of its training.

    Parameters
    ----------
    run : RunDirectory
        To write into.
    model : keras.Model
        Trained.
    preprocess : Preprocess
        What the model's input must go through.
    history : dict of lists
        A value for each epoch.
    """
    from safetensors.numpy import save

    with tempfile.TemporaryDirectory() as scratch:  # Keras saves to a path only
        file = Path(scratch) / "model.keras"
        model.save(file)
        run.write_bytes("model.keras", file.read_bytes())
    weights = {variable.path: np.ascontiguousarray(variable.numpy()) for variable in model.weights}
    run.write_bytes("weights.safetensors", save(weights))
    for name, content in preprocess.to_files().items():
        run.write_bytes(name, content)
    epochs = max((len(values) for values in history.values()), default=0)
    run.write_table("history.csv", {"epoch": range(1, epochs + 1), **history})


def write_evaluation(run: RunDirectory, validation: Evaluation, test: Evaluation) -> None:
    """Write predictions and what they are worth.

    Parameters
    ----------
    run : RunDirectory
        To write into.
    validation, test : Evaluation
        Of the two parts.
    """
    run.write_json("evaluation.json", {"test": test.to_json(), "validation": validation.to_json()})
    arrays = {}
    for part, evaluation in (("validation", validation), ("test", test)):
        arrays[f"{part}_probabilities"] = evaluation.probabilities.astype(np.float32)
        arrays[f"{part}_labels"] = evaluation.labels
        arrays[f"{part}_names"] = np.array(evaluation.names)
    run.write_arrays("predictions.npz", arrays)


def write_figures(
    run: RunDirectory, test: Evaluation, part: Split, history: dict[str, list[float]], subject: str
) -> None:
    """Draw and write the exercise's figures.

    Parameters
    ----------
    run : RunDirectory
        To write into, under ``figures/``.
    test : Evaluation
        Of the test images.
    part : Split
        The test images.
    history : dict of lists
        A value for each epoch.
    subject : str
        What the figures are about, e.g. ``deep on mnist``; stands in every title.
    """
    for name, figure in draw_figures(test, part.images, history).items():
        figure.suptitle(f"{subject}: {name.replace('_', ' ')}")
        run.write_bytes(f"figures/{name}.png", plotting.png_bytes(figure))


def draw_figures(
    evaluation: Evaluation, images: NDArray[Any], history: dict[str, list[float]] | None = None
) -> dict[str, Figure]:
    """Draw the figures of the exercise.

    Parameters
    ----------
    evaluation : Evaluation
        Of the images.
    images : ndarray of shape (n, h, w, c)
        In the evaluation's order.
    history : dict of lists, optional
        A value for each epoch.

    Returns
    -------
    dict of str to Figure
        In the exercise's order.
    """
    probabilities, labels, names = evaluation.probabilities, evaluation.labels, evaluation.class_names
    figures = {
        "probability": plotting.plot_probability(probabilities, labels, class_names=names),
        "confusion_matrix": plotting.plot_confusion_matrix(evaluation.confusion, names),
        "worst_errors": plotting.plot_errors(images, labels, probabilities, names, names=evaluation.names),
        "predictions": plotting.plot_predictions(images, probabilities, labels, names),
    }
    return figures if history is None else {"history": plotting.plot_history(history), **figures}


def _record(config: ExperimentConfig, dataset: Dataset, prepared: Prepared) -> dict[str, Any]:
    """Gather what went in, for whoever judges or repeats the run."""
    parts = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    return {
        "config": asdict(config),
        "seed": config.training.seed,
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "counts": {name: len(part) for name, part in parts.items()},
            "class_names": list(dataset.class_names),
            "preparation": prepared.describe(),
        },
    }


@dataclass(frozen=True)
class Assessment:
    """An evaluation and its figures, as a notebook shows them.

    Attributes
    ----------
    evaluation : Evaluation
        Every number.
    figures : dict of str to Figure
        Probability histogram, confusion matrix, worst errors, first predictions.
    """

    evaluation: Evaluation
    figures: dict[str, Figure] = field(repr=False)

    def __str__(self) -> str:
        return str(self.evaluation)

    def _repr_html_(self) -> str:
        """Show report and figures in a notebook."""
        pictures = "".join(_picture(figure, name) for name, figure in self.figures.items())
        return f"<pre>{html.escape(str(self.evaluation))}</pre>{pictures}"


def _picture(figure: Figure, name: str) -> str:
    """Embed a figure in HTML."""
    content = base64.b64encode(plotting.png_bytes(figure)).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{content}">'


def evaluate(
    model: keras.Model,
    x: NDArray[Any],
    y: NDArray[Any],
    class_names: Sequence[str] | None = None,
    *,
    preprocess: Preprocess | None = None,
    names: Sequence[str] | None = None,
) -> Assessment:
    """Evaluate a model on labelled images: loss, accuracy, report, and the exercise's four figures.

    Parameters
    ----------
    model : keras.Model
        Ends in probabilities.
    x : ndarray
        Preprocessed float32 images in the model's input shape, or uint8 images with ``preprocess``.
    y : ndarray of shape (n,) or (n, k)
        Labels as numbers or one-hot.
    class_names : sequence of str, optional
        The name of each class; its number when left out.
    preprocess : Preprocess, optional
        Applied to ``x`` first.
    names : sequence of n str, optional
        A name for each image.

    Returns
    -------
    Assessment
        Prints as the report; a notebook shows the figures too.

    Examples
    --------
    >>> import convscope, numpy as np
    >>> model = convscope.build("simple", (8, 8, 1), classes=3)
    >>> images = np.zeros((5, 8, 8, 1), np.float32)
    >>> assessment = evaluate(model, images, np.array([0, 1, 2, 0, 1]))
    >>> sorted(assessment.figures)
    ['confusion_matrix', 'predictions', 'probability', 'worst_errors']
    """
    from convscope.training.fit import predict

    probabilities = predict(model, x, preprocess=preprocess)
    evaluation = Evaluation.from_probabilities(probabilities, y, class_names, names)
    with plotting.embedded():
        return Assessment(evaluation, draw_figures(evaluation, x))
