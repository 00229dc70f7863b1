"""Predict the images of a folder or of object storage on all machines of a Ray cluster.

    python examples/ray_predict.py EXPORT s3://bucket/images s3://bucket/predictions --workers 64

EXPORT is a run, or a folder that ``convscope export`` wrote, at a path that every machine sees. What is
written are Parquet files with the columns and values of ``convscope predict EXPORT FOLDER --out T.parquet``,
a row for each image. Without a cluster (RAY_ADDRESS) Ray starts one on this machine, and ends it.
"""

from __future__ import annotations

import argparse

import pyarrow
import ray

from convscope import load_bundle
from convscope.batch_prediction import predict_to_arrow
from convscope.data.decode import SUFFIXES

BATCH = 64  # images that a worker decodes and predicts at a time


class Predictor:
    """A worker: it loads the network once."""

    def __init__(self, network: str) -> None:
        self.bundle = load_bundle(network)

    def __call__(self, files: pyarrow.Table) -> pyarrow.Table:
        """Predict files, given by their path and bytes."""
        names, contents = files["path"].to_pylist(), files["bytes"].to_pylist()
        return predict_to_arrow(self.bundle, zip(names, contents, strict=True))


def predict(network: str, images: str, out: str, workers: int) -> None:
    """Read images, predict them by so many workers, and write the rows as they come."""
    endings = [ending.removeprefix(".") for ending in SUFFIXES]
    files = ray.data.read_binary_files(images, include_paths=True, file_extensions=endings)
    rows = files.map_batches(
        Predictor,
        fn_constructor_args=(network,),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    rows.write_parquet(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", help="a run, or a folder that convscope export wrote")
    parser.add_argument("images", help="a folder, s3://…, gs://…")
    parser.add_argument("out", help="a new folder for the Parquet files, also s3://…, gs://…")
    parser.add_argument("--workers", type=int, default=1, help="each takes a core; reading needs one, too")
    given = parser.parse_args()
    ray.init(include_dashboard=False)
    try:
        predict(given.network, given.images, given.out, given.workers)
    finally:
        ray.shutdown()
