# %% [markdown]
# # 3 Evaluation
#
# How good is a network? One number is not enough: which digits does it confuse, how wrong is it where it is
# wrong, and how sure is the number itself? In this lesson you compute all of it from two arrays, the
# predicted probabilities and the true labels.

# %%
import convscope
from convscope import lessons

import keras
import numpy as np
from sklearn.model_selection import train_test_split

# %% [markdown]
# The data of lesson 1 and the network of lesson 2, trained again:

# %%
data = lessons.load_data()
images_train, images_val, labels_train, labels_val = train_test_split(
    data.train.images, data.train.labels, test_size=0.3, random_state=1338, stratify=data.train.labels
)
test_labels = data.test.labels
preprocess = convscope.Preprocess.fit(images_train, data_format=keras.config.image_data_format())
x_train = preprocess.apply(images_train)
x_val = preprocess.apply(images_val)
x_test = preprocess.apply(data.test.images)

y_train = keras.utils.to_categorical(labels_train, 10)
y_val = keras.utils.to_categorical(labels_val, 10)
y_test = keras.utils.to_categorical(test_labels, 10)

# %%
keras.utils.set_random_seed(1338)
model = convscope.build("simple", x_train.shape[1:], classes=10)
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

# %% [markdown] tags=["task"]
# ### Task 3.1
#
# Predict the test images:
#
# * `probabilities`: a row of ten probabilities for each test image, from `convscope.predict`,
# * `predicted`: the digit with the largest probability in each row,
# * `accuracy`: the share of test images for which it is the true one.

# %% [markdown] tags=["hint"]
# `argmax` gives the place of the largest number along an axis. `a == b` compares two arrays place by place;
# the mean of the result is a share.

# %% tags=["answer"]
# BEGIN SOLUTION
probabilities = convscope.predict(model, x_test)
predicted = probabilities.argmax(axis=1)
accuracy = np.mean(predicted == test_labels)
# END SOLUTION

# %% tags=["check"]
convscope.check("3.1")

# %% [markdown] tags=["task"]
# ### Task 3.2
#
# Make the confusion matrix `confusion`: a table of 10×10 counts. Row *i*, column *j* says how many images
# of digit *i* were taken for digit *j*. Draw it with `convscope.plot_confusion_matrix(confusion,
# data.class_names)`.

# %% [markdown] tags=["hint"]
# scikit-learn has a function for it; mind the order of its two arguments. With NumPy: begin with a table of
# zeros, go through the images, and add 1 at the right place.

# %% [markdown] tags=["hint"]
# `for true, taken in zip(test_labels, predicted): …` goes through the images. What belongs into the body of
# the loop?

# %% tags=["answer"]
# BEGIN SOLUTION
confusion = np.zeros((10, 10), int)
np.add.at(confusion, (test_labels, predicted), 1)
convscope.plot_confusion_matrix(confusion, data.class_names)
# END SOLUTION

# %% tags=["check"]
convscope.check("3.2")

# %% [markdown] tags=["task"]
# ### Task 3.3
#
# The training made the **loss** small, not the accuracy large. For one image the categorical cross-entropy
# is −ln *p*, where *p* is the probability that the network gave to the true digit. Compute the mean over
# all test images as `loss`.

# %% [markdown] tags=["hint"]
# Which of the ten numbers in a row is *p*? `probabilities[np.arange(n), test_labels]` takes from each row
# the entry at its label.

# %% [markdown] tags=["hint"]
# `np.log` is the natural logarithm; it works on a whole array. The minus sign, and the mean.

# %% tags=["answer"]
# BEGIN SOLUTION
true_probability = probabilities[np.arange(len(test_labels)), test_labels]
loss = -np.log(true_probability).mean()
# END SOLUTION

# %% tags=["check"]
convscope.check("3.3")

# %% [markdown] tags=["task"]
# ### Task 3.4
#
# The errors that tell most are those where the network was sure and wrong. For each image take the gap
# between the largest probability and that of the true digit; it is 0 where the prediction is right. Find
# the six test images with the largest gap: their numbers in the test set as `worst`, the worst first.
#
# Then look at them: `convscope.plot_errors(data.test.images, test_labels, probabilities)`. Would you have
# known?

# %% [markdown] tags=["hint"]
# Compute the gap for all test images, not for the errors only: then places in the array are numbers in the
# test set. `probabilities.max(axis=1)` is the largest of each row; the other number you know from task 3.3.

# %% [markdown] tags=["hint"]
# `np.argsort` gives the places in the order of their values, the smallest first. Sort `-gap`, and take the
# first six.

# %% tags=["answer"]
# BEGIN SOLUTION
gap = probabilities.max(axis=1) - true_probability
worst = np.argsort(-gap, kind="stable")[:6]
convscope.plot_errors(data.test.images, test_labels, probabilities)
# END SOLUTION

# %% tags=["check"]
convscope.check("3.4")

# %% [markdown]
# ## How sure is the number?
#
# With other test images the accuracy would be a little different. If the true share is *p*, then the share
# among *n* images scatters around it with a standard error of √(*p*(1 − *p*)/*n*), and lies within 1.96
# standard errors of it in 95 of 100 cases.

# %% [markdown] tags=["task"]
# ### Task 3.5
#
# Compute the 95 % interval of your accuracy: `interval = (low, high)`.

# %% [markdown] tags=["hint"]
# `accuracy` stands for *p*, and *n* is the number of test images. First the standard error, with `np.sqrt`;
# then 1.96 of them down and up. (Near 100 % Wilson's formula is the better one; the check accepts both.)

# %% tags=["answer"]
# BEGIN SOLUTION
error = np.sqrt(accuracy * (1 - accuracy) / len(test_labels))
interval = (accuracy - 1.96 * error, accuracy + 1.96 * error)
# END SOLUTION

# %% tags=["check"]
convscope.check("3.5")

# %% [markdown] tags=["task"]
# ### Task 3.6
#
# Write a function `evaluate(x, y)` that takes network input and one-hot targets, and returns the loss and
# the accuracy of `model` on them, in this order.

# %% [markdown] tags=["hint"]
# Inside the function use its arguments only, beside `model`. From one-hot rows to labels: `argmax` again.


# %% tags=["answer"]
def evaluate(x, y):
    """Return the loss and the accuracy of the model on network input x with one-hot targets y."""
    # BEGIN SOLUTION
    probabilities = convscope.predict(model, x)
    labels = y.argmax(axis=1)
    true_probability = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.clip(true_probability, 1e-7, 1)).mean()
    accuracy = np.mean(probabilities.argmax(axis=1) == labels)
    return loss, accuracy
    # END SOLUTION


# %% tags=["check"]
convscope.check("3.6")

# %% [markdown]
# ## All of it at once
#
# `convscope.evaluate` computes these numbers and more, and draws the figures: how probable the network finds
# a zero, for true zeros and for the others; the confusion matrix; the worst errors; the first predictions.
#
# In the table, **precision** is the share of right ones among the images that were taken for this digit, and
# **recall** the share of this digit's images that were found. `support` counts its images.

# %%
assessment = convscope.evaluate(model, data.test.images, test_labels, data.class_names, preprocess=preprocess)
assessment
