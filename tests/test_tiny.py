"""The whole public path in seconds: load → prepare → build → fit → evaluate → plot.

Small enough for an emulated processor, where a network for images of 12×12 is held against Keras.
"""

import os

import keras
import numpy as np
import pytest
import torch

import convscope
from convscope.preprocessing import one_hot


def test_the_whole_path():
    digits = convscope.load("digits")
    preprocess = convscope.Preprocess.fit(digits.train.images)
    keras.utils.set_random_seed(0)
    model = convscope.build("simple", digits.input_shape, len(digits.class_names))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    history = convscope.fit(
        model,
        preprocess.apply(digits.train.images),
        one_hot(digits.train.labels, 10),
        validation_split=0.3,
        batch_size=32,
        epochs=4,
        seed=0,
        verbose=0,
    )
    assessment = convscope.evaluate(model, digits.test.images, digits.test.labels, preprocess=preprocess)
    assert assessment.evaluation.accuracy > 0.9
    assert history.history["val_accuracy"][-1] > 0.8
    assert convscope.plot_history(history).axes
    assert set(assessment.figures) == {"probability", "confusion_matrix", "worst_errors", "predictions"}
    assert "data:image/png;base64," in assessment._repr_html_()


def tiny_network(rate):
    """Build what has kernels of its own: few-channel and other convolutions, pooling, dropout, dense."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(rate),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(rate),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def stripes():
    """48 images of 12×12: stripes across, stripes down, or none."""
    random = np.random.default_rng(0)
    labels = np.arange(48) % 3
    images = random.uniform(0, 0.5, (48, 12, 12, 1)).astype(np.float32)
    images[labels == 0, ::3] += 0.5
    images[labels == 1, :, ::3] += 0.5
    return images, labels


def test_float32_trains_as_keras_does(stripes):
    weights, losses = {}, {}
    for engine in ("fast", "keras"):
        model = tiny_network(rate=0.0)
        settings = {"precision": "float32"} if engine == "fast" else {}
        history = convscope.fit(
            model,
            *stripes,
            batch_size=16,
            epochs=2,
            shuffle=False,
            engine=engine,
            verbose=0,
            **settings,
        )
        weights[engine], losses[engine] = model.get_weights(), history.history["loss"]
    np.testing.assert_allclose(losses["fast"], losses["keras"], rtol=1e-4)
    for ours, theirs in zip(weights["fast"], weights["keras"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_whatever_precision_the_processor_is_given_learns(stripes):
    model = tiny_network(rate=0.25)
    history = convscope.fit(model, *stripes, batch_size=16, epochs=20, seed=0, verbose=0)
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    expected = keras.ops.convert_to_numpy(model(stripes[0]))
    np.testing.assert_allclose(convscope.predict(model, stripes[0]), expected, atol=1e-5)
    np.testing.assert_allclose(convscope.predict(model, stripes[0], precision="auto"), expected, atol=0.02)


@pytest.mark.skipif("CONVSCOPE_EXPECTED_ISA" not in os.environ, reason="no emulated processor is announced")
def test_the_emulated_processor_is_the_announced_one():
    """CONVSCOPE_EXPECTED_ISA says what torch must find, so that a run meant to be emulated really is."""
    assert torch.backends.cpu.get_cpu_capability() == os.environ["CONVSCOPE_EXPECTED_ISA"]
