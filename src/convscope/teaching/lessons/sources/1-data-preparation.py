# %% [markdown]
# # 1 Data preparation
#
# A convolutional network takes numbers of a certain type, range and shape. This lesson brings 28×28 images
# of handwritten digits into that form:
#
# 1. split the training images: 70 % to train on, 30 % to validate with,
# 2. convert the pixels to `float32` and scale them to the range from 0 to 1,
# 3. add a channel axis,
# 4. turn each label into a one-hot row.
#
# Every task ends with a check. It looks at what your variables are, not at how you made them, and it gives
# another hint each time you run it.

# %%
import convscope
from convscope import lessons

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

# %% [markdown]
# ## The images
#
# `load_data` gives MNIST: 60,000 training and 10,000 test images. Where MNIST cannot be had, it gives
# scikit-learn's digits instead, 1,797 of them. All that follows works with both.

# %%
data = lessons.load_data()
print(f"{data.name}: {len(data.train):,} training images, {len(data.test):,} test images")

# %%
images = data.train.images[..., 0]  # (n, 28, 28): grey images, a number for each pixel
labels = data.train.labels  # (n,): which digit it is
test_images = data.test.images[..., 0]
test_labels = data.test.labels

print("images:", images.shape, images.dtype, "from", images.min(), "to", images.max())
print("labels:", labels.shape, labels.dtype, "the first ten:", labels[:10])

# %%
figure, axes = plt.subplots(2, 8, figsize=(9, 2.8))
for axis, image, label in zip(axes.flat, images, labels, strict=False):
    axis.imshow(image, cmap="gray")
    axis.set_title(f"label {label}", fontsize=9)
    axis.axis("off")

# %% [markdown]
# How many are there of each digit?

# %%
digits, counts = np.unique(labels, return_counts=True)
figure, axis = plt.subplots(figsize=(6, 2.6))
axis.bar(digits, counts, color="#0072B2")
axis.set(title=f"Training images of {data.name}", xlabel="digit", ylabel="images", xticks=digits)
plt.show()

# %% [markdown]
# ## A split before anything else
#
# Three sets of images, three uses:
#
# * **training** images change the weights,
# * **validation** images tell you how the training goes, and which network is best,
# * **test** images answer one question, once, at the very end.
#
# As soon as an image has been used to choose or to fit something, it can no longer tell how the network
# does on images that are new to it. That is why the split comes first, before the scaling.

# %% [markdown] tags=["task"]
# ### Task 1.1
#
# Split `images` and `labels` at random into 70 % for training (`images_train`, `labels_train`) and 30 % for
# validation (`images_val`, `labels_val`). Use a fixed seed, so that you get the same split each time.

# %% [markdown] tags=["hint"]
# `train_test_split` of scikit-learn takes several arrays of the same length, shuffles them together and
# cuts each in two. Its arguments `test_size`, `random_state` and `stratify` are worth a look.

# %% [markdown] tags=["hint"]
# Two arrays go in, four come out: the first array's two parts, then the second array's two parts.
#
#     images_train, images_val, labels_train, labels_val = train_test_split(images, labels, …)

# %% tags=["answer"]
# BEGIN SOLUTION
images_train, images_val, labels_train, labels_val = train_test_split(
    images, labels, test_size=0.3, random_state=1338, stratify=labels
)
# END SOLUTION

# %% tags=["check"]
convscope.check("1.1")

# %% [markdown]
# ## Scaling
#
# The pixels are whole numbers from 0 to 255. Training works best with small numbers of about the same size.
# `MinMaxScaler` learns the smallest and the largest value of every column of a table, and brings this range
# to 0 … 1. Our columns are pixels, and a row is an image: 28·28 = 784 numbers.
#
# What the scaler learns, it must learn **from the training images only**. Validation and test images are
# then transformed with what it learned.

# %% [markdown] tags=["task"]
# ### Task 1.2
#
# Make a `MinMaxScaler` called `scaler`, fit it on the training images, and use it to make `scaled_train`,
# `scaled_val` and `scaled_test` of `images_train`, `images_val` and `test_images`: `float32`, with the
# shape that the images had before, `(n, 28, 28)`.

# %% [markdown] tags=["hint"]
# For each part: `reshape` to a table with 784 columns, `astype("float32")`, then `fit_transform` or
# `transform`, then `reshape` back. Which of the three parts needs `fit_transform`?

# %% [markdown] tags=["hint"]
# The training images, step by step; for the two other parts, `transform` takes the place of `fit_transform`:
#
#     table = images_train.reshape(len(images_train), 784).astype("float32")
#     scaled_train = scaler.fit_transform(table).reshape(images_train.shape)


# %% tags=["answer"]
# BEGIN SOLUTION
def as_table(pictures):
    return pictures.reshape(len(pictures), 28 * 28).astype("float32")


scaler = MinMaxScaler(feature_range=(0, 1))
scaled_train = scaler.fit_transform(as_table(images_train)).reshape(images_train.shape)
scaled_val = scaler.transform(as_table(images_val)).reshape(images_val.shape)
scaled_test = scaler.transform(as_table(test_images)).reshape(test_images.shape)
# END SOLUTION

# %% tags=["check"]
convscope.check("1.2")

# %% [markdown] tags=["remark"]
# A pixel at the border may be black in every training image. The scaler cannot know a range for it, and
# leaves its values as they are: a speck there in a test image stays as large as 255.
# `convscope.Preprocess`, which the next lessons use, cuts such values off at 1.

# %% [markdown]
# ## The channel axis
#
# A colour image has three numbers for each pixel: red, green, blue. These are its channels. A grey image
# has one, but the axis must be there nonetheless. Whether it comes last, `(28, 28, 1)`, or first, `(1, 28,
# 28)`, is a setting of Keras:

# %%
data_format = keras.config.image_data_format()
data_format

# %% [markdown] tags=["task"]
# ### Task 1.3
#
# Set `input_shape` to the shape of one image with its channel axis, as `data_format` wants it. Then make
# `x_train`, `x_val` and `x_test` of the scaled images: the same numbers with that shape.

# %% [markdown] tags=["hint"]
# `(len(scaled_train), *input_shape)` is the shape of all training images together. An axis of length 1 can
# be added with `reshape`: it moves no pixel.

# %% tags=["answer"]
# BEGIN SOLUTION
input_shape = (28, 28, 1) if data_format == "channels_last" else (1, 28, 28)
x_train = scaled_train.reshape((len(scaled_train), *input_shape))
x_val = scaled_val.reshape((len(scaled_val), *input_shape))
x_test = scaled_test.reshape((len(scaled_test), *input_shape))
# END SOLUTION

# %% tags=["check"]
convscope.check("1.3")

# %% [markdown]
# ## Targets
#
# The network will have ten outputs, one probability for each digit. So the target of a 3 is a row of ten
# numbers as well: a 1 at place 3, and 0 elsewhere. This is called one-hot.

# %% [markdown] tags=["task"]
# ### Task 1.4
#
# Make the one-hot targets `y_train`, `y_val` and `y_test` of `labels_train`, `labels_val` and
# `test_labels`.

# %% [markdown] tags=["hint"]
# `keras.utils.to_categorical` does it. With NumPy alone: which row of `np.eye(10)` belongs to a 3?

# %% tags=["answer"]
# BEGIN SOLUTION
y_train = keras.utils.to_categorical(labels_train, 10)
y_val = keras.utils.to_categorical(labels_val, 10)
y_test = keras.utils.to_categorical(test_labels, 10)
# END SOLUTION

# %% tags=["check"]
convscope.check("1.4")

# %% [markdown]
# ## In short
#
# `convscope.Preprocess` does all of this for images in one object, which is fitted once, on the training
# images, and then frozen (this cell waits for task 1.1):

# %%
if convscope.check("1.1"):
    preprocess = convscope.Preprocess.fit(images_train[..., np.newaxis])
    for step in preprocess.describe():
        print(step)

# %% [markdown]
# It travels with a trained network, so that images are prepared in the same way for training, for
# validation and years later for prediction. The next lessons begin with it.
