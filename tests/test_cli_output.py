"""How the command line speaks in a terminal of some width, and in a pipe."""

import io
import re

import pytest

from convscope.cli import output

SENTENCE = (
    "Probabilities are sharpened by a temperature that was fitted on the validation images of this run."
)
PATH = "cifar10-mini/test/automobile/a-photograph-with-a-long-name-0123456789-0123456789.jpg"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """Print into a terminal of so many columns, or a pipe; give the lines."""

    def printed(columns, write):
        stream = Terminal() if columns else io.StringIO()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns or 30))
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        write()
        return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()

    return printed


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("speak", [output.say, output.warn, output.fail], ids=lambda one: one.__name__)
def test_a_terminal_breaks_sentences_between_words(printed, columns, speak):
    lines = printed(columns, lambda: speak(f"{SENTENCE} [80]\n  {SENTENCE}"))
    assert all(len(line) <= columns for line in lines)
    assert " ".join(lines).removeprefix("Error: ").split() == f"{SENTENCE} [80] {SENTENCE}".split()
    assert lines[-1].startswith("  ")


def test_a_pipe_gets_whole_lines(printed):
    assert printed(None, lambda: output.say(f"{SENTENCE}\n{PATH} {PATH}")) == [SENTENCE, f"{PATH} {PATH}"]


def test_what_is_pasted_is_not_broken(printed):
    command = f"convscope predict runs/deep {PATH}"
    assert printed(40, lambda: output.say(command, whole=True)) == [command]
    assert printed(40, lambda: output.say(f"See {PATH}.")) == ["See", f"{PATH}."]
    within = f"`{command}` goes on after 3 epochs."
    assert printed(40, lambda: output.say(within)) == [f"`{command}`", "goes on after 3 epochs."]


TABLE = (
    ["network", "same labels", "largest difference", "file"],
    [["model-int8.onnx", "100.00%", "1.0e-07", "cifar10-mini/test/cat/0001.png"], ["the run", "", "", ""]],
)


@pytest.mark.parametrize("columns", [70, 80, 200])
def test_a_table_breaks_cells_between_words_and_behind_slashes(printed, columns):
    lines = printed(columns, lambda: output.table("", *TABLE, left=(0, 3)))
    assert all(len(line) <= columns for line in lines)
    cells = " ".join(" ".join(lines).replace("┃", "│").replace("│", " ").split())
    for word in ("model-int8.onnx", "difference", "labels", "100.00%", "cifar10-mini/", "0001.png"):
        assert word in cells


def test_a_table_does_without_what_is_spare(printed):
    lines = printed(60, lambda: output.table("", *TABLE, left=(0, 3), spare=(2,)))
    assert not any("difference" in line for line in lines)
    assert any("cifar10-mini/test/cat/0001.png" in line or "cifar10-mini/test/" in line for line in lines)


def test_a_number_is_not_parted_from_its_unit(printed):
    rows = [["the run", "0.0999 ms", "12.5 MB"], ["the exported one", "0.312 ms", "3 kB"]]
    lines = printed(35, lambda: output.table("", ["network", "time", "size"], rows))
    for number in ("0.0999 ms", "12.5 MB", "0.312 ms", "3 kB"):
        assert any(number in line for line in lines)
    assert printed(18, lambda: output.say("It took longer: 12 ms.")) == ["It took longer:", "12 ms."]
