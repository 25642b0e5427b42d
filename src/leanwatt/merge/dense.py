"""Give up masks and integer codes: for who insists on an order of steps that would break them.

The weights stay as they are, and nothing promises any longer that zeros stay zero or that weights are what codes say.
Pruning after quantization, or LoRA after pruning, can so be measured instead of refused, and the plan warns of it.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.model import Model


@final
@dataclass(frozen=True)
class Dense(Step):
    """Make every weight a plain one again that later steps may change. Its size as served grows with it."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """No masks and no codes any more, which is worth a warning."""
        given_up = [step for what in ("masks", "codes") if (step := outlook.left.pop(what, None))]
        outlook.left.pop("pattern", None)
        if given_up:
            outlook.warnings.append(
                f"merge dense gives up what {' and '.join(given_up)} left: later steps may fill zeros and change what "
                "was quantized, so no smaller size and no saving of theirs is to be expected."
            )

    def apply(self, model: Model, context: Context) -> Model:
        """Forget masks, patterns and codes. Without any nothing changes."""
        if model.masks or model.codes:
            masks, codes = len(model.masks), len(model.codes)
            model.masks, model.patterns, model.codes = {}, {}, {}
            model.history.append(f"merge dense: masks of {masks} and codes of {codes} layers given up")
        return model
