"""The explorer in a real browser: opened from a file, every layer held against what Python computed."""

import json

import numpy as np
import pytest
from photographs import write_classes
from report_runs import make_dataset, make_run

from convscope.contents import read_contents
from convscope.explorer import write_page
from convscope.networks import NETWORKS, build

pytestmark = pytest.mark.browser

AGREES = 1e-4


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


def agrees_with_its_weights(page):
    """Hold what the page shows against the network as its weights are now; give the probabilities."""
    page.evaluate("explorer.settled()")
    shown = page.evaluate("Array.from(explorer.store.state.result.probabilities)")
    now = "explorer.engine.run(explorer.store.state.input).then((found) => Array.from(found.probabilities))"
    assert page.evaluate(now) == shown
    page.click("#tab-change")
    page.wait_for_selector(".score")
    found = page.evaluate("explorer.engine.evaluate()")
    assert f"{round(found['accuracy'] * found['count'])} of" in page.locator(".score").inner_text()
    page.click("#tab-train")
    return shown


def test_a_little_training_learns_and_is_undone(open_page, tmp_path):
    path, dataset = make_run(tmp_path / "run", dataset=make_dataset(shape=(12, 12, 1)))
    page = open_page(write_page(read_contents(path, dataset)).file)
    before = page.evaluate("Array.from(explorer.engine.network.layers.at(-1).weights.kernel.values)")
    page.click("#tab-train")
    page.click("#train .go")
    page.wait_for_selector("#train .go:not([disabled])")
    assert "trained here" in page.locator("#now .changed-now").inner_text()
    learned, held_out = page.locator("#train .numbers").first.locator("tbody tr").first.locator("td").all()
    assert float(learned.inner_text()) < 2.3  # the loss of guessing among ten classes
    assert float(held_out.inner_text()) > float(learned.inner_text())
    assert page.locator("#train .scroll tbody tr").count() == 16
    shown = agrees_with_its_weights(page)
    page.click("#train .tools button:last-child")
    page.wait_for_selector("#train .go:not([disabled])")
    assert np.abs(np.subtract(agrees_with_its_weights(page), shown)).max() > 1e-3
    after = page.evaluate("Array.from(explorer.engine.network.layers.at(-1).weights.kernel.values)")
    assert after == before
    assert page.locator("#now .changed-now").inner_text() == ""
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
def test_a_run_of_own_photographs_computes_in_a_file_of_8_mb(open_page, typed, tmp_path):
    write_classes(tmp_path / "photos", ("cat", "dog", "owl"), count=12, size=240)
    chosen = ("--network", "efficientnet-lite0", "--epochs", "1", "--no-report", "--no-preflight")
    done = typed("train", "photos", *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = typed("explore", "latest", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["bytes"] < 8e6
    assert written["weight_bits"] == 8
    assert written["shown_only"] == []
    page = open_page(tmp_path / written["explorer"])
    assert max(page.evaluate("explorer.engine.check()")["perLayer"]) < AGREES
    assert page.locator("#badge.good").count() == 1
