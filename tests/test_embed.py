"""Features of images: computed, written, laid out on a page, searched for the nearest."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from convscope import embedding as embedding_module
from convscope.embedding import embed, embed_to_table, lay_out, nearest_to
from convscope.errors import DataError, UsageError
from convscope.export import load_bundle
from convscope.inspection import embeddings
from convscope.networks.pretrained import DEFAULT
from convscope.report.rendering import COLOURS, SHAPES, render_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """Digits as files, by part and class."""
    root = tmp_path_factory.mktemp("images") / "photos"
    for number in range(80):
        part, name = ("train", "val")[number % 2], digits.class_names[digits.train.labels[number]]
        place = root / part / f"digit {name}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train.images[number, ..., 0]).save(place / f"{number:03}.png")
    return root


def test_features_of_files_are_those_of_the_run(folder, digits_run, digits):
    found, asked = embed(folder, str(digits_run))
    assert asked is None
    bundle = load_bundle(digits_run)
    numbers = [int(re.search(r"(\d+)\.png", name)[1]) for name in found.names]
    images = digits.train.images[numbers]
    expected = embeddings(bundle.model, bundle.preprocess.apply(images))
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-5)
    assert found.classes == tuple(f"digit {digits.class_names[digits.train.labels[one]]}" for one in numbers)
    np.testing.assert_array_equal(found.pixels(7), images[7])


def test_a_run_is_embedded_without_its_test_images(digits_run, digits, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["data"]["source"] = "digits"
    (run / "run.json").write_text(json.dumps(record))
    found, _ = embed(run)
    assert found.names == tuple(map(str, digits.train.names))
    assert found.network == "the run run"
    assert not (run / "test_consultations.json").exists()


def test_long_features_are_kept_short(tmp_path, digits_run, folder, monkeypatch):
    whole, _ = embed(folder, str(digits_run))
    monkeypatch.setattr(embedding_module, "LONGEST", 8)
    short, _ = embed(folder, str(digits_run))
    assert short.features.shape[1] <= 512
    cosines = short.features @ short.features.T
    unit = whole.features / np.linalg.norm(whole.features, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, unit @ unit.T, atol=0.05)


def test_the_nearest_are_those_of_scikit_learn(folder, digits_run, tmp_path, digits):
    photo = tmp_path / "photo.png"
    Image.fromarray(digits.test.images[0, ..., 0]).save(photo)
    found, asked = embed(folder, str(digits_run), similar=[photo])
    nearest = nearest_to(found, asked, 5)
    searched = NearestNeighbors(n_neighbors=5, metric="cosine").fit(found.features)
    distances, places = searched.kneighbors(asked.features)
    np.testing.assert_array_equal(nearest.indices, places)
    np.testing.assert_allclose(1 - nearest.similarities, distances, atol=1e-5)


def test_an_image_is_not_its_own_neighbour(folder, digits_run):
    own = next(folder.rglob("*.png"))
    found, asked = embed(folder, str(digits_run), similar=[own])
    nearest = nearest_to(found, asked, 3)
    assert nearest.indices.shape == (1, 3)
    assert str(own) not in [found.names[index] for index in nearest.indices[0]]


def test_a_map_is_that_of_a_sample(folder, digits_run, monkeypatch):
    found, _ = embed(folder, str(digits_run))
    monkeypatch.setattr(embedding_module, "MAPPED", 30)
    laid, places = lay_out(found, "pca", 0)
    assert (len(places), places[0], places[-1], laid.points.shape) == (30, 0, 79, (30, 2))


def page_of(classes, names=None):
    rng = np.random.default_rng(0)
    count = len(classes)
    return render_map(
        rng.random((count, 2)).astype(np.float32),
        names or [f"{number}.png" for number in range(count)],
        classes,
        lambda row: np.full((300, 200, 3), row % 256, np.uint8),
        title="photos", network="a network", method="PCA", count=count,
    )  # fmt: skip


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_a_page_holds_every_image_and_asks_for_nothing():
    page = page_of(["a", "b", "", "a"])
    data = data_of(page)
    assert [image[3] for image in data["images"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert data["classes"] == ["a", "b", "no class known"]
    assert all(image[4].startswith("data:image/") for image in data["images"])
    assert not re.search(r"https?://", page.replace("http://www.w3.org", ""))
    assert "default-src 'none'" in page


def test_classes_differ_in_colour_or_shape():
    marks = re.findall(r'<use href="#(\w+)" class="(c\d)"', page_of([str(number) for number in range(64)]))
    points = marks[:64]
    assert len(set(points)) == COLOURS * len(SHAPES) == 64


def test_hostile_names_stay_text():
    hostile = "</script><script>alert(1)</script>"
    page = page_of([hostile, "b", "b"], [hostile, '"><img src=x onerror=alert(1)>', "c"])
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert data_of(page)["images"][0][3] == hostile


def test_many_images_make_a_page_of_less_than_4_megabytes():
    noise = np.random.default_rng(0).integers(0, 256, (50, 192, 192, 3), np.uint8)
    page = render_map(
        np.random.default_rng(1).random((2_000, 2)).astype(np.float32),
        [str(number) for number in range(2_000)],
        ["a"] * 2_000,
        lambda row: noise[row % 50],
        title="noise", network="a network", method="PCA", count=2_000,
    )  # fmt: skip
    assert len(page) < 6_000_000  # noise is what a JPEG makes least of


def test_the_command_writes_features_and_a_map(typed, folder, digits_run, tmp_path):
    done = typed("embed", str(folder), "--network", str(digits_run), "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["files"] == {"features": "photos-features.npz", "map": "photos-map.html"}
    with np.load(tmp_path / "photos-features.npz") as arrays:
        assert arrays["features"].shape == (80, found["features"])
        assert arrays["features"].dtype == np.float32
        assert arrays["classes"][0].startswith("digit ")
        assert str(arrays["network"]) == f"the run {digits_run.name}"
    assert "<title>Map of photos" in (tmp_path / "photos-map.html").read_text(encoding="utf-8")


def test_features_are_written_as_parquet(typed, folder, digits_run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    options = ("--network", str(digits_run), "--out", "f.parquet", "--map", "m.html", "--json")
    done = typed("embed", str(folder), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "f.parquet")
    expected, _ = embed(folder, str(digits_run))
    assert table.column_names == ["name", "class", "features", "error"]
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), expected.features)
    assert table["name"].to_pylist() == list(expected.names)
    assert table["error"].null_count == 80
    said = json.loads(done.stdout)
    assert (said["images"], said["features"]) == expected.features.shape
    assert len(data_of((tmp_path / "m.html").read_text(encoding="utf-8"))["images"]) == 80


@pytest.fixture
def mixed(folder, tmp_path):
    """The digits, and three files that are no images, of which one comes first."""
    place = shutil.copytree(folder, tmp_path / "mixed")
    for name in ("a.png", "b.png", "zz.png"):
        (place / name).write_bytes(b"no image")
    return place


def test_a_table_goes_on_where_it_was_and_a_bad_file_is_a_row(mixed, digits_run, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(embedding_module, "PART", 2)  # so the first part has nothing to read
    whole = embed_to_table(mixed, tmp_path / "whole.parquet", str(digits_run))
    gone_through = []
    compute = embedding_module._features_of

    def until_tenth(network, images):
        images = list(images)
        gone_through.append([image.name for image in images])
        if len(gone_through) == 10:
            raise KeyboardInterrupt
        return compute(network, images)

    monkeypatch.setattr(embedding_module, "_features_of", until_tenth)
    with pytest.raises(KeyboardInterrupt):
        embed_to_table(mixed, tmp_path / "f.parquet", str(digits_run))
    assert not (tmp_path / "f.parquet").exists()
    done = embed_to_table(mixed, tmp_path / "f.parquet", str(digits_run))
    assert (done.found_done, done.images, done.failures) == (18, 80, whole.failures)
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sum(map(len, gone_through)) == 83 + 2  # the part that was interrupted, twice
    table = parquet.read_table(tmp_path / "f.parquet")
    expected, _ = embed(mixed, str(digits_run))
    bad = table.filter(table["error"].is_valid())
    assert bad["name"].to_pylist() == [str(mixed / name) for name in ("a.png", "b.png", "zz.png")]
    assert table["features"].null_count == 3
    again, _ = embed(mixed, str(digits_run), table=tmp_path / "f.parquet")
    np.testing.assert_allclose(again.features, expected.features, rtol=1e-5, atol=1e-6)
    assert (again.names, again.classes, again.failures) == (
        expected.names, expected.classes, expected.failures,
    )  # fmt: skip
    np.testing.assert_array_equal(again.pixels(50), expected.pixels(50))
    assert {path.name for path in tmp_path.iterdir()} == {"mixed", "whole.parquet", "f.parquet"}


def test_a_table_of_nothing_is_not_written(tmp_path, digits_run):
    pytest.importorskip("pyarrow")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png to be an image"):
        embed_to_table(tmp_path / "broken.png", tmp_path / "f.parquet", str(digits_run))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


@pytest.mark.slow
def test_several_processes_give_the_same_table(mixed, digits_run, tmp_path, typed):
    parquet = pytest.importorskip("pyarrow.parquet")
    options = ("--network", str(digits_run), "--json", "--out")
    answers = [
        typed("embed", "mixed", *options, f"{workers}.parquet", "--workers", str(workers), cwd=tmp_path)
        for workers in (1, 2)
    ]
    assert [answer.returncode for answer in answers] == [3, 3], answers
    one, two = (parquet.read_table(tmp_path / f"{workers}.parquet") for workers in (1, 2))
    assert one.drop_columns("features") == two.drop_columns("features")
    values = [np.stack(table["features"].drop_null().to_numpy()) for table in (one, two)]
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
    assert json.loads(answers[0].stdout)["failures"] == json.loads(answers[1].stdout)["failures"]


def test_the_command_shows_the_nearest_and_draws_them(typed, folder, digits_run, tmp_path):
    own = str(next(folder.rglob("*.png")))
    options = ("--network", str(digits_run), "--similar", own, "--count", "4")
    done = typed("embed", str(folder), *options, "--show", "alike.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Most like {own}" in done.stdout
    assert "A distance of 0 is the same" in done.stdout
    with Image.open(tmp_path / "alike.png") as picture:
        assert picture.size[0] > 400
    found = json.loads(typed("embed", str(folder), *options, "--json", cwd=tmp_path).stdout)
    distances = [one["distance"] for one in found["similar"][0]["nearest"]]
    assert (len(distances), distances) == (4, sorted(distances))
    assert found["files"] == {}


def test_what_cannot_be_read_is_named_and_the_rest_embedded(typed, folder, digits_run, tmp_path):
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    (mixed / "broken.png").write_bytes(b"no image")
    done = typed("embed", str(mixed), "--network", str(digits_run), "--out", "f.npz", cwd=tmp_path)
    assert done.returncode == 3
    assert "broken.png to be an image" in done.stderr
    assert "80 images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos", "--network", "nothing"], 2, "Expected efficientnet-lite0 or a run as the network"),
        (["photos", "--method", "umap"], 2, "Expected --method tsne or pca, got 'umap'"),
        (["photos", "--show", "a.png"], 2, "Expected --show beside --similar"),
        (["photos", "--workers", "2"], 2, "Expected --workers beside --out FILE.parquet"),
        (["photos", "--out", "a.csv"], 2, "Expected a file that ends in .npz or .parquet for --out"),
        (["photos", "--map", "there.html"], 2, "Expected a new file for --map, got there.html"),
        (["nowhere"], 2, "nowhere"),
        (["empty"], 3, "empty"),
    ],
)
def test_what_cannot_be_embedded_is_refused(typed, folder, tmp_path, arguments, code, message):
    (tmp_path / "photos").symlink_to(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.html").write_text("mine")
    done = typed("embed", *arguments, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert (tmp_path / "there.html").read_text() == "mine"


def test_a_backbone_gives_what_its_own_model_gives(folder, monkeypatch):
    import keras

    from convscope.preprocessing import Preprocess

    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    maps = keras.layers.Conv2D(6, 3, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(maps))
    settings = Preprocess(16, 16, 3, "unit", np.full(3, 1 / 255, np.float32), np.zeros(3, np.float32), None)
    monkeypatch.setattr(embedding_module, "backbone", lambda name, size, weights: model)
    monkeypatch.setattr(embedding_module, "preprocess_for", lambda name, size: settings)
    found, _ = embed(folder, DEFAULT)
    pixels = np.stack([found.pixels(row) for row in range(5)])
    np.testing.assert_allclose(
        found.features[:5], model.predict(settings.apply(pixels), verbose=0), atol=1e-5
    )


def test_a_size_and_a_file_of_weights_are_those_of_the_backbone(typed, folder, tmp_path):
    import keras

    keras.utils.set_random_seed(3)
    settings = {"weights": None, "include_top": False, "pooling": "avg", "input_shape": (32, 32, 3)}
    model = keras.applications.MobileNetV2(**settings)
    file = tmp_path / "mobile.weights.h5"
    model.save_weights(file)
    embedding, _ = embed(folder, "keras:MobileNetV2", size=32, weights=str(file))
    pixels = np.stack([embedding.pixels(row) for row in range(len(embedding.names))])
    assert pixels.shape[1:] == (32, 32, 3)
    expected = model.predict(pixels / np.float32(127.5) - 1, verbose=0)
    np.testing.assert_allclose(embedding.features, expected, atol=1e-4)
    options = ["--network", "keras:MobileNetV2", "--size", "32", "--weights", str(file)]
    out = tmp_path / "features.npz"
    done = typed("embed", str(folder), *options, "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["features"], embedding.features)


def test_a_run_has_a_size_of_its_own(folder, digits_run):
    with pytest.raises(UsageError, match="beside a size or weights"):
        embed(folder, str(digits_run), size=32)


def test_nothing_is_embedded_of_nothing(tmp_path, digits_run):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png to be an image"):
        embed(broken, str(digits_run))
    with pytest.raises(UsageError, match="as the network"):
        embed(broken, "no-such-run")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_map_is_used_by_pointer_and_keyboard(browser, tmp_path, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    file = tmp_path / "map.html"
    file.write_text(page_of(list("aabbcc")), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        page, heard = context.new_page(), []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.append(request.url[:5]))
        page.goto(file.as_uri())
        page.focus("#field")
        page.keyboard.press("Home")
        assert "0.png" in page.inner_text("#details")
        gone_to = set()
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
            gone_to.add(page.inner_text("#details"))
        assert len(gone_to) > 1
        page.locator("#points use").nth(3).hover()
        assert "3.png" in page.inner_text("#details")
        page.locator(".map-legend button").first.click()
        assert page.locator("#points use.dim").count() == 4
        page.keyboard.press("Enter")  # the button still has the focus
        assert page.locator("#points use.dim").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [one["id"] for one in Axe().run(page).response["violations"]] == []
        assert set(heard) <= {"file:", "data:"}
    finally:
        context.close()
