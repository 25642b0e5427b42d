"""What single engines promise beyond the contract: sizes, refusals, files, shapes, sparse kernels."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_llama_cpp
import numpy as np
import pytest

from leanwatt import catalog
from leanwatt.agreement import relative_error
from leanwatt.errors import MissingExtraError, RefusedError
from leanwatt.model import Codes, load
from leanwatt.question import Generate, Prompt, Score
from leanwatt.recipe import Choice

PROMPTS = [Prompt("Name the root cause.", f"alarm at site {x}", "Root cause:") for x in ("A", "B C D then power", "D")]
OPTIONS = ("mains failure", "fibre cut", "router down in cell")


def built(name: str, **settings: Any) -> Any:
    return catalog.build(Choice("engine", name, settings))


@pytest.fixture
def variant(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> Callable[..., Path]:
    def make(family: str, *steps: Choice) -> Path:
        model = load(saved(family))
        for step in steps:
            model = catalog.build(step).apply(model, context)
        model.save(tmp_path / "variant")
        return tmp_path / "variant"

    return make


def quantized(bits: int, group: int) -> Choice:
    return Choice("quantize", "round_to_nearest", {"bits": bits, "group": group})


@pytest.mark.parametrize(("compute", "size"), [("fp32", 4), ("bf16", 2)])
def test_weights_count_as_what_they_are_multiplied_in(
    compute: str, size: int, saved: Callable[[str], Path], variant: Callable[..., Path]
) -> None:
    for name in ("openvino", "transformers"):
        with built(name, compute=compute).open(saved("llama"), 1) as session:
            assert session.facts["weight_bytes"] == size * session.facts["parameters"]
            assert "saving_expected" not in session.facts
    folder = variant("llama", quantized(4, 16))
    with built("openvino", compute=compute).open(folder, 1) as session:
        facts = session.facts
    whole = facts["parameters"] - facts["coded_parameters"]
    assert facts["weight_bytes"] == whole * size + facts["coded_bytes"]
    assert facts["coded_bytes"] == facts["coded_parameters"] // 2 + facts["coded_parameters"] // 16 * 2
    with built("transformers", compute=compute).open(folder, 1) as session:
        assert session.facts["weight_bytes"] == size * session.facts["parameters"]
        assert (session.facts["saving_expected"], session.facts["weight_dtype"]) == (False, compute)


def test_onnxruntime_leaves_groups_that_its_blocks_cannot_hold(variant: Callable[..., Path]) -> None:
    with built("onnxruntime").open(variant("llama", quantized(4, 8)), 1) as session:
        facts = session.facts
    assert (facts["kernel"], facts["coded_layers"], facts["saving_expected"]) == ("dense fp32", 0, False)


@pytest.mark.parametrize("group", [0, 16, 32])
@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_blocks_hold_the_very_weights(bits: int, group: int) -> None:
    import torch

    from leanwatt.engine import _onnx_graph as graph
    from leanwatt.quantize.round_to_nearest import nearest_codes

    codes = nearest_codes(torch.randn(6, 96), bits, group)
    size = graph._block(codes)
    assert size is not None
    blocks, scales = graph._blocks(codes, size)
    packed = graph._packed(blocks, bits)
    assert packed.nbytes == -(-96 // size) * size * 6 * bits // 8
    back = (blocks.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    np.testing.assert_array_equal(back.reshape(6, -1)[:, :96], codes.weight.numpy())


def test_onnxruntime_rounds_activations_when_asked(variant: Callable[..., Path]) -> None:
    folder = variant("llama", quantized(8, 16))
    with built("onnxruntime", activations="int8").open(folder, 1) as session:
        assert session.facts["activations"] == "int8"
        rounded = session.probe(PROMPTS)[0]
    with built("onnxruntime").open(folder, 1) as session:
        exact = session.probe(PROMPTS)[0]
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["onnxruntime", "llama_cpp"])
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    real = find_spec
    monkeypatch.setattr("leanwatt.errors.find_spec", lambda package: None if package == name else real(package))
    with pytest.raises(MissingExtraError, match=rf"pip install 'leanwatt\[{name}\]'"):
        built(name)
    assert catalog.is_installed("engine", name) is False
    assert catalog.is_installed("prune", "width") is True, "a setting without a default is no missing package"


# llama.cpp


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_llama_cpp.install(monkeypatch)


@pytest.mark.parametrize(("bits", "group", "again"), [(8, 32, 0), (4, 32, 0), (4, 0, 0), (8, 16, 14)])
def test_gguf_holds_our_weights_or_says_that_it_quantized_again(
    bits: int, group: int, again: int, variant: Callable[..., Path], tmp_path: Path
) -> None:
    import gguf

    from leanwatt.engine import _gguf

    model = load(variant("qwen2", quantized(bits, group)))
    written = _gguf.write(model, tmp_path / "m.gguf", "fp16")
    assert (written.requantized, len(written.taken)) == (again, 14)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    layer = model.codes["model.layers.1.mlp.down_proj"].weight.numpy()
    assert np.array_equal(found["blk.1.ffn_down.weight"], layer) is (again == 0)
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], layer, atol=np.abs(layer).max() * 2.0 ** (1 - bits))
    assert found["token_embd.weight"].shape == (300, 32)


def test_gguf_scales_beyond_sixteen_bits_are_no_exact_fit() -> None:
    import torch

    from leanwatt.engine import _gguf

    codes = Codes(torch.ones(2, 32, dtype=torch.int8), torch.full((2, 1), 0.1), 8)
    assert _gguf._coded(codes, np.arange(2))[2] is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "phi"}, "families"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
    ],
)
def test_gguf_refuses_what_it_cannot_say(changes: dict[str, Any], words: str) -> None:
    from leanwatt.engine import _gguf

    plain = {"model_type": "llama", "rope_parameters": {"rope_type": "default"}, "max_position_embeddings": 256}
    _gguf._refuse_unknown(SimpleNamespace(**plain))
    with pytest.raises(RefusedError, match=words):
        _gguf._refuse_unknown(SimpleNamespace(**(plain | changes)))


def test_branches_of_a_row() -> None:
    from leanwatt.engine.llama_cpp import branches

    mask = np.tril(np.ones((5, 5), bool))
    mask[:, 0] = mask[0] = False  # Padding.
    mask[4, 3] = False  # Tokens 3 and 4 are options of one prompt: 1, 2.
    assert branches(mask) == [[], [0, 1], [0, 1], [0], [1]]


@pytest.mark.usefixtures("binding")
def test_rows_that_do_not_fit_together_are_read_one_after_the_other(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [Score(prompt, OPTIONS) for prompt in PROMPTS]
    with built("llama_cpp", compute="fp32").open(saved("llama"), 3) as session:
        expected = session.answer(questions)
    monkeypatch.setattr(fake_llama_cpp, "SEQUENCES", 4)
    with built("llama_cpp", compute="fp32").open(saved("llama"), 3) as session:
        got = session.answer(questions)
    assert [answer.scores for answer in got] == [pytest.approx(answer.scores, abs=1e-4) for answer in expected]
    monkeypatch.setattr(fake_llama_cpp, "SEQUENCES", 2)
    with built("llama_cpp").open(saved("llama"), 2) as session, pytest.raises(RefusedError, match="3 options"):
        session.answer(questions)
    with pytest.raises(RefusedError, match="at most 2 answers at once"), built("llama_cpp").open(saved("llama"), 3):
        pass


def test_the_cache_grows_with_what_is_asked_and_keeps_what_it_held(
    saved: Callable[[str], Path], binding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the steps of an answer, too; the answers are those of a cache that is large enough from the start."""
    from leanwatt.engine import llama_cpp

    questions = [Generate(prompt, 40, at_least=40) for prompt in PROMPTS]
    sizes: list[int] = []
    make = binding.llama_init_from_model

    def counted(model: Any, settings: Any) -> Any:
        sizes.append(settings.n_ctx)
        return make(model, settings)

    monkeypatch.setattr(binding, "llama_init_from_model", counted)
    with built("llama_cpp", compute="fp32").open(saved("llama"), 2) as session:
        expected = session.answer(questions)
        assert sizes == [llama_cpp.FIRST], "no more than these questions need"
    monkeypatch.setattr(llama_cpp, "FIRST", 16)
    sizes.clear()
    binding.freed.clear()
    with built("llama_cpp", compute="fp32").open(saved("llama"), 2) as session:
        got, again = session.answer(questions), session.answer(questions)
    assert [answer.text for answer in got] == [answer.text for answer in again] == [a.text for a in expected]
    filled = max(sum(each.tokens_in + each.tokens_out for each in pair) for pair in (expected[:2], expected[2:]))
    assert sizes == sorted(set(sizes)) and sizes[0] == 16 and sizes[-1] < 2 * filled
    assert len(sizes) > 2 and binding.freed == ["context"] * len(sizes) + ["model"]


def test_llama_cpp_gives_its_memory_back_and_tells_failures(saved: Callable[[str], Path], binding: Any) -> None:
    binding.fails = True
    with (
        pytest.raises(RuntimeError, match="llama_decode gave 1"),
        built("llama_cpp").open(saved("llama"), 1) as session,
    ):
        session.probe(PROMPTS)
    assert binding.freed == ["context", "model"]
    binding.llama_init_from_model = lambda *_: None
    with pytest.raises(RuntimeError, match="memory"), built("llama_cpp").open(saved("llama"), 1):
        pass
    binding.llama_model_load_from_file = lambda *_: None
    with pytest.raises(RuntimeError, match="not loaded"), built("llama_cpp").open(saved("llama"), 1):
        pass


# compiled


def test_the_number_of_graphs_is_bounded(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    shapes: set[Any] = set()

    def watched(function: Any, **_: Any) -> Any:
        def run(*inputs: Any) -> Any:
            shapes.add((function.__name__, *(tuple(getattr(each, "shape", (each,))) for each in inputs)))
            return function(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", watched)
    bodies = ["power lost " * count for count in (1, 4, 8, 12, 16, 20)]
    questions = [Score(Prompt("Name the cause.", body, "Cause:"), OPTIONS) for body in bodies]
    with built("compiled", compute="fp32").open(saved("llama"), 4) as session:
        session.answer(questions)
        session.probe([question.prompt for question in questions])
    assert {name for name, *_ in shapes} == {"_score", "_prefill", "_step"}
    assert all(inputs[0][0] == 4 for _, *inputs in shapes), "always the whole batch"
    assert len(shapes) <= 6, "two lengths of each kind"


def test_a_full_cache_grows(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from leanwatt.engine import compiled

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(compiled, "SHORTEST", 4)
    question = Generate(PROMPTS[0], 90)
    with built("transformers").open(saved("llama"), 1) as session:
        [expected] = session.answer([question])
    with built("compiled", compute="fp32", frozen=False).open(saved("llama"), 1) as session:
        [got] = session.answer([question])
        assert session.facts["weight_copies"] == "one"
        assert session.backend._past[0].shape[2] == 128
    assert got.text == expected.text
    assert got.tokens_out == 90


def test_without_a_compiler_it_is_refused(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.cpp_builder as builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(builder, "get_cpp_compiler", none)
    with pytest.raises(RefusedError, match="C\\+\\+ compiler"), built("compiled").open(saved("llama"), 1):
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", [(4, 32, True), (4, 0, True), (8, 0, True), (8, 16, False)])
def test_codes_go_to_torch_kernels_where_they_fit(
    family: str, case: tuple[int, int, bool], variant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from leanwatt.agreement import relative_error

    bits, group, is_taken = case
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    folder = variant(family, quantized(bits, group))
    with built("transformers", compute="fp32").open(folder, 1) as session:
        expected, whole = session.probe(PROMPTS), session.facts
    with built("compiled", compute="fp32").open(folder, 2) as session:
        got, facts = session.probe(PROMPTS), session.facts
    assert max(relative_error(mine, right) for mine, right in zip(got, expected, strict=True)) < 1e-5
    assert facts["saving_expected"] is is_taken
    assert facts["parameters"] == whole["parameters"]
    assert facts["requantized"] is False
    if is_taken:
        assert facts["kernel"] == f"int{bits} weights, fp32"
        assert facts["weight_bytes"] < whole["weight_bytes"]
    with built("compiled", compute="fp32", codes="unpacked").open(folder, 1) as session:
        assert session.facts["kernel"] == "dense fp32"


# transformers on a GPU, with stand-ins


def pruned(variant: Callable[..., Path]) -> Path:
    return variant("llama", Choice("prune", "magnitude", {"pattern": "2:4"}))


def test_sparse_kernels_take_every_layer_with_a_mask(
    variant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from leanwatt.engine import transformers

    packed: list[Any] = []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: packed.append(w.shape) or w)
    real = transformers._with_sparse_kernels
    monkeypatch.setattr(transformers, "_with_sparse_kernels", lambda model, _device: real(model, "cuda"))
    with built("transformers", compute="bf16", sparse=True).open(pruned(variant), 1) as session:
        facts = session.facts
        assert len(session.answer([Score(PROMPTS[0], OPTIONS)])[0].scores) == 3
    assert len(packed) == 14
    skipped = sum(rows * columns for rows, columns in packed)
    assert facts["weight_bytes"] == 2 * facts["parameters"] - skipped * 7 // 8
    assert facts["kernel"] == "2:4 sparse bf16"
    assert facts["saving_expected"] is True


def test_sparse_kernels_are_refused_where_they_cannot_run(
    saved: Callable[[str], Path], variant: Callable[..., Path]
) -> None:
    import torch

    from leanwatt.engine.transformers import _with_sparse_kernels

    folder = pruned(variant)
    if not torch.cuda.is_available():
        with pytest.raises(RefusedError, match="NVIDIA GPU"), built("transformers", sparse=True).open(folder, 1):
            pass
    with pytest.raises(RefusedError, match="pattern: '2:4'"):
        _with_sparse_kernels(load(saved("llama")), "cuda")
    with pytest.raises(RefusedError, match="bf16"):
        _with_sparse_kernels(load(folder), "cuda")


SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
"""Two devices, as far as a machine without GPUs has them: what lies on disk is fetched when its turn comes."""


@pytest.mark.parametrize("compute", ["auto", "bf16"])
def test_a_model_that_lies_on_several_devices_answers_as_on_one(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str
) -> None:
    from leanwatt.engine import transformers as engine

    asked: dict[str, Any] = {}

    def elsewhere(artifact: Path, **placing: Any) -> Any:
        asked.update(placing)
        return load(artifact, **{**placing, "device_map": SPREAD, "offload_folder": str(tmp_path / "disk")})

    with built("transformers", compute=compute).open(saved("llama"), 2) as session:
        whole = [session.probe(PROMPTS), session.answer([Score(PROMPTS[0], OPTIONS)])[0].scores]
        assert "devices" not in session.facts
    monkeypatch.setattr(engine, "load", elsewhere)
    with built("transformers", compute=compute, devices="all").open(saved("llama"), 2) as session:
        assert session.backend._module.model.layers[1].mlp.up_proj.weight.device.type == "meta", "it is not in memory"
        spread = [session.probe(PROMPTS), session.answer([Score(PROMPTS[0], OPTIONS)])[0].scores]
        assert session.facts["devices"] == ["cpu", "disk"]
    assert asked["device_map"] == "auto"
    for ours, theirs in zip(spread[0], whole[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert spread[1] == pytest.approx(whole[1], abs=1e-5)


def test_all_devices_of_a_machine_without_gpus_are_its_memory(saved: Callable[[str], Path]) -> None:
    from leanwatt.agreement import check

    with built("transformers", devices="all").open(saved("llama"), 1) as session:
        assert session.facts["devices"] == ["cpu"]
        assert check("e", session, saved("llama"), {"t": [Score(PROMPTS[0], OPTIONS)]})["logit_error_prefill"] < 1e-5


def test_gpus_have_their_names_in_the_record() -> None:
    from leanwatt.engine.transformers import _placed

    module = SimpleNamespace(device="cuda:1", hf_device_map={"a": 1, "b": 0, "c": "cpu", "d": 1})
    assert _placed(module) == ["cpu", "cuda:0", "cuda:1"]


def test_of_several_conversions_at_once_one_is_kept(tmp_path: Path) -> None:
    """Here the second begins and ends while the first writes; in a killed one's place nothing is left."""
    from leanwatt.engine._stateless import converted

    def convert(draft: Path, words: str, meanwhile: Any = None) -> None:
        (draft / "model").write_text(words)
        if meanwhile:
            meanwhile()
        assert (draft / "model").read_text() == words, "nobody else writes here"

    def other() -> None:
        in_process = "from pathlib import Path; from leanwatt.engine._stateless import converted;"
        call = f"converted(Path({str(tmp_path / 'made')!r}), lambda draft: (draft / 'model').write_text('second'))"
        subprocess.run([sys.executable, "-c", in_process + call], check=True)

    found = converted(tmp_path / "made", lambda draft: convert(draft, "first", other))
    assert (found / "model").read_text() == "second", "the one that was whole first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "phi", "gemma2"])
def test_onnxruntime_finds_the_quantized_layers(family: str, variant: Callable[..., Path]) -> None:
    folder = variant(family, quantized(4, 32))
    with built("transformers").open(folder, 1) as reference, built("onnxruntime").open(folder, 1) as session:
        assert session.facts["coded_layers"] > 0
        for mine, right in zip(session.probe(PROMPTS), reference.probe(PROMPTS), strict=True):
            assert relative_error(mine, right) < 1e-4
