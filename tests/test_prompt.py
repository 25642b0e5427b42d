"""From the parts of a prompt to tokens: what stays, what is cut, what ends an answer."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanwatt.prompt import Encoder, plain, windows
from leanwatt.question import Prompt

ASK = Prompt("Name the root cause of this fault.", "alarm at site A then power lost", "Root cause:")
CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</{{ turn.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not enable_thinking %}(no thoughts){% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def chat(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tokenizer_folder)
    found.chat_template = CHAT
    return found


def text(encoder: Encoder, ids: Any) -> str:
    return str(encoder.tokenizer.decode(list(ids)))


def test_a_plain_prompt_is_its_parts_on_lines_after_one_begin_token(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 256)
    encoded = encoder.prompt(ASK, room=20)
    assert not encoded.truncated
    assert text(encoder, encoded.ids) == "<s>" + plain(ASK)
    assert plain(ASK) == f"{ASK.instruction}\n{ASK.body}\n{ASK.lead}"
    assert encoded.ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_without_begin_token_gets_none(tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.bos_token = None
    encoder = Encoder(tokenizer, 256)
    assert text(encoder, encoder.prompt(ASK, 20).ids) == plain(ASK)


def test_an_answer_follows_a_blank_and_ends(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 256)
    assert text(encoder, encoder.answer("mains failure")) == " mains failure</s>"
    assert encoder.answer("x")[-1] == encoder.end == tokenizer.eos_token_id
    assert encoder.text(encoder.answer("mains failure")) == "mains failure"


def test_a_chat_has_turns_no_second_begin_token_and_no_thoughts(chat: Any) -> None:
    encoder = Encoder(chat, 512)
    whole = text(encoder, encoder.prompt(ASK, 20).ids)
    assert whole == (f"<system>{ASK.instruction}</system><user>{ASK.body}\n{ASK.lead}</user><assistant>(no thoughts)")
    assert text(encoder, encoder.answer("mains failure")) == "mains failure</s>"


def test_a_chat_that_refuses_a_system_turn_gets_the_instruction_from_the_user(chat: Any) -> None:
    chat.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
    encoder = Encoder(chat, 512)
    whole = text(encoder, encoder.prompt(ASK, 20).ids)
    assert whole == f"<user>{plain(ASK)}</user><assistant>(no thoughts)"


@pytest.mark.parametrize("kind", ["tokenizer", "chat"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.text(max_size=400), room=st.integers(1, 60))
def test_whatever_the_ticket_there_is_room_for_the_answer(
    kind: str, body: str, room: int, request: pytest.FixtureRequest
) -> None:
    encoder = Encoder(request.getfixturevalue(kind), 240)
    encoded = encoder.prompt(Prompt(ASK.instruction, body, ASK.lead), room)
    whole = Encoder(encoder.tokenizer, 10_000).prompt(Prompt(ASK.instruction, body, ASK.lead), room)
    assert len(encoded.ids) <= 240 - room
    assert encoded.truncated == (len(whole.ids) > 240 - room)
    if not encoded.truncated:
        assert encoded == whole
    assert ASK.instruction in text(encoder, encoded.ids)
    assert ASK.lead in text(encoder, encoded.ids)


def test_what_is_too_long_loses_its_start_and_no_more_than_needed(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 120)
    body = " ".join(f"alarm {i}" for i in range(200))
    encoded = encoder.prompt(Prompt(ASK.instruction, body, ASK.lead), room=10)
    kept = text(encoder, encoded.ids).split("\n")[1]
    assert encoded.truncated
    assert body.endswith(kept)
    assert kept.endswith("alarm 199")
    assert 120 - 10 - 3 <= len(encoded.ids) <= 120 - 10


def test_a_context_with_no_room_says_so(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="context of 20 tokens has no room for a prompt and 10 more"):
        Encoder(tokenizer, 20).prompt(ASK, room=10)


def test_training_and_asking_see_the_same_tokens(tokenizer: Any) -> None:
    """Prompt and answer apart are prompt and answer together: what was learned is what is asked."""
    encoder = Encoder(tokenizer, 256)
    together = tokenizer("<s>" + plain(ASK) + " mains failure</s>", add_special_tokens=False)["input_ids"]
    assert [*encoder.prompt(ASK, 20).ids, *encoder.answer("mains failure")] == together


def test_what_is_empty_takes_no_line(chat: Any, tokenizer: Any) -> None:
    """A prompt that another program wrote is passed on as it is."""
    given = Prompt("", "Question: a\nAnswer:", "")
    assert plain(given) == given.body
    assert text(Encoder(tokenizer, 256), Encoder(tokenizer, 256).prompt(given, 8).ids) == "<s>" + given.body
    whole = text(Encoder(chat, 256), Encoder(chat, 256).prompt(given, 8).ids)
    assert whole == f"<user>{given.body}</user><assistant>(no thoughts)"


def test_a_document_begins_and_ends(tokenizer_folder: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    assert text(Encoder(tokenizer, 256), Encoder(tokenizer, 256).document("power")) == "<s>power</s>"
    without = AutoTokenizer.from_pretrained(tokenizer_folder)
    without.bos_token = None
    assert text(Encoder(without, 256), Encoder(without, 256).document("power")) == "</s>power</s>"


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(2, 40))
def test_windows_predict_every_token_once_with_half_a_context_before(count: int, context: int) -> None:
    found = windows(range(count), context)
    assert [token for window in found for token in window.ids[-window.fresh :]] == list(range(1, count))
    assert all(len(window.ids) <= context for window in found)
    for window in found[1:]:
        assert window.ids == tuple(range(window.ids[0], window.ids[0] + context))
        assert context - window.fresh >= context - max(1, context // 2)


TURNS = [("system", "Be short."), ("user", "site A"), ("assistant", "power"), ("user", "and B?")]


def test_a_conversation_goes_through_the_template_as_it_is(chat: Any) -> None:
    encoder = Encoder(chat, 256)
    prompt = encoder.conversation(TURNS)
    assert prompt.verbatim
    written = "<system>Be short.</system><user>site A</user><assistant>power</assistant><user>and B?</user>"
    assert prompt.body == written + "<assistant>(no thoughts)"
    assert text(encoder, encoder.prompt(prompt, 8).ids) == prompt.body, "no second begin token, no second template"


def test_system_text_opens_the_users_turn_where_a_template_takes_none(chat: Any) -> None:
    chat.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT
    encoder = Encoder(chat, 256)
    assert encoder.conversation(TURNS).body.startswith("<user>Be short.\nsite A</user><assistant>power")
    assert encoder.conversation(TURNS[:1]).body.startswith("<user>Be short.</user>")
    assert encoder.conversation(TURNS[1:2]).body.startswith("<user>site A</user>")


def test_turns_that_a_template_refuses_are_a_mistake(chat: Any) -> None:
    chat.chat_template = "{% if messages | length > 2 %}{{ raise_exception('too many turns') }}{% endif %}" + CHAT
    with pytest.raises(ValueError, match="refuses these turns: too many turns"):
        Encoder(chat, 256).conversation(TURNS)


def test_without_a_template_turns_are_lines_and_the_start_is_cut(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 40)
    prompt = encoder.conversation(TURNS)
    assert prompt.body == "Be short.\nsite A\npower\nand B?"
    long = encoder.prompt(encoder.conversation([("user", "alarm " * 50), ("user", "and B?")]), 8)
    assert long.truncated
    assert text(encoder, long.ids).startswith("<s>")
    assert text(encoder, long.ids).endswith("and B?")
    assert len(long.ids) <= 32
