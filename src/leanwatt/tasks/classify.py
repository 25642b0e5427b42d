"""Sort texts into classes of any kind: intents, topics, teams, severities.

The model scores every label after the text, or writes one (`mode: generate`). Ranked by macro-F1, in which a rare class
counts as much as a frequent one; accuracy and calibration stand beside it. Labels are read by the model, so give them
as words (`card arrival`), not as numbers.
"""

from dataclasses import dataclass
from typing import final

from leanwatt.tasks._closed import Closed


@final
@dataclass(frozen=True)
class Classify(Closed):
    """Text in, one of the labels out."""
