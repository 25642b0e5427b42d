"""Always the most frequent class: what any model of a closed set must beat."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from leanwatt.baseline._sessions import Lookup, from_probabilities, is_closed
from leanwatt.contracts import Baseline, Session
from leanwatt.question import Example


@final
@dataclass(frozen=True)
class Majority(Baseline):
    """The shares of the classes in training, whatever the ticket says."""

    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Count the classes; None for tasks that are answered by a text."""
        if not is_closed(examples):
            return None
        counts = Counter(example.target for example in examples)
        shares = {target: count / len(examples) for target, count in counts.items()}
        return Lookup(lambda questions: [from_probabilities(question, shares) for question in questions])
