# %% [markdown]
# # 7 Your own digits
#
# A network with 99 % on the test set meets the digits that you write yourself. Draw some in a paint
# program, or write them on paper and photograph them, one digit in each picture. Put the pictures into a
# folder `my-digits` beside this notebook; each name begins with the digit: `3.png`, `7-with-a-dash.jpg`.
#
# Until you have some, this lesson makes photographs of test images: dark ink on light, uneven paper,
# anywhere in the picture.

# %%
import convscope
from convscope import lessons

import keras
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

# %% [markdown]
# First a network, the best one of the exercise:

# %%
data = lessons.load_data()
images_train, images_val, labels_train, labels_val = train_test_split(
    data.train.images, data.train.labels, test_size=0.3, random_state=1338, stratify=data.train.labels
)
data_format = keras.config.image_data_format()
preprocess = convscope.Preprocess.fit(images_train, data_format=data_format)
x_train = preprocess.apply(images_train)
x_val = preprocess.apply(images_val)
x_test = preprocess.apply(data.test.images)

y_train = keras.utils.to_categorical(labels_train, 10)
y_val = keras.utils.to_categorical(labels_val, 10)
y_test = keras.utils.to_categorical(data.test.labels, 10)

# %%
keras.utils.set_random_seed(1338)
model = convscope.build("deep", x_train.shape[1:], classes=10)
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
history = convscope.fit(
    model,
    x_train,
    y_train,
    batch_size=128,
    epochs=lessons.epochs(data),
    validation_data=(x_val, y_val),
    seed=1338,
)

# %% [markdown]
# ## The pictures
#
# `pictures` is a list of grey pictures of any size, `digits` the true digit of each.

# %%
pictures, digits = lessons.read_pictures("my-digits")
if not pictures:
    pictures, digits = lessons.make_photographs(data, count=100)
print(len(pictures), "pictures; the first has shape", pictures[0].shape, pictures[0].dtype)


# %%
def show(row_of_images, titles):
    """Draw up to eight images side by side."""
    _, axes = plt.subplots(1, 8, figsize=(11, 1.9))
    for axis in axes:
        axis.axis("off")
    for axis, image, title in zip(axes, row_of_images, titles, strict=False):
        axis.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=10)


show(pictures, [f"a {digit}" for digit in digits])

# %% [markdown]
# `preprocess.apply` brings a picture of any size to 28×28 pixels. Is that enough?

# %%
x_raw = preprocess.apply([picture[..., np.newaxis] for picture in pictures])
predicted = convscope.predict(model, x_raw).argmax(axis=1)
print(f"right: {np.mean(predicted == digits):.1%}")
show(255 * x_raw, [f"{digit} taken for {guess}" for digit, guess in zip(digits, predicted, strict=True)])

# %% [markdown]
# It is not. A network knows only what it has been shown. Its training images are bright on black, of one
# size, and in the middle:

# %%
show(images_train, [f"a {label}" for label in labels_train])

# How long is a digit in the training images, in pixels?
longest = []
for image in images_train[:500, :, :, 0]:
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    longest.append(max(np.ptp(rows), np.ptp(columns)) + 1)
BOX = int(np.median(longest))
print("longest side of a digit:", BOX, "pixels")

# %% [markdown] tags=["task"]
# ### Task 7.1
#
# Write a function `prepare(picture)` that makes a training-like image of a photograph: `picture` is grey,
# of type `uint8` and of any size, with dark ink on light paper. The result has shape (28, 28, 1) and type
# `uint8`, and
#
# * the ink is bright, the paper black, really 0,
# * the digit is cut out and scaled so that its longer side has `BOX` pixels, both directions alike,
# * its centre of mass, the mean position of its ink, lies in the middle of the image.

# %% [markdown] tags=["hint"]
# Ink and paper first: `255.0 - picture` turns light and dark round. Subtract the paper (what is the median
# of a picture that is mostly paper?), cut at 0, divide by the maximum, and set what is below a threshold to
# 0. Look at the result with `plt.imshow` before you go on.

# %% [markdown] tags=["hint"]
# Then the size: `np.flatnonzero(ink.any(axis=1))` lists the rows that have ink, `axis=0` the columns. Cut
# the digit out, and bring it to size with `Image.fromarray((255 * digit).astype(np.uint8))` and its method
# `resize((width, height))`, width first.

# %% [markdown] tags=["hint"]
# Last the place: the centre of mass in the vertical direction is the mean of the row numbers, each weighted
# with the ink in its row (`np.average(…, weights=…)`); the same for columns. Paste the digit into an image
# of zeros so that its centre of mass comes to 13.5, the middle of 28 pixels.


# %% tags=["answer"]
def prepare(picture):
    """Make a training-like image of a grey picture with dark ink on light paper."""
    # BEGIN SOLUTION
    ink = 255.0 - picture
    ink = np.clip(ink - np.median(ink), 0, None)  # the paper, whatever its brightness, becomes 0
    ink = ink / ink.max()
    ink[ink < 0.4] = 0  # shadows on the paper

    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    scale = BOX / max(digit.shape)
    height, width = (max(1, round(scale * side)) for side in digit.shape)
    small = np.asarray(Image.fromarray((255 * digit).astype(np.uint8)).resize((width, height)))

    down = np.average(np.arange(height), weights=small.sum(axis=1))
    across = np.average(np.arange(width), weights=small.sum(axis=0))
    top = int(np.clip(round(13.5 - down), 0, 28 - height))
    left = int(np.clip(round(13.5 - across), 0, 28 - width))
    result = np.zeros((28, 28, 1), np.uint8)
    result[top : top + height, left : left + width, 0] = small
    return result
    # END SOLUTION


# %% tags=["check"]
convscope.check("7.1")

# %% [markdown]
# What it makes of the pictures (this cell waits for task 7.1):

# %%
if convscope.check("7.1"):
    show([prepare(picture) for picture in pictures[:8]], [f"a {digit}" for digit in digits])

# %% [markdown] tags=["task"]
# ### Task 7.2
#
# Prepare all pictures, then scale them as the training images were, and predict. `accuracy_prepared` is the
# share that is right now.

# %% [markdown] tags=["hint"]
# `np.stack` makes one array of a list of images; `preprocess.apply` scales it.

# %% tags=["answer"]
# BEGIN SOLUTION
x_prepared = preprocess.apply(np.stack([prepare(picture) for picture in pictures]))
accuracy_prepared = np.mean(convscope.predict(model, x_prepared).argmax(axis=1) == digits)
# END SOLUTION

# %% tags=["check"]
convscope.check("7.2")

# %% [markdown]
# What is still wrong is worth a look: strokes that are thicker or thinner than those of the training
# images, a 7 with a dash where the training images have none, a 1 with a foot. (This cell waits for
# task 7.2.)

# %%
if convscope.check("7.2"):
    prepared = np.stack([prepare(picture) for picture in pictures])
    guesses = convscope.predict(model, preprocess.apply(prepared)).argmax(axis=1)
    wrong = np.flatnonzero(guesses != digits)
    print(f"still wrong: {len(wrong)} of {len(digits)}")
    show(prepared[wrong], [f"{digits[place]} taken for {guesses[place]}" for place in wrong])

# %% [markdown]
# ## What a shift costs
#
# Convolutions find a stroke wherever it is. The dense layer behind them does not: it has weights of its own
# for each place. How far may a digit be from the middle?

# %%
SHIFTS = list(range(0, 9, 2))
x_some, labels_some = x_test[:500], data.test.labels[:500]

# %% [markdown] tags=["task"]
# ### Task 7.3
#
# For each number of pixels in `SHIFTS`, shift all of `x_some` to the right by that many pixels, predict,
# and put the share of right predictions into the list `accuracy_by_shift`.

# %% [markdown] tags=["hint"]
# `np.roll(x_some, shift, axis=…)` shifts along an axis. Which one is the width? (The first axis counts the
# images.)

# %% tags=["answer"]
# BEGIN SOLUTION
width_axis = 2 if data_format == "channels_last" else 3
accuracy_by_shift = []
for shift in SHIFTS:
    shifted = np.roll(x_some, shift, axis=width_axis)
    accuracy_by_shift.append(np.mean(convscope.predict(model, shifted).argmax(axis=1) == labels_some))
# END SOLUTION

# %% tags=["check"]
convscope.check("7.3")

# %%
if convscope.check("7.3"):
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.plot(SHIFTS, 100 * np.array(accuracy_by_shift), marker="o", color="#0072B2")
    axis.set(
        title="Test images shifted to the right",
        xlabel="shift (pixels)",
        ylabel="accuracy (%)",
        xticks=SHIFTS,
        ylim=(0, 101),
    )

# %% [markdown]
# So there are two ways out: prepare what comes in so that it looks like the training images, as `prepare`
# does, or train with images that vary as those to come will: shifted, turned, thicker and thinner.
