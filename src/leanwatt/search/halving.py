"""Successive halving (Jamieson and Talwalkar, 2016, arXiv:1502.07943): try all a little, and the better half more.

For many variants whose first answers already tell good from bad. Each rung asks `keep` times fewer variants and as many
times more examples (and fine-tuning steps) than the one before; only what is left at the end is tried in full, weighed
and ranked. Not for studies in which few examples cannot tell: look at the smallest detectable loss that `plan` prints.

What is better here follows the question that a study asks: the least cost among those that are about as good as the
reference, and only then the least loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, final

from annotated_types import Ge, Gt, Lt

from leanwatt.contracts import Search
from leanwatt.recipe import Fidelity, Trial
from leanwatt.record import Record
from leanwatt.search._findings import Candidate, Findings, Shown, anchors, costs, drawn, models, trials, tuning


@final
@dataclass(frozen=True)
class Halving(Search):
    """Rungs of more and more examples for fewer and fewer variants; what is left is tried in full."""

    rungs: Annotated[int, Ge(1)] = 2
    """Looks before the full one."""
    keep: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Share of the variants that goes on from each rung, rounded up; the reference always does."""
    examples: Annotated[int, Ge(1)] = 100
    """Validation examples per task on the first rung; each later rung has 1 / `keep` times as many."""
    steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps of each fine-tuning on the first rung, growing likewise. None trains in full at once: cheaper
    where many variants share one fine-tuning, which is then made once for all rungs."""
    slack: Annotated[float, Ge(0)] = 0.05
    """Loss against the reference that few examples forgive; add it to the study's margin in mind, not in the file."""
    variants: Annotated[int, Ge(1)] | None = None
    """How many start, drawn at random; None starts all."""
    tuned_alike: bool = False
    """Only variants whose fine-tuning is the reference's start: it is made in any case, and each other one costs as
    much again. For studies whose fine-tunings differ in price and hardly in what answering costs later, such as
    precisions."""
    seed: int = 0
    """Of the draw."""

    def wanted(self, space: Sequence[Trial], records: Sequence[Record], running: Sequence[Trial]) -> Sequence[Trial]:
        """All rungs up to the first that is not finished; after the last one, what is left in full."""
        found, asked = Findings(records), anchors(space)
        [reference, *others] = models(space)
        if self.tuned_alike:
            others = [candidate for candidate in others if tuning(candidate) == tuning(reference)]
        alive = drawn(others, self.variants, self.seed)
        for rung in range(self.rungs):
            looked = [each.at(self._fidelity(rung)) for each in (reference, *alive)]
            asked += trials(looked)
            if not all(found.is_over(each) for each in looked):
                return asked
            alive = self._better(alive, found.compared(looked), reference.label)
        return [*asked, *trials(alive)]

    def _fidelity(self, rung: int) -> Fidelity:
        growth = self.keep**-rung
        steps = None if self.steps is None else round(self.steps * growth)
        return Fidelity(round(self.examples * growth), steps)

    def _better(self, alive: Sequence[Candidate], shown: Mapping[str, Shown], reference: str) -> list[Candidate]:
        """The first `keep` of them; what failed on this rung ends here."""
        order = promising(shown, reference, self.slack)
        goes_on = set(order[: ceil(len(alive) * self.keep)])
        return [candidate for candidate in alive if candidate.label in goes_on]


def promising(shown: Mapping[str, Shown], reference: str, slack: float) -> list[str]:
    """All but the reference: about as good first, the cheapest leading; then the others, the best leading.

    Where the reference itself failed, the best quality takes its place.
    """
    spent = costs(shown)
    own = shown.get(reference)
    floor = (own.quality if own else max((each.quality for each in shown.values()), default=0.0)) - slack
    others = [label for label in shown if label != reference]
    good = [label for label in others if shown[label].quality >= floor]
    bad = [label for label in others if shown[label].quality < floor]
    cheapest = sorted(good, key=lambda label: (spent[label], label))
    return [*cheapest, *sorted(bad, key=lambda label: (-shown[label].quality, label))]
