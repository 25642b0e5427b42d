"""What is done, what runs and what can start: the order of a study's jobs, told from its records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from leanwatt.cache import is_whole
from leanwatt.jobs import LOST, UNWATCHED, Attempt, Bench, Conditions, Turn
from leanwatt.recipe import Trial
from leanwatt.record import Job, Record, record_id
from leanwatt.store import Store
from leanwatt.variants import stage_keys

Wanted = Callable[[Sequence[Trial]], Trial | None]
"""The next trial to be tried, given those that are being tried; None where none is wanted now."""


@dataclass(frozen=True)
class Agenda:
    """Of one run of a study."""

    bench: Bench
    store: Store
    retry: bool = False
    """Try failed and refused jobs again, once in this run."""
    ended: set[str] = field(default_factory=set)
    """Records of this run."""
    running: dict[str, Turn] = field(default_factory=dict)
    """By the record that each will end in."""
    _keys: dict[str, frozenset[str]] = field(default_factory=dict)

    def turn(self, job: Job, trial: Trial, number: int = 0, conditions: Conditions = UNWATCHED) -> Turn:
        """The next attempt of a job."""
        tried = self._attempts(job, trial, number)
        journal = self.store.journal(record_id(job, trial, number, tried))
        return Turn(Attempt(self.bench, job, number, tried, conditions, journal), trial)

    def trying(self, wanted: Wanted) -> Iterator[Turn | None]:
        """Make, then grade, one wanted trial after the other; None while all that is left waits for what runs.

        As many are begun as are asked for at once: a trial that was begun goes on before another one begins.
        """
        begun: dict[str, Trial] = {}
        while True:
            begun = {name: trial for name, trial in begun.items() if self._next_job(trial) is not None}
            turn = next((found for trial in begun.values() if (found := self._startable(trial))), None)
            if turn is None and (trial := wanted(list(begun.values()))) is not None:
                begun[trial.id] = trial
                continue
            if turn is None and not self.running:
                return
            yield turn

    def _startable(self, trial: Trial) -> Turn | None:
        """The next job of a trial, unless it runs already or has to wait for another one."""
        job = self._next_job(trial)
        if job is None or (job == "make" and self._is_made_beside(trial)):
            return None
        turn = self.turn(job, trial)
        return None if turn.record_id in self.running else turn

    def _next_job(self, trial: Trial) -> Job | None:
        """None where it is over: graded, or failed on the way."""
        if not trial.is_baseline and not self.has("make", trial):
            return "make"
        is_ready = trial.is_baseline or self.is_done("make", trial)
        return "grade" if is_ready and not self.has("grade", trial) else None

    def _is_made_beside(self, trial: Trial) -> bool:
        """A stage that it needs, beyond the base, is being made right now: it waits, and takes the finished one."""
        making = [turn.trial for turn in self.running.values() if turn.attempt.job == "make"]
        common = self._stages(trial) & frozenset().union(*map(self._stages, making))
        return bool(common - self._made(common))

    def _made(self, keys: frozenset[str]) -> set[str]:
        if not keys:
            return set()
        done = [r.trial for r in self.store.records() if r.job == "make" and r.status == "done"]
        recorded = keys & frozenset().union(*map(self._stages, done))
        return {*recorded, *(key for key in keys if is_whole(self.store.variants / key))}

    def _stages(self, trial: Trial) -> frozenset[str]:
        """Keys of the stages after the base."""
        variant = trial.variant
        if variant.id not in self._keys:
            base = self.bench.bases[variant.recipe.base, variant.recipe.revision]
            self._keys[variant.id] = frozenset(stage_keys(variant, base)[1:])
        return self._keys[variant.id]

    def _attempts(self, job: Job, trial: Trial, number: int = 0) -> int:
        """How often this was tried."""
        tried = 0
        while record_id(job, trial, number, tried) in self.store:
            tried += 1
        return tried

    def last(self, job: Job, trial: Trial, number: int = 0) -> Record | None:
        """The newest attempt."""
        tried = self._attempts(job, trial, number)
        return self.store.get(record_id(job, trial, number, tried - 1)) if tried else None

    def is_done(self, job: Job, trial: Trial, number: int = 0) -> bool:
        """The newest attempt went well."""
        last = self.last(job, trial, number)
        return last is not None and last.status == "done"

    def has(self, job: Job, trial: Trial, number: int = 0) -> bool:
        """Nothing is left to do: it is done, or failed and is not to be tried again; a failed make ends the trial."""
        if job == "grade" and not trial.is_baseline:
            made = self.last("make", trial)
            if made is not None and made.status != "done" and not self._goes_again(made):
                return True
        last = self.last(job, trial, number)
        return last is not None and (last.status == "done" or not self._goes_again(last))

    def _goes_again(self, failed: Record) -> bool:
        """Because the user asks for it, once a run; or because its worker was lost, and for the first time."""
        return self.is_lost_once(failed) or (self.retry and failed.id not in self.ended)

    def is_lost_once(self, record: Record) -> bool:
        """Its worker was lost, and that of the attempt before was not."""
        if record.status == "done" or not record.facts.get(LOST):
            return False
        before = record.attempt - 1
        return before < 0 or not self.store.get(record.again(before).id).facts.get(LOST)
