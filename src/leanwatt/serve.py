"""The server: a winner behind an OpenAI-compatible API and a page, opened, run and stopped."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from leanwatt import catalog
from leanwatt.attribution import rolling
from leanwatt.batching import Batcher, Rules
from leanwatt.errors import StudyError, UserError
from leanwatt.feedback import Feedback
from leanwatt.gate import Gate, Terms
from leanwatt.gauges import Gauges
from leanwatt.keys import Keys
from leanwatt.machine import describe
from leanwatt.offer import Offer
from leanwatt.pace import Pace
from leanwatt.promise import Books
from leanwatt.remote import Opening, Remote
from leanwatt.routes import Desk, application
from leanwatt.serving import LOOPBACK, Settings

SPARE_CONNECTIONS = 256
"""As many connections as requests may wait, and so many more: for those being answered, and those between requests."""


def open_to(settings: Settings) -> Keys | None:
    """The keys that are asked for; None where none are needed. Raises StudyError where others could ask without."""
    keys = Keys(settings.keys) if settings.keys is not None else None
    if keys is not None and keys.names():
        return keys
    if not settings.is_local:
        raise StudyError(
            f"serve: {settings.host} can be reached by others, and there are no keys in {settings.keys}. "
            "Add one first: leanwatt keys add NAME."
        )
    return None


@contextmanager
def opened(offer: Offer, settings: Settings) -> Iterator[tuple[Gate, Batcher]]:
    """The application, its engine warm; at the end everything that was accepted is answered."""
    keys = open_to(settings)
    feedback = Feedback(settings.ratings, settings.rating_days) if settings.ratings is not None else None
    batch = settings.batch or offer.trial.batch
    warm = tuple(offer.form.about("a ticket to warm up with").values())
    opening, encoder = Opening(offer.trial.engine, offer.artifact, batch, warm), offer.encoder()
    with catalog.build(offer.meter).open() as read, Remote(opening) as session, rolling(read) as window:
        batcher = Batcher(session, window, Rules(batch, settings.wait_seconds, settings.queue))
        books = Books(offer.promise, describe().get("id"))
        gauges = Gauges(batcher, books, session.process_id)
        desk = Desk(
            *(offer, encoder, batcher, books, gauges, feedback),
            *(settings.most_tokens, settings.timeout_seconds),
        )
        hosts = frozenset({*LOOPBACK, "[::1]"}) if settings.is_local else None
        terms = Terms(keys, Pace(settings.per_minute), settings.body_bytes, hosts=hosts)
        try:
            yield Gate(application(desk, batcher.close), terms, gauges.seen), batcher
        finally:
            batcher.close()


def serve(offer: Offer, settings: Settings, told: Callable[[str], None] = lambda line: None) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept nothing more, answer what was accepted, and return."""
    import uvicorn

    from leanwatt.connections import Connection

    listening = _listening(settings)
    with listening, opened(offer, settings) as (gate, batcher):
        config = uvicorn.Config(
            gate,
            http=cast("type[asyncio.Protocol]", partial(Connection, most=settings.queue + SPARE_CONNECTIONS)),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
        )
        server = uvicorn.Server(config)
        _listen(listening, config.backlog, settings)  # From here on, who connects is served.
        host, port = listening.getsockname()[:2]
        told(f"Serving {offer.trial.label} as '{offer.name}' on http://{f'[{host}]' if ':' in host else host}:{port}/")
        with _ended_by_signals(server):
            server.run(sockets=[listening])
        told(f"Stopped. {batcher.account()}")


def _listening(settings: Settings) -> socket.socket:
    """Bound, so that a wrong address is told before the engine loads. Raises UserError where it cannot be had."""
    kind = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise _unusable(settings, error) from error
    return listening


def _listen(listening: socket.socket, backlog: int, settings: Settings) -> None:
    """Raises UserError where another server, which began to load at the same time, was quicker."""
    try:
        listening.listen(backlog)
    except OSError as error:
        raise _unusable(settings, error) from error


def _unusable(settings: Settings, error: OSError) -> UserError:
    said = f"serve: {settings.host}:{settings.port} cannot be used ({error.strerror})."
    return UserError(f"{said} Choose another --port or --host.")


@contextmanager
def _ended_by_signals(server: Any) -> Iterator[None]:
    """The server stops at these signals, and raises them again once it has: by then there is nothing left to end."""

    def stop(_number: int, _frame: Any) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
