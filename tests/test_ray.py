"""Predictions by Ray on a cluster of one machine are those of one process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import convscope
from convscope.batch_prediction import predict_to_arrow, predict_to_table
from convscope.export import load_bundle

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_predict.py"


@pytest.fixture
def folder(tmp_path):
    """Twenty digits in files, in a folder and below it, one that is none, and one of another kind."""
    place = tmp_path / "digits"
    (place / "below").mkdir(parents=True)
    for number, image in enumerate(convscope.load("digits").test.images[:20]):
        below = place / "below" if number % 2 else place
        Image.fromarray(image[..., 0]).save(below / f"{number:02d}.png")
    (place / "05-bad.png").write_bytes(b"nothing")
    (place / "notes.txt").write_text("no image", encoding="utf-8")
    return place


def table_of(network, folder, file):
    from pyarrow import parquet

    predict_to_table(network, [folder], file)
    return parquet.read_table(file)


def test_bytes_are_predicted_as_the_files_are(digits_run, folder, tmp_path):
    files = sorted(one for one in folder.rglob("*.png"))
    found = predict_to_arrow(load_bundle(digits_run), [(str(one), one.read_bytes()) for one in files])
    expected = table_of(digits_run, folder, tmp_path / "t.parquet").sort_by("file")
    assert found.sort_by("file").equals(expected)
    assert expected["error"].null_count == 20


@pytest.mark.slow
@pytest.mark.posix("ray")
def test_rays_table_is_that_of_predict(digits_run, folder, tmp_path):
    from pyarrow import parquet

    if importlib.util.find_spec("ray") is None:  # loaded here it would change the import path
        pytest.skip("Ray is not installed")
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp"}  # noqa: S108
    out = tmp_path / "predictions"
    program = [sys.executable, str(EXAMPLE), str(digits_run), str(folder), str(out), "--workers", "1"]
    done = subprocess.run(
        program,
        env=os.environ | quiet,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = parquet.read_table(out).sort_by("file")
    assert found.equals(table_of(digits_run, folder, tmp_path / "t.parquet").sort_by("file"))
