"""What a file is, told by how it begins and not by what it is called."""

from __future__ import annotations

import re
from importlib.util import find_spec

from PIL import features

# Pillow's name of each format → the endings that its files go by.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# Formats that not every installation reads, and what makes it do so.
HINTS = {
    "JPEG2000": "Install a Pillow that is built with OpenJPEG.",
    "AVIF": "Install a Pillow that is built with libavif.",
    "HEIF": "Install pillow-heif: pip install 'convscope[heic]'.",
}
SUFFIXES = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
# Enough to tell what a file is.
HEAD = 512

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    *((magic, "GIF") for magic in (b"GIF87a", b"GIF89a")),
    *((magic, "TIFF") for magic in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")),
    *((magic, "JPEG2000") for magic in (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
)
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIF": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"},
}
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
# What else people and crawlers name like an image, told by how it begins.
_OTHER_KINDS = (
    (b"%!PS", "an EPS drawing"),
    (b"\xc5\xd0\xd3\xc6", "an EPS drawing"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon"),
)
# A letter and a digit are little: blanks, comments and the width follow them.
_PORTABLE = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d")
_MARKUP = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<svg", "an SVG drawing"))


def is_read(name: str) -> bool:
    """Tell whether this installation reads a format.

    Examples
    --------
    >>> is_read("JPEG"), is_read("PDF")
    (True, False)
    """
    if name == "HEIF":
        return find_spec("pillow_heif") is not None
    codecs = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
    return name in FORMATS and (name not in codecs or bool(features.check(codecs[name])))


def sniff(head: bytes) -> str:
    """Tell what a file is by how it begins.

    Parameters
    ----------
    head : bytes
        At least its first 16 bytes; ``HEAD`` of them see through leading blanks.

    Returns
    -------
    str
        One of ``FORMATS``, or another kind in words; empty where nothing is known.

    Examples
    --------
    >>> sniff(b"GIF89a and so on"), sniff(b"  <!DOCTYPE html><html>"), sniff(b"hello")
    ('GIF', 'an HTML page', '')
    """
    if name := _image_format(head):
        return name
    for magic, kind in _OTHER_KINDS:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "a video"
    opening = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for magic, kind in _MARKUP if opening.startswith(magic)), "")


def _image_format(head: bytes) -> str:
    """Name the format, if it is one of ours."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":  # ISO/IEC 23008-12: the brands that the file is compatible with
        stop = min(len(head), int.from_bytes(head[:4], "big"), 128)
        brands = {head[place : place + 4] for place in range(8, stop, 4)}
        return next((name for name, own in _BRANDS.items() if brands & own), "")
    # Two letters are little; the size of the header that follows them tells a bitmap from a text.
    if head.startswith(b"BM") and head[14:18] in {bytes([size, 0, 0, 0]) for size in _BITMAP_HEADERS}:
        return "BMP"
    return "PPM" if _PORTABLE.match(head) else ""
