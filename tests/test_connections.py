"""Connections by bare sockets: who does not ask in time is cut off, who is one too many is told so."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn

from leanwatt.connections import Connection

ASK = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEAD = 0.4


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers without looking at the body; /slow after twice the time in which a head must be here."""
    await asyncio.sleep(2 * HEAD if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], socket.socket]]:
    """Opens connections to a server that takes three."""
    monkeypatch.setattr("leanwatt.connections.HEAD_SECONDS", HEAD)
    http: Any = partial(Connection, most=3)
    server = uvicorn.Server(uvicorn.Config(application, port=0, http=http, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    address, made = server.servers[0].sockets[0].getsockname(), list[socket.socket]()

    def connect() -> socket.socket:
        made.append(socket.create_connection(address, timeout=10))
        return made[-1]

    yield connect
    for each in made:
        each.close()
    server.should_exit = True
    thread.join(10)


def answer(line: socket.socket, path: bytes = b"/") -> bytes:
    """To a whole request."""
    line.sendall(ASK.replace(b"/", path, 1))
    said = b""
    while not said.endswith(b"ok") and (more := line.recv(4096)):
        said += more
    return said


def rest(line: socket.socket) -> bytes:
    """All until it is closed."""
    return b"".join(iter(lambda: line.recv(4096), b""))


@pytest.mark.parametrize("begun", [b"", ASK[:20], b"POST / HTTP/1.1\r\n"])
def test_a_head_that_is_not_here_in_time_ends_the_connection(begun: bytes, connected: Callable[[], Any]) -> None:
    line, at = connected(), time.monotonic()
    line.sendall(begun)
    assert rest(line) == b""
    assert HEAD <= time.monotonic() - at < 5


def test_one_byte_now_and_then_does_not_help(connected: Callable[[], Any]) -> None:
    line, at = connected(), time.monotonic()
    with pytest.raises(OSError):
        for byte in ASK[:-1] * 10:
            line.sendall(bytes([byte]))
            time.sleep(HEAD / 10)
    assert HEAD <= time.monotonic() - at < 5


@pytest.mark.parametrize("second", [ASK[:20], b""])
def test_the_second_head_must_be_in_time_too(second: bytes, connected: Callable[[], Any]) -> None:
    line = connected()
    assert answer(line).startswith(b"HTTP/1.1 200")
    line.sendall(second)
    at = time.monotonic()
    rest(line)
    assert time.monotonic() - at < 5


def test_a_body_that_still_trickles_after_the_answer_does_not_hold_the_connection(
    connected: Callable[[], Any],
) -> None:
    line, at = connected(), time.monotonic()
    line.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n")
    with pytest.raises(OSError):
        for _ in range(1000):
            line.sendall(b"x")
            time.sleep(HEAD / 10)
    assert HEAD <= time.monotonic() - at < 5


def test_a_slow_answer_is_waited_for_and_the_next_request_has_its_full_time(connected: Callable[[], Any]) -> None:
    line = connected()
    for _ in range(3):
        assert answer(line, b"/slow").startswith(b"HTTP/1.1 200")
        time.sleep(HEAD / 2)


def test_one_connection_too_many_is_a_503_and_the_others_go_on(connected: Callable[[], Any]) -> None:
    lines = [connected() for _ in range(3)]
    for line in lines:
        assert answer(line).startswith(b"HTTP/1.1 200")
    extra = connected()
    assert rest(extra).startswith(b"HTTP/1.1 503")
    for line in lines:
        assert answer(line).startswith(b"HTTP/1.1 200")
    lines.pop().close()
    time.sleep(0.1)
    assert answer(connected()).startswith(b"HTTP/1.1 200"), "there is room again"
