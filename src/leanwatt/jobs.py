"""The jobs of a study, each for one trial in one process: make, grade, weigh, confirm. Their only result is a record.

This is the one place where a failure becomes data: what a failed stage spent is in the record, and the study goes on.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leanwatt import agreement, catalog, metrics
from leanwatt.cache import in_use, is_whole
from leanwatt.console import progress
from leanwatt.contracts import Session, Task, WorkerDied
from leanwatt.errors import RefusedError, StoreError, UserError
from leanwatt.journal import spent, window
from leanwatt.ledger import Ledger
from leanwatt.machine import describe, lease
from leanwatt.mirror import Mirror
from leanwatt.question import Example, Generate, Split
from leanwatt.recipe import Recipe, Trial, Variant
from leanwatt.record import Job, Record, Status, record_id
from leanwatt.study import Study
from leanwatt.variants import Base, Maker, parent_of, stage_keys
from leanwatt.windows import fill, phases

WEIGHED = 64
"""Fixed questions of each task that a weighing repeats: enough to mix short and long tickets."""
LEASE_SECONDS = 600.0
"""How long to wait for another job that weighs on this machine."""
LOST = "worker_lost"
"""Fact of a record: its worker was lost with the machine that it ran on, or may do better on another."""

SHARED = "prompt_tokens_shared"
"""Fact of a record: tokens of instructions that were computed once and read for further answers; absent for none."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """All that a job needs besides its trial; plain data that pickles."""

    study: Study
    folder: Path
    """Of the store."""
    bases: Mapping[tuple[str, str | None], Base]
    mirror: Mirror | None = None
    """Where the machines that jobs run on share no folder."""

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The study's tasks by name."""
        return {choice.name: catalog.build(choice) for choice in self.study.tasks}

    def here(self) -> Bench:
        """For a job, on the machine that it runs on."""
        if self.mirror is None:
            return self
        (self.mirror.here / "variants").mkdir(parents=True, exist_ok=True)
        return replace(self, folder=self.mirror.here)

    def artifact(self, trial: Trial) -> Path:
        """Where the variant of a trial lies once it is made."""
        return self.stages(trial)[-1]

    def stages(self, trial: Trial) -> list[Path]:
        """Where its base and what each of its steps makes lie."""
        base = self.bases[trial.variant.recipe.base, trial.variant.recipe.revision]
        return [self.folder / "variants" / key for key in stage_keys(trial.variant, base)]

    def examples(self, trial: Trial) -> list[Example]:
        """All tasks' examples of the trial's fold."""
        return [example for task in self.tasks.values() for example in task.examples(trial.variant.fold)]

    def chosen(self, task: str, trial: Trial, split: Split) -> list[Example]:
        """The examples of one task and split that this protocol asks; the same for every trial of a fold."""
        found = [e for e in self.tasks[task].examples(trial.variant.fold) if e.split == split]
        protocol, is_scored = self.study.protocol, bool(found) and not isinstance(found[0].question, Generate)
        if split == "test":
            most = protocol.confirm_examples if is_scored else protocol.confirm_generations
        else:
            most = protocol.examples if is_scored else protocol.generations
            most = min(most or len(found), trial.variant.fidelity.examples or len(found))
        if most is None or most >= len(found):
            return found
        picked = set(random.Random(task).sample(range(len(found)), int(most)))
        return [example for i, example in enumerate(found) if i in picked]


@dataclass
class Found:
    """What a job found out so far; kept when it fails."""

    metrics: dict[str, Mapping[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    rows: Rows = field(default_factory=list)
    artifact: str | None = None


@dataclass(frozen=True)
class Conditions:
    """What was seen of the machine before a round of weighing."""

    flags: tuple[str, ...] = ()
    """`contended`, `resumed`."""
    idle_watts: Mapping[str, float] = field(default_factory=dict)
    """By device; empty where no sensor is read."""


UNWATCHED = Conditions()


@dataclass(frozen=True)
class Attempt:
    """One job of one trial; calling it gives a record and its predictions."""

    bench: Bench
    job: Job
    round: int = 0
    attempt: int = 0
    conditions: Conditions = UNWATCHED
    journal: Path | None = None
    """Where to write down what is spent as it is spent, for the case that the worker dies."""

    def __call__(self, trial: Trial) -> tuple[Record, Rows]:
        """Do the job; failures and refusals are records too. StoreError stops the study."""
        found, status, error = Found(), "done", None
        bench = self.bench.here()
        journal = self.journal if bench.mirror is None else None  # Nobody could read it on another machine's disk.
        with catalog.build(bench.study.meter).open() as read, window(read, self.job, journal) as whole:
            ledger = Ledger(read, idle_watts=self.conditions.idle_watts)
            try:
                _JOBS[self.job](bench, trial, ledger, found)
            except RefusedError as refusal:
                status, error = "refused", str(refusal)
            except (StoreError, UserError):
                raise
            except Exception as failure:  # The one place where a failure becomes data: the study goes on.
                status, error = "failed", f"{_short(failure)}\n{traceback.format_exc()}"
        record = self._record(trial, found, ledger, status, error)
        return replace(record, whole=whole.measurement), found.rows

    def _record(self, trial: Trial, found: Found, ledger: Ledger, status: Any, error: str | None) -> Record:
        checked: Status = status
        return Record(
            job=self.job,
            trial=trial,
            status=checked,
            round=self.round,
            attempt=self.attempt,
            measurements=tuple(ledger.measurements),
            metrics=found.metrics,
            artifact=found.artifact,
            facts={**found.facts, "flags": list(self.conditions.flags)},
            machine=describe(),
            error=error,
        )


@dataclass(frozen=True)
class Turn:
    """One attempt of one trial, ready to be carried out anywhere."""

    attempt: Attempt
    trial: Trial

    @property
    def record_id(self) -> str:
        """Of the record that it will end in."""
        return record_id(self.attempt.job, self.trial, self.attempt.round, self.attempt.attempt)


def carry_out(turn: Turn) -> tuple[Record, Rows]:
    """What an executor is given to do."""
    return turn.attempt(turn.trial)


def died(end: WorkerDied) -> Record:
    """The record of a worker that ended without an answer: what it had spent by its last heartbeat is a lower bound."""
    turn: Turn = end.item
    attempt = turn.attempt
    known = spent(attempt.journal) if attempt.journal else []
    return Record(
        job=attempt.job,
        trial=turn.trial,
        status="failed",
        round=attempt.round,
        attempt=attempt.attempt,
        whole=known[-1] if known else None,
        facts={LOST: True} if end.is_lost else {},
        machine=describe() if end.machine is None else end.machine,
        error=end.reason,
    )


def _make(bench: Bench, trial: Trial, ledger: Ledger, found: Found) -> None:
    base = bench.bases[trial.variant.recipe.base, trial.variant.recipe.revision]
    if bench.mirror is not None:
        bench.mirror.bring_stages(bench.stages(trial), parent_of(trial.variant.recipe))
    with progress(f"make {trial.variant.recipe}") as tell:
        maker = Maker(trial.variant, base, bench.folder / "variants", ledger, tell)
        artifact = maker.make(lambda: bench.examples(trial))
    if bench.mirror is not None:
        for folder in bench.stages(trial):
            bench.mirror.send(folder)
    found.artifact = str(artifact.relative_to(bench.folder))
    files = [path for path in artifact.iterdir() if path.suffix == ".safetensors"]
    found.facts["bytes_on_disk"] = sum(path.stat().st_size for path in files)


def send_base(asked: tuple[Bench, Base]) -> None:
    """Bring a base from a folder of this machine to where jobs of other machines find it: its own stage."""
    bench, base = asked[0].here(), asked[1]
    assert bench.mirror is not None
    variant = Variant(Recipe(base.name, revision=base.revision))
    folder = bench.folder / "variants" / stage_keys(variant, base)[0]
    if not bench.mirror.bring(folder):
        with catalog.build(bench.study.meter).open() as read, progress(f"send {base.name}") as tell:
            bench.mirror.send(Maker(variant, base, folder.parent, Ledger(read), tell).make(lambda: []))


def _grade(bench: Bench, trial: Trial, ledger: Ledger, found: Found) -> None:
    _answer_split(bench, trial, ledger, found, "validation")


def _confirm(bench: Bench, trial: Trial, ledger: Ledger, found: Found) -> None:
    _answer_split(bench, trial, ledger, found, "test")


def _answer_split(bench: Bench, trial: Trial, ledger: Ledger, found: Found, split: Split) -> None:
    is_ranked = trial.variant.fidelity == bench.study.fidelity  # What a search only glances at is never weighed.
    for task, session in _sessions(bench, trial, ledger, found, check=split == "validation" and is_ranked):
        examples = bench.chosen(task, trial, split)
        with ledger.stage(f"grade/{task}") as tally:
            answers = list(session.answer([example.question for example in examples]))
            tally.add(answers)
        if shared := sum(answer.tokens_shared for answer in answers):
            found.facts |= {SHARED: found.facts.get(SHARED, 0) + shared}
        graded = bench.tasks[task].grade(examples, answers)
        rows = [{"task": task, "id": e.id, "group": e.group, **row} for e, row in zip(examples, graded, strict=True)]
        found.rows += rows
        found.metrics[task] = metrics.figures(rows)


def _weigh(bench: Bench, trial: Trial, ledger: Ledger, found: Found) -> None:
    """Answer fixed questions at natural stopping, warmed up; the packages belong to this job meanwhile."""
    with lease("packages", wait_seconds=LEASE_SECONDS):
        shortest = bench.study.protocol.window_seconds
        apart = bench.study.protocol.phases and not trial.is_baseline
        for task, session in _sessions(bench, trial, ledger, found, check=False):
            questions = [e.question for e in bench.chosen(task, trial, "validation")[:WEIGHED]]
            fill(session, questions, ledger, f"weigh/{task}", shortest)
            if apart:
                for stage, fixed in phases(questions, trial.batch).items():
                    fill(session, fixed, ledger, stage, shortest)
                apart = False  # One task's prompts are as good as another's.


_JOBS: Mapping[Job, Any] = {"make": _make, "grade": _grade, "weigh": _weigh, "confirm": _confirm}


def _sessions(bench: Bench, trial: Trial, ledger: Ledger, found: Found, *, check: bool) -> Any:
    """(task, session) for every task that the trial can do; opening and fitting are stages of their own."""
    if trial.is_baseline:
        yield from _fitted(bench, trial, ledger, found)
        return
    artifact = _at_hand(bench, trial, ledger)
    found.artifact = str(artifact.relative_to(bench.folder))
    opened: AbstractContextManager[Session] = catalog.build(trial.engine).open(artifact, trial.batch)
    with in_use(artifact):
        with ledger.stage("load"):
            session = opened.__enter__()
        try:
            found.facts |= session.facts
            if check:
                with ledger.stage("check"):
                    asked = {t: [e.question for e in bench.chosen(t, trial, "validation")] for t in bench.tasks}
                    found.facts |= agreement.check(str(trial.engine), session, artifact, asked)
            yield from ((task, session) for task in bench.tasks)
        finally:
            opened.__exit__(None, None, None)


def _at_hand(bench: Bench, trial: Trial, ledger: Ledger) -> Path:
    """The variant's folder; made again, and charged, where it was removed for room."""
    artifact = bench.artifact(trial)
    if bench.mirror is not None:
        bench.mirror.bring(artifact)
    if not is_whole(artifact):
        base = bench.bases[trial.variant.recipe.base, trial.variant.recipe.revision]
        again = Ledger(ledger.read)
        with progress(f"make again {trial.variant.recipe}") as tell:
            Maker(trial.variant, base, bench.folder / "variants", again, tell).make(lambda: bench.examples(trial))
        ledger.measurements += [replace(m, stage=f"again/{m.stage}") for m in again.measurements if not m.reused]
    return artifact


def _fitted(bench: Bench, trial: Trial, ledger: Ledger, found: Found) -> Any:
    baseline, done = catalog.build(trial.engine), 0
    for name, task in bench.tasks.items():
        train = [e for e in task.examples(trial.variant.fold) if e.split == "train"]
        with ledger.stage("fit"):
            session = baseline.fit(train)
        if session is not None:
            found.facts |= session.facts
            done += 1
            yield name, session
    if not done:
        raise RefusedError(f"baseline {trial.engine}: can do none of this study's tasks.")


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
