"""Windows of weighing: warm-up, a length that the sensors need, a repeat where something spoiled one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from leanwatt.contracts import Session
from leanwatt.ledger import Ledger
from leanwatt.measurement import PREFILL, PREFILL_AND_DECODE, is_stable, shortest_window_seconds
from leanwatt.question import Generate, Likelihood, Prompt, Question

ATTEMPTS: Final = 3
"""Most windows of one weighing; one is enough unless a sensor or a neighbour spoils it."""
WARM_UP_SECONDS: Final = 3.0
"""Longest warm-up when the times do not settle."""
RESERVE: Final = 1.05
"""A window is planned this much longer than it must be: passes differ in time."""
PROMPT_WORDS: Final = 64
NEW_TOKENS: Final = 32
"""Of the fixed lengths at which prefill and decode are weighed apart."""
PROMPTS: Final = 8
"""How many of them, where the batch is not larger."""


def fill(session: Session, questions: Sequence[Question], ledger: Ledger, stage: str, shortest_seconds: float) -> None:
    """Answer the questions over and over, warmed up, in a window no shorter than the sensors allow.

    A spoiled window is kept and charged under another name, and repeated; the last one counts whatever happens to it,
    and its flags go with it.
    """
    passes = _warmed_up(session, questions, Ledger(ledger.read), shortest_seconds)
    for _ in range(ATTEMPTS):
        with ledger.stage(stage) as tally:
            for _ in range(passes):
                tally.add(list(session.answer(questions)))
        if not ledger.measurements[-1].is_spoiled:
            return
        ledger.rename_last(f"spoiled/{stage}")
    ledger.rename_last(stage)  # No better one was to be had.


def _warmed_up(session: Session, questions: Sequence[Question], warm_up: Ledger, shortest_seconds: float) -> int:
    """Answer until the times settle; how many passes then fill a window."""
    times: list[float] = []
    # Twice at least: an engine that compiles does so in the first pass, which says nothing of the next.
    while len(times) < 2 or (sum(times) < WARM_UP_SECONDS and not is_stable(times, last=3, variation=0.05)):
        with warm_up.stage("warm-up"):
            session.answer(questions)
        times.append(warm_up.measurements[-1].seconds)
    periods = [energy.period_seconds or 0.0 for energy in warm_up.measurements[-1].devices.values()]
    window = max(shortest_seconds, *map(shortest_window_seconds, periods), 0.0)
    return max(1, math.ceil(RESERVE * window / times[-1]))


def phases(asked: Sequence[Question], batch: int) -> dict[str, list[Generate]]:
    """By stage: the same prompts of one length, once with one new token and once with more, whatever the model says."""
    prompts = [question.prompt for question in asked if not isinstance(question, Likelihood)]
    if not prompts:
        return {}
    count = max(PROMPTS, batch)
    fixed = [_of_one_length(prompts[i % len(prompts)], PROMPT_WORDS) for i in range(count)]
    return {
        stage: [Generate(prompt, limit=new, at_least=new) for prompt in fixed]
        for stage, new in ((PREFILL, 1), (PREFILL_AND_DECODE, 1 + NEW_TOKENS))
    }


def _of_one_length(prompt: Prompt, words: int) -> Prompt:
    """The ticket cut, or repeated, to so many words."""
    found = prompt.body.split() or ["-"]
    repeated = found * math.ceil(words / len(found))
    return replace(prompt, body=" ".join(repeated[:words]))
