"""The report in a real browser: opened from a file, used by pointer and keyboard, checked for all readers."""

import keras
import numpy as np
import pytest
from report_runs import make_dataset, make_run

from convscope.arithmetic.activations import ACTIVATIONS
from convscope.networks import NETWORKS, build
from convscope.report import explorer
from convscope.report.rendering import write_report

pytestmark = pytest.mark.browser

NARROW, WIDE = 390, 1280
TOLERANCE = 1e-5
HOSTILE = ["<script>alert(1)</script>", "</script><!--", '"><img src=x onerror=alert(1)>']


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path, dataset = make_run(tmp_path_factory.mktemp("runs") / "run")
    return write_report(path, dataset=dataset)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """Write the report of a hundred classes."""
    names = [f"class number {k}" for k in range(100)]
    dataset = make_dataset(100, (8, 8, 1), 400, class_names=names)
    path, dataset = make_run(tmp_path_factory.mktemp("runs") / "run", dataset=dataset, right=0.6)
    return write_report(path, dataset=dataset)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    dataset = make_dataset(3, count=60, class_names=HOSTILE, names=lambda part, index: f"<b>{index}</b>")
    path, dataset = make_run(tmp_path_factory.mktemp("runs") / "run", dataset=dataset)
    return write_report(path, dataset=dataset)


both_themes = pytest.mark.parametrize("scheme", ["light", "dark"])
both_widths = pytest.mark.parametrize("width", [NARROW, WIDE], ids=["phone", "desktop"])


@both_themes
@both_widths
def test_it_opens_from_a_file_and_fits_the_window(open_page, report, width, scheme):
    page = open_page(report, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("scrollY") == 0  # the walk chooses a layer far below
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    brightness = sum(map(int, ground[4:-1].split(",")[:3])) / 3
    assert (brightness > 200) == (scheme == "light")
    assert page.locator("h1").inner_text() == "simple on made"


@both_themes
@both_widths
@pytest.mark.parametrize("which", ["report", "crowded", "hostile"])
def test_an_automatic_check_finds_nothing_against_accessibility(open_page, request, which, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(request.getfixturevalue(which), width=width, scheme=scheme)
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    found = Axe().run(page)
    assert [
        (one["id"], one["impact"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"])
        for one in found.response["violations"]
    ] == []


def test_the_theme_button_goes_round_and_wins_over_the_system(open_page, report):
    page = open_page(report, scheme="light")
    button = page.locator("#theme")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    seen = []
    for _ in range(3):
        button.click()
        seen.append((button.inner_text(), page.evaluate(ground)))
    assert [text for text, _ in seen] == ["Theme: light", "Theme: dark", "Theme: auto"]
    assert [colour == light for _, colour in seen] == [True, False, True]


def test_pointing_at_a_cell_shows_its_images_and_a_click_keeps_them(open_page, report):
    page = open_page(report)
    pane = page.locator("#matrix-pane")
    cells = page.evaluate("JSON.parse(document.getElementById('matrix-data').textContent)")
    wrong = [key for key in cells["counts"] if len(set(key.split(","))) == 2]
    first, second = wrong[:2]
    for key in (first, second):
        page.locator(f"[data-cell='{key}']").hover()
        true, predicted = key.split(",")
        assert f"True class {true}, predicted {predicted}" in pane.inner_text()
        assert pane.locator("img").count() == cells["counts"][key]
        assert cells["images"][key][0][0] in pane.inner_text()
    page.locator(f"[data-cell='{first}'] button").click()
    page.locator(f"[data-cell='{second}']").hover()
    page.locator("h1").hover()
    assert pane.locator("h3").inner_text() == "True class {}, predicted {}".format(*first.split(","))


def test_the_keyboard_reaches_every_cell(open_page, report):
    page = open_page(report)
    stops = page.locator("table.confusion button[tabindex='0']")
    assert stops.count() == 1
    stops.focus()
    page.keyboard.press("ArrowUp")
    before = page.locator("#matrix-pane h3").inner_text()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    after = page.locator("#matrix-pane h3").inner_text()
    assert before != after
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("true ")
    assert stops.count() == 1


def test_many_classes_are_pointed_at_in_a_drawing_or_chosen_from_lists(open_page, crowded):
    page = open_page(crowded)
    pane = page.locator("#matrix-pane h3")
    cells = page.evaluate("JSON.parse(document.getElementById('matrix-data').textContent)")
    key = next(key for key in cells["counts"] if len(set(key.split(","))) == 2)
    true, predicted = map(int, key.split(","))
    page.get_by_role("combobox", name="True class").select_option(str(true))
    page.get_by_role("combobox", name="predicted as").select_option(str(predicted))
    assert pane.inner_text() == f"True class class number {true}, predicted class number {predicted}"
    drawing = page.locator("#matrix-drawing")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.405, box["y"] + box["height"] * 0.405)
    assert pane.inner_text() == "class number 40, recognised"
    page.mouse.move(1, 1)
    assert f"class number {true}, predicted" in pane.inner_text()


def test_the_walk_goes_from_an_image_to_one_number_recomputed(open_page, report):
    page = open_page(report)
    pane = page.locator("#walk-pane")
    assert "equal to the network’s own number" in pane.inner_text()
    page.get_by_role("spinbutton", name="Row").fill("0")
    page.get_by_role("spinbutton", name="Column").fill("9")
    assert "row 0, column 9" in pane.locator("h3").inner_text()
    assert pane.locator("table.numbers").count() == 3
    assert pane.locator(".verdict.equal").count() == 1
    page.locator("input[name='walk-map'][value='5']").check(force=True)
    assert "map 5" in pane.locator("h3").inner_text()
    page.locator("input[name='walk-layer'][value='2']").check(force=True)
    assert pane.locator("h3").inner_text().startswith("dense_1: unit")
    assert "The largest contributions" in pane.inner_text()
    page.get_by_role("spinbutton", name="Unit").fill("3")
    assert "unit 3 (3)" in pane.locator("h3").inner_text()
    assert pane.locator(".verdict.equal").count() == 1
    page.locator("input[name='walk-image'][value='1']").check(force=True)
    page.wait_for_selector("#walk[data-ready='1']")
    assert pane.locator(".verdict.equal").count() == 1


def test_a_click_on_a_map_chooses_the_place(open_page, report):
    page = open_page(report)
    target = page.locator(".frame.clickable")
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.05)
    assert "row 0, column 9" in page.locator("#walk-pane h3").inner_text()
    assert page.get_by_role("spinbutton", name="Row").input_value() == "0"


def every_kind(data_format):
    """Build a network with all kinds of layers whose arithmetic the page knows."""
    shape = (3, 12, 12) if data_format == "channels_first" else (12, 12, 3)
    order = {"data_format": data_format}
    layers = [
        keras.layers.Conv2D(6, 3, padding="same", strides=2, activation="tanh", **order),
        keras.layers.Conv2D(6, 3, padding="same", dilation_rate=2, activation="relu", groups=2, **order),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", activation="sigmoid", **order),
        keras.layers.Conv2D(8, (1, 2), use_bias=False, activation="elu", **order),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(2, padding="same", **order),
        keras.layers.AveragePooling2D(2, strides=1, padding="same", **order),
        keras.layers.Dropout(0.5),
        keras.layers.GlobalAveragePooling2D(**order),
        keras.layers.Dense(7, "silu"),
        keras.layers.Dense(4),
        keras.layers.Activation("softmax"),
    ]
    return keras.Sequential([keras.Input(shape), *layers])


def named(data_format, name="stages", side=12):
    shape = (3, side, side) if data_format == "channels_first" else (side, side, 3)
    return build(name, shape, 4, data_format)


def branches(data_format):
    """Build a network with what the page knows no arithmetic for, and with layers that change nothing."""
    entering = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(entering)
    x = keras.layers.Identity()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Add()([x, keras.layers.SeparableConv2D(4, 3, padding="same")(x)])
    x = keras.layers.SpatialDropout2D(0.2)(keras.layers.ReLU(max_value=1.0)(x))
    x = keras.layers.GlobalMaxPooling2D(keepdims=True)(x)
    x = keras.layers.Flatten(data_format="channels_first")(keras.layers.UpSampling2D(2)(x))
    x = keras.layers.GaussianNoise(0.1)(keras.layers.Dense(6, "gelu")(x))
    return keras.Model(entering, keras.layers.Softmax()(keras.layers.Dense(4)(x)))


RECOMPUTE_ALL = """() => {
  const { recompute } = modules["arithmetic.js"];
  const { agreement } = modules["report.js"];
  const { network, pass } = reportWalk;
  return network.layers.map((layer, index) => {
    const { shape } = layer;
    const [rows, columns] = shape.length === 3 ? shape : [1, 1];
    const some = [...Array(Math.min(shape.at(-1), 40)).keys()];
    let worst = 0;
    let count = 0;
    let none = 0;
    for (const row of new Set([0, Math.floor(rows / 2), rows - 1])) {
      for (const column of new Set([0, Math.floor(columns / 2), columns - 1])) {
        for (const channel of layer.settings.units ?? some) {
          const found = recompute(pass(), index, { row, column, channel });
          if (!found) none += 1;
          else worst = Math.max(worst, found.difference / Math.max(1, Math.abs(found.own)));
          count += 1;
        }
      }
    }
    const far = layer.supply === "computed" ? agreement(pass(), index).worst : 0;
    worst = Math.max(worst, far);
    return { name: layer.name, supply: layer.supply, worst, count, none };
  });
}"""


def normalized(data_format):
    return named(data_format, "normalized")


@pytest.mark.parametrize("supply", ["carried", "computed"])
@pytest.mark.parametrize("make", [every_kind, named, normalized], ids=["every kind", "stages", "normalized"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_numbers_recomputed_in_the_page_equal_the_networks(
    open_page, tmp_path, monkeypatch, make, data_format, supply
):
    model = make(data_format)
    if supply == "computed":
        monkeypatch.setattr(explorer, "SMALL", 0)
    dataset = make_dataset(4, (12, 12, 3), 40)
    for layer in model.layers:  # biases of zero would hide a bias that is left out
        moved = [w + 0.05 * (1 + i) if w.ndim == 1 else w for i, w in enumerate(layer.get_weights())]
        layer.set_weights(moved)
    path, dataset = make_run(tmp_path / "run", dataset=dataset, model=model)
    layers = open_page(write_report(path, dataset=dataset)).evaluate(RECOMPUTE_ALL)
    assert len(layers) == len(model.layers)
    assert supply in {layer["supply"] for layer in layers}
    assert [layer["name"] for layer in layers if layer["none"] or not layer["count"]] == []
    assert max(layer["worst"] for layer in layers) <= TOLERANCE


def test_the_activations_of_the_page_are_the_networks(open_page, report):
    x = [-30.0, -2.5, -0.1, 0.0, 0.3, 5.0, 7.0, 30.0]
    written = {name: known for name, known in ACTIVATIONS.items() if known.apply and not known.over_row}
    compute = """([names, x]) => names.map((name) => {
      const apply = modules["activations.js"].ACTIVATIONS[name];
      return apply ? x.map((one) => apply(one, {})) : null;
    })"""
    found = dict(zip(written, open_page(report).evaluate(compute, [list(written), x]), strict=True))
    assert {"linear", "relu", "relu6", "sigmoid", "tanh", "elu", "silu", "softplus"} <= set(found)
    for name, values in found.items():
        assert values is not None, name
        np.testing.assert_allclose(values, written[name](np.array(x)), rtol=1e-12, atol=1e-15, err_msg=name)


# Goes from every layer to every other, from a corner of the one to all corners of the other; what the pane
# says must be about the layer that was chosen, and either equal to the network's number or none.
WALK_EVERYWHERE = """() => {
  const pane = document.getElementById("walk-pane");
  const data = JSON.parse(document.getElementById("walk-data").textContent);
  const names = data.network.layers.map((layer) => layer.name);
  const corners = (low) => {
    for (const input of document.querySelectorAll("#walk .controls input[type=number]")) {
      input.value = low ? input.min : input.max;
      input.dispatchEvent(new Event("input"));
    }
  };
  const choose = (layer) => document.querySelector(`#walk input[name=walk-layer][value="${layer}"]`).click();
  const wrong = [];
  let equal = 0;
  const look = (from, to) => {
    const said = pane.innerText;
    const heading = pane.querySelector("h3")?.innerText ?? "";
    equal += pane.querySelectorAll(".verdict.equal").length;
    const other = !heading.startsWith(`${names[to]}: `);
    const different = pane.querySelector(".verdict.different");
    if (other || different || /undefined|NaN/.test(said)) wrong.push([names[from], said]);
  };
  for (let from = 0; from < names.length; from += 1) {
    for (let to = 0; to < names.length; to += 1) {
      // Of many layers all neighbours, and a fourth of the other pairs.
      if (names.length > 12 && Math.abs(from - to) > 1 && (from + 2 * to) % 4 > 0) continue;
      choose(from);
      corners(false);
      choose(to);
      for (const low of [null, true, false]) {
        if (low !== null) corners(low);
        look(from, to);
      }
    }
  }
  return { wrong, equal, layers: names.length };
}"""

WALKED = {
    **{name: lambda order, name=name: named(order, name, side=24) for name in NETWORKS},
    "every kind": every_kind,
    "branches": branches,
}


@pytest.mark.parametrize("make", WALKED.values(), ids=WALKED.keys())
def test_a_walk_from_every_layer_to_every_other_stays_with_the_chosen_one(open_page, tmp_path, make):
    model = make("channels_last")
    dataset = make_dataset(4, model.input_shape[1:], 40)
    path, dataset = make_run(tmp_path / "run", dataset=dataset, model=model)
    found = open_page(write_report(path, dataset=dataset)).evaluate(WALK_EVERYWHERE)
    assert found["layers"] == sum(not isinstance(layer, keras.layers.InputLayer) for layer in model.layers)
    assert found["wrong"] == []
    assert found["equal"] > found["layers"]


def test_long_arithmetic_fits_a_small_phone(open_page, tmp_path):
    small = 350
    dataset = make_dataset(4, (12, 12, 3), 40)
    path, dataset = make_run(tmp_path / "run", dataset=dataset, model=every_kind("channels_last"))
    page = open_page(write_report(path, dataset=dataset), width=small)
    assert page.locator(".equation dt").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= small


def test_names_that_hold_html_are_text_in_the_panes_too(open_page, hostile):
    page = open_page(hostile)
    assert page.locator("img[src='x']").count() == 0
    assert any(name in page.locator("#matrix-pane").inner_text() for name in HOSTILE)
    assert "<b>" in page.locator("#matrix-pane").inner_text()
    assert page.locator("#matrix-pane b").count() == 0


def test_without_javascript_everything_but_the_interaction_is_there(open_page, report):
    page = open_page(report, java_script_enabled=False)
    assert "With JavaScript" in page.locator("#walk").inner_text()
    assert not page.locator("#theme").is_visible()
    text = page.locator("main").inner_text()
    for heading in ("How good it is", "Evaluation", "Errors", "Calibration", "Training health"):
        assert heading in text
    assert page.locator("table.confusion td.hit").count() == 10
    assert "they differ by" in text
    assert page.locator("main img").count() > 50


def test_on_paper_it_is_light_unfolded_and_without_controls(open_page, report, tmp_path):
    page = open_page(report, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#theme").is_visible()
    scheme = page.evaluate("getComputedStyle(document.documentElement).colorScheme")
    assert scheme == "light"
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_the_contents_follow_the_reader(open_page, report):
    page = open_page(report)
    page.locator("a[href='#calibration']").click()
    page.wait_for_function("document.querySelector('.toc [aria-current]')?.hash === '#calibration'")


def test_images_enlarge_by_pointer_and_keyboard_and_esc_closes(open_page, report):
    page = open_page(report)
    dialog = page.locator("dialog.zoom")
    small = page.locator("#errors .cards img").first
    small.click()
    assert dialog.is_visible()
    enlarged = dialog.locator("img")
    assert enlarged.get_attribute("src") == small.get_attribute("src")
    assert enlarged.bounding_box()["width"] > 5 * small.bounding_box()["width"]
    assert "true" in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    assert enlarged.get_attribute("src") == page.locator("#errors .cards img").nth(1).get_attribute("src")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    small.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    assert page.locator("#matrix-pane img[role=button]").count() > 0


def test_an_enlarged_image_has_nothing_against_accessibility_on_a_phone(open_page, report):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(report, width=NARROW)
    page.locator("#errors .cards img").first.click()
    assert [one["id"] for one in Axe().run(page).response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW


def test_the_first_screen_of_a_phone_says_how_good_compared_with_what_and_where_wrong(open_page, report):
    page = open_page(report, width=NARROW)
    for words in ("90.00", "most frequent class", "Most often wrong:"):
        lines = page.locator("#summary").get_by_text(words).first.bounding_box()
        assert 0 < lines["y"] < 844 - lines["height"]
