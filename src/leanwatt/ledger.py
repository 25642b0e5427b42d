"""The ledger of a job: what each of its stages cost, kept even when the stage fails."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from leanwatt.measurement import Measurement, Reading
from leanwatt.question import Answer


@dataclass
class Tally:
    """What a stage got done, for joules per answer and per token."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, answers: list[Answer]) -> None:
        """Count answers and their tokens."""
        self.answers += len(answers)
        self.tokens_in += sum(answer.tokens_in for answer in answers)
        self.tokens_out += sum(answer.tokens_out for answer in answers)


@dataclass
class Ledger:
    """Collects measurements of one open meter."""

    read: Callable[[], Reading]
    measurements: list[Measurement] = field(default_factory=list)
    idle_watts: Mapping[str, float] = field(default_factory=dict)
    """Per device, read in the same round."""
    _parts: dict[str, tuple[float, float]] | None = None
    """Of the open stage, by name: seconds and CPU-seconds so far; None while no stage is open."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Tally]:
        """Measure what the block inside spends, even if it fails: its joules are gone all the same.

        A stage inside a stage is a part of it (`within`), however often it is entered. Parts are too short for
        sensors: a part gets the share of the stage's energy that it has in its CPU time.
        """
        tally, begin = Tally(), self.read()
        if self._parts is not None:
            try:
                yield tally
            finally:
                self._add_part(name, begin, self.read())
            return
        self._parts = {}
        try:
            yield tally
        finally:
            spent = Measurement.between(name, begin, self.read())
            counted = replace(spent, answers=tally.answers, tokens_in=tally.tokens_in, tokens_out=tally.tokens_out)
            whole = replace(counted, idle_watts=self.idle_watts)
            parts, self._parts = self._parts, None
            self.measurements += [whole.part(*part) for part in parts.items()]
            self.measurements.append(whole)

    def _add_part(self, name: str, begin: Reading, end: Reading) -> None:
        assert self._parts is not None
        seconds, cpu_seconds = self._parts.get(name, (0.0, 0.0))
        more = (end.at_seconds - begin.at_seconds, end.cpu_seconds - begin.cpu_seconds)
        self._parts[name] = (seconds + more[0], cpu_seconds + more[1])

    def rename_last(self, name: str) -> None:
        """Give the latest measurement another stage."""
        self.measurements[-1] = replace(self.measurements[-1], stage=name)

    def reuse(self, spent: list[Measurement]) -> None:
        """Charge what an earlier trial spent on a shared prefix."""
        self.measurements += [replace(each, reused=True) for each in spent]
