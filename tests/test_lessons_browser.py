"""The lessons in JupyterLab, headless: what a student sees on opening one, and what its first cells do."""

import json
import os
import subprocess
import sys
import time

import pytest

from convscope.teaching.lessons.notebooks import (
    build_notebook,
    lesson_names,
    parse_lesson,
    read_lesson,
    solution_notebook,
    write_notebook,
)

pytestmark = pytest.mark.browser

SECONDS_TO_START = 120
# No questions about news, and every cell in the page, also those outside the window.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
# A training that is long enough to be watched.
TRAINING = """\
# %%
import convscope
import numpy as np

model = convscope.build("simple", (28, 28, 1), classes=10)
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
x = np.zeros((6000, 28, 28, 1), "float32")
y = np.eye(10)[np.arange(6000) % 10]
history = convscope.fit(model, x, y, batch_size=32, epochs=2, seed=1)
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Make a folder with all lessons as they are delivered, and one training."""
    folder = tmp_path_factory.mktemp("course")
    for name in lesson_names():
        lesson = read_lesson(name)
        write_notebook(build_notebook(lesson, "student"), folder / f"student-{name}.ipynb")
        write_notebook(solution_notebook(lesson), folder / f"solution-{name}.ipynb")
    training = build_notebook(parse_lesson("9-training", TRAINING), "solution")
    write_notebook(training, folder / "training.ipynb")
    return folder


@pytest.fixture(scope="module")
def jupyterlab(course, tmp_path_factory):
    """Start JupyterLab on a free port; give its address."""
    own = tmp_path_factory.mktemp("jupyter")
    for name, values in SETTINGS.items():
        file = own / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(own / folder) for name, folder in folders.items()}
    options = ["--no-browser", "--allow-root", "--ServerApp.port=0", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={course}"]
    with (own / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield wait_for_address(own / "runtime", server, own / "log")
    finally:
        server.kill()  # its orderly end waits for kernels that nobody needs
        server.wait()


def wait_for_address(folder, server, log):
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and server.poll() is None:
        for file in folder.glob("jpserver-*.json"):
            text = file.read_text(encoding="utf-8")
            if text:
                return json.loads(text)["url"]
        time.sleep(0.2)
    raise TimeoutError(log.read_text(encoding="utf-8"))


@pytest.fixture
def open_notebook(browser, jupyterlab):
    """Open a notebook; errors on the page's console fail the test."""
    pages, errors = [], []

    def open_(name):
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        pages.append(page)
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{jupyterlab}lab/tree/{name}.ipynb?reset", wait_until="commit")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_selector(".jp-Notebook .jp-RenderedMarkdown h1, .jp-Notebook .jp-CodeCell")
        return page

    yield open_
    for page in pages:
        page.close()
    assert errors == []


@pytest.mark.parametrize("name", lesson_names())
def test_a_student_version_opens_with_folded_hints_and_cells_to_fill(open_notebook, name):
    page = open_notebook(f"student-{name}")
    cells = build_notebook(read_lesson(name), "student").cells
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {len(cells)}")
    hints = page.locator(".jp-Notebook .jp-MarkdownCell details")
    expected = sum("<details>" in cell.source for cell in cells)
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook details').length === {expected}")
    assert hints.evaluate_all("all => all.filter(one => one.open).length") == 0
    inside = hints.first.locator("p").first
    assert not inside.is_visible()
    hints.first.locator("summary").click()
    assert inside.is_visible()
    assert page.locator(".jp-Notebook .jp-OutputArea-output").count() == 0
    blanks = sum("your code here" in cell.source for cell in cells)
    assert page.locator(".jp-CodeCell .cm-content").filter(has_text="# your code here").count() == blanks


@pytest.mark.parametrize("name", lesson_names())
def test_an_executed_solution_shows_verdicts_and_figures_and_no_warning(open_notebook, name):
    notebook = solution_notebook(read_lesson(name))
    page = open_notebook(f"solution-{name}")
    page.wait_for_function(
        f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {len(notebook.cells)}"
    )
    page.wait_for_function("document.querySelector('.jp-OutputArea-output')")
    verdicts = page.locator(".jp-RenderedHTMLCommon div", has_text="✓ Task").all_inner_texts()
    assert len(verdicts) == len(read_lesson(name).tasks)
    pictures = page.locator(".jp-OutputArea-output img")
    widths = pictures.evaluate_all("all => all.map(one => one.naturalWidth)")
    assert widths
    assert min(widths) > 100
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    shown = page.locator(".jp-OutputArea-output").all_inner_texts()
    assert not [text for text in shown if "Warning" in text or "<Figure" in text]


def test_a_training_shows_one_bar_that_moves_and_then_a_line_for_each_epoch(open_notebook):
    page = open_notebook("training")
    output = page.locator(".jp-OutputArea-output")
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    page.keyboard.press("Shift+Enter")
    seen = watch(page, output)
    moving = {text for text in seen if "━" in text}
    assert len(moving) > 1
    assert output.count() == 1
    *sentence, first, second = output.inner_text().strip().splitlines()
    assert sentence[0].startswith("Precision: ")
    assert max(text.count("\n") for text in seen) <= len(sentence) + 1  # the sentence and two epochs
    assert [line.split(" · ")[0] for line in (first, second)] == ["Epoch 1/2", "Epoch 2/2"]
    assert all(len(line) <= 100 for line in sentence)


def watch(page, output):
    """Collect what the output shows until both epochs are over."""
    seen = []
    until = time.monotonic() + 120
    while time.monotonic() < until:
        text = output.first.inner_text().strip() if output.count() else ""
        seen.append(text)
        if text.count(" s · ") == 2 and "━" not in text:
            return seen
        page.wait_for_timeout(50)
    raise TimeoutError(seen[-1])
