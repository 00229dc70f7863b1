"""What the page of a run carries, and the command that writes it."""

import json
import shutil

import numpy as np
import pytest
from report_runs import make_dataset, make_run

from convscope.contents import read_contents
from convscope.evaluation import test_set_log
from convscope.explorer import page, render_page, write_page
from convscope.explorer.page import LARGEST, make_payload
from convscope.networks import build
from convscope.runs import RunDirectory

HOSTILE = ["</script><script>alert(1)</script>", "<!--", "c"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path, dataset = make_run(tmp_path_factory.mktemp("runs") / "run", dataset=make_dataset(count=300))
    return read_contents(path, dataset)


def test_the_accuracy_is_measured_on_an_even_sample_and_the_worst_errors_stand_behind_it(made):
    images = make_payload(made, images=100)["images"]
    assert images["sample"] == 100
    assert len(set(images["places"])) == len(images["places"]) == len(images["labels"])
    assert images["places"][:100] == sorted(images["places"][:100])
    worst = set(made.test.worst_errors(20).tolist())
    assert worst <= set(images["places"])
    assert {images["places"][place] for place in images["worst"]} >= worst
    assert images["labels"] == made.test.labels[images["places"]].tolist()


def test_a_page_is_one_file_that_nothing_in_its_data_can_break_out_of(tmp_path):
    dataset = make_dataset(3, count=60, class_names=HOSTILE)
    path, dataset = make_run(tmp_path / "run", dataset=dataset)
    html = render_page(read_contents(path, dataset))
    assert html.count("<script") == html.count("</script>") == 3
    data = html.split('id="payload">')[1].split("</script>")[0]
    assert json.loads(data)["classes"] == HOSTILE
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in html


def test_a_run_whose_images_are_gone_has_a_page_without_them(tmp_path):
    path, _ = make_run(tmp_path / "run")
    payload = make_payload(path)
    assert payload["images"] == {}
    assert payload["references"]["places"] == [-1, -1]
    assert sum(payload["references"]["counts"]) > 0


@pytest.mark.slow
def test_a_file_that_would_pass_8_mb_has_rounded_kernels_and_says_what_that_changes(tmp_path):
    dataset = make_dataset(shape=(28, 28, 1))
    path, dataset = make_run(tmp_path / "run", dataset=dataset, model=build("dense", (28, 28, 1)))
    contents = read_contents(path, dataset)
    written = write_page(contents, tmp_path / "page.html")
    assert written.weight_bits == 16
    assert written.bytes < LARGEST
    rounding = make_payload(contents)["rounding"]
    assert rounding["images"] == len(make_payload(contents)["images"]["places"])


def test_modules_are_joined_in_the_order_in_which_they_need_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path)
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = b + 1;\n')
    (tmp_path / "b.js").write_text('import { c } from "./c.js";\nexport const b = c + 1;\n')
    (tmp_path / "c.js").write_text("export const c = 1;\n")
    joined = page.bundle.__wrapped__("a.js")
    assert joined.index('modules["c.js"]') < joined.index('modules["b.js"]') < joined.index('modules["a.js"]')
    assert 'const { b } = modules["b.js"];' in joined
    (tmp_path / "c.js").write_text('import { a } from "./a.js";\n')
    with pytest.raises(ValueError, match=r"a.js imports b.js imports c.js imports a.js"):
        page.bundle.__wrapped__("a.js")
    (tmp_path / "c.js").write_text("export default 3;\n")
    with pytest.raises(ValueError, match=r"c.js: expected .*export default"):
        page.bundle.__wrapped__("a.js")


def test_the_command_writes_the_page_and_says_what_computes_in_it(typed, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "small")
    done = typed("explore", "small", "--json", "--images", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    file = tmp_path / "small" / "explorer.html"
    assert found["bytes"] == file.stat().st_size
    assert found["layers"] == found["live_layers"] > 0
    assert found["shown_only"] == []
    log = RunDirectory(file.parent).read_json(test_set_log.TEST_SET_LOG)
    assert "inspection" in test_set_log.describe(log)  # the look at the test set is counted
    payload = json.loads(file.read_text("utf-8").split('id="payload">')[1].split("</script>")[0])
    assert payload["images"]["sample"] == 50
    assert np.isclose(payload["images"]["accuracy"], read_contents(digits_run).test.accuracy)


def test_another_file_is_refused_where_it_cannot_be_written(typed, digits_run, tmp_path):
    for out, words in (("page.txt", "ends in .html"), ("no/such/page.html", "existing folder")):
        done = typed("explore", str(digits_run), "--out", out, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
