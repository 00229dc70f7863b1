"""A network behind HTTP: what it answers, whom it answers, and what it refuses."""

import asyncio
import base64
import io
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
from bundle_cases import copy_of
from PIL import Image
from serving_cases import Server, connect, drawn, form_of, plain_bundle, png, process

import convscope
from convscope.data.corrections import CorrectionStore, read_corrections, undo_correction
from convscope.export import load_bundle
from convscope.export.formats import FORMATS
from convscope.prediction import predict_files
from convscope.preprocessing import Preprocess
from convscope.serving import Gate, Limits, batching, create_app
from convscope.serving.app import PATHS
from convscope.serving.guard import content_security_policy

JSON = ("content-type", "application/json")
EVERYWHERE = "0.0.0.0"  # noqa: S104
MARKUP = [
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg/onload=alert(1)>', "</script><b>"),
    *("</style><script>1</script>", "'-alert(1)-'", "{{7*7}}", "${7*7}", "<!--", "-->", "]]>", "&lt;b&gt;"),
    *(
        "javascript:alert(1)",
        "<a href=javascript:alert(1)>",
        "<iframe srcdoc='<script>1</script>'>",
        "\u2028",
    ),
    *(
        "<math><mi//xlink:href='data:x'>",
        "<body onload=1>",
        "\x00<b>",
        "%3Cscript%3E",
        "\\u003cscript\\u003e",
    ),
    *("<details open ontoggle=1>", "<template><script>1</script></template>", "<base href=//evil>"),
    *("<meta http-equiv=refresh content=0>", "<link rel=import href=x>", "<object data=x>", "<embed src=x>"),
    *("<form action=//evil><input>", "{% raw %}"),
]


@pytest.fixture(scope="module")
def trained(digits_run):
    return load_bundle(digits_run)


@pytest.fixture(scope="module")
def trained_server(trained):
    with Server(create_app(trained)) as started:
        yield started


@pytest.fixture(scope="module")
def bundle():
    return plain_bundle()


@pytest.fixture(scope="module")
def server(bundle):
    with Server(create_app(bundle, title="small")) as started:
        yield started


@pytest.fixture(scope="module")
def digits():
    return convscope.load("digits").test


@pytest.fixture
def ask(server):
    return server.ask


# What it answers


@pytest.mark.parametrize("how", ["files", "json", "data addresses"])
def test_images_are_answered_as_predict_answers_them(how, trained_server, trained, digits, tmp_path):
    ask, bundle = trained_server.ask, trained
    images = [png(one) for one in digits.images[:40]]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(image)
    coded = [base64.b64encode(one).decode() for one in images]
    if how == "data addresses":
        coded = [f"data:image/png;base64,{one}" for one in coded]
    content = form_of(images) if how == "files" else {"json": {"images": coded}}
    answer = ask("POST", "/predict", **content)
    assert answer.status == 200
    found = answer.json()["predictions"]
    expected = list(predict_files(bundle, [tmp_path / f"{number}.png" for number in range(40)]))
    assert [one["label"] for one in found] == [one.label for one in expected]
    assert [one["index"] for one in found] == list(range(40))
    assert [one["warnings"] for one in found] == [list(one.drift_warnings) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert list(one["probabilities"]) == list(bundle.class_names)
        np.testing.assert_allclose(list(one["probabilities"].values()), other.probabilities, atol=1e-5)


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(ask, digits):
    images = [png(digits.images[0]), b"", b"<svg/>", png(digits.images[1])]
    answer = ask("POST", "/predict", **form_of(images))
    assert answer.status == 200
    assert [one["index"] for one in answer.json()["predictions"]] == [0, 3]
    assert [one["file"] for one in answer.json()["failures"]] == ["1.png", "2.png"]
    assert all(one["reason"].startswith("Expected ") for one in answer.json()["failures"])
    assert ask("POST", "/predict", **form_of(images[1:3])).status == 422


def test_a_photograph_is_turned_and_brought_to_size_as_by_predict(trained_server, trained, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    image = png(drawn(1, (300, 200, 3)), "JPEG", exif=exif, quality=90)
    (tmp_path / "photo.jpg").write_bytes(image)
    (expected,) = predict_files(trained, [tmp_path / "photo.jpg"])
    (found,) = trained_server.ask("POST", "/predict", **form_of([image])).json()["predictions"]
    np.testing.assert_allclose(list(found["probabilities"].values()), expected.probabilities, atol=1e-5)


def test_a_picture_shows_where_the_evidence_lies(trained_server, ask, digits):
    images = [png(one) for one in digits.images[:2]]
    answer = trained_server.ask("POST", "/predict?gradcam=1", **form_of(images))
    for row in answer.json()["predictions"]:
        head, _, coded = row["gradcam"].partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(coded))).size == (28, 28)
    assert ask("POST", "/predict?gradcam=1", **form_of(images * 9)).status == 413
    refused = ask("POST", "/predict?gradcam=1", **form_of(images))
    assert (refused.status, "Keras" in refused.json()["detail"]) == (
        400,
        True,
    )  # a network that runs elsewhere


def test_a_sure_answer_can_be_asked_for(ask, digits):
    image = form_of([png(drawn(3))])
    assert ask("POST", "/predict?abstain=1", **image).json()["predictions"][0]["label"] is None
    refused = ask("POST", "/predict?abstain=2", **image)
    assert (refused.status, refused.json()["detail"].startswith("Expected abstain")) == (400, True)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"content": b"x", "headers": [("content-type", "image/png")]}, 415),
        ({"content": b"x"}, 415),
        ({"content": b"{", "headers": [JSON]}, 400),
        ({"content": b"[" * 4_000, "headers": [JSON]}, 400),
        ({"content": b"[" * 100_000, "headers": [JSON]}, 413),
        ({"content": b'{"images": [%s]}' % b",".join([b"[]"] * 10**7), "headers": [JSON]}, 413),
        ({"data": {"note": "x" * 5_000}, "files": {"other": ("", b"")}}, 413),
        ({"data": {f"{number}": "x" for number in range(300)}, "files": {"other": ("", b"")}}, 413),
        ({"json": {"images": ["AAAA"]}, "headers": [("transfer-encoding", "chunked")]}, 400),
        ({"json": []}, 400),
        ({"json": {}}, 400),
        ({"json": {"images": []}}, 400),
        ({"json": {"images": "abc"}}, 400),
        ({"json": {"images": ["*"]}}, 400),
        ({"json": {"images": [7]}}, 400),
        ({"json": {"images": [""] * 300}}, 413),
        ({"content": b"x", "headers": [("content-type", "multipart/form-data")]}, 400),
        ({"content": b"x", "headers": [("content-type", "multipart/form-data; boundary=y")]}, 400),
        ({"data": {"files": "x"}, "files": {"other": ("", b"")}}, 400),
        ({"files": [("files", (f"{number}", b"x")) for number in range(300)]}, 413),
    ],
)
def test_what_is_no_request_is_refused_in_a_sentence(content, status, ask):
    answer = ask("POST", "/predict", **content)
    assert (answer.status, answer.json()["detail"].startswith("Expected ")) == (status, True)


def test_requests_that_come_while_the_network_is_busy_are_predicted_together(bundle, digits, monkeypatch):
    sizes, free = [], threading.Event()

    def held_up(*arguments):
        sizes.append(len(arguments[1]))
        assert free.wait(30)
        return judge(*arguments)

    judge, image = batching.judge, form_of([png(digits.images[0])])
    with Server(create_app(bundle, limits=Limits(waiting=12))) as server:
        monkeypatch.setattr(batching, "judge", held_up)

        async def together():
            asked = [asyncio.create_task(server.asked("POST", "/predict", **image)) for _ in range(12)]
            while (
                "convscope_waiting_images 12" not in (await server.asked("GET", "/metrics")).text or not sizes
            ):
                await asyncio.sleep(0.01)
            more = await server.asked("POST", "/predict", **image)
            await asyncio.sleep(0.05)
            free.set()
            return more, await asyncio.gather(*asked)

        refused, answers = server.run(together())
        assert (refused.status, int(refused.headers["retry-after"]) >= 1) == (503, True)
        assert [one.status for one in answers] == [200] * 12
        assert sum(sizes) == 12 and len(sizes) <= 3
        assert server.ask("POST", "/predict", **image).status == 200  # there is room again


def test_images_take_room_until_their_grad_cam_is_there(bundle, digits, monkeypatch):
    begun, free = threading.Event(), threading.Event()

    def held_up(*_):
        begun.set()
        assert free.wait(30)
        return "data:image/png;base64,"

    monkeypatch.setattr(batching, "_grad_cam", held_up)
    image = form_of([png(digits.images[0])])
    with Server(create_app(bundle, limits=Limits(waiting=1))) as server:

        async def together():
            asked = asyncio.create_task(server.asked("POST", "/predict?gradcam=1", **image))
            assert await asyncio.to_thread(begun.wait, 30)
            refused = await server.asked("POST", "/predict", **image)
            free.set()
            return refused, await asked

        refused, answer = server.run(together())
    assert (refused.status, answer.status) == (503, 200)


def test_a_prediction_waits_for_one_grad_cam_at_most(bundle, digits, monkeypatch):
    order, decoded, free = [], threading.Event(), threading.Event()
    read_input = batching.read_input

    def explain(*_):
        order.append("explained")
        assert free.wait(30)

    def read(*arguments):
        found = read_input(*arguments)
        decoded.set()
        return found

    async def several():
        batcher, upload = (
            batching.Batcher(bundle, 10, order.append),
            batching.Upload("a", png(digits.images[0])),
        )
        (prediction,) = await batcher.predict([upload])
        order.clear()
        monkeypatch.setattr(batching, "read_input", read)
        asked = [asyncio.create_task(batcher.grad_cam(prediction)) for _ in range(3)]
        await asyncio.sleep(0)
        asked.append(asyncio.create_task(batcher.predict([upload])))
        assert await asyncio.to_thread(decoded.wait, 30)
        await asyncio.sleep(0.1)
        free.set()
        await asyncio.gather(*asked)
        batcher.close()

    monkeypatch.setattr(batching, "_grad_cam", explain)
    with ThreadPoolExecutor(1) as pool:  # in this thread Playwright may keep a loop running
        pool.submit(asyncio.run, several()).result()
    assert order == ["explained", 1, "explained", "explained"]


def test_an_error_of_the_network_is_told_to_all_who_wait_and_the_next_is_answered(
    bundle, digits, monkeypatch
):
    image, judge = form_of([png(digits.images[0])]), batching.judge

    def fail(*_):
        raise convscope.ConvscopeError("Expected probabilities, got NaN.")

    with Server(create_app(bundle)) as server:
        monkeypatch.setattr(batching, "judge", fail)
        answer = server.ask("POST", "/predict", **image)
        assert answer.status == 500
        assert answer.json() == {"detail": "Expected probabilities, got NaN."}
        monkeypatch.setattr(batching, "judge", judge)
        assert server.ask("POST", "/predict", **image).status == 200


def test_what_was_answered_is_counted(ask, digits):
    before = ask("GET", "/metrics").text
    ask("POST", "/predict", **form_of([png(digits.images[0]), b"x"]))
    ask("GET", "/no/such/page")
    after = ask("GET", "/metrics").text

    def value(text, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    for name in (
        'convscope_requests_total{path="/predict",status="200"}',
        'convscope_requests_total{path="other",status="404"}',
        'convscope_images_total{outcome="predictions"}',
        'convscope_images_total{outcome="failures"}',
    ):
        assert value(after, name) == value(before, name) + 1, name


def test_the_interface_is_described_without_anything_from_elsewhere(ask):
    described = ask("GET", "/openapi.json").json()
    assert {"/predict", "/corrections", "/health", "/metrics"} <= set(described["paths"])
    for path in ("/docs", "/"):
        page = ask("GET", path)
        assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page.text)
    assert "POST /predict" in ask("GET", "/docs").text
    assert "<script" not in ask("GET", "/docs").text
    assert ask("GET", "/health").json() == {"status": "ok"}
    for method, path, allowed in (("GET", "/predict", "POST"), ("DELETE", "/corrections", "GET, POST")):
        refused = ask(method, path)
        assert (refused.status, refused.headers["allow"]) == (405, allowed)
        assert refused.json() == {"detail": f"Expected {allowed} for {path}, got {method}."}


def test_the_description_says_what_is_asked_for_and_what_is_answered(bundle, server, tmp_path):
    token = Gate(token="t" * 16)
    with Server(create_app(bundle, gate=token, corrections=CorrectionStore(tmp_path))) as asking:
        headers = [("authorization", f"Bearer {'t' * 16}")]
        secured = asking.ask("GET", "/openapi.json", headers).json()
        statuses = {
            path: asking.ask(method, path, headers, **content).status
            for method, path, content in (
                ("POST", "/predict", {"json": {"images": ["AAAA"]}}),
                ("POST", "/corrections", {"json": {"image": "AAAA", "label": "1"}}),
            )
        }
    described = server.ask("GET", "/openapi.json").json()
    for path, methods in secured["paths"].items():
        for method, one in methods.items():
            assert ("security" in one) == (path != "/health")
            assert "security" not in described["paths"][path][method]
            assert {"400", "401", "403", "421", "503"} <= set(one["responses"])
            assert str(statuses.get(path, 401)) in one["responses"] or method == "get"
    content = described["paths"]["/corrections"]["post"]["requestBody"]["content"]
    properties = content["application/json"]["schema"]["properties"]
    assert properties["label"]["enum"] == list(bundle.class_names)
    images = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    for kind, name in (("application/json", "images"), ("multipart/form-data", "files")):
        schema = images[kind]["schema"]
        assert schema["required"] == [name]
        assert (schema["properties"][name]["minItems"], schema["properties"][name]["maxItems"]) == (1, 256)


# Whom it answers

HOSTS = [
    *("127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000"),  # these are ours
    *("127.0.0.1", "localhost", "127.0.0.1:8001", "localhost:80", "evil.example", "evil.example:8000"),
    *("127.0.0.1.evil.example:8000", "localhost.evil.example:8000", "evil.example:8000@127.0.0.1:8000"),
    *("127.0.0.1:8000@evil.example", "127.0.0.1:8000.evil.example", "localhost.:8000", "192.168.1.5:8000"),
    *("127.0.0.2:8000", "0.0.0.0:8000", "[::]:8000", "0x7f000001:8000", "2130706433:8000", "127.1:8000"),
    *(
        "",
        " ",
        ":8000",
        "127.0.0.1:",
        "127.0.0.1:8000, evil.example",
        "127.0.0.1:8000\tx",
        "http://127.0.0.1:8000",
    ),
]
ORIGINS = [
    *(None, "http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"),
    *(
        "https://127.0.0.1:8000",
        "http://127.0.0.1",
        "http://127.0.0.1:8001",
        "null",
        "",
        "http://evil.example",
    ),
    *("http://evil.example:8000", "http://127.0.0.1:8000.evil.example", "http://127.0.0.1:8000/x", "file://"),
    "http://127.0.0.1:8000 http://evil.example",
]


def test_only_its_own_names_and_its_own_page_are_let_in(bundle, digits):
    assert (len(HOSTS), len(ORIGINS)) == (30, 15)
    with Server(create_app(bundle, gate=Gate(port=8000))) as server:
        for host, origin in itertools.product(HOSTS, ORIGINS):
            headers = [] if origin is None else [("origin", origin)]
            ours = host in HOSTS[:4] and origin in (None, f"http://{host.lower()}")
            status = server.ask("POST", "/predict", headers, host=host, json={}).status
            assert status == (400 if ours else 403 if host in HOSTS[:4] else 421), (host, origin)
        assert server.ask("GET", "/health", host=None).status == 421
        assert server.ask("GET", "/health", [("host", "evil.example")]).status == 421
        twice = [("origin", "http://127.0.0.1:8000")] * 2
        assert server.ask("POST", "/predict", twice, json={}).status == 403
        for site, status in (("same-origin", 400), ("none", 400), ("cross-site", 403), ("same-site", 403)):
            assert server.ask("POST", "/predict", [("sec-fetch-site", site)], json={}).status == status


def test_beyond_this_machine_any_address_is_its_own_but_no_foreign_name(bundle):
    gate = Gate(("localhost", "models.example.org"), addresses=True)
    with Server(create_app(bundle, gate=gate)) as server:
        for host, status in (
            *(("192.168.1.5:8000", 200), ("[fe80::1]:80", 200), ("models.example.org", 200)),
            *(("evil.example", 421), ("1.2.3.4.evil.example", 421), ("[evil]:80", 421), ("1.2.3", 421)),
        ):
            assert server.ask("GET", "/health", host=host).status == status, host
        proxied = [("origin", "https://models.example.org")]
        assert server.ask("POST", "/predict", proxied, host="models.example.org", json={}).status == 400


def test_the_token_is_asked_for_everywhere_but_for_health(bundle, monkeypatch):
    token = "correct horse battery"  # noqa: S105
    compared = []
    import hmac

    def compare(*sides):
        compared.append([len(side) for side in sides])
        return same(*sides)

    same = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)

    def basic(text):
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    with Server(create_app(bundle, gate=Gate(token=token))) as server:
        for path in ("/", "/docs", "/openapi.json", "/metrics", "/corrections", "/no"):
            answer = server.ask("GET", path)
            assert (answer.status, answer.headers["www-authenticate"][:5]) == (401, "Basic"), path
        assert server.ask("GET", "/health").status == 200
        wrong = [
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "bearer\t",
            f"Token {token}",
            token,
            "Basic x",
            "Basic é",
        ]
        wrong += [f"Bearer {token}x", f"Bearer {token[:-1]}", basic(token), basic("u:x"), basic(f"{token}:u")]
        for value in wrong:
            assert server.ask("GET", "/", [("authorization", value)]).status == 401, value
        for value in (f"Bearer {token}", f"bearer {token}", basic(f":{token}"), basic(f"any:{token}")):
            assert server.ask("GET", "/", [("authorization", value)]).status == 200, value
        assert server.ask("GET", f"/?token={quote(token)}").status == 401
        both = [("authorization", f"Bearer {token}"), ("authorization", "Bearer x")]
        assert server.ask("GET", "/", both).status == 401
    assert {tuple(lengths) for lengths in compared} == {(32, 32)}


def traversals():
    """500 ways to ask for a file that is not served."""
    targets = ["etc/passwd", "run.json", "model.keras", "guard.py", "page/page.js", "pyproject.toml"]
    steps = ["../", "..\\", "..%2f", "..%5c", "%2e%2e/", "%2e%2e%2f", "..%252f", "....//", "..;/", "/", "./"]
    steps += ["%c0%ae%c0%ae/", "..%00/", "%2e/"]
    fronts = ["/", "//", "/docs/", "/predict/", "/health/../", "/%2f", "/page/", "/static/", "/openapi.json/"]
    ways = [
        f"{front}{step * depth}{target}"
        for front, depth, step, target in itertools.product(fronts, (1, 4), steps, targets)
    ]
    return ways[:: len(ways) // 500][:500]


def test_no_path_leads_to_a_file(server):
    paths = traversals()
    assert len(set(paths)) == 500
    for path in paths:
        answer = server.ask("GET", path)
        assert answer.status == 404, path
        assert answer.json()["detail"] == f"Expected one of {', '.join(PATHS)}, got another address."


@pytest.mark.parametrize("start", [0, 10, 20])
def test_class_names_of_markup_stay_text(start, digits):
    some = MARKUP[start : start + 10]
    with Server(create_app(plain_bundle(some), title=some[0])) as server:
        for path in ("/", "/docs"):
            page = server.ask("GET", path)
            assert [text for text in some if "<" in text and text in page.text] == []
            assert page.text.count("<script") == (2 if path == "/" else 0)
            assert page.headers["content-security-policy"] == content_security_policy(page.text)
        (found,) = server.ask("POST", "/predict", **form_of([png(digits.images[0])])).json()["predictions"]
        assert list(found["probabilities"]) == some


def test_file_names_of_markup_stay_text(ask, digits):
    answer = ask("POST", "/predict", **form_of([png(digits.images[0])] * len(MARKUP), MARKUP))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(answer.json()["predictions"]) == len(MARKUP) == 30


def test_every_answer_carries_the_headers_that_keep_a_browser_from_harm(ask):
    for method, path in (
        ("GET", "/health"),
        ("GET", "/no"),
        ("DELETE", "/"),
        ("POST", "/predict"),
        ("GET", "/"),
    ):
        answer = ask(method, path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers
    assert ask("GET", "/health", host="evil.example").headers["x-frame-options"] == "DENY"


# How much it takes


def in_pieces(pieces, read):
    """What uvicorn gives of a body that comes in pieces; note how many bytes were taken."""

    async def receive():
        piece = next(pieces, None)
        if piece is None:
            return {"type": "http.disconnect"}
        if isinstance(piece, float):
            await asyncio.sleep(piece)
            piece = b"x"
        read.append(len(piece))
        return {"type": "http.request", "body": piece, "more_body": True}

    return receive


@pytest.mark.parametrize("declared", [False, True])
def test_a_body_of_a_gigabyte_is_cut_off_early(declared, server):
    size, piece, read = 2**30, bytes(2**16), []
    length = ("content-length", str(size)) if declared else ("transfer-encoding", "chunked")
    receive = in_pieces(itertools.repeat(piece, size // len(piece)), read)
    answer = server.run(server.answer("POST", "/predict", [JSON, length], receive))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert answer.messages[1]["body"]  # the answer goes out before what still comes is thrown away
    assert sum(read) < 2**27
    assert server.ask("GET", "/health").status == 200


def test_a_declared_size_is_refused_before_anything_is_read(bundle):
    async def silent():
        await asyncio.sleep(10)

    with Server(create_app(bundle, limits=Limits(body=100, seconds=0.2))) as server:
        answer = server.run(server.answer("POST", "/predict", [JSON, ("content-length", "101")], silent))
        assert answer.status == 413
        answer = server.run(server.answer("POST", "/predict", [JSON, ("content-length", "100")], silent))
        assert answer.status == 408


def test_a_slow_body_is_cut_off(bundle):
    with Server(create_app(bundle, limits=Limits(seconds=0.3, bytes_per_second=1000))) as server:
        began = time.monotonic()
        receive = in_pieces(itertools.repeat(0.05), [])
        chunked = [JSON, ("transfer-encoding", "chunked")]
        answer = server.run(server.answer("POST", "/predict", chunked, receive))
        assert answer.status == 408
        assert time.monotonic() - began < 5
        answer = server.run(server.answer("POST", "/predict", chunked, in_pieces(iter([b"x"]), [])))
        assert answer.status == 400  # hung up in the middle
        whole = b'{"images": ["AAAA"]}'
        answer = server.run(server.answer("POST", "/predict", chunked, in_pieces(iter([whole]), [])))
        assert (answer.status, "a part of one" in answer.json()["detail"]) == (400, True)
    with Server(create_app(bundle, limits=Limits(seconds=0.5, bytes_per_second=1))) as server:
        steady = in_pieces(iter([0.1] * 8), [])  # longer than 0.5 s in all, and 10 bytes a second
        answer = server.run(server.answer("POST", "/predict", chunked, steady))
        assert (answer.status, "a part of one" in answer.json()["detail"]) == (400, True)


def test_bodies_share_a_bounded_memory(bundle):
    limits = Limits(memory=3 * 2**20, seconds=2.0)
    with Server(create_app(bundle, limits=limits)) as server:

        async def together():
            head, waiting = [JSON, ("transfer-encoding", "chunked")], []
            for _ in range(3):
                body = in_pieces(iter([bytes(2**20), 0.5]), [])
                waiting.append(asyncio.create_task(server.answer("POST", "/predict", head, body)))
            await asyncio.sleep(0.1)
            refused = await server.answer("POST", "/predict", head, in_pieces(iter([bytes(2**10)]), []))
            return refused, await asyncio.gather(*waiting)

        refused, _ = server.run(together())
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        there_is_room_again = server.ask("POST", "/predict", json={"images": ["x" * 2**20]})
        assert there_is_room_again.status == 422


def bomb(side):
    """A PNG of a few kilobytes that unpacks to side² pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), bytes(1 + side // 8)
    packed = b"".join(packer.compress(rows) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused(ask):
    gif = png(np.zeros((1, 1), np.uint8), "GIF")
    huge_gif = gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    text = io.BytesIO()
    info = __import__("PIL.PngImagePlugin", fromlist=["PngInfo"]).PngInfo()
    info.add_text("x", "x" * 2**26, zip=True)
    Image.new("L", (8, 8)).save(text, "PNG", pnginfo=info)
    began = time.monotonic()
    answer = ask("POST", "/predict", **form_of([bomb(16_000), bomb(9_000), huge_gif]))
    assert answer.status == 422
    assert all("at most 64,000,000 pixels" in one["reason"] for one in answer.json()["failures"][:2])
    assert ask("POST", "/predict", **form_of([text.getvalue()])).status in (200, 422)
    assert time.monotonic() - began < 20


def test_a_line_of_pixels_is_not_made_a_sheet(digits):
    images = np.zeros((2, 28, 28, 1), np.uint8)
    cropped = replace(plain_bundle(), preprocess=Preprocess.fit(images, "unit", resize="crop"))
    line = png(np.zeros((1, 200_000), np.uint8))  # cropped to 28 rows it would have 5.6 million columns
    with Server(create_app(cropped)) as server:
        answer = server.ask("POST", "/predict", **form_of([line, png(digits.images[0])]))
    assert [one["index"] for one in answer.json()["predictions"]] == [1]
    assert "5,600,000×28, made of 200,000×1" in answer.json()["failures"][0]["reason"]


# What it keeps


def test_nothing_is_written_unless_it_is_asked_for(ask, digits, tmp_path, monkeypatch):
    for name in ("cwd", "scratch"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    noise = png(drawn(1, (1200, 1200, 3)))
    assert len(noise) > 2**22  # more than forms keep in memory by themselves
    opened = []

    def watch(event, arguments):
        if event == "open" and arguments[1] and set(str(arguments[1])) & set("wax+"):
            opened.append(arguments[0])

    sys.addaudithook(watch)
    assert ask("POST", "/predict", **form_of([noise, noise])).status == 200
    written = [one for one in opened if str(tmp_path) in str(one)]
    opened.clear()
    assert not written and not [path for path in tmp_path.rglob("*") if path.is_file()]
    image = base64.b64encode(png(digits.images[0])).decode()
    refused = ask("POST", "/corrections", json={"image": image, "label": "7"})
    assert (refused.status, ask("GET", "/corrections").json()["kept"]) == (404, None)
    assert "--keep" in refused.json()["detail"]


def test_corrected_labels_are_kept_with_their_image(bundle, digits, tmp_path):
    folder = tmp_path / "kept"
    image = png(digits.images[0])
    coded = base64.b64encode(image).decode()
    with Server(create_app(bundle, corrections=CorrectionStore(folder))) as server:
        assert server.ask("GET", "/corrections").json() == {"kept": 0, "labels": list(bundle.class_names)}
        text = {"content": json.dumps({"image": coded, "label": "7"}).encode()}  # as a foreign form sends it
        assert server.ask("POST", "/corrections", [("content-type", "text/plain")], **text).status == 415
        for label in ("7", "1"):
            answer = server.ask(
                "POST", "/corrections", json={"image": f"data:image/png;base64,{coded}", "label": label}
            )
            assert answer.status == 201
        assert answer.json()["kept"] == 2
        for value, status in (
            *(({"image": coded, "label": "../../x"}, 422), ({"image": coded}, 422), ({"label": "7"}, 400)),
            *(({"image": "AAAA", "label": "7"}, 422), ({"image": coded, "label": ["7"]}, 422), ([], 400)),
        ):
            assert server.ask("POST", "/corrections", json=value).status == status, value
        foreign = [("origin", "http://evil.example")]
        assert server.ask("POST", "/corrections", foreign, json={"image": coded, "label": "7"}).status == 403
    assert [(one.label, one.image) for one in read_corrections(folder)] == [("7", image), ("1", image)]
    with Server(create_app(bundle, corrections=CorrectionStore(folder), limits=Limits(kept=10))) as server:
        assert server.ask("POST", "/corrections", json={"image": coded, "label": "7"}).status == 507


def test_a_disk_that_refuses_a_correction_is_told_of_without_its_paths(
    bundle, digits, tmp_path, read_only, caplog
):
    folder = tmp_path / "kept"
    value = {"image": base64.b64encode(png(digits.images[0])).decode(), "label": "7"}
    with Server(create_app(bundle, corrections=CorrectionStore(folder))) as server:
        assert server.ask("POST", "/corrections", json=value).status == 201
        read_only(tmp_path)
        answer = server.ask("POST", "/corrections", json=value)
        assert (answer.status, str(tmp_path) in answer.text) == (507, False)
        assert str(tmp_path) in caplog.text
        assert server.ask("GET", "/corrections").json()["kept"] == 1


def test_a_correction_that_was_taken_back_is_not_counted(bundle, digits, tmp_path):
    folder = tmp_path / "kept"
    value = {"image": base64.b64encode(png(digits.images[0])).decode(), "label": "7"}
    with Server(create_app(bundle, corrections=CorrectionStore(folder))) as server:
        assert server.ask("POST", "/corrections", json=value).json()["kept"] == 1
        undo_correction(folder)
        assert server.ask("GET", "/corrections").json()["kept"] == 0
        assert server.ask("POST", "/corrections", json=value).json()["kept"] == 1


# The command


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--port", "70000"), 2, "a port from 0 to 65,535"),
        (("--host", "no.such.host.invalid"), 2, "as --host"),
        (("--token", "short"), 2, "at least 16 characters"),
        (("--token", " " + "f" * 16), 2, "no space at its ends"),
        (("--token", "f" * 16 + "ü"), 2, "of ASCII"),
        (("--keep", "file"), 2, "a folder for --keep"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments, code, message, typed, digits_run, tmp_path):
    (tmp_path / "file").touch()
    done = typed("serve", str(digits_run), *arguments, cwd=tmp_path)
    assert (done.returncode, message in " ".join(done.stderr.split())) == (code, True), done.stderr


def test_a_port_in_use_is_told_in_one_line(typed, digits_run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = typed("serve", str(digits_run), "--port", str(port), cwd=tmp_path)
    assert done.returncode == 2
    assert f"Expected port {port} to be free" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_package_is_told_in_one_line(typed, digits_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = typed("serve", str(digits_run), cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'convscope[serve]'" in done.stderr and done.stderr.count("\n") == 1


# In a process of its own


@pytest.fixture
def started(digits_run, tmp_path):
    with process(digits_run, cwd=tmp_path) as found:
        yield found


@pytest.mark.slow
@pytest.mark.posix("signals")
def test_what_was_accepted_is_answered_before_the_end(digits_run, digits, tmp_path):
    """SIGTERM among requests of which one has sent half of its body, and others wait for the network."""
    with process(digits_run, cwd=tmp_path) as (running, address):
        body = json.dumps({"images": [base64.b64encode(png(digits.images[0])).decode()]}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n"
        head += "Content-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        slow = connect(address)
        slow.sendall(head.encode() + body[:100])
        results, stop = [], threading.Event()

        def ask_on():
            with httpx.Client(base_url=address) as client:
                while not stop.is_set():
                    try:
                        results.append(
                            client.post(
                                "/predict", content=body, headers={"content-type": "application/json"}
                            )
                        )
                    except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                        results.append(error)
                        return

        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(ask_on)
            while len(results) < 20:
                time.sleep(0.05)
            running.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            slow.sendall(body[100:])
            answer = b"".join(iter(lambda: slow.recv(2**16), b""))
            stop.set()
        slow.close()
        assert answer.startswith(b"HTTP/1.1 200") and b'"label"' in answer
        answered = [one for one in results if isinstance(one, httpx.Response)]
        assert len(answered) >= 20
        assert {one.status_code for one in answered} == {200}
        assert all(len(one.json()["predictions"]) == 1 for one in answered)
        # What was not answered was not accepted: a connection was refused or closed, no answer was cut.
        cut = [str(one) for one in results if "peer closed" in str(one) or "incomplete" in str(one).lower()]
        assert not cut
        assert running.wait(30) == 0
        assert running.stderr.read().count("Traceback") == 0


@pytest.mark.slow
@pytest.mark.posix("signals")
@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM] * 2], ids=["ctrl-c", "twice told"])
def test_it_ends_soon_where_somebody_waits_also_with_half_a_body(signals, digits_run, digits, tmp_path):
    image = base64.b64encode(png(digits.images[0])).decode()
    with process(digits_run, "--keep", tmp_path / "kept", cwd=tmp_path) as (running, address):
        assert httpx.post(f"{address}/corrections", json={"image": image, "label": "7"}).status_code == 201
        with connect(address) as slow, connect(address) as silent:
            head = f"POST /predict HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n"
            slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n".encode())
            silent.sendall(b"GET / HT")
            time.sleep(0.5)
            began = time.monotonic()
            for number in signals:
                running.send_signal(number)
                time.sleep(0.2)
            assert running.wait(30) == 0
            assert time.monotonic() - began < 6  # the body itself would have 10 s
        assert "Traceback" not in running.stderr.read()
    assert [one.label for one in read_corrections(tmp_path / "kept")] == ["7"]


@pytest.mark.slow
def test_nobody_holds_a_connection_without_a_request(started):
    _, address = started
    began = time.monotonic()
    with connect(address) as silent, connect(address) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(20):
            time.sleep(0.7)
            try:
                slow.sendall(b"x: y\r\n")
            except OSError:
                break
        for one in (silent, slow):
            with suppress(ConnectionError):
                assert one.recv(100) == b""
    assert time.monotonic() - began < 25
    assert httpx.get(f"{address}/health").status_code == 200


def peak_memory(process):
    """The most memory that a process ever had, in MB."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:  # noqa: PTH123
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) / 1024


@pytest.mark.slow
def test_whoever_takes_no_answer_is_hung_up_on():
    """More than fits into the buffers of a connection, of which nothing is read for a while."""
    program = """
from serving_cases import plain_bundle
from convscope.serving import create_app, server
server.ANSWER_SECONDS = 1.0
opened = server.open_socket("127.0.0.1", 0)
app = create_app(plain_bundle(), page="x" * 2**26)
server.serve(app, opened, lambda: print(server.address_of(opened), flush=True))
"""
    folder = Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            address = running.stdout.readline().strip()
            with connect(address) as asking:
                asking.sendall(f"GET / HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n\r\n".encode())
                time.sleep(3)
                taken = 0
                with suppress(ConnectionError):
                    while piece := asking.recv(2**20):
                        taken += len(piece)
            assert taken < 2**26
            assert httpx.get(f"{address}/health").status_code == 200
        finally:
            running.kill()


@pytest.mark.slow
@pytest.mark.posix("/proc")
def test_a_gigabyte_leaves_memory_bounded(started, digits):
    running, address = started
    body = {"images": [base64.b64encode(png(digits.images[0])).decode()]}
    assert httpx.post(f"{address}/predict", json=body).status_code == 200
    before = peak_memory(running)

    def gigabyte():
        for _ in range(2**14):
            yield bytes(2**16)

    with suppress(httpx.WriteError, httpx.ReadError):  # it may be hung up on before it reads
        assert httpx.post(f"{address}/predict", content=gigabyte(), timeout=60).status_code == 413
    assert peak_memory(running) - before < 150


@pytest.mark.slow
@pytest.mark.posix("/proc, signals")
def test_two_hundred_clients_at_once_lose_nothing_also_when_the_server_is_told_to_end(
    digits_run, digits, tmp_path, record_property
):
    """As long as CONVSCOPE_CLIENT_SECONDS says, of which the numbers in docs/serving.md are for 60."""
    seconds = float(os.environ.get("CONVSCOPE_CLIENT_SECONDS", "5"))
    images = [png(one) for one in digits.images[:200]]
    with process(digits_run, cwd=tmp_path) as (running, address):
        assert httpx.post(f"{address}/predict", **form_of(images[:1])).status_code == 200
        before, until = peak_memory(running), time.monotonic() + seconds
        statuses, lost, wrong = Counter(), [], []

        def client(number):
            while time.monotonic() < until + 2:  # some are still asking when it ends
                try:
                    answer = asking.post("/predict", **form_of([images[number]], [f"{number}.png"]))
                except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError) as error:
                    # From the end on connections are refused, and closed between two requests.
                    if time.monotonic() < until or "peer closed" in str(error):
                        lost.append(error)
                    return
                statuses[answer.status_code] += 1
                if answer.status_code == 503:
                    wrong.extend([] if "retry-after" in answer.headers else [answer.headers])
                    time.sleep(0.1)
                elif answer.json()["predictions"][0]["file"] != f"{number}.png":
                    wrong.append(answer.json())

        many = httpx.Limits(max_connections=200)
        with (
            httpx.Client(base_url=address, timeout=90, limits=many) as asking,
            ThreadPoolExecutor(200) as pool,
        ):
            done = pool.map(client, range(200))
            time.sleep(max(0.0, until - time.monotonic()))
            used = peak_memory(running) - before
            running.send_signal(signal.SIGTERM)
            list(done)
        said = f"{dict(statuses)} in {seconds:g} s, {used:.0f} MB more at the most"
        assert (lost, wrong) == ([], []), said
        assert set(statuses) <= {200, 503} and statuses[200] >= 200, said
        assert used < 300, said
        assert running.wait(90) == 0
        assert "Traceback" not in running.stderr.read()
    record_property("served", said)


@pytest.mark.slow
def test_more_connections_than_it_has_room_for_are_turned_away_for_now(started):
    from convscope.serving.server import CONNECTIONS

    _, address = started
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(address))
        refused = httpx.get(f"{address}/health")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["content-security-policy"]
    time.sleep(0.5)
    assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.slow
def test_requests_of_every_form_are_answered_or_refused_and_strangers_are_not_told_of(digits_run, tmp_path):
    token = "t" * 20
    image = json.dumps({"images": [base64.b64encode(png(drawn(1))).decode()]}).encode()
    with process(digits_run, "--token", token, cwd=tmp_path) as (running, address):
        host = f"Host: {urlsplit(address).netloc}\r\n"
        own = f"{host}Authorization: Bearer {token}\r\n"
        post = f"POST /predict HTTP/1.1\r\n{own}Content-Type: application/json\r\nConnection: close\r\n"
        pieces = b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image)
        upgrade = "Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"

        def ask(head, body=b"", end="Connection: close\r\n"):
            with connect(address) as asking:
                asking.sendall(f"{head}{end}\r\n".encode() + body)
                return b"".join(iter(lambda: asking.recv(2**16), b""))

        for head, body, status in (
            (f"HEAD / HTTP/1.1\r\n{own}", b"", 200),
            (f"OPTIONS /predict HTTP/1.1\r\n{own}", b"", 405),
            (f"OPTIONS * HTTP/1.1\r\n{own}", b"", 404),
            (f"CONNECT evil.example:80 HTTP/1.1\r\n{own}", b"", 404),
            (f"GET http://evil.example/health HTTP/1.1\r\n{own}", b"", 404),
            (f"GET /%68ealth HTTP/1.1\r\n{own}", b"", 200),
            (f"GET /health%00 HTTP/1.1\r\n{own}", b"", 404),
            (f"GET /%ff%zz HTTP/1.1\r\n{own}", b"", 404),
            (f"GET /hé HTTP/1.1\r\n{own}", b"", 400),
            (f"GET /health HTTP/1.0\r\n{own}", b"", 200),
            ("GET /health HTTP/1.0\r\n", b"", 421),
            ("GET /health HTTP/1.1\r\n", b"", 400),
            (f"GET /health HTTP/1.1\r\n{host}{host}", b"", 400),
            (f"GET /metrics HTTP/1.1\r\n{host}", b"", 401),
            (f"GET /metrics?token={token} HTTP/1.1\r\n{host}", b"", 401),
            (f"GET /health HTTP/1.1\r\n{own}{upgrade}", b"", 200),
            ("GARBAGE\r\n", b"", 400),
            (f"{post}Transfer-Encoding: chunked\r\n", pieces, 200),
            (f"{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", pieces, 400),
            (f"{post}Transfer-Encoding: gzip, chunked\r\n", pieces, 400),
            (f"{post}Content-Length: 5\r\nContent-Length: 6\r\n", b"abcdef", 400),
            (f"{post}Content-Length: -5\r\n", b"", 400),
            (f"{post}Content-Length: {10**17}\r\n", b"", 413),
        ):
            answer = ask(head, body, "" if "onnection:" in head else "Connection: close\r\n")
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (head, answer[:300])
            assert not head.startswith("HEAD") or answer.endswith(b"\r\n\r\n")
        # Nonsense after an answer, while what the refused client still sends is thrown away.
        with connect(address) as asking:
            asking.sendall(b"POST /predict HTTP/1.1\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n")
            refused = b""
            while not refused.endswith(b"}"):
                refused += asking.recv(2**16)
            assert refused.startswith(b"HTTP/1.1 421 ")
            asking.sendall(b"nonsense\r\n")
            with suppress(ConnectionError):
                assert asking.recv(2**16) == b""
        several = ask(f"GET /health HTTP/1.1\r\n{own}\r\n" * 3 + f"GET /health HTTP/1.1\r\n{own}")
        assert several.count(b'{"status":"ok"}') == 4
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        said = running.stderr.read()
        assert token not in said
        assert [line for line in said.splitlines() if not line.endswith("…")] == []


@pytest.mark.slow
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_a_server_listens_on_ipv6_too(digits_run, tmp_path):
    with process(digits_run, "--host", "::1", cwd=tmp_path) as (_, address):
        assert address.startswith("http://[::1]:")
        assert httpx.get(f"{address}/").status_code == 200
        port = urlsplit(address).port
        assert httpx.get(f"{address}/", headers={"host": f"[::1]:{port + 1}"}).status_code == 421


@pytest.mark.browser
def test_the_served_explorer_keeps_what_an_image_really_shows(browser, digits_run, tmp_path):
    with process(digits_run, "--keep", tmp_path / "kept", cwd=tmp_path) as (_, address):
        page, said = browser.new_page(), []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((address, "blob:")) or said.append(asked.url))
        page.goto(f"{address}/")
        page.select_option(".correction select", "7", timeout=60_000)
        page.wait_for_selector(".correction [role=status]:has-text('7')")
        assert "is sent to the server" in page.inner_text("main")
        page.close()
    assert said == []
    assert [one.label for one in read_corrections(tmp_path / "kept")] == ["7"]


@pytest.mark.slow
def test_beyond_this_machine_a_token_is_made_and_asked_for(digits_run, tmp_path):
    program = [sys.executable, "-m", "convscope", "serve", digits_run, "--host", EVERYWHERE, "--port", "0"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        address = re.search(r"http://\S+:(\d+)", running.stdout.readline())
        token = running.stdout.readline().split()[-1]
        here = f"http://127.0.0.1:{address[1]}"
        try:
            assert len(token) >= 32
            assert httpx.get(f"{here}/docs").status_code == 401
            assert httpx.get(f"{here}/docs", headers={"authorization": f"Bearer {token}"}).status_code == 200
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


@pytest.mark.slow
def test_the_steps_of_the_container_file_give_a_server(digits_run, tmp_path):
    """What the image installs, in an environment of its own: the package and what serving needs, no more."""
    import subprocess
    import venv
    from pathlib import Path

    from convscope.export.exporting import export_run

    root = Path(convscope.__file__).parents[2]
    steps = (root / "Containerfile").read_text(encoding="utf-8")
    assert "'.[serve]'" in steps and '"/venv/bin/convscope", "serve", "/export"' in steps
    if (
        os.environ.get("CONVSCOPE_CONTAINER") != "1"
    ):  # it downloads some hundred megabytes; .ci/run asks for it
        pytest.skip("CONVSCOPE_CONTAINER=1 runs the steps")
    export = export_run(copy_of(digits_run, tmp_path / "run"), "keras", tmp_path / "export").path
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [tmp_path / "venv/bin/pip", "install", "--quiet", "--constraint", "constraints.txt"]
    subprocess.run([*pip, f"{root}[serve]", "onnxruntime"], cwd=root, check=True, timeout=1500)
    program = [tmp_path / "venv/bin/convscope", "serve", export, "--port", "0", "--json"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        text = ""
        while not text.endswith("}\n"):
            text += running.stdout.readline()
        image = {"images": [base64.b64encode(png(drawn(1))).decode()]}
        try:
            assert httpx.post(f"{json.loads(text)['address']}/predict", json=image).status_code == 200
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_of_every_format_is_served(form, digits_run, digits, tmp_path):
    from convscope.export.exporting import export_run

    run = copy_of(digits_run, tmp_path / "run")
    served = load_bundle(export_run(run, form, tmp_path / "export").path)
    expected = load_bundle(run).predict(digits.images[:20])
    with Server(create_app(served)) as server:
        answer = server.ask("POST", "/predict", **form_of([png(one) for one in digits.images[:20]])).json()
    found = [list(one["probabilities"].values()) for one in answer["predictions"]]
    np.testing.assert_allclose(found, expected, atol=0.05 if form == "int8" else 1e-4)
