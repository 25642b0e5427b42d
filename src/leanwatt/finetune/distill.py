"""Repair a pruned model from its own unpruned parent: it learns the parent's distributions beside the right answers.

Knowledge distillation (Hinton et al., 2015, arXiv:1503.02531) with the model before pruning as the teacher, as in
Muralidharan et al., 2024, arXiv:2407.14679. For what `width`, `heads`, `depth` or high sparsity broke. The teacher runs
beside it in every step, which `full` does without: put both into the study. The parent is the model before the first
pruning of the recipe: fine-tune before pruning, or it teaches a task that it never learned.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, final

from annotated_types import Ge, Gt, Le

from leanwatt.contracts import Context, Outlook
from leanwatt.errors import RefusedError
from leanwatt.finetune._tuning import FineTuning, tune
from leanwatt.model import Model, cast, load
from leanwatt.training import Teacher


@final
@dataclass(frozen=True)
class Distill(FineTuning):
    """Train all weights that pruning left on the task's examples and on the parent's distributions over them."""

    share: Annotated[float, Gt(0), Le(1)] = 0.5
    """Of the parent in the loss; the rest is the right answer's."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Above 1 unlikely tokens of the parent's distribution count more."""
    prompt: Annotated[float, Ge(0)] = 0.1
    """What a token of a prompt counts, beside 1 for one of an answer: prompts too show what the parent knew."""

    version: ClassVar[int] = 2

    def foresee(self, outlook: Outlook) -> None:
        """Refused where nothing was pruned, over adapters, and where the vocabulary is no longer the parent's."""
        if "pruned" not in outlook.left:
            raise RefusedError(_NO_PARENT)
        if "adapters" in outlook.left:
            raise RefusedError(_ADAPTERS)
        if "vocabulary" in outlook.left:
            raise RefusedError(_VOCABULARY)

    def apply(self, model: Model, context: Context) -> Model:
        """Train in place; masks stay. Raises RefusedError without a parent that has the same tokens."""
        import torch

        if model.has_adapters:
            raise RefusedError(_ADAPTERS)
        teacher = _teacher(model, context.parent)
        cast(model.module, torch.float32).requires_grad_(True)
        schedule = self.schedule(context, prompt_weight=self.prompt)
        return tune(model, context, schedule, "finetune distill", Teacher(teacher, self.temperature, self.share))


_NO_PARENT = "finetune distill repairs a pruned model from its unpruned self; put a prune step before it, or use full."
_ADAPTERS = "finetune distill: the model has adapters; put `merge: [merge]` before it."
_VOCABULARY = "finetune distill after prune vocabulary: the parent speaks of other tokens; put vocabulary last."


def _teacher(model: Model, parent: Path | None) -> object:
    if parent is None:
        raise RefusedError(_NO_PARENT)
    found = load(parent)
    if found.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise RefusedError(_VOCABULARY)
    return found.module.requires_grad_(False)
