"""Where each variant stands: against the reference, against the cheapest, and in the score that weighs both ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from leanwatt.compare import KERNEL_ALLOWANCE, RESOLUTION, Costs, average, on_front, ratio, told_apart
from leanwatt.measurement import Provenance
from leanwatt.quality import worst_word
from leanwatt.ranking import Entry, Making, Ratio, TaskResult, Word
from leanwatt.spending import RANKABLE, Weighed, costs


@dataclass(frozen=True)
class Standing:
    """Compares the lines of one table."""

    single: Sequence[Entry]
    """Every line by itself."""
    weighed: Weighed
    tasks: Sequence[str]
    reference: Entry
    weight: float

    @cached_property
    def leader(self) -> str | None:
        """The cheapest of all, however good; None where nothing can be compared."""
        whole = [entry for entry in self.single if entry.cost is not None]
        return min(whole, key=by_cost).label if whole else None

    def ratio(self, mine: str, other: str) -> Ratio | None:
        """Cost of a ticket over another's; None where the two cannot be compared."""
        return ratio(self.ticket_costs.get(mine, {}), self.ticket_costs.get(other, {}), self._allowance(mine, other))

    def _allowance(self, mine: str, other: str) -> float:
        """CPU-seconds of unlike kernels do not stand for equal joules; nor do those of unknown ones."""
        if self.weighed.scale.unit == "joules":
            return RESOLUTION
        kernels = [entry.facts.get("kernel") for entry in self.single if entry.label in (mine, other)]
        same = None not in kernels and len(set(map(str, kernels))) == 1
        return RESOLUTION if same else KERNEL_ALLOWANCE

    def compared(self) -> list[Entry]:
        """Every line beside the reference and the leader."""
        labels = [entry.label for entry in self.single if entry.cost is not None]
        to_reference = {label: self.ratio(label, self.reference.label) for label in labels}
        to_leader = {label: self.ratio(label, str(self.leader)) for label in labels}
        differ = told_apart({label: r for label, r in to_reference.items() if label != self.reference.label})
        behind = told_apart({label: r for label, r in to_leader.items() if label != self.leader})
        found = [self._scored(entry, to_reference.get(entry.label)) for entry in self.single]
        front = on_front({e.label: (e.cost.value, e.quality) for e in found if e.cost and e.quality is not None})
        found = [
            replace(
                entry,
                to_leader=to_leader.get(entry.label),
                is_tied=entry.label in behind and not behind[entry.label],
                saves=_saves(entry, differ),
                is_on_front=entry.label in front,
                word=self._word(entry),
                payback_tickets=self.paid_back(entry.making, entry),
            )
            for entry in found
        ]
        return found

    def _word(self, entry: Entry) -> Word:
        if entry.label == self.reference.label:
            return "reference"
        losses = [result.loss for result in entry.tasks.values()]
        words: list[Word] = [each.word if each else "cannot tell" for each in losses]
        return worst_word(words if len(words) == len(self.tasks) else [*words, "cannot tell"])

    def _scored(self, entry: Entry, to_reference: Ratio | None) -> Entry:
        """With phi and R, where it can be compared with the reference on every task."""
        tasks = {name: self._with_r(entry, name, result) for name, result in entry.tasks.items()}
        entry = replace(entry, tasks=tasks, to_reference=to_reference)
        if entry.cost is None or any(result.r is None for result in tasks.values()):
            return entry
        ends = [self._ends(entry, name) for name in tasks]
        return replace(
            entry,
            phi=_mean([result.phi for result in tasks.values()]),
            r=_mean([result.r for result in tasks.values()]),
            r_low=_mean([low for low, _ in ends]),
            r_high=_mean([high for _, high in ends]),
        )

    def _with_r(self, entry: Entry, task: str, result: TaskResult) -> TaskResult:
        found = self._task_ratio(entry, task)
        if found is None:
            return result
        phi = 1 / (1 + found.value)
        return replace(result, phi=phi, r=self.weight * phi + (1 - self.weight) * result.quality.value)

    def _task_ratio(self, entry: Entry, task: str) -> Ratio | None:
        each = self._task_costs[task]
        return ratio(each.get(entry.label, {}), each.get(self.reference.label, {}))

    @cached_property
    def _task_costs(self) -> dict[str, dict[str, Costs]]:
        return {task: self._costs_of([task]) for task in self.tasks}

    def _ends(self, entry: Entry, task: str) -> tuple[float | None, float | None]:
        """R at the worse ends of cost and quality, and at their better ends."""
        found, rho, w = self._task_ratio(entry, task), entry.tasks[task].quality, self.weight
        if found is None or found.low is None or found.high is None or rho.low is None or rho.high is None:
            return None, None
        return w / (1 + found.high) + (1 - w) * rho.low, w / (1 + found.low) + (1 - w) * rho.high

    def paid_back(self, spent: Making | None, entry: Entry) -> float | None:
        """Tickets until what was spent beyond making the reference is saved again; None if never, or not comparable."""
        reference = self.reference
        own, base = self._making_cost(spent), self._making_cost(reference.making)
        if entry.label == reference.label or not entry.cost or not reference.cost or own is None or base is None:
            return None
        saved = reference.cost.value - entry.cost.value
        return max(0.0, own - base) / saved if saved > 0 else None

    def _making_cost(self, spent: Making | None) -> float | None:
        if spent is None or self.weighed.scale.unit == "cpu_seconds":
            return spent.cpu_seconds if spent else None
        return spent.joules if Provenance(spent.provenance) in RANKABLE else None

    def best_on(self, entries: Sequence[Entry], task: str) -> str | None:
        """Cheapest on this task among the reference and what is non-inferior to it there."""
        found: list[tuple[float, str]] = []
        for entry in entries:
            cost, result = average(self._task_costs[task].get(entry.label, {})), entry.tasks.get(task)
            is_good = result is not None and result.loss is not None and result.loss.word == "non-inferior"
            if cost is not None and result is not None and (is_good or entry.word == "reference"):
                found.append((cost.value, entry.label))
        return min(found)[1] if found else None

    @cached_property
    def ticket_costs(self) -> dict[str, Costs]:
        """Per ticket; empty for what was not weighed on every task."""
        return self._costs_of(self.tasks)

    def _costs_of(self, tasks: Sequence[str]) -> dict[str, Costs]:
        return {label: costs(windows, self.weighed.scale, tasks) for label, windows in self.weighed.windows.items()}


def by_cost(entry: Entry) -> tuple[bool, float, int]:
    """Cheapest first; what has no comparable cost after them, in the order of the study."""
    return entry.cost is None, entry.cost.value if entry.cost else 0.0, entry.place


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _saves(entry: Entry, differ: Mapping[str, bool]) -> Literal["yes", "no", "cannot tell"] | None:
    if entry.label not in differ or entry.to_reference is None:
        return None
    if not differ[entry.label]:
        return "cannot tell"
    return "yes" if entry.to_reference.value < 1 else "no"
