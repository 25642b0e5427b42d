"""Fewer tokens: training texts are encoded as before, every other text still round-trips, embeddings follow."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.model import Model, load
from leanwatt.prune._tokens import Vocabulary
from leanwatt.question import Example, Generate, Prompt
from leanwatt.recipe import Choice

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.lists(
    st.sampled_from(
        ["alarm", " site", "\u5b57", "\U0001f600", "\n", "  ", "<0x41>", "power lost", "\u2581", "e\u0301", "\xe9"]
    )
).map("".join)
USED = ["alarm first at site A", "power lost", "replaced \xe9 reset", " \u5b57"]
CORPUS = [
    *USED,
    "mains failure fibre cut",
    "\u5b57\u5b58 \xe9t\xe9 router cell down",
    "The quick brown fox \U0001f600",
] * 3


def cut(**settings_: Any) -> Any:
    return catalog.build(Choice("prune", "vocabulary", settings_))


def wrapped(inner: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level() -> Any:
    from leanwatt.starter import tokenizer_of

    return tokenizer_of(CORPUS, 400)


def marked(processor: str) -> Any:
    """As Llama 3 has it (whole words first, a token before every text), or as RoBERTa (one on each side)."""
    from tokenizers import Tokenizer, processors

    inner = byte_level().backend_tokenizer
    begin, end = inner.token_to_id("<s>"), inner.token_to_id("</s>")
    before = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    plain = processors.ByteLevel(trim_offsets=False)
    either = {
        "llama 3": processors.Sequence([plain, before]),
        "roberta": processors.RobertaProcessing(("</s>", end), ("<s>", begin), trim_offsets=False),
    }
    inner.post_processor = either[processor]
    whole = json.loads(inner.to_str())
    whole["model"]["ignore_merges"] = processor == "llama 3"
    whole["added_tokens"].append({**whole["added_tokens"][-1], "id": len(whole["model"]["vocab"]), "content": "<call>"})
    marked = wrapped(Tokenizer.from_str(json.dumps(whole)))
    marked.add_special_tokens({"unk_token": "<pad>"})
    return marked


def sentencepiece(kind: str, *, with_bytes: bool) -> Any:
    """As Llama 2 (BPE) and T5 (Unigram) have it: blanks as low lines, unknown characters as bytes or as unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    special = ["<unk>", "<s>", "</s>", *([f"<0x{i:02X}>" for i in range(256)] if with_bytes else [])]
    maker = {"BPE": trainers.BpeTrainer, "Unigram": trainers.UnigramTrainer}[kind]
    more = {"unk_token": "<unk>"} if kind == "Unigram" else {}
    blanks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    first = Tokenizer(models.BPE(unk_token="<unk>") if kind == "BPE" else models.Unigram())
    first.normalizer = normalizers.Sequence(blanks)
    first.train_from_iterator(CORPUS, maker(vocab_size=400, special_tokens=special, show_progress=False, **more))
    whole = json.loads(first.to_str())
    whole["model"]["byte_fallback"] = with_bytes
    whole["added_tokens"] = whole["added_tokens"][:3]
    inner = Tokenizer.from_str(json.dumps(whole))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    return wrapped(inner)


KINDS = {
    "byte level": byte_level,
    "llama 3": lambda: marked("llama 3"),
    "roberta": lambda: marked("roberta"),
    "bpe with bytes": lambda: sentencepiece("BPE", with_bytes=True),
    "bpe of characters": lambda: sentencepiece("BPE", with_bytes=False),
    "unigram with bytes": lambda: sentencepiece("Unigram", with_bytes=True),
    "unigram of characters": lambda: sentencepiece("Unigram", with_bytes=False),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, list[int]]:
    """A tokenizer, what is left of it, and the old numbers of what is left."""
    whole = KINDS[request.param]()
    tokens = Vocabulary(whole)
    kept = sorted(tokens.needed(number for text in USED for number in whole(text)["input_ids"]))
    assert len(kept) < len(whole)
    return whole, tokens.keep(whole, kept), kept


@given(text=TEXTS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_as_from_the_whole_tokenizer(pair: tuple[Any, Any, list[int]], text: str) -> None:
    whole, left, kept = pair
    expected = whole.decode(whole(text)["input_ids"])
    ids = left(text)["input_ids"]
    assert left.decode(ids) == expected
    assert max(ids, default=0) < len(kept)


def test_texts_in_use_are_encoded_as_before(pair: tuple[Any, Any, list[int]]) -> None:
    whole, left, kept = pair
    for text in USED:
        assert [kept[number] for number in left(text)["input_ids"]] == whole(text)["input_ids"]
    assert [left.convert_ids_to_tokens(new) for new in range(len(kept))] == whole.convert_ids_to_tokens(kept)
    for name in ("bos_token", "eos_token", "unk_token"):
        assert getattr(left, name) == getattr(whole, name)
        assert kept[getattr(left, f"{name}_id") or 0] == (getattr(whole, f"{name}_id") or 0)


@given(words=st.lists(st.sampled_from(USED + CORPUS), min_size=1, max_size=3).map(" ".join))
@settings(deadline=None, max_examples=30)
def test_any_text_may_be_the_one_in_use(words: str) -> None:
    whole = byte_level()
    tokens = Vocabulary(whole)
    kept = sorted(tokens.needed(whole(words)["input_ids"]))
    left = tokens.keep(whole, kept)
    assert [kept[number] for number in left(words)["input_ids"]] == whole(words)["input_ids"]


def test_a_round_trip_is_lossless_at_the_byte_level(saved: Callable[[str], Path], context: Any) -> None:
    model = cut(multiple=1).apply(load(saved("llama")), context)
    for text in ("\u5b57 \U0001f600 \x00\n", "power lost", "qzx"):
        assert model.tokenizer.decode(model.tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "phi"])
def test_embeddings_follow_their_tokens(family: str, saved: Callable[[str], Path], context: Any) -> None:
    import torch

    whole, model = load(saved(family)), cut(multiple=1).apply(load(saved(family)), context)
    vocabulary, before = model.tokenizer.get_vocab(), whole.tokenizer.get_vocab()
    size = len(vocabulary)
    assert 256 < size < 300 == len(before)
    assert model.history == [f"prune vocabulary 300 -> {size}"]
    assert model.module.config.vocab_size == size
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(whole.module, get)().weight, getattr(model.module, get)().weight
        assert new.shape[0] == size
        for token, number in vocabulary.items():
            assert new[number].equal(old[before[token]])
    ids = [before[token] for token in ("<s>", "a", "l")]
    new_ids = [vocabulary[token] for token in ("<s>", "a", "l")]
    with torch.inference_mode():
        expected = whole.module(torch.tensor([ids])).logits[..., [before[token] for token in vocabulary]]
        got = model.module(torch.tensor([new_ids])).logits[..., list(vocabulary.values())]
    assert torch.allclose(got, expected, atol=1e-5)


def test_numbers_of_special_tokens_follow_everywhere(
    saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    base = load(saved("llama"))
    end = base.tokenizer.get_vocab()["~"]
    for name in ("config", "generation_config"):
        assert getattr(base.module, name).eos_token_id == 1
    base.module.config.eos_token_id = [1, end]
    base.module.generation_config.eos_token_id = [1, end]
    model = cut(multiple=1).apply(base, context)
    model.save(tmp_path / "variant")
    new_end = model.tokenizer.get_vocab()["~"]
    config, generation = (each.from_pretrained(tmp_path / "variant") for each in (AutoConfig, GenerationConfig))
    assert config.eos_token_id == generation.eos_token_id == [1, new_end]
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "variant"))
    assert (config.bos_token_id, config.pad_token_id) == (0, 2)


def test_more_stay_where_asked_and_sizes_are_multiples(saved: Callable[[str], Path], context: Any) -> None:
    few = replace(context, train=context.train[:1])
    least = len(cut(multiple=1).apply(load(saved("llama")), few).tokenizer)
    assert len(cut(multiple=1, extra=5).apply(load(saved("llama")), few).tokenizer) == least + 5
    model = cut(multiple=8).apply(load(saved("llama")), few)
    assert len(model.tokenizer) == model.module.config.vocab_size == -(-least // 8) * 8


def test_the_chat_template_stays_and_its_words_too(saved: Callable[[str], Path], context: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    base = load(saved("llama"))
    base.tokenizer.chat_template = template
    assert cut(multiple=1).apply(base, context).tokenizer.chat_template == template


def test_what_leaves_nothing_to_remove_is_refused(saved: Callable[[str], Path], context: Any) -> None:
    with pytest.raises(RefusedError, match="all 300 tokens are needed, in multiples of 512"):
        cut(multiple=512).apply(load(saved("llama")), context)


def test_tokenizers_that_cannot_be_cut_soundly_are_refused(saved: Callable[[str], Path], context: Any) -> None:
    from tokenizers import Tokenizer, models

    model = load(saved("llama"))
    for inner, words in (
        (models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"), "got a WordLevel tokenizer"),
        (models.BPE({"a": 0, "</s>": 1}, [], end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (models.BPE({"a": 0, "</s>": 1}, [], dropout=0.1), "dropout"),
    ):
        with pytest.raises(RefusedError, match=words):
            cut().apply(Model(model.module, wrapped(Tokenizer(inner))), context)
    with pytest.raises(RefusedError, match="fast tokenizer"):
        Vocabulary(object())


def test_a_token_without_an_embedding_goes_or_is_refused(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    model.tokenizer.add_tokens(["<new>"])
    cut(multiple=1).apply(model, context)
    assert "<new>" not in model.tokenizer.get_vocab()
    model.tokenizer.add_tokens(["alarm"])
    with pytest.raises(RefusedError, match=r"token \d+ is in use and has no embedding"):
        cut().apply(model, context)


def test_what_was_drawn_for_training_decides_and_nothing_else(saved: Callable[[str], Path], context: Any) -> None:
    """Validation texts fall into smaller tokens, as those of the test split and tomorrow's do."""
    other = Example("v", "v", "validation", Generate(Prompt("fibre", "router", "down"), limit=9), "cell")
    model = cut(multiple=1).apply(load(saved("llama")), replace(context, validation=[other]))
    plain = cut(multiple=1).apply(load(saved("llama")), context)
    assert model.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
