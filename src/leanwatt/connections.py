"""How long a connection may be held without asking, and how many there may be: uvicorn itself limits neither.

No key is known before a request's head is here, so this is all that keeps strangers from using up the descriptors.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Within which a request's head must be here, from the connection's beginning or the end of the answer before."""
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, most: int, **more: Any) -> None:
        """`most`: when there are more connections, this one is told so and closed; those that are open go on."""
        super().__init__(*args, **more)
        self._most = most
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As its parent; and the time runs."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._most:
            transport.write(FULL)
            transport.close()

    def on_response_complete(self) -> None:
        """As its parent; and the time runs anew."""
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """As its parent."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._end)

    def _end(self) -> None:
        """Unless a request is being answered: its body and its answer have limits of their own."""
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()
