"""What all ways of fine-tuning share: their settings, and the way from the context's examples to a trained model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from leanwatt.contracts import Context, Step
from leanwatt.errors import RefusedError
from leanwatt.lesson import lessons
from leanwatt.model import Model
from leanwatt.prompt import Encoder
from leanwatt.schedule import Schedule
from leanwatt.training import Outcome, Teacher, Trainer

CHECKED = 256
"""Validation examples that early stopping looks at: enough to see a trend, few enough to be cheap."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(Step):
    """A step that trains."""

    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Highest rate; it rises over the first steps and falls over the last two fifths."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the training examples."""
    batch: Annotated[int, Gt(0)] = 32
    """Examples per optimizer step."""
    at_once: Annotated[int, Gt(0)] | None = None
    """Examples per pass, where a whole step does not fit into memory; the gradients add up to the same step."""
    checkpointing: bool = False
    """Keep only each block's input for the way back and compute the rest again: less memory, a third more work."""
    checks: Annotated[int, Gt(0)] = 4
    """Looks at the validation loss, evenly spread; the best state seen is kept. More looks cost more, and tell more
    finely how many joules each loss took."""
    patience: Annotated[int, Gt(0)] = 2
    """Looks without an improvement before training stops early."""

    reads_data: ClassVar[bool] = True

    def schedule(self, context: Context, precision: str = "fp32", prompt_weight: float = 0.0) -> Schedule:
        """How to train; a search may ask for fewer steps."""
        return Schedule(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch=self.batch,
            checks=self.checks,
            patience=self.patience,
            max_steps=context.max_steps,
            prompt_weight=prompt_weight,
            precision=precision,
            at_once=self.at_once,
            checkpointing=self.checkpointing,
        )


def tune(model: Model, context: Context, schedule: Schedule, name: str, teacher: Teacher | None = None) -> Model:
    """Train what requires gradients, in place, and note in the history what came of it. Raises RefusedError."""
    if model.codes:
        raise RefusedError(f"{name} after quantize would train weights that are no longer served; put it before.")
    encoder = Encoder(model.tokenizer, model.context)
    train_on = lessons(context.train, encoder)
    every = max(1, len(context.validation) // CHECKED)
    check_on = lessons(context.validation[::every], encoder)
    trainer = Trainer(model, schedule, context.seed, context.progress, context.folder, context.read, teacher)
    outcome = trainer.run(train_on, check_on)
    model.history.append(f"{name}: {_words(outcome)}")
    return model


def _words(outcome: Outcome) -> str:
    early = ", stopped early" if outcome.stopped_early else ""
    if outcome.first_loss is None or outcome.best_loss is None:
        return f"{outcome.steps} steps, {outcome.tokens} tokens{early}"
    losses = f"validation loss {outcome.first_loss:.3f} -> {outcome.best_loss:.3f}"
    return f"{outcome.steps} steps, {outcome.tokens} tokens, {losses}{early}"
