"""Many images in one file, and a training on them in a process of its own that counts its memory."""

import resource
import sys
import zipfile
from pathlib import Path

import numpy as np

import convscope  # it chooses Keras's back end, before Keras is imported


def write_npz(path, count, seed=0):
    """Write ``count`` noisy 32×32×3 images in two classes, never all in memory."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x_train.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 32, 32, 3)}
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, count, 1000):
                stream.write(rng.bytes(min(1000, count - start) * 3072))
        with archive.open("y_train.npy", "w") as stream:
            np.save(stream, np.arange(count) % 2)


def peak():
    """Peak resident memory in kB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the process that started this one, too
        lines = status.read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def train(path, steps):
    """Load, hold images back twice, fit the preprocessing, train some steps, predict the test part."""
    import keras

    from convscope.data.dataset import split_indices
    from convscope.preprocessing import one_hot

    before = peak()
    dataset = convscope.load(path)
    loaded = peak()
    first, _ = split_indices(dataset.train.labels, 0.1, 0, groups=dataset.train.groups)
    part = dataset.train.take(first)
    preprocess = convscope.Preprocess.fit(part.images, "standard")
    prepared = peak()
    layers = [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3, strides=4), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy")
    targets = one_hot(part.labels, 2)
    how = {"preprocess": preprocess, "batch_size": 256, "seed": 1, "verbose": 0}
    convscope.fit(model, part.images, targets, epochs=1, steps_per_epoch=steps, **how)
    convscope.predict(model, dataset.test.images, preprocess=preprocess)
    return len(part), before, loaded, prepared, peak()


if __name__ == "__main__":
    sys.stdout.write(" ".join(map(str, train(sys.argv[1], int(sys.argv[2])))))
