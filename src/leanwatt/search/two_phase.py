"""The order of the paper (arXiv:2503.17783): precision first, and pruning only on the best of it.

All variants without pruning are tried and ranked by R = w phi + (1 - w) rho, from what grading took and showed. Then
every pruning that the study names is tried on the best alone, in the same engine at the same batch size. It spends the
product of the axes only as their sum, and misses a pruning that would pay only at another precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, final

from annotated_types import Ge, Le

from leanwatt.contracts import Search
from leanwatt.recipe import Choice, Trial
from leanwatt.record import Record
from leanwatt.search._findings import Candidate, Findings, Shown, anchors, costs, models, trials


@final
@dataclass(frozen=True)
class TwoPhase(Search):
    """Everything without pruning; then each pruning of the best."""

    weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """w in R: how much cost counts beside quality."""
    best: Annotated[int, Ge(1)] = 1
    """How many go on to pruning."""

    def wanted(self, space: Sequence[Trial], records: Sequence[Record], running: Sequence[Trial]) -> Sequence[Trial]:
        """The first phase; once it is finished, the second too."""
        found, everyone = Findings(records), models(space)
        first = [candidate for candidate in everyone if not _is_pruned(candidate)]
        asked = [*anchors(space), *trials(first)]
        if not all(found.is_over(candidate) for candidate in first):
            return asked
        order = by_r(found.compared(first), everyone[0].label, self.weight)
        chosen = {_unpruned(candidate) for candidate in first if candidate.label in order[: self.best]}
        return [*asked, *trials(c for c in everyone if _is_pruned(c) and _unpruned(c) in chosen)]


def by_r(shown: Mapping[str, Shown], reference: str, weight: float) -> list[str]:
    """Highest R first. Where the reference failed, the mean cost takes its place in phi."""
    spent = costs(shown)
    if not spent:
        return []
    own = spent.get(reference, sum(spent.values()) / len(spent))
    score = {label: weight * own / (own + spent[label]) + (1 - weight) * shown[label].quality for label in shown}
    return sorted(score, key=lambda label: (-score[label], label))


def _is_pruned(candidate: Candidate) -> bool:
    return any(step.room == "prune" for step in candidate.trials[0].variant.recipe.steps)


def _unpruned(candidate: Candidate) -> tuple[str, tuple[Choice, ...], Choice, int]:
    """What a variant is apart from its pruning."""
    trial = candidate.trials[0]
    recipe = trial.variant.recipe
    steps = tuple(step for step in recipe.steps if step.room != "prune")
    return f"{recipe.base} {recipe.revision}", steps, trial.engine, trial.batch
