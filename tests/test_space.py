"""Space files: what is read from them, and that whatever is wrong in one is a single line."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convscope.errors import UsageError
from convscope.experiment.space import Choice, Range, parse_space, read_space

KNOWN = (
    "epochs",
    "learning_rate",
    "optimizer",
    "augment",
    "optimizer_settings",
    "seed",
    "find_learning_rate",
)


def test_fixed_values_lists_ranges_and_groups_are_read():
    space = parse_space(
        """
        epochs = {low = 2, high = 8, step = 2}
        learning_rate = {low = 1e-4, high = 0.1, log = true}
        optimizer = ["adam", "sgd"]
        seed = 7
        find-learning-rate = false
        augment = {shift = {low = 0, high = 0.2}, flip = "none"}
        optimizer_settings.beta_1 = [0.8, 0.9]
        pruner = {n_startup_trials = 2}
        """,
        KNOWN,
    )
    assert space.searched == {
        "epochs": Range(2, 8, 2),
        "learning_rate": Range(1e-4, 0.1, log=True),
        "optimizer": Choice(("adam", "sgd")),
        "augment.shift": Range(0.0, 0.2),
        "optimizer_settings.beta_1": Choice((0.8, 0.9)),
    }
    assert space.fixed == {"seed": 7, "find_learning_rate": False, "augment.flip": "none"}
    assert space.pruner == {"n_startup_trials": 2}
    assert space.searched["epochs"].whole
    assert space.searched["epochs"].grid() == [2, 4, 6, 8]
    assert space.searched["augment.shift"].grid() is None
    chosen = space.settings({"epochs": 4, "augment.shift": 0.1, "optimizer_settings.beta_1": 0.8})
    assert chosen == {
        "epochs": 4, "seed": 7, "find_learning_rate": False,
        "augment": "flip=none,shift=0.1", "optimizer_settings": {"beta_1": 0.8},
    }  # fmt: skip


WRONG = {
    "epochs = 3": "at least one setting to search",
    "epohcs = [1, 2]": "Did you mean 'epochs'?",
    "epochs = [1, 2": "to be TOML",
    "epochs = {low = 3, high = 3}": "epochs: Expected low to be below high, got 3 and 3",
    "epochs = {low = 3}": "low and high, got low = 3, high = None",
    "epochs = {low = 1, high = 4, step = 2}": "a whole number of steps",
    "epochs = {low = 1, high = 4, step = 0}": "a whole number of steps",
    "epochs = {low = 1, high = 4, step = 1, log = true}": "log or step",
    "epochs = {low = 1, hihg = 4}": "Did you mean 'high'?",
    "epochs = {low = true, high = 4}": "a range of numbers",
    "epochs = {low = 1, high = 4, log = 1}": "log = true or false",
    "learning_rate = {low = 0, high = 1, log = true}": "low above 0",
    "learning_rate = {low = nan, high = 1.0}": "a range of numbers",
    "learning_rate = [0.1, inf]": "finite numbers",
    "epochs = []": "a list of words or numbers",
    "epochs = [[1], 2]": "a list of words or numbers",
    "epochs = [1, 1]": "different values",
    "epochs = 1979-05-27": "a word, a number, a list or a range",
    "seed = [1, 2]": "seed: Expected one value",
    "sampler = 'TPESampler'\nepochs = [1, 2]": "--sampler",
}


@pytest.mark.parametrize("text", WRONG, ids=str)
def test_what_is_wrong_is_said_in_one_line(text):
    with pytest.raises(UsageError) as caught:
        parse_space(text, KNOWN, "space.toml")
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    from convscope.errors import DataError

    (tmp_path / "space.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("space.toml", "nowhere.toml"):
        with pytest.raises(DataError, match=name):
            read_space(tmp_path / name, KNOWN)


numbers = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6)


@given(low=numbers, high=numbers, log=st.booleans())
@settings(deadline=None, max_examples=50)
def test_a_range_is_read_as_it_is_or_refused(low, high, log):
    text = f"learning_rate = {{low = {low!r}, high = {high!r}, log = {str(log).lower()}}}"
    allowed = low < high and (low > 0 or not log)
    try:
        found = parse_space(text, KNOWN).searched["learning_rate"]
    except UsageError as error:
        assert not allowed
        assert "\n" not in str(error)
    else:
        assert allowed
        assert (found.low, found.high, found.log) == (low, high, log)
        assert found.whole is (isinstance(low, int) and isinstance(high, int))


@given(low=st.integers(-100, 100), step=st.integers(1, 20), count=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_a_grid_of_steps_has_both_ends(low, step, count):
    high = low + step * count
    grid = (
        parse_space(f"epochs = {{low = {low}, high = {high}, step = {step}}}", KNOWN)
        .searched["epochs"]
        .grid()
    )
    assert grid == list(range(low, high + 1, step))


scalars = st.text(max_size=5) | st.integers() | st.floats() | st.booleans() | st.dates()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(
    text=st.text(max_size=40)
    | st.sampled_from(["epochs = 1e999", "epochs = {low = 1, high = 1" + "0" * 400 + "}"])
)
@settings(deadline=None, max_examples=50)
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parse_space(text, KNOWN)
    except UsageError as error:
        assert str(error).isprintable()


def to_toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(key)} = {to_toml(one)}" for key, one in value.items()) + "}"
    return str(value) if not isinstance(value, float) else repr(value)


words = values.filter(lambda value: not any(0xD800 <= ord(letter) < 0xE000 for letter in str(value)))


@given(table=st.dictionaries(st.sampled_from(KNOWN), words, max_size=3))
@settings(deadline=None, max_examples=50)
def test_any_table_is_read_or_refused_in_one_line(table):
    text = "\n".join(f"{name} = {to_toml(value)}" for name, value in table.items())
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    try:
        space = parse_space(text, KNOWN)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert {name.split(".")[0] for name in (*space.fixed, *space.searched)} == set(table)
