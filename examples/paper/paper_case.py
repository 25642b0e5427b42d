"""A finished run of the paper's study, and what can be asked of it: pairs, gains in R, arms, curves."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from leanwatt import catalog, curve, starter
from leanwatt.compare import KERNEL_ALLOWANCE, RESOLUTION, Window, ratio
from leanwatt.curve import Curve
from leanwatt.rank import rank
from leanwatt.ranking import Entry, Ranking, Ratio, TaskResult
from leanwatt.recipe import Choice, Recipe, Trial
from leanwatt.record import Record
from leanwatt.spending import RANKABLE
from leanwatt.store import Store
from leanwatt.study import Study
from leanwatt.variants import Base, local_base, stage_keys

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "nf4": 4}
COMPRESSING = ("prune", "quantize")
Run = tuple[int, int]
"""Seed and fold: a training of its own."""


@dataclass(frozen=True)
class Gain:
    """How much higher R is than a rival's, between bounds at which cost and quality are both at their ends."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Change:
    """How much higher quality is than a rival's, between one-sided 95 % bounds that hold for every seed."""

    value: float
    low: float
    high: float
    p_higher: float
    """Chance of so good a result in every seed if there were no gain."""


@dataclass(frozen=True)
class Case:
    """A finished study, and what to ask of it."""

    study: Study
    ranked: Callable[[str, float], Ranking]
    """The ranking with another reference and margin: everything is then paired with that reference."""
    curves: Mapping[tuple[str, Run], Curve]
    """By label and run."""

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """By label, language models only."""
        return {trial.label: trial for trial in self.study.trials("", 1) if not trial.is_baseline}

    @cached_property
    def plain(self) -> Ranking:
        """As the study ranks."""
        return self.ranked(self.study.reference, self.study.margin)

    def done(self) -> dict[str, Trial]:
        """Those that were graded and weighed on every task."""
        return {e.label: self.trials[e.label] for e in self.plain.entries if e.is_complete and e.label in self.trials}

    def without(self, trial: Trial, rooms: Sequence[str]) -> str:
        """The label of the same variant without the steps of these rooms."""
        recipe = trial.variant.recipe
        kept = Recipe(recipe.base, tuple(s for s in recipe.steps if s.room not in rooms), recipe.revision)
        return replace(trial, variant=replace(trial.variant, recipe=kept)).label

    def gain(self, label: str, rival: str) -> Gain | None:
        """R of one less R of the other."""
        entry = self.ranked(rival, self.study.margin).entry(label)
        return gain(entry.to_reference, entry, self.study.weight)


def gain(cost: Ratio | None, entry: Entry, weight: float) -> Gain | None:
    """Paired with the reference of the entry's ranking, for which phi is 0.5; None where one of the two is unknown.

    The bounds of the cost are wider by its allowance: CPU-seconds of unlike kernels do not stand for equal joules.
    """
    qualities = [change(result) for result in entry.tasks.values()]
    known = [each for each in qualities if each is not None]
    if cost is None or not known or len(known) < len(qualities):
        return None

    def score(ratio_: float, differences: Sequence[float]) -> float:
        return weight * (1 / (1 + ratio_) - 0.5) + (1 - weight) * sum(differences) / len(differences)

    value = score(cost.value, [each.value for each in known])
    if cost.low is None or cost.high is None:
        return Gain(value, None, None)
    low, high = cost.low / (1 + cost.allowance), cost.high * (1 + cost.allowance)
    return Gain(value, score(high, [e.low for e in known]), score(low, [e.high for e in known]))


def change(result: TaskResult) -> Change | None:
    """Of quality, against the reference: the mean over seeds, between the worst bounds of any; None without a pair."""
    losses = result.loss_by_seed.values()
    if not losses:
        return None
    mean = sum(loss.difference for loss in losses) / len(losses)
    low, high = min(loss.low for loss in losses), max(loss.high for loss in losses)
    return Change(mean, low, high, max(loss.p_higher for loss in losses))


def steps_of(trial: Trial, room: str) -> list[Choice]:
    """The steps of one room."""
    return [step for step in trial.variant.recipe.steps if step.room == room]


def arm(trial: Trial) -> str:
    """How it was fine-tuned."""
    return " > ".join(map(str, steps_of(trial, "finetune"))) or "untouched"


def tuned_bits(trial: Trial) -> int | None:
    """Precision of its one fine-tuning."""
    tuned = steps_of(trial, "finetune")
    return BITS.get(str(tuned[0].settings.get("precision"))) if len(tuned) == 1 else None


def served_bits(trial: Trial) -> int | None:
    """Precision of its weights in answering: of the quantizer, else what the engine multiplies in."""
    for step in steps_of(trial, "quantize"):
        return int(step.settings.get("bits", 0)) or None
    return BITS.get(str(trial.engine.settings.get("compute")))


def is_uncompressed(trial: Trial) -> bool:
    """Neither pruned nor quantized."""
    return not any(step.room in COMPRESSING for step in trial.variant.recipe.steps)


def trains_on(trial: Trial) -> bool:
    """It is fine-tuned after it was compressed, so its training is another one than that of what was not."""
    rooms = [step.room for step in trial.variant.recipe.steps]
    return any(room in COMPRESSING and "finetune" in rooms[place:] for place, room in enumerate(rooms))


def arms(case: Case) -> dict[str, Trial]:
    """LoRA at each precision, served alike: uncompressed, in the reference's engine at its batch."""
    reference = case.trials[case.plain.reference]
    return {
        label: trial
        for label, trial in case.done().items()
        if is_uncompressed(trial)
        and (trial.engine, trial.batch) == (reference.engine, reference.batch)
        and [step.name for step in steps_of(trial, "finetune")] == ["lora"]
        and tuned_bits(trial) is not None
    }


def level(case: Case, found: Iterable[str], loss: float | None) -> float | None:
    """The validation loss that all are asked to reach: as given, else the best one of the worst of them."""
    least = [each.least_loss for (label, _), each in case.curves.items() if label in set(found)]
    return loss if loss is not None else max(least, default=None)


def is_sensed(case: Case) -> bool:
    """Every curve has measured joules."""
    return all(each.provenance in RANKABLE for each in case.curves.values())


def costs_to(case: Case, label: str, loss: float | None) -> dict[Window, float]:
    """A window for each run, in joules where every curve has measured ones, else in CPU-seconds.

    Empty where `without_cost` says why.
    """
    if loss is None or without_cost(case, label, loss):
        return {}
    unit: Literal["joules", "cpu_seconds"] = "joules" if is_sensed(case) else "cpu_seconds"
    spent = {Window(number): case.curves[label, run].cost_to(loss, unit) for number, run in enumerate(runs(case))}
    return {window: cost for window, cost in spent.items() if cost}


def runs(case: Case) -> list[Run]:
    """All that left a curve, of whichever fine-tuning."""
    return sorted({run for _, run in case.curves})


def without_cost(case: Case, label: str, loss: float) -> str:
    """Why nothing is known of what coming down to the loss takes: the luckier runs alone would be too cheap."""
    curves = [case.curves.get((label, run)) for run in runs(case)]
    if not curves or None in curves:
        return "not every run left a curve of its validation loss"
    short = sum(each is not None and each.least_loss > loss for each in curves)
    return f"{short} of {len(curves)} runs never came down to a validation loss of {loss:.3f}" if short else ""


def tuning_ratio(case: Case, mine: Mapping[Window, float], other: Mapping[Window, float]) -> Ratio | None:
    """Of the costs of two fine-tunings, which at unlike precisions run in unlike kernels."""
    return ratio(mine, other, RESOLUTION if is_sensed(case) else KERNEL_ALLOWANCE)


def pruned(case: Case) -> Iterator[tuple[str, Entry]]:
    """Every pruned variant, compared with the same one unpruned."""
    there = case.done()
    for label, trial in there.items():
        parent = case.without(trial, ("prune",))
        if steps_of(trial, "prune") and parent in there:
            yield label, case.ranked(parent, case.study.margin).entry(label)


def has_pattern(trial: Trial) -> bool:
    """Two of every four weights are zero."""
    return any(step.settings.get("pattern") == "2:4" for step in steps_of(trial, "prune"))


def curves_of(store: Store, records: Sequence[Record]) -> dict[tuple[str, Run], Curve]:
    """Of the last fine-tuning of every variant that was graded.

    It lies beside the model that the fine-tuning made; merging and pruning make others, without a curve.
    """
    found = {}
    for record in records:
        variant = record.trial.variant
        if record.job != "grade" or record.trial.is_baseline:
            continue
        keys = reversed(stage_keys(variant, _base(variant.recipe.base, variant.recipe.revision)))
        held = next((each for key in keys if (each := curve.read(store.variants / key)) is not None), None)
        if held is not None:
            found[record.trial.label, (variant.seed, variant.fold)] = held
    return found


@cache
def _base(name: str, revision: str | None) -> Base:
    """As the study named it; what is not here any more has no key that any stage has."""
    return Base(name, "", starter.key()) if name == starter.NAME else local_base(name, revision)


def case_of(study: Study, folder: Path) -> Case:
    """From a finished study's folder."""
    store = Store(folder)
    records = store.records()
    primaries = {choice.name: catalog.find("tasks", choice.name).primary for choice in study.tasks}

    @cache
    def ranked(reference: str, margin: float) -> Ranking:
        return rank(replace(study, reference=reference, margin=margin), primaries, records, store.rows)

    return Case(study, ranked, curves_of(store, records))
