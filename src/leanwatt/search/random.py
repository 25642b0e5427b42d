"""Random search (Bergstra and Bengio, 2012, JMLR 13): a few variants, drawn blindly.

The yardstick of every cleverer search, and a fair first look at a space too large to try. Each variant's place in the
draw follows from the seed and its own name, so that a new axis in the study does not redraw the old ones' order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

from annotated_types import Ge

from leanwatt.contracts import Search
from leanwatt.recipe import Trial
from leanwatt.record import Record
from leanwatt.search._findings import anchors, drawn, models, trials


@final
@dataclass(frozen=True)
class Random(Search):
    """The reference, the baselines and some variants drawn at random."""

    variants: Annotated[int, Ge(1)] = 10
    """How many are drawn, the reference not counted; all seeds and folds of each are tried."""
    seed: int = 0
    """Another seed draws others."""

    def wanted(self, space: Sequence[Trial], records: Sequence[Record], running: Sequence[Trial]) -> Sequence[Trial]:
        """The same, whatever is known so far."""
        return [*anchors(space), *trials(drawn(models(space)[1:], self.variants, self.seed))]
