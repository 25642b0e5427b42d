"""The energy of a single answer: its share, by tokens, of a rolling window that is as long as the sensors need.

No sensor sees one answer among others. What it sees is a window: all that was spent while several answers were made.
Each answer that ended in the window gets the part that its tokens (of the prompt and generated, counted alike) have in
all tokens of the window, so that the shares of a window add up to it. Before there is such a window, and wherever the
window itself is unknown, an answer's energy is absent, and a flag says why.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, final

from leanwatt.measurement import Energy, Measurement, Reading, shortest_window_seconds
from leanwatt.question import Answer

LOOK_SECONDS: Final = 0.5
"""How often a server's window is moved on while nothing is answered."""
KEPT_SECONDS: Final = 120.0
"""So far back a window can always begin: longer than one answer takes."""
SPACING_SECONDS: Final = 0.25
SPACING: Final = 0.05
"""Readings closer than this share of the needed window are joined, so that memory does not grow with the traffic."""


@dataclass(frozen=True)
class _Mark:
    """What was read and counted so far, at one instant."""

    reading: Reading
    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    """The longest of the answers that ended here."""


@final
class Rolling:
    """A window over an open meter that moves on as answers end. Safe to use from several threads."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        """Begin to look. `read` is what a meter opens."""
        self._read = read
        self._lock = threading.Lock()
        self._marks = deque([_Mark(read())])

    def look(self) -> None:
        """Read the meter now: the window may begin here later on."""
        self.add()

    def add(self, *answers: Answer, seconds: float = 0.0) -> None:
        """These answers have just ended, the slowest after `seconds`: the window reaches at least as far back."""
        with self._lock:
            last = self._marks[-1]
            self._keep(
                _Mark(
                    self._read(),
                    last.answers + len(answers),
                    last.tokens_in + sum(answer.tokens_in for answer in answers),
                    last.tokens_out + sum(answer.tokens_out for answer in answers),
                    seconds,
                )
            )

    def share(self, *answers: Answer) -> Energy:
        """What these answers, which ended in the window just now, spent together; absent with a flag that says why."""
        [only] = self.shares(answers)
        return only

    def shares(self, *parts: Sequence[Answer]) -> list[Energy]:
        """The same for each part of a batch, all of them out of one window."""
        window = self.window()
        if window is None:
            unseen = Energy(None, flags=(f"no window yet: the sensors need {self.needed_seconds():.3g} s",))
            return [unseen for _ in parts]
        whole = replace(window.total, flags=tuple(sorted({*window.total.flags, *window.flags})))
        return [_share(whole, sum(map(_tokens, part)), window.tokens_in + window.tokens_out) for part in parts]

    def window(self) -> Measurement | None:
        """What was spent and answered in the latest window; None before it is as long as it must be."""
        with self._lock:
            end, begin = self._marks[-1], self._begin()
        if begin is None:
            return None
        return replace(
            Measurement.between("answer", begin.reading, end.reading),
            answers=end.answers - begin.answers,
            tokens_in=end.tokens_in - begin.tokens_in,
            tokens_out=end.tokens_out - begin.tokens_out,
        )

    def needed_seconds(self) -> float:
        """How long a window must be: 50 periods of the slowest sensor; 0 where figures are estimates."""
        devices = self._marks[-1].reading.devices.values()
        return max((shortest_window_seconds(counter.period_seconds) for counter in devices), default=0.0)

    def _begin(self) -> _Mark | None:
        """The latest mark before which neither the sensors nor the answers in between need to look."""
        end, slowest = self._marks[-1], 0.0
        needed = self.needed_seconds()
        for mark, after in zip(list(self._marks)[-2::-1], list(self._marks)[::-1], strict=False):
            slowest = max(slowest, after.seconds)
            age = end.reading.at_seconds - mark.reading.at_seconds
            if age > 0 and age >= max(needed, slowest):
                return mark
        return None

    def _keep(self, mark: _Mark) -> None:
        spacing = max(SPACING_SECONDS, SPACING * self.needed_seconds())
        marks, now = self._marks, mark.reading.at_seconds
        if len(marks) > 1 and now - marks[-2].reading.at_seconds < spacing:
            mark = replace(mark, seconds=max(mark.seconds, marks.pop().seconds))
        marks.append(mark)
        kept = max(KEPT_SECONDS, 2 * self.needed_seconds())
        while len(marks) > 2 and now - marks[1].reading.at_seconds > kept:
            marks.popleft()


def _share(whole: Energy, tokens: int, all_tokens: int) -> Energy:
    if not all_tokens:
        return Energy(None, flags=(*whole.flags, "no tokens to share by"))
    if tokens > all_tokens:
        return Energy(None, flags=(*whole.flags, "not in the window: ask as soon as the answer is there"))
    return whole.share(tokens / all_tokens)


def _tokens(answer: Answer) -> int:
    return answer.tokens_in + answer.tokens_out


@contextmanager
def rolling(read: Callable[[], Reading], every_seconds: float = LOOK_SECONDS) -> Iterator[Rolling]:
    """A window that moves on by itself, for a server: after an hour of waiting, no answer is charged for that hour."""
    window, stop = Rolling(read), threading.Event()

    def look() -> None:
        while not stop.wait(every_seconds):
            window.look()

    thread = threading.Thread(target=look, name="leanwatt-rolling", daemon=True)
    thread.start()
    try:
        yield window
    finally:
        stop.set()
        thread.join()
