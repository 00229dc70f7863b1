"""The networks of the benchmarks, in Keras, and what plain PyTorch code would make of the simpler ones."""

from __future__ import annotations

from typing import Any

import numpy as np

# name → (shape of an image, classes, batch size, steps of one measurement)
NETWORKS: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "deep": ((28, 28, 1), 10, 128, 40),
    "simple": ((28, 28, 1), 10, 128, 40),
    "dense": ((28, 28, 1), 10, 128, 40),
    "stages": ((28, 28, 1), 10, 128, 20),
    "resnet": ((32, 32, 3), 10, 128, 10),
    "mobilenet": ((96, 96, 3), 10, 32, 6),
}


def images_for(network: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Load or make enough float32 images and one-hot targets for some steps."""
    shape, classes, batch, _ = NETWORKS[network]
    count = steps * batch
    generator = np.random.default_rng(0)
    if shape == (28, 28, 1):
        import convscope

        try:
            split = convscope.load("mnist").train
        except convscope.ConvscopeError:
            split = convscope.load("digits").train
        rows = np.arange(count) % len(split)
        images, labels = split.images[rows].astype(np.float32) / 255, split.labels[rows]
    else:  # speed does not depend on what the pixels show
        images = generator.random((count, *shape), np.float32)
        labels = generator.integers(0, classes, count)
    return images, np.eye(classes, dtype=np.float32)[labels]


def keras_model(network: str) -> Any:
    """Build and compile a network in Keras."""
    import keras

    import convscope

    keras.utils.set_random_seed(0)
    shape, classes, _, _ = NETWORKS[network]
    if network == "resnet":
        model = _resnet(shape, classes)
    elif network == "mobilenet":
        model = keras.applications.MobileNetV2(shape, weights=None, classes=classes)
    else:
        model = convscope.build(network, shape, classes)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model


def _resnet(shape: tuple[int, int, int], classes: int) -> Any:
    """Build a small residual network: three stages of two blocks, 16 to 64 filters (He et al., 2016, 4.2)."""
    import keras
    from keras import layers

    def unit(x: Any, filters: int, stride: int = 1) -> Any:
        x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input(shape)
    x = layers.ReLU()(unit(inputs, 16))
    for filters, first_stride in ((16, 1), (32, 2), (64, 2)):
        for stride in (first_stride, 1):
            shortcut = x
            if x.shape[-1] != filters:
                shortcut = layers.Conv2D(filters, 1, strides=stride, use_bias=False)(x)
            x = unit(layers.ReLU()(unit(x, filters, stride)), filters)
            x = layers.ReLU()(layers.Add()([x, shortcut]))
    outputs = layers.Dense(classes, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def torch_model(network: str) -> Any:
    """Write a network as plain PyTorch code would; None for the ones that nobody writes in a few lines."""
    from torch import nn

    if network == "resnet":
        return _torch_resnet()
    if network == "mobilenet":
        return None
    from convscope.networks import layers_of

    (height, width, channels), classes, _, _ = NETWORKS[network]
    parts: list[nn.Module] = []
    features = 0
    for kind, settings in layers_of(network, classes):
        if kind == "Conv2D":
            padding = 1 if settings["padding"] == "same" else 0
            parts += [
                nn.Conv2d(channels, settings["filters"], settings["kernel_size"], padding=padding),
                nn.ReLU(),
            ]
            channels = settings["filters"]
            height, width = (n + 2 * padding - settings["kernel_size"] + 1 for n in (height, width))
        elif kind == "MaxPooling2D":
            parts.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        elif kind == "Dropout":
            parts.append(nn.Dropout(settings["rate"]))
        elif kind == "Flatten":
            parts.append(nn.Flatten())
            features = height * width * channels
        else:
            parts.append(nn.Linear(features, settings["units"]))
            features = settings["units"]
            if settings["activation"] == "relu":
                parts.append(nn.ReLU())
    return nn.Sequential(*parts)


def _torch_resnet() -> Any:
    from torch import nn

    def unit(inputs: int, filters: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, filters, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(filters))

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(unit(inputs, filters, stride), nn.ReLU(), unit(filters, filters, 1))
            plain = inputs == filters
            self.shortcut = nn.Identity() if plain else nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.relu = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.shortcut(x))

    shapes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    blocks = [Block(*shape) for shape in shapes]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(unit(3, 16, 1), nn.ReLU(), *blocks, *head)
