"""What full and low-rank fine-tuning share: from the context's examples to a trained model."""

from leanwatt.contracts import Context
from leanwatt.errors import RefusedError
from leanwatt.lesson import lessons
from leanwatt.model import Model
from leanwatt.prompt import Encoder
from leanwatt.training import Outcome, Schedule, Teacher, Trainer

CHECKED = 256
"""Validation examples that early stopping looks at: enough to see a trend, few enough to be cheap."""


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
