"""Models in memory and on disk: masks, codes, what is refused, and every family that is named in the documentation."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import EVERY_FAMILY

from leanwatt import catalog
from leanwatt.agreement import relative_error
from leanwatt.errors import ModelError, RefusedError, StoreError
from leanwatt.model import (
    Codes,
    blocks,
    check,
    config_of,
    context_length,
    count,
    keep_zeros,
    linears,
    load,
    weight_facts,
    weight_of,
)
from leanwatt.question import Prompt
from leanwatt.recipe import Choice

STEPS = [
    Choice("prune", "depth", {"remove": 1}),
    Choice("prune", "width", {"keep": 0.5}),
    Choice("prune", "magnitude", {"sparsity": 0.5}),
    Choice("quantize", "round_to_nearest", {"bits": 8, "group": 16}),
]
PROMPTS = [Prompt("Name the root cause.", f"alarm at site {x}", "Root cause:") for x in ("A", "B C D then power")]


def applied(model: Any, steps: list[Choice], context: Any) -> Any:
    for step in steps:
        model = catalog.build(step).apply(model, context)
    return model


def first(model: Any) -> tuple[str, Any]:
    name, layer = next(iter(linears(model.module).items()))
    return name, weight_of(layer)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_is_cut_masked_quantized_saved_and_served(
    family: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = load(saved(family))
    whole = sum(p.numel() for p in model.module.parameters())
    fewer = [] if family in ("gpt2", "gpt_neox", "opt") else [Choice("prune", "heads", {"keep": 0.5})]
    model = applied(model, [Choice("prune", "vocabulary", {"multiple": 1}), *fewer, *STEPS], context)
    model.save(tmp_path / "variant")
    assert len(blocks(model.module)) == 1
    assert sum(p.numel() for p in model.module.parameters()) < whole
    assert model.masks.keys() == model.codes.keys() == linears(model.module).keys()

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "variant", dtype="auto")
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert plain(ids).logits.equal(model.module(ids).logits)

    with catalog.build(Choice("engine", "transformers", {"compute": "fp32"})).open(tmp_path / "variant", 1) as session:
        expected = session.probe(PROMPTS)
    with catalog.build(Choice("engine", "openvino", {"compute": "fp32"})).open(tmp_path / "variant", 2) as session:
        got, facts = session.probe(PROMPTS), session.facts
    assert max(relative_error(mine, right) for mine, right in zip(got, expected, strict=True)) < 1e-3
    assert facts["coded_layers"] == len(model.codes)
    assert facts["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_linears_are_all_matrices_of_the_blocks_as_outputs_by_inputs(family: str, saved: Callable[[str], Path]) -> None:
    module = load(saved(family)).module
    inside = {id(p) for p in blocks(module).parameters() if p.ndim == 2}
    assert {id(layer.weight) for layer in linears(module).values()} == inside
    leaving = [
        w
        for n, layer in linears(module).items()
        if n.endswith(("down_proj", "fc2", "4h_to_h", "mlp.c_proj"))
        for w in [weight_of(layer)]
    ]
    assert [tuple(weight.shape) for weight in leaving] == [(32, 64)] * 2


def test_what_weight_of_gives_is_a_view(saved: Callable[[str], Path]) -> None:
    for family in ("llama", "gpt2"):
        model = load(saved(family))
        name, weight = first(model)
        weight[0, 1] = 42.0
        assert float(weight_of(linears(model.module)[name])[0, 1]) == 42.0


def test_codes_times_scales_are_the_weight() -> None:
    import torch

    codes = Codes(
        torch.tensor([[1, -2, 3, 4], [0, 5, -6, 7]], dtype=torch.int8), torch.tensor([[1.0, 0.5], [2.0, 0.1]]), 4
    )
    assert codes.weight.tolist() == [[1.0, -2.0, 1.5, 2.0], [0.0, 10.0, pytest.approx(-0.6), pytest.approx(0.7)]]
    assert codes.bytes == 8 * 4 // 8 + 4 * 2


def test_zeros_are_kept_and_lost_zeros_are_named(saved: Callable[[str], Path], context: Any) -> None:
    model = applied(load(saved("llama")), [Choice("prune", "magnitude", {"sparsity": 0.5})], context)
    name, weight = first(model)
    check(model)
    weight += 1.0
    with pytest.raises(RefusedError, match=f"{name}: weights that pruning removed"):
        check(model)
    keep_zeros(model)
    check(model)
    assert not weight[~model.masks[name]].any()


def test_a_lost_pattern_is_named(saved: Callable[[str], Path], context: Any) -> None:
    model = applied(load(saved("llama")), [Choice("prune", "magnitude", {"pattern": "2:4"})], context)
    name, _ = first(model)
    model.masks[name][0, :4] = True
    with pytest.raises(RefusedError, match=f"{name}: the mask no longer keeps the pattern 2:4"):
        check(model)


def test_saving_tells_what_was_done_and_refuses_what_is_false(
    saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    model = applied(load(saved("llama")), [Choice("prune", "magnitude", {"sparsity": 0.5})], context)
    model.save(tmp_path / "variant")
    about = json.loads((tmp_path / "variant" / "leanwatt.json").read_text())
    kept = {"patterns": {}, "bits": {}, "adapters": False, "base_parameters": count(model.module)}
    assert about == {"history": ["prune magnitude 0.5"], **kept}
    name, weight = first(model)
    weight += 1.0
    with pytest.raises(RefusedError, match=f"{name}: weights that pruning removed are no longer zero"):
        model.save(tmp_path / "false")
    assert not (tmp_path / "false").exists()


WINDOWED = {
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_a_context_ends_with_the_window(family: str) -> None:
    from transformers import AutoConfig

    sizes = {"max_position_embeddings": 64, "num_hidden_layers": 2}
    assert context_length(AutoConfig.for_model(family, **sizes, **WINDOWED[family])) == 8
    unused = {"use_sliding_window": False} if family == "qwen2" else {"sliding_window": None}
    assert context_length(AutoConfig.for_model(family, **sizes, **(WINDOWED[family] | unused))) == 64


def test_a_smaller_model_knows_what_it_was_cut_from(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    whole = count(load(saved("llama")).module)
    cut = applied(load(saved("llama")), [Choice("prune", "width", {"keep": 0.5})], context)
    cut.save(tmp_path / "width")
    again = applied(load(tmp_path / "width"), [Choice("prune", "depth")], context)
    again.save(tmp_path / "depth")
    facts = weight_facts(load(tmp_path / "depth"))
    assert facts["base_parameters"] == whole
    assert facts["parameters"] == count(again.module) < count(cut.module) < whole


def test_a_plain_model_has_nothing_beside_it(saved: Callable[[str], Path]) -> None:
    model = load(saved("llama"))
    assert (model.masks, model.codes, model.patterns, model.history) == ({}, {}, {}, [])
    assert model.context == 256
    assert not model.has_adapters
    check(model)


def test_a_full_disk_is_told(saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(saved("llama"))

    def full(*_args: Any, **_settings: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model.module, "save_pretrained", full)
    with pytest.raises(StoreError, match=r"cannot be saved .No space left on device"):
        model.save(tmp_path / "variant")


@pytest.mark.parametrize("make", ["nothing", "no config", "no weights", "pickled weights", "broken weights"])
def test_a_base_that_cannot_be_loaded_is_named(make: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "base"
    if make != "nothing":
        shutil.copytree(saved("llama"), folder)
    if make == "no config":
        (folder / "config.json").unlink()
    if make in ("no weights", "pickled weights"):
        (folder / "model.safetensors").unlink()
    if make == "broken weights":
        (folder / "model.safetensors").write_bytes(b"half")
    if make == "pickled weights":
        (folder / "pytorch_model.bin").write_bytes(b"never to be unpickled")
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_a_tokenizer_without_an_end_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(saved("llama"), tmp_path / "base")
    config = tmp_path / "base" / "tokenizer_config.json"
    about = json.loads(config.read_text())
    about["eos_token"] = None
    config.write_text(json.dumps(about))
    with pytest.raises(ModelError, match="no end-of-text token"):
        load(tmp_path / "base")


def test_code_of_a_model_is_never_run(saved: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(saved("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(ModelError):
        config_of(str(folder))
    with pytest.raises(ModelError):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_configuration_of_a_causal_model_is_accepted(family: str, saved: Callable[[str], Path]) -> None:
    config = config_of(str(saved(family)))
    assert config.model_type == family
    assert context_length(config) == 256


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta", "bart", "t5", "vit"])
def test_what_is_no_causal_language_model_is_refused(kind: str, named: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig

    names = {"bert": "BertForMaskedLM", "vit": "ViTModel", "t5": "T5ForConditionalGeneration"}
    config = AutoConfig.for_model(kind)
    config.architectures = [names.get(kind, f"{kind.title()}Model")] if named else None
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"'.*{kind}' model, which is no causal language model"):
        config_of(str(tmp_path))


def test_a_decoder_with_another_head_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(architectures=["LlamaForSequenceClassification"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaForSequenceClassification, llama"):
        config_of(str(tmp_path))


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder and no model of the hub"):
        config_of(str(tmp_path / "none"))


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    from torch import nn

    with pytest.raises(RefusedError, match=r"Linear: where its blocks are is not known.*Llama"):
        blocks(nn.Linear(1, 1))
