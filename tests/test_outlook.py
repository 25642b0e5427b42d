"""What a recipe comes to, told from configuration and order alone; what cannot be is named before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_module

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.model import load
from leanwatt.outlook import foresee
from leanwatt.recipe import Choice, Recipe

LORA, MERGE, DENSE = Choice("finetune", "lora"), Choice("merge", "merge"), Choice("merge", "dense")
FULL, DISTILL = Choice("finetune", "full"), Choice("finetune", "distill")
HALF = Choice("prune", "magnitude", {"sparsity": 0.5})
PATTERN = Choice("prune", "magnitude", {"pattern": "2:4"})
WIDTH, HEADS = Choice("prune", "width", {"keep": 0.5}), Choice("prune", "heads", {"keep": 0.5})
DEPTH, VOCABULARY = Choice("prune", "depth"), Choice("prune", "vocabulary")
EIGHT, CAST = Choice("quantize", "round_to_nearest", {"bits": 8}), Choice("quantize", "cast")


def told(*steps: Choice, family: str = "llama") -> Any:
    return foresee(Recipe("base", steps), tiny_module(family).config)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((EIGHT, HALF), r"prune magnitude\(sparsity=0.5\) after quantize round_to_nearest.*put prune before quantize"),
        ((EIGHT, VOCABULARY), "prune vocabulary after quantize round_to_nearest"),
        ((EIGHT, FULL), "put it before quantize"),
        ((EIGHT, EIGHT), "quantized already"),
        ((EIGHT, CAST), "quantized already"),
        ((CAST, FULL), "finetune full after quantize cast.*put cast last"),
        ((LORA, HALF), r"prune magnitude.* after finetune lora: put `merge: \[merge\]` between"),
        ((LORA, EIGHT), "merge"),
        ((LORA, CAST), "merge"),
        ((LORA, LORA), "adapters already"),
        ((HALF, LORA), "fill the zeros"),
        ((HALF, DEPTH), "put depth first"),
        ((PATTERN, WIDTH), "prune width after prune magnitude 2:4 would break the pattern; put width first"),
        ((PATTERN, HEADS), "put heads first"),
        ((DEPTH, DEPTH), "at most 0 can go"),
        ((Choice("prune", "depth", {"remove": 2}),), "the model has 2 blocks; at most 1"),
        ((WIDTH, Choice("prune", "width", {"keep": 0.9})), "keep 0.9 of 32 neurons is all of them"),
        ((DISTILL,), "put a prune step before it"),
        ((FULL, DISTILL), "put a prune step before it"),
        ((VOCABULARY, DISTILL), "put vocabulary last"),
        ((WIDTH, LORA, DISTILL), "merge"),
    ],
)
def test_orders_that_cannot_be_are_refused_by_name(steps: tuple[Choice, ...], words: str) -> None:
    with pytest.raises(RefusedError, match=words) as found:
        told(*steps)
    assert str(found.value).startswith(f"{steps[-1].room} {steps[-1].name}")


def test_what_is_legal_leaves_a_configuration_and_no_warning() -> None:
    outlook = told(LORA, MERGE, DEPTH, WIDTH, HEADS, HALF, DISTILL, VOCABULARY, CAST, EIGHT)
    assert outlook.config.num_hidden_layers == 1
    assert outlook.config.intermediate_size == 32
    assert outlook.config.num_attention_heads == 2
    assert set(outlook.left) == {"pruned", "masks", "vocabulary", "cast", "codes"}
    assert outlook.left["pruned"] == "prune depth"
    assert outlook.warnings == []


def test_the_configuration_that_was_given_stays() -> None:
    config = tiny_module("llama").config
    foresee(Recipe("base", (DEPTH, WIDTH)), config)
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 64)


@pytest.mark.parametrize("step", [HALF, WIDTH, EIGHT, CAST, VOCABULARY])
def test_other_families_get_one_error_that_names_those_known(step: Choice) -> None:
    from transformers import MixtralConfig

    words = f"{step.room} {step.name}.*A 'mixtral' model is none of the families that are known here: Llama, Mistral"
    with pytest.raises(RefusedError, match=words):
        foresee(Recipe("base", (step,)), MixtralConfig())
    foresee(Recipe("base", (FULL,)), MixtralConfig())


def test_another_family_is_refused_in_memory_too(context: Any) -> None:
    from leanwatt.model import Model

    model = Model(tiny_module("olmo"), None)
    with pytest.raises(RefusedError, match="'olmo' model"):
        catalog.build(HALF).apply(model, context)


def test_a_block_that_knows_its_number_is_not_moved() -> None:
    config = tiny_module("gpt2").config
    config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(RefusedError, match="scales attention by the number of the block"):
        foresee(Recipe("base", (DEPTH,)), config)


@pytest.mark.parametrize(
    "steps", [(EIGHT, DENSE, HALF), (EIGHT, DENSE, FULL), (PATTERN, DENSE, WIDTH), (HALF, DENSE, LORA)]
)
def test_who_insists_gets_it_with_a_warning(
    steps: tuple[Choice, ...], saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    [warning] = told(*steps).warnings
    assert "merge dense gives up what" in warning
    assert "no saving of theirs is to be expected" in warning
    model = load(saved("llama"))
    for step in steps:
        model = catalog.build(step).apply(model, context)
    assert not model.codes
    assert bool(model.masks) is (steps[-1] == HALF)
    assert "given up" in model.history[1]
    model.save(tmp_path / "variant")


def test_without_masks_and_codes_there_is_nothing_to_give_up(saved: Callable[[str], Path], context: Any) -> None:
    assert told(DENSE).warnings == []
    assert catalog.build(DENSE).apply(load(saved("llama")), context).history == []
