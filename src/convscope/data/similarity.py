"""Near-duplicates: images that show the same thing, saved again, resized or brightened.

A perceptual hash proposes pairs, the pixels decide. The hash has 64 bits: the signs, against their median, of
the 8×8 lowest frequencies of the cosine transform of a 32×32 grey copy (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Side of the copies that are compared, in pixels.
SIDE = 32
# Unrelated photographs differ in 9 bits or more, the same one saved again at quality 75 in at most 2.
MAXIMUM_DISTANCE = 4
# Unrelated photographs correlate by 0.92 at most; other copies of the same one by 0.97 nearly always, and
# no more than one in a hundred handwritten digits by as much with another one.
MINIMUM_CORRELATION = 0.97
# Grey levels: an image that varies less shows nothing whose likeness could be measured.
BLANK = 2.0
# If no more bits than MAXIMUM_DISTANCE differ, at least one of one more bands is equal.
_BANDS = np.array_split(np.arange(64), MAXIMUM_DISTANCE + 1)
# Hashes with an equal band that are compared each with each; a band of more is cut into stretches.
_BLOCK = 4096
_CHUNK = 4096
_PAIRS = 65_536
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink or enlarge an image (h, w, c) to 32×32."""
    if image.shape[:2] == (SIDE, SIDE):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).reshape(SIDE, SIDE, -1)


def perceptual_hash(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Condense thumbnails (n, 32, 32, c) into 64 bits each, few of which differ between copies; 0 if flat."""
    grey = _grey(thumbnails)  # (n, 32, 32)
    frequencies, positions = np.arange(8)[:, None], np.arange(SIDE)
    basis = np.cos(np.pi * (2 * positions + 1) * frequencies / (2 * SIDE)).astype(np.float32)  # (8, 32)
    spectrum = (basis @ grey @ basis.T).reshape(len(grey), 64)  # (n, 64)
    spectrum[:, 0] = 0  # the mean brightness tells nothing
    bits = spectrum > np.median(spectrum[:, 1:], axis=1, keepdims=True)
    bits[grey.std(axis=(1, 2)) < BLANK] = False
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def near_duplicates(images: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Put images (n, h, w, c) that show the same thing into one group, by their hashes and then their pixels.

    Gives for each image the position of the first of its group. Every member is a near-duplicate of that one,
    so that a chain of small steps does not join images that differ.
    """
    pairs = _alike(images, _candidates(hashes))
    groups = np.arange(len(hashes))
    for first, second in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]:
        if groups[second] == second and groups[first] == first:
            groups[second] = first
    return groups


def near_copies(known: NDArray[np.uint8], asked: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """List for each of some images (k, h, w, c) the rows of others (n, h, w, c) that show nearly the same."""
    thumbnails = np.stack([thumbnail(image) for image in asked])
    hashes = perceptual_hash(thumbnails)
    found: list[list[NDArray[np.int64]]] = [[] for _ in asked]
    for start in range(0, len(known), _CHUNK):
        chunk = np.stack([thumbnail(image) for image in known[start : start + _CHUNK]])
        distances = np.bitwise_count(perceptual_hash(chunk) ^ hashes[:, None])  # (k, n)
        for place, near in enumerate(distances <= MAXIMUM_DISTANCE):
            if not (rows := np.flatnonzero(near)).size:
                continue
            alike = _like(chunk[rows], np.repeat(thumbnails[place : place + 1], len(rows), axis=0))
            found[place].append(start + rows[alike])
    return [np.concatenate([np.empty(0, np.int64), *rows]) for rows in found]


def members_of(groups: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield the positions of the members of each group of more than one."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        if len(members) > 1:
            yield [int(number) for number in members]


def _candidates(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """List the pairs (k, 2), smaller position first, whose hashes differ in few bits."""
    found = [np.empty((0, 2), np.int64)]
    for band in _BANDS:
        mask = np.uint64(sum(1 << int(bit) for bit in band))
        for block in _equal_blocks(hashes & mask):
            found.append(_close_pairs(hashes, block))
    return np.unique(np.concatenate(found), axis=0)


def _equal_blocks(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the positions that share a key, where more than one does."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    for start, stop in zip(starts, np.append(starts[1:], len(keys)), strict=True):
        for cut in range(start, stop, _BLOCK):
            block = order[cut : min(cut + _BLOCK, stop)]
            if len(block) > 1:
                yield block


def _close_pairs(hashes: NDArray[np.uint64], block: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compare each with each inside a block."""
    block = np.sort(block)
    distances = np.bitwise_count(hashes[block][:, None] ^ hashes[block])  # (k, k)
    first, second = np.nonzero(np.triu(distances <= MAXIMUM_DISTANCE, 1))
    return np.stack([block[first], block[second]], axis=1)


def _alike(images: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep the pairs whose pixels are alike."""
    kept = [np.empty((0, 2), np.int64)]
    # A stretch of pairs at a time, so that the thumbnails of all of them need not be in memory.
    for start in range(0, len(pairs), _PAIRS):
        stretch = pairs[start : start + _PAIRS]
        positions, inverse = np.unique(stretch, return_inverse=True)
        thumbnails = np.stack([thumbnail(image) for image in images[positions]])
        first, second = inverse.reshape(-1, 2).T
        for cut in range(0, len(stretch), _CHUNK):
            chunk = slice(cut, cut + _CHUNK)
            kept.append(stretch[chunk][_like(thumbnails[first[chunk]], thumbnails[second[chunk]])])
    return np.concatenate(kept)


def _like(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Correlate thumbnails pair by pair; two blank ones are alike if they have nearly the same colour."""
    one, other = (pixels.reshape(len(pixels), -1).astype(np.float32) for pixels in (first, second))  # (k, d)
    correlation = np.einsum("kd,kd->k", _unit(one), _unit(other))
    both_blank = (_grey(first).std(axis=(1, 2)) < BLANK) & (_grey(second).std(axis=(1, 2)) < BLANK)
    same_colour = np.abs(one - other).mean(axis=1) < 2 * BLANK
    alike: NDArray[np.bool_] = np.where(both_blank, same_colour, correlation >= MINIMUM_CORRELATION)
    return alike


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the mean off each row and bring it to length 1."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return unit


def _grey(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce (n, h, w, c) to luminance, (n, h, w)."""
    if pixels.shape[-1] == 1:
        return pixels[..., 0].astype(np.float32)
    luminance: NDArray[np.float32] = pixels.astype(np.float32) @ _LUMINANCE
    return luminance
