"""The whole flow, on one page.

Study - check - search - [make, grade] each trial that is missing - weigh in rounds - rank - confirm on test - report.
Every job runs through the executor and ends in a record, so a run that was killed goes on where it stood.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from leanwatt import catalog
from leanwatt.account import WALL
from leanwatt.budget import Budget
from leanwatt.cache import Cache
from leanwatt.contracts import Executor, Search, WorkerDied
from leanwatt.errors import StudyError
from leanwatt.idle import idle
from leanwatt.jobs import UNWATCHED, Attempt, Bench, Conditions, died
from leanwatt.rank import rank, with_interrupted
from leanwatt.ranking import Ranking
from leanwatt.recipe import Trial
from leanwatt.record import Job, Record, record_id
from leanwatt.store import Store
from leanwatt.sweet_spot import next_candidates

Notice = Callable[[Record], None]
"""Told of every new record."""


@dataclass(frozen=True)
class Flow:
    """One run of a study that was checked (plan.py)."""

    bench: Bench
    space: list[Trial]
    store: Store
    notice: Notice
    retry: bool = False
    """Try failed and refused jobs again, as new attempts."""
    budget: Budget | None = None
    """None never ends the search."""

    def run(self) -> Ranking:
        """Make, grade, weigh, rank and confirm all that is missing. Raises StudyError where a base has changed."""
        self._refuse_changed_bases()
        self._cache.sweep()
        for trial in self._missing_trials():
            self.try_out(trial)
        for number in range(self.bench.study.protocol.rounds):
            self._weigh(number)
        return self._confirm()

    def try_out(self, trial: Trial) -> None:
        """Make and grade one trial, if that is still to be done."""
        self._do("make", [trial] if not trial.is_baseline else [])
        self._cache.trim(self._needed(trial))
        if trial.is_baseline or self._is_done("make", trial):
            self._do("grade", [trial])

    @property
    def _cache(self) -> Cache:
        most = self.bench.study.cache_gb
        return Cache(self.bench.folder / "variants", None if most is None else most * 1e9)

    def _needed(self, trial: Trial) -> list[Path]:
        """Variants that are still to be graded, weighed or confirmed: of this trial, and of all that are ranked."""
        if self.bench.study.cache_gb is None:
            return []
        ranked = [each for each in self.space if not each.is_baseline and self._is_done("grade", each)]
        return [self.bench.artifact(each) for each in (trial, *ranked) if not each.is_baseline]

    def _refuse_changed_bases(self) -> None:
        for trial in self.space:
            made = None if trial.is_baseline else self._last("make", trial)
            if made is not None and made.artifact is not None:
                now = self.bench.artifact(trial).relative_to(self.bench.folder)
                if str(now) != made.artifact:
                    raise StudyError(
                        f"The base '{trial.variant.recipe.base}' or a method has changed since {self.bench.folder} was "
                        "begun. Give a new folder with --out, so that old and new figures are not mixed."
                    )

    def ranking(self) -> Ranking:
        """What the records say so far."""
        primaries = {name: task.primary for name, task in self.bench.tasks.items()}
        data = self.space[0].variant.data
        found = rank(self.bench.study, primaries, self.store.records(), self.store.rows, data)
        return with_interrupted(found, self.store.interrupted())

    def _missing_trials(self) -> Iterator[Trial]:
        """One wanted trial after the other; the search is asked again after each, since it may change its mind."""
        search: Search = catalog.build(self.bench.study.search)
        space, seen = self.bench.study.reference_first(self.space), set[str]()
        while True:
            wanted = search.wanted(space, self.store.records(), [])
            trial = next((t for t in wanted if t.id not in seen and not self._has("grade", t)), None)
            if trial is None or (self.budget and self.budget.refusal(trial, self._ours())):
                return  # The ranking names what was wanted and not tried.
            seen.add(trial.id)
            yield trial

    def _ours(self) -> list[Record]:
        """What this study's data cost so far: the store may hold records of an older file too."""
        data = self.space[0].variant.data
        return [record for record in self.store.records() if record.trial.variant.data == data]

    def _weigh(self, number: int) -> None:
        """One round: every variant in random order, each in a fresh process, on the first fold and seed of each."""
        first: dict[str, Trial] = {}
        for trial in self.space:
            if self._is_done("grade", trial):
                first.setdefault(trial.label, trial)
        order = list(first.values())
        random.Random(f"round {number}").shuffle(order)
        missing = [trial for trial in order if not self._has("weigh", trial, number)]
        if missing:
            with catalog.build(self.bench.study.meter).open() as read:
                before = idle(read, self.bench.study.protocol.idle_seconds)
            flags = {"resumed": len(missing) < len(order), "contended": before.is_quiet is False}
            conditions = Conditions(tuple(flag for flag, is_so in flags.items() if is_so), before.watts)
            self._do("weigh", missing, number, conditions)

    def _confirm(self) -> Ranking:
        """The reference, the baselines and one candidate after the other meet the test split, until one holds."""
        ranking = self.ranking()
        while labels := next_candidates(ranking):
            wanted = [trial for trial in self.space if trial.label in labels and not self._has("confirm", trial)]
            if not wanted:
                break
            self._do("confirm", wanted)
            ranking = self.ranking()
        return ranking

    def _do(self, job: Job, trials: Iterable[Trial], number: int = 0, conditions: Conditions = UNWATCHED) -> None:
        executor: Executor = catalog.build(self.bench.study.executor)
        for trial in trials:
            if self._has(job, trial, number):
                continue
            tried = self._attempts(job, trial, number)
            journal = self.store.journal(record_id(job, trial, number, tried))
            attempt = Attempt(self.bench, job, number, tried, conditions, journal)
            begun = time.monotonic()
            for outcome in executor.run(attempt, [trial]):
                is_dead = isinstance(outcome, WorkerDied)
                record, rows = (died(attempt, trial, outcome.reason), []) if is_dead else outcome
                record = replace(record, facts={**record.facts, WALL: time.monotonic() - begun})
                kept = self.store.add(record, rows)
                journal.unlink(missing_ok=True)  # The record has it now.
                self.notice(kept)

    def _attempts(self, job: Job, trial: Trial, number: int = 0) -> int:
        """How often this was tried."""
        tried = 0
        while record_id(job, trial, number, tried) in self.store:
            tried += 1
        return tried

    def _last(self, job: Job, trial: Trial, number: int = 0) -> Record | None:
        tried = self._attempts(job, trial, number)
        return self.store.get(record_id(job, trial, number, tried - 1)) if tried else None

    def _is_done(self, job: Job, trial: Trial, number: int = 0) -> bool:
        last = self._last(job, trial, number)
        return last is not None and last.status == "done"

    def _has(self, job: Job, trial: Trial, number: int = 0) -> bool:
        """Nothing is left to do: it is done, or failed and is not to be tried again; a failed make ends the trial."""
        if job == "grade" and not trial.is_baseline:
            made = self._last("make", trial)
            if made is not None and made.status != "done" and not self.retry:
                return True
        last = self._last(job, trial, number)
        return last is not None and (last.status == "done" or not self.retry)
