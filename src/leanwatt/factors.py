"""The saving taken apart: pairs that differ in one thing only, and the whole way from the reference to each variant."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from leanwatt.compare import Costs, ratio
from leanwatt.evidence import Evidence
from leanwatt.ranking import Apart, Axis, Entry, Factor, Figure, Part, Ratio
from leanwatt.recipe import Choice, Trial

RatioOf = Callable[[str, str], Ratio | None]
AXES: tuple[Axis, ...] = ("engine", "batch", "precision", "pruning")
WAY: tuple[Axis, ...] = ("training", *AXES)
"""The order in which the reference is turned into a variant. Another order would share out what two axes do together
in another way."""


def factors(lines: Sequence[Evidence], ratio_of: RatioOf) -> tuple[Factor, ...]:
    """For each axis, every variant against the first of the study that differs from it in that axis alone."""
    models = _models(lines)
    return tuple(factor for axis in AXES for factor in _along(axis, models, ratio_of))


def _models(lines: Sequence[Evidence]) -> list[Evidence]:
    """In the order of the study."""
    return sorted((line for line in lines if not line.trial.is_baseline), key=lambda line: line.place)


def _along(axis: Axis, lines: Sequence[Evidence], ratio_of: RatioOf) -> list[Factor]:
    first: dict[object, Evidence] = {}
    found = []
    for line in lines:
        rest, value = _split(axis, line.trial)
        before = first.setdefault(rest, line)
        ratio = ratio_of(line.label, before.label)
        if before is not line and ratio is not None:
            found.append(Factor(axis, _split(axis, before.trial)[1], value, ratio, line.label))
    return found


def _split(axis: Axis, trial: Trial) -> tuple[object, str]:
    """What must be equal, and the value on the axis."""
    recipe = trial.variant.recipe
    base, steps = (recipe.base, recipe.revision), recipe.steps
    if axis == "engine":
        return (base, steps, trial.batch), str(trial.engine)
    if axis == "batch":
        return (base, steps, trial.engine), str(trial.batch)
    if axis == "pruning":
        others = tuple(step for step in steps if step.room != "prune")
        return (base, others, trial.engine, trial.batch), _named(step for step in steps if step.room == "prune")
    return (base, tuple(_without_precision(steps)), trial.engine, trial.batch), _precision(steps)


def _without_precision(steps: Sequence[Choice]) -> list[Choice]:
    return [_stripped(step) for step in steps if step.room != "quantize"]


def _stripped(step: Choice) -> Choice:
    return Choice(step.room, step.name, {key: value for key, value in step.settings.items() if key != "precision"})


def _precision(steps: Sequence[Choice]) -> str:
    trained = [f"{step.name} {step.settings['precision']}" for step in steps if "precision" in step.settings]
    return ", ".join([*trained, _named(step for step in steps if step.room == "quantize")])


def _named(steps: Iterable[Choice]) -> str:
    return " > ".join(map(str, steps)) or "none"


@dataclass(frozen=True)
class Chain:
    """Takes the cost of each variant over the reference's apart, into parts that multiply to the whole."""

    lines: Sequence[Evidence]
    """Those that were weighed on every task."""
    entries: Mapping[str, Entry]
    costs: Mapping[str, Costs]
    """Of a ticket, by label, in the unit that is ranked."""
    reference: str

    def all(self) -> tuple[Apart, ...]:
        """Every language model but the reference, in the order of the study; none where the reference is missing."""
        models = _models(self.lines)
        begin = next((line for line in models if line.label == self.reference), None)
        if begin is None:
            return ()
        there: dict[object, Evidence] = {}
        for line in models:
            there.setdefault(_place(line.trial), line)
        ways = {line.label: _way(begin, line, there) for line in models if line is not begin}
        found = [self._apart(label, way) for label, way in ways.items()]
        return tuple(each for each in found if each is not None)

    def _apart(self, label: str, way: Sequence[tuple[tuple[Axis, ...], str]]) -> Apart | None:
        """Costs are paired in the windows that all stops share, so that the parts multiply to the whole exactly."""
        stops = [self.reference, *(stop for _, stop in way)]
        shared = set.intersection(*(set(self.costs.get(stop, {})) for stop in stops))
        costs = [{window: self.costs[stop][window] for window in shared} for stop in stops]
        whole = ratio(costs[-1], costs[0])
        if whole is None:
            return None
        lengths = [self._length(stop) for stop in stops]
        known = [each for each in lengths if each is not None]
        is_told = len(known) == len(lengths)
        parts = []
        for place, (axes, _) in enumerate(way):
            step = ratio(costs[place + 1], costs[place])
            assert step is not None  # They share the windows of the whole.
            parts.append(Part(axes, _over(step, known[place + 1] / known[place] if is_told else 1.0)))
        if is_told:
            parts.append(Part(("output length",), Figure(known[-1], repeats=whole.rounds)))
        return Apart(label, tuple(parts), _over(whole, 1.0))

    def _length(self, label: str) -> float | None:
        """What the reference would spend over what it spends, if it wrote as many tokens per ticket as this one.

        At what a new token takes the reference (`Phases.decode`). So the lengths of a way multiply to that of its end,
        and the other parts are what changed beside the number of tokens written. It is not what this variant would save
        by writing as much as the reference: a token of its own is cheaper or dearer. Tokens that are read belong to
        what changed them: prompts are the same for all, and it is an engine that reads a prefix once, or a pruned
        vocabulary that spells a ticket in more tokens. Options are no writing, and the same for all, but for such a
        vocabulary. None where phases were not weighed, or too noisily to give a price above 0.
        """
        own, reference = self.entries[label], self.entries[self.reference]
        if reference.phases is None or not reference.cost or not reference.spending or not own.spending:
            return None
        more = own.spending.tokens_out - reference.spending.tokens_out
        each = reference.phases.decode.value
        found = 1 + each * more / reference.cost.value
        return found if each > 0 and found > 0 else None


def _way(begin: Evidence, end: Evidence, there: Mapping[object, Evidence]) -> list[tuple[tuple[Axis, ...], str]]:
    """From stop to stop: which axes change, and the label; axes are taken together where nothing was weighed between.

    Variants that differ in the order of their steps alone have one place: then nothing more is to be told apart.
    """
    before, after = _place(begin.trial), _place(end.trial)
    found: list[tuple[tuple[Axis, ...], str]] = []
    changed: tuple[Axis, ...] = ()
    for count, axis in enumerate(WAY, 1):
        if before[count - 1] == after[count - 1]:
            continue
        changed = (*changed, axis)
        place = (*after[:count], *before[count:])
        stop = end if place == after else there.get(place)
        if stop is not None:
            found.append((changed, stop.label))
            changed = ()
    return found or [(("training",), end.label)]


def _place(trial: Trial) -> tuple[object, ...]:
    """Along WAY."""
    recipe = trial.variant.recipe
    trained = [step for step in _without_precision(recipe.steps) if step.room != "prune"]
    pruned = _named(step for step in recipe.steps if step.room == "prune")
    training = (recipe.base, recipe.revision, tuple(trained))
    return training, trial.engine, trial.batch, _precision(recipe.steps), pruned


def _over(found: Ratio, length: float) -> Figure:
    """The ratio, and its interval, with a part that is told elsewhere taken out."""
    low, high = (None if each is None else each / length for each in (found.low, found.high))
    return Figure(found.value / length, low, high, found.rounds)
