"""Progress in a pipe, a terminal and a notebook."""

import builtins
import io
import re
import sys
import types

import pytest
from training_cases import images, network

import convscope
from convscope.errors import UsageError
from convscope.training import progress
from convscope.training.events import EpochBegin, EpochEnd, Notice, StepEnd, TrainBegin, TrainEnd
from convscope.training.progress import EpochLines, describe_epoch, progress_listener

LOGS = {"val_loss": 0.3, "accuracy": 0.9, "loss": 0.25, "val_accuracy": 0.875, "learning_rate": 0.0001}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def training(logs=LOGS, steps=4):
    yield TrainBegin("fast", 0, 2, steps)
    for epoch in range(2):
        yield EpochBegin(epoch)
        for step in range(4):
            yield StepEnd(epoch, step, steps, lambda: logs, lambda: None)
        yield EpochEnd(epoch, logs, 65.0, lambda: None)
    yield TrainEnd(logs, 130.0)


def play(listener, events=None):
    for event in events or training():
        listener(event)


def test_a_pipe_gets_a_line_for_each_epoch():
    stream = io.StringIO()
    play(EpochLines(stream))
    assert stream.getvalue().splitlines() == [
        f"Epoch {epoch}/2 · 1 min 5 s · loss 0.2500 · accuracy 0.9000 · learning rate 1.00e-04 · "
        "val loss 0.3000 · val accuracy 0.8750"
        for epoch in (1, 2)
    ]


def test_a_notice_gets_a_line():
    stream = io.StringIO()
    EpochLines(stream)(Notice("no images"))
    assert stream.getvalue() == "no images\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0 s"), (3.14, "3.1 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min")],
)
def test_durations_read_well(seconds, text):
    assert describe_epoch(EpochEnd(0, {}, seconds, lambda: None), 1) == f"Epoch 1/1 · {text}"


def shown_in(columns, monkeypatch, events=None):
    """Play a training in a terminal; give what was drawn, line by line, without its codes."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    (listener,) = progress_listener("auto")
    play(listener, events)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")


def test_a_terminal_shows_the_epoch_that_runs(monkeypatch):
    shown = shown_in(140, monkeypatch)
    first = next(line for line in shown if " 1/4 " in line)
    assert re.match(r"Epoch 1/2 ━{4}\S+ 1/4 · 0 s left · loss 0.2500 · accuracy 0.9000", first)
    assert any(line.startswith("Epoch 2/2 · 1 min 5 s · loss 0.2500 · accuracy 0.9000") for line in shown)


USUAL = {"loss": 0.25, "accuracy": 0.9, "val_loss": 0.3, "val_accuracy": 0.875}


def test_eighty_columns_hold_every_number_of_an_epoch(monkeypatch):
    shown = shown_in(80, monkeypatch, training(USUAL, steps=1000))
    assert all(len(line) <= 80 for line in shown)
    ends = [line for line in shown if "min" in line]
    assert ends[0] == "Epoch 1/2 · 1 min 5 s · loss 0.2500 acc 0.9000 · val loss 0.3000 acc 0.8750"
    running = [line for line in shown if "/1000" in line]
    assert running and all("━" in line and "accuracy 0.9000" in line for line in running)


def test_forty_columns_hold_what_there_is_room_for(monkeypatch):
    shown = shown_in(40, monkeypatch)
    assert all(len(line) <= 40 for line in shown)
    assert any(re.match("Epoch 1/2 ━{4,} 4/4 · 0 s left", line) for line in shown)


def test_a_broken_training_gives_the_terminal_back(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setenv("TERM", "xterm")

    def interrupt(event):
        if isinstance(event, StepEnd) and event.step == 1:
            raise KeyboardInterrupt

    x, y = images(20)
    with pytest.raises(KeyboardInterrupt):
        convscope.fit(network(), x, y, batch_size=5, listeners=[interrupt], seed=1)
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert screen.getvalue().count(hidden) == screen.getvalue().count(shown) == 1


def test_a_terminal_without_a_known_length_counts_steps(monkeypatch):
    shown = shown_in(80, monkeypatch, training(steps=None))
    assert any(line.startswith("Epoch 1/2 step 3 · loss 0.2500") for line in shown)


def test_numbers_are_read_seldom(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    (listener,) = progress_listener("auto")
    reads = []

    def read():
        reads.append(1)
        return LOGS

    listener(TrainBegin("fast", 0, 1, 1000))
    listener(EpochBegin(0))
    for step in range(1000):
        listener(StepEnd(0, step, 1000, read, lambda: None))
    assert len(reads) < 20


class Handle:
    def __init__(self):
        self.pages = []

    def update(self, data, raw):
        assert raw
        self.pages.append(data["text/plain"])


def test_a_notebook_updates_its_own_output(monkeypatch):
    handle = Handle()
    shell = type("ZMQInteractiveShell", (), {})()
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)

    def show(data, raw, display_id):
        handle.update(data, raw)
        return handle

    display = types.SimpleNamespace(display=show)
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)  # as a kernel has it
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0)
    (listener,) = progress_listener("auto")
    play(listener, [*training(), Notice("a long sentence " * 20), Notice("done")])
    assert all(len(line) <= 100 for page in handle.pages for line in page.splitlines())
    assert handle.pages[0].startswith("Epoch 1/2 ━")
    assert handle.pages[-1].splitlines()[0].startswith("Epoch 1/2 · 1 min 5 s")
    assert handle.pages[-1].splitlines()[-1] == "done"


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize(("verbose", "lines"), [("auto", 2), (1, 2), (2, 2), (0, 0)])
def test_fit_writes_as_verbose_says(capsys, engine, verbose, lines):
    x, y = images(20)
    convscope.fit(network(), x, y, epochs=2, verbose=verbose, engine=engine, seed=1)
    written = capsys.readouterr().out.splitlines()
    if engine == "fast" and verbose:  # which numbers are computed with is never chosen in silence
        assert written.pop(0).startswith("Precision: ")
    assert len(written) == lines
    assert all(line.startswith("Epoch ") and " · loss " in line for line in written)


def test_another_verbose_is_refused():
    with pytest.raises(UsageError, match=r'^Expected verbose "auto", 0, 1 or 2, got 3.$'):
        progress_listener(3)
