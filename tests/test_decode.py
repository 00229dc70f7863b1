"""Decoding images: every format and mode exactly, everything else refused by name."""

import io
import os
import re
import shlex
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from photographs import encoded, photograph
from PIL import Image, PngImagePlugin, features

from convscope.data.decode import (
    HEAD,
    ORIENTATION_TAG,
    Header,
    ImageError,
    decode,
    is_read,
    quiet_pillow,
    read_bytes,
    read_header,
    read_image,
    read_peak,
    sniff,
)
from convscope.errors import DataError

COLOUR = photograph(1, 24)
GREY = photograph(2, 24, 1)
LOSSLESS = [
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
]
ids = [f"{kind}{''.join(str(value) for value in options.values())}" for kind, options in LOSSLESS]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS, ids=ids)
def test_lossless_colour_is_decoded_exactly(kind, options):
    raw = encoded(COLOUR, kind, **options)
    assert (decode(raw, "photo") == COLOUR).all()
    assert read_header(raw, "photo") == Header(kind, 24, 24, 3, ())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_grey_keeps_one_channel(kind):
    raw = encoded(GREY, kind)
    assert (decode(raw, "photo") == GREY).all()
    assert read_header(raw, "photo").channels == 1


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 6), ("WEBP", 10)], ids=["JPEG", "WEBP"])
def test_lossy_colour_is_close(kind, tolerance):
    smooth = np.array(Image.fromarray(COLOUR).resize((4, 4)).resize((24, 24)))
    assert np.abs(decode(encoded(smooth, kind, quality=95), "photo").astype(int) - smooth).mean() < tolerance


def test_a_palette_becomes_rgb():
    picture = Image.fromarray(COLOUR).quantize(16)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    assert (decode(buffer.getvalue(), "photo") == np.asarray(picture.convert("RGB"))).all()


def test_what_is_transparent_lies_on_white():
    picture = np.dstack([np.full((2, 2, 3), 10, np.uint8), np.array([[0, 255], [0, 255]], np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "photo")[0, :, 0].tolist() == [255, 10]
    assert read_header(buffer.getvalue(), "photo").traits == ("transparent",)


def test_a_palette_with_transparency_lies_on_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([9, 9, 9, 200, 0, 0])
    picture.putdata([0, 1])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0)
    assert decode(buffer.getvalue(), "photo")[0].tolist() == [[255, 255, 255], [200, 0, 0]]


def test_cmyk_becomes_rgb():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "TIFF")  # no cyan: red
    assert decode(buffer.getvalue(), "photo")[4, 4].tolist() == [255, 0, 0]
    assert "cmyk" in read_header(buffer.getvalue(), "photo").traits


def test_inks_are_rounded_as_browsers_round_them():
    ink, black = np.meshgrid(np.arange(256), np.arange(256))
    planes = [Image.fromarray(plane.astype(np.uint8)) for plane in (ink, ink, ink, black)]
    buffer = io.BytesIO()
    Image.merge("CMYK", planes).save(buffer, "TIFF")
    expected = (255 - ink) * (255 - black) // 255
    np.testing.assert_array_equal(decode(buffer.getvalue(), "photo")[..., 0], expected)


def test_of_sixteen_bits_the_upper_eight_are_kept():
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "photo")[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert read_header(buffer.getvalue(), "photo").traits == ("sixteen_bit",)


def test_of_fewer_bits_in_use_the_upper_eight_are_kept():
    values = np.array([[0, 15, 16], [2048, 4095, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "scan", 12)[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert read_peak(buffer.getvalue(), "scan") == 65535


def test_a_transparent_grey_of_sixteen_bits_is_white():
    """Its value counts neither as a pixel nor for the range of the set."""
    rows = b"".join(b"\0" + struct.pack(">3H", *row) for row in ([0, 1000, 4095], [65535, 0, 2048]))
    for transparent, peak, pixels in (
        (0, 65535, [[255, 3, 15], [255, 255, 8]]),
        (65535, 4095, [[0, 3, 15], [255, 0, 8]]),
    ):
        raw = png_of(3, 2, rows, depth=16, kind=0, before=[(b"tRNS", struct.pack(">H", transparent))])
        assert decode(raw, "photo")[..., 0].tolist() == pixels
        assert read_peak(raw, "photo") == peak
        assert read_header(raw, "photo").traits == ("sixteen_bit", "transparent")


def test_deep_colour_and_alpha_are_brought_to_the_range_of_their_set():
    rows = b"\0" + struct.pack(">8H", 0x0FFF, 0x0120, 0, 0xFFFF, 0x0FFF, 0, 0, 0)
    raw = png_of(2, 1, rows, depth=16, kind=6)
    assert read_peak(raw, "photo") == 0x0FFF
    assert decode(raw, "photo", 12)[0].tolist() == [[0xF0, 0x10, 0], [255, 255, 255]]


def test_sixteen_bits_of_colour_are_noticed():
    rows = b"".join(b"\0" + struct.pack(">6H", *([0x1234, 0x5678, 0x9ABC] * 2)) for _ in range(2))
    raw = png_of(2, 2, rows, depth=16, kind=2)
    assert decode(raw, "photo")[1, 1].tolist() == [0x12, 0x56, 0x9A]
    assert read_header(raw, "photo").traits == ("sixteen_bit",)


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (50, 100)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (decode(buffer.getvalue(), "photo") == 50).all()
    assert read_header(buffer.getvalue(), "photo").traits == ("animated",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_turns_an_image_upright(kind, orientation):
    # The stored picture is the upright one turned the other way round; the arithmetic is NumPy's.
    upright = photograph(3, 24)[:16]
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    raw = encoded(np.ascontiguousarray(turned), kind, exif=exif.tobytes(), **options)
    assert (decode(raw, "photo") == upright).all()
    header = read_header(raw, "photo")
    assert (header.height, header.width) == upright.shape[:2]
    assert header.traits == (() if orientation == 1 else ("rotated",))


def test_damaged_exif_data_count_as_upright():
    raw = encoded(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    with quiet_pillow():
        assert decode(raw, "photo").shape == (24, 24, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_an_image_that_is_cut_short_is_refused(kind, share):
    raw = encoded(COLOUR, kind)
    with (
        quiet_pillow(),
        pytest.raises(ImageError, match=r"photo\.x to be an image, got .* cut short") as caught,
    ):
        decode(raw[: int(len(raw) * share)], "photo.x")
    assert caught.value.kind == "truncated"


def test_a_png_without_its_end_is_cut_short_even_if_every_pixel_is_there():
    with pytest.raises(ImageError, match="PNG that is cut short"):
        decode(encoded(COLOUR, "PNG")[:-12], "photo.png")


@pytest.mark.parametrize(
    ("raw", "kind", "found"),
    [
        (b"", "empty", "an empty file"),
        (b"<!DOCTYPE html><html></html>", "not_an_image", "an HTML page"),
        (b"\n <HTML><body>404", "not_an_image", "an HTML page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image", "an EPS drawing"),
        (b"%PDF-1.7", "not_an_image", "a PDF document"),
        (b"PK\x03\x04....", "not_an_image", "a ZIP archive"),
        (b"\0\0\0\x18ftypisom", "not_an_image", "a video"),
        (b"hello", "not_an_image", "something else"),
        (b"BM is a car", "not_an_image", "something else"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40) + b"IEND", "damaged", "PNG that cannot be decoded"),
    ],
    ids=["empty", "html", "html404", "eps", "pdf", "zip", "video", "text", "bm", "damaged"],
)
def test_what_is_no_image_is_refused_by_name(raw, kind, found):
    with pytest.raises(ImageError) as caught:
        decode(raw, "a/b.jpg")
    assert (caught.value.kind, caught.value.found) == (kind, found)
    assert str(caught.value).startswith(f"Expected a/b.jpg to be an image, got {found}.")
    assert isinstance(caught.value, DataError)


def png_of(width, height, rows, depth=8, kind=0, before=()):
    """Write a PNG by hand (PNG specification, 2nd edition, section 5)."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(rows)
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in chunks)


@pytest.mark.parametrize(
    "raw",
    [
        png_of(30_000, 30_000, bytes(1000)),
        png_of(9_000, 9_000, bytes(1000)),
        png_of(12_000, 12_000, bytes(1000)),
        b"GIF89a"
        + struct.pack("<HH", 60_000, 60_000)
        + b"\0\0\0"
        + b","
        + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0)
        + b"\x02\x00\x3b",
    ],
    ids=["png-30000", "png-9000", "png-12000", "gif-60000"],
)
@pytest.mark.parametrize("read", [decode, read_header], ids=["decode", "header"])
def test_a_bomb_is_refused_before_it_is_decoded(raw, read):
    with pytest.raises(ImageError, match=r"bomb\.png to have at most 64,000,000 pixels") as caught:
        read(raw, "bomb.png")
    assert caught.value.kind == "too_large"


@pytest.mark.posix("the peak of a process's memory")
def test_a_bomb_makes_no_warning_and_costs_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_of(11_000, 11_000, bytes(10_000_000)))
    code = f"""
import resource
from convscope.data.decode import read_image, ImageError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try: read_image({str(tmp_path / "bomb.png")!r})
except ImageError as error: print(error.kind, peak() - before < 30_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["too_large", "True"], "")


def test_text_bombs_in_a_png_are_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * 50_000_000, zip=True)
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "PNG", pnginfo=info)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode(buffer.getvalue(), "photo.png")


def test_floating_point_pixels_are_refused_with_the_command_that_converts_them(tmp_path):
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "IN.tif")
    with pytest.raises(ImageError, match=r"floating-point pixels from 0 to 1\. Convert each") as caught:
        read_image(tmp_path / "IN.tif")
    assert caught.value.kind == "unsupported"
    _, _, command = str(caught.value).partition(" python ")
    arguments = shlex.split(command.replace("LOW", "0").replace("HIGH", "1"))
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    assert np.abs(read_image(tmp_path / "OUT.png")[..., 0] - values * 255).max() < 1


@pytest.mark.parametrize(("values", "bits"), [(GREY[..., 0], 8), (COLOUR, 8)], ids=["pgm", "ppm"])
def test_portable_maps_are_read(values, bits):
    raw = encoded(values if values.ndim == 3 else values[..., None], "PPM")
    assert sniff(raw) == "PPM"
    assert (decode(raw, "photo") == values.reshape(*values.shape[:2], -1)).all()
    comment = raw[:3] + b"# from a scanner\n" + raw[3:]
    assert sniff(comment) == "PPM"
    assert (decode(comment, "photo") == decode(raw, "photo")).all()


def test_a_portable_map_says_itself_how_many_bits_it_uses():
    raw = b"P5 2 1 4095 " + struct.pack(">2H", 2048, 4095)
    assert decode(raw, "photo.pgm")[..., 0].tolist() == [[128, 255]]


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without OpenJPEG")
def test_jpeg_2000_is_read():
    assert (decode(encoded(COLOUR, "JPEG2000", irreversible=False), "photo") == COLOUR).all()
    assert (decode(encoded(GREY, "JPEG2000", irreversible=False, no_jp2=True), "photo") == GREY).all()


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without libavif")
def test_avif_is_read():
    raw = encoded(COLOUR, "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(decode(raw, "photo").astype(int) - COLOUR).mean() < 3
    assert read_header(raw, "photo") == Header("AVIF", 24, 24, 3, ())


def heic(pixels):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=100, chroma=444)
    return buffer.getvalue()


def test_heic_is_read_where_pillow_heif_is_installed():
    before = dict(Image.OPEN)
    raw = heic(COLOUR)
    assert np.abs(decode(raw, "photo").astype(int) - COLOUR).mean() < 4
    assert read_header(raw, "photo").format == "HEIF"
    assert before == Image.OPEN


@pytest.mark.parametrize(("kind", "package"), [("HEIF", "convscope.heic."), ("AVIF", "libavif")])
def test_what_an_installation_cannot_read_is_named_with_what_to_install(kind, package, monkeypatch, tmp_path):
    monkeypatch.setattr("convscope.data.decode.is_read", lambda name: name != kind)
    raw = b"\0\0\0\x14ftyp" + {"HEIF": b"heic", "AVIF": b"avif"}[kind] + bytes(8)
    with pytest.raises(ImageError, match=f"{kind}, which cannot be read here. Install .*{package}") as caught:
        decode(raw, "photo.x")
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("size", [24, 33, 64])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("restart", [0, 2])
def test_a_jpeg_without_its_end_marker_is_read(size, progressive, restart):
    raw = encoded(photograph(4, size), "JPEG", progressive=progressive, restart_marker_blocks=restart)
    whole = decode(raw, "photo")
    for missing in (1, 2):  # the marker has two bytes
        cut = raw[:-missing]
        assert (decode(cut, "photo") == whole).all()
        assert read_header(cut, "photo").traits == ("mended",)
    assert read_header(raw, "photo").traits == read_header(raw + b"trailer", "photo").traits == ()


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_a_jpeg_whose_pixels_are_missing_is_refused_wherever_it_ends(progressive):
    raw = encoded(photograph(4, 40), "JPEG", progressive=progressive)
    first = raw.index(b"\xff\xda") + 12
    for stop in range(first, len(raw) - 3):
        with pytest.raises(ImageError, match="cut short"):
            decode(raw[:stop], "photo")


def test_a_jpeg_that_ends_behind_one_of_its_scans_is_refused():
    """All viewers show something of it, but not all of it."""
    raw = encoded(photograph(4, 40), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", raw)]
    tables = [raw.rindex(b"\xff\xc4", 0, scan) for scan in scans[1:]]
    assert len(tables) > 5
    for stop in [*scans[1:], *tables]:
        with pytest.raises(ImageError, match="cut short"):
            decode(raw[:stop], "photo")


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_with_a_damaged_text_is_read(place):
    raw = encoded(COLOUR, "PNG")
    damaged = struct.pack(">I", 6) + b"tEXtab\0xyz" + b"\0\0\0\0"
    at = 33 if place == "before" else len(raw) - 12
    raw = raw[:at] + damaged + raw[at:]
    assert (decode(raw, "photo") == COLOUR).all()
    assert read_header(raw, "photo").traits == ("mended",)


def test_a_png_with_damaged_pixels_is_refused():
    raw = bytearray(encoded(COLOUR, "PNG"))
    raw[len(raw) // 2] ^= 255
    with pytest.raises(ImageError, match=r"cannot be decoded|cut short"):
        decode(bytes(raw), "photo")


def test_pixels_of_32_bits_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 1_000_000, np.int32)).save(buffer, "TIFF")
    with pytest.raises(ImageError, match="pixels of 32 bits"):
        decode(buffer.getvalue(), "photo.tif")


@pytest.mark.posix("a named pipe")
def test_reading_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="no regular file"):
        read_bytes(tmp_path / "pipe.jpg", "pipe.jpg")


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("convscope.data.decode.BYTE_CAP", 10)
    (tmp_path / "photo.jpg").write_bytes(bytes(11))
    with pytest.raises(ImageError, match="An image may have") as caught:
        read_bytes(tmp_path / "photo.jpg", "photo.jpg")
    assert caught.value.kind == "too_large"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"photo\.jpg to be an image, got no such file") as caught:
        read_bytes(tmp_path / "photo.jpg", "photo.jpg")
    assert caught.value.kind == "missing"


def test_reading_an_image_file_gives_its_pixels(tmp_path):
    (tmp_path / "photo.dat").write_bytes(encoded(COLOUR, "PNG"))
    assert (read_image(tmp_path / "photo.dat") == COLOUR).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_format_is_told_by_its_first_bytes(kind):
    assert sniff(encoded(COLOUR, kind)[:HEAD]) == kind


def mutated(rng, originals):
    """Damage an image as disks, networks and enemies do: flip, cut, repeat, splice, overwrite."""
    raw = bytearray(originals[rng.integers(len(originals))])
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(len(raw))) if raw else 0
        choice = rng.integers(6)
        if choice == 0 and raw:
            raw[place] ^= 1 << int(rng.integers(8))
        elif choice == 1:
            raw = raw[:place]
        elif choice == 2:
            raw[place:place] = rng.bytes(int(rng.integers(1, 40)))
        elif choice == 3:
            raw[place : place + 4] = struct.pack(">I", int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 65535])))
        elif choice == 4:
            raw[place : place + 8] = raw[int(rng.integers(len(raw) + 1)) :][:8]
        elif len(raw) > 20:
            raw[:40] = bytes(int(value) for value in rng.integers(0, 256, 20)) + raw[20:40]
    return bytes(raw)


def many_kinds():
    """Encode the same picture in every format, and in the odd ways too."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    rows = [encoded(COLOUR, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")]
    rows += [encoded(COLOUR, name) for name in ("JPEG2000", "AVIF") if is_read(name)]
    rows += [encoded(COLOUR, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    rows += [encoded(COLOUR, "JPEG", progressive=True, exif=exif.tobytes())]
    rows += [encoded(COLOUR, "PNG", exif=exif.tobytes()), encoded(COLOUR, "WEBP", exif=exif.tobytes())]
    buffers = [io.BytesIO() for _ in range(4)]
    picture = Image.fromarray(COLOUR)
    picture.convert("CMYK").save(buffers[0], "JPEG")
    picture.save(buffers[1], "GIF", save_all=True, append_images=[picture.rotate(90)])
    picture.save(buffers[2], "WEBP", save_all=True, append_images=[picture.rotate(90)])
    Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 257).save(buffers[3], "PNG")
    return rows + [buffer.getvalue() for buffer in buffers]


def outcomes_of_mutation(count, seed):
    """Decode damaged images; count those that were refused. Anything but an ImageError gets through."""
    originals, rng = many_kinds(), np.random.default_rng(seed)
    refused = 0
    with quiet_pillow():
        for _ in range(count):
            raw = mutated(rng, originals)
            for read in (read_header, decode):
                try:
                    answer = read(raw, "mutant.jpg")
                except ImageError as error:
                    refused += read is decode
                    assert str(error).startswith("Expected mutant.jpg to")
                else:
                    assert read is read_header or (answer.dtype == np.uint8 and answer.ndim == 3)
    return refused


def test_mutated_images_are_decoded_or_refused():
    assert 100 < outcomes_of_mutation(300, seed=0) < 300


@pytest.mark.slow
def test_many_mutated_images_are_decoded_or_refused_in_little_memory():
    # A tenth by default; CONVSCOPE_FULL=1 tries all ten thousand.
    count = 10_000 if os.environ.get("CONVSCOPE_FULL") else 1_000
    code = f"import big, test_decode; print(test_decode.outcomes_of_mutation({count}, seed=1), big.peak())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=True,
    )
    # libtiff writes about damaged files by itself; nothing of ours may be there.
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    refused, peak = map(int, done.stdout.split())
    assert 0.3 * count < refused < count
    assert peak < 900_000  # KiB: one image at the cap, decoded and converted, and NumPy
