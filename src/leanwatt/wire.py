"""The words of the server's API: what requests may hold, and what answers look like, as OpenAI's clients expect them.

Answers are greedy, so settings that would change that are refused, not ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, MaxLen, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict

from leanwatt.batching import Answered
from leanwatt.form import likely
from leanwatt.measurement import Energy
from leanwatt.question import Generate, Question


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Stop = Annotated[Text, MaxLen(64)]
Stops = Stop | Annotated[list[Stop], MaxLen(4)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """What else a stream holds."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Has no effect: nothing is added."""


class Asked(_Strict):
    """What both kinds of completion may ask for."""

    model: Text
    max_tokens: Annotated[int, Ge(1)] | None = None
    stop: Stops = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Literal[0] | None = None
    """Answers are greedy."""
    top_p: Literal[1] | None = None
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    seed: int | None = None
    """Has no effect: the same prompt has the same answer anyway."""
    user: Text | None = None
    """Has no effect."""

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple, without empty ones."""
        listed = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in listed if stop)


class Part(_Strict):
    """A piece of a message; text is all that a language model can read."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: Text | None = None
    """Has no effect."""

    @property
    def turn(self) -> tuple[str, str]:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ("system" if self.role == "developer" else self.role), text


class ChatRequest(Asked):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], MinLen(1), MaxLen(256)]
    max_completion_tokens: Annotated[int, Ge(1)] | None = None

    @property
    def limit(self) -> int | None:
        """Most new tokens, under either name."""
        return self.max_completion_tokens or self.max_tokens


class TextRequest(Asked):
    """`/v1/completions`."""

    prompt: Text

    @property
    def limit(self) -> int | None:
        """Most new tokens."""
        return self.max_tokens


class TicketRequest(_Strict):
    """`/v1/tickets`."""

    ticket: Text
    model: Text | None = None


class RatingRequest(_Strict):
    """`/v1/feedback`: a ticket, what was answered, and what a person says of it."""

    ticket: Text
    said_cause: Text | None = None
    said_response: Text | None = None
    is_right: bool
    cause: Text | None = None
    response: Text | None = None


def energy_data(energy: Energy) -> dict[str, Any]:
    """`joules` is null where unknown, and `why` then says why."""
    found: dict[str, Any] = {"joules": energy.joules, "provenance": str(energy.provenance)}
    if energy.joules is None:
        return found | {"why": "; ".join(energy.flags) or "no sensor, and no estimate"}
    return found | {"lower": energy.lower, "upper": energy.upper, "source": energy.source, "scope": energy.scope}


def ticket_reply(key: str, model: str, asked: dict[str, Question], found: Answered) -> dict[str, Any]:
    """Causes with probabilities, the draft, and what it took."""
    pairs = list(zip(asked.values(), found.answers, strict=True))
    causes = next((likely(question, answer) for question, answer in pairs if answer.scores), ())
    return {
        "id": key,
        "model": model,
        "causes": [{"cause": cause, "probability": share} for cause, share in causes],
        "response": next((answer.text for question, answer in pairs if isinstance(question, Generate)), None),
        "truncated": any(answer.truncated for answer in found.answers),
        "usage": usage(found),
        "seconds": round(found.seconds, 4),
        "energy": energy_data(found.energy),
    }


def usage(found: Answered) -> dict[str, int]:
    """Tokens, the end token included; an instruction counts for every answer, whoever it was computed for."""
    taken = sum(answer.tokens_in + answer.tokens_shared for answer in found.answers)
    written = sum(answer.tokens_out for answer in found.answers)
    return {"prompt_tokens": taken, "completion_tokens": written, "total_tokens": taken + written}


class Shape:
    """One completion in OpenAI's form: whole, or in pieces."""

    def __init__(self, key: str, model: str, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        kind = "chat.completion" if is_chat else "text_completion"
        self._head = {"id": key, "created": int(time.time()), "model": model}
        self._kinds = (kind, "chat.completion.chunk" if is_chat else kind)

    def whole(self, found: Answered, limit: int) -> dict[str, Any]:
        """The finished answer."""
        text = found.answers[0].text or ""
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = {"index": 0, "finish_reason": ended(found, limit), "logprobs": None, **said}
        return {
            **self._head,
            "object": self._kinds[0],
            "choices": [choice],
            "usage": usage(found),
            "energy": energy_data(found.energy),
        }

    def first(self) -> str:
        """The piece that opens a chat; nothing for a text."""
        return self._piece({"role": "assistant", "content": ""}, None) if self._is_chat else ""

    def part(self, text: str) -> str:
        """Some more text."""
        return self._piece({"content": text} if self._is_chat else text, None)

    def last(self, found: Answered, limit: int, *, with_usage: bool) -> str:
        """How it ended and what it took."""
        end = self._piece({} if self._is_chat else "", ended(found, limit), energy=energy_data(found.energy))
        total = {**self._head, "object": self._kinds[1], "choices": [], "usage": usage(found)}
        return end + (event(total) if with_usage else "") + "data: [DONE]\n\n"

    def _piece(self, said: Any, reason: str | None, **more: Any) -> str:
        where = {"delta": said} if self._is_chat else {"text": said}
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, **where}
        return event({**self._head, "object": self._kinds[1], "choices": [choice], **more})


def ended(found: Answered, limit: int) -> str:
    """`length` where the limit was reached, be it with the very last token of a finished answer."""
    return "length" if found.answers[0].tokens_out >= limit else "stop"


def event(data: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def problem(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Steady:
    """What of a text that grows will surely stay: half characters and the beginning of a stop are held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self.sent = ""

    def more(self, text: str) -> str:
        """What can be sent now."""
        sure = text.rstrip("\ufffd")
        held = max((_overlap(sure, stop) for stop in self._stops), default=0)
        sure = sure[: len(sure) - held].rstrip()  # An answer has no blanks at its end.
        return self._up_to(sure) if len(sure) > len(self.sent) and sure.startswith(self.sent) else ""

    def rest(self, text: str) -> str:
        """What the finished text has beyond what was sent. Raises RuntimeError if that was something else."""
        if not text.startswith(self.sent):
            raise RuntimeError("the finished text is not the one that was streamed")
        return self._up_to(text)

    def _up_to(self, text: str) -> str:
        new, self.sent = text[len(self.sent) :], text
        return new


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop begins with."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-size:])), 0)
