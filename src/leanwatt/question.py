"""What an engine is asked, and what it answers: plain data between tasks and engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt. `prompt.py` turns them into tokens, the same way for training and for every engine."""

    instruction: str
    """What to do; the same for all questions of a task. Only this part may be reused between questions."""
    body: str
    """The ticket."""
    lead: str
    """What the answer follows on, for example `Root cause:`."""
    verbatim: bool = field(default=False, repr=False)
    """The body alone is the prompt, as it stands: what clients of a server write. No task asks so, and no digest of
    tasks (they read the repr) knows it."""


@dataclass(frozen=True)
class Score:
    """Which option fits best? Answered by the log-probability of each option after the prompt."""

    prompt: Prompt
    options: tuple[str, ...]


@dataclass(frozen=True)
class Generate:
    """Write the answer, greedily, until end of text, a stop string or the limit."""

    prompt: Prompt
    limit: int
    """Most new tokens."""
    stop: tuple[str, ...] = ()
    at_least: int = 0
    """Fewest new tokens: before, the end of text is never chosen and no stop string ends the answer."""


@dataclass(frozen=True)
class Likelihood:
    """How likely is this text? Answered by its summed log-probability, end of text included."""

    text: str

    @property
    def bytes(self) -> int:
        """UTF-8 bytes that the log-probability is spread over; the end of text counts as one."""
        return len(self.text.encode()) + 1


Question = Score | Generate | Likelihood


@dataclass(frozen=True)
class Answer:
    """What came back, and what it took."""

    text: str | None = None
    """The generated text; for Score the best option."""
    scores: tuple[float, ...] = ()
    """Score: natural-log probability of each option, summed over its tokens, end token included. Likelihood: one."""
    tokens_in: int = 0
    """Prompt tokens that were computed for this answer (what does not fit the context is cut first)."""
    tokens_out: int = 0
    """Generated tokens, or tokens of all options."""
    seconds_to_first_token: float | None = None
    truncated: bool = False
    """The ticket did not fit the context and was cut."""
    tokens_shared: int = 0
    """Tokens that the prompt begins with, of the instruction, that were computed for an earlier answer."""


@dataclass(frozen=True)
class Example:
    """A row of a data set, as one task sees it."""

    id: str
    """Row identity within the file; predictions are kept under it."""
    group: str
    """Rows of one group (an alarm set, an incident) are resampled together and never split."""
    split: Split
    question: Question
    target: str
    """The right option, or the reference text."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further columns the task's metrics read, such as the slots of a reference."""
