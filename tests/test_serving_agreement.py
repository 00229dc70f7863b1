"""One network, asked in every way in which it is offered: the same answers."""

import base64
import json
import os

import httpx
import numpy as np
import onnxruntime
import pytest
from bundle_cases import small_network
from image_kinds import draw_files
from report_runs import make_dataset, make_run
from serving_cases import process

import convscope
from convscope.data.decode import decode, quiet_pillow
from convscope.export import load_bundle, onnx_files
from convscope.preprocessing import Preprocess

# A quarter of a thousand images by default; CONVSCOPE_FULL=1 asks about all of them.
DIGITS, COLOURS = (750, 250) if os.environ.get("CONVSCOPE_FULL") else (190, 60)
AGREES = 1e-4
TOGETHER = 50
# What a person does who chooses a file on the page.
ON_THE_PAGE = """async (files) => {
  const found = [];
  for (const file of files) {
    const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt(0));
    await explorer.takePicture(new Blob([bytes]));
    await explorer.settled();
    found.push([...explorer.store.state.result.probabilities]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory):
    """A run of a small network on colours."""
    dataset, model = make_dataset(shape=(24, 32, 3)), small_network((24, 32, 3))
    model.compile("adam", "sparse_categorical_crossentropy")
    settings = Preprocess.fit(dataset.train.images, "unit")
    convscope.fit(
        model,
        dataset.train.images,
        dataset.train.labels,
        preprocess=settings,
        epochs=3,
        verbose=0,
        deterministic=True,
    )
    return make_run(tmp_path_factory.mktemp("colours") / "run", dataset=dataset, model=model)[0]


@pytest.mark.browser
@pytest.mark.parametrize(("run", "count"), [("digits_run", DIGITS), ("colour_run", COLOURS)])
def test_server_command_page_and_onnx_give_the_same_probabilities(
    run, count, request, browser, typed, tmp_path
):
    run = request.getfixturevalue(run)
    bundle, files = load_bundle(run), dict(draw_files(count))
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    coded = [base64.b64encode(content).decode() for content in files.values()]
    parts = [slice(start, start + TOGETHER) for start in range(0, count, TOGETHER)]

    onnx_files.write_onnx(bundle, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with quiet_pillow():
        pixels = [decode(content, name) for name, content in files.items()]
    found = {"onnx": [session.run(None, {"pixels": image[None]})[0][0] for image in pixels]}

    with process(run, cwd=tmp_path) as (_, address), httpx.Client(base_url=address, timeout=60) as client:
        page = browser.new_page()
        page.goto(f"{address}/")
        page.wait_for_selector("html[data-ready]")
        found["page"] = [row for part in parts for row in page.evaluate(ON_THE_PAGE, coded[part])]
        page.close()
        found |= {"files": [], "json": []}
        for part in parts:
            form = [("files", pair) for pair in list(files.items())[part]]
            for way, content in (("files", {"files": form}), ("json", {"json": {"images": coded[part]}})):
                rows = client.post("/predict", **content).json()["predictions"]
                found[way] += [list(row["probabilities"].values()) for row in rows]

    done = typed("predict", str(run), str(folder), "--json", cwd=tmp_path)
    command = json.loads(done.stdout)["predictions"]
    assert [row["file"] for row in command] == [str(folder / name) for name in files]
    for way, rows in found.items():
        probabilities = np.array(rows)  # (n, classes)
        labels = [bundle.class_names[place] for place in probabilities.argmax(axis=1)]
        assert labels == [row["label"] for row in command], way
        for row, name, other in zip(probabilities, files, command, strict=True):
            for one in other["ranked"]:
                value = row[bundle.class_names.index(one["label"])]
                assert value == pytest.approx(one["probability"], abs=AGREES), (way, name)
