"""Choose the option that, put behind the question, is most like a question and answer of the training examples.

What a search box does with multiple choice: the retrieval solver that the ARC test was built against (Clark et al.,
2018, arXiv:1803.05457), here over the training examples instead of a corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from annotated_types import Ge

from leanwatt.baseline._sessions import Lookup, body, from_probabilities, is_choice, options_of
from leanwatt.contracts import Baseline, Session
from leanwatt.question import Answer, Example, Question


@final
@dataclass(frozen=True)
class Retrieval(Baseline):
    """Highest cosine of TF-IDF between question with option and any training question with its right option."""

    least: Annotated[int, Ge(1)] = 1
    """Training examples in which a word must occur."""

    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Index the training examples; None unless the options differ from question to question."""
        if not is_choice(examples):
            return None
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(min_df=self.least, sublinear_tf=True, token_pattern=r"(?u)\b\w[\w-]*\b")
        index = words.fit_transform([f"{body(e.question)} {e.target}" for e in examples])
        return Lookup(lambda questions: [_chosen(words, index, question) for question in questions])


def _chosen(words: Any, index: Any, question: Question) -> Answer:
    """At a draw the first option."""
    options = options_of(question)
    similar = words.transform([f"{body(question)} {option}" for option in options]) @ index.T
    best = similar.max(axis=1).toarray().ravel()
    return from_probabilities(question, {options[int(best.argmax())]: 1.0})
