"""How good each variant is, and what it loses against the reference: one set of resamples, so that pairs stay pairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from leanwatt import metrics
from leanwatt.compare import Sampled, loss
from leanwatt.evidence import Evidence, Run
from leanwatt.ranking import Confirmation, Figure, Loss, TaskResult, Word
from leanwatt.record import Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RowsOf = Callable[[Record], Sequence[Mapping[str, Any]]]
CHUNK = 500
"""Groups left out in one go: keeps the matrix of counts small."""
_SEVERITY: Sequence[Word] = ("reference", "non-inferior", "cannot tell", "inferior")


def worst_word(words: Sequence[Word]) -> Word:
    """What holds for all of them; `cannot tell` for none."""
    return max(words, key=_SEVERITY.index, default="cannot tell")


@dataclass(frozen=True)
class Judge:
    """Grades lines against one reference."""

    rows_of: RowsOf
    primaries: Mapping[str, str]
    """Task -> the metric that ranks."""
    reference: Evidence
    margin: float
    times: int = 2000
    """Resamples."""
    _frames: dict[str, Any] = field(default_factory=dict)
    _sampled: dict[tuple[str, str, str], Sampled] = field(default_factory=dict)

    def results(self, line: Evidence) -> dict[str, TaskResult]:
        """Per task that the line can do: figures on validation, and the verdict against the reference."""
        return {task: self._result(line, task) for task in self.primaries if self._can(line, task)}

    def confirmation(self, line: Evidence) -> Confirmation | None:
        """Figures and verdicts on the test split; None unless every seed and fold has met it."""
        if not line.has_met_test:
            return None
        if line.why_not_tested:
            return Confirmation({}, {}, None if line.label == self.reference.label else 1.0, line.why_not_tested)
        tasks = [task for task in self.primaries if all(self._has(seed, task) for seed in self._tests(line).values())]
        figures = {task: self._envelope(self._tests(line), task, self.primaries[task]) for task in tasks}
        if line.label == self.reference.label:
            return Confirmation(figures, {})
        tests, others = self._tests(line), self._tests(self.reference)
        if not self.reference.has_met_test or self.reference.why_not_tested:
            return Confirmation(figures, {})
        found = {task: _worst(self._losses(tests, others, task)) for task in tasks}
        losses = {task: each for task, each in found.items() if each is not None}
        every = len(losses) == len(self.primaries)
        return Confirmation(figures, losses, max(each.p for each in losses.values()) if every else 1.0)

    def _can(self, line: Evidence, task: str) -> bool:
        seeds = self._validations(line)
        return bool(seeds) and all(self._has(records, task) for records in seeds.values())

    def _has(self, records: Sequence[Record], task: str) -> bool:
        return not self._frame(records, task).empty

    def _result(self, line: Evidence, task: str) -> TaskResult:
        seeds, metric = self._validations(line), self.primaries[task]
        frame = self._frame(next(iter(seeds.values())), task)
        names = [str(name) for name in metrics.names(frame)]
        losses = self._validation_losses(line, task)
        return TaskResult(
            metric=metric,
            quality=self._envelope(seeds, task, metric),
            by_seed={str(seed): metrics.value(metric, self._frame(rs, task)) for seed, rs in seeds.items()},
            figures={name: self._envelope(seeds, task, name) for name in names},
            classes=_classes(frame),
            risk={f"{share:g}": wrong for share, wrong in metrics.risk(frame).items()},
            loss=_worst(losses),
            loss_by_seed={str(seed): each for seed, each in losses.items()},
        )

    def _validation_losses(self, line: Evidence, task: str) -> dict[int, Loss]:
        if line.label == self.reference.label or self.reference.status != "done" or not self._can(self.reference, task):
            return {}
        return self._losses(self._validations(line), self._validations(self.reference), task)

    def _losses(
        self, mine: Mapping[int, list[Record]], other: Mapping[int, list[Record]], task: str
    ) -> dict[int, Loss]:
        """Each seed paired with the reference of the same seed: seeds are never pooled."""
        pairs = {seed: self._pair(mine[seed], other[seed], task) for seed in sorted(mine.keys() & other.keys())}
        return {seed: each for seed, each in pairs.items() if each is not None}

    def _pair(self, mine: Sequence[Record], other: Sequence[Record], task: str) -> Loss | None:
        """On the examples that both have answered; None where there are none."""
        own, base = self._frame(mine, task), self._frame(other, task)
        shared = own.index.intersection(base.index)
        metric = self.primaries[task]
        if len(shared) == len(own) == len(base):
            return loss(self._draw(mine, task, metric), self._draw(other, task, metric), self.margin)
        if shared.empty:
            return None
        own, base = own.loc[shared], base.loc[shared]
        return loss(sampled(metric, own, self.times), sampled(metric, base, self.times), self.margin)

    def _envelope(self, seeds: Mapping[int, list[Record]], task: str, metric: str) -> Figure:
        """Mean over seeds, between the lowest and the highest end of any seed's interval."""
        drawn = [self._draw(records, task, metric) for records in seeds.values()]
        ends = [metrics.interval(each.samples) for each in drawn]
        mean = sum(each.value for each in drawn) / len(drawn)
        return Figure(mean, min(e.low for e in ends), max(e.high for e in ends), drawn[0].examples)

    def _draw(self, records: Sequence[Record], task: str, metric: str) -> Sampled:
        key = (_name(records), task, metric)
        if key not in self._sampled:
            frame = self._frame(records, task)
            alone = metric == self.primaries[task]
            self._sampled[key] = sampled(metric, frame, self.times, leave_out=alone)
        return self._sampled[key]

    def _frame(self, records: Sequence[Record], task: str) -> Any:
        """Rows of all folds of one seed, indexed by fold and example, in the same order for every line."""
        key = f"{_name(records)} {task}"
        if key not in self._frames:
            self._frames[key] = _pooled(self.rows_of, records, task)
        return self._frames[key]

    def _validations(self, line: Evidence) -> dict[int, list[Record]]:
        return _by_seed(line.runs, lambda run: run.grade)

    def _tests(self, line: Evidence) -> dict[int, list[Record]]:
        return _by_seed(line.runs, lambda run: run.confirm)


def _worst(losses: Mapping[int, Loss]) -> Loss | None:
    """Of all seeds the least favourable, and higher only if every seed is."""
    worst = max(losses.values(), key=lambda each: (_SEVERITY.index(each.word), each.p), default=None)
    return worst and replace(worst, p_higher=max(each.p_higher for each in losses.values()))


def _by_seed(runs: Sequence[Run], which: Callable[[Run], Record | None]) -> dict[int, list[Record]]:
    """The folds of each seed that has them all."""
    found: dict[int, list[Record]] = {}
    for run in runs:
        record = which(run)
        if record is not None and record.status == "done":
            found.setdefault(run.trial.variant.seed, []).append(record)
    folds = 1 + max(run.trial.variant.fold for run in runs)
    return {seed: records for seed, records in found.items() if len(records) == folds}


def _name(records: Sequence[Record]) -> str:
    return " ".join(record.id for record in records)


def _pooled(rows_of: RowsOf, records: Sequence[Record], task: str) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        {**row, "_fold": record.trial.variant.fold, "_id": str(row["id"])}
        for record in records
        for row in rows_of(record)
        if row["task"] == task
    ]
    if not rows:
        return pd.DataFrame()
    return (
        pd.DataFrame(rows)
        .drop(columns="task")
        .set_index(["_fold", "_id"])
        .sort_index()
        .dropna(axis="columns", how="all")
    )


def sampled(metric: str, frame: "pd.DataFrame", times: int, *, leave_out: bool = True) -> Sampled:
    """A metric with its resamples; equal rows in equal order give equal draws for every variant."""
    import numpy as np

    groups = frame["group"].astype(str).tolist()
    without = np.empty(0)
    if leave_out:
        without = np.concatenate([metrics.bootstrap(metric, frame, counts) for counts in _without_each(groups)])
    return Sampled(
        value=metrics.value(metric, frame),
        samples=metrics.bootstrap(metric, frame, _resamples(tuple(groups), times)),
        without=without,
        examples=len(frame),
    )


@lru_cache(maxsize=2)
def _resamples(groups: tuple[str, ...], times: int) -> "NDArray[np.float32]":
    """Large and asked for by every metric of every variant; those of a study's two tasks are kept."""
    return metrics.resamples(groups, times)


def _without_each(groups: Sequence[str]) -> "Iterator[NDArray[np.float32]]":
    """Counts (up to CHUNK, rows) that leave out one group each."""
    import numpy as np

    members, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    for start in range(0, len(members), CHUNK):
        out = np.arange(start, min(start + CHUNK, len(members)))
        yield (place[None, :] != out[:, None]).astype(np.float32)


def _classes(frame: "pd.DataFrame") -> tuple[Mapping[str, Any], ...]:
    if not {"target", "chosen"} <= set(frame.columns):
        return ()
    return tuple(metrics.per_class(frame).reset_index().to_dict("records"))  # type: ignore[arg-type]
