"""The fast engine behind ``fit``, held against Keras's own ``fit``."""

import itertools
import math

import keras
import numpy as np
import pytest
import torch
from training_cases import (
    CLASSES,
    assert_close,
    assert_same_history,
    identical,
    images,
    network,
    optimizer_values,
    weights,
)

import convscope
from convscope.errors import LoweringError, UnknownNameError, UsageError
from convscope.training import engine_fast
from convscope.training.events import EpochEnd, Notice, TrainBegin
from convscope.training.step import Trainer

X, Y = images()
LABELS = Y.argmax(axis=1)
SETTINGS = {"batch_size": 16, "epochs": 2, "verbose": 0, "seed": 7, "deterministic": True}


def fit_fast(model, x=X, y=Y, **arguments):
    return convscope.fit(model, x, y, engine="fast", precision="float32", **(SETTINGS | arguments))


def fit_both(make, x=X, y=Y, **arguments):
    """Train the same network with both engines; float32 and the same order."""
    fast, slow = make(), make()
    ours = fit_fast(fast, x, y, **arguments)
    theirs = convscope.fit(slow, x, y, engine="keras", **(SETTINGS | arguments))
    return fast, slow, ours, theirs


def assert_both_agree(make, x=X, y=Y, tolerance=1e-5, **arguments):
    fast, slow, ours, theirs = fit_both(make, x, y, **arguments)
    assert_same_history(ours, theirs, tolerance)
    assert_close(weights(fast), weights(slow), tolerance)
    assert_close(optimizer_values(fast), optimizer_values(slow), 10 * tolerance)


def test_equals_keras_fit_itself_without_shuffling():
    fast, slow = network(optimizer="adam"), network(optimizer="adam")
    ours = fit_fast(fast, shuffle=False, validation_split=0.2)
    theirs = slow.fit(X, Y, batch_size=16, epochs=2, verbose=0, shuffle=False, validation_split=0.2)
    assert_same_history(ours, theirs)
    assert_close(weights(fast), weights(slow))
    assert ours.epoch == theirs.epoch
    assert fast.history is ours


LOSSES = {
    "categorical": ({}, Y),
    "categorical-smoothed": ({"loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.1)}, Y),
    "categorical-logits": (
        {"last": None, "loss": keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)},
        Y,
    ),
    "sparse": ({"loss": "sparse_categorical_crossentropy"}, LABELS),
    "sparse-column": ({"loss": "sparse_categorical_crossentropy"}, LABELS[:, None].astype(np.float32)),
    "sparse-logits": (
        {"last": None, "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        LABELS,
    ),
    "crossentropy-by-shape": ({"loss": "crossentropy"}, LABELS),
    "binary": (
        {"last": "sigmoid", "units": 1, "loss": "binary_crossentropy"},
        (LABELS > 2).astype(np.float32),
    ),
    "binary-column": (
        {"last": "sigmoid", "units": 1, "loss": keras.losses.BinaryCrossentropy(label_smoothing=0.1)},
        (LABELS > 2).astype(np.float32)[:, None],
    ),
    "binary-logits": (
        {"last": None, "units": 1, "loss": keras.losses.BinaryCrossentropy(from_logits=True), "metrics": ()},
        (LABELS > 2).astype(np.float32)[:, None],
    ),
    "binary-many": ({"last": "sigmoid", "loss": "binary_crossentropy"}, Y),
    "summed": ({"loss": keras.losses.CategoricalCrossentropy(reduction="sum"), "optimizer": "adam"}, Y),
    "weighted": ({"loss_weights": [0.3]}, Y),
    "mse-through-keras": ({"loss": "mse"}, Y),
    "softmax-and-mae": ({"loss": keras.losses.MeanAbsoluteError()}, Y),
    "function": ({"loss": lambda y, p: keras.ops.mean(keras.ops.abs(y - p) ** 3, axis=-1)}, Y),
    "sigmoid-and-categorical": ({"last": "sigmoid"}, Y),
    "focal": ({"loss": "categorical_focal_crossentropy"}, Y),
}


@pytest.mark.parametrize(("arguments", "y"), LOSSES.values(), ids=LOSSES.keys())
def test_losses_equal_keras(arguments, y):
    assert_both_agree(lambda: network(**arguments), y=y, validation_split=0.2, tolerance=2e-5)


METRICS = {
    "several": (
        {"metrics": ["accuracy", keras.metrics.TopKCategoricalAccuracy(2), "mse", keras.metrics.AUC(20)]},
        Y,
    ),
    "none": ({"metrics": []}, Y),
    "weighted": ({"metrics": ["accuracy"], "weighted_metrics": ["accuracy", "mae"]}, Y),
    "weighted-accuracy": ({"weighted_metrics": [keras.metrics.CategoricalAccuracy(name="share")]}, Y),
    "sparse-top": (
        {
            "loss": "sparse_categorical_crossentropy",
            "metrics": [keras.metrics.SparseTopKCategoricalAccuracy(2)],
        },
        LABELS,
    ),
    "threshold": (
        {
            "last": "sigmoid",
            "units": 1,
            "loss": "binary_crossentropy",
            "metrics": [keras.metrics.BinaryAccuracy(threshold=0.4), keras.metrics.Precision()],
        },
        (LABELS > 2).astype(np.float32)[:, None],
    ),
    "low-threshold-alone": (
        {
            "last": "sigmoid",
            "units": 1,
            "loss": "binary_crossentropy",
            "metrics": [keras.metrics.BinaryAccuracy(threshold=0.4)],
        },
        (LABELS > 2).astype(np.float32)[:, None],
    ),
}


@pytest.mark.parametrize(("arguments", "y"), METRICS.values(), ids=METRICS.keys())
def test_metrics_equal_keras(arguments, y):
    weight = np.linspace(0.5, 2, len(X)).astype(np.float32)
    fast, slow = network(**arguments), network(**_renewed(arguments))
    options = SETTINGS | {"sample_weight": weight, "validation_data": (X[:20], y[:20], weight[:20])}
    ours = convscope.fit(fast, X, y, engine="fast", precision="float32", **options)
    theirs = convscope.fit(slow, X, y, engine="keras", **options)
    assert_same_history(ours, theirs, 2e-5)


def test_a_threshold_stays_where_it_is_when_the_outputs_are_logits():
    def make():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, bias_initializer=quarter)])
        model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"])
        return model

    quarter = keras.initializers.Constant(0.25)
    x, y = np.zeros((16, 4), np.float32), np.ones((16, 1), np.float32)
    ours = fit_fast(make(), x, y, epochs=1, validation_data=(x, y))
    assert ours.history["accuracy"] == [0.0]
    assert_same_history(ours, make().fit(x, y, batch_size=16, verbose=0, validation_data=(x, y)))


def test_saturated_sigmoids_are_equally_right():
    def make():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("sigmoid")])
        model.compile("sgd", "binary_crossentropy", metrics=["categorical_accuracy"])
        return model

    x, y = np.array([[20, 30]], np.float32), np.array([[1, 0]], np.float32)  # both outputs are 1 in float32
    assert fit_fast(make(), x, y, epochs=1).history["categorical_accuracy"] == [1.0]


STRUCTURES = {
    "array": lambda leaf: leaf,
    "list": lambda leaf: [leaf],
    "tuple": lambda leaf: (leaf,),
    "dict": lambda leaf: {"kinds": leaf},
    "nested": lambda leaf: {"kinds": [leaf]},
}


# Each way to pack an output with each way to pack a target, and each once with a loss that Keras computes.
PACKED = [(*pair, "categorical_crossentropy") for pair in itertools.product(STRUCTURES, repeat=2)]
PACKED += [(name, name, "mse") for name in STRUCTURES]


@pytest.mark.parametrize(("outputs", "targets", "loss"), PACKED)
def test_one_output_and_its_target_may_be_packed_as_in_keras(outputs, targets, loss):
    def make():
        inputs = keras.Input((3,))
        dense = keras.layers.Dense(CLASSES, activation="softmax", kernel_initializer=ramp)
        model = keras.Model(inputs, STRUCTURES[outputs](dense(inputs)))
        model.compile("sgd", loss, metrics=["accuracy"], weighted_metrics=["accuracy"])
        return model

    def ramp(shape, dtype=None):
        return np.linspace(-1, 1, math.prod(shape)).reshape(shape).astype(dtype)

    x, y, pack = X[:, 0, :3, 0], Y, STRUCTURES[targets]
    weight = np.linspace(0, 2, len(x)).astype(np.float32)
    arguments = SETTINGS | {"shuffle": False, "sample_weight": pack(weight)}
    arguments["validation_data"] = (x[:20], pack(y[:20]), pack(weight[:20]))
    for name in ("seed", "deterministic"):
        arguments.pop(name)
    slow, fast = make(), make()
    try:
        theirs = slow.fit(x, pack(y), **arguments)
    except (KeyError, TypeError, ValueError):
        pytest.skip("Keras does not take this")
    assert_same_history(fit_fast(fast, x, pack(y), **arguments), theirs)
    assert_close(weights(fast), weights(slow))


def saturated():
    model = network()
    model.compile(keras.optimizers.SGD(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    return model


def test_a_saturated_softmax_goes_on_learning_and_reports_what_keras_reports():
    x = 255 * 8 * X
    model = saturated()
    expected = saturated().evaluate(x, Y, verbose=0, return_dict=True)
    history = fit_fast(model, x, batch_size=len(x), validation_data=(x, Y)).history
    assert history["loss"][0] == pytest.approx(expected["loss"], rel=1e-5)
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(x, Y, verbose=0)[0], rel=1e-5)
    assert not identical(weights(model), weights(saturated()))


def test_a_strict_training_stops_learning_where_keras_stops():
    x = 255 * 8 * X
    strict, slow = saturated(), saturated()
    ours = fit_fast(strict, x, strict=True, shuffle=False)
    theirs = slow.fit(x, Y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    assert_same_history(ours, theirs)
    assert_close(weights(strict), weights(slow))


@pytest.mark.parametrize("activation", ["softmax", None], ids=["softmax", "logits"])
@pytest.mark.parametrize("ignored", [None, 255])
def test_class_numbers_of_pixels_are_learned(activation, ignored):
    keras.utils.set_random_seed(1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None, ignore_class=ignored)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 3, padding="same", activation=activation)]
    )
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    y = np.digitize(X[..., 0], [0.6, 1.2])
    if ignored is not None:
        y[:, 0] = ignored
    history = fit_fast(model, y=y, epochs=8, validation_data=(X, y)).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    loss, accuracy = model.evaluate(X, y, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert history["val_accuracy"][-1] == pytest.approx(accuracy)


def _renewed(arguments):
    """Metric objects keep sums: each network gets its own."""
    renewed = dict(arguments)
    for name in ("metrics", "weighted_metrics"):
        renewed[name] = [
            metric if isinstance(metric, str) else type(metric).from_config(metric.get_config())
            for metric in arguments.get(name, ["accuracy"] if name == "metrics" else [])
        ]
    return renewed


WEIGHTS = {
    "class-weight": {"class_weight": {0: 2.0, 3: 0.5}},
    "sample-weight": {"sample_weight": np.linspace(0, 3, len(X))},
    "sample-weight-column": {"sample_weight": np.linspace(0, 3, len(X), dtype=np.float32)[:, None]},
}


@pytest.mark.parametrize("arguments", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("loss", ["categorical_crossentropy", "mse"])
def test_example_weights_equal_keras(arguments, loss):
    assert_both_agree(lambda: network(loss=loss, weighted_metrics=["accuracy"]), **arguments)


def test_class_weights_with_class_numbers_equal_keras():
    assert_both_agree(
        lambda: network(loss="sparse_categorical_crossentropy"), y=LABELS, class_weight={1: 3.0, 2: 0.1}
    )


layers, regularizers, constraints = keras.layers, keras.regularizers, keras.constraints
LAYER_OPTIONS = {
    "l2": {"dense": {"kernel_regularizer": regularizers.L2(0.1)}},
    "l1-bias": {"dense": {"bias_regularizer": regularizers.L1(0.1), "bias_initializer": "ones"}},
    "l1-l2-kernel": {"convolution": {"kernel_regularizer": regularizers.L1L2(0.01, 0.1)}},
    "orthogonal": {"dense": {"kernel_regularizer": regularizers.OrthogonalRegularizer(0.1)}},
    "function": {"dense": {"kernel_regularizer": lambda w: 0.1 * keras.ops.sum(w**4)}},
    "activity": {"convolution": {"activity_regularizer": regularizers.L2(0.01)}},
    "activity-and-kernel": {
        "convolution": {"activity_regularizer": regularizers.L1(0.01)},
        "dense": {"kernel_regularizer": regularizers.L2(0.1)},
    },
    "max-norm": {"dense": {"kernel_constraint": constraints.MaxNorm(0.5)}},
    "non-negative": {"convolution": {"kernel_constraint": constraints.NonNeg()}},
    "unit-norm-bias": {"dense": {"bias_constraint": constraints.UnitNorm(), "bias_initializer": "ones"}},
}


@pytest.mark.parametrize("options", LAYER_OPTIONS.values(), ids=LAYER_OPTIONS.keys())
def test_regularizers_and_constraints_equal_keras(options):
    assert_both_agree(lambda: network(**options), validation_split=0.2, tolerance=2e-5)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "sgd-nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adamw-clipped": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
    "ema": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.7),
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
    "ftrl-through-keras": lambda: keras.optimizers.Ftrl(0.1),
    "loss-scale-through-keras": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    "loss-scale-factor": lambda: keras.optimizers.SGD(0.1, loss_scale_factor=128.0),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_optimizers_equal_keras(make):
    assert_both_agree(lambda: network(optimizer=make()), tolerance=3e-5)


def test_two_fits_in_a_row_go_on_as_in_keras():
    fast, slow = (network(optimizer=keras.optimizers.Adam(0.01)) for _ in range(2))
    for epochs, first in ((1, 0), (3, 1)):
        ours = fit_fast(fast, epochs=epochs, initial_epoch=first)
        theirs = convscope.fit(
            slow, X, Y, engine="keras", **(SETTINGS | {"epochs": epochs, "initial_epoch": first})
        )
    assert_same_history(ours, theirs)
    assert ours.epoch == theirs.epoch == [1, 2]
    assert_close(weights(fast), weights(slow))
    assert int(fast.optimizer.iterations.value) == 15


def test_keras_can_go_on_where_the_fast_engine_stopped():
    fast, slow = (network(optimizer=keras.optimizers.Adam(0.01)) for _ in range(2))
    fit_fast(fast, epochs=1, shuffle=False)
    fast.fit(X, Y, batch_size=16, epochs=1, verbose=0, shuffle=False)
    slow.fit(X, Y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    assert_close(weights(fast), weights(slow))


def test_frozen_layers_keep_their_weights():
    def make():
        model = network()
        model.get_layer("conv").trainable = False
        model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
        return model

    before = weights(make())
    fast, slow, ours, theirs = fit_both(make)
    assert_same_history(ours, theirs)
    assert identical(weights(fast)[:2], before[:2])
    assert_close(weights(fast), weights(slow))


def test_a_network_without_trainable_weights_is_only_measured():
    model = network()
    model.trainable = False
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    before = weights(model)
    history = fit_fast(model)
    assert identical(weights(model), before)
    assert history.history["loss"][0] == pytest.approx(model.evaluate(X, Y, verbose=0)[0], rel=1e-5)


def test_batch_normalization_statistics_are_in_the_model():
    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(3, 3, use_bias=False),
                keras.layers.BatchNormalization(),
                keras.layers.Activation("relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(CLASSES, activation="softmax"),
            ]
        )
        model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
        return model

    assert_both_agree(make, validation_split=0.3, tolerance=3e-5)


def test_functional_model_with_two_inputs_and_two_outputs():
    def make():
        keras.utils.set_random_seed(1)
        left, right = keras.Input((8, 8, 1), name="left"), keras.Input((3,), name="right")
        hidden = keras.layers.Concatenate()([keras.layers.Flatten()(left), right])
        kinds = keras.layers.Dense(CLASSES, activation="softmax", name="kind")(hidden)
        size = keras.layers.Dense(1, name="size")(hidden)
        model = keras.Model({"left": left, "right": right}, {"kind": kinds, "size": size})
        model.compile(
            "sgd",
            {"kind": "categorical_crossentropy", "size": "mse"},
            loss_weights={"kind": 1.0, "size": 0.1},
            metrics={"kind": "accuracy", "size": "mae"},
        )
        return model

    x = {"left": X, "right": X[:, 0, :3, 0]}
    y = {"kind": Y, "size": X.mean(axis=(1, 2))}
    assert_both_agree(make, x=x, y=y, validation_split=0.2, tolerance=3e-5)


def test_an_unbuilt_network_is_built_from_the_first_batch():
    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(CLASSES, activation="softmax")])
        model.compile("sgd", "categorical_crossentropy")
        return model

    assert_both_agree(make)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1, 1)], ids=["no-channel-axis", "one-axis-more"])
def test_a_last_axis_of_one_is_added_or_dropped(shape):
    assert_both_agree(network, x=X.reshape(len(X), *shape), validation_split=0.2)


INPUTS = {
    "float64": lambda: (X.astype(np.float64), Y.astype(np.float64)),
    "uint8": lambda: ((X * 4).astype(np.uint8), Y.astype(np.int64)),
    "torch": lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
    "fortran-order": lambda: (np.asfortranarray(X), np.asfortranarray(Y)),
    "reversed-view": lambda: (X[::-1], Y[::-1]),
    "strided-view": lambda: (np.repeat(X, 2, axis=1)[:, ::2], np.repeat(Y, 2, axis=0)[::2]),
    "bool-targets": lambda: (X, Y.astype(bool)),
    "uint16": lambda: ((X * 4).astype(np.uint16), Y.astype(np.uint16)),
    "uint64-targets": lambda: (X, Y.astype(np.uint64)),
    "big-endian": lambda: (X.astype(">f4"), Y.astype(">f8")),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_kinds_of_arrays_equal_keras(make):
    x, y = make()
    options = {} if isinstance(x, torch.Tensor) else {"validation_split": 0.2}
    assert_both_agree(network, x=x, y=y, **options)


def test_memory_mapped_arrays_are_trained_from(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    on_disk, in_memory = network(), network()
    fit_fast(on_disk, mapped)
    fit_fast(in_memory)
    assert identical(weights(on_disk), weights(in_memory))


STEPS = {
    "ends-a-pass-early": ({"epochs": 4, "steps_per_epoch": 3}, 3 + 2 + 3 + 2),
    "begins-later": ({"epochs": 4, "steps_per_epoch": 3, "initial_epoch": 1}, 3 + 2 + 3),
    "more-than-there-are": ({"epochs": 2, "steps_per_epoch": 9}, 5 + 5),
}


@pytest.mark.filterwarnings("ignore:.*ran out of data|.*end before steps_per_epoch|__array__ implementation")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("arguments", "updates"), STEPS.values(), ids=STEPS.keys())
def test_an_epoch_of_a_given_number_of_steps_stops_at_the_end_of_a_pass(arguments, updates, shuffle):
    fast, slow, ours, theirs = fit_both(network, shuffle=shuffle, **arguments)
    assert_same_history(ours, theirs)
    assert_close(weights(fast), weights(slow))
    assert int(fast.optimizer.iterations.value) == int(slow.optimizer.iterations.value) == updates
    if not shuffle:
        itself = network()
        assert_same_history(ours, itself.fit(X, Y, batch_size=16, verbose=0, shuffle=False, **arguments))
        assert_close(weights(fast), weights(itself))


def test_an_epoch_that_runs_out_of_data_says_so():
    with pytest.warns(UserWarning, match="end before steps_per_epoch"):
        fit_fast(network(), epochs=1, steps_per_epoch=9)


def test_keras_itself_goes_on_only_between_two_passes():
    states = []

    def listen(event):
        if isinstance(event, EpochEnd):
            states.append(event.snapshot())

    fit_fast(network(), epochs=1, steps_per_epoch=3, listeners=[listen])
    arguments = SETTINGS | {"steps_per_epoch": 3, "resume_from": states[-1]}
    with pytest.raises(UsageError, match=r"between two passes over the data .* got step 3 of a pass"):
        convscope.fit(network(), X, Y, engine="keras", **arguments)


def test_steps_without_a_batch_size_share_the_rows_out():
    assert_both_agree(network, batch_size=None, steps_per_epoch=7)


@pytest.mark.parametrize("shuffle", [False, "batch"])
def test_shuffle_modes_equal_keras(shuffle):
    assert_both_agree(network, shuffle=shuffle)


VALIDATION = {
    "data": {"validation_data": (X[:30], Y[:30])},
    "data-list": {"validation_data": [X[:30], Y[:30]]},
    "weights": {"validation_data": (X[:30], Y[:30], np.linspace(0, 1, 30, dtype=np.float32))},
    "batch-size": {"validation_data": (X[:30], Y[:30]), "validation_batch_size": 7},
    "steps": {"validation_data": (X[:30], Y[:30]), "validation_batch_size": 7, "validation_steps": 2},
    "every-second": {"validation_split": 0.3, "validation_freq": 2, "epochs": 4},
    "chosen-epochs": {"validation_split": 0.3, "validation_freq": [1, 3], "epochs": 3},
}


@pytest.mark.parametrize("arguments", VALIDATION.values(), ids=VALIDATION.keys())
def test_validation_equals_keras(arguments):
    assert_both_agree(network, **arguments)


def test_validation_split_takes_the_last_rows():
    by_split, by_hand = network(), network()
    ours = fit_fast(by_split, validation_split=0.3)
    theirs = fit_fast(by_hand, X[:49], Y[:49], validation_data=(X[49:], Y[49:]))
    assert ours.history == theirs.history


class Batches(keras.utils.PyDataset):
    def __init__(self, size=16, **arguments):
        super().__init__(**arguments)
        self.size = size

    def __len__(self):
        return math.ceil(len(X) / self.size)

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        return X[rows], Y[rows]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"class_weight": {0: 2.0}}, {"steps_per_epoch": 1}], ids=str)
def test_datasets_equal_keras(shuffle, arguments):
    fast, slow = network(), network()
    ours = fit_fast(
        fast, Batches(), None, batch_size=None, shuffle=shuffle, validation_data=Batches(9), **arguments
    )
    options = SETTINGS | {"batch_size": None, "shuffle": shuffle, "validation_data": Batches(9)} | arguments
    theirs = convscope.fit(slow, Batches(), engine="keras", **options)
    assert_same_history(ours, theirs)
    assert_close(weights(fast), weights(slow))


class Told(Batches):
    """Reads its data when an epoch begins, and keeps what it was asked for."""

    def __init__(self, calls):
        super().__init__()
        self.calls, self.data = calls, None

    def on_epoch_begin(self):
        self.calls.append("begin")
        self.data = X, Y

    def on_epoch_end(self):
        self.calls.append("end")

    def __getitem__(self, index):
        self.calls.append(index)
        rows = slice(index * self.size, (index + 1) * self.size)
        return tuple(part[rows] for part in self.data)


@pytest.mark.filterwarnings("ignore:.*ran out of data|__array__ implementation")
@pytest.mark.parametrize("arguments", [{}, {"steps_per_epoch": 2, "epochs": 3}], ids=str)
@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_a_dataset_is_told_of_epochs_as_in_keras(engine, arguments):
    calls = {"convscope": [], "keras": []}
    options = {"epochs": 2, "verbose": 0, "shuffle": False} | arguments
    ours, theirs = network(), network()
    for _ in range(2):  # the second time nothing is left to be built
        for who, train in (("convscope", convscope.fit), ("keras", keras.Model.fit)):
            how = {"engine": engine} if who == "convscope" else {}
            model = ours if who == "convscope" else theirs
            train(model, Told(calls[who]), **options, **how, validation_data=Told(calls[who]))
    assert calls["convscope"] == calls["keras"]


@pytest.mark.filterwarnings("ignore:.*ran out of data|__array__ implementation")
@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_epochs_that_share_a_pass_over_a_dataset_share_its_order(engine):
    calls = []
    options = SETTINGS | {"batch_size": None, "steps_per_epoch": 2, "epochs": 3}
    convscope.fit(network(), Told(calls), engine=engine, **options)
    seen = [call for call in calls[calls.index("end") :] if isinstance(call, int)]
    assert sorted(seen) == list(range(5))
    assert seen != list(range(5))


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_a_dataset_with_workers_gives_the_same_weights(engine, workers):
    alone, helped = network(), network()
    options = SETTINGS | {"batch_size": None, "engine": engine, "deterministic": True}
    convscope.fit(alone, Batches(workers=0), **options)
    convscope.fit(helped, Batches(workers=workers), **options)
    assert identical(weights(alone), weights(helped))


def endless():
    index = 0
    while True:
        rows = np.arange(index, index + 16) % len(X)
        yield X[rows], Y[rows]
        index += 16


def test_generators_equal_keras():
    fast, slow = network(), network()
    options = {"batch_size": None, "steps_per_epoch": 3, "epochs": 3}
    ours = fit_fast(fast, endless(), None, **options)
    theirs = slow.fit(endless(), verbose=0, steps_per_epoch=3, epochs=3, shuffle=False)
    assert_same_history(ours, theirs)
    assert_close(weights(fast), weights(slow))


def test_torch_loaders_equal_keras():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=16
    )
    fast, slow = network(), network()
    ours = fit_fast(fast, loader, None, batch_size=None, shuffle=False)
    theirs = slow.fit(loader, epochs=2, verbose=0, shuffle=False)
    assert_same_history(ours, theirs)


def raw_images():
    return np.round(X / X.max() * 255).astype(np.uint8)


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize("scaling", ["minmax", "unit", "standard"])
def test_raw_images_are_prepared_batch_by_batch(engine, scaling):
    pixels = raw_images()
    preprocess = convscope.Preprocess.fit(pixels, scaling)
    raw, prepared = network(), network()
    options = SETTINGS | {"engine": engine, "precision": "float32", "validation_split": 0.2}
    ours = convscope.fit(raw, pixels, Y, preprocess=preprocess, **options)
    theirs = convscope.fit(prepared, preprocess.apply(pixels), Y, **options)
    assert ours.history == theirs.history
    assert identical(weights(raw), weights(prepared))


def test_raw_images_of_another_size_are_brought_to_the_right_one():
    pixels = raw_images()
    preprocess = convscope.Preprocess.fit(pixels, "unit")
    large = pixels.repeat(2, axis=1).repeat(2, axis=2)
    raw, prepared = network(), network()
    fit_fast(raw, large, preprocess=preprocess)
    fit_fast(prepared, preprocess.apply(large))
    assert identical(weights(raw), weights(prepared))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_raw_images_in_a_dataset_are_prepared(engine):
    pixels = raw_images()
    preprocess = convscope.Preprocess.fit(pixels, "unit")

    class RawBatches(Batches):
        def __getitem__(self, index):
            rows = slice(index * 16, (index + 1) * 16)
            return pixels[rows], Y[rows]

    raw, prepared = network(), network()
    options = SETTINGS | {"engine": engine, "precision": "float32", "batch_size": None, "shuffle": False}
    convscope.fit(raw, RawBatches(), preprocess=preprocess, **options)
    convscope.fit(prepared, preprocess.apply(pixels), Y, **(options | {"batch_size": 16}))
    assert identical(weights(raw), weights(prepared))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_same_seed_same_weights_other_seed_other_weights(engine):
    first, second, third = (network(dropout=0.3) for _ in range(3))
    for model, seed in ((first, 7), (second, 7), (third, 8)):
        torch.rand(1)  # the global generators must not matter
        convscope.fit(model, X, Y, engine=engine, **(SETTINGS | {"seed": seed}))
    assert identical(weights(first), weights(second))
    assert not identical(weights(first), weights(third))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_training_leaves_the_global_generators_alone(engine):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    convscope.fit(network(dropout=0.3), X, Y, engine=engine, **SETTINGS)
    torch.manual_seed(5)
    model = network(dropout=0.3)
    torch.manual_seed(5)
    convscope.fit(model, X, Y, engine=engine, **SETTINGS)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_keras_decides():
    results = []
    for _ in range(2):
        model = network(dropout=0.3)
        keras.utils.set_random_seed(11)
        fit_fast(model, seed=None)
        results.append(weights(model))
    assert identical(*results)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(CLASSES, activation="softmax")

    def call(self, x):
        x = self.dense(self.flat(x))
        return x if keras.ops.max(x) > -1 else -x  # which a record of its calls does not show


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


def _own_step():
    model = OwnStep([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", "mse")
    return model


def _subclassed():
    model = Subclassed()
    model.compile("sgd", "mse")
    return model


def _of_added_losses():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(CLASSES, activity_regularizer="l2"))
    model.compile("sgd")
    return model


OBSTACLES = {
    "subclassed": (_subclassed, "the subclassed Subclassed"),
    "train-step": (_own_step, "OwnStep has a train_step of its own"),
    "eager": (lambda: network(run_eagerly=True), "it was compiled with run_eagerly=True"),
    "float64": (lambda: _with_policy("float64"), "float32 variables"),
    "no-loss": (_of_added_losses, "it was compiled without a loss, so that only add_loss"),
}


def _with_policy(dtype):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(5, dtype=dtype)]
    )
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(("make", "reason"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_what_cannot_be_lowered_goes_through_keras_with_the_reason(make, reason):
    heard = []
    history = convscope.fit(make(), X, Y, listeners=[heard.append], **SETTINGS)
    notices = [event.text for event in heard if isinstance(event, Notice)]
    assert len(notices) == 1
    assert notices[0].startswith("Training with Keras's own fit. Expected")
    assert reason in notices[0]
    assert "\n" not in notices[0]
    assert len(history.history["loss"]) == 2
    assert next(event for event in heard if isinstance(event, TrainBegin)).engine == "keras"


@pytest.mark.parametrize(("make", "reason"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_the_fast_engine_on_request_refuses_with_the_reason(make, reason):
    with pytest.raises(LoweringError, match="^Expected .*" + reason):
        convscope.fit(make(), X, Y, engine="fast", **SETTINGS)


MISTAKES = {
    "epochs": ({"epochs": -1}, UsageError, "Expected epochs of at least 0, a whole number, got -1."),
    "batch-size": (
        {"batch_size": 0},
        UsageError,
        "Expected batch_size of at least 1, a whole number, got 0.",
    ),
    "seed": ({"seed": -1}, UsageError, "Expected seed of at least 0, a whole number, got -1."),
    "engine": ({"engine": "fsat"}, UnknownNameError, r"Expected one of the engines .* Did you mean 'fast'\?"),
    "precision": ({"precision": "float16"}, UnknownNameError, "Expected one of the precisions"),
    "verbose": ({"verbose": 5}, UsageError, 'Expected verbose "auto", 0, 1 or 2, got 5.'),
    "rows": ({"y": Y[:5]}, UsageError, r"Expected the same number of rows .* got \[5, 70\]"),
    "split": (
        {"validation_split": 0.999},
        UsageError,
        "Expected a validation_split that leaves rows on both sides",
    ),
    "split-stream": (
        {"x": Batches(), "y": None, "validation_split": 0.1},
        UsageError,
        "got Batches. Give validation_data",
    ),
    "weights-twice": (
        {"class_weight": {0: 1.0}, "sample_weight": np.ones(70)},
        UsageError,
        "Expected class_weight or sample_weight, got both.",
    ),
    "divergence": (
        {"on_divergence": "stop"},
        UnknownNameError,
        "one of the on_divergence settings continue, raise",
    ),
    "device": ({"device": "meta"}, UsageError, r"^Expected a device of this machine \(cpu.*, got 'meta'"),
    "strings": (
        {"y": np.array(["a"] * 70)},
        UsageError,
        "Expected numbers as targets, got an array of type <U1.",
    ),
    "labels-not-one-hot": (
        {"y": LABELS},
        UsageError,
        r"^Expected one-hot targets of shape \(n, 5\) for categorical_crossentropy, got \(70,\)",
    ),
    "too-few-classes": ({"y": Y[:, :4]}, UsageError, r"one-hot targets of shape \(n, 5\)"),
    "image-shape": ({"x": X[:, :7]}, UsageError, r"^Expected images of shape \(8, 8, 1\), got \(7, 8, 1\).$"),
    "channels-first": (
        {"x": X.transpose(0, 3, 1, 2)},
        UsageError,
        r"^Expected images of shape \(8, 8, 1\), got \(1, 8, 8\). Look at the order of the axes",
    ),
    "validation-images": (
        {"validation_data": (X[:, :7], Y)},
        UsageError,
        r"^Expected images of shape \(8, 8, 1\), got \(7, 8, 1\).$",
    ),
    "no-targets": ({"y": None}, UsageError, "Expected targets y for the loss, got none."),
    "prepared-floats": (
        {"preprocess": object()},
        UsageError,
        "Expected uint8 images beside preprocess, got float32.",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_told_in_one_sentence(arguments, kind, message):
    with pytest.raises(kind, match=message):
        convscope.fit(network(), **({"x": X, "y": Y} | SETTINGS | arguments))


SPARSE_MISTAKES = {
    "one-hot": (
        Y,
        r"^Expected class numbers of shape \(n,\) for sparse_categorical_crossentropy, got \(70, 5\)",
    ),
    "too-high": (LABELS + 1, r"^Expected class numbers from 0 to 4, one for each output, got 5.$"),
    "negative": (LABELS - 1, r"^Expected class numbers from 0 to 4, one for each output, got -1.$"),
    "not-a-number": (
        np.where(LABELS == 1, np.nan, LABELS),
        r"^Expected class numbers from 0 to 4.* got nan.$",
    ),
    "packed": ([LABELS + 1], r"^Expected class numbers from 0 to 4, one for each output, got 5.$"),
}


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize(("y", "message"), SPARSE_MISTAKES.values(), ids=SPARSE_MISTAKES.keys())
def test_class_numbers_must_fit_the_outputs(engine, y, message):
    model = network(loss=keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(UsageError, match=message):
        convscope.fit(model, X, y, engine=engine, **SETTINGS)


TWO_CLASSES = (LABELS > 2).astype(np.float32)
NO_PROBABILITIES = {
    "one-two": (TWO_CLASSES + 1, "1 to 2"),
    "minus-one-one": (2 * TWO_CLASSES - 1, "-1 to 1"),
    "0-255": (255 * TWO_CLASSES.astype(np.uint8), "0 to 255"),
    "torch": (torch.from_numpy(TWO_CLASSES + 1), "1 to 2"),
    "not-a-number": (np.where(TWO_CLASSES == 1, np.nan, TWO_CLASSES), "nan to nan"),
}
BINARY = {
    "binary": "binary_crossentropy",
    "object": keras.losses.BinaryCrossentropy(),
    "by-shape": "crossentropy",
    "focal": keras.losses.BinaryFocalCrossentropy(),
    "logits": keras.losses.BinaryCrossentropy(from_logits=True),
}


# All targets with one loss, all losses with one target.
PAIRS = [("binary", targets) for targets in NO_PROBABILITIES]
PAIRS += [(loss, "one-two") for loss in BINARY if loss != "binary"]


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize(("loss", "targets"), PAIRS)
def test_binary_targets_lie_between_0_and_1(targets, loss, where):
    y, found = NO_PROBABILITIES[targets]
    model = network(last="sigmoid", units=1, loss=BINARY[loss])
    data = {"y": y} if where == "training" else {"y": TWO_CLASSES, "validation_data": (X, y)}
    with pytest.raises(
        UsageError, match=f"^Expected targets from 0 to 1 for binary_.*, got {found}. Give 0 and 1"
    ):
        fit_fast(model, **data)


def test_targets_of_several_classes_lie_between_0_and_1():
    with pytest.raises(
        UsageError, match=r"^Expected targets from 0 to 1 for categorical_crossentropy, got 0 to 255.$"
    ):
        fit_fast(network(), y=255 * Y)


def test_targets_of_several_outputs_are_each_held_against_their_loss():
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    outputs = {name: keras.layers.Dense(1, activation="sigmoid", name=name)(flat) for name in "ab"}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": "mse", "b": "binary_crossentropy"})
    with pytest.raises(UsageError, match=r"^Expected targets from 0 to 1 for binary_crossentropy"):
        fit_fast(model, y={"a": TWO_CLASSES + 1, "b": TWO_CLASSES + 1})
    fit_fast(model, y={"a": TWO_CLASSES + 1, "b": TWO_CLASSES})


@pytest.mark.parametrize("ignored", [None, 7])
def test_class_numbers_of_pixels_must_fit_the_outputs(ignored):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 1, activation="softmax")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored))
    y = np.zeros((70, 8, 8), int)
    y[3, 2, 1] = 255
    with pytest.raises(
        UsageError, match=r"^Expected class numbers from 0 to 2, one for each output, got 255.$"
    ):
        fit_fast(model, y=y)
    with pytest.raises(UsageError, match=r"^Expected class numbers of shape \(n, 8, 8\) for sparse"):
        fit_fast(model, y=y[:, :4])
    if ignored is not None:
        fit_fast(model, y=np.where(y == 255, ignored, y), epochs=1)


def test_an_ignored_class_may_lie_outside():
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    y = np.where(LABELS == 0, -1, LABELS)
    assert_both_agree(lambda: network(loss=loss, metrics=[]), y=y)


def test_more_validation_steps_than_batches_see_each_row_once():
    both = [network(), network()]
    histories = [
        fit_fast(model, validation_data=(X[:30], Y[:30]), validation_batch_size=10, validation_steps=steps)
        for model, steps in zip(both, (3, 50), strict=True)
    ]
    assert histories[0].history == histories[1].history


class OwnTrainStep(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


class OwnTestStep(keras.Model):
    def test_step(self, data):
        return super().test_step(data)


class OwnTestFunction(keras.Model):
    def make_test_function(self, force=False):
        super().make_test_function(force)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(OwnTrainStep, "train_step"), (OwnTestStep, "test_step"), (OwnTestFunction, "make_test_function")],
)
def test_a_model_that_trains_in_its_own_way_is_left_to_keras(kind, name):
    inputs = keras.Input((8, 8, 1))
    model = kind(inputs, keras.layers.Dense(CLASSES, activation="softmax")(keras.layers.Flatten()(inputs)))
    model.compile("sgd", "categorical_crossentropy")
    with pytest.raises(LoweringError, match=f"{kind.__name__} has a {name} of its own"):
        fit_fast(model)


def test_a_train_function_set_by_hand_is_left_to_keras():
    model = network()
    model.fit(X, Y, epochs=1, verbose=0)  # Keras makes its own
    fit_fast(model, epochs=1)
    model.train_function = lambda data: {"loss": 1.0}
    with pytest.raises(LoweringError, match="has a train_function of its own"):
        fit_fast(model)


FORMS = {
    "list-as-x": ({"x": X.tolist()}, r"arrays as x, got a list of float. np.asarray makes"),
    "list-as-y": ({"y": LABELS.tolist()}, r"arrays as y, got a list of int"),
    "list-as-weights": ({"sample_weight": [1.0] * len(X)}, r"arrays as sample_weight, got a list of float"),
    "y-beside-a-dataset": ({"x": Batches()}, r"no y beside a stream of batches, got Batches"),
    "four-parts": (
        {"validation_data": (X, Y, Y, Y)},
        r"validation_data of x, y and sample_weight, got 4 parts",
    ),
    "list-of-class-weights": (
        {"class_weight": [1.0, 2.0]},
        r"class_weight as a dict of class numbers, got list",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "fast"])
@pytest.mark.parametrize(("arguments", "message"), FORMS.values(), ids=FORMS.keys())
def test_forms_that_keras_does_not_take_are_refused(arguments, message, engine):
    with pytest.raises(UsageError, match=f"^Expected {message}"):
        convscope.fit(network(), **({"x": X, "y": Y, "engine": engine} | SETTINGS | arguments))


@pytest.mark.parametrize(
    "y", [np.zeros((70, 6, 6), int), np.zeros((70, 6, 6, 1), int)], ids=["maps", "channel"]
)
def test_classes_of_pixels_have_no_class_weights(y):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(UsageError, match=r"^Expected one class for each example beside class_weight"):
        fit_fast(model, y=y, class_weight={0: 2.0})


def test_an_uncompiled_model_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(
        UsageError, match=r"^Expected a compiled model, got one without a loss. Call model.compile"
    ):
        convscope.fit(model, X, Y)


def test_something_else_than_a_model_is_refused():
    with pytest.raises(UsageError, match=r"^Expected a Keras model, got str.$"):
        convscope.fit("deep", X, Y)


def test_the_history_says_which_engine_trained_and_why():
    fast = convscope.fit(network(), X, Y, **SETTINGS)
    assert (fast.engine, fast.reason) == ("fast", None)
    asked = convscope.fit(network(), X, Y, engine="keras", **SETTINGS)
    assert (asked.engine, asked.reason) == ("keras", None)
    with pytest.warns(UserWarning, match=r"^Training with Keras's own fit. Expected a model .* run_eagerly"):
        other = convscope.fit(network(run_eagerly=True), X, Y, **SETTINGS)
    assert other.engine == "keras"
    assert "run_eagerly" in other.reason
    assert "engine=" not in other.reason


@pytest.mark.parametrize("engine", ["auto", "fast"])
def test_an_error_before_the_first_update_ends_in_keras(engine, monkeypatch):
    def model():
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(5)]
        made = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        made.compile("adam", "mse")
        return made

    def fail(*_, **__):
        raise RuntimeError("mat1 and mat2 cannot be multiplied")

    settings = SETTINGS | {"shuffle": False}
    expected = convscope.fit(model(), X, Y, engine="keras", **settings)
    monkeypatch.setattr(Trainer, "_loss", fail)
    trained = model()
    if engine == "fast":
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            convscope.fit(trained, X, Y, engine=engine, **settings)
        return
    with pytest.warns(UserWarning, match="The fast engine failed: RuntimeError: mat1 and mat2"):
        found = convscope.fit(trained, X, Y, engine=engine, **settings)
    assert found.engine == "keras"
    np.testing.assert_array_equal(found.history["loss"], expected.history["loss"])


def test_no_epoch_trains_nothing():
    model = network()
    before = weights(model)
    assert convscope.fit(model, X, Y, epochs=0, verbose=0).history == {}
    assert identical(before, weights(model))


def test_the_plan_is_made_for_no_more_rows_than_there_are(monkeypatch):
    planned, optimise = [], engine_fast.optimise

    def spy(program, **situation):
        planned.append(situation["batch_size"])
        return optimise(program, **situation)

    monkeypatch.setattr(engine_fast, "optimise", spy)
    fit_fast(network(), batch_size=10**9)
    assert planned == [len(X)]


@pytest.mark.parametrize("call", [convscope.fit, convscope.predict], ids=["fit", "predict"])
def test_bfloat16_is_not_for_keras_s_engine(call):
    with pytest.raises(UsageError, match="the fast engine for precision bfloat16, got engine keras"):
        call(network(), X, engine="keras", precision="bfloat16")


class Optional(keras.layers.Layer):
    def call(self, x, other=None):
        return x if other is None else x + other

    def compute_output_spec(self, x, other=None):  # noqa: ARG002  Keras's signature
        return keras.KerasTensor(x.shape)


@pytest.mark.parametrize("left_out", [False, True])
def test_an_optional_input_may_be_left_out(left_out):
    def model():
        keras.utils.set_random_seed(1)
        one, other = keras.Input((64,)), keras.Input((64,), optional=True)
        made = keras.Model([one, other], keras.layers.Dense(5)(Optional()(one, other)))
        made.compile("sgd", "mse")
        return made

    x = X.reshape(len(X), -1)
    inputs = [x, None if left_out else x]
    expected = model().fit(inputs, Y, shuffle=False, verbose=0).history["loss"]
    found = convscope.fit(model(), inputs, Y, shuffle=False, verbose=0, precision="float32", engine="fast")
    np.testing.assert_allclose(found.history["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        convscope.predict(model(), inputs), model().predict(inputs, verbose=0), rtol=1e-4, atol=1e-6
    )
