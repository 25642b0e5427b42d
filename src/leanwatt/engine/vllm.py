"""vLLM on NVIDIA GPUs: made for many questions at once. Not yet run on hardware: tested against a stand-in.

Written against vLLM 0.33. Its cache of prefixes is off: it keeps whole tickets, not the instruction alone, so that the
tickets that a weighing repeats would cost next to nothing the second time. Each option is read with its whole prompt:
vLLM has no way to let options share one. Integer codes are unpacked: its kernels take formats of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from leanwatt.contracts import Engine
from leanwatt.engine._asking import Array, until_stop, without_end
from leanwatt.engine._weights import Ran, facts, safetensors, sizes
from leanwatt.errors import RefusedError, require
from leanwatt.model import load
from leanwatt.prompt import Encoded, Encoder, windows
from leanwatt.question import Answer, Generate, Likelihood, Prompt, Question, Score

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
READ = {"max_tokens": 1, "prompt_logprobs": 0}
"""Tell how likely each token of a text is; it insists on writing one more."""


@final
@dataclass(frozen=True)
class Vllm(Engine):
    """Run a model through vLLM on a GPU."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What it multiplies in; auto is bf16."""
    weights: Literal["as saved", "fp8"] = "as saved"
    """fp8 rounds weights and activations to 8-bit floats when loading: another model, which the record says."""
    memory_share: float = 0.9
    """Share of the GPU's memory that weights and cache may fill."""

    uses_gpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require("vllm", "engine", "vllm")

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[_Session]:
        """Load. Raises RefusedError without a GPU, and for adapters."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # A job's process is a daemon, which may have no children.
        from vllm import LLM

        if not _has_gpu():
            raise RefusedError("engine vllm: it needs an NVIDIA GPU; on CPUs use openvino.")
        model = load(artifact)
        if model.has_adapters:
            raise RefusedError("engine vllm: the model has adapters; put `merge: [merge]` after finetune.")
        compute = "bf16" if self.compute == "auto" else self.compute
        inner = LLM(
            model=str(artifact),
            dtype=DTYPES[compute],
            quantization="fp8" if self.weights == "fp8" else None,
            gpu_memory_utilization=self.memory_share,
            max_num_seqs=batch,
            max_model_len=model.context,
            enable_prefix_caching=False,
            max_logprobs=-1,
            logprobs_mode="raw_logprobs",
        )
        yield _Session(
            inner, Encoder(model.tokenizer, model.context), batch, _facts(model, artifact, compute, self.weights)
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _facts(model: Any, artifact: Path, compute: str, weights: str) -> dict[str, Any]:
    import vllm

    rounded = weights == "fp8"
    ran = Ran(
        engine=f"vllm {vllm.__version__}",
        compute=compute,
        kernel=f"fp8 weights, {compute}" if rounded else f"dense {compute}",
        files=safetensors(artifact),
        activations="fp8" if rounded else "float",
        requantized=rounded,
    )
    told = {**facts(sizes(model, []), ran), "not_yet_run_on_hardware": True}
    if rounded:  # How much of the model it rounds is not known from outside.
        del told["weight_bytes"]
        told["weight_dtype"] = "fp8"
    return told


@dataclass(frozen=True)
class _Session:
    """Answers by requests of its own kind; vLLM forms the batches."""

    inner: Any
    encoder: Encoder
    batch: int
    facts: Mapping[str, Any]

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order; questions of a kind go together."""
        found: dict[int, Answer] = {}
        kinds: list[tuple[type, Any]] = [
            (Score, self._score),
            (Generate, self._generate),
            (Likelihood, self._likelihood),
        ]
        for kind, one in kinds:
            mine = [i for i, question in enumerate(questions) if isinstance(question, kind)]
            if mine:
                found.update(zip(mine, one([questions[i] for i in mine]), strict=True))
        return [found[i] for i in range(len(questions))]

    def probe(self, prompts: Sequence[Prompt]) -> tuple[Array, Array]:
        """Log-probabilities after each prompt, and after an end token more, each (prompts, words)."""
        import numpy as np

        ids = [self.encoder.prompt(prompt, room=8).ids for prompt in prompts]
        forced = {"max_tokens": 2, "logprobs": -1, "allowed_token_ids": [self.encoder.end], "ignore_eos": True}
        outputs = self._ask(ids, [forced] * len(ids))
        rows = [[_row(place) for place in output.outputs[0].logprobs] for output in outputs]
        return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])

    def _ask(self, ids: Sequence[Sequence[int]], settings: Sequence[Mapping[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        params = [SamplingParams(temperature=0.0, **each) for each in settings]
        prompts = [{"prompt_token_ids": list(each)} for each in ids]
        return list(self.inner.generate(prompts, params, use_tqdm=False))

    def _score(self, questions: Sequence[Score]) -> Iterator[Answer]:
        begun = time.perf_counter()
        asked: list[tuple[Encoded, list[tuple[int, ...]]]] = []
        for question in questions:
            options = [self.encoder.answer(option) for option in question.options]
            room = 1 + max(map(len, options))
            asked.append((self.encoder.prompt(question.prompt, room), options))
        ids = [(*prompt.ids, *option) for prompt, options in asked for option in options]
        outputs = iter(self._ask(ids, [READ] * len(ids)))
        took = time.perf_counter() - begun
        for question, (prompt, options) in zip(questions, asked, strict=True):
            scores = [_summed(next(outputs), (*prompt.ids, *option), len(prompt.ids)) for option in options]
            text = question.options[scores.index(max(scores))]
            tokens_in, tokens_out = len(prompt.ids) * len(options), sum(map(len, options))
            yield Answer(text, tuple(scores), tokens_in, tokens_out, took, prompt.truncated)

    def _generate(self, questions: Sequence[Generate]) -> Iterator[Answer]:
        prompts = [self.encoder.prompt(question.prompt, room=question.limit) for question in questions]
        settings = [
            {"max_tokens": question.limit, "min_tokens": question.at_least, "stop": list(question.stop)}
            for question in questions
        ]
        outputs = self._ask([prompt.ids for prompt in prompts], settings)
        for question, prompt, output in zip(questions, prompts, outputs, strict=True):
            tokens = list(output.outputs[0].token_ids)
            text = until_stop(self.encoder.text(without_end(tokens, self.encoder.end)), question.stop)
            yield Answer(text, (), len(prompt.ids), len(tokens), None, prompt.truncated)

    def _likelihood(self, questions: Sequence[Likelihood]) -> Iterator[Answer]:
        # One place is left free: vLLM generates at least one token.
        cut = [windows(self.encoder.document(question.text), self.encoder.context - 1) for question in questions]
        every = [window.ids for each in cut for window in each]
        outputs = iter(self._ask(every, [READ] * len(every)))
        for each in cut:
            score = sum(_summed(next(outputs), window.ids, len(window.ids) - window.fresh) for window in each)
            yield Answer(None, (score,), sum(len(window.ids) for window in each))


def _summed(output: Any, ids: Sequence[int], start: int) -> float:
    """Log-probability of the tokens from `start` on."""
    return sum(float(output.prompt_logprobs[place][ids[place]].logprob) for place in range(start, len(ids)))


def _row(place: Mapping[int, Any]) -> list[float]:
    return [float(place[token].logprob) for token in range(len(place))]
