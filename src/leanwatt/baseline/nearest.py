"""The answer of the nearest old ticket: what an operator does with a search box."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from annotated_types import Ge

from leanwatt.baseline._sessions import Lookup, body, from_probabilities, is_choice
from leanwatt.contracts import Baseline, Session
from leanwatt.question import Answer, Example, Likelihood, Question, Score


@final
@dataclass(frozen=True)
class Nearest(Baseline):
    """Copy the answer of the training ticket with the most similar words (cosine of TF-IDF)."""

    least: Annotated[int, Ge(1)] = 1
    """Training tickets in which a word must occur."""

    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Index the training tickets; None for a task without answers, or with other options for every question."""
        if not examples or isinstance(examples[0].question, Likelihood) or is_choice(examples):
            return None
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(min_df=self.least, sublinear_tf=True, token_pattern=r"(?u)\b\w[\w-]*\b")
        index = words.fit_transform([body(example.question) for example in examples])
        targets = [example.target for example in examples]
        return Lookup(lambda questions: _nearest(words, index, targets, questions))


def _nearest(words: Any, index: Any, targets: Sequence[str], questions: Sequence[Question]) -> list[Answer]:
    import numpy as np

    similar = words.transform([body(question) for question in questions]) @ index.T
    places = np.asarray(similar.argmax(axis=1)).ravel().tolist()  # A matrix in older scipy, an array in newer.
    found = []
    for question, place in zip(questions, places, strict=True):
        is_score = isinstance(question, Score)
        found.append(from_probabilities(question, {targets[place]: 1.0}) if is_score else Answer(targets[place]))
    return found
