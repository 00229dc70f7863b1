"""Random layers change a whole batch as Keras changes each image; their numbers follow seed, step and row."""

import keras
import numpy as np
import pytest
import torch
from lowering_cases import image_batch

from convscope.lowering import emit, lower
from convscope.lowering.kernels import Shard
from convscope.lowering.layers.augmenting import move_images
from convscope.lowering.layers.base import Step
from convscope.lowering.layers.operations import draw_evenly

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


ALL = LAYERS | {
    "zoom, one factor": lambda **settings: L.RandomZoom((-0.4, 0.3), **settings),
    "flip": lambda **settings: L.RandomFlip("horizontal", **settings),
    "flip down": lambda **settings: L.RandomFlip("vertical", **settings),
    "flip both": L.RandomFlip,
    "contrast": lambda **settings: L.RandomContrast(0.7, value_range=(-1, 1), **settings),
    "brightness": lambda **settings: L.RandomBrightness((-0.2, 0.5), value_range=(-1, 2), **settings),
}
SETTINGS = [({"fill_mode": mode, "fill_value": 0.7}, name) for name in LAYERS for mode in MODES]
SETTINGS += [({"interpolation": "nearest"}, name) for name in LAYERS]
SETTINGS += [({"data_format": order}, name) for name in ALL for order in ("channels_last", "channels_first")]


def lowered(layer, shape=(8, 10, 3)):
    """A network of one layer, which has to be an op of its own."""
    model = keras.Sequential([keras.Input(shape), layer])
    program = lower(model)
    assert "KerasCall" not in {op.kind for op in program}
    return emit(program, model), program.ops[0]


@pytest.mark.parametrize(("settings", "name"), SETTINGS, ids=str)
def test_with_the_same_numbers_images_are_what_keras_makes_of_them(settings, name, monkeypatch):
    layer = ALL[name](**settings)
    shape = (3, 8, 10) if layer.data_format == "channels_first" else (8, 10, 3)
    network, op = lowered(layer, shape)
    images = torch.tensor(image_batch((16, *shape)))
    network.begin_step(5, 7)
    found = network(images, training=True)
    columns = iter(draw_evenly(Step(True, 5, 7), op.stream, (16, len(op.ranges)), images.device).unbind(1))

    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        return next(columns).reshape(*shape) * (maxval - minval) + minval

    monkeypatch.setattr(layer.backend.random, "uniform", uniform)
    expected = layer(images, training=True)
    assert next(columns, None) is None
    assert not torch.allclose(expected, images, atol=1e-3)
    close = torch.isclose(found, expected, atol=2e-4)
    # Half-way between two pixels rounding decides which is the nearest.
    assert close.float().mean() > 0.99 if "interpolation" in settings else close.all()


@pytest.mark.parametrize("name", ALL)
def test_nothing_happens_to_what_is_predicted(name):
    network, _ = lowered(ALL[name]())
    images = torch.tensor(image_batch((4, 8, 10, 3)))
    assert torch.equal(network(images), images)


def test_whole_numbers_become_floating_point_as_in_keras():
    layer = L.RandomFlip("horizontal")
    model = keras.Sequential([keras.Input((8, 10, 3), dtype="uint8"), layer])
    images = torch.arange(480, dtype=torch.uint8).reshape(2, 8, 10, 3)
    for training in (True, False):
        found = emit(lower(model), model)(images, training=training)
        assert found.dtype is torch.float32
        assert all(
            torch.equal(one, image.float()) or torch.equal(one, image.flip(1).float())
            for one, image in zip(found, images, strict=True)
        )


def test_each_image_draws_evenly_and_apart():
    network, op = lowered(L.RandomRotation((-0.1, 0.3)))
    assert op.ranges == ((-36.0, 108.0),)
    drawn = draw_evenly(Step(True, 1, 2), op.stream, (4000, 2), torch.device("cpu")).numpy()
    assert np.abs(np.histogram(drawn[:, 0], 10, (0, 1))[0] / 400 - 1).max() < 0.2
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.06
    images = torch.tensor(image_batch((1, 8, 10, 3))).expand(6, -1, -1, -1)
    turned = network(images, training=True)
    assert all(not torch.equal(turned[0], other) for other in turned[1:])


@pytest.mark.parametrize("name", ALL)
def test_several_processes_change_the_rows_as_one_does(name):
    network, _ = lowered(ALL[name]())
    images = torch.tensor(image_batch((6, 8, 10, 3)))
    network.begin_step(3, 4)
    whole = network(images, training=True)
    for first, rows in ((0, 2), (2, 4)):
        network.begin_step(3, 4, shard=Shard(first, rows, 6, lambda total: total))
        own = network(images[first : first + rows], training=True)
        torch.testing.assert_close(own, whole[first : first + rows], rtol=0, atol=0)


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
