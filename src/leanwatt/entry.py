"""One line of the table by itself: what it is, what it costs and how good it is, before any comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from leanwatt.bill import Bill
from leanwatt.compare import average
from leanwatt.evidence import Evidence, making
from leanwatt.measurement import Energy, Provenance
from leanwatt.quality import Judge
from leanwatt.ranking import Entry, Spending, TaskResult
from leanwatt.saving import expectation
from leanwatt.spending import Weighed, Windows, costs, counted, idle_watts, load_cost, phases, spending
from leanwatt.study import Study

DAY_SECONDS = 86400
BILLED_TICKETS = 1000
"""What a bill is for: a single ticket takes too little to be read."""


@dataclass(frozen=True)
class Writer:
    """Writes the lines of one study's table."""

    study: Study
    weighed: Weighed
    judge: Judge

    def entry(self, line: Evidence) -> Entry:
        """The line with all that needs no other line but, for the quality lost, the reference."""
        trial, facts = line.trial, line.facts()
        tasks = self._task_results(line) if line.status == "done" else {}
        whole = line.status == "done" and tasks.keys() == set(self._tasks)
        windows = self._windows(line)
        cost = average(costs(windows, self.weighed.scale, self._tasks)) if whole else None
        spent = spending(windows, self.weighed.scale, self._tasks) if cost else None
        make = next((run.make for run in line.runs if run.make is not None), None)
        sized = make.facts.get("bytes_on_disk") if make else None
        return Entry(
            label=line.label,
            place=line.place,
            is_baseline=trial.is_baseline,
            engine=str(trial.engine),
            batch=trial.batch,
            steps=tuple(f"{step.room}: {step}" for step in trial.variant.recipe.steps),
            status=line.status,
            why=line.why or self._why_unranked(line, cost is not None, tasks),
            tasks=tasks,
            is_complete=cost is not None,
            spending=spent,
            cost=cost,
            phases=phases(line.phases(self.weighed.scale.machine), self.weighed.scale),
            quality=sum(result.quality.value for result in tasks.values()) / len(tasks) if whole else None,
            note=expectation(facts).reason,
            making=making(line.makings(), partial(counted, scale=self.weighed.scale)),
            cost_per_day=self._cost_per_day(line) if cost else None,
            bill=self._bill(spent),
            bytes_on_disk=sized,
            weight_bytes=_whole(facts.get("weight_bytes")),
            facts=dict(facts),
            confirmation=self.judge.confirmation(line),
        )

    def _task_results(self, line: Evidence) -> dict[str, TaskResult]:
        windows = self._windows(line)
        return {
            task: replace(result, spending=spending(windows, self.weighed.scale, [task]))
            for task, result in self.judge.results(line).items()
        }

    def _why_unranked(self, line: Evidence, is_complete: bool, tasks: Mapping[str, TaskResult]) -> str:
        if is_complete:
            return ""
        if line.label in self.weighed.incomparable:
            return self.weighed.incomparable[line.label]
        if lacking := [task for task in self._tasks if task not in tasks]:
            return f"does not do {', '.join(lacking)}"
        reason = next((run.why_not_weighed for run in line.runs if run.why_not_weighed), "")
        return f"not weighed: {reason}" if reason else "not weighed"

    def _cost_per_day(self, line: Evidence) -> float | None:
        """At the study's load: its tickets, and either idling in between or one reload a day."""
        load, scale, windows = self.study.load, self.weighed.scale, self._windows(line)
        each, spent = average(costs(windows, scale, self._tasks)), spending(windows, scale, self._tasks)
        if "tickets_per_day" not in load or each is None or spent is None:
            return None
        tickets = float(load["tickets_per_day"])
        if not load.get("always_on"):
            reload_cost = load_cost(line.loading(), scale)
            return None if reload_cost is None else tickets * each.value + reload_cost
        watts = 0.0 if scale.unit == "cpu_seconds" else idle_watts(windows, scale)
        rest = max(0.0, DAY_SECONDS - tickets * spent.seconds.value)
        return None if watts is None else tickets * each.value + watts * rest

    def _bill(self, spent: Spending | None) -> Bill | None:
        """Of so many tickets, with the band of the sensor or the estimate."""
        terms, scale = self.study.bill, self.weighed.scale
        if terms is None or spent is None or spent.joules is None:
            return None
        energy = Energy(
            spent.joules.value,
            spent.joules_lower,
            spent.joules_upper,
            Provenance(scale.provenance),
            scale.source,
            scale.scope,
        )
        return terms.bill(energy, BILLED_TICKETS)

    @property
    def _tasks(self) -> list[str]:
        return list(self.judge.primaries)

    def _windows(self, line: Evidence) -> Windows:
        return self.weighed.windows.get(line.label, {})


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None
