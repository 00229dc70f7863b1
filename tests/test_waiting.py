"""What is seen while a command is busy."""

import io
import logging
import re
import subprocess
import sys
import time

import pytest
from bundle_cases import copy_of

from convscope.cli import waiting
from convscope.training.events import Alert, Notice


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """Show on a stream of the test's own, at once."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    logger = logging.getLogger(waiting.PROGRESS)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger._cache.clear()
    made = []

    def show(stream):
        handler = waiting.Waiting(stream)
        monkeypatch.setattr(waiting, "_shown", handler)
        monkeypatch.setattr(logger, "handlers", [handler])
        made.append(handler)
        return logger.info

    yield show
    made[-1].done()
    monkeypatch.undo()
    logger._cache.clear()


def wait_for(stream, text):
    deadline = time.monotonic() + 20
    while text not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    return stream.getvalue()


def test_a_pipe_gets_a_line_for_each_thing_that_takes_its_time(shown):
    pipe = io.StringIO()
    say = shown(pipe)
    say("Reading %s", "mnist")
    assert wait_for(pipe, "…") == "Reading mnist …\n"
    say("Drawing")
    assert wait_for(pipe, "Drawing …") == "Reading mnist …\nDrawing …\n"


def test_what_is_quick_is_not_mentioned(shown, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 60.0)
    pipe = io.StringIO()
    say = shown(pipe)
    say("Reading")
    say("Drawing")
    waiting.done()
    assert not pipe.getvalue()


def test_a_terminal_gets_one_line_that_goes_away_before_anything_else_is_written(shown):
    terminal = Terminal()
    say = shown(terminal)
    say("Reading")
    assert "Reading …" in wait_for(terminal, "Reading …")
    say("Drawing")
    assert "Drawing …" in wait_for(terminal, "Drawing …")
    waiting.done()
    ended = terminal.getvalue()
    assert ended.count("\n") == 1
    assert re.search(r"\x1b\[1A\x1b\[2K$", ended)  # up, and the line cleared
    time.sleep(0.3)
    assert terminal.getvalue() == ended


def test_output_removes_it(shown, capsys):
    from convscope.cli.output import say

    terminal = Terminal()
    shown(terminal)("Reading")
    wait_for(terminal, "Reading …")
    say("The answer")
    assert capsys.readouterr().out == "The answer\n"
    assert terminal.getvalue().endswith("\x1b[2K")


def test_json_stays_alone_on_standard_output_while_standard_error_tells_what_is_done(digits_run, tmp_path):
    code = (
        "from convscope.cli import start, waiting\nwaiting.PATIENCE = 0.0\n"
        "import sys; sys.argv = ['convscope', *sys.argv[1:]]\nstart()"
    )
    command = [sys.executable, "-c", code, "report", str(copy_of(digits_run, tmp_path / "run")), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("{")
    assert done.stderr.splitlines()[0] == "Loading torch and Keras …"
    assert "Writing the report …" in done.stderr.splitlines()


def test_a_process_that_is_not_the_programs_own_hears_nothing(typed, tmp_path):
    typed("data", "info", "digits", cwd=tmp_path)
    assert waiting._shown is None
    assert not logging.getLogger(waiting.PROGRESS).handlers


def test_an_alert_of_one_of_several_networks_is_shown_once(capsys):
    said = []
    with waiting.SideBySide(json=True, runs=2, warn=said.append) as on_event:
        for name in ("seed-1", "seed-2"):
            on_event(name, Notice("what matters to one"))
            on_event(name, Alert("A tool cannot be told."))
    assert said == ["A tool cannot be told."]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("encoding", "spinner"), [("utf-8", "⠋"), ("cp437", "-")])
def test_a_console_is_shown_what_it_has_characters_for(encoding, spinner):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    assert waiting.Waiting(stream)._spinning("Busy").frames[0] == spinner
