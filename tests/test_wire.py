"""Streams of text: the pieces are the whole, and nothing is sent that would have to be taken back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanwatt.wire import Asked, Message, Steady


def cut(text: str, stops: list[str]) -> str:
    """As engines end an answer: tokens become text without blanks around it, which then ends before a stop."""
    bare = text.strip()
    ends = [bare.index(stop) for stop in stops if stop in bare]
    return bare[: min(ends)].strip() if ends else bare


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("ab \n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_the_pieces_make_the_whole(text: str, stops: list[str]) -> None:
    over = [size for size in range(len(text) + 1) if any(stop in text[:size].strip() for stop in stops)]
    final = cut(text[: over[0]] if over else text, stops)
    steady, sent = Steady(stops), ""
    for size in range((over[0] if over else len(text)) + 1):
        sent += steady.more(cut(text[:size], stops))
        assert final.startswith(sent), "nothing has to be taken back"
    assert sent + steady.rest(final) == final


def test_half_a_character_waits_for_its_other_half() -> None:
    steady = Steady(())
    assert [steady.more("na\ufffd"), steady.more("naï"), steady.more("naïve")] == ["na", "ï", "ve"]


def test_a_text_that_turned_into_another_is_an_error() -> None:
    steady = Steady(())
    steady.more("one")
    assert steady.more("two") == ""
    with pytest.raises(RuntimeError, match="not the one"):
        steady.rest("two")


def test_stops_and_parts_are_read_in_all_their_forms() -> None:
    assert Asked(model="m", stop="x").stops == ("x",)
    assert Asked(model="m", stop=["x", ""]).stops == ("x",)
    assert Asked(model="m").stops == ()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message.model_validate({"role": "developer", "content": parts}).turn == ("system", "ab")
