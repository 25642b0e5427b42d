"""One suite for every step: what it makes is saved and opened again with the same logits, by plain transformers too."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.model import check, linears, load, weight_of
from leanwatt.recipe import Choice

STEPS = {
    "full": [Choice("finetune", "full", {"epochs": 2})],
    "full bf16": [Choice("finetune", "full", {"precision": "bf16"})],
    "full fp16": [Choice("finetune", "full", {"precision": "fp16", "at_once": 8, "checkpointing": True})],
    "lora int8": [Choice("finetune", "lora", {"rank": 4, "precision": "int8"})],
    "lora nf4": [Choice("finetune", "lora", {"rank": 4, "precision": "nf4", "epochs": 3, "dropout": 0.1})],
    "lora int8 merged": [Choice("finetune", "lora", {"rank": 4, "precision": "int8"}), Choice("merge", "merge")],
    "lora nf4 merged": [Choice("finetune", "lora", {"rank": 4, "precision": "nf4"}), Choice("merge", "merge")],
    "lora": [Choice("finetune", "lora", {"rank": 4})],
    "lora merged": [Choice("finetune", "lora", {"rank": 4}), Choice("merge", "merge")],
    "half": [Choice("prune", "magnitude", {"sparsity": 0.5})],
    "half over all": [Choice("prune", "magnitude", {"sparsity": 0.5, "over": "model"})],
    "2:4": [Choice("prune", "magnitude", {"pattern": "2:4"})],
    "wanda": [Choice("prune", "wanda", {"sparsity": 0.5})],
    "wanda over all": [Choice("prune", "wanda", {"sparsity": 0.5, "over": "model"})],
    "wanda 4:8": [Choice("prune", "wanda", {"pattern": "4:8"})],
    "sparsegpt": [Choice("prune", "sparsegpt", {"sparsity": 0.5})],
    "sparsegpt over all": [Choice("prune", "sparsegpt", {"sparsity": 0.5, "over": "model"})],
    "sparsegpt 2:4": [Choice("prune", "sparsegpt", {"pattern": "2:4"})],
    "sparsegpt 2:4, bf16, full, 4 bit": [
        Choice("finetune", "full", {"precision": "bf16"}),
        Choice("prune", "sparsegpt", {"pattern": "2:4"}),
        Choice("finetune", "full"),
        Choice("quantize", "round_to_nearest", {"bits": 4, "group": 16}),
    ],
    "width": [Choice("prune", "width", {"keep": 0.5})],
    "depth": [Choice("prune", "depth", {"remove": 1})],
    "8 bit": [Choice("quantize", "round_to_nearest", {"bits": 8})],
    "4 bit": [Choice("quantize", "round_to_nearest", {"bits": 4, "group": 16})],
    "gptq": [Choice("quantize", "gptq", {"bits": 4, "group": 16})],
    "awq": [Choice("quantize", "awq", {"bits": 4, "group": 16})],
    "smoothquant": [Choice("quantize", "smoothquant")],
    "nf4": [Choice("quantize", "nf4", {"group": 16})],
    "2:4 and gptq": [
        Choice("prune", "magnitude", {"pattern": "2:4"}),
        Choice("quantize", "gptq", {"bits": 4, "group": 16}),
    ],
    "2:4 and 4 bit": [
        Choice("prune", "magnitude", {"pattern": "2:4"}),
        Choice("quantize", "round_to_nearest", {"bits": 4, "group": 16}),
    ],
    "width, half, full, 8 bit": [
        Choice("prune", "width", {"keep": 0.75}),
        Choice("prune", "magnitude", {"sparsity": 0.5}),
        Choice("finetune", "full"),
        Choice("quantize", "round_to_nearest", {"bits": 8}),
    ],
    "depth and width": [Choice("prune", "depth"), Choice("prune", "width", {"keep": 0.5})],
}


def applied(steps: list[Choice], folder: Path, context: Any) -> Any:
    model = load(folder)
    for step in steps:
        model = catalog.build(step).apply(model, context)
    return model


def logits(module: Any) -> Any:
    import torch

    with torch.inference_mode():
        return module(torch.arange(3, 40)[None]).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STEPS)
def test_saved_and_opened_again_is_the_same(
    name: str, family: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    model = applied(STEPS[name], saved(family), context)
    before = logits(model.module)
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    assert logits(again.module).equal(before)
    assert again.history == model.history
    assert len(again.history) >= len([step for step in STEPS[name] if step.room != "merge"])
    check(again)
    assert again.masks.keys() == model.masks.keys()
    assert again.codes.keys() == model.codes.keys()


UNTOUCHING = ("half over all", "2:4", "wanda", "sparsegpt", "8 bit", "gptq", "nf4")
"""AWQ and SmoothQuant move scales into norms, and structured pruning and training change more by their nature."""


@pytest.mark.parametrize("family", [*FAMILIES, "opt", "gemma2"])
@pytest.mark.parametrize("name", UNTOUCHING)
def test_only_weights_of_linear_layers_in_the_blocks_are_touched(
    name: str, family: str, saved: Callable[[str], Path], context: Any
) -> None:
    before = dict(load(saved(family)).module.named_parameters())
    model = applied(STEPS[name], saved(family), context)
    ours = {f"{layer}.weight" for layer in linears(model.module)}
    after = dict(model.module.named_parameters())
    assert ours < after.keys() == before.keys()
    assert [layer for layer in after if not after[layer].equal(before[layer])] == [
        each for each in after if each in ours
    ]


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("lora", "lora int8", "lora nf4")])
def test_plain_transformers_opens_the_folder(
    name: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = applied(STEPS[name], saved("llama"), context)
    model.save(tmp_path / "variant")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "variant", dtype="auto")
    assert logits(plain).equal(logits(model.module))


def test_a_fresh_process_gives_the_same_logits(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    model = applied(STEPS["2:4 and 4 bit"], saved("llama"), context)
    model.save(tmp_path / "variant")
    code = (
        "import sys, json, torch; from leanwatt.model import load; m = load(sys.argv[1]).module\n"
        "with torch.inference_mode(): print(json.dumps(m(torch.arange(3, 40)[None]).logits[0, -1].tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "variant")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == logits(model.module)[0, -1].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt"])
def test_zeros_stay_zero_through_training_and_quantization(
    pruner: str, family: str, saved: Callable[[str], Path], context: Any
) -> None:
    model = applied(
        [
            Choice("prune", pruner, {"pattern": "2:4"}),
            Choice("finetune", "full", {"epochs": 4}),
            Choice("quantize", "round_to_nearest", {"bits": 4, "group": 16}),
        ],
        saved(family),
        context,
    )
    for name, layer in linears(model.module).items():
        weight = weight_of(layer)
        grouped = (weight != 0).reshape(weight.shape[0], -1, 4).sum(-1)
        assert int(grouped.max()) <= 2
        assert not model.codes[name].codes[~model.masks[name]].any()


def test_training_changes_all_but_the_zeros(saved: Callable[[str], Path], context: Any) -> None:
    pruned = applied([Choice("prune", "magnitude", {"sparsity": 0.5})], saved("llama"), context)
    before = {name: weight_of(layer).clone() for name, layer in linears(pruned.module).items()}
    tuned = catalog.build(Choice("finetune", "full", {"epochs": 2})).apply(pruned, context)
    for name, layer in linears(tuned.module).items():
        kept = tuned.masks[name]
        assert (weight_of(layer)[kept] != before[name][kept]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([*STEPS["8 bit"], *STEPS["half"]], "before quantize|put prune before"),
        ([*STEPS["8 bit"], *STEPS["full"]], "put it before"),
        ([*STEPS["8 bit"], *STEPS["4 bit"]], "already"),
        ([*STEPS["lora"], *STEPS["half"]], "merge"),
        ([*STEPS["lora"], *STEPS["8 bit"]], "merge"),
        ([*STEPS["lora"], *STEPS["lora"]], "merge"),
        ([*STEPS["half"], *STEPS["lora"]], "fill the zeros"),
        ([*STEPS["2:4"], *STEPS["width"]], "put width first"),
        ([*STEPS["half"], *STEPS["depth"]], "put depth first"),
        ([Choice("prune", "depth", {"remove": 2})], "at most 1"),
        ([Choice("prune", "magnitude", {"pattern": "3:5"})], "groups of 5"),
    ],
)
def test_orders_that_would_break_a_promise_are_refused(
    steps: list[Choice], words: str, saved: Callable[[str], Path], context: Any
) -> None:
    with pytest.raises(RefusedError, match=words):
        applied(steps, saved("llama"), context)


def test_a_broken_promise_is_not_saved(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    model = applied(STEPS["4 bit"], saved("llama"), context)
    weight_of(next(iter(linears(model.module).values())))[0, 0] += 1
    with pytest.raises(RefusedError, match="integer codes"):
        model.save(tmp_path / "broken")
