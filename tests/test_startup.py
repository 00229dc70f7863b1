"""What a command loads, what it leaves out, and how its process ends."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import copy_of
from PIL import Image
from test_arrays import idx

from convscope.cli import startup
from convscope.environment import share_of_threads

STATUS = Path("/proc/self/status")
LINUX = STATUS.exists()


class Loaded(set):
    """Names of modules, and the ``peak`` of what the process held, in MB, where the system tells."""

    peak = 0.0


def loaded_by(*arguments):
    """Run a command as its own process does, and name the modules that are loaded then."""
    code = (
        "import json, pathlib, sys\nfrom convscope import cli\nfrom convscope.cli import startup\n"
        "startup.own_this_process()\ntry: cli.main()\nexcept SystemExit as stop: assert not stop.code\n"
        f"status = pathlib.Path({str(STATUS)!r})\n"
        "lines = status.read_text().splitlines() if status.exists() else []\n"
        "peak = next((int(one.split()[1]) / 1024 for one in lines if one.startswith('VmHWM')), 0)\n"
        "sys.stderr.write(json.dumps([peak, *(name for name, one in sys.modules.items() if one)]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak, *names = json.loads(done.stderr.splitlines()[-1])
    found = Loaded(names)
    found.peak = peak
    return found


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "grey.png"
    Image.new("L", (28, 28), 90).save(file)
    return file


LARGE = {"torch", "keras", "scipy.stats", "scipy.optimize", "sklearn", "pandas", "matplotlib", "numba"}


@pytest.mark.parametrize("part", ["evaluate", "compare"])
def test_what_is_stored_is_shown_without_loading_anything_large(part, digits_run, tmp_path):
    runs = [copy_of(digits_run, tmp_path / "run")] * (2 if part == "compare" else 1)
    assert not LARGE & loaded_by(part, *runs)


def test_a_prediction_loads_no_compiler_of_torch_no_figures_and_no_statistics(digits_run, picture):
    loaded = loaded_by("predict", digits_run, picture)
    assert {"torch", "keras"} <= loaded
    needless = {
        "torch._dynamo",
        "sympy",
        "matplotlib",
        "pandas",
        "requests",
        "cffi",
        "convscope.data.loading",
    }
    assert not (needless | LARGE - {"torch", "keras"}) & loaded
    if LINUX and torch.version.cuda is None:  # with CUDA, torch alone holds 200 MB more
        assert 100 < loaded.peak < 400


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="only Linux says there how much memory was held")
def test_the_exercise_holds_no_more_than_a_step_needs(tmp_path):
    """On numbers like MNIST: what each of its 82 steps left would be 11 MB, and of each image 90 kB."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 15_000), ("t10k", 1_000)):
        labels = generator.integers(0, 10, count, np.uint8)
        images = generator.integers(0, 100, (count, 28, 28), np.uint8) + 15 * labels[:, None, None]
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    options = ("--network", "simple", "--epochs", "1", "--data", tmp_path, "--out", tmp_path / "runs")
    loaded = loaded_by("exercise", *options)
    assert 300 < loaded.peak < 1_200
    if share_of_threads(1) > 1:  # else there is no helper, which loads them
        assert not {"sklearn", "pandas", "cleanlab", "scipy.stats", "scipy.optimize"} & loaded


def test_an_error_of_keras_without_its_optional_packages_is_made_good_with_them(tmp_path):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("import keras.part\nimport pandas")
    (tmp_path / "keras" / "part.py").touch()
    (tmp_path / "pandas.py").touch()
    code = (
        "import sys\nfrom convscope.cli import startup\nstartup.own_this_process()\nimport keras\n"
        "print(keras.pandas.__name__, keras.part.__name__, 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "pandas keras.part False\n"


def test_what_was_hidden_can_be_imported_afterwards():
    code = (
        "from convscope.cli import startup\nstartup.own_this_process()\nimport keras, torch\n"
        "import pandas, torch._dynamo\nprint(torch._dynamo.optimize.__name__, pandas.DataFrame.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "optimize DataFrame\n"


ENDING = (
    "import atexit, os, sys, threading, time\n"
    "from convscope import cli\n"
    "def command():\n"
    "    atexit.register(lambda: print('registered'))\n"
    "    threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
    "    print('answer'); print('warning', file=sys.stderr)\n"
    "    sys.exit({code})\n"
    "class Late:\n"
    "    def __del__(self, write=os.write): write(1, b'taken apart\\n')\n"
    "sys.late = Late()\n"
    "cli.main = command\n"
    "{before}\n"
    "cli.start()\n"
)


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_ends_at_once_but_not_before_everything_is_said(code):
    program = ENDING.format(code=code, before="")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "answer\nthread\nregistered\n", "warning\n")


def test_a_process_that_is_watched_ends_as_any_other():
    program = ENDING.format(code=0, before="sys.setprofile(lambda *_: None)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("registered\ntaken apart\n")


@pytest.mark.posix("/dev/full")
def test_an_output_that_cannot_be_written_is_no_success():
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "convscope", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode != 0
    assert done.stderr


@pytest.mark.posix("/dev/full")
@pytest.mark.parametrize("arguments", [["data", "list"], ["data", "list", "--json"]], ids=["table", "json"])
def test_a_full_disk_behind_the_output_is_named_in_a_line(arguments):
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "convscope", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert "write to standard output" in done.stderr and "foresaw" not in done.stderr


def test_the_process_of_a_caller_is_left_alone(typed, tmp_path):
    hooks = list(sys.meta_path)
    typed("--version", cwd=tmp_path)
    assert sys.meta_path == hooks
    assert not startup._ended
