"""What every test needs."""

import errno
import os
import random
import shutil
import signal
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from process_state import process_state, settled_changes

# Small arrays gain nothing from a second thread, and threads that wait for one another lose much where other
# programs run too. Set before torch is loaded; programs that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests name the device that they mean; where none is named it is the processor, on a machine with a GPU too.
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")

# Figures are drawn into memory, whatever display and back end the machine has.
mpl.use("agg")

import convscope  # it chooses Keras's back end, before a test imports Keras

# A shell that starts tests in the background lets them ignore an interruption, which some are about.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine takes longer for an example than the 200 ms that hypothesis allows; that is no failure.
# The same examples each time: a change is judged by what it changes.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--use-fake-device-for-media-stream",
]  # fmt: skip


@dataclass
class Done:
    """What a command left behind on its channels."""

    returncode: int
    stdout: str
    stderr: str


# These load what only POSIX has as soon as they are collected.
collect_ignore = [] if os.name == "posix" else ["test_crashes.py", "test_many_images.py"]


# Begun first: the file that is begun last keeps one core busy while the others have nothing to do.
LONGEST = (
    "test_batch_prediction.py", "test_crashes.py", "test_devices.py", "test_distributed.py",
    "test_explorer_browser.py", "test_lessons_browser.py", "test_lessons_execution.py",
    "test_lowering_networks.py", "test_marking.py", "test_report_browser.py", "test_sweep.py",
    "test_training_api.py", "test_transfer.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Begin with the longest files, and leave out what needs POSIX where there is none."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    missing = [item for item in items if os.name != "posix" and item.get_closest_marker("posix")]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if item not in missing]


def pytest_configure(config):
    """Leave the order of the tests to chance, but not the numbers that they draw."""
    config.option.randomly_reset_seed = False


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Draw the same random numbers in a fixture that several tests share, whichever of them comes first."""
    if fixturedef.scope == "function":
        return (yield)
    state = random.getstate(), np.random.get_state()  # noqa: NPY002
    _seed(fixturedef.argname)
    try:
        return (yield)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    _seed(item.nodeid)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    _seed(item.nodeid)
    return (yield)


def _seed(name):
    random.seed(name)
    np.random.seed(zlib.crc32(name.encode()))  # noqa: NPY002 - what libraries draw from


def pytest_terminal_summary(terminalreporter, config):
    """Say how to repeat the order of the tests; with -q, pytest leaves out the head of its output."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"the same order again: -p randomly --randomly-seed={seed}")


@pytest.fixture(autouse=True)
def unchanged_process():
    """Fail the test that leaves a figure, a thread, a setting or anything else of its process changed."""
    before = process_state()
    yield
    found = settled_changes(before)
    if found:
        pytest.fail("left behind in the process:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keep a test's decoded images from those of other tests."""
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run a command in this process: another one would spend seconds on loading torch and Keras."""

    from convscope.cli import main

    def run(*arguments, cwd, **environment):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["convscope", *arguments])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as exit_:
            main()
        return Done(exit_.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def read_only(monkeypatch):
    """Let a disk refuse to write into a folder; permissions would not stop root."""
    import tempfile

    from convscope import runs

    def protect(folder):
        def refuse(path):
            if Path(folder).resolve() in Path(path).resolve().parents:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        def acquire(self):
            refuse(self.lock_file)
            return lock(self)

        def mkstemp(*arguments, **options):
            refuse(Path(options["dir"]) / "file")
            return make(*arguments, **options)

        lock, make = runs.FileLock.acquire, tempfile.mkstemp
        monkeypatch.setattr(runs.FileLock, "acquire", acquire)
        monkeypatch.setattr(tempfile, "mkstemp", mkstemp)

    return protect


@pytest.fixture
def no_figures(monkeypatch):
    """Spare each run the seconds that figures and report take, in tests of something else."""
    monkeypatch.setattr("convscope.experiment.running.write_figures_of", lambda *_, **__: None)
    monkeypatch.setattr(
        "convscope.experiment.running.write_report", lambda run, **_: (Path(run) / "report.html").touch()
    )


@pytest.fixture(scope="session")
def real_mnist():
    """MNIST, where CONVSCOPE_DATA has it; a damaged file there is a failure, not a reason to skip."""
    folder = os.environ.get("CONVSCOPE_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("CONVSCOPE_DATA names no folder with mnist")
    return convscope.load("mnist")


@pytest.fixture(scope="session")
def digits():
    """The digits, read once."""
    return convscope.load("digits")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Let the first of several test processes make a folder; the others wait for it and take it."""

    def make(name, write):
        own = tmp_path_factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                write(folder.with_suffix(".part"))
                folder.with_suffix(".part").rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def digits_run(made_once):
    """A run of a small network on the digits; copy it before changing it."""
    from bundle_cases import train_small_run

    return made_once("small", train_small_run)


@pytest.fixture(autouse=True)
def unchanged_run(request):
    """Name the test that changes the run which all tests of a process share."""
    if "digits_run" not in request.fixturenames:
        yield
        return
    run = request.getfixturevalue("digits_run")
    before = _files(run)
    yield
    after = _files(run)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set(), "copy it first"


def _files(folder):
    """Tell each file in a folder with its size and when it was written."""
    states = {file.relative_to(folder): file.stat() for file in folder.rglob("*") if file.is_file()}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


@pytest.fixture(scope="session")
def browser():
    """Start a headless Chromium, once for all browser tests."""
    from playwright.sync_api import sync_playwright

    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert executable, "the browser tests need a Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield started
        started.close()


# What a page shows once it has computed what it does at first, by what it carries.
READY = {"#payload": "html[data-ready]", "#walk-data": "#walk[data-ready]"}


@pytest.fixture
def open_page(browser):
    """Open files of ours in a browser; whatever a page complains of or asks for fails the test."""
    contexts, complaints, requests = [], [], []

    def open_(file, fragment="", width=1280, scheme="light", language="en-GB", **others):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, locale=language, **others
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(file).as_uri() + fragment)
        for carried, ready in READY.items():
            if page.query_selector(carried) and others.get("java_script_enabled", True):
                page.wait_for_selector(ready, state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == len(contexts)
