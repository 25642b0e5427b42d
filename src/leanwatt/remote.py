"""A session in a process of its own: who asks and what computes never wait for each other's turn in Python.

A crash of the engine ends that process alone. Whose questions it was asked are told so, and it is started anew.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, final

from leanwatt import catalog
from leanwatt.batching import Heard, Streams
from leanwatt.contracts import Session
from leanwatt.errors import LeanwattError
from leanwatt.meter._tree import watched
from leanwatt.processes import GRACE_SECONDS, Raised, cause, end_with_parent, or_raise, raised, start
from leanwatt.question import Answer, Question
from leanwatt.recipe import Choice


class EngineDiedError(LeanwattError):
    """The engine's process ended while it answered."""


@dataclass(frozen=True)
class Opening:
    """What is opened there."""

    engine: Choice
    artifact: Path
    batch: int
    warm: Sequence[Question] = ()
    """Asked first: the first answer pays for what later ones do not."""


@final
class Remote:
    """Asked by one thread at a time. The CPU time of its process is counted as ours while it runs."""

    def __init__(self, opening: Opening) -> None:
        """Raises what opening the engine raises."""
        self._opening = opening
        self._life = _Life(opening)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._life.end()

    @property
    def facts(self) -> Mapping[str, Any]:
        """As the engine tells them."""
        return self._life.facts

    @property
    def is_alive(self) -> bool:
        """Whether its process runs. One that died while nobody asked is started by the next question."""
        return self._life.is_alive

    def process_id(self) -> int:
        """Of the engine as it runs now."""
        return self._life.process_id

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """As the session there. Raises EngineDiedError."""
        return self.stream(questions, {})

    def stream(self, questions: Sequence[Question], heard: Mapping[int, Heard]) -> Sequence[Answer]:
        """As the session there, whose answers are heard at once where it cannot stream. Raises EngineDiedError."""
        if not self.is_alive:
            self._anew()
        try:
            outcome = self._life.ask(questions, heard)
        except (EOFError, OSError):
            raise EngineDiedError(self._anew()) from None
        answers: Sequence[Answer] = or_raise(outcome)
        return answers

    def _anew(self) -> str:
        """Another life; says how the last one ended."""
        said = self._life.end()
        print(f"leanwatt: {said}. It is started anew.", file=sys.stderr, flush=True)
        self._life = _Life(self._opening)
        return said


@final
class _Life:
    """One process, from its start to its end."""

    def __init__(self, opening: Opening) -> None:
        context = multiprocessing.get_context("spawn")  # A copy of a process with threads may never wake.
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, opening), name="leanwatt-engine", daemon=True)
        start(self._process)
        theirs.close()
        self.process_id = int(self._process.pid or 0)
        self._held = ExitStack()
        self._held.callback(self._pipe.close)
        self._held.enter_context(watched(self.process_id))
        try:
            self.facts: Mapping[str, Any] = or_raise(self._pipe.recv())
        except EOFError:
            raise EngineDiedError(self.end()) from None
        except BaseException:  # Refused, or Ctrl-C while it loads: nobody waits for it.
            self._process.kill()
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        return not wait([self._process.sentinel], 0)

    def ask(self, questions: Sequence[Question], heard: Mapping[int, Heard]) -> Sequence[Answer] | Raised:
        """Raises EOFError or OSError where the process has ended; what the engine raised is given back."""
        self._pipe.send((list(questions), frozenset(heard)))
        while isinstance(said := self._pipe.recv(), _Said):
            heard[said.place](said.text)
        outcome: Sequence[Answer] | Raised = said
        return outcome

    def end(self) -> str:
        """Let it finish what it does, and reap it; says how it ended. Once for each life."""
        with suppress(OSError):  # It has ended by itself.
            self._pipe.send(None)
        self._process.join(GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._held.close()
        return f"The engine's process ended with {cause(self._process.exitcode)}"


@dataclass(frozen=True)
class _Said:
    """What is written so far to one question."""

    place: int
    text: str


def _work(pipe: Connection, opening: Opening) -> None:
    """Signals are for the parent: whatever is to end the server, what it accepted is answered first."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    end_with_parent()
    try:
        with catalog.build(opening.engine).open(opening.artifact, opening.batch) as session:
            session.answer(opening.warm)
            pipe.send(dict(session.facts))
            while (asked := pipe.recv()) is not None:
                questions, heard = asked
                pipe.send(_answered(session, questions, heard, pipe.send))
    except EOFError:
        return  # The parent is gone.
    except Exception as error:  # It could not be opened: raised in the parent.
        pipe.send(raised(error))


def _answered(
    session: Session, questions: Sequence[Question], heard: frozenset[int], send: Callable[[_Said], None]
) -> Sequence[Answer] | Raised:
    def tell(place: int) -> Heard:
        return lambda text: send(_Said(place, text))

    try:
        if heard and isinstance(session, Streams):
            return session.stream(questions, {place: tell(place) for place in heard})
        return session.answer(questions)
    except Exception as error:  # One batch's failure is raised where it was asked.
        return raised(error)
