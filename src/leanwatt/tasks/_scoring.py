"""From the scores of options to what was chosen, and how sure the model was."""

import math
from typing import Any

from leanwatt.question import Answer, Example, Score


def chances(example: Example, question: Score, answer: Answer) -> list[float]:
    """Softmax of the scores, one per option. Raises ValueError where an engine gave another number of scores."""
    if len(answer.scores) != len(question.options):
        raise ValueError(
            f"{len(answer.scores)} scores came back for {len(question.options)} options of example {example.id}."
        )
    highest = max(answer.scores)
    weights = [math.exp(score - highest) for score in answer.scores]
    return [weight / sum(weights) for weight in weights]


def sureness(*, correct: bool, confidence: float | None, p_target: float | None) -> dict[str, Any]:
    """Columns of every answer that is right or wrong; None where nothing was scored."""
    return {"correct": correct, "confidence": confidence, "p_target": p_target}
