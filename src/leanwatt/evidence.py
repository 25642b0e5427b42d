"""What the records hold about each line of the table, sorted out before anything is compared."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from leanwatt.compare import Window
from leanwatt.contracts import Search
from leanwatt.errors import StudyError, not_among
from leanwatt.measurement import PREFILL, PREFILL_AND_DECODE, Energy, Measurement, whole_stages, worst
from leanwatt.ranking import Making
from leanwatt.recipe import Trial
from leanwatt.record import Job, Record
from leanwatt.study import Study

Key = tuple[Job, str, int]
Status = Literal["done", "failed", "refused", "missing"]
WEIGH = "weigh/"
LONGEST_REASON = 200


@dataclass(frozen=True)
class Run:
    """One seed and fold of a line: its records, newest finished attempt each."""

    trial: Trial
    make: Record | None
    grade: Record | None
    confirm: Record | None
    weighs: tuple[Record, ...]
    """Finished rounds."""
    why_not_weighed: str = ""
    """Of a round that did not finish."""


@dataclass(frozen=True)
class Evidence:
    """One line of the table, before it is compared with any other."""

    label: str
    place: int
    runs: tuple[Run, ...]
    status: Status
    why: str

    @property
    def trial(self) -> Trial:
        """Any of its trials: they differ in seed and fold only."""
        return self.runs[0].trial

    @property
    def has_met_test(self) -> bool:
        """Every seed and fold was put before the test split, whatever came of it."""
        return all(run.confirm is not None for run in self.runs)

    @property
    def why_not_tested(self) -> str:
        """Why the test split was not answered; empty where it was."""
        confirms = [run.confirm for run in self.runs if run.confirm is not None]
        return next((_reason(record) for record in confirms if record.status != "done"), "")

    def facts(self) -> Mapping[str, object]:
        """What really ran: from grading, else from weighing."""
        records = [record for run in self.runs for record in (run.grade, *run.weighs) if record is not None]
        return next((record.facts for record in records if record.status == "done"), {})

    def windows(self, machine: str | None) -> dict[Window, dict[str, Measurement]]:
        """By round, seed and fold, then by task: what was weighed on that machine."""
        return self._weighed(machine, lambda m: m.stage.removeprefix(WEIGH) if _is_answering(m) else None, least=1)

    def phases(self, machine: str | None) -> dict[Window, dict[str, Measurement]]:
        """By round, seed and fold, then by stage: prefill, alone and with decoding, on that machine."""
        both = (PREFILL, PREFILL_AND_DECODE)
        return self._weighed(machine, lambda m: m.stage if m.stage in both else None, least=len(both))

    def _weighed(
        self, machine: str | None, name: Callable[[Measurement], str | None], least: int
    ) -> dict[Window, dict[str, Measurement]]:
        """Of each round on that machine, the stages that have a name; left out where they are fewer than `least`."""
        found: dict[Window, dict[str, Measurement]] = {}
        for run in self.runs:
            variant = run.trial.variant
            for record in (each for each in run.weighs if each.machine.get("id") == machine):
                named = {said: m for m in record.measurements if (said := name(m)) is not None}
                if len(named) >= least:
                    found[Window(record.round, variant.seed, variant.fold)] = named
        return found

    def makings(self) -> list[Sequence[Measurement]]:
        """Stages of making each seed and fold; a baseline is fitted when graded."""
        if self.trial.is_baseline:
            fits = [[m for m in run.grade.measurements if m.stage == "fit"] for run in self.runs if run.grade]
            return [stages for stages in fits if stages]
        return [run.make.measurements for run in self.runs if run.make is not None]

    def loading(self) -> Measurement | None:
        """One opening of the engine."""
        records = [record for run in self.runs for record in (*run.weighs, run.grade) if record is not None]
        return next((m for record in records for m in record.measurements if m.stage == "load"), None)


@dataclass(frozen=True)
class Gathered:
    """All that a study's records say."""

    lines: tuple[Evidence, ...]
    reference: str
    folds: int
    records: tuple[Record, ...]
    """Of this study and its data; every attempt."""
    glances: tuple[Record, ...]
    """The same of less fidelity: what a search looked at, and nothing ranks."""
    not_tried: tuple[str, ...]
    """Variants that were left out by the search or the budget; no line is theirs."""
    still_wanted: int
    """How many of these the search would still try."""
    left_out: tuple[str, ...]
    """Sentences on records that belong to something else."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """How many weighings carry each flag."""


def gather(study: Study, records: Sequence[Record], data: str | None = None) -> Gathered:
    """Group records by the label of their trials.

    `data` is the digest of what the tasks read; None takes that of the newest record, since an edited file leaves the
    records of the old one in the store. Raises StudyError where the study's reference is none of its variants.
    """
    digest = data if data is not None else _newest_data(records)
    ours = [record for record in records if _belongs(study, record, digest)]
    trials = study.trials(digest, 1 + max((record.trial.variant.fold for record in ours), default=0))
    is_ours = _finder(trials)
    kept = tuple(sorted(filter(is_ours, ours), key=_order))
    lesser = [record for record in ours if not is_ours(record) and is_ours(_in_full(study, record))]
    glances = tuple(sorted(lesser, key=_order))
    newest, reference = _newest(kept), _reference(study, trials)
    untried = _untried(study, trials, records, reference)
    labels = list(dict.fromkeys(trial.label for trial in trials))
    lines = [_line(label, place, trials, newest) for place, label in enumerate(labels) if label not in untried]
    out = len(records) - len(kept) - len(glances)
    said = (
        (f"{out} of {len(records)} records are of other data, settings or variants and are left out.",) if out else ()
    )
    flags = Counter(flag for r in newest.values() if r.job == "weigh" for flag in _flags(r))
    return Gathered(
        lines=tuple(lines),
        reference=reference,
        folds=1 + max(trial.variant.fold for trial in trials),
        records=kept,
        glances=glances,
        not_tried=tuple(untried),
        still_wanted=sum(untried.values()),
        left_out=said,
        flags=dict(sorted(flags.items())),
    )


def _finder(trials: Sequence[Trial]) -> Callable[[Record], bool]:
    """Tells whether a record is of one of these trials."""
    known, makes = {trial.id for trial in trials}, {trial.variant.id for trial in trials}
    return lambda r: r.trial.variant.id in makes if r.job == "make" else r.trial.id in known


def _in_full(study: Study, record: Record) -> Record:
    """The same record as if its trial had been done at the study's own fidelity."""
    trial = record.trial
    return replace(record, trial=replace(trial, variant=replace(trial.variant, fidelity=study.fidelity)))


def _untried(study: Study, trials: Sequence[Trial], records: Sequence[Record], reference: str) -> dict[str, bool]:
    """Variants without any record that need no line, and whether the search still wants each.

    A grid without a budget that was stopped half-way will be finished: its missing lines stay.
    """
    from leanwatt import catalog

    search: Search = catalog.build(study.search)
    space = study.reference_first(trials)
    wanted = {trial.label for trial in search.wanted(space, records, []) if trial.variant.fidelity == study.fidelity}
    graded = {record.trial.id for record in records}
    made = {record.trial.variant.id for record in records if record.job == "make"}
    begun = {trial.label for trial in trials if trial.variant.id in made} & wanted  # Others may have its model made.
    seen = {trial.label for trial in trials if trial.id in graded} | begun
    labels = dict.fromkeys(trial.label for trial in trials if trial.label not in {*seen, reference})
    return {label: label in wanted for label in labels if label not in wanted or study.budget}


def _order(record: Record) -> tuple[int, int, int, int, str]:
    """The same, however a store lists them: sums of floats depend on it."""
    jobs = ("make", "grade", "weigh", "confirm")
    return jobs.index(record.job), record.trial.ordinal, record.round, record.attempt, record.id


def _newest_data(records: Sequence[Record]) -> str:
    latest = max(records, key=lambda r: (str(r.machine.get("utc") or ""), r.trial.variant.data), default=None)
    return latest.trial.variant.data if latest else ""


def _belongs(study: Study, record: Record, data: str) -> bool:
    variant = record.trial.variant
    return variant.data == data and variant.seed in study.seeds


def _reference(study: Study, trials: Sequence[Trial]) -> str:
    models = list(dict.fromkeys(trial.label for trial in trials if not trial.is_baseline))
    if not models:
        raise StudyError("The study names no language model to compare with; give it a base.")
    if study.reference == "first":
        return models[0]
    if study.reference in models:
        return study.reference
    raise StudyError(not_among("the variants that can be the reference", study.reference, models))


def _key(record: Record) -> Key:
    trial = record.trial
    return record.job, trial.variant.id if record.job == "make" else trial.id, record.round


def _newest(records: Iterable[Record]) -> dict[Key, Record]:
    """Of each job the newest finished attempt; the newest failure where none finished."""
    found: dict[Key, Record] = {}
    for record in sorted(records, key=lambda r: (r.status == "done", r.attempt)):
        found[_key(record)] = record
    return found


def _line(label: str, place: int, trials: Sequence[Trial], newest: Mapping[Key, Record]) -> Evidence:
    runs = tuple(_run(trial, newest) for trial in trials if trial.label == label)
    status, why = next((found for run in runs if (found := _state(run))[0] != "done"), ("done", ""))
    return Evidence(label, place, runs, status, why)


def _run(trial: Trial, newest: Mapping[Key, Record]) -> Run:
    weighs = [r for (job, owner, _), r in newest.items() if job == "weigh" and owner == trial.id]
    return Run(
        trial,
        make=newest.get(("make", trial.variant.id, 0)),
        grade=newest.get(("grade", trial.id, 0)),
        confirm=newest.get(("confirm", trial.id, 0)),
        weighs=tuple(sorted((r for r in weighs if r.status == "done"), key=lambda r: r.round)),
        why_not_weighed=next((_reason(r) for r in weighs if r.status != "done"), ""),
    )


def _state(run: Run) -> tuple[Status, str]:
    where = f"seed {run.trial.variant.seed}, fold {run.trial.variant.fold}"
    for record in (run.make, run.grade):
        if record is not None and record.status != "done":
            return record.status, f"{record.job} ({where}): {_reason(record)}"
    if run.grade is None:
        return "missing", f"not graded ({where})"
    return "done", ""


def _reason(record: Record) -> str:
    """First line of the error: what follows is a traceback, which may quote what it was working on."""
    return (record.error or "no reason recorded").strip().splitlines()[0][:LONGEST_REASON]


def _is_answering(measurement: Measurement) -> bool:
    return measurement.stage.startswith(WEIGH) and measurement.answers > 0 and measurement.cpu_seconds > 0


def _flags(record: Record) -> set[str]:
    named = {str(flag) for flag in record.facts.get("flags", ())}
    answering = [m for m in record.measurements if _is_answering(m)]
    return named.union(*(m.flags for m in answering), *(e.flags for m in answering for e in m.devices.values()))


EnergyOf = Callable[[Measurement], Energy]


def making(runs: Sequence[Sequence[Measurement]], energy_of: EnergyOf) -> Making | None:
    """Mean over seeds and folds of what their stages took; None without a stage. Parts of stages count in these."""
    stages = [stage for run in runs for stage in whole_stages(run)]
    if not stages:
        return None
    part, energies = 1 / len(runs), [energy_of(stage) for stage in stages]
    known = [energy.joules for energy in energies if energy.joules is not None]
    return Making(
        cpu_seconds=part * sum(stage.cpu_seconds for stage in stages),
        seconds=part * sum(stage.seconds for stage in stages),
        joules=part * sum(known) if known else None,
        provenance=str(worst(energy.provenance for energy in energies if energy.joules is not None)),
        unknown_seconds=part * sum(s.seconds for s, e in zip(stages, energies, strict=True) if e.joules is None),
        reused_cpu_seconds=part * sum(stage.cpu_seconds for stage in stages if stage.reused),
        stages=_by_stage(stages, part, energy_of),
    )


def _by_stage(stages: Sequence[Measurement], part: float, energy_of: EnergyOf) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(stage.stage for stage in stages):
        same = [stage for stage in stages if stage.stage == name]
        joules = [energy_of(stage).joules for stage in same]
        known = [each for each in joules if each is not None]
        found[name] = {
            "seconds": part * sum(stage.seconds for stage in same),
            "cpu_seconds": part * sum(stage.cpu_seconds for stage in same),
            "joules": part * sum(known) if known else None,
        }
    return found


def totals(records: Iterable[Record]) -> Making | None:
    """What the whole study took: all jobs and attempts, failed ones too; reused work was counted where it was done."""
    return making([[stage for record in records for stage in record.spent]], lambda m: m.total)
