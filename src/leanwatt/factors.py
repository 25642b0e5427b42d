"""The saving taken apart: pairs of variants that differ in one thing only."""

from collections.abc import Callable, Iterable, Sequence

from leanwatt.evidence import Evidence
from leanwatt.ranking import Axis, Factor, Ratio
from leanwatt.recipe import Choice, Trial

RatioOf = Callable[[str, str], Ratio | None]
AXES: tuple[Axis, ...] = ("engine", "batch", "precision", "pruning")


def factors(lines: Sequence[Evidence], ratio_of: RatioOf) -> tuple[Factor, ...]:
    """For each axis, every variant against the first of the study that differs from it in that axis alone."""
    models = sorted((line for line in lines if not line.trial.is_baseline), key=lambda line: line.place)
    return tuple(factor for axis in AXES for factor in _along(axis, models, ratio_of))


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
