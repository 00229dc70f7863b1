# %% [markdown]
# # 4 Dense layers and dropout
#
# The network of lesson 2 goes straight from the features of its convolution to the ten digits. A dense
# layer in between can combine features first. It brings 2.8 million parameters, enough to learn 42,000
# images by heart: **dropout** makes that harder.

# %%
import convscope
from convscope import lessons

import keras
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
# ### Task 4.1
#
# Build `model` from the network of lesson 2 (a convolution with 32 filters of 3×3, no padding and ReLU;
# flatten; ten outputs with softmax) with three layers more:
#
# * dropout of 25 % before the flatten layer,
# * a dense layer with 128 units and ReLU behind the flatten layer,
# * dropout of 50 % between the two dense layers.

# %% [markdown] tags=["hint"]
# Six layers behind the input. `keras.layers.Dropout(rate)`: the rate is the share that is set to zero.

# %% tags=["answer"]
# BEGIN SOLUTION
keras.utils.set_random_seed(1338)
model = keras.Sequential(
    [
        keras.Input(x_train.shape[1:]),
        keras.layers.Conv2D(32, kernel_size=3, activation="relu"),
        keras.layers.Dropout(0.25),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
# END SOLUTION

# %% tags=["check"]
convscope.check("4.1")

# %% [markdown] tags=["task"]
# ### Task 4.2
#
# Compile and train it as in lesson 2: `"adam"`, `"categorical_crossentropy"`, `"accuracy"`; `EPOCHS` epochs
# in batches of `BATCH_SIZE`, with the validation images. Keep the `history` and draw it.

# %% [markdown] tags=["hint"]
# `convscope.fit` and `convscope.plot_history`. While it trains: why may the validation accuracy be higher
# than the training accuracy in the first epochs?

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
convscope.check("4.2")

# %% [markdown] tags=["remark"]
# In training, dropout takes away half of the features; at validation all are there. And the training
# accuracy is a mean over the epoch, while the network gets better in its course; validation comes at the
# epoch's end.

# %% [markdown]
# ## What dropout does
#
# An experiment: a large array of ones goes through a dropout layer.

# %%
rate = 0.25
dropout = keras.layers.Dropout(rate, seed=1338)
ones = np.ones((1000, 100), "float32")

# %% [markdown] tags=["task"]
# ### Task 4.3
#
# Send `ones` through `dropout` as in training, and call the result, as a NumPy array, `dropped`. Then:
#
# * `share_of_zeros`: which share of its numbers is 0?
# * `kept_value`: which value do the others have?
#
# What is the mean of `dropped`, and why is that useful when the network predicts without dropout?

# %% [markdown] tags=["hint"]
# A layer can be called like a function. `training=True` tells it that this is training, and
# `keras.ops.convert_to_numpy` makes a NumPy array of the result.

# %% tags=["answer"]
# BEGIN SOLUTION
dropped = keras.ops.convert_to_numpy(dropout(ones, training=True))
share_of_zeros = np.mean(dropped == 0)
kept_value = dropped.max()
print("mean", dropped.mean())
# END SOLUTION

# %% tags=["check"]
convscope.check("4.3")

# %% [markdown]
# ## Where the parameters are
#
# The layers of the network that you built, with the shapes that go in and come out:

# %%
layers = convscope.describe(convscope.build("dense", (28, 28, 1), classes=10)).layers
for layer in layers:
    print(f"{layer.name:10} {layer.type:8} {layer.input_shape!s:14} → {layer.output_shape}")

# %% [markdown] tags=["task"]
# ### Task 4.4
#
# How many parameters has each of them? Together they must be 2,770,634.

# %% [markdown] tags=["hint"]
# A dense layer has a weight for each pair of input and unit, and a bias for each unit. How many numbers
# does the flatten layer hand over?

# %% tags=["answer"]
parameters = {
    "conv2d_1": 3 * 3 * 1 * 32 + 32,  # SOLUTION
    "dropout_1": 0,  # SOLUTION
    "flatten_1": 0,  # SOLUTION
    "dense_1": 26 * 26 * 32 * 128 + 128,  # SOLUTION
    "dropout_2": 0,  # SOLUTION
    "dense_2": 128 * 10 + 10,  # SOLUTION
}

# %% tags=["check"]
convscope.check("4.4")

# %% [markdown]
# Nearly all of them sit in one layer, the first dense one, because 21,632 features go in. The next lesson
# makes that number smaller, and the network better.
#
# ## The test set
#
# How good is the network on images that nobody has looked at? (This cell waits for task 4.2.)

# %%
if convscope.check("4.2"):
    print(convscope.evaluate(model, data.test.images, data.test.labels, preprocess=preprocess))
