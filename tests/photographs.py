"""Images that look a little like photographs, and folders of them, for tests that need files of our own."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed, size=32, channels=3):
    """Make smooth shapes with some noise; two seeds give images that nobody would confuse."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.zeros((size, size, channels))
    for _ in range(12):
        frequency = rng.uniform(-4, 4, 2)
        wave = np.cos(2 * np.pi * (frequency[0] * x + frequency[1] * y) + rng.uniform(0, 2 * np.pi))
        picture += wave[..., None] * (rng.normal() + rng.normal(0, 0.3, channels))
    picture += rng.normal(0, 0.2, (size, size, 1))
    low, high = picture.min(), picture.max()
    return np.rint(20 + 215 * (picture - low) / (high - low)).astype(np.uint8)


def encoded(pixels, kind="JPEG", **options):
    """Encode pixels (h, w, 1 or 3)."""
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def write_classes(folder, classes=("cat", "dog"), count=6, seed=0, size=32):
    """Write a folder for each class, ``count`` PNG images in each; return their paths."""
    paths = []
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            path = folder / name / f"{index:03d}.png"
            path.write_bytes(encoded(photograph([seed, number, index], size), "PNG"))
            paths.append(path)
    return paths


def tree_of(folder):
    """Describe everything below a folder: names, content, modification times, links."""
    rows = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_symlink()
        rows[bytes(path)] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode, content)
    return rows
