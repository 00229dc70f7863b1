"""Image files of each kind that people have and browsers read, drawn at random."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def picture(rng, height, width, channels):
    """Blurred shapes, some with grain; or noise, which is hardest to bring to size."""
    coarse = rng.integers(0, 256, (*rng.integers(2, 9, 2), channels), np.uint8)
    planes = [Image.fromarray(plane) for plane in np.moveaxis(coarse, 2, 0)]
    smooth = np.stack([plane.resize((width, height)) for plane in planes], axis=2).astype(int)
    grain = rng.integers(-255, 256, smooth.shape) * rng.choice([0, 0.1, 1])
    return (smooth + grain).clip(0, 255).astype(np.uint8)  # (h, w, c)


def saved(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def coloured(rng, height, width, mode="RGB"):
    """A picture of any mode with 8 bits for each of its channels."""
    planes = np.moveaxis(picture(rng, height, width, len(mode)), 2, 0)
    return Image.merge(mode, [Image.fromarray(plane) for plane in planes])


def sixteen_bits(rng, height, width, channels):
    """A PNG of 16 bits, which Pillow does not write in colour."""
    pixels = picture(rng, height, width, channels).astype(np.uint16) << 8
    pixels |= rng.integers(0, 256, pixels.shape, np.uint16)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def turned(rng, image, form, **options):
    exif = Image.Exif()
    exif[274] = int(rng.integers(2, 9))
    return saved(image, form, exif=exif, **options)


def with_profile(image, form):
    """A picture that says its numbers mean other colours; they are taken as they are."""
    return saved(image, form, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


def animated(rng, height, width):
    first, second = (coloured(rng, height, width).quantize(64) for _ in range(2))
    return saved(first, "GIF", save_all=True, append_images=[second])


KINDS = {
    "grey.png": lambda *a: saved(Image.fromarray(picture(*a, 1)[..., 0])),
    "rgb.png": lambda *a: saved(coloured(*a)),
    "rgba.png": lambda *a: saved(coloured(*a, "RGBA")),
    "grey-alpha.png": lambda *a: saved(coloured(*a, "LA")),
    "palette.png": lambda *a: saved(coloured(*a).quantize(37)),
    "palette-clear.png": lambda *a: saved(coloured(*a).quantize(37), transparency=3),
    "one-bit.png": lambda *a: saved(coloured(*a).convert("1")),
    "16-bit.png": lambda *a: sixteen_bits(*a, 1),
    "16-bit-rgb.png": lambda *a: sixteen_bits(*a, 3),
    "turned.png": lambda *a: turned(a[0], coloured(*a), "PNG"),
    "profile.png": lambda *a: with_profile(coloured(*a), "PNG"),
    "420.jpg": lambda *a: saved(coloured(*a), "JPEG", quality=85),
    "422.jpg": lambda *a: saved(coloured(*a), "JPEG", quality=85, subsampling=1),
    "444.jpg": lambda *a: saved(coloured(*a), "JPEG", quality=95, subsampling=0),
    "grey.jpg": lambda *a: saved(Image.fromarray(picture(*a, 1)[..., 0]), "JPEG"),
    "progressive.jpg": lambda *a: saved(coloured(*a), "JPEG", progressive=True),
    "cmyk.jpg": lambda *a: saved(coloured(*a, "CMYK"), "JPEG", quality=90),
    "turned.jpg": lambda *a: turned(a[0], coloured(*a), "JPEG", quality=90),
    "profile.jpg": lambda *a: with_profile(coloured(*a), "JPEG"),
    "lossy.webp": lambda *a: saved(coloured(*a), "WEBP", quality=80),
    "lossless.webp": lambda *a: saved(coloured(*a), "WEBP", lossless=True),
    "rgba.webp": lambda *a: saved(coloured(*a, "RGBA"), "WEBP", lossless=True),
    "palette.gif": lambda *a: saved(coloured(*a).quantize(100), "GIF"),
    "animated.gif": animated,
    "rgb.bmp": lambda *a: saved(coloured(*a), "BMP"),
}


def draw_files(count, most=200, seed=0):
    """Draw files of all kinds in turn, of any size: pairs of name and content."""
    rng = np.random.default_rng(seed)
    kinds = list(KINDS.items())
    for number in range(count):
        name, draw = kinds[number % len(kinds)]
        yield f"{number:04d}-{name}", draw(rng, *(int(side) for side in rng.integers(1, most, 2)))
