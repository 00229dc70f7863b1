"""The explorer's walk in a real browser: its numbers against Python's, its keys, its quiz, its readers."""

import keras
import numpy as np
import pytest
from report_runs import make_dataset, make_run

from convscope.contents import read_contents
from convscope.explorer import write_page
from convscope.glossary import GLOSSARY
from convscope.inspection import grad_cam, occlusion, recompute
from convscope.inspection.forward import run, scores, to_batch
from convscope.lowering.graph import read_graph

pytestmark = pytest.mark.browser

NARROW, WIDE = 390, 1280
TOLERANCE = 1e-5
SHAPE = (12, 12, 3)


def plain():
    """Build a network of the usual layers."""
    layers = keras.layers
    entering = keras.Input(SHAPE)
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(entering))
    x = layers.MaxPooling2D(2)(layers.ReLU()(x))
    x = layers.Add(name="add")([x, layers.Conv2D(6, 3, padding="same", activation="tanh")(x)])
    x = layers.Conv2D(8, 3, activation="relu", name="convolution")(layers.DepthwiseConv2D(3)(x))
    return keras.Model(entering, layers.Dense(4, "softmax")(layers.Flatten()(x)))


def every_kind():
    """Build a network with all kinds of layers whose arithmetic the walk shows."""
    layers = keras.layers
    entering = keras.Input(SHAPE)
    x = layers.Rescaling(2.0, -0.1)(entering)
    x = layers.Conv2D(6, 3, padding="same", strides=2, activation="tanh", name="convolution")(x)
    x = layers.BatchNormalization(name="normalization")(x)
    y = layers.Conv2D(6, 3, padding="same", dilation_rate=2, activation="relu", groups=2)(x)
    x = layers.Add(name="add")([x, y])
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="sigmoid", name="depthwise")(
        x
    )
    x = layers.SeparableConv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.GroupNormalization(2)(layers.LayerNormalization()(x))
    x = layers.Concatenate()([x, y])
    x = layers.Average()([x, layers.LeakyReLU()(x)])
    x = layers.Cropping2D(((0, 1), (1, 1)))(layers.ZeroPadding2D(((1, 0), (0, 2)))(x))
    x = layers.MaxPooling2D(2, padding="same", name="max")(layers.UpSampling2D(2)(x))
    x = layers.AveragePooling2D(2, name="mean")(x)
    x = layers.Flatten()(layers.Dropout(0.5)(layers.PReLU(shared_axes=[1, 2])(x)))
    x = layers.Dense(4, name="last")(layers.Dense(7, "silu", name="dense")(x))
    model = keras.Model(entering, layers.Softmax(name="softmax")(x))
    generator = np.random.default_rng(0)
    for layer in model.layers:  # biases of zero would hide a bias that is left out
        moved = [
            w + generator.uniform(0.05, 0.4, w.shape) if w.ndim == 1 and w.dtype.kind == "f" else w
            for w in layer.get_weights()
        ]
        layer.set_weights(moved)
    return model


class Walked:
    """A page on its walk, and the network and image that it shows."""

    def __init__(self, page, model, image):
        self.page, self.model, self.image = page, model, image
        self.names = page.evaluate("explorer.engine.network.layers.map((layer) => layer.name)")

    def choose(self, layer, position=None, channel=0):
        self.page.locator(f"input[name='walk-layer'][value='{self.names.index(layer)}']").check(force=True)
        if position is None:
            self.page.get_by_role("spinbutton", name="Unit").fill(str(channel))
            return
        self.page.locator(f"input[name='walk-map'][value='{channel}']").check(force=True)
        self.page.get_by_role("spinbutton", name="Row").fill(str(position[0]))
        self.page.get_by_role("spinbutton", name="Column").fill(str(position[1]))

    def number(self, what):
        return float(self.page.locator(f"#walk-pane dd[data-what='{what}']").get_attribute("data-value"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write the pages of two networks."""

    def write(model):
        path, dataset = make_run(
            tmp_path_factory.mktemp("runs") / "run", dataset=make_dataset(4, SHAPE, 40), model=model
        )
        contents = read_contents(path, dataset)
        return write_page(contents, images=12).file, contents.bundle

    return {"every kind": write(every_kind()), "plain": write(plain())}


@pytest.fixture
def walk(open_page, written):
    """Open the page on its walk."""

    def open_(width=WIDE, scheme="light", language="en-GB", network="every kind"):
        file, bundle = written[network]
        page = open_page(file, "#section=walk", width, scheme, language)
        page.wait_for_selector("#walk-pane h3")
        pixels = page.evaluate("Array.from(explorer.images.pixels(0))")
        image = bundle.preprocess.apply(np.array(pixels, np.uint8).reshape(1, *SHAPE))[0]
        return Walked(page, bundle.model, image)

    return open_


PLACES = [
    ("convolution", (0, 5), 4),
    ("normalization", (3, 2), 1),
    ("depthwise", (5, 0), 7),
    ("max", (2, 2), 9),
    ("mean", (1, 2), 3),
    ("dense", None, 6),
    ("last", None, 2),
    ("softmax", None, 1),
]


def test_the_numbers_shown_are_pythons(walk):
    walked = walk()
    for layer, position, channel in PLACES:
        walked.choose(layer, position, channel)
        expected = recompute(walked.model, walked.image, layer, position, channel)
        assert walked.number("result") == pytest.approx(expected.value, rel=TOLERANCE, abs=TOLERANCE), layer
        assert walked.page.locator(".verdict.equal").count() == 1
        if layer in ("convolution", "depthwise", "dense", "last"):
            total = walked.number("sum") + float(
                walked.page.locator("#walk-pane dd[data-what='bias']").get_attribute("data-value")
            )
            assert total == pytest.approx(expected.total, rel=TOLERANCE, abs=TOLERANCE), layer


# Recomputes numbers all over every layer, in the page.
RECOMPUTE_ALL = """() => {
  const { recompute, wayBack } = modules["arithmetic.js"];
  const { placeAt } = modules["places.js"];
  const { result } = explorer.store.state;
  const { network } = explorer.engine;
  const pass = { network, image: result.image, outputs: result.outputs, changes: {} };
  return network.layers.map((layer, index) => {
    const size = layer.shape.reduce((all, one) => all * one, 1);
    let [worst, none, lost] = [0, 0, 0];
    for (let flat = 0; flat < size; flat += 1) {
      const place = placeAt(layer.shape, flat);
      const found = recompute(pass, index, place);
      if (!found) none += 1;
      else worst = Math.max(worst, found.difference / Math.max(1, Math.abs(found.own)));
      if (flat % 17 || !found?.own) continue;
      const { layer: end } = wayBack(pass, index, place).at(-1);
      if (end >= 0 && network.layers[end].kind !== "zero_padding") lost += 1; // a margin comes from nowhere
    }
    return { name: layer.name, worst, none, lost };
  });
}"""


def test_every_number_of_every_layer_is_recomputed_and_followed_to_the_image(walk):
    for layer in walk().page.evaluate(RECOMPUTE_ALL):
        assert layer["worst"] <= TOLERANCE, layer
        assert (layer["none"], layer["lost"]) == (0, 0), layer


def test_the_receptive_field_is_what_the_number_depends_on(walk):
    walked = walk()
    graph = read_graph(walked.model)
    field = walked.page.evaluate(
        "([layer, place]) => modules['places.js'].receptiveField(explorer.engine.network, layer, place)",
        [walked.names.index("depthwise"), {"row": 3, "column": 2, "channel": 0}],
    )
    batch = to_batch(graph, walked.image).requires_grad_()
    run(graph, batch)[graph.call("depthwise").outputs[0]][0, 3, 2, 0].backward()
    rows, columns, _ = np.nonzero(batch.grad[0].numpy())
    seen = {
        "top": rows.min(),
        "left": columns.min(),
        "height": np.ptp(rows) + 1,
        "width": np.ptp(columns) + 1,
    }
    assert field == seen


def test_contributions_add_up_to_the_score_of_the_class(walk):
    walked = walk()
    graph = read_graph(walked.model)
    expected = scores(graph, to_batch(graph, walked.image))[0].tolist()
    for target, score in enumerate(expected):
        walked.page.locator(f"input[name='walk-class'][value='{target}']").check(force=True)
        table = walked.page.locator(".walk-classes td[data-value]")
        parts = [float(cell.get_attribute("data-value")) for cell in table.all()]
        shown = {
            line.get_attribute("data-what"): float(line.get_attribute("data-value"))
            for line in walked.page.locator(".walk-classes dd[data-what]").all()
        }
        assert sum(parts) + shown["walk.bias"] == pytest.approx(score, abs=TOLERANCE)
        assert shown["walk.for"] + shown["walk.against"] + shown["walk.bias"] == pytest.approx(
            score, abs=TOLERANCE
        )


@pytest.mark.parametrize("name", ["gradCam", "occlusion"])
def test_heat_is_pythons(walk, name):
    walked = walk(network="plain")
    page = walked.page
    page.locator("input[name='walk-class'][value='2']").check(force=True)
    figure = page.locator(f"[data-heat='{name}']")
    if name == "occlusion":
        figure.get_by_role("button").click()
    page.wait_for_selector(f"[data-heat='{name}'][data-ready]")
    found = page.evaluate("(name) => Array.from(document.querySelector(`[data-heat='${name}']`).heat)", name)
    python = {"gradCam": grad_cam, "occlusion": occlusion}[name](walked.model, walked.image, 2).values
    np.testing.assert_allclose(np.reshape(found, python.shape), python, atol=1e-4 * np.abs(python).max())


def test_arrow_keys_go_through_layers_maps_and_pixels(walk):
    walked = walk()
    page = walked.page
    heading = page.locator("#walk-pane h3")
    walked.choose("convolution", (2, 2), 1)
    page.locator("input[name='walk-layer']:checked").focus()
    page.keyboard.press("ArrowRight")
    assert heading.inner_text().startswith("normalization: ")
    page.keyboard.press("ArrowLeft")
    assert heading.inner_text().startswith("convolution: ")
    page.locator("input[name='walk-map']:checked").focus()
    before = page.evaluate("explorer.store.state.channel")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("explorer.store.state.channel") == (before + 1) % 6
    walked.choose("convolution", (2, 2), 1)
    page.locator(".frame.clickable").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert "row 3, column 1" in heading.inner_text()
    assert page.evaluate("document.activeElement.classList.contains('clickable')")
    page.keyboard.press("ArrowUp")
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    assert "row 0, column 1" in heading.inner_text()  # it stops at the edge


def test_a_place_that_another_section_chose_is_brought_into_the_layer(walk):
    walked = walk()
    small = walked.names.index("mean")
    rows, columns, maps = walked.model.get_layer("mean").output.shape[1:]
    walked.page.evaluate("(layer) => explorer.store.set({ layer, place: [99, 99], channel: 99 })", small)
    heading = walked.page.locator("#walk-pane h3").inner_text()
    assert heading == f"mean: row {rows - 1}, column {columns - 1}, map {maps - 1}"


def test_a_click_on_a_number_of_the_patch_goes_to_it(walk):
    walked = walk()
    walked.choose("normalization", (3, 2), 1)
    walked.choose("depthwise", (3, 2), 4)  # of channel 2
    walked.page.locator("#walk-pane table.numbers").first.locator("td").nth(5).click()
    assert walked.page.locator("#walk-pane h3").inner_text() == "add: row 3, column 3, map 2"
    walked.page.locator(".walk-back button").first.click()
    assert "row 3, column 3, map 2" in walked.page.locator("#walk-pane h3").inner_text()


def test_the_quiz_hides_numbers_until_they_are_guessed(walk):
    walked = walk()
    page = walked.page
    walked.choose("convolution", (2, 2), 1)
    expected = recompute(walked.model, walked.image, "convolution", (2, 2), 1).value
    page.get_by_role("tab", name="Learn").click()
    page.get_by_label("Hide numbers").check()
    page.get_by_role("tab", name="Walk").click()
    card = page.locator("label", has=page.locator("input[name='walk-layer']:checked"))
    assert "6×6×6" not in card.inner_text()
    assert page.locator("#walk-pane .verdict").count() == 0
    shape = page.get_by_label("Your answer: Shape of what comes out")
    shape.fill("6x6")
    page.keyboard.press("Enter")
    assert "Not yet" in page.locator("#walk-pane").inner_text()
    shape.fill("(6, 6, 6)")
    page.keyboard.press("Enter")
    assert "6×6×6" in card.inner_text()
    assert "1 of 1 right" in page.locator("#walk .quiz-score").inner_text()
    page.get_by_label("Your answer: tanh").fill(f"{expected:.3f}")
    page.keyboard.press("Enter")
    assert walked.number("result") == pytest.approx(expected, abs=TOLERANCE)
    page.locator("#walk-pane .guess").first.get_by_role("button", name="Show").click()
    assert "2 of 3 right" in page.locator("#walk .quiz-score").inner_text()


ANSWERS = [
    ("26x26x32", [26, 26, 32], True), ("(26, 26, 32)", [26, 26, 32], True), ("26×26", [26, 26, 32], False),
    ("216,650", [216650], True),
    ("216.650", [216650], True), ("1 600", [1600], True), ("1601", [1600], False),
    ("-0.25", -0.2512, True), ("\u22120,25", -0.2512, True), ("0.3", 0.25, False), ("0", 0.004, True),
    ("", 1.5, None), ("much", [3], None),
]  # fmt: skip


def test_answers_are_read_as_people_type_them(walk):
    found = walk().page.evaluate(
        "(all) => all.map(([text, expected]) => modules['learn.js'].isRight(text, expected))",
        [[text, expected] for text, expected, _ in ANSWERS],
    )
    assert found == [right for _, _, right in ANSWERS]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE], ids=["phone", "desktop"])
def test_an_automatic_check_finds_nothing_against_accessibility(walk, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    walked = walk(width, scheme)
    page = walked.page
    for section in page.evaluate("[...document.querySelectorAll('[role=tabpanel]')].map(({ id }) => id)"):
        page.evaluate("(section) => explorer.store.set({ section })", section)
        page.wait_for_timeout(100)
        page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
        violations = Axe().run(page).response["violations"]
        assert [
            (section, one["id"], one["impact"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"])
            for one in violations
        ] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("modules['learn.js'].quiz.turn(true); explorer.store.set({ section: 'walk' })")
    page.wait_for_selector(".guess")
    assert [one["id"] for one in Axe().run(page).response["violations"]] == []


def test_the_walk_speaks_german(walk):
    page = walk(language="de-DE").page
    text = page.locator("#walk").inner_text()
    assert "Wähle eine Schicht" in text
    assert "Hier nachgerechnet" in text
    page.get_by_role("tab", name="Lernen").click()
    assert "rezeptives Feld" in page.locator("#learn").inner_text()


def test_every_word_of_the_walk_has_a_text_in_both_languages(walk):
    table = walk().page.evaluate("modules['texts.js'].TEXTS")
    words = walk().page.evaluate("modules['learn.js'].TERMS")
    assert {key for word in words for key in (f"term.{word}", f"term.{word}.is")} <= set(table)
    assert [key for key, row in table.items() if len(row) != 2 or not all(row)] == []
    assert [
        key
        for key in table
        if key.startswith("term.") and key.endswith(".is") and not table[key][0].endswith(".")
    ] == []
    english = {table[f"term.{word}"][0]: table[f"term.{word}.is"][0] for word in words}
    shared = {word: sentence for word, sentence in GLOSSARY.items() if word in english}
    assert shared
    assert {word: english[word][0].lower() + english[word][1:] for word in shared} == shared
