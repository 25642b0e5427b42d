"""Every method and every pair of methods on every family: saved, opened in a fresh process, and the same logits.

python tests/matrix.py                 the whole matrix, in every setting
python tests/matrix.py llama gpt2      two families of it
python tests/matrix.py --first 40      of each the first 40 recipes only

Where LEANWATT_SHARED names the folder with the trained models, these are part of it. How long it takes is told while it
runs, from what was done so far.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.errors import MissingExtraError, RefusedError
from leanwatt.outlook import foresee
from leanwatt.recipe import Choice, Recipe

SETTINGS: dict[tuple[str, ...], list[dict[str, Any]]] = {
    ("sparsity", "pattern"): [{"pattern": "2:4"}, {"sparsity": 0.5}],
    ("bits", "group"): [{"bits": 4, "group": 16}, {"bits": 8, "group": 16}],
    ("keep",): [{"keep": 0.5}],
    ("extra", "multiple"): [{"multiple": 1}],
    ("rank",): [{"rank": 2, "batch": 8}],
    ("batch",): [{"batch": 8}],
    ("dtype",): [{"dtype": "bf16"}, {"dtype": "fp16"}],
}
"""Names of settings -> what a method that has them all is tried with; the first row that fits counts, and a method that
fits none is tried with its defaults. In pairs the first settings alone are tried, unless every one is asked for."""
ROOMS = ("finetune", "prune", "quantize")
EVERY_FAMILY = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "smollm3"),
    *("gpt2", "gpt_neox", "opt"),
)
TRAINED = ("stories260k", "tinystories-656k")
"""Folders in `models` of LEANWATT_SHARED."""
STEPS = 1
"""Optimizer steps of each training: enough to change every weight."""
MERGE = Choice("merge", "merge")
SEEN = range(3, 40)
"""Ids of the tokens whose logits are compared."""
FRESH = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
different = {}
for folder in map(Path, json.loads(sys.stdin.read())):
    expected = load_file(folder / "expected.safetensors")
    try:
        module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        with torch.inference_mode():
            got = module(expected["ids"]).logits
        if not got.equal(expected["logits"]):
            different[folder.name] = f"logits differ by up to {float((got - expected['logits']).abs().max()):.3g}"
    except Exception as error:
        different[folder.name] = f"{type(error).__name__}: {error}"
print(json.dumps(different))
"""


@dataclass(frozen=True)
class Made:
    """What came of one recipe: refused, or a folder, or a promise that was not kept."""

    recipe: Recipe
    folder: Path | None = None
    refused: str | None = None
    broken: str | None = None


def methods(*, every: bool = True) -> list[Choice]:
    """Every installed method of the rooms of steps, with each of its settings here, or the first."""
    found = []
    for room, name in _names(there=True):
        settings = _settings(catalog.find(room, name))
        found += [Choice(room, name, each) for each in (settings if every else settings[:1])]
    return found


def _names(*, there: bool) -> list[tuple[str, str]]:
    """Room and name of all methods whose library is, or is not, installed."""
    every = [(room, name) for room in ROOMS for name in catalog.names(room)]
    return [(room, name) for room, name in every if _is_there(room, name) is there]


def _is_there(room: str, name: str) -> bool:
    try:
        catalog.build(Choice(room, name, _settings(catalog.find(room, name))[0]))
    except MissingExtraError:
        return False
    return True


def _settings(method: type[Any]) -> list[dict[str, Any]]:
    has = {each.name for each in fields(method)}
    return next((settings for names, settings in SETTINGS.items() if has >= set(names)), [{}])


def recipes(*, every: bool = False) -> Iterator[tuple[Choice, ...]]:
    """Each method alone in all settings, and each two methods in both orders, with a merge after LoRA."""
    pairs = permutations(methods(every=every), 2)
    unlike = [(one, other) for one, other in pairs if (one.room, one.name) != (other.room, other.name)]
    for picks in [*((each,) for each in methods()), *unlike]:
        yield tuple(step for pick in picks for step in ([pick, MERGE] if pick.name == "lora" else [pick]))


class Bench:
    """Makes the recipes of one family from one base; what recipes begin with alike is made once."""

    def __init__(self, base: Path, folder: Path, context: Any) -> None:
        from leanwatt.model import config_of, load

        self._base, self._folder, self._context = base, folder, replace(context, max_steps=STEPS)
        self._config = config_of(str(base))
        self._models: dict[tuple[Choice, ...], Any] = {(): load(base)}

    def make(self, steps: tuple[Choice, ...]) -> Made:
        """Foresee, apply, compare what was foreseen with what is, and save with the expected logits beside it."""
        recipe = Recipe(self._base.name, steps)
        try:
            outlook = foresee(recipe, self._config)
        except RefusedError as error:
            return Made(recipe, refused=str(error))
        try:
            model = self._applied(steps)
        except RefusedError as error:
            return Made(recipe, broken=f"was not foreseen: {error}")
        if wrong := _different(outlook, model):
            return Made(recipe, broken=f"was foreseen otherwise: {wrong}")
        folder = self._folder / f"{self._base.name}-{len(list(self._folder.iterdir()))}"
        model.save(folder)
        _expect(model, folder)
        return Made(recipe, folder=folder)

    def _applied(self, steps: tuple[Choice, ...]) -> Any:
        if steps not in self._models:
            before = deepcopy(self._applied(steps[:-1]))
            is_pruned = any(step.room == "prune" for step in steps[:-1])
            context = replace(self._context, parent=self._base if is_pruned else None)
            model = catalog.build(steps[-1]).apply(before, context)
            if len(steps) > 1 and steps[-1] != MERGE:
                return model
            self._models[steps] = model
        return self._models[steps]


def _different(outlook: Any, model: Any) -> str:
    """What the model has or is, where it is not what its steps foretold."""
    has = {
        "adapters": model.has_adapters,
        "masks": bool(model.masks),
        "pattern": bool(model.patterns),
        "codes": bool(model.codes),
    }
    wrong = [
        f"{what} {'are' if is_there else 'are not'} there"
        for what, is_there in has.items()
        if is_there != (what in outlook.left)
    ]
    sizes = (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "ffn_dim",
        "n_inner",
    )
    for name in sizes:
        foretold, got = getattr(outlook.config, name, None), getattr(model.module.config, name, None)
        if foretold != got:
            wrong.append(f"{name} is {got}, not {foretold}")
    return ", ".join(wrong)


def _expect(model: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    ids = torch.tensor([list(SEEN)])
    with torch.inference_mode():
        save_file({"ids": ids, "logits": model.module(ids).logits.contiguous()}, folder / "expected.safetensors")


def fresh(made: Sequence[Made]) -> dict[str, str]:
    """All folders opened by plain transformers in one fresh process: recipe -> what is wrong with it."""
    folders = {each.folder.name: each for each in made if each.folder}
    asked = json.dumps([str(each.folder) for each in folders.values()])
    done = subprocess.run([sys.executable, "-c", FRESH], input=asked, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {str(folders[name].recipe): wrong for name, wrong in found.items()}


def main() -> int:
    """Make and compare all; 0 if every promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="default: all, and the trained models where they are")
    parser.add_argument("--first", type=int, help="make so many recipes of each")
    asked = parser.parse_args()
    bases, steps = asked.families or [*EVERY_FAMILY, *_trained()], list(recipes(every=True))[: asked.first]
    if missing := _names(there=False):
        print(f"not installed, so left out: {', '.join(name for _, name in missing)}", flush=True)
    if not asked.families and not _trained():
        print("LEANWATT_SHARED names no folder with the trained models, so these are left out.", flush=True)
    print(f"{len(bases)} models x {len(steps)} recipes", flush=True)
    clock, wrong = Clock(len(bases) * len(steps)), dict[str, str]()
    for base in bases:
        wrong |= {f"{base}: {recipe}": what for recipe, what in _one(base, steps, clock).items()}
    for recipe, what in wrong.items():
        print(f"{recipe}: {what}")
    return 1 if wrong else 0


def _trained() -> list[str]:
    folder = os.environ.get("LEANWATT_SHARED")
    return [name for name in TRAINED if folder and (Path(folder) / "models" / name).is_dir()]


@dataclass
class Clock:
    """Tells, every now and then, how long all of it will take, if the rest takes what was done so far took."""

    recipes: int
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def tick(self) -> None:
        self.done += 1
        minutes = (time.monotonic() - self.begun) / 60
        if minutes - self.told >= 1 or self.done == 20:
            self.told = minutes
            left = minutes * (self.recipes - self.done) / self.done
            print(
                f"{self.done} of {self.recipes}; {minutes:.0f} min, about {left:.0f} left", file=sys.stderr, flush=True
            )


def _one(name: str, steps: Sequence[tuple[Choice, ...]], clock: Clock) -> dict[str, str]:
    """All recipes of one family or trained model: what is wrong."""
    from conftest import examples, save_tiny

    with tempfile.TemporaryDirectory() as place:
        base, folder = Path(place) / name, Path(place) / "made"
        folder.mkdir()
        if name in EVERY_FAMILY:
            save_tiny(name, base)
        else:
            base = Path(os.environ.get("LEANWATT_SHARED", "")) / "models" / name
        bench, made = Bench(base, folder, examples(Path(place))), []
        for each in steps:
            made.append(bench.make(each))
            clock.tick()
        found = {str(each.recipe): each.broken for each in made if each.broken} | fresh(made)
    refused = sum(each.refused is not None for each in made)
    print(f"{name}: {len(made) - refused} recipes, {refused} refused beforehand, {len(found)} wrong", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
