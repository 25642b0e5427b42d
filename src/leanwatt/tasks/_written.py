"""What tasks that are answered in free words share: the prompt, its limits, and words in common with a reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, final

from annotated_types import Ge

from leanwatt.question import Answer, Generate, Prompt
from leanwatt.split import Item
from leanwatt.tasks._overlap import rouge_l, token_f1
from leanwatt.tasks._rows import Rows, effort


@dataclass(frozen=True)
class Written(Rows):
    """Text in, text out."""

    reference: str
    """Column with the answer that people wrote."""
    instruction: str = "Answer."
    """What the model is told to do."""
    lead: str = "Answer:"
    """What the answer follows on."""
    limit: Annotated[int, Ge(1)] = 64
    """Most tokens of an answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the end of text."""

    @final
    def __post_init__(self) -> None:
        """Check the settings; raises StudyError."""
        _ = self.source

    @final
    def question(self, item: Item) -> Generate:
        """What the model is asked about one row."""
        return Generate(Prompt(self.instruction, item.text, self.lead), self.limit, self.stop)


def overlap(answer: Answer, reference: str) -> Mapping[str, Any]:
    """`hypothesis` and `reference` (corpus metrics are computed from them), `rouge_l`, `token_f1`, and the effort."""
    text = (answer.text or "").strip()
    return {
        "hypothesis": text,
        "reference": reference,
        "rouge_l": rouge_l(text, reference),
        "token_f1": token_f1(text, reference),
        **effort(answer),
    }
