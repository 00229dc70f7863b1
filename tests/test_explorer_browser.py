"""The explorer in a real browser: opened from a file, every layer held against what Python computed."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import make_dataset, make_run
from scipy.ndimage import gaussian_filter

from convscope.contents import read_contents
from convscope.explorer import write_page
from convscope.networks import NETWORKS, build

pytestmark = pytest.mark.browser

AGREES = 1e-4


@pytest.fixture
def open_page(browser):
    """Open an explorer; whatever it complains of or asks for fails the test."""
    contexts, complaints, requests = [], [], []

    def open_(file, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(file).as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == len(contexts)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_named_network_agrees_with_python(open_page, tmp_path, name):
    shape = (28, 28, 1)
    path, dataset = make_run(tmp_path / "run", dataset=make_dataset(shape=shape), model=build(name, shape))
    written = write_page(read_contents(path, dataset))
    assert written.shown_only == ()
    page = open_page(written.file)
    found = page.evaluate("explorer.engine.check()")
    assert max(found["perLayer"]) < AGREES
    assert len(found["perLayer"]) == written.layers


def test_a_little_training_learns_and_is_undone(open_page, tmp_path):
    path, dataset = make_run(tmp_path / "run", dataset=make_dataset(shape=(12, 12, 1)))
    page = open_page(write_page(read_contents(path, dataset)).file)
    before = page.evaluate("Array.from(explorer.engine.network.layers.at(-1).weights.kernel.values)")
    page.click("#tab-train")
    page.click("#train .go")
    page.wait_for_selector("#train .go:not([disabled])")
    learned, held_out = page.locator("#train .numbers").first.locator("tbody tr").first.locator("td").all()
    assert float(learned.inner_text()) < 2.3  # the loss of guessing among ten classes
    assert float(held_out.inner_text()) > float(learned.inner_text())
    assert page.locator("#train .scroll tbody tr").count() == 16
    page.click("#train .tools button:last-child")
    page.wait_for_selector("#train .go:not([disabled])")
    after = page.evaluate("Array.from(explorer.engine.network.layers.at(-1).weights.kernel.values)")
    assert after == before
    assert max(page.evaluate("explorer.engine.check()")["perLayer"]) < AGREES


def test_accuracy_and_probabilities_of_the_test_images_are_those_of_python(open_page, tmp_path):
    path, dataset = make_run(tmp_path / "run", dataset=make_dataset(shape=(12, 12, 1)))
    contents = read_contents(path, dataset)
    page = open_page(write_page(contents).file)
    found = page.evaluate(
        "explorer.engine.evaluate().then((found) => ({ ...found, probabilities: [...found.probabilities] }))"
    )
    places = page.evaluate("explorer.payload.images.places")[: found["count"]]
    expected = contents.bundle.predict(dataset.test.images[places])
    np.testing.assert_allclose(np.reshape(found["probabilities"], expected.shape), expected, atol=1e-6)
    right = expected.argmax(axis=1) == dataset.test.labels[places]
    assert found["accuracy"] == right.mean()
    assert np.sum(found["confusion"]) == found["count"]


def test_an_image_is_as_far_from_the_training_images_as_predict_says(open_page, digits_run, tmp_path):
    contents = read_contents(digits_run)
    page = open_page(write_page(contents, tmp_path / "page.html").file)
    found = page.evaluate(
        "Promise.resolve(explorer.engine).then(async (engine) => {"
        "const all = []; for (let at = 0; at < 8; at += 1) all.push(await engine.run(engine.image(at)));"
        "const distance = (one) => explorer.novelty.distance(one.features);"
        "return all.map((one) => ({ distance: distance(one), probabilities: [...one.probabilities] })); })"
    )
    places = page.evaluate("explorer.payload.images.places")[:8]
    probabilities, distances = contents.bundle.predict_with_distances(contents.images[places])
    np.testing.assert_allclose([one["distance"] for one in found], distances, atol=1e-4)
    np.testing.assert_allclose([one["probabilities"] for one in found], probabilities, atol=1e-5)


@pytest.mark.slow
def test_a_backbone_of_photographs_computes_in_a_file_of_8_mb(open_page, tmp_path):
    dataset = make_dataset(5, (192, 192, 3), count=40)
    for split in (dataset.train, dataset.test):
        split.images[:] = gaussian_filter(split.images, (0, 3, 3, 0))
    path, dataset = make_run(
        tmp_path / "run", dataset=dataset, model=build("efficientnet-lite0", (192, 192, 3), 5)
    )
    written = write_page(read_contents(path, dataset))
    assert written.bytes < 8e6
    assert written.weight_bits == 8
    assert written.shown_only == ()
    page = open_page(written.file)
    assert max(page.evaluate("explorer.engine.check()")["perLayer"]) < AGREES
