"""TF-IDF and logistic regression: the classical way to sort tickets, and the rival of every language model.

The strength of the regularization is chosen by cross-validation inside the training examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from annotated_types import Ge

from leanwatt.baseline._sessions import Lookup, body, from_probabilities, is_closed
from leanwatt.contracts import Baseline, Session
from leanwatt.errors import RefusedError
from leanwatt.question import Answer, Example, Question

STRENGTHS = (1.0, 10.0, 100.0)


@final
@dataclass(frozen=True)
class Tfidf(Baseline):
    """Words and pairs of words, weighted by rarity, into a linear model of the classes."""

    ngrams: Annotated[int, Ge(1)] = 2
    """Longest run of words that counts as a feature."""
    least: Annotated[int, Ge(1)] = 2
    """Training tickets in which a feature must occur."""

    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Fit on the tickets' texts; None for tasks that are answered by a text."""
        if not is_closed(examples):
            return None
        from threadpoolctl import threadpool_limits

        texts, targets = [body(example.question) for example in examples], [example.target for example in examples]
        groups = [example.group for example in examples]
        try:
            with threadpool_limits(1):  # Sparse data: more threads wait for each other, at five times the CPU time.
                tried = [self._tried(texts, targets, groups, strength) for strength in STRENGTHS]
                pipeline = self._pipeline(max(tried, key=lambda pair: pair[0])[1]).fit(texts, targets)
        except ValueError as error:
            raise RefusedError(
                f"baseline tfidf: cannot learn from these {len(texts)} tickets ({error}). Lower `least`."
            ) from error
        return Lookup(lambda questions: _answers(pipeline, questions))

    def _tried(self, texts: list[str], targets: list[str], groups: list[str], strength: float) -> tuple[float, float]:
        """Mean macro-F1 of two group-wise folds, and the strength; 0 where a fold has one class or no common word."""
        from sklearn.model_selection import GroupKFold, cross_val_score

        if len(set(groups)) < 4:
            return 0.0, strength
        folds = GroupKFold(2)
        try:
            scores = cross_val_score(
                self._pipeline(strength),
                texts,
                targets,
                groups=groups,
                cv=folds,
                scoring="f1_macro",
                error_score="raise",
            )
        except ValueError:  # Nothing to choose by: the first strength is taken.
            return 0.0, strength
        return float(scores.mean()), strength

    def _pipeline(self, strength: float) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(
            ngram_range=(1, self.ngrams), min_df=self.least, sublinear_tf=True, token_pattern=r"(?u)\b\w[\w-]*\b"
        )
        return make_pipeline(words, LogisticRegression(C=strength, max_iter=1000))


def _answers(pipeline: Any, questions: Sequence[Question]) -> list[Answer]:
    shares = pipeline.predict_proba([body(question) for question in questions])
    return [
        from_probabilities(question, dict(zip(pipeline.classes_, map(float, row), strict=True)))
        for question, row in zip(questions, shares, strict=True)
    ]
