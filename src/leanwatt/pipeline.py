"""The whole flow, on one page.

Study - check - search - [make, grade] each trial that is missing - weigh in rounds - rank - confirm on test - report.
Every job runs through the executor and ends in a record, so a run that was killed goes on where it stood.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from leanwatt import catalog
from leanwatt.account import WALL
from leanwatt.agenda import Agenda, Wanted
from leanwatt.budget import Budget
from leanwatt.cache import Cache
from leanwatt.contracts import Executor, Search, WorkerDied
from leanwatt.errors import StudyError
from leanwatt.idle import Idle, watch
from leanwatt.jobs import UNWATCHED, Bench, Conditions, Rows, Turn, carry_out, died
from leanwatt.rank import rank, with_interrupted
from leanwatt.ranking import Ranking
from leanwatt.recipe import Trial
from leanwatt.record import Job, Record
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
        if self.bench.mirror is not None:
            self.bench.mirror.bring_records(self.store.folder)
        self._refuse_changed_bases()
        self._cache.sweep()
        self.try_all()
        for number in range(self.bench.study.protocol.rounds):
            self._weigh(number)
        return self._confirm()

    def try_all(self) -> None:
        """Make and grade what the search wants, as many trials at once as the executor has places for."""
        self._try(self._wanted())

    def try_out(self, trial: Trial) -> None:
        """Make and grade one trial, if that is still to be done."""
        left = [trial]
        self._try(lambda _: left.pop() if left else None)

    @cached_property
    def _agenda(self) -> Agenda:
        return Agenda(self.bench, self.store, self.retry)

    @cached_property
    def _executor(self) -> Executor:
        found: Executor = catalog.build(self.bench.study.executor)
        return found

    @property
    def _cache(self) -> Cache:
        most = self.bench.study.cache_gb
        return Cache(self.bench.folder / "variants", None if most is None else most * 1e9)

    def _needed(self, grading: Trial) -> list[Path]:
        """Variants that are still to be graded, weighed or confirmed; and what other jobs may read on other machines.

        A disk of a network does not tell us of their locks.
        """
        if self.bench.study.cache_gb is None:
            return []
        ranked = [each for each in self.space if not each.is_baseline and self._agenda.is_done("grade", each)]
        beside = [turn.trial for turn in self._agenda.running.values() if not turn.trial.is_baseline]
        found = [self.bench.artifact(each) for each in (grading, *ranked) if not each.is_baseline]
        return found + [folder for each in beside for folder in self.bench.stages(each)]

    def _refuse_changed_bases(self) -> None:
        for trial in self.space:
            made = None if trial.is_baseline else self._agenda.last("make", trial)
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

    def _wanted(self) -> Wanted:
        """Asks the search after each job, since it may change its mind; the budget may end it."""
        search: Search = catalog.build(self.bench.study.search)
        space, is_over, done = self.bench.study.reference_first(self.space), False, set[str]()

        def wanted(begun: Sequence[Trial]) -> Trial | None:
            nonlocal is_over
            asked = () if is_over else search.wanted(space, self._settled(), begun)
            for trial in asked:
                if trial.id in done or trial in begun:
                    continue
                if self._agenda.has("grade", trial):
                    done.add(trial.id)
                    continue
                is_over = bool(self.budget and self.budget.refusal(trial, self._ours(), begun))
                return None if is_over else trial  # The ranking names what was wanted and not tried.
            return None

        return wanted

    def _settled(self) -> list[Record]:
        """What a search may conclude from: a worker that was lost is still to be replaced."""
        return [record for record in self.store.records() if not self._agenda.is_lost_once(record)]

    def _ours(self) -> list[Record]:
        """What this study's data cost so far: the store may hold records of an older file too."""
        data = self.space[0].variant.data
        return [record for record in self.store.records() if record.trial.variant.data == data]

    def _weigh(self, number: int) -> None:
        """One round: every variant in random order, each in a fresh process, on the first fold and seed of each."""
        first: dict[str, Trial] = {}
        for trial in self.space:
            if self._agenda.is_done("grade", trial):
                first.setdefault(trial.label, trial)
        order = list(first.values())
        random.Random(f"round {number}").shuffle(order)
        missing = [trial for trial in order if not self._agenda.has("weigh", trial, number)]
        if missing:
            before = self._idle()
            flags = {"resumed": len(missing) < len(order), "contended": before.is_quiet is False}
            conditions = Conditions(tuple(flag for flag, is_so in flags.items() if is_so), before.watts)
            self._do("weigh", missing, number, conditions)

    def _idle(self) -> Idle:
        """Of the machine that weighs; nothing is known where the process that looks dies."""
        job = (self.bench.study.meter, self.bench.study.protocol.idle_seconds)
        [found] = self._executor.run(watch, [job], alone=True)
        return Idle({}, None) if isinstance(found, WorkerDied) else found

    def _confirm(self) -> Ranking:
        """The reference, the baselines and one candidate after the other meet the test split, until one holds."""
        ranking = self.ranking()
        while labels := next_candidates(ranking):
            wanted = [t for t in self.space if t.label in labels and not self._agenda.has("confirm", t)]
            if not wanted:
                break
            self._do("confirm", wanted)
            ranking = self.ranking()
        return ranking

    def _do(self, job: Job, trials: Sequence[Trial], number: int = 0, conditions: Conditions = UNWATCHED) -> None:
        """Twice, if need be: what was lost with its worker is tried once more."""
        for _ in range(2):
            left = [trial for trial in trials if not self._agenda.has(job, trial, number)]
            turns = (self._agenda.turn(job, trial, number, conditions) for trial in left)
            self._carry_out(turns, alone=job == "weigh")

    def _try(self, wanted: Wanted) -> None:
        self._carry_out(self._with_room(self._agenda.trying(wanted)))

    def _with_room(self, turns: Iterator[Turn | None]) -> Iterator[Turn | None]:
        """Before anything is graded, room is made for it."""
        for turn in turns:
            if turn is not None and turn.attempt.job == "grade":
                self._cache.trim(self._needed(turn.trial))
            yield turn

    def _carry_out(self, turns: Iterator[Turn | None], *, alone: bool = False) -> None:
        begun: dict[str, float] = {}
        self._agenda.running.clear()

        def started() -> Iterator[Turn | None]:
            for turn in turns:
                if turn is not None:
                    begun[turn.record_id] = time.monotonic()
                    self._agenda.running[turn.record_id] = turn
                yield turn

        with closing(self._executor.run(carry_out, started(), alone=alone)) as outcomes:
            for outcome in outcomes:
                record, rows = (died(outcome), []) if isinstance(outcome, WorkerDied) else outcome
                wall = {WALL: time.monotonic() - begun[record.id]}
                self._keep(replace(record, facts={**record.facts, **wall}), rows)

    def _keep(self, record: Record, rows: Rows) -> None:
        kept = self.store.add(record, rows)
        if self.bench.mirror is not None:
            self.bench.mirror.keep(self.store.folder, kept.id)
        turn = self._agenda.running.pop(record.id)
        self._agenda.ended.add(record.id)
        if turn.attempt.journal is not None:
            turn.attempt.journal.unlink(missing_ok=True)  # The record has it now.
        self.notice(kept)
