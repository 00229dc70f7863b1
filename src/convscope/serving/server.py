"""The socket and the process: where the server listens, how long it waits for anybody, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from convscope.errors import UsageError, expected_got, reason
from convscope.serving.guard import App, Receive, Reply, Scope, Send, busy

# A request's head has to be there after so long, and somebody has to take the answer.
HEAD_SECONDS, ANSWER_SECONDS, KEEP_ALIVE_SECONDS = 10.0, 30.0, 15
# What has been accepted has so long after SIGTERM, and after Ctrl-C, where somebody sits and waits.
DRAIN_SECONDS, INTERRUPT_SECONDS = 60.0, 1.0
# Fewer than the files that a process may open, of which the usual limit is 1,024.
CONNECTIONS = 500


def open_socket(host: str, port: int) -> socket.socket:
    """Reserve an address; nothing is answered before the server runs."""
    if not 0 <= port <= 65_535:
        raise UsageError(expected_got("a port from 0 to 65,535", port))
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(expected_got("the name or address of this machine as --host", repr(host))) from error
    opened = socket.socket(family, kind)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(CONNECTIONS)
        opened.set_inheritable(False)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            hint = "Choose another with --port, or 0 for any that is free."
            raise UsageError(
                expected_got(f"port {port} to be free", "another program that listens there", hint)
            ) from error
        raise UsageError(
            expected_got(f"to be able to listen at {host}, port {port}", error.strerror or reason(error))
        ) from error
    return opened


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(opened.getsockname()[0]).is_loopback


def serve(app: App, opened: socket.socket, ready: Callable[[], object] = lambda: None) -> None:
    """Serve until the process is told to end; what has been accepted is answered first.

    ``ready`` is called when requests are answered.
    """

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # told to end, which is no error of the application
            await app(scope, receive, send)

    config = uvicorn.Config(
        quiet,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        log_level="error",  # what strangers send is none of the user's business
        server_header=False,
        proxy_headers=False,  # anybody could send them
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=32 * 2**10,
    )
    _Server(config, ready).run([opened])


class _Server(uvicorn.Server):
    """Ends as it is told, and says when it is ready; a signal that ended it well is not raised again.

    A second signal ends it at once: connections are closed, whatever is asked on them.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        self._captured_signals.append(sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        hanging_up = asyncio.create_task(self._hang_up())
        await super().shutdown(sockets)
        hanging_up.cancel()

    async def _hang_up(self) -> None:
        interrupted = signal.SIGINT in self._captured_signals
        end = time.monotonic() + (INTERRUPT_SECONDS if interrupted else DRAIN_SECONDS)
        while time.monotonic() < end and len(self._captured_signals) < 2:
            await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """Hangs up on whoever sends the head of a request too slowly, or does not take an answer."""

    _waiting: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.app = _turn_away
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None and self._is_between():
            self._waiting = self.loop.call_later(HEAD_SECONDS, self._give_up)
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self._waiting is not None and not self._is_between():
            self._waiting.cancel()
            self._waiting = None

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # there is an answer already: what comes after it need not make sense
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._waiting, self._stuck):
            if timer is not None:
                timer.cancel()

    def _is_between(self) -> bool:
        """Whether no request is in work."""
        return self.cycle is None or self.cycle.response_complete

    def _give_up(self) -> None:
        self._waiting = None
        if self._is_between():
            self.transport.abort()


async def _turn_away(_scope: Scope, receive: Receive, send: Send) -> None:
    await Reply(send).refuse(busy(), receive)


def address_of(opened: socket.socket, host: str = "") -> str:
    """Write where a server is found, as a browser takes it."""
    found: tuple[Any, ...] = opened.getsockname()
    name = host or found[0]
    return f"http://{f'[{name}]' if ':' in name else name}:{found[1]}"
