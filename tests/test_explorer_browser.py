"""The explorer in a real browser: opened from a file, every layer held against what Python computed."""

from pathlib import Path

import pytest
from report_runs import make_dataset, make_run

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
