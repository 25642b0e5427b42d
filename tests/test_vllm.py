"""The engine `vllm` against a stand-in for its library: the same answers as the reference, and honest facts."""

import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from leanwatt import catalog
from leanwatt.agreement import relative_error
from leanwatt.engine import vllm
from leanwatt.engine.transformers import Transformers
from leanwatt.errors import MissingExtraError, RefusedError
from leanwatt.question import Generate, Likelihood, Prompt, Score
from leanwatt.recipe import Choice

PROMPTS = [Prompt("Name the root cause.", f"alarm at site {x}", "Root cause:") for x in ("A", "B C D then power")]
OPTIONS = ("mains failure", "fibre cut", "router down in cell")


class LLM:
    """vLLM's part that is used: token ids in, greedy tokens and log-probabilities out."""

    opened: dict[str, Any]

    def __init__(self, **settings: Any) -> None:
        from leanwatt.model import load

        LLM.opened = settings
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0", "else it starts a child, which jobs may not have"
        model = load(settings["model"])
        self._module, self._tokenizer = model.module.float(), model.tokenizer

    def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        return [self._one(prompt["prompt_token_ids"], each) for prompt, each in zip(prompts, params, strict=True)]

    def _one(self, ids: list[int], params: Any) -> Any:
        read = [None, *self._logs(ids)[:-1]]
        tokens: list[int] = []
        told = []
        while len(tokens) < params.max_tokens:
            logs = self._logs([*ids, *tokens])[-1]
            told.append(logs)
            allowed = getattr(params, "allowed_token_ids", None) or logs
            tokens.append(max(allowed, key=lambda token: logs[token].logprob))
            text = self._tokenizer.decode(tokens)
            if any(stop in text for stop in getattr(params, "stop", ())):
                break
            if tokens[-1] == self._tokenizer.eos_token_id and not getattr(params, "ignore_eos", False):
                break
        completion = SimpleNamespace(token_ids=tuple(tokens), logprobs=told)
        return SimpleNamespace(prompt_logprobs=read, outputs=[completion])

    def _logs(self, ids: list[int]) -> list[dict[int, Any]]:
        import torch

        with torch.inference_mode():
            logs = self._module(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [{token: SimpleNamespace(logprob=value) for token, value in enumerate(row.tolist())} for row in logs]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.__dict__.update(LLM=LLM, SamplingParams=SimpleNamespace, __version__="0.fake")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm, "_has_gpu", lambda: True)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def engine(**settings: Any) -> Any:
    return catalog.build(Choice("engine", "vllm", settings))


@pytest.mark.usefixtures("gpu")
def test_answers_are_those_of_the_reference(saved: Callable[[str], Path]) -> None:
    questions = [
        Generate(PROMPTS[1], 6),
        Score(PROMPTS[0], OPTIONS),
        Likelihood("power lost at site A"),
        Generate(PROMPTS[0], 8, stop=("a",)),
        Score(PROMPTS[1], OPTIONS),
    ]
    with engine(compute="fp32").open(saved("llama"), 2) as session:
        got, logs, facts = session.answer(questions), session.probe(PROMPTS), session.facts
    with Transformers("fp32").open(saved("llama"), 2) as reference:
        expected, right = reference.answer(questions), reference.probe(PROMPTS)
    assert [answer.text for answer in got] == [answer.text for answer in expected]
    assert [answer.tokens_out for answer in got[:1]] == [answer.tokens_out for answer in expected[:1]]
    for mine, other in zip(got, expected, strict=True):
        assert mine.scores == pytest.approx(other.scores, abs=1e-3)
    assert max(relative_error(mine, other) for mine, other in zip(logs, right, strict=True)) < 1e-4
    assert facts["not_yet_run_on_hardware"] is True
    assert facts["kernel"] == "dense fp32"
    assert LLM.opened["enable_prefix_caching"] is False
    assert LLM.opened["max_num_seqs"] == 2


@pytest.mark.usefixtures("gpu")
def test_every_option_is_charged_with_its_prompt(saved: Callable[[str], Path]) -> None:
    with engine().open(saved("llama"), 1) as session:
        three, two = (session.answer([Score(PROMPTS[0], OPTIONS[:count])])[0] for count in (3, 2))
    assert three.tokens_in * 2 == two.tokens_in * 3 > 0


@pytest.mark.usefixtures("gpu")
def test_fp8_is_another_model_and_says_so(saved: Callable[[str], Path]) -> None:
    with engine(weights="fp8").open(saved("llama"), 1) as session:
        facts = session.facts
    assert (facts["requantized"], facts["weight_dtype"], facts["activations"]) == (True, "fp8", "fp8")
    assert "weight_bytes" not in facts
    assert LLM.opened["quantization"] == "fp8"


@pytest.mark.usefixtures("gpu")
def test_without_a_gpu_and_with_adapters_it_is_refused(
    saved: Callable[[str], Path], context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.model import load

    monkeypatch.setattr(vllm, "_has_gpu", lambda: False)
    with pytest.raises(RefusedError, match="GPU"), engine().open(saved("llama"), 1):
        pass
    catalog.build(Choice("finetune", "lora", {"rank": 2})).apply(load(saved("llama")), context).save(tmp_path / "a")
    monkeypatch.setattr(vllm, "_has_gpu", lambda: True)
    with pytest.raises(RefusedError, match="merge"), engine().open(tmp_path / "a", 1):
        pass


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    if find_spec("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(MissingExtraError, match=r"pip install 'leanwatt\[vllm\]'"):
        engine()
