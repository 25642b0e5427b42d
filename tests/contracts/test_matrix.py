"""Every method, alone and in pairs: what the plan accepts is made, saved, and the same in a fresh process.

The whole matrix over all families: `python tests/matrix.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES
from matrix import EVERY_FAMILY, TRAINED, Bench, Made, fresh, methods, recipes

from leanwatt import catalog
from leanwatt.recipe import Choice


def broken(made: list[Made]) -> dict[str, str]:
    """Recipes that did not do what was foreseen, or that are another model in a fresh process."""
    return {str(each.recipe): each.broken for each in made if each.broken} | fresh(made)


def names(made: list[Made], *, refused: bool) -> set[tuple[str, ...]]:
    return {tuple(step.name for step in each.recipe.steps) for each in made if bool(each.refused) is refused}


@pytest.fixture
def bench(context: Any, tmp_path: Path) -> Callable[[Path], Bench]:
    def on(base: Path) -> Bench:
        folder = tmp_path / f"made-{base.name}"
        folder.mkdir()
        return Bench(base, folder, context)

    return on


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_and_every_pair(family: str, saved: Callable[[str], Path], bench: Callable[[Path], Bench]) -> None:
    on = bench(saved(family))
    made = [on.make(steps) for steps in recipes()]
    assert broken(made) == {}
    done = names(made, refused=False)
    assert {("magnitude", "round_to_nearest"), ("width", "distill"), ("vocabulary", "cast")} <= done
    assert {("round_to_nearest", "magnitude"), ("magnitude", "lora", "merge")} <= names(made, refused=True)
    alone = {each.name for each in methods()} - {"lora", "distill"} - ({"heads"} if family == "gpt2" else set())
    assert {(name,) for name in alone} <= done
    assert ("lora", "merge") in done


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in EVERY_FAMILY if family not in FAMILIES])
def test_every_family_takes_every_method(
    family: str, saved: Callable[[str], Path], bench: Callable[[Path], Bench]
) -> None:
    on = bench(saved(family))
    alone = [Choice("finetune", "lora", {"rank": 2}), Choice("merge", "merge")]
    chains = [tuple(alone), *((each,) for each in methods() if each.name not in ("lora", "distill"))]
    made = [on.make(chain) for chain in chains]
    assert broken(made) == {}
    assert names(made, refused=True) == ({("heads",)} if family in ("gpt_neox", "opt") else set())


def test_the_table_has_settings_that_methods_take() -> None:
    from matrix import SETTINGS

    tried = methods()
    assert all(catalog.build(choice) for choice in tried)
    assert all(any(choice.settings == each for choice in tried) for every in SETTINGS.values() for each in every)
    assert {choice.name for choice in methods(every=False)} == {choice.name for choice in tried}


def test_the_whole_matrix_has_every_method_and_every_pair_in_both_orders() -> None:
    """Of the rooms on disk, so that a method that the table lost would be missed here."""
    import leanwatt

    rooms = {room: Path(leanwatt.__file__).parent / room for room in ("prune", "quantize", "finetune")}
    files = {(room, path.stem) for room, at in rooms.items() for path in at.glob("[!_]*.py")}
    whole = {tuple((s.room, s.name) for s in steps if s.room != "merge") for steps in recipes(every=True)}
    skipped = {("quantize", "nf4")} if not catalog.is_installed("quantize", "nf4") else set[tuple[str, str]]()
    there = files - skipped
    assert {(each,) for each in there} <= whole
    assert {(one, other) for one in there for other in there if one != other} <= whole
    assert len(there) >= 15


def test_a_broken_promise_would_be_found(saved: Callable[[str], Path], bench: Callable[[Path], Bench]) -> None:
    """The matrix sees a changed weight, and a folder that does not open."""
    from safetensors.torch import load_file, save_file

    on = bench(saved("llama"))
    made = [on.make((Choice("quantize", "cast"),)), on.make((Choice("prune", "depth"),))]
    one, other = (each.folder for each in made if each.folder)
    weights = load_file(one / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, one / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    found = fresh(made)
    assert found.keys() == {str(each.recipe) for each in made}
    assert "logits differ" in found[str(made[0].recipe)]


def test_what_a_method_does_not_foretell_would_be_found(
    saved: Callable[[str], Path], bench: Callable[[Path], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.prune.magnitude import Magnitude
    from leanwatt.prune.width import Width

    monkeypatch.setattr(Magnitude, "foresee", lambda *_: None)
    monkeypatch.setattr(Width, "foresee", lambda *_: None)
    on = bench(saved("llama"))
    half, width = Choice("prune", "magnitude", {"sparsity": 0.5}), Choice("prune", "width", {"keep": 0.5})
    assert on.make((half,)).broken == "was foreseen otherwise: masks are there"
    assert on.make((width,)).broken == "was foreseen otherwise: intermediate_size is 32, not 64"
    late = on.make((half, Choice("prune", "depth"))).broken
    assert late is not None
    assert late.startswith("was not foreseen: prune depth after another pruning")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_take_every_method_and_pruning_with_quantization(
    name: str, shared: Path, bench: Callable[[Path], Bench]
) -> None:
    on = bench(shared / "models" / name)
    every = [each for each in methods() if each.name not in ("lora", "distill")]
    pruned = [each for each in every if each.room == "prune"]
    pairs = [(one, other) for one in pruned for other in every if other.room == "quantize"]
    repaired = [(one, Choice("finetune", "distill", {"batch": 8})) for one in pruned if one.name != "vocabulary"]
    made = [on.make(chain) for chain in [*((each,) for each in every), *pairs, *repaired]]
    assert broken(made) == {}
    assert names(made, refused=True) == set()
