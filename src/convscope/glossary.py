"""Words that a newcomer may not know, each in one sentence; the product's texts take them from here."""

from __future__ import annotations

GLOSSARY = {
    "AUROC": "how often a known image scores higher than an unknown one; 1 is always, 0.5 is guessing.",
    "average precision": "the area under the curve of precision over recall; 1 is perfect.",
    "balanced accuracy": "the mean of the accuracies of all classes, so that each class counts the same.",
    "bfloat16": "numbers of 16 bits, half of the usual 32: faster to compute with, and less exact.",
    "Brier score": "the squared distance between the probabilities and the truth, averaged over the images; "
    "0 is perfect, 2 is certain and always wrong.",
    "calibration": "whether probabilities mean what they say: of answers given with 80 %, 80 % are right.",
    "Cohen's kappa": "how far predictions and labels agree beyond chance; 1 is fully, 0 is not at all.",
    "crop": "fill the frame with the middle of the image and cut off what stands over.",
    "cross-entropy": "the loss of a classifier: minus the logarithm of the probability of the true class, "
    "averaged over the images.",
    "expected calibration error": "how far stated probabilities and real accuracy lie apart on average; "
    "0 % is perfect.",
    "F1": "one number for precision and recall (their harmonic mean); 1 is perfect.",
    "fingerprint": "a checksum (SHA-256) of pixels, labels and class names: the same for the same data.",
    "interval": "where the accuracy on many more such images lies; 95 of 100 such intervals are right.",
    "letterbox": "keep the whole image and its proportions, and fill the rest of the frame with black.",
    "log loss": "cross-entropy that does not forgive an answer that was certain and wrong.",
    "nats": "the unit of a cross-entropy that is computed with natural logarithms; "
    "exp(−loss) is the typical probability of the true class.",
    "precision": "of the images predicted as a class, the share that is of it.",
    "recall": "of the images of a class, the share that is predicted as such.",
    "ROC area": "how often an image of a class scores higher for it than another image; 0.5 is guessing.",
    "stretch": "bring the image to the frame's height and width, whatever becomes of its proportions.",
    "temperature": "the number by which a network's outputs are divided before softmax, "
    "so that its probabilities are calibrated.",
}


def explain(*words: str) -> list[str]:
    """Give a line for each word: the word, a colon, its sentence."""
    return [f"{word}: {GLOSSARY[word]}" for word in words]
