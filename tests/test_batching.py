"""The queue and its one thread: everybody gets their own answer, nobody waits for ever, nothing accepted is lost."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from offered import Echo, Even

from leanwatt.batching import Answered, Batcher, BusyError, Rules
from leanwatt.question import Answer, Generate, Prompt, Question


def question(text: str) -> Generate:
    return Generate(Prompt("", text, "", verbatim=True), 8)


def text_of(future: Future[Answered]) -> str:
    return str(future.result(10).answers[0].text)


def test_everybody_gets_their_own_answers_under_load() -> None:
    session = Echo(seconds=0.002)
    batcher = Batcher(session, Even(), Rules(8, 0.005, queue=1000))

    def client(name: int) -> list[bool]:
        found = []
        for turn in range(10):
            asked = [question(f"{name}/{turn}/{part}") for part in range(1 + name % 3)]
            got = batcher.submit(asked).result(30)
            found.append([answer.text for answer in got.answers] == [each.prompt.body for each in asked])
        return found

    with ThreadPoolExecutor(32) as clients:
        right = [each for found in clients.map(client, range(32)) for each in found]
    batcher.close()
    assert right == [True] * 320
    assert batcher.accepted == batcher.answered == 320
    assert max(session.sizes) > 8, "requests of several questions were put together"
    assert len(session.sizes) < 320


def test_the_first_waits_for_others_but_not_long() -> None:
    session = Echo()
    batcher = Batcher(session, Even(), Rules(4, wait_seconds=0.3))
    begun = time.monotonic()
    pair = [batcher.submit([question("a")]), batcher.submit([question("b")])]
    assert [text_of(each) for each in pair] == ["a", "b"]
    assert time.monotonic() - begun >= 0.3
    assert session.sizes == [2]
    begun = time.monotonic()
    full = [batcher.submit([question(str(i))]) for i in range(4)]
    assert [text_of(each) for each in full] == list("0123")
    assert time.monotonic() - begun < 0.3, "a full batch waits for nobody"
    batcher.close()


class Held(Echo):
    """Answers when it is let go."""

    gate = threading.Event()

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        self.gate.wait(10)
        return super().answer(questions)


@pytest.fixture
def held() -> Held:
    session = Held()
    session.gate = threading.Event()
    return session


def test_a_full_queue_sends_away_and_says_when_to_come_back(held: Held) -> None:
    batcher = Batcher(held, Even(), Rules(1, 0.0, queue=2))
    first = batcher.submit([question("first")])
    while batcher.waiting:
        time.sleep(0.001)
    others = [batcher.submit([question("x")]) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting") as busy:
        batcher.submit([question("too many")])
    assert 1 <= busy.value.retry_seconds <= 60
    held.gate.set()
    assert [text_of(each) for each in (first, *others)] == ["first", "x", "x"]
    batcher.close()
    assert batcher.accepted == 3


def test_closing_answers_what_was_accepted_and_takes_no_more(held: Held) -> None:
    batcher = Batcher(held, Even(), Rules(1, 0.0))
    accepted = [batcher.submit([question(str(i))]) for i in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closing:
        time.sleep(0.001)
    with pytest.raises(BusyError, match="stopping"):
        batcher.submit([question("late")])
    held.gate.set()
    closing.join(10)
    assert [text_of(each) for each in accepted] == list("01234")
    assert not batcher.is_alive


def test_the_oldest_is_answered_with_those_most_like_it(held: Held) -> None:
    batcher = Batcher(held, Even(), Rules(2, 0.0))
    first = batcher.submit([question("x")])
    while batcher.waiting:
        time.sleep(0.001)
    ended: list[int] = []
    sizes = [90, 10, 50, 11, 88, 49]
    for size in sizes:
        batcher.submit([question("y" * size)]).add_done_callback(lambda done, size=size: ended.append(size))
    held.gate.set()
    assert text_of(first) == "x"
    batcher.close()
    assert ended == [90, 88, 10, 11, 50, 49]


def test_who_leaves_while_waiting_is_not_asked_for(held: Held) -> None:
    batcher = Batcher(held, Even(), Rules(1, 0.0))
    first = batcher.submit([question("first")])
    while batcher.waiting:
        time.sleep(0.001)
    gone, last = batcher.submit([question("gone")]), batcher.submit([question("last")])
    assert gone.cancel()
    held.gate.set()
    assert text_of(first) + text_of(last) == "firstlast"
    with pytest.raises(CancelledError):
        gone.result(0)
    batcher.close()
    assert len(held.sizes) == 2


def test_one_bad_request_harms_no_other() -> None:
    batcher = Batcher(Echo(), Even(), Rules(3, wait_seconds=5))
    good, bad, fine = (batcher.submit([question(text)]) for text in ("good", "poison", "fine"))
    assert text_of(good) + text_of(fine) == "goodfine"
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert text_of(batcher.submit([question("a")])) == "a", "the thread goes on" if batcher.is_alive else "it died"
    batcher.close()


def test_who_wants_to_hears_what_is_written_and_only_their_own() -> None:
    batcher = Batcher(Echo(), Even(), Rules(2, wait_seconds=5))
    heard: list[str] = []
    plain = batcher.submit([question("quiet")])
    told = batcher.submit([question("loud")], {0: heard.append})
    assert text_of(plain) + text_of(told) == "quietloud"
    assert heard == ["l", "lo", "lou", "loud"]
    batcher.close()


class Mute:
    """A session that cannot stream."""

    facts: dict[str, str] = {}  # noqa: RUF012

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        return [Answer("done") for _ in questions]


def test_a_session_that_cannot_stream_is_heard_at_the_end() -> None:
    batcher = Batcher(Mute(), Even(), Rules(1))
    heard: list[str] = []
    assert text_of(batcher.submit([question("x")], {0: heard.append})) == "done"
    assert heard == []
    batcher.close()


class Short(Echo):
    """Gives one answer too many."""

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        return [*super().answer(questions), Answer("surplus")]


def test_answers_that_do_not_fit_the_questions_are_an_error() -> None:
    batcher = Batcher(Short(), Even(), Rules(1))
    with pytest.raises(RuntimeError, match="more answers"):
        batcher.submit([question("x")]).result(10)
    batcher.close()


def begun(batcher: Batcher) -> Future[Answered]:
    """A request that the engine works on."""
    first = batcher.submit([question("first")])
    while batcher.waiting:
        time.sleep(0.001)
    return first


def test_who_leaves_makes_room_for_others(held: Held) -> None:
    batcher = Batcher(held, Even(), Rules(1, 0.0, queue=2))
    first = begun(batcher)
    gone = [batcher.submit([question("gone")]) for _ in range(2)]
    with pytest.raises(BusyError):
        batcher.submit([question("too many")])
    assert all(each.cancel() for each in gone)
    assert batcher.waiting == 0, "nobody waits any more"
    others = [batcher.submit([question(text)]) for text in ("a", "b")]
    held.gate.set()
    assert [text_of(each) for each in (first, *others)] == ["first", "a", "b"]
    batcher.close()


def test_the_engine_goes_on_when_all_leave_while_it_gathers() -> None:
    batcher = Batcher(Echo(), Even(), Rules(4, wait_seconds=0.05))
    assert batcher.submit([question("gone")]).cancel()
    time.sleep(0.1)
    assert text_of(batcher.submit([question("next")])) == "next"
    batcher.close()


def test_what_became_of_every_request_is_counted_apart(held: Held) -> None:
    batcher = Batcher(held, Even(), Rules(1, 0.0))
    first = begun(batcher)
    gone = [batcher.submit([question("gone")]) for _ in range(3)]
    bad = [batcher.submit([question("poison")]) for _ in range(2)]
    good = batcher.submit([question("good")])
    for each in gone:
        each.cancel()
    assert not first.cancel(), "the engine has begun"
    held.gate.set()
    batcher.close()
    assert text_of(first) + text_of(good) == "firstgood"
    assert [type(each.exception(0)) for each in bad] == [ZeroDivisionError] * 2
    assert (batcher.answered, batcher.withdrawn, batcher.failed) == (2, 3, 2)
    assert batcher.accepted == batcher.answered + batcher.withdrawn + batcher.failed
    assert batcher.account() == "Accepted 7 requests, and answered 2; 3 withdrawn; 2 failed."


def test_what_did_not_happen_is_not_spoken_of() -> None:
    batcher = Batcher(Echo(), Even(), Rules(1, 0.0))
    assert text_of(batcher.submit([question("x")])) == "x"
    batcher.close()
    assert batcher.account() == "Accepted 1 requests, and answered 1."
