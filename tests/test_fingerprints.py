"""Fingerprints of data sets stay what they were: runs that were recorded before compare by them."""

import csv
import json

import numpy as np
import pytest
from photographs import encoded
from PIL import Image

from convscope.data.loading import load

pytestmark = pytest.mark.usefixtures("own_cache")

RECORDED = {
    "folder": "5589575e7439c5f98ff54f8558c05e9337c7580195a118d0ff9dff4bb52faeae",
    "parts": "c01d88730345a3c234d4c1a4bcbd91bdbb9395c8d39309e82924fd0a302f159b",
    "paths": "5589575e7439c5f98ff54f8558c05e9337c7580195a118d0ff9dff4bb52faeae",
    "pixels": "ba905697d81e00d0389af096c2652c85bd52fdebaa3d9e98b91c623b378c89f0",
    "npz": "24f51eae8a411ce802f8a0d95f9b427d801356c187ca0ba752d3b4fb67014c51",
    "idx": "c5abbc7ac8bf1bf44cacc81f872188a097f93572149f64d1e1041b65181ec9b0",
    "parquet": "3206eb20c3c8e244289ac0702c68f8c33db0283bbf3caae2080d765ccb09a172",
    "digits": "6150525991c39b673ec1c2e877c21fdc5ca5dc5dc8372bc8e8f5ec038fe1bf24",
}


def images(count=12, side=8, channels=3):
    """Make images by a formula of whole numbers, the same with any version of NumPy."""
    numbers = np.arange(count * side * side * channels, dtype=np.uint64)
    return (
        (numbers * numbers * 2_654_435_761 >> 11 & 255).astype(np.uint8).reshape(count, side, side, channels)
    )


def folder(root, parts=("",)):
    """Write a folder for each class in each part; all images have one size, so that nothing is resampled."""
    for number, (part, image) in enumerate((part, image) for part in parts for image in images()):
        place = root / "photos" / part / ("cat", "dog", "Käse")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:02d}.png")
    return root / "photos"


def table_of_paths(root):
    paths = sorted(folder(root).rglob("*.png"))
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(path.relative_to(root).as_posix(), path.parent.name) for path in paths]
        csv.writer(file).writerows([("path", "label"), *rows])
    return root / "labels.csv"


def table_of_pixels(root):
    with (root / "pixels.csv").open("w", newline="") as file:
        rows = [[n % 3, *image.reshape(-1).tolist()] for n, image in enumerate(images(channels=1))]
        csv.writer(file).writerows([["label", *(f"p{n}" for n in range(64))], *rows])
    return root / "pixels.csv"


def npz(root):
    np.savez(
        root / "d.npz", x_train=images(), y_train=np.arange(12) % 3, x_test=images(6), y_test=np.arange(6) % 3
    )
    return root / "d.npz"


def idx(root):
    for part, count in (("train", 12), ("test", 6)):
        pixels, labels = images(count, channels=1), (np.arange(count) % 3).astype(np.uint8)
        shape = b"".join(side.to_bytes(4, "big") for side in pixels.shape[:3])
        (root / f"my-{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + shape + pixels.tobytes())
        head = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        (root / f"my-{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return root


def parquet(root):
    import pyarrow as pa
    from pyarrow import parquet as files

    rows = [{"bytes": encoded(image, "PNG"), "path": f"{n}.png"} for n, image in enumerate(images())]
    features = {"label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    content = pa.table({"image": rows, "label": [n % 3 for n in range(12)]})
    files.write_table(content.replace_schema_metadata(metadata), root / "d.parquet")
    return root / "d.parquet"


MAKERS = {
    "folder": folder,
    "parts": lambda root: folder(root, ("train", "val", "test")),
    "paths": table_of_paths,
    "pixels": table_of_pixels,
    "npz": npz,
    "idx": idx,
    "parquet": parquet,
    "digits": lambda _: "digits",
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_fingerprint_is_what_it_was(tmp_path, kind):
    assert load(MAKERS[kind](tmp_path)).fingerprint == RECORDED[kind]
