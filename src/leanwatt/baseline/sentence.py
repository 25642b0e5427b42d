"""Copy one sentence of the text: what any summary must beat.

The first sentence of a report, or the last of an abstract, often says it all. The place that fitted the training
references best is used (the "lead" rival of summarization, with its place learned).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

from annotated_types import Ge

from leanwatt.baseline._sessions import Lookup, body, is_written
from leanwatt.contracts import Baseline, Session
from leanwatt.question import Answer, Example

END = re.compile(r"(?<=[.!?])\s+|\n+")


@final
@dataclass(frozen=True)
class Sentence(Baseline):
    """The sentence at the place with the highest mean ROUGE-L to the training references."""

    places: Annotated[int, Ge(1)] = 3
    """Places from the start, and as many from the end, that are tried."""
    against: Annotated[int, Ge(1)] = 500
    """Training examples that they are tried on, evenly spread."""

    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Choose the place; None for tasks that are not answered by a text."""
        if not is_written(examples):
            return None
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"])
        tried = examples[:: max(1, len(examples) // self.against)]

        def fit_of(place: int) -> float:
            copied = [(example.target, at(body(example.question), place)) for example in tried]
            return float(sum(scorer.score(target, text)["rougeL"].fmeasure for target, text in copied))

        best = max([*range(self.places), *range(-1, -1 - self.places, -1)], key=fit_of)
        facts = {"engine": "baseline", "kernel": "classical", "sentence": best}
        return Lookup(lambda questions: [Answer(at(body(question), best)) for question in questions], facts)


def at(text: str, place: int) -> str:
    """The sentence at that place, from the end where it is negative; the nearest one where there are fewer."""
    sentences = [each for each in END.split(text.strip()) if each] or [""]
    return sentences[max(-len(sentences), min(place, len(sentences) - 1))]
