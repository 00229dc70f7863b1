"""Small networks of many kinds: how fast they train beside Keras on torch, and what runs as a Keras layer.

    python benchmarks/zoo.py [--networks vit mixer …] [--rounds 3] [--precision auto]

Each network is written after its paper, small, for images of 32×32. Keras's `fit` and convscope's take turns
in one process, on copies with the same weights; the ratio of a round is what counts. A step is timed from the
beginning of an epoch to its end, on one thread, by the processor's own clock, so that other programs on the
machine do not decide; what comes before the first step (lowering, a plan from the cache) has a column of its
own. The table is written to benchmarks/results/zoo.md with the processor's name; a network that is not
measured again keeps its row, on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import torch
from keras import layers as L  # noqa: N812  some hundred layers are written below
from keras import ops

import convscope
from convscope.lowering import lower
from convscope.lowering.devices import describe_device

RESULTS = Path(__file__).parent / "results"
SHAPE, CLASSES, BATCH, STEPS = (32, 32, 3), 10, 64, 5
Network = Callable[[Any], Any]  # from images (n, 32, 32, 3) to what the classifier reads
NETWORKS: dict[str, tuple[Network, str]] = {}


def network(paper: str, name: str) -> Callable[[Network], Network]:
    """Enter a network under a name."""

    def register(function: Network) -> Network:
        NETWORKS[name] = function, paper
        return function

    return register


def conv(x: Any, filters: int, size: int = 3, stride: int = 1, activation: str | None = "relu") -> Any:
    """Convolve, normalize, activate."""
    x = L.Conv2D(filters, size, stride, "same", use_bias=False)(x)
    x = L.BatchNormalization()(x)
    return L.Activation(activation)(x) if activation else x


def pooled(x: Any) -> Any:
    """Average over the positions of an image, or over tokens."""
    return (L.GlobalAveragePooling2D if len(x.shape) == 4 else L.GlobalAveragePooling1D)()(x)


def mlp(x: Any, hidden: int, rate: float = 0.1) -> Any:
    """Widen, activate, narrow."""
    width = x.shape[-1]
    x = L.Dropout(rate)(L.Dense(hidden, activation="gelu")(x))
    return L.Dropout(rate)(L.Dense(width)(x))


# Networks of attention and mixing.


class Patches(L.Layer):
    """Cuts images into patches, in a row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def call(self, images: Any) -> Any:
        batch, height, width, channels = ops.shape(images)
        patches = ops.image.extract_patches(images, size=self.size)
        count = (height // self.size) * (width // self.size)
        return ops.reshape(patches, (batch, count, self.size * self.size * channels))


class Positions(L.Layer):
    """Projects tokens and adds an embedding of their positions."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count, self.project, self.embed = count, L.Dense(width), L.Embedding(count, width)

    def call(self, tokens: Any) -> Any:
        return self.project(tokens) + self.embed(ops.expand_dims(ops.arange(self.count), 0))


class ClassToken(L.Layer):
    """Puts a learned token before the others."""

    def build(self, input_shape: Any) -> None:
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), initializer="zeros", name="token")

    def call(self, tokens: Any) -> Any:
        token = ops.broadcast_to(self.token, (ops.shape(tokens)[0], 1, ops.shape(tokens)[-1]))
        return ops.concatenate([token, tokens], axis=1)


class LayerScale(L.Layer):
    """A factor for each channel."""

    def __init__(self, start: float = 1e-2) -> None:
        super().__init__()
        self.start = start

    def build(self, input_shape: Any) -> None:
        start = keras.initializers.Constant(self.start)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=start, name="gamma")

    def call(self, x: Any) -> Any:
        return x * self.gamma


class StochasticDepth(L.Layer):
    """Leaves a branch out in training, for each image by chance."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.seeds = rate, keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = ops.floor(1 - self.rate + keras.random.uniform(shape, seed=self.seeds))
        return x / (1 - self.rate) * kept


def thinned(x: Any, rate: float) -> Any:
    """Leave a branch out at a rate."""
    return StochasticDepth(rate)(x) if rate else x


def transformer(x: Any, depth: int, heads: int, rate: float = 0.1, drop_path: bool = False) -> Any:
    """Alternate attention and MLP, normalized before."""
    width = x.shape[-1]
    rest = 0.1 if drop_path else 0.0
    for _ in range(depth):
        y = L.LayerNormalization(epsilon=1e-6)(x)
        x = L.Add()([x, thinned(L.MultiHeadAttention(heads, width // heads, dropout=rate)(y, y), rest)])
        x = L.Add()([x, thinned(mlp(L.LayerNormalization(epsilon=1e-6)(x), 2 * width, rate), rest)])
    return L.LayerNormalization(epsilon=1e-6)(x)


def augmented(x: Any) -> Any:
    """Change images at random, as tutorials do."""
    x = L.RandomFlip("horizontal")(x)
    return L.RandomZoom(0.2, 0.2)(L.RandomRotation(0.02)(x))


@network("Dosovitskiy et al., 2021", "vit")
def vit(x: Any) -> Any:
    return L.Flatten()(transformer(Positions(64, 64)(Patches(4)(x)), 4, 4))


@network("Dosovitskiy et al., 2021", "vit, augmented")
def vit_augmented(x: Any) -> Any:
    return vit(augmented(x))


@network("Touvron et al., 2021", "deit, class token")
def deit(x: Any) -> Any:
    x = ClassToken()(L.Reshape((64, 64))(L.Conv2D(64, 4, 4)(x)))
    return transformer(x, 4, 4, drop_path=True)[:, 0]


@network("Hassani et al., 2021", "cct")
def cct(x: Any) -> Any:
    for filters in (32, 64):
        x = L.MaxPooling2D(3, 2, "same")(L.Conv2D(filters, 3, padding="same", activation="relu")(x))
    x = transformer(L.Reshape((64, 64))(x), 2, 4, drop_path=True)
    weights = L.Softmax(axis=1)(L.Dense(1)(x))
    return ops.squeeze(ops.matmul(ops.transpose(weights, (0, 2, 1)), x), 1)


class MixerBlock(L.Layer):
    """Mixes tokens, then channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first, self.second = (
            keras.Sequential([L.Dense(2 * size, activation="gelu"), L.Dense(size), L.Dropout(0.1)])
            for size in (tokens, width)
        )
        self.norm, self.other_norm = L.LayerNormalization(epsilon=1e-6), L.LayerNormalization(epsilon=1e-6)

    def build(self, input_shape: Any) -> None:
        batch, tokens, width = input_shape
        self.first.build((batch, width, tokens))
        for part in (self.second, self.norm, self.other_norm):
            part.build(input_shape)

    def call(self, x: Any) -> Any:
        mixed = self.first(ops.transpose(self.norm(x), (0, 2, 1)))
        x = x + ops.transpose(mixed, (0, 2, 1))
        return x + self.second(self.other_norm(x))


@network("Tolstikhin et al., 2021", "mlp-mixer")
def mixer(x: Any) -> Any:
    x = L.Dense(64)(Patches(4)(x))
    for _ in range(4):
        x = MixerBlock(64, 64)(x)
    return pooled(x)


@network("Tolstikhin et al., 2021", "mlp-mixer, augmented")
def mixer_augmented(x: Any) -> Any:
    return mixer(augmented(x))


@network("Lee-Thorp et al., 2022", "fnet-like")
def fnet(x: Any) -> Any:
    x = L.Dense(64)(Patches(4)(x))
    for _ in range(4):
        mixed = L.Permute((2, 1))(L.Dense(64)(L.Permute((2, 1))(x)))
        x = L.LayerNormalization()(x + mixed)
        x = L.LayerNormalization()(x + mlp(x, 128))
    return pooled(x)


@network("Liu et al., 2021", "gmlp")
def gmlp(x: Any) -> Any:
    x = L.Dense(64)(Patches(4)(x))
    for _ in range(4):
        y = L.Dense(128, activation="gelu")(L.LayerNormalization()(x))
        one, other = ops.split(y, 2, axis=-1)
        gate = ops.transpose(L.Dense(64)(ops.transpose(L.LayerNormalization()(other), (0, 2, 1))), (0, 2, 1))
        x = x + L.Dense(64)(one * (gate + 1.0))
    return pooled(x)


class WindowAttention(L.Layer):
    """Attention inside windows of an image, shifted or not, with a bias for each pair of positions."""

    def __init__(self, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift

    def build(self, input_shape: Any) -> None:
        width, count = input_shape[-1], self.window**2
        self.qkv, self.out = L.Dense(3 * width), L.Dense(width)
        self.bias = self.add_weight(shape=(self.heads, count, count), initializer="zeros", name="bias")
        self.drop = L.Dropout(0.1)
        self.qkv.build(input_shape)
        self.out.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        _, height, width, channels = ops.shape(x)
        size, head = self.window, channels // self.heads
        if self.shift:
            x = ops.roll(x, (-self.shift, -self.shift), (1, 2))
        x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, size * size, channels))
        qkv = ops.reshape(self.qkv(x), (-1, size * size, 3, self.heads, head))
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)
        scores = ops.matmul(query * head**-0.5, ops.transpose(key, (0, 1, 3, 2))) + self.bias
        shares = self.drop(ops.softmax(scores), training=training)
        x = ops.reshape(ops.transpose(ops.matmul(shares, value), (0, 2, 1, 3)), (-1, size * size, channels))
        x = ops.reshape(self.out(x), (-1, height // size, width // size, size, size, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))
        return ops.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


@network("Liu et al., 2021", "swin")
def swin(x: Any) -> Any:
    x = L.Conv2D(48, 2, 2)(x)
    for stage, width in enumerate((48, 96)):
        if stage:
            x = L.Dense(width)(L.LayerNormalization()(ops.image.extract_patches(x, size=2)))
        for shift in (0, 2):
            x = x + WindowAttention(width // 16, 4, shift)(L.LayerNormalization()(x))
            x = x + mlp(L.LayerNormalization()(x), 2 * width)
    return pooled(x)


@network("Mehta and Rastegari, 2022", "mobilevit")
def mobilevit(x: Any) -> Any:
    x = conv(x, 16, stride=2, activation="silu")
    for width in (32, 48):
        x = conv(x, width, stride=2 if width == 48 else 1, activation="silu")
        y = L.Conv2D(width, 1)(conv(x, width, activation="silu"))
        side = y.shape[1] // 2
        y = ops.reshape(y, (-1, side, 2, side, 2, width))
        y = ops.reshape(ops.transpose(y, (0, 2, 4, 1, 3, 5)), (-1, side * side, width))
        y = ops.reshape(transformer(y, 2, 4, rate=0.0), (-1, 2, 2, side, side, width))
        y = ops.reshape(ops.transpose(y, (0, 3, 1, 4, 2, 5)), (-1, 2 * side, 2 * side, width))
        x = conv(L.Concatenate()([x, conv(y, width, 1, activation="silu")]), width, activation="silu")
    return pooled(x)


@network("Trockman and Kolter, 2022", "convmixer")
def convmixer(x: Any) -> Any:
    x = L.BatchNormalization()(L.Conv2D(64, 2, 2, activation="gelu")(x))
    for _ in range(4):
        y = L.BatchNormalization()(L.DepthwiseConv2D(5, padding="same", activation="gelu")(x))
        x = L.BatchNormalization()(L.Conv2D(64, 1, activation="gelu")(L.Add()([x, y])))
    return pooled(x)


@network("Liu et al., 2022", "convnext")
def convnext(x: Any) -> Any:
    x = L.LayerNormalization(epsilon=1e-6)(L.Conv2D(32, 2, 2)(x))
    for width in (32, 64):
        if width == 64:
            x = L.Conv2D(64, 2, 2)(L.LayerNormalization(epsilon=1e-6)(x))
        for _ in range(2):
            y = L.LayerNormalization(epsilon=1e-6)(L.DepthwiseConv2D(7, padding="same")(x))
            y = L.Dense(width)(L.Dense(4 * width, activation="gelu")(y))
            x = x + StochasticDepth(0.1)(LayerScale()(y))
    return pooled(x)


@network("Dai et al., 2021", "coatnet-like")
def coatnet(x: Any) -> Any:
    x = conv(x, 32, stride=2, activation="gelu")
    for _ in range(2):
        y = conv(L.BatchNormalization()(x), 64, 1, activation="gelu")
        y = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(y))
        x = L.Add()([x, L.Conv2D(32, 1)(excited(L.Activation("gelu")(y), 4, "silu", "sigmoid"))])
    x = L.Conv2D(64, 1)(L.MaxPooling2D(2)(x))
    return pooled(transformer(L.Reshape((64, 64))(x), 2, 4))


@network("Yu et al., 2022", "poolformer")
def poolformer(x: Any) -> Any:
    x = L.Conv2D(48, 4, 4)(x)
    for _ in range(4):
        y = L.GroupNormalization(1)(x)
        x = x + thinned(LayerScale()(L.AveragePooling2D(3, 1, "same")(y) - y), 0.1)
        x = x + thinned(LayerScale()(mlp(L.GroupNormalization(1)(x), 192, 0.0)), 0.1)
    return pooled(x)


@network("Touvron et al., 2021", "patchconvnet")
def patchconvnet(x: Any) -> Any:
    for width in (32, 64):
        x = conv(x, width, stride=2, activation="gelu")
    for _ in range(3):
        y = L.Activation("gelu")(L.Conv2D(64, 1)(L.LayerNormalization(epsilon=1e-6)(x)))
        y = L.Activation("gelu")(L.DepthwiseConv2D(3, padding="same")(y))
        x = x + thinned(LayerScale()(L.Conv2D(64, 1)(excited(y, 4, "relu", "sigmoid"))), 0.1)
    tokens = L.LayerNormalization(epsilon=1e-6)(L.Reshape((64, 64))(x))
    token = ClassToken()(tokens)[:, :1]
    token = token + L.MultiHeadAttention(1, 64)(token, tokens)
    return (token + mlp(L.LayerNormalization(epsilon=1e-6)(token), 128))[:, 0]


class ExternalAttention(L.Layer):
    """Attention to a learned memory in the place of other tokens."""

    def __init__(self, width: int, heads: int, slots: int = 16) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.widen, self.keys = L.Dense(4 * width), L.Dense(slots)
        self.values, self.out = L.Dense(4 * width // heads), L.Dense(width)

    def call(self, x: Any) -> Any:
        count = x.shape[1]
        x = ops.reshape(self.widen(x), (-1, count, self.heads, 4 * self.width // self.heads))
        shares = ops.softmax(self.keys(ops.transpose(x, (0, 2, 1, 3))), axis=2)
        shares = shares / (1e-9 + ops.sum(shares, axis=-1, keepdims=True))
        x = ops.transpose(self.values(shares), (0, 2, 1, 3))
        return self.out(ops.reshape(x, (-1, count, 4 * self.width)))


@network("Guo et al., 2021", "eanet")
def eanet(x: Any) -> Any:
    x = Positions(64, 64)(Patches(4)(x))
    for _ in range(4):
        x = x + ExternalAttention(64, 4)(L.LayerNormalization(epsilon=1e-5)(x))
        x = x + mlp(L.LayerNormalization(epsilon=1e-5)(x), 64, 0.2)
    return pooled(x)


class Latents(L.Layer):
    """Learned vectors, the same for each image."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count, self.width = count, width

    def build(self, _input_shape: Any) -> None:
        shape = (1, self.count, self.width)
        self.vectors = self.add_weight(shape=shape, initializer="random_normal", name="vectors")

    def call(self, x: Any) -> Any:
        return ops.broadcast_to(self.vectors, (ops.shape(x)[0], self.count, self.width))


@network("Jaegle et al., 2021", "perceiver-like")
def perceiver(x: Any) -> Any:
    pixels = Positions(256, 32)(Patches(2)(x))
    x = Latents(32, 64)(pixels)
    for _ in range(2):
        seen = L.LayerNormalization(epsilon=1e-6)(pixels)
        x = L.Add()([x, L.MultiHeadAttention(1, 32)(L.LayerNormalization(epsilon=1e-6)(x), seen)])
        x = transformer(L.Add()([x, mlp(L.LayerNormalization(epsilon=1e-6)(x), 64)]), 1, 4)
    return pooled(x)


# Convolutional networks.


@network("He et al., 2016", "resnet")
def resnet(x: Any) -> Any:
    x = conv(x, 16)
    for filters in (16, 32, 64):
        for block in range(2):
            stride = 2 if filters > 16 and block == 0 else 1
            y = conv(conv(x, filters, stride=stride), filters, activation=None)
            x = conv(x, filters, 1, stride, None) if stride > 1 else x
            x = L.ReLU()(L.Add()([x, y]))
    return pooled(x)


@network("Huang et al., 2017", "densenet")
def densenet(x: Any) -> Any:
    x = L.Conv2D(24, 3, padding="same", use_bias=False)(x)
    for block in range(3):
        if block:
            x = L.AveragePooling2D(2)(L.Conv2D(x.shape[-1] // 2, 1)(L.ReLU()(L.BatchNormalization()(x))))
        for _ in range(4):
            y = L.Conv2D(12, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))
            x = L.Concatenate()([x, y])
    return pooled(L.ReLU()(L.BatchNormalization()(x)))


@network("Szegedy et al., 2015", "inception")
def inception(x: Any) -> Any:
    x = L.MaxPooling2D(2)(conv(x, 32))
    for width in (16, 32):
        one = conv(x, width, 1)
        three, five = conv(conv(x, width, 1), width), conv(conv(x, width // 2, 1), width, 5)
        pool = conv(L.MaxPooling2D(3, 1, "same")(x), width, 1)
        x = L.MaxPooling2D(2)(L.Concatenate()([one, three, five, pool]))
    return pooled(x)


def excited(x: Any, ratio: int, inner: str, gate: str) -> Any:
    """Weigh channels by what is in them (Hu et al., 2018)."""
    width = x.shape[-1]
    y = L.Reshape((1, 1, width))(L.GlobalAveragePooling2D()(x))
    y = L.Conv2D(width, 1, activation=gate)(L.Conv2D(width // ratio, 1, activation=inner)(y))
    return L.Multiply()([x, y])


@network("Howard et al., 2019", "mobilenetv3")
def mobilenetv3(x: Any) -> Any:
    x = conv(x, 16, stride=2, activation="hard_swish")
    for width, stride in ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1)):
        y = conv(x, 3 * x.shape[-1], 1, activation="hard_swish")
        y = L.BatchNormalization()(L.DepthwiseConv2D(3, stride, "same", use_bias=False)(y))
        y = L.Multiply()([y, L.Rescaling(1 / 6)(L.ReLU(6.0)(L.Rescaling(1.0, 3.0)(y)))])
        y = conv(excited(y, 4, "relu", "hard_sigmoid"), width, 1, activation=None)
        x = L.Add()([x, y]) if stride == 1 and x.shape[-1] == width else y
    return pooled(x)


@network("Tan and Le, 2019", "efficientnet")
def efficientnet(x: Any) -> Any:
    x = conv(L.Rescaling(2.0, -1.0)(x), 16, activation="swish")
    for width, stride in ((24, 2), (24, 1), (40, 2), (40, 1)):
        y = conv(x, 4 * x.shape[-1], 1, activation="swish")
        y = L.DepthwiseConv2D(3, stride, "same", use_bias=False)(y)
        y = L.Activation("swish")(L.BatchNormalization()(y))
        y = conv(excited(y, 4, "swish", "sigmoid"), width, 1, activation=None)
        same = stride == 1 and x.shape[-1] == width
        x = L.Add()([x, L.Dropout(0.1, noise_shape=(None, 1, 1, 1))(y)]) if same else y
    return pooled(x)


@network("Zhang et al., 2018", "shufflenet")
def shufflenet(x: Any) -> Any:
    x = conv(x, 24, stride=2)
    for _ in range(4):
        one, other = ops.split(x, 2, axis=-1)
        other = conv(other, 12, 1)
        other = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(other))
        x = ops.concatenate([one, conv(other, 12, 1)], axis=-1)
        x = ops.reshape(x, (-1, 16, 16, 2, 12))
        x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 16, 16, 24))
    return pooled(x)


@network("Woo et al., 2018", "cbam")
def cbam(x: Any) -> Any:
    x = conv(x, 32, stride=2)
    for _ in range(2):
        y = conv(x, 32)
        shared = keras.Sequential([L.Dense(8, activation="relu"), L.Dense(32)])
        mean, largest = (
            shared(pool(keepdims=True)(y)) for pool in (L.GlobalAveragePooling2D, L.GlobalMaxPooling2D)
        )
        y = y * ops.sigmoid(mean + largest)
        seen = ops.concatenate([ops.mean(y, -1, keepdims=True), ops.max(y, -1, keepdims=True)], axis=-1)
        x = x + y * L.Conv2D(1, 7, padding="same", activation="sigmoid")(seen)
    return pooled(x)


@network("Ronneberger et al., 2015", "unet-like")
def unet(x: Any) -> Any:
    first = conv(conv(x, 16), 16)
    second = conv(conv(L.MaxPooling2D()(first), 32), 32)
    x = conv(conv(L.MaxPooling2D()(second), 64), 64)
    x = conv(L.Concatenate()([second, L.Conv2DTranspose(32, 2, 2)(x)]), 32)
    x = conv(L.Concatenate()([first, L.UpSampling2D(interpolation="bilinear")(x)]), 16)
    return pooled(x)


@network("He et al., 2016b", "resnet, pre-activation")
def resnet_v2(x: Any) -> Any:
    x = L.Conv2D(16, 3, padding="same", use_bias=False)(x)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Conv2D(filters, 1, stride, use_bias=False)(y)
        y = L.Conv2D(filters, 3, padding="same", use_bias=False)(conv(y, filters, stride=stride))
        x = L.Add()([x, y])
    return pooled(L.ReLU()(L.BatchNormalization()(x)))


@network("Iandola et al., 2016", "squeezenet")
def squeezenet(x: Any) -> Any:
    x = L.Conv2D(32, 3, 2, "same", activation="relu")(x)
    for width in (8, 8, 16):
        x = L.Conv2D(width, 1, activation="relu")(x)
        sides = [L.Conv2D(4 * width, size, padding="same", activation="relu")(x) for size in (1, 3)]
        x = L.Concatenate()(sides)
    return pooled(L.Conv2D(64, 1, activation="relu")(L.Dropout(0.5)(x)))


@network("Han et al., 2020", "ghostnet")
def ghostnet(x: Any) -> Any:
    def ghost(x: Any, filters: int, activation: str | None) -> Any:
        y = conv(x, filters // 2, 1, activation=activation)
        cheap = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(y))
        return L.Concatenate()([y, L.Activation(activation)(cheap) if activation else cheap])

    x = conv(x, 16, stride=2)
    for _ in range(3):
        x = L.Add()([x, ghost(excited(ghost(x, 48, "relu"), 4, "relu", "hard_sigmoid"), 16, None)])
    return pooled(x)


@network("Ding et al., 2021", "repvgg")
def repvgg(x: Any) -> Any:
    for filters, stride in ((24, 2), (24, 1), (48, 2), (48, 1)):
        branches = [conv(x, filters, size, stride, None) for size in (3, 1)]
        branches += [L.BatchNormalization()(x)] if stride == 1 else []
        x = L.ReLU()(L.Add()(branches))
    return pooled(x)


@network("Radosavovic et al., 2020", "regnet")
def regnet(x: Any) -> Any:
    x = conv(x, 16, stride=2)
    for width, stride in ((24, 1), (24, 1), (56, 2), (56, 1)):
        y = L.Conv2D(width, 3, stride, "same", groups=width // 8, use_bias=False)(conv(x, width, 1))
        y = conv(excited(L.ReLU()(L.BatchNormalization()(y)), 4, "relu", "sigmoid"), width, 1, 1, None)
        x = conv(x, width, 1, stride, None) if x.shape[-1] != width or stride > 1 else x
        x = L.ReLU()(L.Add()([x, y]))
    return pooled(x)


MIXING = (
    "vit", "deit", "cct", "mlp", "fnet", "gmlp", "swin", "mobilevit", "convmixer", "convnext",
    "coatnet", "poolformer", "patchconvnet", "eanet", "perceiver",
)  # fmt: skip


def build(name: str) -> Any:
    """Build and compile a network."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    body, _ = NETWORKS[name]
    model = keras.Model(image, L.Dense(CLASSES, activation="softmax")(body(image)))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no type information
    """Reads the processor's clock where an epoch begins and ends."""

    def on_epoch_begin(self, _epoch: int, _logs: Any = None) -> None:
        self.begin = time.process_time()

    def on_epoch_end(self, _epoch: int, _logs: Any = None) -> None:
        self.end = time.process_time()


def measure(name: str, rounds: int, precision: str) -> dict[str, Any]:
    """Let both take turns; return milliseconds per step, and what runs as a Keras layer."""
    models = build(name), build(name)
    models[1].set_weights(models[0].get_weights())
    generator = np.random.default_rng(0)
    x = generator.random((BATCH * STEPS, *SHAPE), np.float32)
    y = generator.integers(0, CLASSES, len(x))
    times: dict[str, list[float]] = {"keras": [], "convscope": []}
    before: list[float] = []

    def run(fit: Callable[..., Any], model: Any, **settings: Any) -> tuple[float, float]:
        """Train for an epoch; return milliseconds of a step, and seconds before the first."""
        start, clock = time.process_time(), Clock()
        fit(model, x, y, batch_size=BATCH, verbose=0, callbacks=[clock], **settings)
        return (clock.end - clock.begin) / STEPS * 1000, clock.begin - start

    settings = {"precision": precision, "engine": "fast", "seed": 0}
    for number in range(rounds + 1):  # the first warms up
        own, waited = run(convscope.fit, models[1], **settings)
        theirs, _ = run(keras.Model.fit, models[0])
        if number:
            times["convscope"].append(own)
            times["keras"].append(theirs)
            before.append(waited)
    as_layers = sorted({str(op.call) for op in lower(models[1]) if op.kind == "KerasCall"})
    return {
        "milliseconds_per_step": times,
        "seconds_before": before,
        "as_keras_layers": as_layers,
        "date": str(date.today()),
    }


def ratio(measured: dict[str, Any]) -> float:
    """Return how many times as fast as Keras: the median of the rounds."""
    times = measured["milliseconds_per_step"]
    return statistics.median(
        theirs / own for theirs, own in zip(times["keras"], times["convscope"], strict=True)
    )


def page(record: dict[str, Any]) -> str:
    """Write the table."""
    machine, found = record["device"], record["networks"]
    mixing = [ratio(one) for name, one in found.items() if name.startswith(MIXING)]
    lines = [
        "# Networks of many kinds",
        "",
        f"{machine['processor']}, one thread, batch {BATCH}, images of 32×32; processor time. Rounds of "
        f"{STEPS} steps in turns after a warm-up; `python benchmarks/zoo.py` repeats it.",
        "",
        "| network | after | Keras on torch, ms per step | convscope | times as fast | convscope before the "
        "first step, s | run as Keras layers |",
        "| --- | --- | --: | --: | --: | --: | --- |",
    ]
    for name in filter(found.__contains__, NETWORKS):
        times = found[name]["milliseconds_per_step"]
        theirs, own = (statistics.median(times[peer]) for peer in ("keras", "convscope"))
        layers = ", ".join(found[name]["as_keras_layers"]) or "none"
        waited = f"{statistics.median(found[name]['seconds_before']):.2f}"
        speed = f"{ratio(found[name]):.2f}"
        cells = (name, NETWORKS[name][1], f"{theirs:.0f}", f"{own:.0f}", speed, waited, layers)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Median of all {statistics.median(map(ratio, found.values())):.2f}"]
    lines[-1] += f", of those with attention or mixing {statistics.median(mixing):.2f}." if mixing else "."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file, machine = RESULTS / "zoo.json", describe_device()
    record: dict[str, Any] = {"device": machine, "networks": {}}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        record = before if before["device"] == machine else record
    for name in arguments.networks:
        record["networks"][name] = found = measure(name, arguments.rounds, arguments.precision)
        print(f"{name:22} {ratio(found):.2f}  {', '.join(found['as_keras_layers'])}", flush=True)
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "zoo.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
