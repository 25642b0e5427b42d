"""Name the root cause of a ticket, out of a closed set of causes.

The model scores every cause after the ticket, or writes one (`mode: generate`). Ranked by macro-F1, in which a rare
cause counts as much as a frequent one. `classify` is the same for labels of any kind.
"""

from dataclasses import dataclass
from typing import final

from leanwatt.tasks._closed import Closed


@final
@dataclass(frozen=True)
class RootCause(Closed):
    """Text in, one of the known causes out."""

    instruction: str = "Name the root cause of this fault."
    """What the model is told to do."""
    lead: str = "Root cause:"
    """What the answer follows on."""
