"""Image files: bytes → upright uint8 pixels, grey or RGB.

Only the formats of ``kinds.FORMATS`` are ever handed to a decoder, whatever a file is called; the pixel
count is checked before anything is decoded; every image is decoded whole, so that one cut short is an error.
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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convscope.data.kinds import FORMATS, HEAD, HINTS, is_read, sniff
from convscope.environment import own_warning_filters
from convscope.errors import DataError, sentence

# A photograph of 8,000×8,000; decoded it takes 192 MB.
PIXEL_CAP = 64_000_000
BYTE_CAP = 512 * 2**20
# What can be odd about an image that is used all the same.
TRAITS = ("animated", "cmyk", "sixteen_bit", "rotated", "transparent", "mended")
# How many bits the pixels of a deep image have, unless its data set says that fewer are in use.
DEPTH = 16
FLOATING = "floating-point pixels"

ORIENTATION_TAG = 0x0112
# EXIF 2.32, 4.6.5: the transposition that turns each orientation upright; 5 to 8 exchange the sides.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def convert_floats(low: str = "LOW", high: str = "HIGH") -> str:
    """Write the command that converts a floating-point image, by the range of all images of the set."""
    scaled = f"(n.asarray(i.open('IN.tif')) - {low}) / ({high} - {low})"
    return (
        'Convert each by the range of all: python -c "from PIL import Image as i; import numpy as n; '
        f"i.fromarray((65535 * n.clip({scaled}, 0, 1)).astype(n.uint16)).save('OUT.png')\""
    )


class ImageError(DataError):
    """An image that cannot be used.

    Parameters
    ----------
    kind : str
        ``missing``, ``empty``, ``not_an_image``, ``too_large``, ``truncated``, ``damaged``, ``unsupported``
        or ``unreadable``.
    message : str
        What was expected, what was found, what to do.
    found : str
        What was found, in a few words.

    Examples
    --------
    >>> ImageError("empty", "Expected an image, got nothing.", "nothing").kind
    'empty'
    """

    def __init__(self, kind: str, message: str, found: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.found = found


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says about itself before its pixels are decoded.

    Attributes
    ----------
    format : str
        One of ``FORMATS``.
    height, width : int
        Of the upright image, in pixels.
    channels : int
        1 for grey, 3 for anything else.
    traits : tuple of str
        Those of ``TRAITS`` that apply.
    """

    format: str
    height: int
    width: int
    channels: int
    traits: tuple[str, ...]


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about odd files from the screen; its warning of a bomb becomes an error.

    Enter it once around many calls, in one thread: Python's warning filters belong to the whole process.

    Examples
    --------
    >>> with quiet_pillow():
    ...     pass
    """
    with own_warning_filters():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def read_bytes(path: Path | str, source: str) -> bytes:
    """Read a whole file that should be an image.

    Parameters
    ----------
    path : path
        A regular file, or a link to one.
    source : str
        Its name, for messages.

    Returns
    -------
    bytes
        At most ``BYTE_CAP``.

    Raises
    ------
    ImageError
        If it cannot be read, is no regular file (a pipe would never end) or is too large.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  a Path costs more than the call, and there may be millions
        if not stat.S_ISREG(status.st_mode):
            raise _refusal("unreadable", source, "something that is no regular file")
        if status.st_size > BYTE_CAP:
            found = f"{status.st_size / 2**20:,.0f} MB"
            raise _refusal("too_large", source, found, f"An image may have {BYTE_CAP // 2**20} MB.")
        with open(path, "rb") as file:  # noqa: PTH123  as above
            return file.read()
    except FileNotFoundError as error:
        raise _refusal("missing", source, "no such file", "Check its path.") from error
    except ValueError as error:  # a table may hold anything, such as a zero byte
        raise _refusal("unreadable", source, "a name that no file can have") from error
    except OSError as error:
        raise _refusal("unreadable", source, error.strerror or str(error)) from error


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read an image file as upright pixels.

    Parameters
    ----------
    path : path
        One of the formats that are read, whatever its name.

    Returns
    -------
    ndarray of shape (h, w, 1) or (h, w, 3), uint8
        As ``decode`` gives it.

    Raises
    ------
    ImageError
        If it cannot be used; the message names the file.

    Examples
    --------
    >>> read_image("no/such.png")
    Traceback (most recent call last):
        ...
    convscope.data.images.ImageError: Expected no/such.png to be an image, got no such file. Check its path.
    """
    with quiet_pillow():
        return decode(read_bytes(path, str(path)), str(path))


def read_header(raw: bytes, source: str) -> Header:
    """Read what an image says about itself, without decoding its pixels.

    Parameters
    ----------
    raw : bytes
        A whole file.
    source : str
        Its name, for messages.

    Returns
    -------
    Header
        Size, format and oddities.

    Raises
    ------
    ImageError
        If it is none of the formats, or has more pixels than ``PIXEL_CAP``.
    """
    with _failures_named(raw, source):
        whole = _without_damaged_text(raw)
        mended = whole is not raw or _has_no_end(raw)
        with _opened(whole, source) as image:
            orientation = _orientation(image, raw)
            # Of a TIFF Pillow gives the upright size from the beginning.
            exchanged = orientation >= 5 and image.format != "TIFF"
            width, height = image.size[::-1] if exchanged else image.size
            traits = (*_traits(image, orientation), *(("mended",) if mended else ()))
            return Header(_format_of(image), height, width, 1 if _is_grey(image) else 3, traits)


def decode(raw: bytes, source: str, depth: int = DEPTH) -> NDArray[np.uint8]:
    """Decode an image whole: the first frame, upright, in 8 bits, grey or RGB.

    Of more than 8 bits the upper 8 of those in use are kept. What is transparent lies on white. CMYK and
    palettes become RGB. A JPEG that lacks only its end marker, and a PNG with a damaged text, are read.

    Parameters
    ----------
    raw : bytes
        A whole file.
    source : str
        Its name, for messages.
    depth : int
        How many bits are in use in deep images, from 8; one number for a whole data set. A brighter pixel
        is white.

    Returns
    -------
    ndarray of shape (h, w, 1) or (h, w, 3), uint8
        Pixels.

    Raises
    ------
    ImageError
        If the image is empty, cut short, damaged, too large or none of the formats.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("LA", (3, 2), (0, 0)).save(buffer, "PNG")
    >>> decode(buffer.getvalue(), "clear.png")[..., 0].tolist()
    [[255, 255, 255], [255, 255, 255]]
    """
    with _loaded(raw, source) as (image, is_deep):
        if image.mode.startswith("I"):
            return _upper_bits(image, source, depth)
        return _pixels(image, source, depth if is_deep else DEPTH)


def read_peak(raw: bytes, source: str) -> int:
    """Find the largest value of a deep image, as far as it can be seen.

    Parameters
    ----------
    raw, source
        As for ``decode``.

    Returns
    -------
    int
        Of colour Pillow hands over the upper 8 of 16 bits; the lower ones count as set.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.fromarray(np.array([[7, 4095]], np.uint16)).save(buffer, "PNG")
    >>> read_peak(buffer.getvalue(), "scan.png")
    4095
    """
    with _loaded(raw, source) as (image, _):
        if image.mode.startswith("I"):
            values, clear = _deep_values(image, source)
            return int(values.max(initial=0, where=~clear))
        grey = "L" if image.mode in {"LA", "L"} else "RGB"
        return int(np.asarray(image.convert(grey)).max()) << 8 | 0xFF


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
            # Pillow turns a TIFF upright by itself while loading, and then forgets its orientation.
            if orientation in UPRIGHT and image.format != "TIFF":
                yield image.transpose(UPRIGHT[orientation]), is_deep
            else:
                yield image, is_deep


@contextmanager
def _opened(raw: bytes, source: str) -> Iterator[Image.Image]:
    """Open an image of one of our formats, checked for its number of pixels, not yet decoded."""
    if not raw:
        raise _refusal("empty", source, "an empty file")
    kind = sniff(raw[:HEAD])
    if kind in HINTS and not is_read(kind):
        raise _refusal("unsupported", source, f"{kind}, which cannot be read here", HINTS[kind])
    with _open(raw, kind) as image:
        if image.width * image.height > PIXEL_CAP:
            raise _too_many_pixels(source, f"{image.width:,}×{image.height:,} pixels")
        yield image


def _open(raw: bytes, kind: str) -> Image.Image:
    """Open an image by the plugin of its format."""
    if kind == "HEIF":
        from pillow_heif import HeifImageFile  # registered nowhere: Pillow stays as it was

        return HeifImageFile(io.BytesIO(raw))  # type: ignore[no-untyped-call]  # as it comes
    return Image.open(io.BytesIO(raw), formats=[name for name in FORMATS if name != "HEIF"])


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
        raise _diagnose(raw, source, error) from error


def _diagnose(raw: bytes, source: str, error: Exception) -> ImageError:
    """Say why bytes that should be an image could not be decoded."""
    kind = sniff(raw[:HEAD])
    if kind not in FORMATS:
        return _refusal("not_an_image", source, kind or "something else")
    if _ends_early(raw, kind) or "truncated" in str(error).lower():
        return _refusal("truncated", source, f"{kind} that is cut short", "Copy or download it again.")
    return _refusal("damaged", source, f"{kind} that cannot be decoded", "Copy or download it again.")


def _ends_early(raw: bytes, kind: str) -> bool:
    """Tell by the structure of a file whether its end is missing."""
    if kind == "JPEG":
        return b"\xff\xd9" not in raw[-64:]
    if kind == "PNG":
        return b"IEND" not in raw
    if kind == "WEBP":
        return len(raw) < int.from_bytes(raw[4:8], "little") + 8
    if kind == "BMP":
        return len(raw) < int.from_bytes(raw[2:6], "little")
    return kind == "GIF" and not raw.rstrip(b"\x00").endswith(b"\x3b")


_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
# The marker that ends the coded data of a scan: not a stuffed byte, not a restart (ITU T.81, B.1.1).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


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
    kept.append(raw[place:])
    whole = b"".join(kept)
    return raw if len(whole) == len(raw) else whole


def _refusal(kind: str, source: str, found: str, hint: str = "") -> ImageError:
    """Make the error for an image that cannot be used."""
    return ImageError(kind, sentence(f"{source} to be an image", found, hint), found)


def _too_many_pixels(source: str, found: str) -> ImageError:
    """Make the error for an image that would fill the memory."""
    expected = f"{source} to have at most {PIXEL_CAP:,} pixels"
    return ImageError("too_large", sentence(expected, found, "Make it smaller."), found)


def _format_of(image: Image.Image) -> str:
    """Name the format; several pictures in one JPEG, as phones write them, are still a JPEG."""
    return "JPEG" if image.format == "MPO" else str(image.format)


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
        raise _refusal("unsupported", source, found, convert_floats())
    grey = _is_grey(image)
    if depth != DEPTH:
        # Pillow has kept the upper 8 of 16 bits, of which the uppermost are not in use.
        brighter = [min(value << (DEPTH - depth), 255) for value in range(256)]
        bands = [brighter if band != "A" else list(range(256)) for band in image.getbands()]
        image = image.point([value for band in bands for value in band])
    if image.has_transparency_data:
        image = _on_white(image)
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels  # (h, w, 1 or 3)


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a transparent image on white: what people see where they make such images."""
    clear = image.convert("RGBA")
    canvas = Image.new("RGBA", clear.size, "white")
    canvas.alpha_composite(clear)
    return canvas.convert("RGB")


def _upper_bits(image: Image.Image, source: str, depth: int) -> NDArray[np.uint8]:
    """Keep the upper 8 of the bits in use; Pillow's own conversion would cut off instead."""
    values, clear = _deep_values(image, source)
    if depth <= DEPTH and values.max(initial=0) > 0xFFFF:
        raise _refusal("unsupported", source, "pixels of 32 bits", "Save it with 8 or 16 bits.")
    upper: NDArray[np.uint8] = np.minimum(values >> (depth - 8), 255).astype(np.uint8)
    upper[clear] = 255
    return upper[..., None]  # (h, w, 1)


def _deep_values(image: Image.Image, source: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Give the values of a loaded deep image, and where it is transparent."""
    values = np.asarray(image)
    if values.dtype == np.int32 and values.min(initial=0) < 0:
        raise _refusal("unsupported", source, "pixels below 0", "Shift and save it with 8 or 16 bits.")
    transparent = image.info.get("transparency")
    clear = values == transparent if isinstance(transparent, int) else np.zeros(values.shape, bool)
    return values, clear
