"""Networks that the exercise does not know, small enough to run at once; shared by several tests."""

from collections.abc import Callable

import keras
from keras import layers


def strided() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((17, 14, 3)),
            layers.Conv2D(4, (5, 3), strides=(2, 1), activation="relu"),
            layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.ReLU(),
            layers.AveragePooling2D((2, 3), strides=(1, 2), padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
            layers.Softmax(),
        ],
        name="strided",
    )


def dilated() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((15, 18, 2)),
            layers.Conv2D(4, 3, dilation_rate=2, activation="relu"),
            layers.Conv2D(4, (2, 3), dilation_rate=(3, 1), padding="same", groups=2, activation="tanh"),
            layers.SpatialDropout2D(0.2),
            layers.MaxPooling2D(3, strides=2, padding="same"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ],
        name="dilated",
    )


def separable() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((13, 13, 3)),
            layers.ZeroPadding2D(((1, 2), (0, 3))),
            layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, padding="same", activation="relu"),
            layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu"),
            layers.UpSampling2D((2, 3)),
            layers.Cropping2D(((1, 0), (2, 1))),
            layers.LayerNormalization(),
            layers.Dense(3, activation="relu"),
            layers.GlobalMaxPooling2D(keepdims=True),
            layers.Reshape((-1,)),
            layers.Dense(3, activation="softmax"),
        ],
        name="separable",
    )


def channels_first() -> keras.Model:
    first = {"data_format": "channels_first"}
    return keras.Sequential(
        [
            keras.Input((3, 12, 15)),
            layers.Conv2D(4, 3, padding="same", strides=2, activation="relu", **first),
            layers.BatchNormalization(axis=1),
            layers.MaxPooling2D(2, **first),
            layers.DepthwiseConv2D(2, **first),
            layers.Flatten(**first),
            layers.Dense(6, activation="softmax"),
        ],
        name="channels_first",
    )


def residual() -> keras.Model:
    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 3, padding="same", name="branch")(x)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Dense(8, activation="sigmoid", name="gate")(squeezed)
    y = layers.Multiply()([y, gate])
    x = layers.Add()([x, y])
    x = layers.Concatenate()([x, layers.AveragePooling2D(3, 1, padding="same")(x)])
    x = layers.Activation("relu")(x)
    outputs = layers.Dense(4, activation="softmax", name="classes")(layers.GlobalMaxPooling2D()(x))
    return keras.Model(image, outputs, name="residual")


def nested() -> keras.Model:
    """Build a model inside a model, used twice: its layers share their weights."""
    block = keras.Sequential(
        [keras.Input((None, None, 4)), layers.Conv2D(4, 3, padding="same", name="inner"), layers.ReLU()],
        name="block",
    )
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="stem")(image)
    x = block(block(x))
    x = layers.Flatten()(x * 0.5)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(x), name="nested")


ODD_NETWORKS: dict[str, Callable[[], keras.Model]] = {
    function.__name__: function
    for function in (strided, dilated, separable, channels_first, residual, nested)
}
