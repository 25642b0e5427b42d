"""Try everything: the whole space, in the order of the study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from leanwatt.contracts import Search
from leanwatt.recipe import Trial
from leanwatt.record import Record


@final
@dataclass(frozen=True)
class Grid(Search):
    """Every trial of the space."""

    def wanted(self, space: Sequence[Trial], records: Sequence[Record], running: Sequence[Trial]) -> Sequence[Trial]:
        """The space itself."""
        return space
