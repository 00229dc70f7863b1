"""Small data, networks and comparisons that the training tests share."""

import keras
import numpy as np

CLASSES = 5


def images(count=70, seed=0, shape=(8, 8, 1)):
    """Images whose brightness tells the class, float32, and one-hot targets."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    x = generator.random((count, *shape), np.float32) + labels.reshape(-1, *[1] * len(shape)) / CLASSES
    return x.astype(np.float32), np.eye(CLASSES, dtype=np.float32)[labels]


def network(*, dropout=0.0, last="softmax", units=CLASSES, optimizer="sgd", loss="categorical_crossentropy",
            metrics=("accuracy",), convolution=None, dense=None, **compile_arguments):  # fmt: skip
    """A convolutional network, the same weights each time, compiled."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv", **(convolution or {})),
            keras.layers.MaxPooling2D(name="pool"),
            keras.layers.Dropout(dropout, name="drop"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(units, activation=last, name="dense", **(dense or {})),
        ]
    )
    model.compile(optimizer=optimizer, loss=loss, metrics=list(metrics), **compile_arguments)
    return model


def weights(model):
    """The model's weights as arrays."""
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.weights]


def optimizer_values(model):
    """The optimizer's variables as arrays."""
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.optimizer.variables]


def assert_close(found, expected, tolerance=1e-5):
    """Each array within the tolerance of its largest value."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-2)


def assert_same_history(found, expected, tolerance=1e-5):
    """The same names, and numbers within the tolerance."""
    assert sorted(found.history) == sorted(expected.history)
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, rtol=tolerance, atol=tolerance)


def identical(first, second):
    """Whether all arrays agree bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


class Diary(keras.callbacks.Callback):
    """Writes down every call that it gets, with its arguments and its rounded logs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(*arguments, logs=None, **_):
            rounded = {key: round(float(value), 4) for key, value in (logs or {}).items()}
            if arguments and isinstance(arguments[-1], dict):
                *arguments, last = arguments
                rounded = {key: round(float(value), 4) for key, value in last.items()}
            self.calls.append((name, [a for a in arguments if a is not None], rounded))

        return note
