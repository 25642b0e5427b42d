"""Requests that wait together and are answered together: a bounded queue, and the one thread that asks the engine."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from leanwatt.contracts import Session
from leanwatt.errors import LeanwattError
from leanwatt.measurement import Energy
from leanwatt.question import Answer, Likelihood, Question

Heard = Callable[[str], None]


class BusyError(LeanwattError):
    """The queue is full, or closed; says in how many seconds to come back."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


@runtime_checkable
class Streams(Protocol):
    """A session that can tell what is written so far; one that cannot is heard when it has finished."""

    def stream(self, questions: Sequence[Question], heard: Mapping[int, Heard]) -> Sequence[Answer]:
        """As `answer`; `heard`, by place of the question, is told the whole text so far after every token."""
        ...


@runtime_checkable
class Mortal(Protocol):
    """A session that can be gone while the thread that asks it still runs."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        ...


class Window(Protocol):
    """What gives answers their energy: `leanwatt.attribution.Rolling`."""

    def add(self, *answers: Answer, seconds: float) -> None:
        """These have just ended, the slowest after `seconds`."""
        ...

    def shares(self, *parts: Sequence[Answer]) -> Sequence[Energy]:
        """What the answers of each part spent together."""
        ...


@dataclass(frozen=True)
class Rules:
    """How requests are put together."""

    most: int
    """Requests in one batch."""
    wait_seconds: float = 0.02
    """How long the first of a batch waits for others, when the engine is idle."""
    queue: int = 256
    """Requests that may wait; one more is sent away."""


@dataclass(frozen=True)
class Answered:
    """What came of one request."""

    answers: tuple[Answer, ...]
    energy: Energy
    """Of all of them: attributed; absent, with a flag that says why, before the sensors have seen enough."""
    queued_seconds: float
    seconds: float
    """From its arrival to its answer."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    questions: tuple[Question, ...]
    heard: Mapping[int, Heard]
    future: Future[Answered] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Characters to read: what a batch is padded to follows its longest."""
        return sum(len(q.text if isinstance(q, Likelihood) else q.prompt.body) for q in self.questions)


class Batcher:
    """Answers requests in batches: the one that waits longest, and those that are most like it in length.

    What was accepted is answered, also while it closes. One thread asks the engine; another hands out the answers, so
    that the engine has its next batch before they are sent.
    """

    def __init__(self, session: Session, window: Window, rules: Rules) -> None:
        """`session` and `window` are used by the engine's thread only."""
        self._session, self._window, self._rules = session, window, rules
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._batch_seconds = 1.0
        self.accepted = self.batches = 0
        self.answered = self.withdrawn = self.failed = 0
        """What became of the accepted: an answer, taken back before the engine began, an error."""
        self._handing = ThreadPoolExecutor(1, "answers")
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs, and the engine."""
        is_there = self._session.is_alive if isinstance(self._session, Mortal) else True
        return is_there and self._thread.is_alive()

    def account(self) -> str:
        """What became of the accepted, in words; who waits or is being answered is in no count but the first."""
        others = {"withdrawn": self.withdrawn, "failed": self.failed}
        rest = "".join(f"; {count} {what}" for what, count in others.items() if count)
        return f"Accepted {self.accepted} requests, and answered {self.answered}{rest}."

    def submit(self, questions: Sequence[Question], heard: Mapping[int, Heard] | None = None) -> Future[Answered]:
        """Accept a request; cancel the future to take it back while it waits. Raises BusyError."""
        with self._changed:
            if self._closing:
                raise BusyError("The server is stopping. Ask again when it is back.", 5)
            if len(self._queue) >= self._rules.queue:
                raise BusyError(f"{len(self._queue)} requests are waiting already. Ask again later.", self._retry())
            request = _Waiting(tuple(questions), heard or {})
            self._queue.append(request)
            self.accepted += 1
            self._changed.notify()
        request.future.add_done_callback(lambda done: self._withdraw(request) if done.cancelled() else None)
        return request.future

    def close(self) -> None:
        """Take nothing more, answer what was accepted, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._handing.shutdown()

    def _withdraw(self, request: _Waiting) -> None:
        """Its place is free for others at once."""
        with self._changed:
            self.withdrawn += 1
            if request in self._queue:
                self._queue.remove(request)

    def _retry(self) -> int:
        """Seconds until the queue should be empty, by the time that the latest batch took."""
        return max(1, min(60, math.ceil(len(self._queue) / self._rules.most * self._batch_seconds)))

    def _work(self) -> None:
        while taken := self._next():
            begun = time.monotonic()
            if batch := [each for each in taken if each.future.set_running_or_notify_cancel()]:
                self._answer(batch)
                self._batch_seconds = time.monotonic() - begun

    def _next(self) -> list[_Waiting]:
        """The next batch; empty when closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing or len(self._queue) >= self._rules.most:
                    return self._alike()
                left = self._queue[0].since + self._rules.wait_seconds - time.monotonic()
                if left <= 0:
                    return self._alike()
                self._changed.wait(left)  # Meanwhile all of them may be taken back.

    def _alike(self) -> list[_Waiting]:
        """The oldest is always among them, so that nobody waits for ever."""
        if len(self._queue) <= self._rules.most:
            taken = list(self._queue)
            self._queue.clear()
            return taken
        oldest = self._queue[0].size
        order = sorted(range(1, len(self._queue)), key=lambda place: abs(self._queue[place].size - oldest))
        chosen = {0, *order[: self._rules.most - 1]}
        taken = [each for place, each in enumerate(self._queue) if place in chosen]
        self._queue = deque(each for place, each in enumerate(self._queue) if place not in chosen)
        return taken

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """All at once; if that fails, one by one, so that one bad request harms no other."""
        begun = time.monotonic()
        try:
            answers = list(self._ask(batch))
            self._window.add(*answers, seconds=time.monotonic() - begun)
            parts = _parted(answers, batch)
            energies = self._window.shares(*parts)
        except Exception as error:  # A failure goes to those who wait for the answer; the thread goes on.
            if len(batch) > 1:
                for each in batch:
                    self._answer([each])
            else:
                self.failed += 1
                batch[0].future.set_exception(error)
            return
        self.batches += 1
        self._handing.submit(self._hand_out, batch, parts, energies, begun)

    def _hand_out(
        self,
        batch: Sequence[_Waiting],
        parts: Sequence[tuple[Answer, ...]],
        energies: Sequence[Energy],
        begun: float,
    ) -> None:
        for each, mine, energy in zip(batch, parts, energies, strict=True):
            self.answered += 1
            each.future.set_result(Answered(mine, energy, begun - each.since, time.monotonic() - each.since))

    def _ask(self, batch: Sequence[_Waiting]) -> Sequence[Answer]:
        questions = [question for each in batch for question in each.questions]
        starts, heard = 0, dict[int, Heard]()
        for each in batch:
            heard |= {starts + place: tell for place, tell in each.heard.items()}
            starts += len(each.questions)
        if heard and isinstance(self._session, Streams):
            return self._session.stream(questions, heard)
        return self._session.answer(questions)


def _parted(answers: Sequence[Answer], batch: Sequence[_Waiting]) -> list[tuple[Answer, ...]]:
    """To each request its own answers."""
    rest = iter(answers)
    parts = [tuple(next(rest) for _ in each.questions) for each in batch]
    if next(rest, None) is not None:
        raise RuntimeError("The engine gave more answers than it was asked questions.")
    return parts
