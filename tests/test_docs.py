"""The examples in the documentation and in docstrings are run, and held against what they show."""

import doctest
import importlib
import io
import re
from pathlib import Path

import keras
import pytest

import convscope

SOURCE = Path(convscope.__file__).parent
ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
PAGES = [*sorted((ROOT / "docs").glob("**/*.md")), *sorted(ROOT.glob("README.md"))]
EXAMPLES = re.compile(r"^```(?:pycon|python)?[^\n]*\n(?P<code>>>> .*?)^```", re.MULTILINE | re.DOTALL)


def read_examples(page: Path) -> doctest.DocTest:
    """Gather a page's examples into one session; each keeps its line number."""
    text = page.read_text(encoding="utf-8")
    kept = [False] * (text.count("\n") + 1)
    for block in EXAMPLES.finditer(text):
        first = text[: block.start("code")].count("\n")
        for line in range(first, first + block["code"].count("\n")):
            kept[line] = True
    lines = [line if keep else "" for line, keep in zip(text.split("\n"), kept, strict=True)]
    return doctest.DocTestParser().get_doctest("\n".join(lines), {}, page.name, str(page), 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_what_the_page_says(page):
    examples = read_examples(page)
    report = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(examples, out=report.write)
    assert not report.getvalue(), report.getvalue()


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name):
    module = importlib.import_module(name)
    keras.utils.clear_session(free_memory=False)  # so that layers without a name are numbered from the start
    report, runner = io.StringIO(), doctest.DocTestRunner(verbose=False)
    for examples in doctest.DocTestFinder().find(module):
        runner.run(examples, out=report.write)
    assert not report.getvalue(), report.getvalue()


def test_every_argument_of_conv2d_has_an_example():
    text = (ROOT / "docs" / "conv2d.md").read_text(encoding="utf-8")
    sections = re.split(r"^### \d+\. ", text, flags=re.MULTILINE)[1:]
    names = [section.partition("\n")[0].strip("`") for section in sections]
    assert names == [
        "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "activation",
        "use_bias", "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
        "activity_regularizer", "kernel_constraint", "bias_constraint",
    ]  # fmt: skip
    assert [name for name, section in zip(names, sections, strict=True) if ">>> " not in section] == []


def test_a_wrong_result_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```pycon\n>>> 1 + 1\n3\n```\n", encoding="utf-8")
    report = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(read_examples(page), out=report.write)
    assert "Expected:\n    3\nGot:\n    2" in report.getvalue()
    assert "line 4" in report.getvalue()
