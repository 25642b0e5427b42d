"""What every request passes before it is looked at: the host it names, its key, its pace, its size and its haste.

An ASGI application around another one, of the standard library alone. Nothing of a body is ever logged.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from leanwatt.keys import Keys
from leanwatt.pace import Pace
from leanwatt.wire import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/desk/", "/healthz")
"""For everybody: the page, which holds nothing, and whether the server is well."""
ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/tickets", "/v1/feedback", "/v1/energy"),
    *("/metrics", "/healthz", "/desk"),
)
DRAINED_BYTES = 16 * 1024 * 1024
"""So much of a body that is too large is still read, and thrown away, so that its sender reads the answer."""


@dataclass(frozen=True)
class Terms:
    """Who may ask, how often, and how much."""

    keys: Keys | None
    """None: no key is needed."""
    pace: Pace
    body_bytes: int
    read_seconds: float = 10.0
    """Within which a request's body must be here."""
    hosts: frozenset[str] | None = None
    """Names under which the server may be asked; None for any. On loopback this keeps web pages of others out, whose
    names may point here."""


@dataclass
class TurnedAway(Exception):
    """A request that goes no further."""

    status: int
    message: str
    kind: str
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


class Gate:
    """The application behind its terms; `seen` is told route, status and seconds of every request."""

    def __init__(self, app: App, terms: Terms, seen: Callable[[str, int, float], None]) -> None:
        self._app, self._terms, self._seen = app, terms, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, await self._admitted(scope, receive), watched)
        except TurnedAway as refusal:
            await _say(watched, refusal)
        except Exception as error:  # A bug: its kind for the operator, nothing for the client.
            print(f"leanwatt: a request failed: {type(error).__name__} {_where(error)}", file=sys.stderr)
            if not status:
                await _say(watched, TurnedAway(500, "The server failed on this request.", "server_error"))
        self._seen(route_of(scope["path"]), status or 499, time.monotonic() - begun)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """What the application receives, the body in one piece. Raises TurnedAway."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers.get("host", ""))
        if not _is_open(scope["path"]):
            client = self._client(headers.get("authorization", ""), scope)
            if wait := self._terms.pace.wait_seconds(client):
                said = f"More than {self._terms.pace.per_minute} requests a minute."
                raise TurnedAway(429, said, "rate_limit_error", "rate_limit_exceeded", (("retry-after", str(wait)),))
        if scope["method"] in ("GET", "HEAD"):
            return receive
        return _replayed(await self._body(receive), receive)

    def _check_host(self, named: str) -> None:
        hosts = self._terms.hosts
        name = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() else named
        if hosts is not None and name.lower() not in hosts:
            raise TurnedAway(403, "This server is not asked under that name.", "invalid_request_error", "unknown_host")

    def _client(self, authorization: str, scope: Scope) -> str:
        """Whose pace is counted: the key's owner, or without keys the address."""
        if self._terms.keys is None:
            return str((scope.get("client") or ("unknown",))[0])
        scheme, _, key = authorization.partition(" ")
        name = self._terms.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            said = "A key is needed, as `Authorization: Bearer ...`; this is none, or one that was removed."
            challenge = (("www-authenticate", "Bearer"),)
            raise TurnedAway(401, said, "authentication_error", "invalid_api_key", challenge)
        return name

    async def _body(self, receive: Receive) -> bytes:
        parts, size, most = [], 0, self._terms.body_bytes
        ends = time.monotonic() + self._terms.read_seconds
        more = True
        while more and size <= most + DRAINED_BYTES:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
            except TimeoutError:
                raise TurnedAway(408, "The body did not come in time.", "invalid_request_error", "timeout") from None
            if message["type"] == "http.disconnect":
                raise TurnedAway(400, "The body did not come to its end.", "invalid_request_error")
            size += len(message.get("body", b""))
            if size <= most:
                parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        if size > most:
            raise TurnedAway(413, f"At most {most} bytes are allowed.", "invalid_request_error", "request_too_large")
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


async def _say(send: Send, refusal: TurnedAway) -> None:
    body = json.dumps(problem(refusal.message, refusal.kind, refusal.code)).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), *refusal.headers]
    raw = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/desk/")


def route_of(path: str) -> str:
    """The route for metrics: one of a few, whatever is asked for."""
    return next((route for route in ROUTES if path == route or path.startswith(f"{route}/")), "other")


def _where(error: BaseException) -> str:
    """File and line of the deepest frame; no message, which may hold a ticket."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"({trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})" if trace else ""
