# %% [markdown]
# # 2 A first convolution
#
# A convolution slides a small window, the **kernel**, over the image. At each place it multiplies the
# pixels under the window with the kernel's weights, adds them up, adds a bias, and writes down the result.
# Each **filter** has a kernel of its own and makes one channel of the output.

# %%
import convscope
from convscope import lessons

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

# %% [markdown]
# The preparation of lesson 1, in short:

# %%
data = lessons.load_data()
images_train, images_val, labels_train, labels_val = train_test_split(
    data.train.images, data.train.labels, test_size=0.3, random_state=1338, stratify=data.train.labels
)
preprocess = convscope.Preprocess.fit(images_train, data_format=keras.config.image_data_format())
x_train = preprocess.apply(images_train)
x_val = preprocess.apply(images_val)
x_test = preprocess.apply(data.test.images)

y_train = keras.utils.to_categorical(labels_train, 10)
y_val = keras.utils.to_categorical(labels_val, 10)
y_test = keras.utils.to_categorical(data.test.labels, 10)

print(f"{data.name}: {len(x_train):,} images to train on, {len(x_val):,} to validate with")
print("one image:", x_train.shape[1:], x_train.dtype)

# %% [markdown]
# ## What a kernel sees
#
# Before a network learns its kernels, let us set one by hand. This one is positive above and negative
# below: it answers to an edge with light above and dark below.

# %%
edge = keras.layers.Conv2D(filters=1, kernel_size=3, use_bias=False)
edge.build((None, *x_train.shape[1:]))
edge.set_weights([np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]], "float32").reshape(3, 3, 1, 1)])

image = x_train[:1]  # a batch of one image
answer = keras.ops.convert_to_numpy(edge(image))
print("from", image.shape, "to", answer.shape)

figure, axes = plt.subplots(1, 2, figsize=(6, 3))
axes[0].imshow(image.squeeze(), cmap="gray")
axes[0].set_title("image")
axes[1].imshow(answer.squeeze(), cmap="RdBu", vmin=-3, vmax=3)
axes[1].set_title("blue: light above, dark below")
for axis in axes:
    axis.axis("off")

# %% [markdown]
# ## The arguments of Conv2D
#
# | argument | what it decides |
# | --- | --- |
# | `filters` | how many kernels, and with them how many channels come out |
# | `kernel_size` | height and width of the window |
# | `strides` | how many pixels the window moves at a time |
# | `padding` | `"valid"`: the window stays inside the image; `"same"`: zeros are put around the image |
# | `dilation_rate` | how far apart the kernel's weights are |
# | `activation` | a function that each result goes through, such as `"relu"`: negative becomes 0 |
# | `use_bias` | whether each filter has a number of its own to add |
#
# Change the arguments in the next cell, one at a time, and watch what becomes of the shape, of the number
# of parameters and of the image. Guess before you run it.

# %%
layer = keras.layers.Conv2D(
    filters=4, kernel_size=3, strides=1, padding="valid", dilation_rate=1, activation="relu"
)
feature_maps = keras.ops.convert_to_numpy(layer(image))
print("shape", feature_maps.shape, "parameters", layer.count_params())

figure, axes = plt.subplots(1, layer.filters, figsize=(2.2 * layer.filters, 2.4), squeeze=False)
for number, axis in enumerate(axes.flat):
    axis.imshow(feature_maps[0, :, :, number], cmap="gray")
    axis.set_title(f"filter {number}")
    axis.axis("off")

# %% [markdown]
# The filters are random so far: nobody has trained them.
#
# For comparison, one filter and one argument changed at a time. What does each change do to the image, and
# why to its size?

# %%
changes = [
    {},
    {"padding": "same"},
    {"kernel_size": 7},
    {"strides": 2},
    {"dilation_rate": 3},
    {"activation": "relu"},
]
figure, axes = plt.subplots(1, len(changes), figsize=(2.1 * len(changes), 2.6))
for axis, change in zip(axes, changes, strict=True):
    settings = {"filters": 1, "kernel_size": 3, **change}
    layer = keras.layers.Conv2D(**settings, kernel_initializer=keras.initializers.GlorotUniform(seed=1338))
    feature_map = keras.ops.convert_to_numpy(layer(image)).squeeze()
    axis.imshow(feature_map, cmap="gray")
    name = ", ".join(f"{argument}={value!r}" for argument, value in change.items()) or "kernel_size=3"
    height, width = feature_map.shape
    axis.set_title(f"{name}\n{height}×{width}, {layer.count_params()} parameters", fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## Predict
#
# Five convolutions, each with the shape of the image that goes in:

# %%
questions = {
    "A": ({"filters": 16, "kernel_size": 5}, (28, 28, 1)),
    "B": ({"filters": 8, "kernel_size": 3, "padding": "same", "strides": 2}, (28, 28, 1)),
    "C": ({"filters": 8, "kernel_size": 5, "strides": 3}, (28, 28, 1)),
    "D": ({"filters": 4, "kernel_size": 3, "dilation_rate": 3, "use_bias": False}, (28, 28, 1)),
    "E": ({"filters": 32, "kernel_size": 3, "padding": "same"}, (32, 32, 3)),
}

# %% [markdown] tags=["task"]
# ### Task 2.1
#
# Which shape comes out of each, as (height, width, channels)? Work it out before you let Keras tell you.

# %% [markdown] tags=["hint"]
# A window of width *k* fits *n* − *k* + 1 times into a row of *n* pixels. With a stride of *s* it fits only
# at every *s*-th of these places. A dilation of *d* makes a kernel of 3 as wide as 2·*d* + 1 pixels.

# %% [markdown] tags=["hint"]
# Without padding: (*n* − *k*)/*s* + 1, rounded down, with the width that the kernel reaches for *k*. With
# `"same"`: *n*/*s*, rounded up. The number of channels that come out is the number of filters.

# %% tags=["answer"]
shapes = {
    "A": (24, 24, 16),  # SOLUTION
    "B": (14, 14, 8),  # SOLUTION
    "C": (8, 8, 8),  # SOLUTION
    "D": (22, 22, 4),  # SOLUTION
    "E": (32, 32, 32),  # SOLUTION
}

# %% tags=["check"]
convscope.check("2.1")

# %% [markdown] tags=["task"]
# ### Task 2.2
#
# And how many parameters has each, weights and biases together?

# %% [markdown] tags=["hint"]
# A filter has one kernel for each channel that comes in. Does the number of parameters depend on the size
# of the image?

# %% [markdown] tags=["hint"]
# Kernel height × kernel width × channels that come in × filters, and one bias for each filter, if it has
# one.

# %% tags=["answer"]
parameters = {
    "A": 5 * 5 * 1 * 16 + 16,  # SOLUTION
    "B": 3 * 3 * 1 * 8 + 8,  # SOLUTION
    "C": 5 * 5 * 1 * 8 + 8,  # SOLUTION
    "D": 3 * 3 * 1 * 4,  # SOLUTION
    "E": 3 * 3 * 3 * 32 + 32,  # SOLUTION
}

# %% tags=["check"]
convscope.check("2.2")

# %% [markdown]
# ## A network
#
# The simplest network with a convolution has three layers:
#
# | layer | settings | output | parameters |
# | --- | --- | --- | --- |
# | `Conv2D` | 32 filters, 3×3, no padding, ReLU | 26×26×32 | 320 |
# | `Flatten` | | 21,632 | 0 |
# | `Dense` | 10 units, softmax | 10 | 216,330 |

# %% [markdown] tags=["task"]
# ### Task 2.3
#
# Build this network as a `keras.Sequential` and call it `model`.

# %% [markdown] tags=["hint"]
# The list of layers begins with `keras.Input(x_train.shape[1:])`, so that the network knows the shape of an
# image. `activation="softmax"` makes the ten outputs probabilities that add up to 1.

# %% [markdown] tags=["hint"]
# Each row of the table is a layer:
#
#     model = keras.Sequential([keras.Input(x_train.shape[1:]), keras.layers.Conv2D(…), …])
#
# `model.summary()` shows output shapes and parameters, to be compared with the table.

# %% tags=["answer"]
# BEGIN SOLUTION
keras.utils.set_random_seed(1338)
model = keras.Sequential(
    [
        keras.Input(x_train.shape[1:]),
        keras.layers.Conv2D(32, kernel_size=3, padding="valid", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
# END SOLUTION

# %% tags=["check"]
convscope.check("2.3")

# %% [markdown]
# ## Training
#
# `convscope.fit(model, …)` does what `model.fit(…)` does, with the same arguments, and is several times
# faster. Batches of 128 images; an epoch is one pass over all training images.

# %%
BATCH_SIZE = 128
EPOCHS = lessons.epochs(data)
EPOCHS

# %% [markdown] tags=["task"]
# ### Task 2.4
#
# Compile the model with the optimizer `"adam"`, the loss `"categorical_crossentropy"` and the metric
# `"accuracy"`. Train it for `EPOCHS` epochs in batches of `BATCH_SIZE`, with the validation images as
# `validation_data`, and keep what `convscope.fit` gives back as `history`. Draw it with
# `convscope.plot_history(history)`.

# %% [markdown] tags=["hint"]
# `history = convscope.fit(model, x, y, batch_size=…, epochs=…, validation_data=(…, …))`. Training goes on
# where it stopped: to start anew, run the cell that builds the model first.

# %% tags=["answer"]
# BEGIN SOLUTION
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
history = convscope.fit(
    model,
    x_train,
    y_train,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    validation_data=(x_val, y_val),
    seed=1338,
)
convscope.plot_history(history)
# END SOLUTION

# %% tags=["check"]
convscope.check("2.4")

# %% [markdown]
# Where do the two curves part, and what does that mean? How good the network really is, the next lesson
# tells.
