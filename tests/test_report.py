"""The report: what it says, that it is self-contained and safe, and what odd and damaged runs get."""

import base64
import gzip
import hashlib
import itertools
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from report_runs import HISTORY, make_dataset, make_run, render_report

from convscope.contents import TEST_SET_LOG, read_contents, read_record
from convscope.errors import RunError
from convscope.evaluation import Evaluation
from convscope.inspection import feature_maps
from convscope.networks import build
from convscope.report import formatting, inside, rendering
from convscope.report.explorer import chosen_images, walk
from convscope.report.rendering import write_report
from convscope.report.summary import reproduction

HOSTILE = ["<script>alert(1)</script>", "</script><!--", '"><img src=x onerror=alert(1)>']


def hostile_name(part, index):
    return f"<b>{part}</b>/{index}</script><!-- '\"&amp;.png"


KINDS = {
    "plain": {},
    "two classes": {"dataset": lambda: make_dataset(2)},
    "a hundred classes": {
        "dataset": lambda: make_dataset(
            100, (8, 8, 1), 400, class_names=[f"class number {k}" for k in range(100)]
        ),
        "right": 0.6,
    },
    "colour": {"dataset": lambda: make_dataset(3, (12, 12, 3), 90)},
    "no errors": {"right": 1.0},
    "nothing right": {"right": 0.0},
    "interrupted": {
        "parts": (),
        "status": "interrupted",
        "history": {name: values[:2] for name, values in HISTORY.items()},
    },
    "interrupted at once": {"parts": (), "status": "interrupted", "history": {}},
    "one epoch": {"history": {name: values[:1] for name, values in HISTORY.items()}},
    "validation only": {"parts": ("validation",)},
    "hostile names": {"dataset": lambda: make_dataset(3, count=60, class_names=HOSTILE, names=hostile_name)},
    "one image": {"dataset": lambda: make_dataset(2, count=2)},
}
# What a report says of an odd run.
SAYS = {
    "plain": ["Training health", "216 of 240", "used once: final evaluation"],
    "two classes": ["2 classes"],
    "a hundred classes": ["The 10 classes with the lowest F1", "The other 90 classes"],
    "colour": ["3 classes"],
    "no errors": ["every image was given its class", "nothing to gain by abstaining", "100.00"],
    "nothing right": ["240 images were given a wrong class", "0.00"],
    "interrupted": ["interrupted after 2 whole epochs of 4", "there is no evaluation", "88.00"],
    "interrupted at once": ["interrupted after 0 whole epochs", "No epoch was finished"],
    "one epoch": ["One epoch: the curves are single points"],
    "validation only": ["216 of 240 validation images", "no predictions for test images"],
    "hostile names": ["&lt;script&gt;alert(1)&lt;/script&gt;"],
    "one image": ["2 classes"],
}


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements, self.texts, self.scripts, self.styles = [], [], [], []
        self._inside = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append([dict(attributes), ""])

    def handle_endtag(self, tag):  # noqa: ARG002  the parser's own signature
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts)).replace(formatting.THIN, " ")

    def data(self, name):
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == name)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """Make a kind of run and its report once."""
    made = {}

    def get(kind):
        if kind not in made:
            settings = dict(KINDS[kind])
            if "dataset" in settings:
                settings["dataset"] = settings["dataset"]()
            path, dataset = make_run(tmp_path_factory.mktemp("runs") / "run", **settings)
            made[kind] = path, dataset, Page(render_report(path, dataset=dataset))
        return made[kind]

    return get


@pytest.fixture
def no_charts(monkeypatch):
    """Spare a report the second that its charts take, in tests of something else."""
    monkeypatch.setattr("convscope.plotting.as_svg", lambda *_: "<svg></svg>")


without_charts = pytest.mark.usefixtures("no_charts")
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_every_kind_of_run_gives_a_whole_page(reports, kind):
    _, _, report = reports(kind)
    assert report.html.startswith("<!doctype html>")
    assert report.html.rstrip().endswith("</html>")
    assert "cannot be shown" not in report.text
    assert len(report.html.encode()) < 3_000_000
    for sentence in SAYS[kind]:
        assert sentence in report.text or sentence in report.html


@every_kind
def test_nothing_is_fetched_and_nothing_is_inline_but_what_the_policy_seals(reports, kind):
    _, _, report = reports(kind)
    links = [
        value
        for _, attributes in report.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert links
    assert [link for link in links if not link.startswith(("data:image/", "#", "data:,"))] == []
    handlers = [name for _, attributes in report.elements for name in attributes if name.startswith("on")]
    assert handlers == []
    assert [attributes for _, attributes in report.elements if "style" in attributes] == []
    assert "url(" not in "".join(report.styles)
    assert "@import" not in "".join(report.styles)


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(reports):
    _, _, report = reports("plain")
    (policy,) = [a["content"] for a in report.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    code = [text for attributes, text in report.scripts if attributes.get("type") != "application/json"]

    def sealed(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": sealed("".join(report.styles)),
        "script-src": sealed(code[0]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(code) == 1


@every_kind
def test_the_page_can_be_read_by_a_screen_reader(reports, kind):
    _, _, report = reports(kind)
    levels = [int(tag[1]) for tag, _ in report.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert [image for image in report.all("img") if "alt" not in image] == []
    assert len(report.all("caption")) == len(report.all("table"))
    assert {cell.get("scope") for cell in report.all("th")} <= {"col", "row"}
    ids = [attributes["id"] for _, attributes in report.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"][1:] for link in report.all("a")}
    assert targets <= set(ids)
    drawings = [svg for svg in report.all("svg") if "aria-hidden" not in svg]
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    assert report.all("html")[0]["lang"] == "en"
    assert {"main", "nav", "header", "footer"} <= {tag for tag, _ in report.elements}


@every_kind
def test_the_contents_list_the_sections_that_are_there(reports, kind):
    _, _, report = reports(kind)
    listed = [link["href"][1:] for link in report.all("a") if link.get("class") != "skip"]
    assert listed == [section["id"] for section in report.all("section")]
    assert {"summary", "data", "network", "training", "reproduce"} <= set(listed)
    assert ("evaluation" in listed) == (not kind.startswith("interrupted"))


@every_kind
def test_no_number_is_shown_as_it_is_missing(reports, kind):
    _, _, report = reports(kind)
    assert not re.search(r"\b(nan|inf|None|undefined|Undefined)\b", report.text)


def test_the_summary_comes_first_and_is_that_of_the_evaluation(reports):
    path, _, report = reports("plain")
    evaluation = read_record(path).test
    low, high = evaluation.accuracy_interval
    first = report.text[: report.text.index("The data", 400)]
    assert f"{evaluation.accuracy:.2%}".replace("%", " %") in first
    assert f"between {low:.2%} and {high:.2%}".replace("%", " %") in first


@without_charts
def test_a_published_result_is_compared_with_and_the_epochs_told(tmp_path):
    path, dataset = make_run(tmp_path / "run", record={"data": {"name": "mnist"}})
    text = Page(render_report(path, dataset=dataset)).text
    assert "published result for this network is 98.05 %; this run is 8.05 percentage points below it" in text
    assert "it was trained for 4 epochs, the published one for 10" in text
    assert "lies outside the interval" in text


def test_names_with_html_are_text_everywhere(reports):
    _, dataset, report = reports("hostile names")
    classes = [re.sub(r"\s+", " ", name) for name in HOSTILE]
    assert all(name in report.text for name in classes)
    assert report.data("matrix-data")["classes"] == HOSTILE
    assert report.data("walk-data")["classes"] == HOSTILE
    named = {one[0] for images in report.data("matrix-data")["images"].values() for one in images}
    assert named <= set(dataset.test.names)
    assert len(report.scripts) == 3
    assert "alert(1)" not in "".join(text for a, text in report.scripts if "type" not in a)
    assert {tag for tag, _ in report.elements}.isdisjoint({"iframe", "object", "embed", "form", "base"})
    assert [image for image in report.all("img") if image["src"] == "x"] == []


def test_the_matrix_carries_counts_and_examples_of_each_cell(reports):
    path, _, report = reports("plain")
    evaluation = read_record(path).test
    cells = report.data("matrix-data")
    shown = np.zeros_like(evaluation.confusion)
    for key, count in cells["counts"].items():
        shown[tuple(map(int, key.split(",")))] = count
    np.testing.assert_array_equal(shown, evaluation.confusion)
    wrong = {key: images for key, images in cells["images"].items() if len(set(key.split(","))) == 2}
    assert sum(map(len, wrong.values())) == evaluation.errors
    name, predicted, true, picture = next(iter(wrong.values()))[0]
    index = evaluation.names.index(name)
    assert predicted == pytest.approx(evaluation.probabilities[index].max(), abs=1e-4)
    assert true == pytest.approx(evaluation.probabilities[index, evaluation.labels[index]], abs=1e-4)
    assert picture.startswith("data:image/png;base64,")


def unpacked(packed):
    planes = np.frombuffer(gzip.decompress(base64.b64decode(packed["data"])), np.uint8).reshape(4, -1)
    return planes.T.copy().view("<f4").ravel()


def test_the_walk_carries_the_networks_own_numbers(reports):
    path, dataset, report = reports("plain")
    contents = read_contents(path, dataset)
    carried = report.data("walk-data")
    index = dataset.test.names.index(carried["images"][0]["name"])
    image = contents.bundle.preprocess.apply(dataset.test.images[[index]])[0]
    maps = feature_maps(contents.bundle.model, image)
    values = unpacked(carried["images"][0]["values"])
    layers = carried["network"]["layers"]
    small = [place for place, layer in enumerate(layers) if layer["supply"] == "carried"]
    numbers = np.concatenate([image.ravel(), *(maps[place].values.ravel() for place in small)])
    np.testing.assert_array_equal(values[: numbers.size], numbers)
    # For a layer that the page computes: where the largest value of each map is, and how large it is.
    assert layers[0]["supply"] == "computed"
    largest, own = values[numbers.size :].reshape(2, 32)
    np.testing.assert_array_equal(maps[0].values.ravel()[largest.astype(int)], own)
    np.testing.assert_array_equal(own, maps[0].values.max(axis=(0, 1)))
    kernel, bias = contents.bundle.model.layers[0].get_weights()
    weights = unpacked(carried["weights"]["exact"])
    np.testing.assert_array_equal(weights[: kernel.size + bias.size], [*kernel.ravel(), *bias])
    assert [layer["kind"] for layer in layers] == ["convolution", "same", "dense"]


def test_what_is_too_large_for_the_page_is_left_out_layer_by_layer(tmp_path):
    layers = [
        keras.layers.EinsumDense("bhwc,cd->bhwd", (48, 48, 90), name="odd"),
        keras.layers.Conv2D(90, 3, name="wide"),
        keras.layers.MaxPooling2D(4),
        keras.layers.Flatten(),
        keras.layers.Dense(40, "relu"),
        keras.layers.Dense(2, "softmax"),
    ]
    model = keras.Sequential([keras.Input((48, 48, 1)), *layers])
    path, dataset = make_run(tmp_path / "run", dataset=make_dataset(2, (48, 48, 1), 20), model=model)
    carried = walk(read_contents(path, dataset), read_record(path).test)
    odd, wide, pool, _, hidden, last = carried["network"]["layers"]
    assert odd["supply"] is None  # too large, and of no arithmetic that the page knows
    assert wide["supply"] is None
    assert pool["supply"] == "carried"
    assert hidden["settings"]["units"] == [0, 1, 2, 3]
    assert hidden["weights"]["kernel"]["shape"] == [10890, 4]
    assert "units" not in last["settings"]
    assert sum(len(image["values"]["data"]) for image in carried["images"]) < 1_000_000


@pytest.mark.parametrize(("name", "shape"), [("deep", (28, 28, 1)), ("normalized", (32, 32, 3))])
def test_the_default_networks_are_walked_whole_with_six_images(tmp_path, name, shape):
    dataset = make_dataset(10, shape, 40)
    model = build(name, shape, 10)
    path, dataset = make_run(tmp_path / "run", dataset=dataset, model=model, name=name)
    html = render_report(path, dataset=dataset)
    carried = Page(html).data("walk-data")
    assert len(carried["images"]) == 6
    assert {image["true"] == image["predicted"] for image in carried["images"]} == {True, False}
    assert all(layer["supply"] for layer in carried["network"]["layers"])
    assert len(html) < 3_000_000


def test_a_page_that_would_be_too_large_leaves_out_what_is_heaviest(reports, monkeypatch):
    path, dataset, report = reports("plain")
    monkeypatch.setattr(rendering, "LARGEST", len(report.html) - 1000)
    text = Page(render_report(path, dataset=dataset)).text
    assert "The walk through the network cannot be shown. It would make this page larger" in text


def test_images_chosen_for_a_closer_look_are_errors_and_sure_answers():
    table = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.99, 0.01], [0.1, 0.9]])
    evaluation = Evaluation.from_probabilities(table, [0, 0, 0, 1, 1, 1])
    assert chosen_images(evaluation, 4) == [4, 1, 0, 5]
    assert chosen_images(evaluation, 1) == [0]


def test_without_a_right_answer_only_errors_are_looked_at():
    evaluation = Evaluation.from_probabilities([[0.9, 0.1], [0.2, 0.8]], [1, 0])
    assert chosen_images(evaluation, 4) == [0, 1]


# Runs whose data are gone, and runs that are damaged.


@without_charts
def test_without_its_data_a_run_gets_a_report_without_images_that_says_why(tmp_path):
    path, _ = make_run(tmp_path / "run")
    report = Page(render_report(path))
    assert "Images are not shown: Expected one of the datasets" in report.text
    assert "made" in report.text
    assert report.data("matrix-data")["counts"]
    assert report.all("canvas") == []
    assert {"evaluation", "errors", "calibration"} <= {section["id"] for section in report.all("section")}


@without_charts
def test_other_data_are_not_taken_for_the_runs_own(tmp_path):
    path, _ = make_run(tmp_path / "run")
    report = Page(render_report(path, dataset=make_dataset(seed=5)))
    assert "Images are not shown: Expected the run's data with the fingerprint" in report.text


def test_data_that_have_moved_are_found_where_they_are_now(tmp_path):
    import convscope

    digits = convscope.load("digits")
    path, _ = make_run(tmp_path / "run", dataset=digits)
    assert read_contents(path).images is None
    np.testing.assert_array_equal(read_contents(path, data="digits").images, digits.test.images)


def test_a_section_that_cannot_be_made_says_why_and_the_others_stay(tmp_path):
    path, dataset = make_run(tmp_path / "run")
    (path / "model.keras").write_bytes(b"not a network")
    report = Page(render_report(path, dataset=dataset))
    assert "The network cannot be shown. Expected" in report.text
    assert "The walk through the network cannot be shown." in report.text
    assert report.data("matrix-data")["counts"]
    assert "Which class is taken for which" in report.text


@without_charts
def test_an_unforeseen_failure_costs_only_its_section(tmp_path, monkeypatch):
    path, dataset = make_run(tmp_path / "run")
    monkeypatch.setattr(rendering, "attribution", lambda *_: 1 / 0)
    report = Page(render_report(path, dataset=dataset))
    assert "What the network looks at cannot be shown. ZeroDivisionError: division by zero" in report.text
    assert "A walk inside" in report.text
    log = (path / "log.txt").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in log and log.count("ZeroDivisionError") == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", b"{", "run.json in .* to be JSON"),
        ("run.json", b'{"data": []}', "an object under 'data'"),
        ("predictions.npz", b"PK", "predictions.npz in .* to be whole"),
        ("history.csv", b"epoch,loss\n1,x\n", "history.csv in .* to be a table of numbers"),
        (TEST_SET_LOG, b"[]", "test_consultations.json in .* to hold a JSON object"),
    ],
    ids=[
        "no JSON",
        "a list for an object",
        "half an archive",
        "words for numbers",
        "a list instead of a log",
    ],
)
def test_a_damaged_run_is_refused_by_name(tmp_path, file, content, message):
    path, dataset = make_run(tmp_path / "run")
    (path / file).write_bytes(content)
    with pytest.raises(RunError, match=message):
        write_report(path, dataset=dataset)
    assert not (path / "report.html").exists()


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"Expected a run directory with run\.json"):
        write_report(tmp_path)


@without_charts
def test_the_report_is_written_into_the_run_and_looking_again_is_counted(tmp_path):
    path, dataset = make_run(tmp_path / "run")
    assert write_report(path, dataset=dataset) == path / "report.html"
    assert "used once: final evaluation" in Page((path / "report.html").read_text()).text
    write_report(path, dataset=dataset, consulted_by="report")
    text = Page((path / "report.html").read_text()).text
    assert "used twice: 1 × final evaluation, 1 × report" in text
    assert len(json.loads((path / TEST_SET_LOG).read_text())["consultations"]) == 2


@without_charts
def test_a_run_without_a_log_of_test_set_uses_says_so(tmp_path):
    path, dataset = make_run(tmp_path / "run")
    (path / TEST_SET_LOG).unlink()
    assert "keeps no record of how often" in Page(render_report(path, dataset=dataset)).text


def test_an_unwritable_run_is_an_error_with_its_reason(tmp_path, monkeypatch):
    path, dataset = make_run(tmp_path / "run", parts=())

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=r"to be able to write .*No space left on device"):
        write_report(path, dataset=dataset)


# Charts and words.


def test_charts_are_drawn_in_colours_that_the_theme_replaces(reports):
    _, _, report = reports("plain")
    drawn = re.findall(r'<svg class="chart".*?</svg>', report.html, re.DOTALL)
    assert len(drawn) >= 7
    style = "".join(report.styles)
    colours = set(re.findall(r'(?:fill|stroke)="(#\w+)"', "".join(drawn)))
    ours = {"#e69f00", "#cc79a7"}  # orange and pink are seen on a light and a dark ground
    assert {colour for colour in colours - ours if f'"{colour}"' not in style} == set()


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (1.0, "100.00"), (0.0, "0.00"), (0.999999, "99.99"), (0.000001, "0.01"), (0.98765, "98.77"),
        (float("nan"), "–"), (None, "–"),
    ],
    ids=["all", "none", "nearly all", "hardly any", "rounded", "not a number", "missing"],
)  # fmt: skip
def test_a_share_is_not_rounded_to_all_or_nothing(share, shown):
    assert formatting.percent(share).split(formatting.THIN)[0] == shown


def test_numbers_and_names_are_written_as_a_person_would():
    written = {
        formatting.percent(0.99999, 1): "99.9 %",
        formatting.points(-0.0123): "1.23 percentage points",
        formatting.count(10000): "10,000",
        formatting.number(0.12345678): "0.1235",
        formatting.number(-2e-9): "−2.0·10⁻⁹",
        formatting.number(-0.0): "0.0000",
        formatting.number(1234567.0): "1.2·10⁶",
        formatting.number(None): "–",
        formatting.number(6.0, 0): "6",
        formatting.duration(0.42): "0.42 s",
        formatting.duration(75): "1 min 15 s",
        formatting.duration(7300): "2 h 1 min",
        formatting.plural(1, "image"): "1 image",
        formatting.plural(2000, "image"): "2,000 images",
        formatting.plural(2, "class", "classes"): "2 classes",
        formatting.shape((26, 26, 32)): "26×26×32",
        formatting.shape(((2, 2), (3,))): "2×2, 3",
        formatting.shape((None, 3)): "?×3",
        formatting.name("cat\n"): "cat\\n",
    }
    assert [text.replace(formatting.THIN, " ") for text in written] == list(written.values())


def test_pictures_are_png_where_small_and_run_out():
    assert formatting.data_address(np.zeros((200, 100, 3), np.uint8)).startswith("data:image/jpeg;base64,")
    album = formatting.Album(np.zeros((2, 4, 4, 1), np.uint8), budget=120)
    assert album.picture(0).startswith("data:image/png;base64,")
    assert album.picture(1) is None
    assert formatting.Album(None).picture(0) is None


@without_charts
def test_labels_are_not_accused_by_a_network_that_is_often_wrong(tmp_path):
    path, dataset = make_run(tmp_path / "run", right=0.4)
    page = render_report(path, dataset=dataset)
    assert "This network cannot tell: it is right for 40.0" in page
    assert "By confident learning" not in page


def test_what_was_left_open_is_no_setting(tmp_path):
    config = {"network": "simple", "reading": {}, "training": {"epochs": 4, "within": None, "seed": 0}}
    path, dataset = make_run(tmp_path / "run", record={"config": config})
    settings = dict(reproduction(read_contents(path, dataset))["settings"])
    assert settings == {"network": "simple", "epochs": "4", "seed": "0"}


def test_settings_are_written_as_a_person_reads_them(tmp_path):
    config = {"augmentation": {"shift": 0.12, "erase": 0.0, "flip": "none"}, "stratify": True}
    record = {"config": config, "device": {"instruction_sets": ["avx", "avx2"]}}
    path, dataset = make_run(tmp_path / "run", record=record)
    found = reproduction(read_contents(path, dataset))
    assert found["settings"] == [("augmentation", "shift 0.12"), ("stratify", "yes")]
    assert found["device"] == [("instruction sets", "avx, avx2")]


@without_charts
def test_an_even_map_has_its_reason(tmp_path, monkeypatch):
    even = np.linspace(0.6, 1, 144).reshape(12, 12)
    grad_cam = inside.grad_cam
    monkeypatch.setattr(inside, "grad_cam", lambda *given: replace(grad_cam(*given), values=even))
    path, dataset = make_run(tmp_path / "run")
    assert "much the same everywhere, because no place" in render_report(path, dataset=dataset)


@without_charts
def test_images_that_were_not_looked_into_are_counted(tmp_path, monkeypatch):
    path, dataset = make_run(tmp_path / "run")
    assert "would stand here" not in render_report(path, dataset=dataset)
    monkeypatch.setattr(inside, "SECONDS", 0.0)
    html = render_report(path, dataset=dataset)
    assert html.count('<ul class="attributions">') == 1
    assert re.search(r"<p>3 more images would stand here, but looking into this network took longer", html)


def test_errors_come_before_the_arithmetic_which_is_folded(reports):
    _, _, report = reports("plain")
    listed = [section["id"] for section in report.all("section")]
    assert listed[:3] == ["summary", "confusion", "errors"]
    folded = report.html.index("<summary>The arithmetic of each layer</summary>")
    assert folded > report.html.index('<section id="errors"')


def test_the_numbers_of_the_reliability_chart_are_a_table_below_it(reports):
    path, dataset, report = reports("plain")
    bins = read_contents(path, dataset).test.reliability
    section = re.search(r'<section id="calibration".*?</section>', report.html, re.DOTALL)[0]
    folded = section[section.index("<summary>The numbers") : section.index("</details>")]
    rows = re.findall(r"<td>([^<]+)</td><td>([^<]+)</td><td>([^<]+)</td></tr>", folded)
    filled = bins.counts > 0
    assert 1 < filled.sum() < filled.size
    assert rows == [
        (str(count), formatting.percent(confidence), formatting.percent(accuracy))
        for count, confidence, accuracy in zip(
            bins.counts[filled], bins.confidence[filled], bins.accuracy[filled], strict=True
        )
    ]


@without_charts
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_a_kernel_without_a_bias_is_recomputed_without_one(tmp_path, use_bias):
    layers = [keras.layers.Conv2D(4, 3, use_bias=use_bias), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((12, 12, 1)), *layers, keras.layers.Softmax()])
    path, dataset = make_run(tmp_path / "run", model=model)
    page = render_report(path, dataset=dataset)
    assert "Σ of all 9 products" in page
    assert ("<dt>+ bias</dt>" in page) is use_bias
