"""Random layers that move images draw as in Keras, and move a whole batch as Keras moves each image."""

import keras
import numpy as np
import pytest
import torch
from lowering_cases import image_batch

from convscope.lowering import emit, lower
from convscope.lowering.layers.augmenting import move_images

L = keras.layers
MODES = ["constant", "nearest", "reflect", "wrap"]


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
@pytest.mark.parametrize("mode", MODES)
def test_images_are_moved_as_keras_moves_them(mode, order):
    generator = np.random.default_rng(3)
    transforms = generator.normal(size=(5, 8)) + np.array([1, 0, 0, 0, 1, 0, 0, 0])
    transforms[:, [2, 5]] *= 20
    transforms[:, 6:] = 0
    images = image_batch((5, 9, 12, 3) if order == "channels_last" else (5, 3, 9, 12))
    settings = {"interpolation": "bilinear", "fill_mode": mode, "fill_value": 0.7, "data_format": order}
    expected = keras.ops.image.affine_transform(images, transforms.astype("float32"), **settings)
    found = move_images(torch.tensor(images), torch.tensor(transforms, dtype=torch.float32), **settings)
    np.testing.assert_allclose(found, expected, atol=2e-4)


LAYERS = {
    "rotation": lambda **settings: L.RandomRotation(0.3, **settings),
    "zoom": lambda **settings: L.RandomZoom((-0.4, 0.3), 0.2, **settings),
    "translation": lambda **settings: L.RandomTranslation(0.3, 0.2, **settings),
    "shear": lambda **settings: L.RandomShear(0.4, 0.3, **settings),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_with_a_seed_gives_what_keras_gives(make, mode):
    images = torch.tensor(image_batch((6, 8, 10, 3)))
    found = {}
    for kind in ("keras", "lowered"):
        layer = make(seed=4, fill_mode=mode)
        model = keras.Sequential([keras.Input((8, 10, 3)), layer])
        backend = layer.backend
        run = model if kind == "keras" else emit(lower(model), model)
        found[kind] = [run(images, training=training) for training in (True, True, False)]
        assert layer.backend is backend
    assert not torch.equal(found["keras"][0], found["keras"][1])
    for one, other in zip(found["lowered"], found["keras"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_without_a_seed_the_run_s_seed_and_step_decide():
    model = keras.Sequential([keras.Input((8, 10, 3)), L.RandomRotation(0.3), L.RandomRotation(0.3)])
    network = emit(lower(model), model)
    images = torch.tensor(image_batch((6, 8, 10, 3)))

    def at(seed, step):
        network.begin_step(seed, step)
        return network(images, training=True)

    torch.testing.assert_close(at(1, 1), at(1, 1), rtol=0, atol=0)
    assert not torch.equal(at(1, 1), at(1, 2))
    assert not torch.equal(at(1, 1), at(2, 1))
