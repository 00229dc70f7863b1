"""What a file is, told by how it begins and not by what it is called."""

from __future__ import annotations

# Pillow's name of each format → the endings that its files go by.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
# Enough to tell what a file is.
HEAD = 512

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
_MARKUP = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<svg", "an SVG drawing"))


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
        return "a HEIF image or a video"
    opening = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for magic, kind in _MARKUP if opening.startswith(magic)), "")


def _image_format(head: bytes) -> str:
    """Name the format, if it is one of ours."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    # Two letters are little; the size of the header that follows them tells a bitmap from a text.
    bitmap = head.startswith(b"BM") and head[14:18] in {
        bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)
    }
    return "BMP" if bitmap else ""
