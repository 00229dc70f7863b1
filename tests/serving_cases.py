"""Asking a server: in this process, request by request, or one of its own in another process."""

import asyncio
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np
from PIL import Image

from convscope.export import Bundle
from convscope.preprocessing import Preprocess

HOME = "http://127.0.0.1:8000"


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    content: bytes
    messages: list = field(repr=False, default_factory=list)

    def json(self):
        return json.loads(self.content)

    @property
    def text(self):
        return self.content.decode()


def png(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels).save(buffer, form, **options)
    return buffer.getvalue()


def form_of(images, names=None):
    names = names or [f"{number}.png" for number in range(len(images))]
    return {"files": [("files", (name, image)) for name, image in zip(names, images, strict=True)]}


def scope_of(method, raw_path, headers):
    """What uvicorn makes of a request's head."""
    path, _, query = raw_path.partition("?")
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 5), "scheme": "http", "method": method,
        "root_path": "", "path": urllib.parse.unquote(path), "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"), "headers": headers, "state": {},
    }  # fmt: skip


class Server:
    """An application whose lifespan runs; requests are asked one after the other, or together."""

    def __init__(self, app):
        # A thread of its own: in that of the tests Playwright may keep a loop running.
        self._app, self._runner, self._thread = app, asyncio.Runner(), ThreadPoolExecutor(1)

    def __enter__(self):
        self.run(self._start())
        return self

    def __exit__(self, *error):
        self.run(self._stop())
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()

    async def _start(self):
        self._told, started = asyncio.Queue(), asyncio.get_running_loop().create_future()
        await self._told.put({"type": "lifespan.startup"})

        async def send(message):
            if not started.done():
                started.set_result(message["type"])

        self._life = asyncio.create_task(self._app({"type": "lifespan", "state": {}}, self._told.get, send))
        assert await started == "lifespan.startup.complete"

    async def _stop(self):
        await self._told.put({"type": "lifespan.shutdown"})
        await self._life

    def run(self, asked):
        return self._thread.submit(self._runner.run, asked).result()

    async def answer(self, method, path, headers=(), receive=None, body=b"", host="127.0.0.1:8000"):
        """Ask with exactly these headers, and a Host where one is named."""
        pairs = [(b"host", host.encode("latin-1"))] if host is not None else []
        pairs += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        messages = []

        waiting = [body]

        async def whole():
            if not waiting:
                await asyncio.Event().wait()  # as long as the client stays
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}

        async def send(message):
            messages.append(message)

        await self._app(scope_of(method, path, pairs), receive or whole, send)
        head = messages[0]
        given = {name.decode(): value.decode("latin-1") for name, value in head["headers"]}
        return Response(head["status"], given, b"".join(one.get("body", b"") for one in messages), messages)

    def ask(self, method, path, headers=(), host="127.0.0.1:8000", **content):
        return self.run(self.asked(method, path, headers, host, **content))

    async def asked(self, method, path, headers=(), host="127.0.0.1:8000", **content):
        """Ask with what httpx makes of files, json or content."""
        request = httpx.Request(method, HOME, **content)
        given = [pair for pair in request.headers.items() if pair[0].startswith("content-")]
        return await self.answer(method, path, [*given, *headers], body=request.read(), host=host)


@contextlib.contextmanager
def process(*arguments, cwd, **environment):
    """Start `convscope serve` in another process; give it and its address."""
    import os

    program = [sys.executable, "-m", "convscope", "serve", *map(str, arguments), "--port", "0", "--json"]
    started = subprocess.Popen(
        program,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        text = ""
        while not text.endswith("}\n"):
            line = started.stdout.readline()
            assert line, started.stderr.read()
            text += line
        yield started, json.loads(text)["address"]
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
        try:
            started.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()


def connect(address):
    place = urllib.parse.urlsplit(address)
    return socket.create_connection((place.hostname, place.port), timeout=30)


def drawn(seed, shape=(28, 28, 1)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def plain_bundle(class_names=tuple("0123456789")):
    """What is served where the network does not matter: it needs neither torch nor Keras."""

    def forward(pixels):
        scores = 1.0 + pixels.reshape(len(pixels), -1)[:, 300 : 300 + len(class_names)]
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)

    images = np.zeros((2, 28, 28, 1), np.uint8)
    return Bundle(Preprocess.fit(images, "unit"), tuple(class_names), forward=forward)
