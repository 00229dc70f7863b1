"""The explorer's page in a real browser: opened from a file, drawn on, given pictures, changed, undone."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from report_runs import make_dataset, make_run

from convscope.contents import read_contents
from convscope.data.drift import TrainingStatistics
from convscope.evaluation.metrics import wilson_interval
from convscope.explorer import layers as explorer_layers
from convscope.explorer.page import PAGE, fill, make_payload, write_page
from convscope.export import load_bundle
from convscope.prediction import predict_files

pytestmark = pytest.mark.browser

NARROW, WIDE = 390, 1280
TOLERANCE = 1e-3
HOSTILE = "</script><img src=x onerror=alert(1)>"
STATE = "({image: explorer.store.state.image, changes: explorer.store.state.changes})"


@pytest.fixture(scope="module")
def explorer(digits_run, tmp_path_factory):
    return write_page(digits_run, tmp_path_factory.mktemp("page") / "explorer.html").file


def draw_seven(page, fitted=True):
    """Draw two strokes."""
    page.get_by_role("button", name="Clear").click()
    page.locator("#fit").set_checked(fitted)
    box = page.locator("#canvas").bounding_box()

    def at(x, y):
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    for start, end in (((0.25, 0.2), (0.7, 0.22)), ((0.7, 0.22), (0.45, 0.8))):
        page.mouse.move(*at(*start))
        page.mouse.down()
        page.mouse.move(*at(*end), steps=8)
        page.mouse.up()
    settle(page)


def settle(page):
    """Wait until the prediction is that of the current image."""
    page.evaluate("explorer.settled()")


def wait_until(page, condition):
    """Wait for a condition; Playwright's own way needs eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"{condition} did not come true")


def shown_pixels(page):
    height, width, channels = page.evaluate(
        "(({height, width, channels}) => [height, width, channels])(explorer.size)"
    )
    values = page.evaluate("Array.from(explorer.store.state.pixels)")
    return np.array(values, np.uint8).reshape(1, height, width, channels)


def probabilities(page):
    return np.array(page.evaluate("Array.from(explorer.store.state.result.probabilities)"))


@pytest.mark.parametrize("fitted", [True, False], ids=["laid as the training images", "as drawn"])
def test_drawing_is_predicted_as_python_predicts_the_same_pixels(open_page, explorer, digits_run, fitted):
    page = open_page(explorer)
    before = probabilities(page)
    draw_seven(page, fitted)
    pixels = shown_pixels(page)
    assert pixels.max() > 200
    after = probabilities(page)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, load_bundle(digits_run).predict(pixels)[0], atol=TOLERANCE)
    best = page.locator("#now .best")
    assert best.locator(".class").inner_text() == str(after.argmax())
    wait_until(page, "document.getElementById('live').textContent.startsWith('Most probable')")


def test_a_drawing_is_laid_as_the_training_images_are(open_page, explorer, digits_run):
    page = open_page(explorer)
    convention = page.evaluate("explorer.convention")
    assert convention["dark"] is True
    draw_seven(page)
    inked = shown_pixels(page)[0, :, :, 0] > 40
    rows = np.flatnonzero(inked.any(axis=1))
    assert rows[-1] - rows[0] + 1 == pytest.approx(28 * convention["side"], abs=2)
    assert rows[0] + rows[-1] == pytest.approx(27, abs=2)


def picture_file(folder, shape=(37, 52, 3), name="a picture.png", seed=0):
    """Write a picture with large and fine structure."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    rough = generator.integers(-20, 20, smooth.shape)
    pixels = np.clip(smooth + rough, 0, 255).astype(np.uint8)
    file = folder / name
    Image.fromarray(pixels if shape[2] == 3 else pixels[..., 0]).save(file)
    return file


@pytest.mark.parametrize("way", ["chosen", "dropped", "pasted"])
def test_a_picture_is_predicted_as_the_command_predicts_its_file(
    open_page, explorer, digits_run, tmp_path, way
):
    file = picture_file(tmp_path)
    page = open_page(explorer)
    if way == "chosen":
        page.locator("#file").set_input_files(file)
    else:
        page.evaluate(
            """([text, way]) => {
                 const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                 const data = new DataTransfer();
                 data.items.add(new File([bytes], "a.png", { type: "image/png" }));
                 document.dispatchEvent(way === "dropped"
                   ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
                   : new ClipboardEvent("paste", { clipboardData: data, bubbles: true })); }""",
            [base64.b64encode(file.read_bytes()).decode(), way],
        )
    wait_until(page, "explorer.store.state.image.kind === 'picture'")
    settle(page)
    [expected] = predict_files(load_bundle(digits_run), [file])
    np.testing.assert_array_equal(shown_pixels(page)[0], expected.pixels)
    shown = probabilities(page)
    names = page.evaluate("explorer.classes")
    assert names[shown.argmax()] == expected.label
    np.testing.assert_allclose(shown.max(), expected.probability, atol=TOLERANCE)
    assert page.locator("#warnings li").all_inner_texts() == list(expected.drift_warnings)


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def odd_pictures():
    """Make pictures of odd sizes and kinds: a name, what is encoded, and how."""
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 256, (61, 40, 4), np.uint8)
    clear = noise.copy()
    clear[..., 3] = np.where(clear[..., 3] > 127, 255, 0)
    sizes = {"tall": (300, 11), "wide": (11, 300), "tiny": (3, 2), "one": (1, 1), "line": (1, 90)}
    for name, (height, width) in sizes.items():
        yield f"{name}.png", generator.integers(0, 256, (height, width, 3), np.uint8), {}
    yield "grey.png", noise[..., 0], {}
    yield "clear.png", clear, {}
    yield "veiled.png", noise, {}
    for orientation in (2, 3, 5, 6, 8):
        yield f"turned {orientation}.png", noise[..., :3], {"exif": turned(orientation)}


def test_pictures_of_odd_sizes_and_kinds_are_the_pixels_of_the_command(
    open_page, explorer, digits_run, tmp_path
):
    page = open_page(explorer)
    bundle = load_bundle(digits_run)
    for name, pixels, options in odd_pictures():
        file = tmp_path / name
        Image.fromarray(pixels).save(file, **options)
        page.locator("#file").set_input_files(file)
        wait_until(page, f"explorer.store.state.image.name === {name!r}")
        settle(page)
        [expected] = predict_files(bundle, [file])
        np.testing.assert_array_equal(shown_pixels(page)[0], expected.pixels, name)


def test_what_is_no_picture_is_refused_in_words(open_page, explorer, tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("no picture")
    page = open_page(explorer)
    before = page.evaluate(STATE)
    page.locator("#file").set_input_files(file)
    page.wait_for_selector("#picture-problem:not([hidden])")
    assert "Expected notes.png to be a picture" in page.locator("#picture-problem").inner_text()
    assert page.evaluate(STATE) == before


def test_what_the_camera_sees_is_predicted_until_it_is_stopped(open_page, explorer, digits_run):
    page = open_page(explorer, permissions=["camera"])
    start = page.evaluate(STATE)
    page.locator("#camera").click()
    wait_until(page, "explorer.store.state.image.kind === 'picture'")
    assert page.locator("#camera").inner_text() == "Stop the camera"
    assert page.locator("video").is_visible()
    first = page.evaluate("explorer.store.state.image.pixels")
    wait_until(page, f"explorer.store.state.image.pixels !== {first!r}")
    page.locator("#camera").click()
    assert page.locator("video").is_hidden()
    assert page.evaluate("document.querySelector('video').srcObject") is None
    settle(page)
    expected = load_bundle(digits_run).predict(shown_pixels(page))[0]
    np.testing.assert_allclose(probabilities(page), expected, atol=TOLERANCE)
    page.keyboard.press("Control+z")
    assert page.evaluate(STATE) == start
    page.locator("#camera").click()
    page.locator("video").wait_for()
    page.get_by_role("tab", name="Walk").click()  # another section ends it
    assert page.evaluate("document.querySelector('video').srcObject") is None


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("", "does not let this page use the camera"),
        ("NotFoundError", "There is no camera"),
        ("NotReadableError", "another program"),
    ],
    ids=["refused", "none", "in use"],
)
def test_a_camera_that_cannot_be_had_is_said_in_a_line(open_page, explorer, failure, words):
    page = open_page(explorer)  # nobody is there to allow it
    start = page.evaluate(STATE)
    if failure:
        page.evaluate(
            """(name) => { navigator.mediaDevices.getUserMedia =
                 async () => { throw new DOMException("", name); }; }""",
            failure,
        )
    page.locator("#camera").click()
    page.wait_for_selector("#picture-problem:not([hidden])")
    assert words in page.locator("#picture-problem").inner_text()
    assert page.locator("#camera").inner_text() == "Camera"
    assert page.evaluate(STATE) == start


def odd_images():
    """Make images that are odd in one way each, for training images like those of `TrainingStatistics`."""
    generator = np.random.default_rng(0)
    train = np.zeros((200, 12, 10, 3), np.uint8)
    train[:, 3:9, 3:7] = generator.integers(120, 220, (200, 6, 4, 3))
    one = train[0]
    rolled = np.roll(one, 3, axis=0)
    noisy = generator.integers(0, 256, one.shape, dtype=np.uint8)
    coloured = one.copy()
    coloured[..., 0] //= 4
    images = [one, 255 - one, np.zeros_like(one), np.full_like(one, 90), one // 40, rolled, noisy, coloured]
    images += [np.roll(one, 2, axis=1), one + 30, np.where(one > 0, 255, 30).astype(np.uint8)]
    return train, np.stack(images)


def test_odd_inputs_are_warned_of_in_the_words_of_predict(open_page, explorer):
    train, images = odd_images()
    statistics = TrainingStatistics.fit(train)
    page = open_page(explorer)
    said = page.evaluate(
        """([images, size, ranges]) => images.map((pixels) =>
             modules["unlike.js"].driftWarnings(pixels, size, { ...explorer.unlike, ranges }))""",
        [
            images.reshape(len(images), -1).tolist(),
            {"height": 12, "width": 10, "channels": 3},
            statistics.to_json()["ranges"],
        ],
    )
    expected = [list(sentences) for sentences in statistics.drift_warnings(images)]
    assert said == expected
    assert len({sentence.split(":")[0] for sentences in expected for sentence in sentences}) >= 6


def test_what_the_network_does_not_know_is_unfamiliar(open_page, explorer, digits_run):
    page = open_page(explorer)
    bundle = load_bundle(digits_run)
    values = page.evaluate("Array.from(explorer.engine.pixels)")
    images = np.array(values, np.uint8).reshape(-1, *bundle.preprocess.input_shape)[:8]
    turned = np.ascontiguousarray(images[:, ::-1])
    both = np.concatenate([images, turned])
    _, distances = bundle.predict_with_distances(both)
    found = page.evaluate(
        """async (images) => { const found = [];
             for (const pixels of images) {
               const input = modules["preprocess.js"].scale(pixels, explorer.engine.preprocessing);
               found.push(explorer.novelty.distance((await explorer.engine.run(input)).features));
             }
             return found; }""",
        both.reshape(len(both), -1).tolist(),
    )
    np.testing.assert_allclose(found, distances, atol=1e-4)
    far = bundle.novelty.limit + 0.1
    said = page.evaluate("far => explorer.novelty.warning(far)", far)
    assert said == bundle.novelty.warning(far)
    assert page.evaluate("explorer.novelty.warning(0)") == ""


def test_steps_are_undone_and_redone(open_page, explorer):
    page = open_page(explorer)
    start = page.evaluate(STATE)
    draw_seven(page)
    drawn = page.evaluate(STATE)
    assert len(drawn["image"]["strokes"]) == 2
    page.keyboard.press("Control+z")
    assert len(page.evaluate(STATE)["image"]["strokes"]) == 1
    page.get_by_role("tab", name="Change").click()
    page.locator("#change-zero").click()
    assert page.evaluate(STATE)["changes"] == {"zeroed": [{"layer": 0, "channel": 0}]}
    assert page.locator(".changes li").count() == 1
    page.locator("#undo").click()
    assert page.evaluate(STATE)["changes"] == {}
    page.locator("#redo").click()
    assert page.evaluate(STATE)["changes"] != {}
    for _ in range(5):
        page.keyboard.press("Control+z")
    assert page.evaluate(STATE) == start
    assert page.locator("#undo").is_disabled()


def test_a_link_leads_back_to_the_same_state(open_page, explorer):
    page = open_page(explorer)
    draw_seven(page)
    page.get_by_role("tab", name="Change").click()
    page.locator("#change-zero").click()
    page.locator("#w-kernel-0").fill("0.75")
    page.locator("#w-kernel-0").press("Enter")
    page.locator("#change-noise").fill("0.1")
    page.locator("#change-turn").fill("-20")
    page.locator("#change-right").fill("2")
    page.locator("#language").select_option("de")
    settle(page)
    page.evaluate("explorer.writeLink()")
    fragment = "#" + page.evaluate("location.hash").removeprefix("#")
    again = open_page(explorer, fragment)
    settle(again)
    assert again.evaluate(STATE) == page.evaluate(STATE)
    assert again.evaluate("explorer.store.state.section") == "change"
    assert again.locator("#tab-change").inner_text() == "Ändern"
    np.testing.assert_allclose(probabilities(again), probabilities(page), atol=1e-6)


@pytest.mark.parametrize(
    "fragment",
    [
        "#weights=99,kernel,0,1;0,__proto__,0,1;0,kernel,999999999,1;0,kernel,0,NaN",
        "#test=-1&layer=1e9&channel=NaN&class=77&section=constructor&language=xx&place=-1,2",
        "#drawing=a,b;1,2&noise=1e99,1&shift=1&turn=Infinity&zeroed=0,-1&off=77",
        "#picture=%E0%A4%A,AAAA&=&&&x",
        "#picture=a,AAAA",
    ],
)
def test_a_link_that_names_nothing_changes_nothing(open_page, explorer, fragment):
    page = open_page(explorer, fragment)
    assert page.evaluate(STATE)["changes"] == {}
    assert page.evaluate("explorer.store.state.section") == "draw"
    assert page.locator("#badge.good").count() == 1


def test_a_zeroed_channel_costs_as_much_as_in_keras(open_page, explorer, digits_run):
    page = open_page(explorer, "#section=change&zeroed=0,2;0,5")
    wait_until(page, "document.querySelectorAll('.score').length === 2")
    page.locator("#change-noise").fill("0.3")
    assert page.locator(".accuracy").get_attribute("aria-busy") == "true"  # what stands there is of before
    page.locator("#undo").click()
    wait_until(page, "document.querySelector('.accuracy').ariaBusy === 'false'")
    bundle = load_bundle(digits_run)
    layer = bundle.model.layers[0]
    kernel, bias = layer.get_weights()
    kernel[..., [2, 5]] = 0
    bias[[2, 5]] = 0
    layer.set_weights([kernel, bias])
    count = page.evaluate("explorer.payload.images.sample")
    values = page.evaluate("Array.from(explorer.engine.pixels)")
    images = np.array(values, np.uint8).reshape(-1, *bundle.preprocess.input_shape)[:count]
    labels = np.array(page.evaluate("explorer.payload.images.labels"))[:count]
    right = int((bundle.predict(images).argmax(axis=1) == labels).sum())
    low, high = (f"{100 * bound:.1f}" for bound in wilson_interval(right, count))
    score = page.locator(".score").nth(1).inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert f"{right} of {count}; 95 % interval {low} % to {high} %" in score
    cells = page.locator(".confusion td").all_inner_texts()
    assert sum(int(text) for text in cells if text) == count


def test_of_many_classes_the_most_frequent_confusions_are_listed(open_page, tmp_path):
    dataset = make_dataset(30, (12, 12, 1), 240, class_names=[f"class {number}" for number in range(30)])
    path, dataset = make_run(tmp_path / "run", dataset=dataset)
    contents = read_contents(path, dataset)
    page = open_page(write_page(contents).file, "#section=change&zeroed=0,2")
    wait_until(page, "document.querySelectorAll('.score').length === 2")
    assert page.locator(".confusion").count() == 0
    places = page.evaluate("explorer.payload.images.places.slice(0, explorer.payload.images.sample)")
    labels = dataset.test.labels[places]
    found = contents.bundle.predict(dataset.test.images[places]).argmax(axis=1)
    rows = page.locator(".confusions tbody tr").all()
    assert 0 < len(rows) <= 12
    counts = []
    for row in rows:
        true, predicted, count, before = row.locator("th, td").all_inner_texts()
        counts.append(int(count))
        pair = (labels == int(true.split()[1])) & (found == int(predicted.split()[1]))
        assert int(before) == pair.sum()
        assert true != predicted
    assert counts == sorted(counts, reverse=True)


def test_a_weight_and_a_filter_are_set_and_named(open_page, explorer):
    page = open_page(explorer, "#section=change")
    page.locator("#w-bias-0").fill("0.5")
    page.locator("#w-bias-0").press("Enter")
    assert page.evaluate(STATE)["changes"]["weights"] == [
        {"layer": 0, "name": "bias", "index": 0, "value": 0.5}
    ]
    page.locator("#filter-kernel").select_option("vertical")
    assert len(page.evaluate(STATE)["changes"]["weights"]) == 26
    lines = page.locator(".changes li span").all_inner_texts()
    assert [re.sub(r"conv2d\w*", "conv2d", line) for line in lines] == [
        lines[0].replace(lines[0].split(":")[0], "conv2d"),
        "conv2d: 25 numbers of kernel",
    ]
    page.locator(".changes button").first.click()
    assert len(page.evaluate(STATE)["changes"]["weights"]) == 25
    page.locator("#reset").click()
    assert page.evaluate(STATE)["changes"] == {}


def test_test_images_are_chosen_by_class_and_by_error_with_the_keyboard(open_page, explorer):
    page = open_page(explorer)
    shares = page.evaluate(
        """Array.from(document.querySelectorAll('.gallery input'),
             (one) => explorer.images.truth(Number(one.value)))"""
    )
    assert shares == sorted(shares)
    page.locator("#only").select_option(label="3")
    labels = page.evaluate(
        """Array.from(document.querySelectorAll('.gallery input'),
             (one) => explorer.images.labels[one.value])"""
    )
    assert set(labels) == {3}
    page.locator(".gallery input").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    chosen = page.evaluate("explorer.store.state.image")
    assert chosen["kind"] == "test"
    assert str(chosen["index"]) == page.locator(".gallery input").nth(1).get_attribute("value")
    settle(page)
    expected = page.evaluate(
        "index => Array.from(explorer.engine.recorded.subarray(10 * index, 10 * index + 10))", chosen["index"]
    )
    np.testing.assert_allclose(probabilities(page), expected, atol=1e-3)


def test_tabs_follow_the_arrow_keys(open_page, explorer):
    page = open_page(explorer)
    page.locator("#tab-draw").focus()
    page.keyboard.press("End")
    last = page.evaluate("document.activeElement.id")
    assert page.locator(f"#{last}").get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-draw"
    assert page.locator("[role=tabpanel]:visible").count() == 1


def tab_to(page, selector, key="Tab"):
    """Press the tabulator until it arrives; every stop is seen."""
    for _ in range(150):
        page.keyboard.press(key)
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"the tabulator does not come to {selector}")


def test_the_first_two_minutes_need_only_the_keyboard(open_page, explorer):
    page = open_page(explorer)
    state = "({ section, image, layer, channel, place }) => [section, image.index, layer, channel, ...place]"
    now = f"({state})(explorer.store.state)"
    heading = page.locator("#walk-pane h3")
    tab_to(page, "#tab-draw")
    tab_to(page, ".gallery input")  # 1: an image
    page.keyboard.press("ArrowRight")
    settle(page)
    chosen = page.evaluate("Number(document.activeElement.value)")
    assert page.evaluate(now)[:2] == ["draw", chosen]
    assert chosen != 0  # which the page began with
    tab_to(page, "#tab-draw", "Shift+Tab")
    page.keyboard.press("ArrowRight")  # 2: the first layer and its maps
    wait_until(page, "document.querySelector('#walk-pane h3') !== null")
    tab_to(page, "input[name=walk-layer]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(now)[2] == 0
    tab_to(page, "input[name=walk-map]")
    page.keyboard.press("ArrowRight")
    before = page.evaluate(now)
    tab_to(page, ".frame.clickable")  # 3: a pixel
    row, column = before[-2:]
    page.keyboard.press("ArrowUp" if row else "ArrowDown")
    page.keyboard.press("ArrowLeft" if column else "ArrowRight")
    assert page.evaluate(now)[-2:] == [abs(row - 1) if row else 1, column - 1 if column else 1]
    assert page.locator("#walk-pane .verdict.equal").count() == 1
    tab_to(page, "input[name=walk-layer]", "Shift+Tab")  # 4: the last layer, and the way back from it
    page.keyboard.press("ArrowLeft")
    assert "unit" in heading.inner_text()
    tab_to(page, ".walk-back button")
    page.keyboard.press("Enter")
    assert "map" in heading.inner_text()
    for _ in range(5):  # and on, to the image
        page.keyboard.press("Enter")
    assert "conv" in heading.inner_text()
    assert page.evaluate("document.activeElement.id") == "walk-pane"  # and not lost with what led here
    tab_to(page, "input[name=walk-class]")  # 5: a reason
    page.keyboard.press("ArrowRight")
    assert page.locator(".walk-classes .terms td[data-value]").count() > 1
    tab_to(page, "[data-heat=occlusion] button")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-heat=occlusion][data-ready]")


def test_the_numbers_of_a_patch_are_reached_by_the_arrow_keys(open_page, explorer):
    page = open_page(explorer, "#section=walk&layer=2&place=1,2&channel=3")  # a pooling
    page.wait_for_selector("#walk-pane .cell")
    assert page.locator("#walk-pane .cell[tabindex='0']").count() == 1
    page.locator(".frame.clickable").focus()
    tab_to(page, "#walk-pane .cell")
    for key in ("ArrowUp", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert page.locator("#walk-pane h3").inner_text().endswith(": row 3, column 5, map 3")
    assert page.evaluate("document.activeElement.id") == "walk-pane"


def test_each_step_that_is_shown_has_the_keyboard_too(open_page, explorer):
    page = open_page(explorer, "#section=learn")
    expected = [
        "#canvas",
        "[name=walk-map]",
        ".frame.clickable",
        "#walk-pane",
        ".walk-back button",
        "[name=walk-class]",
    ]
    for step, selector in enumerate(expected):
        page.get_by_role("tab", name="Learn").click()
        page.locator(".path button").nth(step).focus()
        page.keyboard.press("Enter")
        assert page.evaluate("(selector) => document.activeElement.matches(selector)", selector), selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, 768, WIDE, 1920, 2560])
def test_it_fits_the_window(open_page, explorer, width, scheme):
    page = open_page(explorer, width=width, scheme=scheme, language="de-DE")
    for section in page.locator("[role=tab]").all():
        section.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('tabs').scrollWidth") <= width  # none of them out of sight
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 600) == (scheme == "light")


def test_a_layer_that_differs_from_python_is_named(open_page, digits_run, tmp_path):
    payload = make_payload(digits_run)
    [layer] = (one for one in payload["network"]["layers"] if one["kind"] == "normalization")
    layer["settings"]["epsilon"] += 0.5
    file = tmp_path / "explorer.html"
    file.write_text(fill(payload), encoding="utf-8")
    page = open_page(file)
    assert (
        page.locator("#badge.bad").inner_text().startswith(f"✗Layer {layer['name']} differs from Python by")
    )
    page.locator("#language").select_option("de")
    assert layer["name"] in page.locator("#badge.bad").inner_text()


def test_class_names_are_text_and_never_markup(open_page, digits_run, tmp_path):
    payload = make_payload(digits_run)
    payload["classes"][0] = payload["title"] = HOSTILE
    payload["images"]["names"] = [HOSTILE] * len(payload["images"]["names"])
    file = tmp_path / "explorer.html"
    file.write_text(fill(payload), encoding="utf-8")
    page = open_page(file, "#section=change")
    page.get_by_role("tab", name="Draw").click()
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("#now .class").first.inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


def texts(page):
    return page.evaluate("modules['texts.js'].TEXTS"), page.evaluate("modules['texts.js'].LANGUAGES")


def test_every_text_is_there_in_every_language(open_page, explorer):
    table, languages = texts(open_page(explorer))
    assert [code for code, _ in languages] == ["en", "de"]
    incomplete = {key for key, row in table.items() if len(row) != len(languages) or not all(row)}
    assert incomplete == set()
    places = re.compile(r"\{(\w+)\}")
    assert {
        key for key, row in table.items() if len({frozenset(places.findall(one)) for one in row}) > 1
    } == set()
    lines = re.findall(r'^  "?([\w.-]+)"?: \[', (PAGE / "texts.js").read_text(encoding="utf-8"), re.MULTILINE)
    assert lines == sorted(lines), "one row per line, sorted by key"
    used = set()
    for file in [*PAGE.glob("*.js"), PAGE / "index.html"]:
        source = file.read_text(encoding="utf-8")
        used |= set(re.findall(r'\bt\(\s*"([\w.-]+)"', source))
        used |= set(re.findall(r'data-t(?:-label|-title)?"?[:=]\s*"([\w.-]+)"', source))
    layers = Path(explorer_layers.__file__).read_text(encoding="utf-8")
    used |= set(re.findall(r'"(reason_\w+)"', layers))  # why a layer is not computed
    assert used - set(table) == set()


def test_the_page_speaks_german(open_page, explorer):
    page = open_page(explorer, language="de-AT")
    assert page.evaluate("document.documentElement.lang") == "de"
    table, _ = texts(page)
    for section in page.locator("[role=tab]").all():
        section.click()
        shown = page.locator("body").inner_text()
        english = {
            row[0] for row in table.values() if row[0] != row[1] and len(row[0]) > 20 and "{" not in row[0]
        }
        assert [sentence for sentence in english if sentence in shown] == []
    assert page.locator("#theme").inner_text() == table["frame.theme.auto"][1]
    page.locator("#language").select_option("en")
    assert page.locator("#tab-change").inner_text() == "Change"
    assert page.locator("#theme").inner_text() == table["frame.theme.auto"][0]


def test_a_digit_of_mnist_is_laid_as_mnist_is(open_page, explorer, real_mnist):
    images = real_mnist.test.images[:200]
    page = open_page(explorer)
    find = """images => modules["drawing.js"].findConvention(images,
                { height: 28, width: 28, channels: 1 })"""
    found = page.evaluate(find, images.reshape(len(images), -1).tolist())
    assert found == {"dark": True, "side": pytest.approx(20 / 28), "mass": True}
    photographs = np.random.default_rng(0).integers(0, 256, images.shape)
    assert page.evaluate(find, photographs.reshape(len(images), -1).tolist()) is None


def test_photographs_with_a_black_border_are_laid_like_nothing(open_page, explorer):
    images = np.zeros((40, 28, 28, 3), np.uint8)
    images[:, 5:23] = np.random.default_rng(0).integers(0, 256, (40, 18, 28, 3))
    find = """images => modules["drawing.js"].findConvention(images,
                { height: 28, width: 28, channels: 3 })"""
    page = open_page(explorer)
    assert page.evaluate(find, images.reshape(len(images), -1).tolist()) is None
    grey = np.repeat(images[..., :1], 3, axis=3)
    assert page.evaluate(find, grey.reshape(len(grey), -1).tolist())["dark"] is True
