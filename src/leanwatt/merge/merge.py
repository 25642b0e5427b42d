"""Put LoRA's adapters into the weights: one matrix per layer again, as every engine and pruner needs."""

from dataclasses import dataclass
from typing import ClassVar, final

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.model import Model


@final
@dataclass(frozen=True)
class Merge(Step):
    """Add the adapters to the weights. Without adapters nothing changes."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """No adapters any more."""
        outlook.left.pop("adapters", None)

    def apply(self, model: Model, context: Context) -> Model:
        """Merge in the dtype of the weights; in bf16 that rounds, so both states are graded."""
        if model.has_adapters:
            model.module = model.module.merge_and_unload()
            model.history.append("merge")
        return model
