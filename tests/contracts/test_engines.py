"""One suite for every engine: the same answers as the reference, whatever the batch, at every kind of question."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fake_llama_cpp
import numpy as np
import pytest
from conftest import FAMILIES

from leanwatt import catalog
from leanwatt.agreement import relative_error
from leanwatt.prompt import Encoder, plain
from leanwatt.question import Generate, Likelihood, Prompt, Score
from leanwatt.recipe import Choice

ENGINES = [
    name for name in catalog.names("engine") if name != "vllm"
]  # It needs a GPU; tests/test_vllm.py has a stand-in.
PROMPTS = [Prompt("Name the root cause.", f"alarm at site {x}", "Root cause:") for x in ("A", "B C D then power", "D")]
OPTIONS = ("mains failure", "fibre cut", "router down in cell")


def opened(engine: str, folder: Path, batch: int, compute: str = "fp32") -> Any:
    return catalog.build(Choice("engine", engine, {"compute": compute})).open(folder, batch)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `slow` tests compile; llama.cpp is a stand-in where it is not installed."""
    import torch

    if "slow" not in request.keywords:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    if find_spec("llama_cpp") is None:
        fake_llama_cpp.install(monkeypatch)


def slow_score(folder: Path, prompt: Prompt, option: str) -> float:
    """Each option by itself, the whole text in one pass, token by token: obviously right."""
    import torch

    from leanwatt.model import load

    model = load(folder)
    encoder = Encoder(model.tokenizer, model.context)
    before, after = encoder.prompt(prompt, 8).ids, encoder.answer(option)
    with torch.inference_mode():
        logs = model.module(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(float(logs[len(before) + i - 1, token]) for i, token in enumerate(after))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_scores_are_those_of_the_slow_way(engine: str, family: str, saved: Callable[[str], Path]) -> None:
    folder = saved(family)
    questions = [Score(prompt, OPTIONS) for prompt in PROMPTS]
    for batch in (1, 3):
        with opened(engine, folder, batch) as session:
            answers = session.answer(questions)
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            slow = [slow_score(folder, prompt, option) for option in OPTIONS]
            assert answer.scores == pytest.approx(slow, abs=2e-3)
            assert answer.text == OPTIONS[int(np.argmax(slow))]
            assert answer.tokens_in > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_generation_is_greedy_search(engine: str, family: str, saved: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = saved(family)
    tokenizer, module = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    with opened(engine, folder, 3) as session:
        answers = session.answer([Generate(prompt, 10) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        inputs = tokenizer("<s>" + plain(prompt), return_tensors="pt", add_special_tokens=False)
        ids = module.generate(**inputs, max_new_tokens=10, do_sample=False, pad_token_id=2)[0]
        expected = tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert answer.text == expected
        assert 1 <= answer.tokens_out <= 10


@pytest.mark.parametrize("engine", ENGINES)
def test_mixed_questions_keep_their_order(engine: str, saved: Callable[[str], Path]) -> None:
    mixed = [
        Generate(PROMPTS[1], 4),
        Score(PROMPTS[0], OPTIONS),
        Likelihood("power lost at site A"),
        Generate(PROMPTS[0], 4),
    ]
    with opened(engine, saved("llama"), 2) as session:
        together = session.answer(mixed)
        alone = [session.answer([question])[0] for question in mixed]
    assert [a.text for a in together] == [a.text for a in alone]
    assert together[2].scores == pytest.approx(alone[2].scores, abs=1e-3)
    assert together[2].scores[0] < 0


@pytest.mark.parametrize("engine", ENGINES)
def test_every_ticket_is_computed_anew(engine: str, saved: Callable[[str], Path]) -> None:
    """Only the instruction may be reused between questions: a ticket asked twice counts its tokens twice."""
    with opened(engine, saved("llama"), 1) as session:
        first, second = session.answer([Score(PROMPTS[0], OPTIONS)] * 2)
    assert first.tokens_in == second.tokens_in > len(PROMPTS[0].body.split())


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_is_close_and_facts_tell(engine: str, saved: Callable[[str], Path]) -> None:
    from leanwatt.errors import RefusedError

    folder = saved("llama")
    with opened("transformers", folder, 1) as reference:
        expected = reference.probe(PROMPTS)
    try:
        with opened(engine, folder, 2, "bf16") as session:
            got, facts = session.probe(PROMPTS), session.facts
    except RefusedError as refusal:
        assert "bf16" in str(refusal)
        return
    assert max(relative_error(mine, right) for mine, right in zip(got, expected, strict=True)) < 0.05
    assert {"weight_dtype", "compute_dtype", "kernel", "weight_bytes", "requantized"} <= facts.keys()
    assert facts["weight_bytes"] == 2 * facts["parameters"]
    assert facts["weight_bytes_on_disk"] > facts["parameters"]


@pytest.mark.parametrize("engine", ENGINES)
def test_long_tickets_lose_their_start_and_say_so(engine: str, saved: Callable[[str], Path]) -> None:
    long = Prompt("Name the root cause.", "first " * 400 + "power lost at site D", "Root cause:")
    with opened(engine, saved("llama"), 1) as session:
        [answer] = session.answer([Score(long, OPTIONS)])
    assert answer.truncated
    assert answer.tokens_in <= 256


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_codes_are_taken_as_they_are(
    engine: str, bits: int, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    from leanwatt.model import load

    model = load(saved("llama"))
    step = catalog.build(Choice("quantize", "round_to_nearest", {"bits": bits, "group": 16}))
    step.apply(model, context).save(tmp_path / "quantized")
    with opened("transformers", tmp_path / "quantized", 1) as reference:
        expected = reference.probe(PROMPTS)
    with opened(engine, tmp_path / "quantized", 2) as session:
        got, facts = session.probe(PROMPTS), session.facts
    assert max(relative_error(mine, right) for mine, right in zip(got, expected, strict=True)) < 1e-4
    assert facts["weight_dtype"] == f"int{bits}"
    assert facts["requantized"] is False
    assert facts["coded_layers"] == 14
    assert facts["saving_expected"] is True


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "transformers"])
def test_adapters_are_refused(engine: str, saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    from leanwatt.errors import RefusedError
    from leanwatt.model import load

    model = catalog.build(Choice("finetune", "lora", {"rank": 2})).apply(load(saved("llama")), context)
    model.save(tmp_path / "adapted")
    with pytest.raises(RefusedError, match="merge"), opened(engine, tmp_path / "adapted", 1):
        pass


@pytest.mark.slow
def test_the_real_compiler_gives_the_same(saved: Callable[[str], Path]) -> None:
    """In the other tests nothing is compiled: a minute for four graphs."""
    questions = [Score(PROMPTS[0], OPTIONS), Generate(PROMPTS[1], 6)]
    with opened("transformers", saved("llama"), 1) as reference:
        expected, right = reference.probe(PROMPTS), reference.answer(questions)
    with opened("compiled", saved("llama"), 2) as session:
        got, answers = session.probe(PROMPTS), session.answer(questions)
    assert max(relative_error(mine, sound) for mine, sound in zip(got, expected, strict=True)) < 1e-4
    assert [answer.text for answer in answers] == [answer.text for answer in right]
    assert answers[0].scores == pytest.approx(right[0].scores, abs=1e-3)
