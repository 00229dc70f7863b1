"""The whole public path in seconds: load → prepare → build → fit → evaluate → plot."""

import keras

import convscope
from convscope.preprocessing import one_hot


def test_the_whole_path():
    digits = convscope.load("digits")
    preprocess = convscope.Preprocess.fit(digits.train.images)
    keras.utils.set_random_seed(0)
    model = convscope.build("simple", digits.input_shape, len(digits.class_names))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    history = convscope.fit(
        model,
        preprocess.apply(digits.train.images),
        one_hot(digits.train.labels, 10),
        validation_split=0.3,
        batch_size=32,
        epochs=4,
        seed=0,
        verbose=0,
    )
    assessment = convscope.evaluate(model, digits.test.images, digits.test.labels, preprocess=preprocess)
    assert assessment.evaluation.accuracy > 0.9
    assert history.history["val_accuracy"][-1] > 0.8
    assert convscope.plot_history(history).axes
    assert set(assessment.figures) == {"probability", "confusion_matrix", "worst_errors", "predictions"}
    assert "data:image/png;base64," in assessment._repr_html_()
