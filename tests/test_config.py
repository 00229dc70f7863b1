"""The settings of a training."""

import json

import pytest

from convscope.errors import UnknownNameError, UsageError
from convscope.experiment.config import OPTIMIZERS, TrainingConfig
from convscope.training import require_count


def test_the_defaults_are_those_of_the_exercise():
    config = TrainingConfig()
    assert (config.epochs, config.batch_size, config.optimizer, config.seed) == (10, 128, "adam", 1338)


def test_settings_survive_json():
    config = TrainingConfig(epochs=3, learning_rate=0.01, schedule="one-cycle", label_smoothing=0.05)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keras_knows_each_optimizer(name):
    import keras

    assert type(keras.optimizers.get(name)).__name__.lower() == name


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"epochs": 0}, UsageError, r"^Expected epochs of at least 1, a whole number, got 0.$"),
        ({"epochs": 2.5}, UsageError, r"^Expected epochs of at least 1, a whole number, got 2.5.$"),
        ({"batch_size": -3}, UsageError, "batch_size"),
        ({"seed": -1}, UsageError, "seed of at least 0"),
        ({"learning_rate": 0}, UsageError, r"^Expected a learning rate above 0, got 0.$"),
        ({"learning_rate": float("nan")}, UsageError, r"^Expected a learning rate above 0, got nan.$"),
        ({"label_smoothing": 1}, UsageError, "label smoothing from 0 to below 1"),
        ({"optimizer": "adan"}, UnknownNameError, "Did you mean 'adam'"),
        ({"schedule": "cosin"}, UnknownNameError, "Did you mean 'cosine'"),
        ({"engine": "kears"}, UnknownNameError, "Did you mean 'keras'"),
        ({"engine": "keras", "precision": "bfloat16"}, UsageError, "the fast engine for precision bfloat16"),
        ({"precision": "float16"}, UnknownNameError, "Did you mean 'bfloat16'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_with_is_refused(settings, kind, message):
    with pytest.raises(kind, match=message):
        TrainingConfig(**settings)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'epochs'"):
        TrainingConfig.from_dict({"epoch": 3})


@pytest.mark.parametrize("value", [True, None, "3", 1.5], ids=str)
def test_only_whole_numbers_count(value):
    with pytest.raises(UsageError, match="a whole number"):
        require_count("epochs", value, 1)
