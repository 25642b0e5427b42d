"""Whether a recipe can be carried out, told from the base's configuration and the order of its steps, before any work.

Each step foretells what it leaves behind and what it cannot do (`Step.foresee`). What holds for a whole room stands
here, so that a new method in it has nothing to declare.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from leanwatt import catalog
from leanwatt.contracts import Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import refuse_unknown_family
from leanwatt.recipe import Choice, Recipe

_BETWEEN = "put `merge: [merge]` between them"
_GIVE_UP = "or insist with `merge: [dense]` between them, which gives the integer codes up"
_RULES = {
    ("prune", "adapters"): _BETWEEN,
    ("quantize", "adapters"): _BETWEEN,
    ("prune", "codes"): f"it would break the integer codes; put prune before quantize, {_GIVE_UP}",
    ("finetune", "codes"): f"it would train weights that are no longer served; put it before quantize, {_GIVE_UP}",
    ("finetune", "cast"): "it trains and saves in a precision of its own; put cast last",
    ("quantize", "codes"): f"the model is quantized already; leave one of them out, {_GIVE_UP}",
}
"""Room of a step, and what an earlier step left that it would break -> what to do instead."""


def foresee(recipe: Recipe, config: Any) -> Outlook:
    """What becomes of a base with this configuration. Raises RefusedError that names the steps that cannot be."""
    outlook = Outlook(deepcopy(config))
    for choice in recipe.steps:
        name = f"{choice.room} {choice}"
        try:
            _foresee(choice, name, outlook)
        except RefusedError as error:
            text = str(error)
            raise RefusedError(text if text.startswith(f"{choice.room} ") else f"{name}: {text}") from error
        if choice.room == "prune":
            outlook.left.setdefault("pruned", name)
    return outlook


def _foresee(choice: Choice, name: str, outlook: Outlook) -> None:
    if choice.room in ("prune", "quantize"):
        refuse_unknown_family(outlook.config)
    for (room, what), advice in _RULES.items():
        if room == choice.room and what in outlook.left:
            raise RefusedError(f"{name} after {outlook.left[what]}: {advice}.")
    catalog.build(choice).foresee(outlook)
