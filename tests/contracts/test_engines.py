"""One suite for every engine: the same answers as the reference, whatever the batch, at every kind of question."""

from collections.abc import Callable
from dataclasses import replace
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


def slow_score(folder: Path, prompt: Prompt, option: str, room: int = 8) -> float:
    """Each option by itself, the whole text in one pass, token by token: obviously right."""
    import torch

    from leanwatt.model import load

    model = load(folder)
    encoder = Encoder(model.tokenizer, model.context)
    before, after = encoder.prompt(prompt, room).ids, encoder.answer(option)
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
def test_an_answer_can_be_made_to_go_on(engine: str, saved: Callable[[str], Path]) -> None:
    with opened(engine, saved("llama"), 3) as session:
        free = session.answer([Generate(prompt, 30) for prompt in PROMPTS])
        made = session.answer([Generate(prompt, 30, stop=("\n",), at_least=30) for prompt in PROMPTS])
        mixed = session.answer(
            [Generate(PROMPTS[0], 30, at_least=30), Generate(PROMPTS[1], 30), Generate(PROMPTS[2], 2)]
        )
    assert [answer.tokens_out for answer in made] == [30, 30, 30]
    assert mixed[0] == replace(made[0], seconds_to_first_token=mixed[0].seconds_to_first_token)
    assert mixed[1].text == free[1].text
    assert mixed[2].tokens_out <= 2


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


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
@pytest.mark.parametrize("engine", ["transformers", "openvino", "onnxruntime", "compiled"])
def test_layers_with_a_window_see_all_that_is_kept(engine: str, family: str, tmp_path: Path) -> None:
    """Prompts are cut to the window, within which a window makes no difference: as plain transformers, which has it."""
    import torch
    from conftest import tiny_module, tiny_tokenizer

    module = tiny_module(family)
    module.config.sliding_window = 64
    module.save_pretrained(tmp_path / "windowed")
    tiny_tokenizer().save_pretrained(tmp_path / "windowed")
    long = Prompt("Name the root cause.", "alarm at site B C D then " * 12 + "power lost", "Root cause:")
    with opened(engine, tmp_path / "windowed", 2) as session:
        scored, written = session.answer([Score(long, OPTIONS), Generate(long, 6)])
    assert scored.truncated and written.truncated
    tokens = Encoder(tiny_tokenizer(), 64)
    room = max(len(tokens.answer(option)) for option in OPTIONS)
    slow = [slow_score(tmp_path / "windowed", long, option, room) for option in OPTIONS]
    assert scored.scores == pytest.approx(slow, abs=2e-3)
    ids = torch.tensor([tokens.prompt(long, 6).ids])
    right = module.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
    assert written.text == tokens.text(right.tolist()).split("</s>")[0].strip()


SMALLER = {"width": {"keep": 0.5}, "heads": {"keep": 0.5}, "depth": {"remove": 1}}


@pytest.fixture(scope="session")
def smaller(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a model that is truly smaller; kept, as those of `quantized`."""
    from leanwatt.model import load

    folders: dict[tuple[str, str], Path] = {}

    def make(method: str, family: str, context: Any) -> Path:
        if (method, family) not in folders:
            folders[method, family] = tmp_path_factory.mktemp(method) / "variant"
            step = catalog.build(Choice("prune", method, SMALLER[method]))
            step.apply(load(saved(family)), context).save(folders[method, family])
        return folders[method, family]

    return make


@pytest.mark.parametrize("method", SMALLER)
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "transformers"])
def test_smaller_models_are_computed_as_they_are(
    engine: str, method: str, smaller: Callable[..., Path], context: Any
) -> None:
    """With heads and layers of other sizes than a usual model of the family has."""
    folder = smaller(method, "llama", context)
    with opened("transformers", folder, 1) as reference:
        expected, facts = reference.probe(PROMPTS), reference.facts
    with opened(engine, folder, 3) as session:
        got = session.probe(PROMPTS)
        assert session.facts["parameters"] == facts["parameters"] < facts["base_parameters"]
        assert "smaller model" in session.facts["saving_reason"]
    assert max(relative_error(mine, right) for mine, right in zip(got, expected, strict=True)) < 1e-3


QUANTIZED = {
    "int8": [Choice("quantize", "round_to_nearest", {"bits": 8, "group": 16}), Choice("quantize", "smoothquant")],
    "int4": [Choice("quantize", name, {"bits": 4, "group": 32}) for name in ("gptq", "awq")],
    "nf4": [Choice("quantize", "nf4", {"group": 16})],
}
"""By the kind of codes that they make."""


@pytest.fixture(scope="session")
def quantized(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny model, quantized; kept, since an engine that converts does so once per folder."""
    from leanwatt.model import load

    folders: dict[tuple[str, Choice], Path] = {}

    def make(choice: Choice, context: Any, family: str = "llama") -> Path:
        if (family, choice) not in folders:
            folders[family, choice] = tmp_path_factory.mktemp(choice.name) / "variant"
            catalog.build(choice).apply(load(saved(family)), context).save(folders[family, choice])
        return folders[family, choice]

    return make


@pytest.mark.parametrize(("kind", "choice"), [(kind, each) for kind, of in QUANTIZED.items() for each in of], ids=str)
def test_openvino_takes_the_codes_as_they_are(
    kind: str, choice: Choice, quantized: Callable[..., Path], context: Any
) -> None:
    folder = quantized(choice, context)
    with opened("transformers", folder, 1) as reference:
        expected = reference.probe(PROMPTS)
    with opened("openvino", folder, 1) as session:
        got, facts = session.probe(PROMPTS), session.facts
    assert max(relative_error(mine, right) for mine, right in zip(got, expected, strict=True)) < 1e-4
    assert facts["weight_dtype"] == kind
    assert facts["requantized"] is False
    assert facts["coded_layers"] == 14


def test_openvino_takes_codes_of_weights_that_stand_the_other_way_round(
    quantized: Callable[..., Path], context: Any
) -> None:
    folder = quantized(QUANTIZED["nf4"][0], context, "gpt2")
    with opened("transformers", folder, 1) as reference, opened("openvino", folder, 1) as session:
        for mine, right in zip(session.probe(PROMPTS), reference.probe(PROMPTS), strict=True):
            assert relative_error(mine, right) < 1e-4


def rounding() -> Any:
    return catalog.build(Choice("engine", "openvino", {"compute": "fp32", "activations": "int8"}))


def in_eight_bits(folder: Path) -> Any:
    """The slow way: every input of a quantized layer rounded to 8 bits, 32 neighbours to a scale."""
    import torch

    from leanwatt.engine._asking import Asking
    from leanwatt.engine.transformers import _Torch
    from leanwatt.model import linears, load

    def rounded(_module: Any, args: Any) -> Any:
        parts = args[0].unflatten(-1, (-1, 32))
        scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (torch.round(parts / scale) * scale).flatten(-2)

    model = load(folder)
    for layer in linears(model.module).values():
        layer.register_forward_pre_hook(rounded)
    return Asking(_Torch(model.module, "cpu"), Encoder(model.tokenizer, model.context), 1, {}).probe(PROMPTS)


@pytest.mark.parametrize("choice", [QUANTIZED["int8"][1], QUANTIZED["int4"][0]], ids=str)
def test_openvino_truly_rounds_activations(choice: Choice, quantized: Callable[..., Path], context: Any) -> None:
    folder = quantized(choice, context)
    with opened("transformers", folder, 1) as reference:
        whole = reference.probe(PROMPTS)
    with rounding().open(folder, 1) as session:
        got, facts = session.probe(PROMPTS), session.facts
    for mine, slow, unrounded in zip(got, in_eight_bits(folder), whole, strict=True):
        assert relative_error(mine, slow) < 0.2 * relative_error(mine, unrounded)
        assert relative_error(mine, unrounded) < 0.02
    assert facts["activations"] == "int8"


@pytest.mark.parametrize("choice", [QUANTIZED["nf4"][0], QUANTIZED["int8"][0]], ids=str)
def test_openvino_refuses_to_round_activations_where_it_would_not(
    choice: Choice, quantized: Callable[..., Path], context: Any
) -> None:
    """It takes the setting, multiplies floats, and says nothing."""
    from leanwatt.errors import RefusedError

    folder = quantized(choice, context)
    refusal = pytest.raises(RefusedError, match="one scale per row, or groups of a multiple of 32")
    with refusal, rounding().open(folder, 1):
        pass


def test_smoothing_helps_where_activations_are_rounded(
    saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    """A model with outliers among the features, as large models have them."""
    from leanwatt.model import load

    model = load(saved("llama"))
    for block in model.module.model.layers:
        attention, mlp = block.self_attn, block.mlp
        places = {
            block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            block.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, readers in places.items():
            norm.weight.data[3] = 100
            for layer in readers:
                layer.weight.data[:, 3] /= 100
    model.save(tmp_path / "outliers")
    with opened("transformers", tmp_path / "outliers", 1) as reference:
        expected, _ = reference.probe(PROMPTS)
    errors = {}
    for choice in (Choice("quantize", "smoothquant"), Choice("quantize", "round_to_nearest", {"bits": 8, "group": 0})):
        catalog.build(choice).apply(load(tmp_path / "outliers"), context).save(tmp_path / choice.name)
        errors[choice.name] = relative_error(in_eight_bits(tmp_path / choice.name)[0], expected)
    assert errors["smoothquant"] < 0.25 * errors["round_to_nearest"]


@pytest.mark.parametrize("engine", [name for name in ENGINES if not catalog.find("engine", name).takes_adapters])
def test_adapters_are_refused(engine: str, saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    from leanwatt.errors import RefusedError
    from leanwatt.model import load

    model = catalog.build(Choice("finetune", "lora", {"rank": 2})).apply(load(saved("llama")), context)
    model.save(tmp_path / "adapted")
    with pytest.raises(RefusedError, match="merge"), opened(engine, tmp_path / "adapted", 1):
        pass


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_text_has_the_probability_of_all_its_tokens(engine: str, batch: int, saved: Callable[[str], Path]) -> None:
    """Short texts in one pass; a long one in windows, each token once and seeing at least half a context."""
    import torch

    from leanwatt.model import load
    from leanwatt.prompt import windows

    model = load(saved("llama"))
    encoder = Encoder(model.tokenizer, model.context)
    texts = ["power", "link lost at site A then", "power lost at site B " * 40]
    expected = []
    for text in texts:
        total = 0.0
        for window in windows(encoder.document(text), encoder.context):
            with torch.inference_mode():
                logs = model.module(torch.tensor([window.ids])).logits[0].float().log_softmax(-1)
            first = len(window.ids) - window.fresh
            total += sum(float(logs[place - 1, window.ids[place]]) for place in range(first, len(window.ids)))
        expected.append(total)
    with opened(engine, saved("llama"), batch) as session:
        answers = session.answer([Likelihood(text) for text in texts])
    assert [answer.scores[0] for answer in answers] == pytest.approx(expected, rel=2e-3)
    assert answers[2].tokens_in > len(encoder.document(texts[2])) - 1


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


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 32)])
def test_the_real_compiler_takes_codes_as_they_are(
    bits: int, group: int, family: str, quantized: Callable[..., Path], context: Any
) -> None:
    """One scale per row at 8 bits, groups of 32 at 4: what its kernels take. In other tests these are not compiled."""
    folder = quantized(Choice("quantize", "round_to_nearest", {"bits": bits, "group": group}), context, family)
    questions = [Score(PROMPTS[0], OPTIONS), Generate(PROMPTS[1], 6)]
    with opened("transformers", folder, 1) as reference:
        expected, right = reference.probe(PROMPTS), reference.answer(questions)
    with opened("compiled", folder, 2) as session:
        assert session.facts["kernel"] == f"int{bits} weights, fp32"
        got, answers = session.probe(PROMPTS), session.answer(questions)
        alone = session.probe(PROMPTS[:1])
    assert max(relative_error(mine, sound) for mine, sound in zip(got, expected, strict=True)) < 1e-4
    assert max(relative_error(mine, sound[:1]) for mine, sound in zip(alone, expected, strict=True)) < 1e-4
    assert [answer.text for answer in answers] == [answer.text for answer in right]
    assert answers[0].scores == pytest.approx(right[0].scores, abs=1e-3)
