"""Each private part of Keras that is used is still there, and still does what it is used for."""

import os
import re
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from training_cases import images, network

from convscope import _keras_internals as internals

X, Y = images(20)
ROOT = Path(__file__).parents[1]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[index * 10 : index * 10 + 10], Y[index * 10 : index * 10 + 10]


class Added(keras.layers.Layer):
    """Adds losses, from its own call and from a layer below it."""

    def __init__(self):
        super().__init__()
        self.below = keras.layers.ActivityRegularization(l2=1.0)
        self.drop = keras.layers.Dropout(0.5)

    def call(self, x):
        self.add_loss(keras.ops.sum(x))
        return self.below(x)


def trained(**settings):
    model = network(**settings)
    model.fit(X, Y, verbose=0)
    return model


def test_the_installed_keras_is_one_that_is_allowed():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [bounds] = [line for line in lines if line.startswith("keras")]
    lowest, highest = (tuple(map(int, bound.split("."))) for bound in re.findall(r"[<>]=?([\d.]+)", bounds))
    version = tuple(map(int, keras.__version__.split(".")[:3]))
    assert lowest <= version < highest


def test_trainer_methods_name_how_a_model_trains():
    assert {"fit", "compile", "evaluate", "predict", "compute_loss"} <= internals.TRAINER_METHODS
    assert "call" not in internals.TRAINER_METHODS


def test_a_graph_and_its_calls_are_found():
    model = network()
    graph = internals.graph_of_sequential(model)
    assert isinstance(graph, internals.Functional)
    assert isinstance(keras.Model(model.inputs, model.outputs), internals.Functional)
    assert all(hasattr(graph, name) for name in internals.GRAPH_METHODS if name != "forward")
    names = [node.operation.name for nodes in internals.nodes_by_depth(graph).values() for node in nodes]
    assert names[:2] == ["dense", "flat"]


def test_a_call_of_an_operation_is_found():
    [node] = internals.inbound_nodes(network().get_layer("dense"))
    assert node.input_tensors[0].shape == (None, 36)


def test_masks_are_seen_on_outputs():
    tokens = keras.Input((4,))
    assert internals.has_mask(keras.layers.Embedding(3, 2, mask_zero=True)(tokens))
    assert not internals.has_mask(keras.layers.Embedding(3, 2)(tokens))


def test_a_training_argument_is_seen():
    assert internals.takes_training(keras.layers.Dropout(0.5))
    assert not internals.takes_training(keras.layers.Flatten())


def test_layers_of_keras_are_told_from_others():
    assert internals.is_of_keras(keras.layers.Conv2D(1, 3))
    assert not internals.is_of_keras(Added())


def test_layers_and_variables_are_listed():
    layer = Added()
    assert internals.sublayers(layer) == [layer.below, layer.drop]
    assert internals.all_layers(layer) == [layer, layer.below, layer.drop]
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="norm")])
    names = [variable.name for variable in internals.own_variables(model.get_layer("norm"))]
    assert names == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert list(internals.own_variables(model)) == []


def test_what_was_set_to_be_trained_is_told():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    assert internals.is_trainable(layer)
    assert internals.is_trainable(layer.kernel)
    assert internals.value_of(layer.kernel) is layer.kernel.value
    layer.trainable = False
    assert not internals.is_trainable(layer)


def test_random_generators_without_a_seed_are_found():
    layer = Added()
    layer.own = keras.layers.Dropout(0.5, seed=3)
    seeds = internals.seed_generators(layer)
    assert [internals.is_unseeded(generator) for generator in seeds] == [True, False]


def test_losses_of_a_call_are_taken():
    layer = Added()
    layer(torch.ones(2, 3))
    assert sorted(float(loss) for loss in internals.take_losses(layer)) == [3.0, 6.0]


def test_layers_called_in_an_outer_call_take_its_training_flag_and_leave_it_their_losses():
    host, layer = keras.layers.Layer(), Added()
    host.inner = layer
    for training in (True, False):
        with internals.outer_call(host, training):
            dropped = layer.drop(layer(torch.ones(50, 3)))
            assert len(internals.take_losses(host)) == 2
        assert bool((dropped == 0).any()) == training
        assert internals.take_losses(host) == []
    assert not (layer.drop(torch.ones(50, 3)) == 0).any()


def test_a_model_is_built_from_a_batch_that_is_read_only_then():
    model, asked = network(), []

    def batches():
        asked.append(1)
        yield 0, 0, [(torch.from_numpy(X), torch.from_numpy(Y), None)]

    internals.build(model, batches())
    assert internals.compiled_loss(model).built
    assert internals.compiled_metrics(model).built
    assert model.optimizer.built
    internals.build(model, batches())
    assert asked == [1]


class Counted(keras.layers.Layer):
    """Counts how often it is called."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


def test_losses_and_means_are_built_by_shapes_alone_and_as_keras_does():
    for settings in (
        {
            "loss": "categorical_crossentropy",
            "metrics": ["accuracy", keras.metrics.TopKCategoricalAccuracy(2)],
        },
        {"loss": keras.losses.MeanSquaredError(), "weighted_metrics": ["mae"]},
    ):
        models = []
        for _ in range(2):
            counted = Counted()
            model = keras.Sequential(
                [keras.Input((3,)), counted, keras.layers.Dense(2, activation="softmax")]
            )
            model.compile("adam", **settings)
            models.append((model, counted, counted.calls))
        batch = (torch.zeros(4, 3), torch.zeros(4, 2), None)
        (ours, counted, calls), (theirs, *_) = models
        internals.build(ours, iter([(0, 0, [batch])]))
        theirs._symbolic_build(data_batch=batch)
        assert counted.calls == calls
        assert ours.optimizer.built

        def parts(model):
            metrics = internals.metrics_of(internals.compiled_metrics(model))
            return (
                [(type(loss), weight) for loss, weight in internals.losses_of(model)],
                [(type(metric), metric.name, weighted) for metric, weighted in metrics],
                [metric.name for metric in model.metrics],
            )

        assert parts(ours) == parts(theirs)


def test_a_metric_whose_state_depends_on_what_it_sees_is_built_by_a_call():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    score = keras.metrics.F1Score()
    model.compile("adam", "categorical_crossentropy", metrics=[score])
    internals.build(model, iter([(0, 0, [(torch.zeros(4, 3), torch.zeros(4, 2), None)])]))
    assert score.variables


def test_what_compile_has_made_is_found():
    model = trained(loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1), loss_weights=[2.0],
                    weighted_metrics=["mse"])  # fmt: skip
    [(loss, weight)] = internals.losses_of(model)
    assert (loss, weight) == (model.loss, 2.0)
    assert internals.settings_of(loss)["label_smoothing"] == 0.1
    assert internals.settings_of("mse") == {}
    found = internals.metrics_of(internals.compiled_metrics(model))
    assert [weighted for _, weighted in found] == [False, True]
    assert internals.function_of(found[0][0]) is keras.metrics.categorical_accuracy
    assert internals.mean_loss(model) is model.metrics[0]
    assert not internals.initial_epoch(model)


def test_a_backup_sets_the_first_epoch(tmp_path):
    class StopError(Exception):
        pass

    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002  Keras's signature
            assert epoch < 1 or internals.initial_epoch(self.model) == 1
            if epoch == 1 and not internals.initial_epoch(self.model):
                raise StopError

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 1:
                raise StopError

    model = network()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(StopError):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[backup, Crash()])
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[backup, Break()])
    assert internals.initial_epoch(model) == 1


def test_functions_that_keras_made_are_known():
    model = trained()
    assert internals.is_made_by_keras(model.train_function)
    assert not internals.is_made_by_keras(lambda data: data)


def test_optimizers_tell_rate_places_and_slots():
    model = trained(optimizer=keras.optimizers.AdamW(0.25))
    optimizer, variables = model.optimizer, model.trainable_variables
    assert internals.is_own_optimizer(optimizer)
    assert not internals.is_own_optimizer(type("Mine", (keras.optimizers.SGD,), {})())
    assert float(internals.rate_of(optimizer).value) == 0.25
    assert internals.variable_indices(optimizer, variables[::-1]) == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="variable"):
        internals.variable_indices(optimizer, [keras.Variable(np.zeros(1, np.float32))])
    assert internals.decays(optimizer, variables[0])
    other = keras.optimizers.AdamW()
    other.exclude_from_weight_decay(var_list=variables[:1])
    assert [internals.decays(other, variable) for variable in variables[:2]] == [False, True]
    for name in ("_momentums", "_velocities"):
        shapes = [slot.shape for slot in internals.slots_of(optimizer, name)]
        assert shapes == [variable.shape for variable in variables]


SLOTS = {
    "momentums": lambda: keras.optimizers.SGD(momentum=0.9),
    "_velocity_hats": lambda: keras.optimizers.Adam(amsgrad=True),
    "_average_gradients": lambda: keras.optimizers.RMSprop(centered=True),
    "_accumulators": keras.optimizers.Adagrad,
    "_accumulated_gradients": lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
    "_model_variables_moving_average": lambda: keras.optimizers.SGD(use_ema=True),
}


@pytest.mark.parametrize(("name", "make"), SLOTS.items(), ids=list(SLOTS))
def test_slots_have_the_shapes_of_the_weights(name, make):
    model = trained(optimizer=make())
    found = internals.slots_of(model.optimizer, name)
    assert [slot.shape for slot in found] == [variable.shape for variable in model.trainable_variables]


def test_steps_are_counted_though_gradients_are_accumulated():
    optimizer = trained(optimizer=keras.optimizers.SGD(gradient_accumulation_steps=2)).optimizer
    assert int(internals.step_counter(optimizer).value) == 1


def test_nadam_keeps_a_product():
    assert internals.slots_of(trained(optimizer="nadam").optimizer, "_u_product").shape == ()


def test_streams_are_iterated_as_fit_does():
    iterator = internals.epoch_iterator(Batches(), None, {0: 2.0})
    assert iterator.num_batches == 2
    iterator.reset()
    batches = list(iterator)
    assert [(first, last) for first, last, _ in batches] == [(0, 0), (1, 1)]
    x, _, weight = batches[0][2][0]
    np.testing.assert_array_equal(x, X[:10])
    np.testing.assert_array_equal(weight, np.where(Y[:10].argmax(1) == 0, 2.0, 1.0))
    batch = internals.standardize_batch(Batches()[0], {0: 2.0})
    np.testing.assert_array_equal(batch[2], weight)


def test_hooks_that_nobody_wrote_are_known():
    callback = keras.callbacks.EarlyStopping()
    assert internals.is_default(callback.on_train_batch_begin)
    assert not internals.is_default(callback.on_epoch_end)


def test_logs_become_numbers():
    assert internals.pythonify_logs({"loss": torch.tensor(0.5)}) == {"loss": 0.5}


def test_weights_of_applications_are_fetched_by_somebody_else():
    asked = []

    def fetch(fname, origin, **_settings):
        asked.append((fname, origin))
        raise LookupError(fname)

    with pytest.raises(LookupError), internals.weights_by(fetch):
        keras.applications.MobileNetV2(weights="imagenet", include_top=False, input_shape=(96, 96, 3))
    ((name, origin),) = asked
    assert origin.endswith(name)
    assert name.endswith(".h5")
    assert internals.file_utils.get_file is keras.utils.get_file


def test_home_of_keras_holds_its_downloads():
    assert internals.keras_home().name == ".keras" or "KERAS_HOME" in os.environ


@pytest.mark.parametrize("name", ["hard_silu", "mish", "sparsemax"])
def test_an_activation_function_takes_symbols_inside_alone(name):
    function, numbers = getattr(keras.activations, name), torch.linspace(-3, 3, 8).reshape(2, 4)
    with internals.activations_on_symbols():
        symbol = keras.Input((4,))
        model = keras.Model(symbol, function(symbol))
        inside = function(numbers)
    torch.testing.assert_close(model(numbers), function(numbers))
    torch.testing.assert_close(inside, function(numbers))
    with pytest.raises(ValueError, match="symbolic"):
        function(symbol)
