"""The prompt: from its parts to tokens, the same way for training, for every engine and for serving.

Plain models see `instruction`, the ticket and the lead on lines of their own, then a blank and the answer. Models with
a chat template see the instruction as system text and the ticket with the lead as the user's turn, with thinking off.
One begin-of-text token where the tokenizer has one; every answer ends with the end-of-text token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from leanwatt.question import Prompt

VERSION = 1
"""Raise it when the tokens change: everything made with the older prompt is then made anew."""


@dataclass(frozen=True)
class Encoded:
    """A prompt in tokens."""

    ids: tuple[int, ...]
    truncated: bool
    """The start of the ticket was cut, since the whole did not fit."""


@dataclass(frozen=True)
class Window:
    """A part of a document that fits the context."""

    ids: tuple[int, ...]
    fresh: int
    """How many of the last tokens no earlier window has predicted."""


def windows(ids: Sequence[int], context: int) -> list[Window]:
    """Cut a document so that every token but the first is predicted once, seeing at least half a context if it can."""
    found = [Window(tuple(ids[:context]), min(len(ids), context) - 1)]
    end = context
    while end < len(ids):
        last = min(end + max(1, context // 2), len(ids))
        found.append(Window(tuple(ids[last - context : last]), last - end))
        end = last
    return found


class Encoder:
    """Turns prompts and answers into tokens for one tokenizer and one context length."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        """Most tokens of prompt and answer together."""
        self.end: int = tokenizer.eos_token_id
        self._chat = bool(getattr(tokenizer, "chat_template", None))
        self._has_system = self._chat and _takes_system(tokenizer)
        begin = tokenizer.bos_token_id
        self._begin: tuple[int, ...] = () if begin is None or self._chat else (begin,)

    def prompt(self, prompt: Prompt, room: int) -> Encoded:
        """Tokens of a prompt that leaves `room` tokens for the answer; what is too long loses the ticket's start.

        The latest words of a ticket and the lead always stay. Raises ValueError if not even these fit.
        """
        ids = self._whole(prompt)
        most = self.context - room
        if len(ids) <= most:
            return Encoded(ids, truncated=False)
        body = self._tokens(prompt.body)
        spare = most - len(self._whole(replace(prompt, body="")))
        while spare > 0:
            kept = self.tokenizer.decode(body[-spare:], skip_special_tokens=True)
            ids = self._whole(replace(prompt, body=kept))
            if len(ids) <= most:
                return Encoded(ids, truncated=True)
            spare -= max(1, len(ids) - most)
        raise ValueError(f"The model's context of {self.context} tokens has no room for a prompt and {room} more.")

    def opening(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens that prompts with this instruction begin with, whatever the ticket; none of the ticket is among them.

        Found by asking about two tickets that share nothing. A ticket whose first letters melt into the instruction's
        last token begins otherwise, so who uses this compares. Empty where there is no instruction.
        """
        if prompt.verbatim or not prompt.instruction:
            return ()
        pairs = zip(*(self._whole(replace(prompt, body=body)) for body in ("a", "0")), strict=False)
        return tuple(token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def length(self, prompt: Prompt) -> int:
        """Tokens of the whole prompt, before anything is cut."""
        return len(self._whole(prompt))

    def conversation(self, turns: Sequence[tuple[str, str]]) -> Prompt:
        """Turns (role, text) as one verbatim prompt: through the chat template, or, without one, a line each.

        So a plain model that is sent a task's instruction and `ticket, newline, lead` sees just what it was tuned to.
        Raises ValueError where the template refuses the turns.
        """
        from jinja2 import TemplateError

        if not self._chat:
            return Prompt("", "\n".join(text for _, text in turns), "", verbatim=True)
        asked = [_turn(role, text) for role, text in (turns if self._has_system else _without_system(turns))]
        try:
            text = self.tokenizer.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            raise ValueError(f"The model's chat template refuses these turns: {error}") from error
        return Prompt("", str(text), "", verbatim=True)

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer, end token included."""
        lead = "" if self._chat else " "
        return (*self._tokens(lead + text), self.end)

    def document(self, text: str) -> tuple[int, ...]:
        """Tokens of a text by itself, between begin (the end token where there is no other) and end of text."""
        begin = self.tokenizer.bos_token_id
        return (self.end if begin is None else begin, *self._tokens(text), self.end)

    def text(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without the end token and surrounding blanks."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _whole(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.verbatim or not self._chat:
            return (*self._begin, *self._tokens(prompt.body if prompt.verbatim else plain(prompt)))
        text = self.tokenizer.apply_chat_template(
            self._turns(prompt), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self._tokens(text)

    def _turns(self, prompt: Prompt) -> list[dict[str, str]]:
        if self._has_system and prompt.instruction:
            return [_turn("system", prompt.instruction), _turn("user", _lines(prompt.body, prompt.lead))]
        return [_turn("user", plain(prompt))]

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _without_system(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """System text opens the first turn of the user, as it does in tasks."""
    said = "\n".join(text for role, text in turns if role == "system")
    rest = [turn for turn in turns if turn[0] != "system"]
    if not said or not rest:
        return rest or [("user", said)]
    return [(rest[0][0], f"{said}\n{rest[0][1]}"), *rest[1:]]


def _takes_system(tokenizer: Any) -> bool:
    """Some chat templates (Gemma's) refuse a system turn: the instruction then opens the user's turn."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template([_turn("system", "a"), _turn("user", "b")], tokenize=False)
    except TemplateError:
        return False
    return True


def plain(prompt: Prompt) -> str:
    """The prompt of a model without a chat template."""
    return _lines(prompt.instruction, prompt.body, prompt.lead)


def _lines(*parts: str) -> str:
    """What is empty takes no line: a prompt that another program wrote is then passed on as it is."""
    return "\n".join(part for part in parts if part)
