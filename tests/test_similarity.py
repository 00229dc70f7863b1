"""Near-duplicates: copies are found, other images are not, and the search is what its definition says."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import encoded, photograph
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from convscope.data import similarity
from convscope.data.dataset import split_indices
from convscope.data.similarity import near_duplicates, perceptual_hash, thumbnail

PHOTOS = np.stack([photograph([1, number]) for number in range(60)])


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


COPIES = {
    "same": lambda picture: picture,
    "jpeg 75": lambda picture: saved(picture, "JPEG", quality=75),
    "webp": lambda picture: saved(picture, "WEBP", quality=80),
    "larger": lambda picture: picture.resize((80, 80), Image.Resampling.BICUBIC),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
    "paler": lambda picture: ImageEnhance.Contrast(picture).enhance(0.8),
}


def groups_of(images):
    hashes = perceptual_hash(np.stack([thumbnail(image) for image in images]))
    return near_duplicates(images, hashes)


def test_other_images_are_no_duplicates():
    assert (groups_of(PHOTOS) == np.arange(60)).all()


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_found(change):
    copies = [np.asarray(change(Image.fromarray(photo)).resize((32, 32))) for photo in PHOTOS]
    assert (groups_of(np.concatenate([PHOTOS, copies])) == np.tile(np.arange(60), 2)).mean() > 0.95


@pytest.mark.parametrize("share", [1, 3], ids=["grey", "colour"])
def test_the_hash_is_that_of_a_cosine_transform(share):
    images = PHOTOS[..., :share]
    grey = images.astype(np.float64) @ ([1.0] if share == 1 else [0.299, 0.587, 0.114])
    spectrum = dctn(grey, axes=(1, 2), norm=None)[:, :8, :8].reshape(60, 64)
    # SciPy counts the constant of each axis like the others, twice.
    spectrum[:, 0] = 0
    bits = spectrum > np.median(spectrum[:, 1:], axis=1, keepdims=True)
    theirs = [int("".join("01"[bit] for bit in row), 2) for row in bits.astype(int)]
    differing = np.bitwise_count(perceptual_hash(images) ^ np.array(theirs, np.uint64))
    assert differing.max() <= 1  # a coefficient that is the median may fall on either side of it


def test_blank_images_are_told_by_their_colour():
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 1, 100, 101, 200)])
    assert groups_of(images).tolist() == [0, 0, 2, 2, 4]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=12), st.data())
@settings(max_examples=60)
def test_candidates_are_all_pairs_that_differ_in_few_bits(values, data):
    flips = data.draw(st.lists(st.integers(0, 63), max_size=6))
    mask = sum(1 << bit for bit in set(flips))
    hashes = np.array([*values, values[0] ^ mask], np.uint64)
    close = np.bitwise_count(hashes[:, None] ^ hashes) <= similarity.MAXIMUM_DISTANCE
    expected = np.argwhere(np.triu(close, 1)).tolist()
    assert similarity._candidates(hashes).tolist() == expected


def test_every_member_of_a_group_is_like_its_first():
    # Each step of a slow change is a near-duplicate of the one before; the ends show different things.
    steps = np.linspace(0, 1, 30)[:, None, None, None]
    images = np.rint(PHOTOS[0] * (1 - steps) + PHOTOS[1] * steps).astype(np.uint8)
    groups = groups_of(images)
    assert len(set(groups.tolist())) > 2
    assert (groups[groups] == groups).all()
    for number, first in enumerate(groups):
        one, other = (images[position].astype(float).ravel() for position in (number, first))
        assert np.corrcoef(one, other)[0, 1] >= similarity.MINIMUM_CORRELATION - 1e-6


def test_thumbnails_are_compared_some_at_a_time(monkeypatch):
    images = np.concatenate([PHOTOS, PHOTOS])
    whole = groups_of(images)
    monkeypatch.setattr(similarity, "_PAIRS", 7)
    monkeypatch.setattr(similarity, "_CHUNK", 3)
    assert (groups_of(images) == whole).all()


@given(st.lists(st.integers(0, 30), min_size=30, max_size=120), st.integers(0, 9))
def test_a_split_keeps_groups_together(numbers, seed):
    groups = np.array(numbers)
    labels = groups % 2
    labels[:4], groups[:4] = [0, 1, 0, 1], [100, 101, 102, 103]
    first, second = split_indices(labels, 0.3, seed, groups=groups)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert not set(groups[first]) & set(groups[second])
    assert len(first) > 0 < len(second)


def test_a_class_of_one_group_is_on_both_sides_all_the_same():
    labels, groups = np.repeat([0, 1], 10), np.r_[np.arange(10), np.full(10, 10)]
    first, second = split_indices(labels, 0.3, 1, groups=groups)
    assert (np.bincount(labels[first]).tolist(), np.bincount(labels[second]).tolist()) == ([7, 7], [3, 3])


def test_a_split_without_groups_of_several_is_the_ordinary_one():
    labels = np.arange(40) % 4
    ours = split_indices(labels, 0.25, 3, groups=np.arange(40))
    theirs = split_indices(labels, 0.25, 3)
    assert all((one == other).all() for one, other in zip(ours, theirs, strict=True))


def test_copies_are_found_in_files_of_every_kind():
    raws = [encoded(PHOTOS[0], kind) for kind in ("PNG", "JPEG", "WEBP")]
    images = [np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in raws]
    assert groups_of(np.stack(images)).tolist() == [0, 0, 0]
