"""Training on a pretrained backbone, in two stages: a head fitted on its features, then fine-tuning.

The head is a logistic regression on the features of the training images, which takes seconds; it becomes the
last layer of the network. Fine-tuning then is a training like any other, of all but the earliest stages, with
lower learning rates for earlier ones and with the backbone's normalization as it is. The head alone counts as
the first epoch: fine-tuning is kept if one of its epochs is better on the validation images, and in its place
the average of the weights before and after it if that is at least as good (M. Wortsman et al., "Robust
fine-tuning of zero-shot models", 2022): it learns the new classes and forgets less of the million others.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.cache import add_rows, read_rows
from convscope.data.dataset import Split, balanced_class_weights
from convscope.evaluation import wilson_interval
from convscope.experiment.config import TrainingConfig
from convscope.experiment.fitting import kept_epoch
from convscope.experiment.preparation import FittedHead, Session
from convscope.networks import pretrained
from convscope.preprocessing import Preprocess, one_hot
from convscope.training.events import Listener, Notice, notify

if TYPE_CHECKING:
    import keras

_PROGRESS = logging.getLogger("convscope.progress")

HEAD = "head"
# Each stage learns at this fraction of the rate of the one behind it.
RATE_FALL = 0.7
# Raised when the same images would give other features.
_FEATURES_VERSION = 1
# So many features are computed at a time, and kept.
_KEPT_AT_ONCE = 512
# How strongly the head is held back is chosen among these, by the loss in so many folds.
_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
_FOLDS = 3
# With so many images one fold says enough, and a fit takes seconds.
_MANY = 1_000
_ITERATIONS = 300
# How often each of few images is changed at random for the head, and how much of a deadline that may take.
_VIEWS, _SHARE_OF_VIEWS = 3, 0.25
# Training images by which the average of weights is measured, for the history alone.
MOST_MEASURED = 200
_SMALLEST = 1e-7  # as Keras clips probabilities before the logarithm

Floats = NDArray[np.floating[Any]]


def rate_factors(model: keras.Model) -> dict[str, float]:
    """Give each layer the factor of its learning rate: 1 for the head, less for each stage before it."""
    stages = pretrained.stage_of(model)
    last = max(stages.values())
    trained = {layer.name for layer in model.layers if layer.trainable_variables}
    return {name: RATE_FALL ** (last - stage) for name, stage in stages.items() if name in trained}


def fit_head(session: Session, record: dict[str, Any], listeners: Sequence[Listener]) -> Session:
    """Fit the head of a pretrained network on the features of its images; ``record`` hears how."""
    if not pretrained.is_pretrained(session.config.network):
        return session
    began = time.perf_counter()
    config, prepared, model = session.config, session.prepared, session.model
    _PROGRESS.info("Computing features")
    train = prepared.train
    features, seconds = features_of(model, train.images, prepared.preprocess)
    _PROGRESS.info("Fitting the head")
    classes = len(prepared.class_names)
    weights = np.ones(classes)
    if config.training.class_weights == "balanced":
        found = balanced_class_weights(train.labels, classes)
        weights = np.array([found.get(label, 1.0) for label in range(classes)])
    views = _augmented_features(session, seconds * len(train))
    kernel, bias, strength = fit_logistic(
        features, train.labels, classes, weights, config.training.seed, train.groups, views
    )
    model.get_layer(HEAD).set_weights([kernel, bias])
    row = _row("", features @ kernel + bias, train, config.training)
    stage: dict[str, Any] = {"name": HEAD, "strength": strength, "augmented": len(views)}
    text = f"The head alone, fitted on features of {len(train):,} images"
    if views:
        text += f" and of {len(views) * len(train):,} augmented ones"
    if prepared.validation:
        held_back, _ = features_of(model, prepared.validation.images, prepared.preprocess)
        row |= _row("val_", held_back @ kernel + bias, prepared.validation, config.training)
        text += f": {_share(row['val_accuracy'], len(prepared.validation))} of the validation images"
    taken = time.perf_counter() - began
    stage |= {"seconds": taken, **row}
    record["stages"] = [stage]
    notify(listeners, Notice(f"{text}, after {taken:.1f} s"))
    return replace(session, head=FittedHead(model.get_weights(), features, row, seconds))


def _augmented_features(session: Session, seconds: float) -> list[Floats]:
    """Compute features of the training images changed at random, some times over, where there is time for it.

    ``seconds`` are those that the unchanged ones took.
    """
    config, train = session.config, session.prepared.train
    within, count = config.training.within, _VIEWS
    if config.augmentation.is_none or len(train) >= _MANY:
        return []
    if within is not None:
        count = min(count, int(_SHARE_OF_VIEWS * within / max(seconds, 1e-6)))
    seed, preprocess = config.training.seed, session.prepared.preprocess
    views = (config.augmentation.view(train.images, seed=seed, number=number) for number in range(count))
    return [features_of(session.model, view, preprocess)[0] for view in views]


def features_of(
    model: keras.Model, images: NDArray[np.uint8], preprocess: Preprocess
) -> tuple[NDArray[np.float32], float]:
    """Compute what a network's head sees of images, ``(n, d)``; of those that the cache knows, read it.

    Also gives the seconds that one image takes, or took when it was computed.
    """
    import keras

    from convscope.training.api import predict

    # A name of its own would be another one at each call, and the name stands for the architecture.
    extractor = keras.Model(model.input, model.get_layer(HEAD).input, name=model.name)
    key = _key(extractor, preprocess)
    names = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    known, seconds = read_rows(key)
    new = [place for place, name in enumerate(names) if name not in known]
    began = time.perf_counter()
    for start in range(0, len(new), _KEPT_AT_ONCE):  # whoever is interrupted goes on there
        some, began_some = new[start : start + _KEPT_AT_ONCE], time.perf_counter()
        rows = predict(extractor, images[np.array(some)], preprocess=preprocess)
        found = [names[place] for place in some]
        add_rows(key, found, rows, time.perf_counter() - began_some)
        known |= zip(found, rows, strict=True)
    if new and not seconds:
        seconds = (time.perf_counter() - began) / len(new)
    return np.stack([known[name] for name in names]), seconds


def known_features(session: Session) -> NDArray[np.float32] | None:
    """Give the features (n, d) of the training images, unless fine-tuning has changed them."""
    if session.head is None:
        return None
    pairs = zip(session.head.weights, session.model.get_weights(), strict=True)
    *backbone, _kernel, _bias = (np.array_equal(one, other) for one, other in pairs)
    return session.head.features if all(backbone) else None


def _key(extractor: keras.Model, preprocess: Preprocess) -> str:
    """Condense everything beside an image that its features depend on."""
    digest = hashlib.sha256(f"features {_FEATURES_VERSION} {extractor.name} {extractor.input_shape}".encode())
    for array in extractor.get_weights():
        digest.update(np.ascontiguousarray(array).data)
    digest.update(preprocess.to_files()["preprocess.json"])
    digest.update(preprocess.scale.tobytes() + preprocess.offset.tobytes())
    return digest.hexdigest()


def fit_logistic(
    features: Floats,
    labels: NDArray[np.int64],
    classes: int,
    class_weights: NDArray[np.float64],
    seed: int,
    groups: NDArray[np.int64] | None = None,
    views: Sequence[Floats] = (),
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Fit a softmax regression on features ``(n, d)``, and on those of other ``views`` of the same images.

    Gives kernel ``(d, k)``, bias ``(k,)`` and the strength, scikit-learn's C, that had the lowest loss in
    cross-validation; near-duplicates, which share a number in ``groups``, stay on one side. All features are
    divided by one number: where each was by its own, cross-validation was worse.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    scale = max(float(np.sqrt(features.var(axis=0, dtype=np.float64).mean())), 1e-12)
    x = ((features - mean) / scale).astype(np.float32)  # (n, d), in which a fit takes half as long
    basis = None
    if x.shape[0] < x.shape[1]:  # the same answer, in the coordinates of the images
        left, sizes, basis = np.linalg.svd(x, full_matrices=False)
        x = left * sizes
    weights = class_weights[labels]
    of_image = np.arange(len(labels)) if groups is None else groups
    strength = _choose_strength(x, labels, weights, of_image, seed)
    if views:  # each image counts once, in equal parts as each of its views
        basis, count = None, 1 + len(views)
        x = ((np.concatenate([features, *views]) - mean) / scale).astype(np.float32)
        labels, weights = np.tile(labels, count), np.tile(weights / count, count)
    model = _logistic(x, labels, weights, [strength])[0]
    coefficients, intercepts = _in_all_classes(model, classes)
    kernel = coefficients.T if basis is None else basis.T @ coefficients.T  # (d, k)
    kernel = kernel.astype(np.float64) / scale
    return kernel.astype(np.float32), (intercepts - mean @ kernel).astype(np.float32), strength


def _choose_strength(
    x: Floats, y: NDArray[np.int64], weights: Floats, groups: NDArray[np.int64], seed: int
) -> float:
    """Choose the strength with the lowest loss in cross-validation; the middle one of too few images."""
    from sklearn.model_selection import StratifiedGroupKFold

    of_class = [len(np.unique(groups[y == label])) for label in np.unique(y)]
    folds = min(_FOLDS, *of_class)
    if folds < 2:
        return _STRENGTHS[len(_STRENGTHS) // 2]
    losses = np.zeros(len(_STRENGTHS))
    cutter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for kept, left in islice(cutter.split(x, y, groups), 1 if len(x) > _MANY else None):
        if len(np.unique(y[kept])) < len(of_class):
            continue
        fitted = _logistic(x[kept], y[kept], weights[kept], _STRENGTHS, tolerance=1e-3)
        for number, model in enumerate(fitted):
            chances = model.predict_proba(x[left])
            right = chances[np.arange(len(left)), np.searchsorted(model.classes_, y[left])]
            losses[number] -= (weights[left] * np.log(np.maximum(right, _SMALLEST))).sum()
    return _STRENGTHS[int(np.argmin(losses))]


def _logistic(
    x: Floats, y: NDArray[np.int64], weights: Floats, strengths: Sequence[float], tolerance: float = 1e-4
) -> list[Any]:
    """Fit one logistic regression for each strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a start
        for strength in strengths:
            model = LogisticRegression(C=strength, max_iter=_ITERATIONS, tol=tolerance)
            models.append(model.fit(x, y, sample_weight=weights))
    return models


def _in_all_classes(model: Any, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give coefficients (k, d) and intercepts (k,) for all classes; one without images is never answered."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row: the logit of the second class
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    full = np.zeros((classes, coefficients.shape[1]))
    offsets = np.full(classes, intercepts.min() - 20.0)
    full[model.classes_], offsets[model.classes_] = coefficients, intercepts
    return full, offsets


def _row(prefix: str, scores: Floats, part: Split, training: TrainingConfig) -> dict[str, float]:
    """Compute loss and accuracy as the network's own training reports them."""
    scores = scores - scores.max(axis=1, keepdims=True)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)  # (n, k)
    classes = scores.shape[1]
    targets = one_hot(part.labels, classes)
    targets = targets * (1 - training.label_smoothing) + training.label_smoothing / classes
    loss = -(targets * np.log(np.clip(chances, _SMALLEST, 1))).sum(axis=1).mean()
    accuracy = (scores.argmax(axis=1) == part.labels).mean()
    # In float32 as Keras's metrics are, so that equal ones are equal.
    return {f"{prefix}loss": float(np.float32(loss)), f"{prefix}accuracy": float(np.float32(accuracy))}


def keep_better(
    session: Session, history: Mapping[str, list[float]], record: dict[str, Any]
) -> tuple[dict[str, list[float]], list[str]]:
    """Keep the head alone, the fine-tuned network, or the average of their weights: the best by validation.

    Gives the history with the head as its first row, and the average as its last where that is kept; and what
    to say.
    """
    head, training, validation = session.head, session.config.training, session.prepared.validation
    if head is None:
        raise TypeError("a session without a fitted head")
    names = [name for name in head.row if name in history or not history]
    whole = {name: [head.row[name], *history.get(name, [])] for name in names}
    epochs = len(whole["loss"]) - 1
    if not epochs:
        return whole, []
    kept = kept_epoch(training, whole)
    stage: dict[str, Any] = {"name": "fine-tuning", "epochs": epochs, "kept": kept != 1}
    record["stages"] = [*record["stages"], stage]
    if validation is None:
        return whole, []
    before, *later = whole["val_accuracy"]
    after = later[-1] if kept is None else max(later) if kept == 1 else whole["val_accuracy"][kept - 1]
    stage["val_accuracy"] = after
    text = f"Fine-tuning: {_share(after, len(validation))} of the validation images"
    text += f", {_share(before, len(validation))} before"
    if kept is None:
        return whole, [f"{text}: kept"]
    tuned = session.model.get_weights()
    session.model.set_weights([(one + other) / 2 for one, other in zip(head.weights, tuned, strict=True)])
    row = _row_of(session)
    text += f", {_share(row['val_accuracy'], len(validation))} with the average of the weights"
    monitored, sign = f"val_{training.monitor}", 1 if training.monitor == "accuracy" else -1
    averaged = sign * row[monitored] >= sign * whole[monitored][kept - 1]
    record["stages"] += [{"name": "average", "kept": averaged, "val_accuracy": row["val_accuracy"]}]
    if averaged:
        stage["kept"] = False
        return {name: [*values, row[name]] for name, values in whole.items()}, [
            f"{text}: the average is kept"
        ]
    session.model.set_weights(head.weights if kept == 1 else tuned)
    return whole, [f"{text}: {'the head alone' if kept == 1 else 'the fine-tuned network'} is kept"]


def is_average(record: Mapping[str, Any]) -> bool:
    """Say whether a run's network is the average of the head alone and the fine-tuned network."""
    return any(stage["name"] == "average" and stage["kept"] for stage in record.get("stages", []))


def _row_of(session: Session) -> dict[str, float]:
    """Compute a row of the history for the network as it is now, for some of many training images."""
    from convscope.training.api import predict

    prepared = session.prepared
    row: dict[str, float] = {}
    some = np.linspace(0, len(prepared.train) - 1, min(len(prepared.train), MOST_MEASURED)).astype(np.int64)
    parts = {"": prepared.train.take(some)} | ({"val_": prepared.validation} if prepared.validation else {})
    for prefix, part in parts.items():
        chances = predict(session.model, part.images, preprocess=prepared.preprocess)
        row |= _row(prefix, np.log(np.maximum(chances, _SMALLEST)), part, session.config.training)
    return row


def _share(accuracy: float, images: int) -> str:
    """Write an accuracy with its 95 % interval."""
    low, high = wilson_interval(round(accuracy * images), images)
    return f"{accuracy:.1%} ({low:.1%} to {high:.1%})"
