"""The drop-in for ``model.fit``: the same call, on a program lowered from the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from convscope.errors import LoweringError, UsageError, expected_got, unknown_name
from convscope.training import ENGINES, PRECISIONS, engine_keras, require_count, require_engine_for
from convscope.training.checkpoint import TrainingState
from convscope.training.events import Listener, TrainBreak, is_mistake, reason_of
from convscope.training.inputs import ArrayInput, Shuffle, StreamInput, read_input
from convscope.training.progress import progress_listener
from convscope.training.request import (
    FitRequest,
    flatten_callbacks,
    plan_rows,
    plan_validation,
    require_fitting,
    resolve_seed,
    set_validation_apart,
    with_checks,
)
from convscope.training.schedules import Schedule

if TYPE_CHECKING:
    from convscope.augmentation import Augmentation
    from convscope.preprocessing import Preprocess
    from convscope.training.distributed import Group


def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: str | int = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: Shuffle = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | Sequence[int] = 1,
    *,
    engine: str = "auto",
    precision: str = "auto",
    seed: int | None = None,
    deterministic: bool = False,
    preprocess: Preprocess | None = None,
    augment: Augmentation | None = None,
    plan: Mapping[str, Any] | None = None,
    device: str | None = None,
    schedule: Schedule | None = None,
    rate_factors: Mapping[str, float] | None = None,
    listeners: Sequence[Listener] = (),
    on_divergence: str = "continue",
    resume_from: TrainingState | None = None,
    strict: bool = False,
) -> keras.callbacks.History:
    """Train a compiled Keras model as ``model.fit`` does, several times faster where it can be lowered.

    The positional arguments are those of ``keras.Model.fit`` and mean the same; below are the others.

    Parameters
    ----------
    model : keras.Model
        Compiled. Afterwards it holds the trained weights, its optimizer the moments.
    x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data, shuffle, class_weight, \
sample_weight, initial_epoch, steps_per_epoch, validation_steps, validation_batch_size, validation_freq
        See ``keras.Model.fit``. With ``steps_per_epoch``, an epoch that reaches the end of the data stops
        there, and the next one begins the next pass.
    engine : {"auto", "fast", "keras"}
        ``auto`` lowers the model where that is possible and says in one line why where it is not; ``fast``
        makes that an error; ``keras`` is Keras's own ``fit``.
    precision : {"auto", "float32", "bfloat16"}
        What the fast engine computes with; the weights are float32 always.
    seed : int or None
        Order and dropout masks become functions of it and of the absolute epoch. The same call then gives
        the same weights, bit for bit, on the same machine and number of threads. The plan that this takes
        is measured once and kept in the cache; without a cache give a recorded one (``plan``), or let fixed
        rules choose (``deterministic``).
    deterministic : bool
        Choose the fast engine's plan by fixed rules instead of by measurement.
    preprocess : Preprocess or None
        Then ``x`` holds raw uint8 images, shape ``(n, h, w, c)``, prepared batch by batch.
    augment : Augmentation or None
        Changes the raw images of each training batch, as a function of seed, epoch and step; needs
        ``preprocess``.
    plan : dict or None
        A plan recorded earlier, to be used again instead of measuring.
    device : str or None
        Where to compute: ``cpu``, ``cuda`` or ``mps``. That is where the model's weights lie, wherever Keras
        would put new ones now; anything else is refused. A model that is not built yet is built there.
    schedule : Schedule or None
        Sets the learning rate, and the momentum if it says so, at each step; see
        :mod:`convscope.training.schedules`.
    rate_factors : dict of str to float, or None
        What the learning rate is multiplied by in a layer, by its name; 1 where none is given. Lower rates
        for earlier layers suit a network that was trained before. Only the fast engine knows them: where a
        model cannot be lowered, all layers learn at one rate, and the line that says why says that too.
    listeners : sequence of callables
        Each takes every event of :mod:`convscope.training.events`.
    on_divergence : {"continue", "raise"}
        Whether a loss of NaN or infinity ends the training with an error; Keras goes on.
    resume_from : TrainingState or None
        Continue from this state as if nothing had happened.
    strict : bool
        Stop gradients where Keras stops them. Keras clips probabilities at 1e-7 before the logarithm: an
        output that is certain and wrong, as raw pixels from 0 to 255 make it, is not learned from. The fast
        engine takes a cross-entropy's gradient from the logits, where it does not stop, and reports the loss
        that Keras reports; with ``strict`` it takes the clipped gradient too.

    Returns
    -------
    keras.callbacks.History
        As Keras gives it; beside ``history`` it has ``engine``, "fast" or "keras", and ``reason``: why it was
        Keras where the fast engine was not ruled out, otherwise None. With ``verbose=0`` a warning says so.

    Raises
    ------
    UsageError
        When an argument cannot be used; its message says what to do.
    LoweringError
        When ``engine="fast"`` and the model cannot be lowered.
    DivergedError
        When ``on_divergence="raise"`` and the loss is no longer finite.

    Notes
    -----
    On Linux with glibc, training on a CPU lets the C library keep freed memory, in huge pages, for the rest
    of the process; that is worth 10 to 15 % of a step. Nothing else about the process stays changed.

    Examples
    --------
    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> x, y = np.random.default_rng(0).random((64, 4), np.float32), np.arange(64) % 2
    >>> history = fit(model, x, y, epochs=2, seed=1338, verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss']
    """
    _check_arguments(model, engine, precision, on_divergence, epochs, initial_epoch)
    group = _group()
    seed_in_use = resolve_seed(seed, resume_from)
    if group is not None:
        seed_in_use = group.same(seed_in_use)
    train = read_input(x, y, sample_weight, preprocess)
    if isinstance(train, StreamInput):
        train = train.looked_at()
    train, validation = set_validation_apart(train, validation_split, validation_data)
    if augment is not None and not (isinstance(train, ArrayInput) and preprocess is not None):
        hint = "Give an array of uint8 images, and the preprocessing that follows."
        raise UsageError(expected_got("raw images and preprocess beside augment", type(x).__name__, hint))
    for data in (train, validation):
        require_fitting(model, data)
    train = with_checks(model, train, "training data")
    validation = with_checks(model, validation, "validation data")
    request = FitRequest(
        model=model,
        train=train,
        validation=validation,
        plan=plan_rows(train, batch_size, steps_per_epoch, shuffle, seed_in_use, int(initial_epoch)),
        validation_plan=plan_validation(validation, validation_batch_size or batch_size, validation_steps),
        epochs=int(epochs),
        initial_epoch=int(initial_epoch),
        seed=seed_in_use,
        seeded=seed is not None or resume_from is not None,
        callbacks=flatten_callbacks(callbacks),
        listeners=(*listeners, *(progress_listener(verbose) if group is None or group.leads else ())),
        shuffle=shuffle,
        augment=augment,
        class_weight=class_weight,
        steps_per_epoch=steps_per_epoch,
        validation_steps=validation_steps,
        validation_freq=validation_freq,
        schedule=schedule,
        rate_factors=rate_factors,
        resume_from=resume_from,
        stop_on_divergence=on_divergence == "raise",
        precision=precision,
        deterministic=deterministic,
        lowering_plan=plan,
        device=device,
        strict=strict,
        engine=engine,
        group=group,
    )
    try:
        with _on_the_device_of(model, device), _gradients(), group.threads() if group else nullcontext():
            return _run(request)
    except BaseException as error:
        request.notify(TrainBreak(error))
        raise


def _run(request: FitRequest) -> keras.callbacks.History:
    """Train on the fast engine where that is wanted and possible, otherwise through Keras."""
    reason = _distributed_by_keras()
    if reason is None and request.engine == "keras" and request.group is not None:
        raise request.group.refused("Expected another engine than keras.")
    if reason is None and request.engine != "keras":
        try:
            require_torch()
            from convscope.training.engine_fast import FastEngine

            engine = FastEngine(request)
        except Exception as error:
            if is_mistake(error):
                raise
            if request.group is not None:
                raise request.group.refused(error) from error
            if request.engine == "fast":
                hint = " Or train it with engine='keras'."
                raise LoweringError(f"{error}{hint}") if isinstance(error, LoweringError) else error from None
            reason = reason_of(error)
        else:
            return engine.run()
    if request.rate_factors and reason is None:
        hint = "Leave out rate_factors, or engine='keras'."
        raise UsageError(expected_got("the fast engine for rate_factors", "Keras's own fit", hint))
    if reason is not None:
        request.say_that_keras_trains(reason)
    history = engine_keras.run(request)
    history.engine, history.reason = "keras", reason
    return history


def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: str | int = 0,
    steps: int | None = None,
    callbacks: Any = None,
    *,
    preprocess: Preprocess | None = None,
    precision: str = "float32",
    engine: str = "auto",
) -> NDArray[np.float32]:
    """Compute a model's outputs, as ``model.predict`` does.

    Parameters
    ----------
    model : keras.Model
        Built; it need not be compiled.
    x : array of shape (n, ...)
        Network input; or raw uint8 images ``(n, h, w, c)`` beside ``preprocess``.
    batch_size : int or None
        Rows computed at once; None for a size that suits the machine, or for Keras's where it could matter.
    verbose : {"auto", 0, 1, 2}
        0, the default here, says nothing; the others show Keras's progress bar.
    steps : int or None
        Batches after which to stop; None for all that there are.
    callbacks : list of keras.callbacks.Callback, CallbackList or None
        Called for each batch, as by Keras.
    preprocess : Preprocess or None
        Applied batch by batch.
    precision : {"float32", "bfloat16", "auto"}
        What the fast engine computes with.
    engine : {"auto", "fast", "keras"}
        As for :func:`fit`: what cannot be lowered, or predicts in a way of its own, goes to Keras; the
        reason is logged.

    Returns
    -------
    ndarray of float32, shape (n, classes)
        Row i belongs to ``x[i]``; a structure of arrays for a model with several outputs.

    Raises
    ------
    UsageError
        When an argument cannot be used.
    LoweringError
        When ``engine="fast"`` and the model cannot be lowered.

    Examples
    --------
    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    >>> predict(model, np.zeros((3, 4), np.float32)).tolist()
    [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    _check_names(engine, precision)
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value is not None:
            require_count(name, value, 1)
    how: dict[str, Any] = {"verbose": verbose, "steps": steps, "callbacks": callbacks}
    if engine == "keras" or (engine == "auto" and keras.backend.backend() != "torch"):
        return _predict_with_keras(model, x, batch_size, preprocess, **how)
    try:
        require_torch()
        from convscope.training.predictor import predictor_of

        predictor = predictor_of(model, precision, strict=engine == "fast")
    except Exception as error:
        if engine == "fast" or is_mistake(error):
            raise
        logging.getLogger(__name__).info("Predicting with Keras's own predict. %s", reason_of(error))
        return _predict_with_keras(model, x, batch_size, preprocess, **how)
    outputs: NDArray[np.float32] = predictor(x, batch_size, preprocess, **how)
    return outputs


def predict_with_features(
    model: keras.Model, x: Any, preprocess: Preprocess | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute a model's outputs as `predict` does and, in the same pass, its features (n, features).

    The features enter the layer that decides between the classes. LoweringError where the model cannot be
    lowered.
    """
    require_torch()
    from convscope.training.predictor import predictor_of

    outputs, features = predictor_of(model, "float32", features=True)(x, None, preprocess)
    return outputs, features.reshape(len(features), -1)


def _predict_with_keras(
    model: keras.Model, x: Any, batch_size: int | None, preprocess: Preprocess | None, **how: Any
) -> NDArray[np.float32]:
    with _on_the_device_of(model):
        return engine_keras.predict(model, x, batch_size, preprocess, **how)


def _gradients() -> AbstractContextManager[Any]:
    """Let torch keep gradients, also for a caller who has switched them off."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.inference_mode(False)


def _on_the_device_of(model: keras.Model, wanted: str | None = None) -> AbstractContextManager[None]:
    """Compute where the model's weights lie; a model without any goes where it is wanted."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    from convscope.lowering.devices import computing_on, device_of, require_device

    device = device_of(model)
    if wanted is not None:
        found = require_device(wanted)
        if device is not None and device.type != found.type:
            hint = "Build the model inside `with keras.device(...)`, or set KERAS_TORCH_DEVICE."
            raise UsageError(expected_got(f"the device that holds the model, {device.type}", wanted, hint))
        device = device or found
    return computing_on(device)


def _group() -> Group | None:
    """Find the processes that train together; None on other back ends, and where Keras distributes."""
    if keras.backend.backend() != "torch" or _distributed_by_keras():
        return None
    from convscope.training.distributed import join

    return join()


def _distributed_by_keras() -> str | None:
    """Say why Keras does the work where ``keras.distribution`` is active."""
    active = keras.distribution.distribution()
    if active is None:
        return None
    return f"keras.distribution is active ({type(active).__name__}): it distributes the work itself."


def require_torch() -> None:
    """Refuse other back ends: only Keras on torch has anything to lower to."""
    if keras.backend.backend() != "torch":
        raise LoweringError(expected_got("Keras on torch", f"Keras on {keras.backend.backend()}"))


def _check_arguments(
    model: keras.Model, engine: str, precision: str, on_divergence: str, epochs: int, initial_epoch: int
) -> None:
    """Refuse what no engine can work with, before any work is done."""
    if not isinstance(model, keras.Model):
        raise UsageError(expected_got("a Keras model", type(model).__name__))
    if not model.compiled:
        raise UsageError(expected_got("a compiled model", "one without a loss", "Call model.compile first."))
    _check_names(engine, precision)
    if on_divergence not in ("continue", "raise"):
        raise unknown_name("on_divergence setting", on_divergence, ("continue", "raise"))
    require_count("epochs", epochs, 0)
    require_count("initial_epoch", initial_epoch, 0)


def _check_names(engine: str, precision: str) -> None:
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    require_engine_for(precision, engine)
