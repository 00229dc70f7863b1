"""Who may speak with the server, and how much: what happens to a request before the application sees it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from convscope.web_page import source_hash

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(?::(\d{1,5}))?")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Sent with every answer; pages bring a policy of their own, which lets their own script run and nothing else.
_ALWAYS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# So long, and so much, what a refused client goes on sending is thrown away: it reads its answer after that.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 * 2**20


@dataclass(frozen=True)
class Limits:
    """What one request may be, and all of them together.

    A body may take a few seconds, and more as long as it comes at a certain rate. ``memory`` is for the
    bodies of all requests that are in work. ``waiting`` images are predicted at some time; more are refused.
    """

    body: int = 32 * 2**20
    memory: int = 128 * 2**20
    seconds: float = 10.0
    bytes_per_second: float = 64 * 2**10
    images: int = 256
    gradcams: int = 16
    waiting: int = 1024
    kept: int = 4 * 2**30


class Refusal(Exception):  # noqa: N818  an answer like others
    """An answer that is none: a status, a sentence, and headers."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


@dataclass(frozen=True)
class Gate:
    """Who is let in: by the name under which the server was called, by the page that asks, by a token.

    A browser tells both: ``Host`` is what stands in its address bar, so that a foreign name which resolves to
    this machine (DNS rebinding) is refused; ``Origin`` is the page that sends a request, so that no foreign
    page can (CSRF). ``names`` are allowed hosts, in lower case; with ``addresses`` so is any IP address, to
    which no foreign name belongs. Without a ``port`` any will do: that of a proxy or a container is another.
    """

    names: tuple[str, ...] = LOOPBACK
    port: int | None = None
    addresses: bool = False
    token: str | None = None

    def require(self, method: str, path: str, headers: Headers) -> None:
        """Refuse a request that is not for us, not from our page, or without the token."""
        host = self._host(_values(headers, b"host"))
        self._require_own_page(method, host, headers)
        if self.token is not None and path != "/health":
            self._require_token(_values(headers, b"authorization"))

    def _host(self, values: list[str]) -> str:
        found = values[0].lower() if len(values) == 1 else ""
        parts = _HOST.fullmatch(found)
        if parts is not None:
            name, port = parts[1], int(parts[3] or 80)
            known = name in self.names or (self.addresses and _is_address(name))
            if known and self.port in (None, port):
                return found
        raise Refusal(421, "Expected a Host under which this server is known, got another one.")

    def _require_own_page(self, method: str, host: str, headers: Headers) -> None:
        origins = _values(headers, b"origin")
        own = {f"http://{host}"} if self.port is not None else {f"http://{host}", f"https://{host}"}
        if origins and (len(origins) > 1 or origins[0].lower() not in own):
            raise Refusal(403, "Expected a request from this server's own page, got one from another page.")
        site = _values(headers, b"sec-fetch-site")
        if method not in ("GET", "HEAD") and site and site[0] not in ("same-origin", "none"):
            raise Refusal(403, "Expected a request from this server's own page, got one from another site.")

    def _require_token(self, values: list[str]) -> None:
        kind, _, credentials = (values[0] if len(values) == 1 else "").partition(" ")
        given = credentials.strip()
        if kind.lower() == "basic":  # the way in which a browser asks for it; any user name will do
            with suppress(binascii.Error, ValueError):
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        # Hashes are of one length: the time that the comparison takes tells nothing.
        same = hmac.compare_digest(_digest(given), _digest(self.token or ""))
        if not (same and kind.lower() in ("bearer", "basic")):
            ask = {"www-authenticate": 'Basic realm="convscope: the token is the password", charset="UTF-8"'}
            raise Refusal(
                401, "Expected the server's token in the Authorization header, got none or another.", ask
            )


class Guard:
    """Lets through to the application what the gate allows and what keeps within the limits.

    A body is read whole before the application sees it, so that nothing slow or huge ever reaches it.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        limits: Limits,
        notice: Callable[[str, int, float], object],
    ) -> None:
        self._app, self._gate, self._limits, self._notice = app, gate, limits, notice
        self._held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer, body, size = time.perf_counter(), Reply(send), bytearray(), 0
        try:
            try:
                self._gate.require(scope["method"], scope["path"], scope["headers"])
                await self._read(scope["headers"], receive, body)
            except Refusal as refusal:
                await answer.refuse(refusal, receive)
            else:
                # HEAD is GET without the content, which the server leaves out.
                method = {"HEAD": "GET"}.get(scope["method"], scope["method"])
                replayed, size = _replay(bytes(body), receive), len(body)
                body.clear()  # it is not held twice
                await self._app({**scope, "method": method}, replayed, answer.send)
        finally:
            self._held -= size or len(body)
            self._notice(scope["path"], answer.status, time.perf_counter() - began)

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        """Read a body; refuse it as soon as it is certain that it is too large or too slow."""
        limits = self._limits
        declared, chunked = (_values(headers, name) for name in (b"content-length", b"transfer-encoding"))
        if not declared and not chunked:
            return
        if declared and chunked:  # of which a proxy may believe the other (RFC 9112, 6.1)
            raise Refusal(400, "Expected Content-Length or Transfer-Encoding, got both.")
        # That there is at most one, and that it is a number, the server has seen to.
        if declared and int(declared[0]) > limits.body:
            raise self._too_large()
        began, more = time.monotonic(), True
        while more:
            left = began + limits.seconds + len(body) / limits.bytes_per_second - time.monotonic()
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                found = f"{len(body):,} bytes after {time.monotonic() - began:.0f} s"
                raise Refusal(408, f"Expected a whole body, got {found}.") from None
            if message["type"] == "http.disconnect":
                raise Refusal(400, "Expected a whole body, got a part of one.")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(chunk) > limits.body:
                raise self._too_large()
            if self._held + len(chunk) > limits.memory:
                raise busy()
            self._held += len(chunk)
            body += chunk

    def _too_large(self) -> Refusal:
        return Refusal(413, f"Expected a body of at most {self._limits.body // 2**20} MB, got more.")


class Reply:
    """Passes an answer on, with the headers that each has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message["headers"]}
            more = [
                (name.encode(), value.encode())
                for name, value in _ALWAYS.items()
                if name.encode() not in given
            ]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def refuse(self, refusal: Refusal, receive: Receive) -> None:
        """Say why, and hang up."""
        body = json.dumps({"detail": refusal.detail}).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **refusal.headers,
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        # Whoever hangs up while the other is still sending takes the answer away from them.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await _throw_away(receive)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def busy() -> Refusal:
    """Refuse for now."""
    return Refusal(
        503, "Expected fewer requests at once, got too many. Try again soon.", {"retry-after": "1"}
    )


def content_security_policy(page: str) -> str:
    """Allow the scripts and styles that stand in a page, by their hashes, and requests to this server."""
    scripts, styles = (
        [
            f"'{source_hash(text)}'"
            for attributes, text in re.findall(rf"<{tag}\b([^>]*)>(.*?)</{tag}>", page, re.DOTALL)
            if "json" not in attributes  # data, which nothing runs
        ]
        for tag in ("script", "style")
    )
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src", *(scripts or ["'none'"])]),
            " ".join(["style-src", *(styles or ["'none'"])]),
            "worker-src blob:",
            "img-src data: blob:",
            "media-src blob: mediastream:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the application a body that has been read, and what comes after it."""
    waiting = [body]

    async def next_message() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return next_message


async def _throw_away(receive: Receive) -> None:
    size = 0
    while size < _LINGER_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
