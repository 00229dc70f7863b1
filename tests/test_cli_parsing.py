"""What is typed for a time, a share and an augmentation."""

from pathlib import Path

import pytest

from convscope.augmentation import PRESETS, Augmentation
from convscope.cli.inspecting import parse_image
from convscope.cli.parsing import read_augmentation, read_duration, read_position, read_share
from convscope.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("2m", 120), ("1h", 3600), ("1.5h", 5400), ("1h30m", 5400), ("2 min", 120)],
)
def test_times_are_read(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "0s", "5d", "s", "1e3s", "1,5h", "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match=r"^Expected a time such as 60s, 2m or 1h, got"):
        read_duration(text)


def test_positions_and_images_are_read():
    assert read_position("3,4") == read_position("3x4") == (3, 4)
    assert (parse_image("42"), parse_image("./42")) == (42, Path("42"))
    with pytest.raises(UsageError, match=r"^Expected a row and a column such as 3,4, got '3'"):
        read_position("3")


@pytest.mark.parametrize(("text", "share"), [("99%", 0.99), ("99.5", 0.995), ("0.98", 0.98), ("100 %", 1.0)])
def test_shares_are_read(text, share):
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "all", "0", "101%", "-1", "nan", "inf"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UsageError, match=r"^Expected an accuracy"):
        read_share(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Augmentation()),
        ("photographs", PRESETS["photographs"]),
        ("flip=horizontal,shift=0.1", Augmentation(flip="horizontal", shift=0.1)),
        ("digits, mixup=0.2 rotate=0", Augmentation(shift=0.08, zoom=0.1, mixup=0.2)),
    ],
)
def test_augmentations_are_read(text, expected):
    assert read_augmentation(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos", r"Expected one of the augmentations none, digits, .* Did you mean 'photographs'\?"),
        ("shifd=0.1", r"Expected one of the augmentation settings .* Did you mean 'shift'\?"),
        ("shift=much", "Expected a number as shift, got 'much'"),
        ("shift=0.9", "Expected shift from 0 to 0.5 of the side"),
        ("flip=sideways", "Expected one of the flips"),
        ("shift=nan", "Expected shift from 0 to 0.5"),
    ],
)
def test_impossible_augmentations_are_refused(text, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        read_augmentation(text)
