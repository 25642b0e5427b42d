"""What searches share: trials grouped into variants, and what grading them has shown so far."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from leanwatt.measurement import Measurement, Provenance
from leanwatt.recipe import Fidelity, Recipe, Trial, digest
from leanwatt.record import Record

SENSED = (Provenance.MEASURED, Provenance.INTEGRATED)
"""Joules that a choice may rest on; otherwise CPU-seconds do."""
GRADE = "grade/"


@dataclass(frozen=True)
class Candidate:
    """A variant in one engine at one batch size: all its seeds and folds, which are tried together."""

    label: str
    trials: tuple[Trial, ...]

    def at(self, fidelity: Fidelity) -> "Candidate":
        """The same with less work; never more than the study itself asks."""
        return replace(self, trials=tuple(_lowered(trial, fidelity) for trial in self.trials))


def _lowered(trial: Trial, fidelity: Fidelity) -> Trial:
    own = trial.variant.fidelity
    less = Fidelity(_least(own.examples, fidelity.examples), _least(own.steps, fidelity.steps))
    return replace(trial, variant=replace(trial.variant, fidelity=less))


def _least(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def models(space: Sequence[Trial]) -> list[Candidate]:
    """Every variant of a language model, the reference first."""
    grouped: dict[str, list[Trial]] = {}
    for trial in space:
        if not trial.is_baseline:
            grouped.setdefault(trial.label, []).append(trial)
    return [Candidate(label, tuple(trials)) for label, trials in grouped.items()]


def anchors(space: Sequence[Trial]) -> list[Trial]:
    """What every search wants: the reference, to judge by, and the baselines, which cost little."""
    reference = models(space)[:1]
    return [*trials(reference), *(trial for trial in space if trial.is_baseline)]


def trials(candidates: Iterable[Candidate]) -> list[Trial]:
    """All of theirs, in order."""
    return [trial for candidate in candidates for trial in candidate.trials]


def tuning(candidate: Candidate) -> Recipe:
    """The recipe to its last fine-tuning or merging, which is the base where there is none."""
    return candidate.trials[0].variant.recipe.up_to_last("finetune", "merge")


def drawn(candidates: Sequence[Candidate], count: int | None, seed: int) -> list[Candidate]:
    """So many of them at random, in the order of the draw; all of them, in that order, for None."""
    return sorted(candidates, key=lambda candidate: digest([seed, candidate.label]))[:count]


@dataclass(frozen=True)
class Shown:
    """What grading has shown of one candidate, mean over its seeds and folds."""

    quality: float
    """Mean of the tasks' primary metrics."""
    cpu_seconds: float
    """Of one answer to every task."""
    joules: float | None
    """The same; None where no sensor was read."""


class Findings:
    """The records, asked about trials. Of several attempts a finished one counts, else the newest."""

    def __init__(self, records: Sequence[Record]) -> None:
        ordered = sorted(records, key=lambda record: (record.status == "done", record.attempt))
        self._grades = {record.trial.id: record for record in ordered if record.job == "grade"}
        self._makes = {record.trial.variant.id: record for record in ordered if record.job == "make"}

    def is_over(self, candidate: Candidate) -> bool:
        """Nothing more will be known of it: each trial was graded, or failed on the way."""
        return all(self._is_over(trial) for trial in candidate.trials)

    def _is_over(self, trial: Trial) -> bool:
        made = self._makes.get(trial.variant.id)
        return trial.id in self._grades or (made is not None and made.status != "done")

    def shown(self, candidate: Candidate) -> Shown | None:
        """None where a trial is not graded, failed, or cannot do a task."""
        grades = [self._grades.get(trial.id) for trial in candidate.trials]
        done = [_shown(grade) for grade in grades if grade is not None and grade.status == "done"]
        known = [each for each in done if each is not None]
        if not known or len(known) < len(grades):
            return None
        joules = [each.joules for each in known if each.joules is not None]
        return Shown(
            quality=sum(each.quality for each in known) / len(known),
            cpu_seconds=sum(each.cpu_seconds for each in known) / len(known),
            joules=sum(joules) / len(joules) if len(joules) == len(known) else None,
        )

    def compared(self, candidates: Sequence[Candidate]) -> dict[str, Shown]:
        """By label; those that failed are left out."""
        found = {candidate.label: self.shown(candidate) for candidate in candidates}
        return {label: shown for label, shown in found.items() if shown is not None}


def costs(shown: Mapping[str, Shown]) -> dict[str, float]:
    """Of one answer to every task, in one unit for all: joules where all were sensed, else CPU-seconds."""
    joules = {label: each.joules for label, each in shown.items() if each.joules is not None}
    return joules if len(joules) == len(shown) else {label: each.cpu_seconds for label, each in shown.items()}


def _shown(grade: Record) -> Shown | None:
    stages = {m.stage.removeprefix(GRADE): m for m in grade.measurements if m.stage.startswith(GRADE) and m.answers}
    qualities = [metrics.get(_primary(task)) for task, metrics in grade.metrics.items()]
    known = [quality for quality in qualities if quality is not None]
    if not known or len(known) < len(qualities) or stages.keys() != grade.metrics.keys():
        return None
    joules = [each for m in stages.values() if (each := _joules(m)) is not None]
    return Shown(
        quality=sum(known) / len(known),
        cpu_seconds=sum(m.cpu_seconds / m.answers for m in stages.values()),
        joules=sum(joules) if len(joules) == len(stages) else None,
    )


@cache
def _primary(task: str) -> str:
    """The metric that ranks; looked up once, since finding a method scans the installed packages."""
    from leanwatt import catalog

    return str(catalog.find("tasks", task).primary)


def _joules(measurement: Measurement) -> float | None:
    energy = measurement.total
    if energy.joules is None or energy.provenance not in SENSED:
        return None
    return energy.joules / measurement.answers
