"""How far two seeds of the same network differ: train each network with many seeds and compare all pairs.

    python benchmarks/seed_pairs.py OUT.npz --networks simple=10 deep=4 --seeds 14

The seed decides the split, the first weights and the order, as in any run. The file holds, for each network,
which test images each seed got right, as packed bits.
"""

import argparse
import itertools
import time

import numpy as np

import convscope
from convscope.data.dataset import split_indices
from convscope.evaluation.comparison import mcnemar_exact, mcnemar_with_training
from convscope.preprocessing import Preprocess, one_hot


def train(network, epochs, seed, dataset):
    """Train one network as a run does and say which test images it gets right."""
    import keras  # after convscope, which chooses its back end

    chosen, _ = split_indices(dataset.train.labels, 0.3, seed)
    part = dataset.train.take(chosen)
    preprocess = Preprocess.fit(part.images, "minmax")
    keras.utils.set_random_seed(seed)
    model = convscope.build(network, part.images.shape[1:], len(dataset.class_names))
    model.compile(optimizer="adam", loss="categorical_crossentropy")
    targets = one_hot(part.labels, len(dataset.class_names))
    convscope.fit(
        model,
        part.images,
        targets,
        128,
        epochs,
        verbose=0,
        seed=seed,
        preprocess=preprocess,
        deterministic=True,
    )
    probabilities = convscope.predict(model, dataset.test.images, preprocess=preprocess)
    return probabilities.argmax(axis=1) == dataset.test.labels


def compare_pairs(right):
    """Print how often two seeds would be told apart."""
    pairs = list(itertools.combinations(right, 2))
    counts = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in pairs]
    z = np.array([(b - a) / np.sqrt(max(1, a + b)) for a, b in counts])
    exact = np.array([mcnemar_exact(*count) for count in counts])
    allowed = np.array([mcnemar_with_training(*count, right.shape[1]) for count in counts])
    accuracy = right.mean(axis=1)
    mean, spread = accuracy.mean(), accuracy.std(ddof=1)
    size = np.sqrt((z**2).mean())
    alone, both = (exact < 0.05).mean(), (np.maximum(exact, allowed) < 0.05).mean()
    print(
        f"{len(right)} seeds: accuracy {mean:.4f} ± {spread:.4f}; {len(pairs)} pairs,"
        f" root mean square of McNemar's z {size:.2f}; told apart by McNemar's test {alone:.1%},"
        f" with the allowance {both:.1%}",
        flush=True,
    )


def main():
    """Train, print a line for each network, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--networks", nargs="+", default=["simple=10", "deep=4"])
    parser.add_argument("--seeds", type=int, default=14)
    parser.add_argument("--data", default="mnist")
    options = parser.parse_args()
    dataset = convscope.load(options.data)
    results = {}
    for name, epochs in (pair.split("=") for pair in options.networks):
        start, rows = time.perf_counter(), []
        for seed in range(options.seeds):
            rows.append(train(name, int(epochs), seed, dataset))
            print(name, seed, rows[-1].mean(), f"{time.perf_counter() - start:.0f} s", flush=True)
            results[name] = np.packbits(np.array(rows), axis=1)
            np.savez_compressed(options.out, images=len(dataset.test.labels), **results)
        compare_pairs(np.array(rows))


if __name__ == "__main__":
    main()
