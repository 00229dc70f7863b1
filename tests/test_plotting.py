"""Figures: what is written in them, shown once in a real notebook, and safe as parts of a page."""

import re
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from convscope.errors import DataError, RunError, UsageError
from convscope.plotting import (
    as_svg,
    embedded,
    plot_confusion_matrix,
    plot_errors,
    plot_history,
    plot_intervals,
    plot_predictions,
    plot_probability,
    png_bytes,
    save_figure,
    style,
)
from convscope.plotting.evaluation import readable_on
from convscope.plotting.images import as_pictures, draw_picture, image_grid
from convscope.plotting.style import BLUE, RED, new_figure, plain, shorten

FULL = {
    "loss": [0.5, 0.2, 0.1],
    "accuracy": [0.8, 0.9, 0.95],
    "val_loss": [0.4, 0.3, 0.35],
    "val_accuracy": [0.85, 0.9, 0.9],
}


def case(images=12, classes=3, channels=1, wrong=4):
    """Images, labels and probabilities with a known number of errors."""
    rng = np.random.default_rng(0)
    shape = (images, 6, 6, channels) if channels else (images, 6, 6)
    labels = np.arange(images) % classes
    predicted = np.where(np.arange(images) < wrong, (labels + 1) % classes, labels)
    probabilities = np.full((images, classes), 0.3 / classes)
    probabilities[np.arange(images), predicted] += 0.7
    return rng.integers(0, 256, shape, dtype=np.uint8), labels, probabilities


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def drawn(figure):
    """Lay the figure out, so that a fault which shows only then is found."""
    figure.draw_without_rendering()
    return figure


class TestHistory:
    def test_draws_training_and_validation_in_two_panels(self):
        loss, accuracy = drawn(plot_history(FULL)).axes
        assert [line.get_label() for line in loss.lines] == ["training", "validation"]
        np.testing.assert_allclose(loss.lines[0].get_ydata(), FULL["loss"])
        np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [85, 90, 90])
        assert loss.lines[0].get_xdata().tolist() == [1, 2, 3]
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss (cross-entropy, nats)")

    def test_works_without_validation(self):
        figure = drawn(plot_history({"loss": [1.0, 0.5], "acc": [0.5, 0.6]}))
        assert [len(axes.lines) for axes in figure.axes] == [1, 1]

    def test_works_without_accuracy(self):
        figure = drawn(plot_history({"loss": np.array([1.0])}))
        assert figure.axes[1].texts[0].get_text() == "no accuracy was recorded"

    def test_a_keras_history_knows_its_epochs(self):
        history = SimpleNamespace(history=FULL, epoch=[4, 5, 6])
        assert plot_history(history).axes[0].lines[0].get_xdata().tolist() == [5, 6, 7]

    def test_validation_every_second_epoch(self):
        figure = drawn(plot_history({"loss": [4, 3, 2, 1], "val_loss": [3, 2]}))
        assert figure.axes[0].lines[1].get_xdata().tolist() == [3, 4]

    @pytest.mark.parametrize(
        ("history", "message"),
        [
            ({}, "a history with a loss for each epoch, got an empty history"),
            ({"accuracy": [1]}, "got the names accuracy"),
            ([1, 2], "a Keras History or a mapping of names to numbers, got list"),
        ],
        ids=["empty", "no loss", "a list"],
    )
    def test_refuses_what_is_no_history(self, history, message):
        with pytest.raises(UsageError, match=message):
            plot_history(history)


class TestConfusionMatrix:
    def test_writes_the_counts(self):
        axes = drawn(plot_confusion_matrix([[8, 2], [1, 1200]], ["cat", "dog"])).axes[0]
        assert [text.get_text() for text in axes.texts] == ["8", "2", "1", "1200"]
        assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")

    def test_writes_shares_of_the_true_class(self):
        axes = plot_confusion_matrix([[8, 2], [0, 0]], ["cat", "dog"], normalize=True).axes[0]
        assert [text.get_text() for text in axes.texts] == ["0.80", "0.20", "0.00", "0.00"]
        assert axes.images[0].get_array().tolist() == [[0.8, 0.2], [0, 0]]

    @pytest.mark.parametrize("cmap", ["Blues", "viridis", "gray", "Greys", "plasma"])
    def test_numbers_are_legible_on_every_cell(self, cmap):
        counts = np.array([[100, 0, 0], [10, 80, 10], [25, 25, 50]])
        axes = plot_confusion_matrix(counts, ["a", "b", "c"], cmap=cmap).axes[0]
        cells = axes.images[0].to_rgba(axes.images[0].get_array()).reshape(-1, 4)
        contrasts = [contrast(to_rgba(t.get_color()), c) for t, c in zip(axes.texts, cells, strict=True)]
        assert min(contrasts) >= 4.5

    @pytest.mark.parametrize("classes", [2, 10, 25, 26, 50, 51, 100], ids=str)
    def test_any_number_of_classes(self, classes):
        names = [f"a long name of a class {index}" for index in range(classes)]
        figure = drawn(plot_confusion_matrix(np.eye(classes, dtype=int), names))
        axes = figure.axes[0]
        assert len(axes.texts) == (classes**2 if classes <= 25 else 0)
        assert len(axes.get_xticks()) == (classes if classes <= 50 else -(-classes // 2))

    def test_title_and_wrong_shapes(self):
        assert titles(plot_confusion_matrix([[1]], ["a"], title="Mine"))[0] == "Mine"
        with pytest.raises(UsageError, match=r"Expected a square confusion matrix, got shape \(1, 2\)"):
            plot_confusion_matrix([[1, 2]], ["a"])
        with pytest.raises(UsageError, match="Expected 2 class names, one for each row, got 3"):
            plot_confusion_matrix(np.eye(2), ["a", "b", "c"])


def luminance(colour):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(first, second):
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_text_contrasts_with_every_grey():
    greys = np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1)
    assert min(contrast(to_rgba(readable_on(grey)), grey) for grey in greys) >= 4.5


class TestErrors:
    @pytest.mark.parametrize(
        ("wrong", "shown", "title"),
        [
            (1, 1, "The only error"),
            (4, 4, "All 4 errors"),
            (6, 6, "All 6 errors"),
            (9, 6, "The worst 6 of 9 errors"),
        ],
        ids=str,
    )
    def test_shows_at_most_six(self, wrong, shown, title):
        images, labels, probabilities = case(wrong=wrong)
        figure = drawn(plot_errors(images, labels, probabilities))
        assert len(figure.axes) == shown
        assert figure.get_suptitle() == title

    def test_says_when_there_are_none(self):
        images, labels, probabilities = case(wrong=0)
        figure = drawn(plot_errors(images, labels, probabilities))
        assert titles(figure) == ["No errors"]
        assert figure.axes[0].texts[0].get_text() == "All 12 images are predicted correctly."

    def test_shows_the_right_image_with_both_labels_and_its_name(self):
        images, labels, probabilities = case(wrong=0)
        probabilities[7] = [0.1, 0.05, 0.85]  # the true class is 1
        names = [f"folder/{index}.jpg" for index in range(12)]
        figure = plot_errors(images, np.eye(3)[labels], probabilities, ["cat", "dog", "owl"], names=names)
        (axes,) = figure.axes
        assert axes.get_title() == "predicted owl (0.85)\ntrue dog (0.05)"
        assert axes.get_xlabel() == "folder/7.jpg"
        np.testing.assert_allclose(axes.images[0].get_array(), images[7, :, :, 0] / 255)

    def test_wrong_number_of_names_or_images(self):
        images, labels, probabilities = case()
        with pytest.raises(UsageError, match="Expected 12 image names, got 2"):
            plot_errors(images, labels, probabilities, names=["a", "b"])
        with pytest.raises(UsageError, match="Expected 12 images, one for each row of probabilities, got 5"):
            plot_errors(images[:5], labels, probabilities)
        with pytest.raises(DataError, match="Expected labels from 0 to 2"):
            plot_errors(images, labels + 5, probabilities)


@pytest.mark.parametrize(
    ("channels", "kind"),
    [
        (None, np.uint8),
        (1, np.uint8),
        (1, np.float32),
        (2, np.uint8),
        (3, np.uint8),
        (3, np.float32),
        (4, np.uint8),
    ],
    ids=str,
)
def test_grey_and_colour_images_are_drawn(channels, kind):
    images, labels, probabilities = case(channels=channels)
    images = images.astype(kind) / (255 if kind is np.float32 else 1)
    drawn(plot_errors(images.astype(kind), labels, probabilities))
    drawn(plot_predictions(images.astype(kind), probabilities, labels, count=2))


class TestPredictions:
    def test_ticks_right_ones_and_crosses_wrong_ones(self):
        images, labels, probabilities = case(wrong=1)
        figure = drawn(plot_predictions(images, probabilities, labels, ["cat", "dog", "owl"], count=2))
        assert titles(figure) == ["✗ dog (0.80)\ntrue cat", "✓ dog (0.80)\n"]
        assert [axes.title.get_color() for axes in figure.axes] == [RED, BLUE]

    def test_without_labels(self):
        images, _, probabilities = case(images=20)
        figure = drawn(plot_predictions(images, probabilities))
        assert len(figure.axes) == 15
        assert titles(figure)[0] == "1 (0.80)"

    def test_fewer_images_than_asked_for(self):
        images, labels, probabilities = case(images=2, wrong=0)
        assert len(drawn(plot_predictions(images, probabilities, labels)).axes) == 2


class TestProbability:
    def test_true_ones_are_red_and_others_blue(self):
        table = [[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.97, 0.03]]
        figure = drawn(plot_probability(table, [0, 0, 1, 1], class_names=["cat", "dog"]))
        axes = figure.axes[0]
        own, others = axes.containers
        assert [bar.get_height() for bar in own] == [0] * 9 + [2]
        assert [bar.get_height() for bar in others] == [0, 0, 1] + [0] * 6 + [1]
        assert own[0].get_facecolor() == to_rgba(RED)
        assert others[0].get_facecolor() == to_rgba(BLUE)
        assert axes.get_yscale() == "log"
        whole, between = axes.yaxis.get_major_formatter(), axes.yaxis.get_minor_formatter()
        assert [whole(1), whole(10_000), between(2), between(0.6)] == ["1", "10,000", "2", ""]
        assert [text.get_text() for text in figure.legends[0].texts] == ["truly cat (2)", "others (2)"]

    @pytest.mark.parametrize("classes", [2, 100], ids=str)
    def test_any_number_of_classes(self, classes):
        _, labels, probabilities = case(classes=classes, images=2 * classes)
        drawn(plot_probability(probabilities, np.eye(classes)[labels], classes - 1))

    def test_a_class_without_images(self):
        drawn(plot_probability([[1.0, 0.0]], [0], class_index=1))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_index": 2}, "Expected a class from 0 to 1, got 2"),
            ({"class_index": -1}, "Expected a class from 0 to 1, got -1"),
            ({"bins": 0}, "Expected at least one bin, got 0"),
        ],
        ids=["beyond", "negative", "no bins"],
    )
    def test_refuses(self, options, message):
        with pytest.raises(UsageError, match=message):
            plot_probability([[0.5, 0.5]], [0], **options)


class TestPictures:
    def test_channels_first_is_recognised(self):
        images = np.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6)
        np.testing.assert_array_equal(as_pictures(images)[1, 2, 1], images[1, :, 2, 1])

    @pytest.mark.parametrize("channels", [1, 2])
    def test_a_dark_picture_stays_dark(self, channels):
        images = np.full((3, 4, 4, channels), 65_535 // 5, np.uint16)
        axes = plot_predictions(images, np.full((3, 2), 0.5)).axes[0]
        np.testing.assert_allclose(axes.images[0].get_array(), 0.2)

    def test_only_those_that_are_drawn_are_converted(self):
        images = np.zeros((1_000, 5, 5, 2), np.uint8)
        assert as_pictures(images, 1_000, np.array([7, 3])).shape == (2, 5, 5)
        with pytest.raises(UsageError, match="Expected 999 images"):
            as_pictures(images, 999, slice(2))

    def test_a_single_image_is_refused_with_the_cure(self):
        with pytest.raises(UsageError, match=r"got \(28, 28\)\. A single image x becomes x\[None\]\."):
            as_pictures(np.zeros((28, 28)))

    @pytest.mark.parametrize(
        ("picture", "expected"),
        [
            (np.array([[0, 255]], dtype=np.uint8), [[0, 1]]),
            (np.array([[0, 65535]], dtype=np.uint16), [[0, 1]]),
            (np.array([[False, True]]), [[0, 1]]),
            (np.array([[0.25, 0.5]]), [[0.25, 0.5]]),
            (np.array([[0.0, 51.0]]), [[0, 0.2]]),
            (np.array([[-2.0, 0.0, 2.0]]), [[0, 0.5, 1]]),
            (np.array([[np.nan, 1.0]]), [[0, 1]]),
        ],
        ids=["uint8", "uint16", "bool", "unit", "float to 255", "standardised", "NaN"],
    )
    def test_every_range_is_shown_from_black_to_white(self, picture, expected):
        with new_figure(1, 1) as figure:
            axes = figure.subplots()
            draw_picture(axes, picture)
        np.testing.assert_allclose(axes.images[0].get_array(), expected)


class TestText:
    def test_names_show_as_they_are(self):
        """Drawn in full: only then does matplotlib look for the letters."""
        names = ["$x^2$", "_hidden", "a\nb", "\udcff", "<b>", "100 %", "日本"]
        images, labels, probabilities = case(classes=7, images=7)
        assert png_bytes(plot_errors(images, labels, probabilities, names, names=names))
        assert png_bytes(plot_confusion_matrix(np.eye(7), names))
        assert png_bytes(plot_probability(probabilities, labels, 0, names))

    def test_dollars_start_no_formula(self):
        assert plain("$x$") == r"\$x\$"

    @pytest.mark.parametrize("length", range(3, 12), ids=str)
    @pytest.mark.parametrize("keep_end", [False, True], ids=["middle", "end"])
    def test_shortened_names_keep_their_length(self, length, keep_end):
        assert len(shorten("0123456789", length, keep_end)) == min(10, length)


class TestSaving:
    def test_the_same_figure_gives_the_same_bytes(self, tmp_path):
        images, labels, probabilities = case()
        first, second = (plot_errors(images, labels, probabilities) for _ in range(2))
        paths = [save_figure(first, tmp_path / "a.png"), save_figure(second, str(tmp_path / "b.png"))]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        with Image.open(paths[0]) as picture:
            assert set(picture.info) == {"dpi"}
            assert round(picture.info["dpi"][0]) == style.DPI

    def test_leaves_the_old_file_when_it_cannot_write(self, tmp_path, monkeypatch):
        target = tmp_path / "a.png"
        target.write_bytes(b"old")

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(RunError, match=r"write .*a\.png, got No space left on device"):
            save_figure(plot_history(FULL), target)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
        assert target.read_bytes() == b"old"

    def test_refuses_other_formats(self, tmp_path):
        with pytest.raises(UsageError, match=r"Expected a path that ends in \.png, got"):
            save_figure(plot_history(FULL), tmp_path / "a.jpg")


class TestNotebook:
    """IPython looks for `_ipython_display_` first, and pyplot shows what is still open after the cell."""

    @pytest.fixture
    def shown(self, monkeypatch):
        """A notebook that records what it is asked to show."""
        shows = []
        notebook = SimpleNamespace(display=lambda data, **_: shows.append(data))
        loaded = {"IPython.display": notebook, "matplotlib_inline.backend_inline": None}
        real = style._module
        monkeypatch.setattr(style, "_inline_backend", lambda: True)
        monkeypatch.setattr(style, "_module", lambda name: loaded[name] if name in loaded else real(name))
        yield shows
        mpl.pyplot.close("all")

    def test_a_figure_that_ends_a_cell_is_shown_once(self, shown):
        figure = plot_history(FULL)
        assert mpl.pyplot.get_fignums() == [1]
        figure._ipython_display_()
        assert mpl.pyplot.get_fignums() == []
        assert [sorted(data) for data in shown] == [["image/png", "text/plain"]]

    def test_a_figure_in_the_middle_of_a_cell_is_left_to_pyplot(self, shown):
        plot_history(FULL)
        assert len(mpl.pyplot.get_fignums()) == 1
        assert not shown

    @pytest.mark.usefixtures("shown")
    def test_an_embedded_figure_is_left_to_who_embeds_it(self):
        with embedded():
            plot_history(FULL)
        assert mpl.pyplot.get_fignums() == []
        plot_history(FULL)
        assert mpl.pyplot.get_fignums() == [1]

    def test_elsewhere_pyplot_keeps_no_figures(self):
        figure = plot_history(FULL)
        assert isinstance(figure, Figure)
        assert "matplotlib.pyplot" not in sys.modules or mpl.pyplot.get_fignums() == []

    def test_a_command_started_from_a_notebook_is_no_notebook(self, monkeypatch):
        monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        assert not style._inline_backend()


def test_figures_need_no_display_and_no_pyplot():
    program = (
        "import sys; from convscope.plotting import plot_history, png_bytes;"
        "png_bytes(plot_history({'loss': [1]}));"
        "assert not {'matplotlib.pyplot', 'torch', 'keras'} & set(sys.modules), 'loaded too much'"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env={"MPLBACKEND": "TkAgg"})


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314  our own


HISTORY = {"loss": [0.5, 0.2], "val_loss": [0.6, 0.3], "accuracy": [0.5, 0.7]}


def test_an_svg_has_no_styles_scripts_or_links_and_names_of_its_own():
    first, second = (as_svg(plot_history(HISTORY), label) for label in ("one", "another"))
    root = parsed(first)
    assert (root.get("role"), root.get("aria-label")) == ("img", "one")
    assert {element.tag for element in root.iter()}.isdisjoint({"style", "script", "metadata", "a"})
    assert [element for element in root.iter() if "style" in element.attrib] == []
    ids = set(re.findall(r' id="([^"]+)"', first))
    used = set(re.findall(r'href="#([^"]+)"', first)) | set(re.findall(r"url\(#([^)]+)\)", first))
    assert used <= ids
    assert ids.isdisjoint(re.findall(r' id="([^"]+)"', second))


def test_the_same_figure_gives_the_same_text_and_leaves_the_process_as_it_was():
    before = dict(mpl.rcParams)
    assert as_svg(plot_history(HISTORY), "x") == as_svg(plot_history(HISTORY), "x")
    assert dict(mpl.rcParams) == before


def test_words_in_an_svg_are_text():
    figure = plot_intervals(["<b>cat</b>"], [0.5], [(0.4, 0.6)])
    svg = as_svg(figure, 'a "label" <i>')
    assert "&lt;b&gt;cat&lt;/b&gt;" in svg
    assert parsed(svg).get("aria-label") == 'a "label" <i>'


def test_one_panel_is_drawn_alone_and_smaller_than_the_whole():
    whole = as_svg(plot_history(HISTORY), "x")
    figure = plot_history(HISTORY)
    part = as_svg(figure, "x", [figure.axes[0]])
    assert "accuracy (%)" in whole
    assert "accuracy (%)" not in part
    assert "loss (cross-entropy, nats)" in part

    def width(svg):
        return float(parsed(svg).get("viewBox").split()[2])

    assert width(part) < 0.6 * width(whole)


def test_intervals_share_one_scale_with_the_baseline():
    figure = plot_intervals(["test", "published"], [0.9, 0.98], [(0.85, 0.93), None], ("guessing", 0.1))
    (axes,) = figure.axes
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    assert (85.0, 93.0) in drawn
    assert drawn[-1] == (10.0, 10.0)
    low, high = axes.get_xlim()
    assert low <= 0
    assert high >= 100
    assert "guessing, 10.0 %" in axes.get_xlabel()


def test_intervals_without_a_row_are_refused():
    with pytest.raises(UsageError, match="a name, a share and an interval"):
        plot_intervals([], [], [])


@pytest.mark.parametrize("count", [1, 2])
def test_a_long_title_is_not_cut_at_the_sides_of_a_small_figure(count):
    title = "The first images of a folder with a long name, and what the network says about each of them"
    figure = image_grid(np.zeros((count, 8, 8)), ["cat"] * count, title, columns=2)
    FigureCanvasAgg(figure).draw()
    (drawn,) = figure.texts
    box = drawn.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    below = min(axes.get_tightbbox().y1 for axes in figure.axes)
    assert below <= box.y0 + 1  # no line of it lies over an image


# what is in the cell → how often a figure must be shown by it
CELLS = {
    "plot_history(H)": 1,
    "plot_history(H);": 1,
    "plot_history(H)\nplot_history(H)": 2,
    "figure = plot_history(H)": 1,
    "figure": 1,
    "for _ in range(3):\n    plot_history(H)": 3,
    "from IPython.display import display\ndisplay(plot_history(H))": 1,
    "import matplotlib.pyplot as plt\nplot_history(H)\nplt.show()": 1,
    "with embedded():\n    embeds = plot_history(H)": 0,
    "1 + 1": 0,
}
IMPORT = "from convscope.plotting import embedded, plot_history\nH = {'loss': [0.3, 0.2]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [IMPORT, f"%matplotlib inline\nimport matplotlib.pyplot as plt\n{IMPORT}"],
    ids=["without pyplot", "with pyplot"],
)
def test_every_figure_is_shown_once(first):
    notebook = new_notebook(cells=[new_code_cell(source) for source in (first, *CELLS)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = {cell.source: _pictures(cell) for cell in notebook.cells[1:]}
    assert shown == CELLS
    nbformat.validate(notebook)


def _pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)
