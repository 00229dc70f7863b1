"""Image files: bytes → upright uint8 pixels, grey or RGB.

A file is what its first bytes say, whatever it is called. Only the formats of ``FORMATS`` are ever handed to
a decoder; the pixel count is checked before anything is decoded; every image is decoded whole, so that one
cut short is an error.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps, features

from convscope.environment import own_warning_filters
from convscope.errors import DataError, expected_got
from convscope.preprocessing import PIXEL_CAP

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
SUFFIXES = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
# Formats that not every installation reads, and what makes it do so.
HINTS = {
    "JPEG2000": "Install a Pillow that is built with OpenJPEG.",
    "AVIF": "Install a Pillow that is built with libavif.",
    "HEIF": "Install pillow-heif: pip install 'convscope[heic]'.",
}
# Enough bytes to tell what a file is.
HEAD = 512
BYTE_CAP = 512 * 2**20
# What can be odd about an image that is used all the same.
TRAITS = ("animated", "cmyk", "sixteen_bit", "rotated", "transparent", "mended")
# How many bits the pixels of a deep image have, unless its data set says that fewer are in use.
DEPTH = 16
FLOATING = "floating-point pixels"
ORIENTATION_TAG = int(ExifTags.Base.Orientation)

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
_BITMAP_HEADERS = {bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)}
# A letter and a digit are little: blanks, comments and the width follow them.
_PORTABLE = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d")
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
_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
# The marker that ends the coded data of a scan: not a stuffed byte, not a restart (ITU T.81, B.1.1).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class ImageError(DataError):
    """An image that cannot be used: a kind such as ``truncated``, and what was found in a few words."""

    def __init__(self, kind: str, message: str, found: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.found = found

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        """Let it be sent to another process."""
        return type(self), (self.kind, str(self), self.found)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says before its pixels are decoded: its upright size, 1 or 3 channels, ``TRAITS``."""

    format: str
    height: int
    width: int
    channels: int
    traits: tuple[str, ...]


def is_read(name: str) -> bool:
    """Tell whether this installation reads a format."""
    if name == "HEIF":
        return find_spec("pillow_heif") is not None
    codecs = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
    return name in FORMATS and (name not in codecs or bool(features.check(codecs[name])))


def sniff(head: bytes) -> str:
    """Tell what a file is by its first ``HEAD`` bytes: a format, another kind in words, or nothing."""
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
    if head.startswith(b"BM") and head[14:18] in _BITMAP_HEADERS:
        return "BMP"
    return "PPM" if _PORTABLE.match(head) else ""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about odd files from the screen; its warning of a bomb becomes an error.

    Enter it once around many calls, in one thread: Python's warning filters belong to the whole process.
    """
    with own_warning_filters():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def read_bytes(path: Path | str, source: str) -> bytes:
    """Read a whole regular file of at most ``BYTE_CAP``; messages call it ``source``."""
    try:
        status = os.stat(path)  # noqa: PTH116  a Path costs more than the call, and there may be millions
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise refusal("unreadable", source, "something that is no regular file")
        if status.st_size > BYTE_CAP:
            raise too_many_bytes(source, status.st_size)
        with open(path, "rb") as file:  # noqa: PTH123  as above
            return file.read()
    except FileNotFoundError as error:
        raise refusal("missing", source, "no such file", "Check its path.") from error
    except ValueError as error:  # a table may hold anything, such as a zero byte
        raise refusal("unreadable", source, "a name that no file can have") from error
    except OSError as error:
        raise refusal("unreadable", source, error.strerror or str(error)) from error


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read an image file as upright pixels, (h, w, 1 or 3)."""
    with quiet_pillow():
        return decode(read_bytes(path, str(path)), str(path))


def read_header(raw: bytes, source: str) -> Header:
    """Read what an image says about itself, without decoding its pixels."""
    with _failures_named(raw, source):
        whole = _without_damaged_text(raw)
        mended = whole is not raw or _has_no_end(raw)
        with _opened(whole, source) as image:
            orientation = _orientation(image, raw)
            # Of a TIFF Pillow gives the upright size from the beginning.
            exchanged = orientation >= 5 and image.format != "TIFF"
            width, height = image.size[::-1] if exchanged else image.size
            traits = (*_traits(image, orientation), *(("mended",) if mended else ()))
            # Several pictures in one JPEG, as phones write them, are still a JPEG.
            kind = "JPEG" if image.format == "MPO" else str(image.format)
            return Header(kind, height, width, 1 if _is_grey(image) else 3, traits)


def decode(raw: bytes, source: str, depth: int = DEPTH) -> NDArray[np.uint8]:
    """Decode an image whole: the first frame, upright, in 8 bits, (h, w, 1 or 3).

    Of more than 8 bits the upper 8 of the ``depth`` in use are kept; ``depth`` is one number for a whole data
    set. What is transparent lies on white. CMYK and palettes become RGB. A JPEG that lacks only its end
    marker, and a PNG with a damaged text, are read; anything else that is damaged is an ImageError.
    """
    with _loaded(raw, source) as (image, is_deep):
        if image.mode.startswith("I"):
            return _upper_bits(image, source, depth)
        return _pixels(image, source, depth if is_deep else DEPTH)


def read_peak(raw: bytes, source: str) -> int:
    """Find the largest value of a deep image, as far as it can be seen.

    Of colour Pillow hands over the upper 8 of 16 bits; the lower ones count as set.
    """
    with _loaded(raw, source) as (image, _):
        if image.mode.startswith("I"):
            values, clear = _deep_values(image, source)
            return int(values.max(initial=0, where=~clear))
        grey = "L" if image.mode in {"LA", "L"} else "RGB"
        return int(np.asarray(image.convert(grey)).max()) << 8 | 0xFF


def refusal(kind: str, source: str, found: str, hint: str = "") -> ImageError:
    """Make the error for an image that cannot be used."""
    return ImageError(kind, expected_got(f"{source} to be an image", found, hint), found)


def too_many_bytes(source: str, size: int) -> ImageError:
    """Make the error for a file that is larger than any image."""
    found = f"{size / 2**20:,.0f} MB"
    return refusal("too_large", source, found, f"An image may have {BYTE_CAP // 2**20} MB.")


def convert_floats(low: str = "LOW", high: str = "HIGH") -> str:
    """Write the command that converts a floating-point image, by the range of all images of the set."""
    scaled = f"(n.asarray(i.open('IN.tif')) - {low}) / ({high} - {low})"
    return (
        'Convert each by the range of all: python -c "from PIL import Image as i; import numpy as n; '
        f"i.fromarray((65535 * n.clip({scaled}, 0, 1)).astype(n.uint16)).save('OUT.png')\""
    )


@contextmanager
def _loaded(raw: bytes, source: str) -> Iterator[tuple[Image.Image, bool]]:
    """Decode an image whole and upright; say whether it is deep."""
    with _failures_named(raw, source):
        whole = _without_damaged_text(raw)
        if _has_no_end(raw) and _has_all_pixels(raw, source):
            whole = raw.rstrip(b"\xff") + _JPEG_END
        with _opened(whole, source) as image:
            orientation, is_deep = _orientation(image, raw), _is_deep(image)
            image.load()
            if image.format == "PNG" and b"IEND" not in raw:
                raise OSError("truncated: the end of the PNG is missing")
            if orientation != 1:  # Pillow turns a TIFF by itself while loading, and then forgets it
                image.info.pop("exif", None)  # read by now; Pillow would write it anew, damaged or not
                yield ImageOps.exif_transpose(image), is_deep
            else:
                yield image, is_deep


@contextmanager
def _opened(raw: bytes, source: str) -> Iterator[Image.Image]:
    """Open an image of one of our formats, checked for its number of pixels, not yet decoded."""
    if not raw:
        raise refusal("empty", source, "an empty file", "Copy or download it again.")
    kind = sniff(raw[:HEAD])
    if kind in HINTS and not is_read(kind):
        raise refusal("unsupported", source, f"{kind}, which cannot be read here", HINTS[kind])
    if kind == "HEIF":
        from pillow_heif import HeifImageFile  # registered nowhere: Pillow stays as it was

        opened: Image.Image = HeifImageFile(io.BytesIO(raw))  # type: ignore[no-untyped-call]  # as it comes
    else:
        opened = Image.open(io.BytesIO(raw), formats=[name for name in FORMATS if name != "HEIF"])
    with opened as image:
        if image.width * image.height > PIXEL_CAP:
            raise _too_many_pixels(source, f"{image.width:,}×{image.height:,} pixels")
        yield image


@contextmanager
def _failures_named(raw: bytes, source: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError that names the file."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(source, f"more than {PIXEL_CAP:,} pixels") from error
    except Exception as error:
        # Pillow's plugins raise almost anything on damaged bytes (struct.error, KeyError, SyntaxError …);
        # each of them means that this file cannot be read.
        kind = sniff(raw[:HEAD])
        if kind not in FORMATS:
            hint = "Remove it, or save it as PNG or JPEG."
            raise refusal("not_an_image", source, kind or "something else", hint) from error
        cut = _ends_early(raw, kind) or "truncated" in str(error).lower()
        what, words = ("truncated", "is cut short") if cut else ("damaged", "cannot be decoded")
        raise refusal(what, source, f"{kind} that {words}", "Copy or download it again.") from error


def _too_many_pixels(source: str, found: str) -> ImageError:
    """Make the error for an image that would fill the memory."""
    expected = f"{source} to have at most {PIXEL_CAP:,} pixels"
    return ImageError("too_large", expected_got(expected, found, "Make it smaller."), found)


def _ends_early(raw: bytes, kind: str) -> bool:
    """Tell by the structure of a file whether its end is missing."""
    if kind == "JPEG":
        return _JPEG_END not in raw[-64:]
    if kind == "PNG":
        return b"IEND" not in raw
    if kind == "WEBP":
        return len(raw) < int.from_bytes(raw[4:8], "little") + 8
    if kind == "BMP":
        return len(raw) < int.from_bytes(raw[2:6], "little")
    return kind == "GIF" and not raw.rstrip(b"\x00").endswith(b"\x3b")


def _has_no_end(raw: bytes) -> bool:
    """Tell whether a JPEG lacks its end marker."""
    if not raw.startswith(b"\xff\xd8\xff") or _JPEG_END in raw[-64:]:
        return False
    return raw.rfind(_JPEG_END) < raw.rfind(_JPEG_SCAN)


def _has_all_pixels(raw: bytes, source: str) -> bool:
    """Tell whether a JPEG without an end has all its pixels: whatever might follow would change none."""
    if not _has_all_scans(raw):
        return False
    digests = set()
    for more in (b"\x00", b"\x55", b"\xaa"):  # so much that it reaches through the largest of blocks
        with _opened(raw.rstrip(b"\xff") + 4096 * more + _JPEG_END, source) as image:
            digests.add(hashlib.sha256(image.tobytes()).digest())
    return len(digests) == 1


def _has_all_scans(raw: bytes) -> bool:
    """Tell whether the scans of a JPEG give every coefficient to its last bit (ITU T.81, G.1.1.1)."""
    missing: dict[int, NDArray[np.uint8]] = {}
    place = 2
    while place + 4 <= len(raw):
        marker, length = raw[place + 1], int.from_bytes(raw[place + 2 : place + 4], "big")
        segment = raw[place + 4 : place + 2 + length]
        place += 2 + length
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            missing = {segment[6 + 3 * i]: np.ones(64, np.uint8) for i in range(segment[5])}
        if marker == _JPEG_SCAN[1]:
            first, last, bits = segment[-3:]
            for i in range(segment[0]):
                missing[segment[1 + 2 * i]][first : last + 1] = bits & 15
            found = _NEXT_MARKER.search(raw, place)
            place = found.start() if found else len(raw)
    return bool(missing) and not any(component.any() for component in missing.values())


def _without_damaged_text(raw: bytes) -> bytes:
    """Leave out the texts of a PNG whose checksum is wrong; the bytes themselves where there are none."""
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return raw
    kept, place = [raw[:8]], 8
    while place + 12 <= len(raw):
        stop = place + 12 + int.from_bytes(raw[place : place + 4], "big")
        is_text = raw[place + 4 : place + 8] in {b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf"}
        checksum = int.from_bytes(raw[stop - 4 : stop], "big")
        if not is_text or stop > len(raw) or zlib.crc32(raw[place + 4 : stop - 4]) == checksum:
            kept.append(raw[place:stop])
        place = stop
    whole = b"".join([*kept, raw[place:]])
    return raw if len(whole) == len(raw) else whole


def _orientation(image: Image.Image, raw: bytes) -> int:
    """Read the EXIF orientation, 1 to 8; anything unreadable counts as upright."""
    # Pillow would decode the whole PNG to look for EXIF data that most of them do not have.
    if image.format == "PNG" and b"eXIf" not in raw and b"Raw profile type exif" not in raw:
        return 1
    with suppress(Exception):  # as for decoders: damaged EXIF data raise almost anything
        value = image.getexif().get(ORIENTATION_TAG, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return 1


def _traits(image: Image.Image, orientation: int) -> tuple[str, ...]:
    """Name what is odd about an image, in the order of ``TRAITS``."""
    many = image.format in {"GIF", "PNG", "WEBP", "TIFF", "AVIF"} and getattr(image, "n_frames", 1) > 1
    found = (many, image.mode == "CMYK", _is_deep(image), orientation != 1, image.has_transparency_data)
    return tuple(trait for trait, present in zip(TRAITS, found, strict=False) if present)


def _is_deep(image: Image.Image) -> bool:
    """Tell whether the pixels of an image that is not loaded yet have more than 8 bits."""
    tiles = getattr(image, "tile", ())
    return image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in tiles)


def _is_grey(image: Image.Image) -> bool:
    """Tell whether an image has no colours, by its mode or its palette."""
    if image.mode in {"P", "PA"} and image.palette is not None:
        colours = np.frombuffer(bytes(image.palette.palette), np.uint8)
        width = len(image.palette.rawmode or image.palette.mode)
        red, green, blue = colours[: len(colours) // width * width].reshape(-1, width).T[:3]
        return bool((red == green).all() and (green == blue).all())
    return image.mode[0] in "1LIF" and image.mode != "LAB"


def _pixels(image: Image.Image, source: str, depth: int) -> NDArray[np.uint8]:
    """Give the pixels of a loaded image, of which Pillow keeps 8 bits, as (h, w, 1) or (h, w, 3)."""
    if image.mode == "F":
        values = np.asarray(image)
        found = f"{FLOATING} from {values.min():g} to {values.max():g}"
        raise refusal("unsupported", source, found, convert_floats())
    grey = _is_grey(image)
    if depth != DEPTH:
        # Pillow has kept the upper 8 of 16 bits, of which the uppermost are not in use.
        brighter = [min(value << (DEPTH - depth), 255) for value in range(256)]
        bands = [brighter if band != "A" else list(range(256)) for band in image.getbands()]
        image = image.point([value for band in bands for value in band])
    if image.mode == "CMYK":  # rounded as browsers do it, down
        *inks, black = ImageChops.invert(image).split()
        image = Image.merge("RGB", [ImageChops.multiply(ink, black) for ink in inks])
    if image.has_transparency_data:  # on white: what people see where they make such images
        clear = image.convert("RGBA")
        canvas = Image.new("RGBA", clear.size, "white")
        canvas.alpha_composite(clear)
        image = canvas.convert("RGB")
    mode = "L" if grey else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))  # Pillow would copy it
    return pixels[..., None] if grey else pixels  # (h, w, 1 or 3)


def _upper_bits(image: Image.Image, source: str, depth: int) -> NDArray[np.uint8]:
    """Keep the upper 8 of the bits in use; Pillow's own conversion would cut off instead."""
    values, clear = _deep_values(image, source)
    if depth <= DEPTH and values.max(initial=0) > 0xFFFF:
        raise refusal("unsupported", source, "pixels of 32 bits", "Save it with 8 or 16 bits.")
    upper: NDArray[np.uint8] = np.minimum(values >> (depth - 8), 255).astype(np.uint8)
    upper[clear] = 255
    return upper[..., None]  # (h, w, 1)


def _deep_values(image: Image.Image, source: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Give the values of a loaded deep image, and where it is transparent."""
    values = np.asarray(image)
    if values.dtype == np.int32 and values.min(initial=0) < 0:
        raise refusal("unsupported", source, "pixels below 0", "Shift and save it with 8 or 16 bits.")
    transparent = image.info.get("transparency")
    clear = values == transparent if isinstance(transparent, int) else np.zeros(values.shape, bool)
    return values, clear
