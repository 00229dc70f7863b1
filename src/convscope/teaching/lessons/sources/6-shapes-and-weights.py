# %% [markdown]
# # 6 Shapes and weights
#
# A network with two stages, each of two convolutions and a pooling. It need not be trained for this lesson:
# shapes and arithmetic are the same before and after.

# %%
import convscope
from convscope import lessons

import keras
import matplotlib.pyplot as plt
import numpy as np

# %%
data = lessons.load_data()
preprocess = convscope.Preprocess.fit(data.train.images)
x_test = preprocess.apply(data.test.images[:100])
x_test.shape

# %%
keras.config.set_image_data_format("channels_last")
keras.utils.set_random_seed(1338)
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2d_1"),
        keras.layers.Conv2D(32, 3, activation="relu", name="conv2d_2"),
        keras.layers.MaxPooling2D(2, name="pool_1"),
        keras.layers.Dropout(0.25, name="dropout_1"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv2d_3"),
        keras.layers.Conv2D(64, 3, activation="relu", name="conv2d_4"),
        keras.layers.MaxPooling2D(2, name="pool_2"),
        keras.layers.Dropout(0.25, name="dropout_2"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(512, activation="relu", name="dense_1"),
        keras.layers.Dropout(0.5, name="dropout_3"),
        keras.layers.Dense(10, activation="softmax", name="dense_2"),
    ]
)
layers = convscope.describe(model).layers
[layer.name for layer in layers]

# %% [markdown] tags=["task"]
# ### Task 6.1
#
# Which shape comes out of each layer? The input is 28×28×1. Write tuples, without the batch axis.

# %% [markdown] tags=["hint"]
# `"same"` keeps height and width, `"valid"` (the default) takes one pixel from each side for a 3×3 kernel.
# A pool of 2 halves them and rounds down.

# %% tags=["answer"]
shapes = {
    "conv2d_1": (28, 28, 32),  # SOLUTION
    "conv2d_2": (26, 26, 32),  # SOLUTION
    "pool_1": (13, 13, 32),  # SOLUTION
    "dropout_1": (13, 13, 32),  # SOLUTION
    "conv2d_3": (13, 13, 64),  # SOLUTION
    "conv2d_4": (11, 11, 64),  # SOLUTION
    "pool_2": (5, 5, 64),  # SOLUTION
    "dropout_2": (5, 5, 64),  # SOLUTION
    "flatten": (1600,),  # SOLUTION
    "dense_1": (512,),  # SOLUTION
    "dropout_3": (512,),  # SOLUTION
    "dense_2": (10,),  # SOLUTION
}

# %% tags=["check"]
convscope.check("6.1")

# %% [markdown] tags=["task"]
# ### Task 6.2
#
# And how many parameters has each?

# %% [markdown] tags=["hint"]
# Kernel height times kernel width times input channels times filters, and a bias for each filter.

# %% tags=["answer"]
parameters = {
    "conv2d_1": 3 * 3 * 1 * 32 + 32,  # SOLUTION
    "conv2d_2": 3 * 3 * 32 * 32 + 32,  # SOLUTION
    "pool_1": 0,  # SOLUTION
    "dropout_1": 0,  # SOLUTION
    "conv2d_3": 3 * 3 * 32 * 64 + 64,  # SOLUTION
    "conv2d_4": 3 * 3 * 64 * 64 + 64,  # SOLUTION
    "pool_2": 0,  # SOLUTION
    "dropout_2": 0,  # SOLUTION
    "flatten": 0,  # SOLUTION
    "dense_1": 1600 * 512 + 512,  # SOLUTION
    "dropout_3": 0,  # SOLUTION
    "dense_2": 512 * 10 + 10,  # SOLUTION
}

# %% tags=["check"]
convscope.check("6.2")

# %% [markdown]
# ## How a kernel is laid out
#
# `get_weights()` gives a layer's weights: first the kernel, then the bias. Layers without weights give an
# empty list.

# %%
for layer in model.layers:
    print(f"{layer.name:10}", [weight.shape for weight in layer.get_weights()])

# %% [markdown]
# Keras keeps a convolution's kernel as (height, width, input channels, filters). PyTorch, and Theano before
# it, keep it as (filters, input channels, height, width).

# %%
keras_kernel = model.get_layer("conv2d_3").get_weights()[0]
keras_kernel.shape

# %% [markdown] tags=["task"]
# ### Task 6.3
#
# Bring `keras_kernel` into torch's layout and call it `torch_kernel`.

# %% [markdown] tags=["hint"]
# `transpose` takes the old axes in their new order. A right shape alone proves nothing: is `torch_kernel[f,
# c, i, j]` equal to `keras_kernel[i, j, c, f]`?

# %% [markdown] tags=["hint"]
# Number the old axes: height 0, width 1, input channels 2, filters 3. In which order does torch want them?

# %% tags=["answer"]
# BEGIN SOLUTION
torch_kernel = keras_kernel.transpose(3, 2, 0, 1)  # (h, w, in, out) → (out, in, h, w)
# END SOLUTION

# %% tags=["check"]
convscope.check("6.3")

# %% [markdown]
# ## One activation by hand
#
# The first layer, `conv2d_1`, on one image: its kernel, its bias, and what the network itself computes.

# %%
image = x_test[0]  # (28, 28, 1)
kernel, bias = model.get_layer("conv2d_1").get_weights()
feature_maps = keras.ops.convert_to_numpy(model.get_layer("conv2d_1")(image[np.newaxis]))[0]  # (28, 28, 32)
print("image", image.shape, "kernel", kernel.shape, "bias", bias.shape, "feature maps", feature_maps.shape)

figure, axes = plt.subplots(1, 5, figsize=(10, 2.3))
axes[0].imshow(image[..., 0], cmap="gray")
axes[0].set_title("image")
for number, axis in enumerate(axes[1:]):
    axis.imshow(feature_maps[..., number], cmap="gray")
    axis.set_title(f"filter {number}")
for axis in axes:
    axis.axis("off")

# %% [markdown] tags=["task"]
# ### Task 6.4
#
# Write a function `activation(image, kernel, bias, row, column, filter)` that computes one of these
# numbers, equal to the network's own to five decimal places: at every row and column, the edges and corners
# too, where zeros are put around the image.

# %% [markdown] tags=["hint"]
# The patch under the kernel, times the kernel of this filter, added up, plus the bias of this filter. And
# then the layer has an activation. `np.pad` puts zeros around an array.

# %% [markdown] tags=["hint"]
# With a border of one zero on each side (`np.pad(image, ((1, 1), (1, 1), (0, 0)))`, not along the channels),
# the patch around `row` and `column` begins in the padded image at just `row` and `column`. The kernel of
# one filter is `kernel[..., filter]`.


# %% tags=["answer"]
def activation(image, kernel, bias, row, column, filter):
    """Return the number that the first layer gives at a row and column for one filter."""
    # BEGIN SOLUTION
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))  # (30, 30, 1)
    patch = padded[row : row + 3, column : column + 3]  # (3, 3, 1), its middle at (row, column)
    total = (patch * kernel[..., filter]).sum() + bias[filter]
    return max(total, 0.0)
    # END SOLUTION


# %% tags=["check"]
convscope.check("6.4")

# %% [markdown]
# The arithmetic, with the numbers in it (this cell waits for task 6.4):

# %%
if convscope.check("6.4"):
    row, column, filter = np.unravel_index(feature_maps[1:-1, 1:-1].argmax(), (26, 26, 32))
    row, column = row + 1, column + 1
    with np.printoptions(precision=3, suppress=True):
        print(f"patch around row {row}, column {column}:")
        print(image[row - 1 : row + 2, column - 1 : column + 2, 0])
        print(f"kernel of filter {filter}:\n{kernel[:, :, 0, filter]}")
    print(f"by hand:     {activation(image, kernel, bias, row, column, filter):.6f}")
    print(f"the network: {feature_maps[row, column, filter]:.6f}")
