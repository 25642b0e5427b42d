"""Sensors over HTTP, asked on a thread of their own so that no measurement ever waits for a network."""

import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any, Final, Generic, TypeVar, final
from urllib.parse import urlsplit

from leanwatt.errors import MeterError
from leanwatt.measurement import Counter, SourceStatus
from leanwatt.meter._totals import CounterTotal, PowerTotal, median_gap

TIMEOUT_SECONDS: Final = 2.0
MOST_BYTES: Final = 8 << 20
"""No sensor's answer is larger; a server that sends more is not one."""
STALE_ROUNDS: Final = 3
"""A value may be held for so many rounds of asking; then it is lost."""
PERIODS_KEPT: Final = 20

T = TypeVar("T")


class UnreadableError(Exception):
    """The sensor gave no value. Its text is the flag: `unauthorized`, `unreachable`, `http_503`, `garbled`, ..."""


@dataclass(frozen=True)
class Endpoint:
    """One address to ask, with the credentials that the environment holds for it."""

    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    certificate: str = ""

    def get(self) -> Any:
        """The JSON that the server answers. Raises UnreadableError; no text of it ever holds a credential."""
        try:
            with self._opener().open(self.url, timeout=TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            raise UnreadableError("unauthorized" if error.code in (401, 403) else f"http_{error.code}") from None
        except (OSError, HTTPException):
            raise UnreadableError("unreachable") from None
        except ValueError:
            raise UnreadableError("garbled") from None

    def _opener(self) -> urllib.request.OpenerDirector:
        """Answers a challenge for a password, basic or digest; follows no redirect, which could carry it elsewhere."""
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if self.user:
            passwords.add_password(None, self.url, self.user, self.password)
        return urllib.request.build_opener(
            _NoRedirect,
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.HTTPDigestAuthHandler(passwords),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.certificate or None)),
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def require_url(url: str) -> None:
    """Refuse what is no plain address of a web server: raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url must start with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise ValueError("url must hold no user or password; put them into the environment (see the meter's page)")


def unasked(source: str, settings: str) -> SourceStatus:
    """What `doctor` shows of a meter that is asked over a network: nothing is asked until it is given an address."""
    example = f"{{{source}: {{{settings}}}}}"
    return SourceStatus(
        source,
        "absent",
        "no address is given",
        f"leanwatt doctor --meter '{example}', and the same in a study's `meter`",
    )


def endpoint(url: str, name: str, certificate: str = "") -> Endpoint:
    """The endpoint, with LEANWATT_<name>_USER and LEANWATT_<name>_PASSWORD of the environment."""
    user, password = (os.environ.get(f"LEANWATT_{name}_{what}", "") for what in ("USER", "PASSWORD"))
    return Endpoint(url, user, password, certificate)


@dataclass(frozen=True)
class Polled(Generic[T]):
    """The last answer of a sensor."""

    number: int
    """Counts the answers; 0 before the first."""
    at_seconds: float
    value: T | None
    flag: str = ""
    """Why there is no value."""


@final
class Poller(Generic[T]):
    """Asks a sensor again and again, on a daemon thread; what it said last can be had at once."""

    def __init__(self, ask: Callable[[], T], every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._ask = ask
        self._last: Polled[T] = Polled(0, time.monotonic(), None, "unreachable")
        self._first = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leanwatt-poller", daemon=True)
        self._thread.start()

    def first(self, what: str) -> T:
        """Wait for the first answer. Raises MeterError, and stops asking, if there is none."""
        self._first.wait(TIMEOUT_SECONDS + 0.5)
        if self._last.value is None:
            self.close()
            raise MeterError(f"meter: {what} gives no value ({self._last.flag}). Check url, credentials and network.")
        return self._last.value

    def last(self) -> Polled[T]:
        """The last answer."""
        return self._last

    def close(self) -> None:
        """Stop asking. A question that is still out is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            value, flag = None, ""
            try:
                value = self._ask()
            except UnreadableError as error:
                flag = str(error)
            self._last = Polled(self._last.number + 1, time.monotonic(), value, flag)
            self._first.set()
            self._stop.wait(self.every_seconds)


@final
class PolledSource:
    """One device whose power, or whose energy counter, is asked over a network."""

    of_process = False

    def __init__(self, poller: Poller[float], total: PowerTotal | CounterTotal) -> None:
        self._poller = poller
        self._total = total
        self._number = 0
        self._value: float | None = None
        self._good_at = time.monotonic()
        self._changes: list[float] = []

    def tick(self, now: float, stopped: bool) -> None:
        """Take what was answered last; hold a value for a few rounds, then it is lost."""
        polled = self._poller.last()
        if polled.number != self._number:
            self._number = polled.number
            self._take(polled)
        held = now - self._good_at <= STALE_ROUNDS * self._poller.every_seconds + TIMEOUT_SECONDS
        value = self._value if held else None
        if isinstance(self._total, PowerTotal):
            self._total.add(now, value, stopped=stopped)
        else:
            steps = None if value is None else round(value / self._total.device.joules_per_step)
            self._total.add(now, steps, stopped=stopped)

    def slow_tick(self, now: float) -> None:
        """The poller has a thread of its own."""

    def counters(self) -> Mapping[str, Counter]:
        """The total."""
        return {self._total.device.name: self._total.counter()}

    def close(self) -> None:
        """Stop asking."""
        self._poller.close()

    def _take(self, polled: Polled[float]) -> None:
        if polled.value is None:
            self._total.note(polled.flag)
            return
        if polled.value != self._value:
            self._changes = [*self._changes, polled.at_seconds][-PERIODS_KEPT:]
            self._learn_period()
        self._value, self._good_at = polled.value, polled.at_seconds

    def _learn_period(self) -> None:
        """The sensor's period is how long its value stands still, and no less than our own round."""
        period = max(self._poller.every_seconds, median_gap(self._changes) or 0.0)
        self._total.device = replace(self._total.device, period_seconds=period)
