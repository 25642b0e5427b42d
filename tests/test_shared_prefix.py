"""A long instruction is computed once, and no answer is another for it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import flow_of, study_of

from leanwatt import agreement, catalog
from leanwatt.engine import _asking
from leanwatt.engine._asking import SHARED_FROM, Asking, Sharing
from leanwatt.errors import MissingExtraError
from leanwatt.prompt import Encoder
from leanwatt.question import Answer, Generate, Likelihood, Prompt, Question, Score
from leanwatt.recipe import Choice

ENGINES = ("transformers", "openvino", "onnxruntime")
LONG = "Name the root cause of this fault. Power, link, fibre, router and cell are looked at first, then the site."
OTHER = "Write the note that closes this ticket. Say what was replaced, reset, up or down, and at which site A or B."
BODIES = ("power lost", "link lost at site A then router down in cell B", "mains failure", "fibre cut at site C " * 3)
OPTIONS = ("mains failure", "fibre cut", "router down in cell")


def ticket(body: str, instruction: str = LONG) -> Prompt:
    return Prompt(instruction, body, "Root cause:")


SCORED = [Score(ticket(body), OPTIONS) for body in BODIES]
WRITTEN = [Generate(ticket(body), limit) for body, limit in zip(BODIES, (3, 6, 5, 4), strict=True)]


@contextmanager
def opened(engine: str, artifact: Path, batch: int) -> Iterator[Asking]:
    settings = {} if engine == "onnxruntime" else {"compute": "fp32"}
    try:
        built = catalog.build(Choice("engine", engine, settings))
    except MissingExtraError as error:
        pytest.skip(str(error))
    with built.open(artifact, batch) as session:
        yield session


def alike(shared: list[Answer], plain: list[Answer]) -> None:
    """The same but for who computed the instruction."""
    for mine, right in zip(shared, plain, strict=True):
        assert mine.text == right.text
        assert mine.scores == pytest.approx(right.scores, abs=2e-4)
        assert (mine.tokens_out, mine.truncated) == (right.tokens_out, right.truncated)
        assert mine.tokens_in + mine.tokens_shared == right.tokens_in
        assert right.tokens_shared == 0


def answers(session: Asking, questions: list[Question]) -> list[Answer]:
    shared = session.answer(questions)
    alike(shared, replace(session, shares=False).answer(questions))
    return shared


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mistral"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_answer_is_the_same(engine: str, family: str, batch: int, saved: Callable[[str], Path]) -> None:
    """Llama and Mistral share keys between heads; Gemma and Mistral have windows that slide."""
    with opened(engine, saved(family), batch) as session:
        opening = len(session.encoder.opening(ticket("x")))
        assert opening >= SHARED_FROM, "else nothing is shared here"
        assert isinstance(session.backend, Sharing)
        first = answers(session, [*SCORED, Likelihood("power lost at site A"), *WRITTEN])
        assert sorted(each.tokens_shared for each in first) == [0, 0, *[opening] * 7], "a text, and who was first"
        again = answers(session, [*SCORED])
        assert [each.tokens_shared for each in again] == [opening] * 4, "kept for the session"
        whole = replace(session, shares=False)
        for mine, right in zip(session.probe([*map(ticket, BODIES)]), whole.probe([*map(ticket, BODIES)]), strict=True):
            assert np.abs(mine - right).max() < 1e-4


@pytest.fixture
def llama(saved: Callable[[str], Path]) -> Iterator[Asking]:
    with opened("transformers", saved("llama"), 4) as session:
        yield session


def test_instructions_that_differ_in_one_batch_are_read_whole(llama: Asking) -> None:
    mixed: list[Question] = [Score(ticket(body, text), OPTIONS) for body in BODIES[:2] for text in (LONG, OTHER)]
    assert [each.tokens_shared for each in answers(llama, mixed)] == [0] * 4
    assert not llama._kept
    verbatim = replace(ticket("power lost"), verbatim=True)
    assert [each.tokens_shared for each in answers(llama, [Generate(verbatim, 3), WRITTEN[0]])] == [0, 0]


def test_an_instruction_too_short_to_pay_is_read_each_time(llama: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    short: list[Question] = [Score(ticket(body, "Name the root cause."), OPTIONS) for body in BODIES]
    assert len(llama.encoder.opening(short[0].prompt)) < SHARED_FROM  # type: ignore[union-attr]
    answers(llama, short)
    assert not llama._kept
    monkeypatch.setattr(_asking, "SHARED_FROM", 2)
    assert sum(each.tokens_shared > 0 for each in answers(llama, short)) == 3


def test_prompts_that_were_cut_share_what_is_left_and_those_without_it_nothing(llama: Asking) -> None:
    """The instruction always stays; a first letter that melts into its last token makes another beginning."""
    long: list[Question] = [Generate(ticket("power lost at site B " * 60), 4) for _ in range(2)]
    found = answers(llama, long)
    assert all(each.truncated for each in found)
    assert [each.tokens_shared > 0 for each in found] == [False, True]
    opening = llama.encoder.opening(ticket(""))
    odd = [_asking._chain(opening), _asking._chain((*opening[:-1], 7, 8, 9))]
    for tree in odd:  # Nothing after the instruction, or another one.
        assert llama._opening([ticket("")], [tree]) == ()
    assert llama._opening([ticket("")], [_asking._chain((*opening, 7))]) == opening


def test_a_session_keeps_a_few_instructions_and_drops_the_oldest(
    llama: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_asking, "INSTRUCTIONS_KEPT", 2)
    texts = [f"{LONG} {site}." for site in "ABC"]
    for text in [*texts, texts[2], texts[0]]:
        answers(llama, [Generate(ticket("power lost", text), 2)])
    assert list(llama._kept) == [llama.encoder.opening(ticket("", text)) for text in (texts[2], texts[0])]


def test_no_token_of_a_ticket_is_in_the_opening(llama: Asking) -> None:
    encoder = llama.encoder
    opening = encoder.opening(ticket("power"))
    assert opening == encoder.opening(ticket("0 link"))
    assert encoder._whole(ticket("power"))[: len(opening)] == opening
    assert encoder.text(opening) == LONG
    assert encoder.opening(ticket("power", "")) == ()
    assert encoder.opening(replace(ticket("power"), verbatim=True)) == ()


def test_a_chat_template_opens_with_the_instruction(llama: Asking) -> None:
    tokenizer: Any = llama.encoder.tokenizer
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    chat = Encoder(tokenizer, 256)
    assert chat.text(chat.opening(ticket("power"))) == f"<system>{LONG}<user>"
    with_chat = replace(llama, encoder=chat)
    assert sum(each.tokens_shared > 0 for each in answers(with_chat, [*SCORED])) == 3


def test_a_backend_that_cannot_share_reads_whole(llama: Asking) -> None:
    class Plain:
        prefill, step = llama.backend.prefill, llama.backend.step

    found = replace(llama, backend=Plain()).answer([*SCORED])
    assert [each.tokens_shared for each in found] == [0] * 4
    alike(found, replace(llama, shares=False).answer([*SCORED]))


def test_an_engine_that_goes_wrong_only_after_what_it_kept_is_caught(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference reads every prompt whole, so that sharing is checked like all else."""
    from leanwatt.engine.transformers import _Torch

    artifact = Path(shutil.copytree(saved("llama"), tmp_path / "artifact"))
    after = _Torch.prefill_after
    with opened("transformers", artifact, 3) as session:
        assert agreement.check("e", session, artifact, {"cause": SCORED})["logit_error_prefill"] < 1e-5
        monkeypatch.setattr(_Torch, "prefill_after", lambda *inputs: -after(*inputs))
        with pytest.raises(agreement.DisagreementError, match="prefill 2"):
            agreement.check("e", session, artifact, {"cause": SCORED})


def test_the_record_says_how_many_tokens_were_shared(
    saved: Callable[[str], Path], tickets: Path, tmp_path: Path
) -> None:
    """Of the answers that are graded; those that the check asked before have paid for the instruction."""
    data = study_of(saved("llama"), tickets, steps=[], engine=["transformers"], baselines=["majority"])
    cause, note = data["tasks"]
    cause["root_cause"]["instruction"] = LONG
    found = {}
    for name, tasks in (("long", [cause]), ("short", [note])):
        flow = flow_of(data | {"tasks": tasks}, tmp_path / name)
        for trial in [each for each in flow.space if not each.is_baseline]:
            flow._do("make", [trial])
            flow._do("grade", [trial])
            found[name] = flow._agenda.last("grade", trial)
    long, short = found["long"], found["short"]
    assert long is not None and long.status == "done" and short is not None and short.status == "done"
    with opened("transformers", saved("llama"), 4) as session:
        opening = len(session.encoder.opening(ticket("x")))
    graded = next(each for each in long.measurements if each.stage == "grade/root_cause")
    assert long.facts["prompt_tokens_shared"] == opening * graded.answers
    assert "prompt_tokens_shared" not in short.facts
