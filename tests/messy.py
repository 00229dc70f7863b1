"""Everything that goes wrong in people's folders, planted at known places."""

import io
import os
import struct
import sys
import zlib

import numpy as np
from PIL import Image

from convscope.data.decode import ORIENTATION_TAG

UNUSABLE = {"truncated", "empty", "not_an_image", "symlink_loop", "too_large"}


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    return path


def empty(path):
    path.write_bytes(b"")
    return path


def html(path):
    path.write_bytes(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>")
    return path.rename(path.with_suffix(".jpg"))


def eps(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n")
    return path.rename(path.with_suffix(".png"))


def wrong_ending(path):
    """Write PNG data into a file called ``.jpg``."""
    resaved(path, "PNG")
    return path.rename(path.with_suffix(".jpg"))


def loop(path):
    path.unlink()
    path.with_suffix("").symlink_to("..")
    return path.with_suffix("")


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)
    return path


def odd_name(path):
    return path.rename(path.with_name(os.fsdecode(b"caf\xe9_") + path.name))


def bomb(path):
    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(content)
    return path.rename(path.with_suffix(".png"))


def animated(path):
    picture = Image.open(path).convert("RGB")
    frames = [picture.rotate(90), picture.rotate(180)]
    return resaved(path, "GIF", ".gif", save_all=True, append_images=frames)


def cmyk(path):
    return resaved(path, "JPEG", ".jpg", mode="CMYK", quality=95)


def sixteen_bit(path):
    grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
    path.unlink()
    Image.fromarray(grey).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def rotated(path):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    picture = Image.open(path).convert("RGB").rotate(90)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, exif=exif.tobytes())
    path.write_bytes(buffer.getvalue())
    return path.rename(path.with_suffix(".jpg"))


def without_end(path):
    """Save a JPEG that has every pixel, but not its end marker."""
    path = resaved(path, "JPEG", ".jpg", quality=95)
    path.write_bytes(path.read_bytes()[:-2])
    return path


def resaved(path, kind, suffix=None, mode="RGB", **options):
    """Save an image again in another way, under its own name or with another ending."""
    buffer = io.BytesIO()
    Image.open(path).convert(mode).save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())
    return path.rename(path.with_suffix(suffix)) if suffix else path


# What is planted → the kind of finding that must name it.
PLANTS = {
    truncated: "truncated",
    empty: "empty",
    html: "not_an_image",
    eps: "not_an_image",
    wrong_ending: "misnamed",
    loop: "symlink_loop",
    link_to_itself: "symlink_loop",
    odd_name: "odd_name",
    bomb: "too_large",
    animated: "animated",
    cmyk: "cmyk",
    sixteen_bit: "sixteen_bit",
    rotated: "rotated",
    without_end: "mended",
}
if os.name != "posix":  # elsewhere not everybody may make a link
    del PLANTS[loop], PLANTS[link_to_itself]
if sys.platform != "linux":  # others refuse names that are no Unicode
    del PLANTS[odd_name]


def plant(folder, paths, seed=0):
    """Spoil a share of the files, each kind at least once; return kind → names relative to the folder."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(paths))[: max(len(PLANTS), len(paths) // 20)]
    planted = {}
    for number, position in enumerate(chosen):
        spoil = list(PLANTS)[number % len(PLANTS)]
        path = spoil(paths[position])
        shown = str(path.relative_to(folder)).replace("\udce9", "\\xe9")
        planted.setdefault(PLANTS[spoil], set()).add(shown)
    return planted
