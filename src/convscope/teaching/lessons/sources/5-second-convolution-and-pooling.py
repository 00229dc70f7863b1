# %% [markdown]
# # 5 A second convolution and pooling
#
# A second convolution works on the 32 feature maps of the first: it can combine edges into corners, arcs
# and crossings. **Max-pooling** then keeps the strongest answer of each 2×2 window and forgets where
# exactly in the window it was. A quarter of the numbers is left, so that the dense layer behind it needs a
# quarter of the weights.

# %%
import convscope
from convscope import lessons

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split

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

BATCH_SIZE = 128
EPOCHS = lessons.epochs(data)

# %% [markdown] tags=["task"]
# ### Task 5.1
#
# Write a function `max_pool(image, size)` with NumPy: `image` has shape (height, width, channels); the
# result has the largest value of each `size`×`size` window, for each channel alone. Windows do not overlap;
# rows and columns that are left over at the edge are dropped.

# %% [markdown] tags=["hint"]
# How many windows fit into a row? Two loops over the windows will do. `max(axis=(0, 1))` is the maximum
# over the rows and columns of a window, for each channel.

# %% [markdown] tags=["hint"]
# Make an empty result first: `np.empty((height // size, width // size, channels))`. The window at `row` and
# `column` of the result begins at `row * size` and `column * size` of the image, and is `size` long in both
# directions.


# %% tags=["answer"]
def max_pool(image, size):
    """Return the largest value of each window of size × size pixels, channel by channel."""
    # BEGIN SOLUTION
    height, width, channels = image.shape
    pooled = np.empty((height // size, width // size, channels), image.dtype)
    for row in range(height // size):
        for column in range(width // size):
            window = image[row * size : (row + 1) * size, column * size : (column + 1) * size]
            pooled[row, column] = window.max(axis=(0, 1))
    return pooled
    # END SOLUTION


# %% tags=["check"]
convscope.check("5.1")

# %% [markdown]
# What pooling keeps of an image (this cell waits for task 5.1):

# %%
if convscope.check("5.1"):
    image = data.test.images[0]
    figure, axes = plt.subplots(1, 3, figsize=(8, 3))
    for axis, size in zip(axes, (1, 2, 4), strict=True):
        pooled = max_pool(image, size)
        axis.imshow(pooled[..., 0], cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"windows of {size}×{size}: {pooled.shape[0]}×{pooled.shape[1]}", fontsize=10)
        axis.axis("off")

# %% [markdown] tags=["task"]
# ### Task 5.2
#
# Build `model`: the network of lesson 4 with two layers more, right behind the first convolution:
#
# * a second convolution with 64 filters of 3×3, no padding, ReLU,
# * max-pooling with windows of 2×2.
#
# Dropout (25 %), flatten, dense (128, ReLU), dropout (50 %) and the output follow as before. Before you
# look: will it have more parameters than the network of lesson 4, or fewer?

# %% [markdown] tags=["hint"]
# Eight layers behind the input, with 1,199,882 parameters. `model.summary()` shows what each has.

# %% tags=["answer"]
# BEGIN SOLUTION
keras.utils.set_random_seed(1338)
model = keras.Sequential(
    [
        keras.Input(x_train.shape[1:]),
        keras.layers.Conv2D(32, kernel_size=3, activation="relu"),
        keras.layers.Conv2D(64, kernel_size=3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Dropout(0.25),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
# END SOLUTION

# %% tags=["check"]
convscope.check("5.2")

# %% [markdown] tags=["task"]
# ### Task 5.3
#
# Compile and train it as before, keep the `history` and draw it.

# %% [markdown] tags=["hint"]
# `"adam"`, `"categorical_crossentropy"`, `["accuracy"]`; `EPOCHS`, `BATCH_SIZE`, `(x_val, y_val)`.

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
convscope.check("5.3")

# %% [markdown]
# ## The three networks
#
# The exercise that these lessons follow was published in 2018. After 10 epochs on MNIST it found:
#
# | network | parameters | test accuracy | test loss |
# | --- | --- | --- | --- |
# | lesson 2: one convolution | 216,650 | 98.05 % | 0.0656 |
# | lesson 4: dense layer and dropout | 2,770,634 | 98.43 % | 0.0484 |
# | lesson 5: two convolutions and pooling | 1,199,882 | 99.08 % | 0.0325 |
#
# And yours? (This cell waits for task 5.3.)

# %%
if convscope.check("5.3"):
    assessment = convscope.evaluate(
        model, data.test.images, data.test.labels, data.class_names, preprocess=preprocess
    )
    print(f"{data.name}, {EPOCHS} epochs: {assessment}")
    display(assessment.figures["confusion_matrix"], assessment.figures["worst_errors"])

# %% [markdown]
# With 10,000 test images a standard error at 99 % is 0.1 percentage points (lesson 3). Which of the
# differences in the table could be chance? `convscope exercise` trains all three networks for 10 epochs and
# puts your numbers beside these.
