"""Augmentation: a pure function of seed, epoch and step; each change held against NumPy or SciPy."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import photograph
from scipy import ndimage

from convscope.augmentation import PRESETS, Augmentation, affine_maps, warp
from convscope.errors import UnknownNameError, UsageError

PHOTOS = np.stack([photograph([4, number], 24) for number in range(32)])[:, :18]  # (32, 18, 24, 3)
LABELS = np.eye(4, dtype=np.float32)[np.arange(32) % 4]
STRONG = Augmentation(0.2, 30, 0.3, "both", 0.5, 0.3, 0.4, 1.0)
SINGLE = {
    "shift": Augmentation(shift=0.3),
    "rotate": Augmentation(rotate=40),
    "zoom": Augmentation(zoom=0.5),
    "flip": Augmentation(flip="horizontal"),
    "erase": Augmentation(erase=1.0),
    "contrast": Augmentation(contrast=0.5),
    "mixup": Augmentation(mixup=1.0),
    "cutmix": Augmentation(cutmix=1.0),
}
each = pytest.mark.parametrize("augmentation", SINGLE.values(), ids=SINGLE)


def applied(augmentation, images=PHOTOS, targets=LABELS, seed=1, epoch=2, step=3):
    changed = augmentation.apply(
        torch.from_numpy(images.copy()), torch.from_numpy(targets.copy()), seed=seed, epoch=epoch, step=step
    )
    return tuple(tensor.numpy() for tensor in changed)


@each
def test_the_same_seed_epoch_and_step_give_the_same_batch(augmentation):
    torch.manual_seed(0)
    first = applied(augmentation)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  what others draw must not matter
    second = applied(augmentation)
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


@each
@pytest.mark.parametrize("other", [{"seed": 7}, {"epoch": 7}, {"step": 7}], ids=str)
def test_another_seed_epoch_or_step_gives_another_batch(augmentation, other):
    assert (applied(augmentation)[0] != applied(augmentation, **other)[0]).any()


def test_nothing_else_is_drawn_from():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    applied(STRONG)
    assert (torch.get_rng_state() == before).all()


@each
def test_the_given_images_are_left_as_they_are(augmentation):
    images, targets = torch.from_numpy(PHOTOS.copy()), torch.from_numpy(LABELS.copy())
    changed, _ = augmentation.apply(images, targets, seed=1, epoch=2, step=3)
    assert (images.numpy() == PHOTOS).all()
    assert (targets.numpy() == LABELS).all()
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert changed.is_contiguous()


def test_no_augmentation_changes_nothing():
    images, targets = applied(Augmentation())
    assert (images == PHOTOS).all()
    assert (targets == LABELS).all()


def test_a_flip_mirrors_about_half_of_the_images():
    images, _ = applied(
        Augmentation(flip="horizontal"), np.tile(PHOTOS, (16, 1, 1, 1)), np.tile(LABELS, (16, 1))
    )
    originals = np.tile(PHOTOS, (16, 1, 1, 1))
    mirrored = (images == originals[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (images == originals).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 0.4 < mirrored.mean() < 0.6  # 512 fair coins leave this range once in 10⁵


def test_both_flips_give_all_four_pictures():
    images, _ = applied(Augmentation(flip="both"))
    ways = [(images == PHOTOS[:, ::up, ::side]).all(axis=(1, 2, 3)) for up in (1, -1) for side in (1, -1)]
    assert (np.sum(ways, axis=0) == 1).all()
    assert all(way.any() for way in ways)


def test_a_shift_moves_whole_pixels_and_repeats_the_edge():
    images, _ = applied(Augmentation(shift=0.2))
    moves = set()
    for image, original in zip(images, PHOTOS, strict=True):
        padded = np.pad(original, ((4, 4), (5, 5), (0, 0)), mode="edge")  # 0.2 · 18 = 3.6, 0.2 · 24 = 4.8
        found = [
            (down, right)
            for down in range(-4, 5)
            for right in range(-5, 6)
            if (padded[4 - down : 22 - down, 5 - right : 29 - right] == image).all()
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 20


def test_a_quarter_turn_is_numpys():
    square = torch.from_numpy(PHOTOS[:1, :, :18].transpose(0, 3, 1, 2).astype(np.float32))
    maps = affine_maps(18, 18, np.array([np.pi / 2]), np.ones(1), np.zeros(1), np.zeros(1))
    turned = warp(square, torch.from_numpy(maps).float())
    assert np.abs(turned.numpy() - np.rot90(square.numpy(), axes=(2, 3))).max() < 1e-2  # of 255, in float32


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(0.5, 2), st.integers(-6, 6), st.integers(-6, 6))
def test_a_warp_is_scipys_affine_transform(angle, zoom, right, down):
    image = PHOTOS[0, ..., 0].astype(np.float64)  # (18, 24): sides that differ
    values = torch.from_numpy(image)[None, None]
    maps = affine_maps(*image.shape, *(np.array([value]) for value in (angle, zoom, right, down)))
    ours = warp(values, torch.from_numpy(maps))
    centre = (np.array(image.shape) - 1) / 2
    # SciPy maps (row, column) of the result to (row, column) of the image.
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    offset = centre - back @ (centre + np.array([down, right]))
    theirs = ndimage.affine_transform(image, back, offset, order=1, mode="nearest")
    assert np.abs(ours[0, 0].numpy() - theirs).max() < 1e-3


def test_contrast_pulls_to_the_mean_or_away_from_it():
    images, _ = applied(Augmentation(contrast=0.5))
    for image, original in zip(images.astype(float), PHOTOS.astype(float), strict=True):
        mean = original.mean()
        inside = (image > 0) & (image < 255) & (np.abs(original - mean) > 60)
        factors = ((image - mean) / (original - mean))[inside]
        assert 1 / 1.5 - 0.02 < factors.min() <= factors.max() < 1.5 + 0.02
        assert np.ptp(factors) < 0.02  # rounding to whole grey levels


def test_erasing_paints_a_rectangle_in_the_mean_colour():
    images, _ = applied(Augmentation(erase=1.0))
    for image, original in zip(images, PHOTOS, strict=True):
        changed = (image != original).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == np.rint(original.mean(axis=(0, 1)))).all()
        assert 0.005 < box.shape[0] * box.shape[1] / (18 * 24) < 0.4


def test_erasing_leaves_the_share_that_it_should():
    images, _ = applied(Augmentation(erase=0.25), np.tile(PHOTOS, (16, 1, 1, 1)), np.tile(LABELS, (16, 1)))
    changed = (images != np.tile(PHOTOS, (16, 1, 1, 1))).any(axis=(1, 2, 3))
    assert 0.17 < changed.mean() < 0.33  # 512 draws leave this range once in 10⁴


def test_mixup_blends_images_as_it_blends_labels():
    images, targets = applied(Augmentation(mixup=1.0))
    assert targets.sum(axis=1) == pytest.approx(np.ones(32), abs=1e-6)
    single = np.eye(32, dtype=np.float32)
    shares = applied(Augmentation(mixup=1.0), targets=single)[1]
    assert np.abs(np.tensordot(shares, PHOTOS.astype(float), 1) - images).max() <= 0.51
    assert shares @ LABELS == pytest.approx(targets, abs=1e-6)


def test_cutmix_pastes_as_much_as_its_labels_say():
    for step in range(8):
        images, shares = applied(Augmentation(cutmix=1.0), targets=np.eye(32, dtype=np.float32), step=step)
        for number, (image, row) in enumerate(zip(images, shares, strict=True)):
            other = int(np.argmax(np.where(np.arange(32) == number, -1, row)))
            from_other = (image == PHOTOS[other]).all(axis=2)
            from_itself = (image == PHOTOS[number]).all(axis=2)
            assert (from_other | from_itself).all()
            if row[number] < 1:
                assert from_itself.mean() == pytest.approx(
                    row[number], abs=0.02
                )  # few pixels agree by chance


def test_with_both_each_batch_gets_one_of_mixup_and_cutmix():
    kinds = set()
    for step in range(20):
        images, _ = applied(Augmentation(mixup=1.0, cutmix=1.0), step=step)
        # After cutmix each pixel is that of some photograph at the same place, to the bit.
        pasted = (images[0] == PHOTOS).all(axis=3).any(axis=0)  # (18, 24)
        kinds.add(bool(pasted.all()))
    assert kinds == {True, False}


def test_everything_together_stays_an_image():
    images, targets = applied(STRONG)
    assert images.shape == PHOTOS.shape
    assert targets.sum(axis=1) == pytest.approx(np.ones(32), abs=1e-6)
    assert images.std() > 20


def test_an_empty_batch_stays_empty():
    images, targets = applied(STRONG, PHOTOS[:0], LABELS[:0])
    assert (len(images), len(targets)) == (0, 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2)], ids=str)
def test_images_of_any_size_can_be_augmented(size, channels):
    images = np.full((3, *size, channels), 100, np.uint8)
    assert (applied(STRONG, images, LABELS[:3])[0] == 100).all()


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (
            torch.zeros(2, 4, 4, 1),
            torch.eye(2),
            r"images as uint8 .* got torch\.float32 .*Augment raw pixels",
        ),
        (torch.zeros(4, 4, 1, dtype=torch.uint8), torch.eye(4), "got torch.uint8 of shape"),
        (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.eye(3), "a label for each of 2 images, got 3"),
        (
            torch.zeros(2, 4, 4, 1, dtype=torch.uint8),
            torch.tensor([0, 1]),
            "one-hot labels as floating point",
        ),
    ],
    ids=["float", "one-image", "labels", "sparse"],
)
def test_what_is_no_raw_batch_is_refused(images, targets, message):
    with pytest.raises(UsageError, match=message):
        STRONG.apply(images, targets, seed=0, epoch=0, step=0)


def test_labels_that_are_numbers_do_without_mixing():
    numbers = np.arange(32)
    assert (applied(Augmentation(shift=0.1), targets=numbers)[1] == numbers).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 0.6}, "shift from 0 to 0.5 of the side, got 0.6"),
        ({"rotate": -1}, "rotate from 0 to 180 degrees, got -1"),
        ({"zoom": "much"}, "zoom from 0 to 1 of the size, got 'much'"),
        ({"mixup": float("nan")}, "mixup from 0 to 10 as alpha, got nan"),
        ({"erase": True}, "got True"),
    ],
    ids=["shift", "rotate", "zoom", "mixup", "erase"],
)
def test_amounts_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Augmentation(**settings)


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'horizontal'"):
        Augmentation(flip="horizontl")
    with pytest.raises(UnknownNameError, match="Did you mean 'rotate'"):
        Augmentation.from_dict({"rotat": 3})


@pytest.mark.parametrize("augmentation", [*PRESETS.values(), STRONG], ids=[*PRESETS, "all"])
def test_settings_survive_json(augmentation):
    assert Augmentation.from_dict(json.loads(json.dumps(augmentation.to_dict()))) == augmentation


def test_a_view_is_a_batch_of_unmixed_images():
    plain = Augmentation(shift=0.3, flip="horizontal")
    views = [plain.view(PHOTOS, seed=1, number=number) for number in (0, 1)]
    expected, _ = plain.apply(torch.from_numpy(PHOTOS), torch.from_numpy(LABELS), seed=1, epoch=0, step=0)
    np.testing.assert_array_equal(views[0], expected.numpy())
    assert not np.array_equal(*views)
    mixing = Augmentation(shift=0.3, flip="horizontal", mixup=1.0)
    np.testing.assert_array_equal(mixing.view(PHOTOS, seed=1, number=0), views[0])
