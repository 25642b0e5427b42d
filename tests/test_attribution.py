"""The energy of one answer: shares of a window add up to it, and before there is a window there is no figure."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanwatt.attribution import Rolling, rolling
from leanwatt.measurement import Counter, Provenance, Reading
from leanwatt.question import Answer

WATTS = 100.0


class Meter:
    """100 W by a clock that goes only when told."""

    def __init__(self, period: float | None = 0.1, provenance: Provenance = Provenance.MEASURED) -> None:
        self.now = 1000.0
        self.period = period
        self.provenance = provenance
        self.stuck = False

    def __call__(self) -> Reading:
        joules = 0.0 if self.stuck else WATTS * self.now
        counter = Counter(
            joules, 0.95 * joules, 1.05 * joules, self.provenance, "fake", "package", self.now, self.period
        )
        return Reading(self.now, self.now, {"package-0": counter})


def test_before_the_sensors_have_seen_enough_the_figure_is_absent_and_says_why() -> None:
    meter = Meter()
    window = Rolling(meter)
    meter.now += 4.9
    window.add(Answer(tokens_in=10), seconds=1.0)
    early = window.share(Answer(tokens_in=10))
    assert early.joules is None
    assert early.provenance is Provenance.ABSENT
    assert early.flags == ("no window yet: the sensors need 5 s",)
    meter.now += 0.1
    window.add(Answer(tokens_in=30))
    late = window.share(Answer(tokens_in=30))
    assert late.joules == pytest.approx(0.75 * 5 * WATTS)
    assert late.provenance is Provenance.ATTRIBUTED
    assert late.lower is not None and late.upper is not None
    assert late.lower < late.joules < late.upper


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.001, 3.0), st.integers(0, 500), st.integers(0, 500)),
        min_size=1,
        max_size=60,
    )
)
def test_the_shares_of_all_answers_in_a_window_sum_to_the_window(steps: list[tuple[float, int, int]]) -> None:
    meter = Meter()
    window = Rolling(meter)
    ended: list[tuple[float, Answer]] = []
    for seconds, tokens_in, tokens_out in steps:
        meter.now += seconds
        ended.append((meter.now, Answer(tokens_in=tokens_in, tokens_out=tokens_out)))
        window.add(ended[-1][1], seconds=seconds)
    spent = window.window()
    if spent is None:
        assert meter.now - 1000 < 5
        return
    assert spent.seconds >= 5
    inside = [answer for at, answer in ended if at > meter.now - spent.seconds + 1e-9]
    assert spent.answers == len(inside)
    if not spent.tokens_in + spent.tokens_out:
        assert window.share(*inside).flags == ("no tokens to share by",)
        return
    shares = [window.share(answer) for answer in inside]
    for part in ("joules", "lower", "upper"):
        assert sum(getattr(each, part) for each in shares) == pytest.approx(getattr(spent.total, part))
    assert window.share(*inside).joules == pytest.approx(WATTS * spent.seconds)


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 1.0))
def test_readings_do_not_pile_up_and_the_window_stays_near_what_is_needed(answers: int, apart: float) -> None:
    meter = Meter()
    window = Rolling(meter)
    for _ in range(answers):
        meter.now += apart
        window.add(Answer(tokens_out=1))
    assert len(window._marks) <= 500
    spent = window.window()
    assert (spent is None) == (meter.now - 1000 < 5)
    if spent is not None:
        assert 5 <= spent.seconds <= 5 + max(0.5, 2 * apart)


def test_old_readings_are_dropped() -> None:
    meter = Meter()
    window = Rolling(meter)
    for _ in range(5000):
        meter.now += 0.3
        window.look()
    assert len(window._marks) <= 402


def test_the_window_is_as_long_as_the_slowest_answer_in_it() -> None:
    """An answer of 20 s is charged for 20 s, not for the 5 s that the sensor needs."""
    meter = Meter()
    window = Rolling(meter)
    for _ in range(40):
        meter.now += 0.5
        window.look()
    slow = Answer(tokens_out=100)
    window.add(slow, seconds=20.0)
    assert window.share(slow).joules == pytest.approx(20 * WATTS)


def test_after_waiting_idle_the_wait_is_not_charged() -> None:
    meter = Meter()
    window = Rolling(meter)
    meter.now += 3600
    window.look()
    meter.now += 5
    window.add(Answer(tokens_out=1), seconds=5.0)
    assert window.share(Answer(tokens_out=1)).joules == pytest.approx(5 * WATTS)


def test_an_answer_that_is_not_in_the_window_has_no_share() -> None:
    meter = Meter()
    window = Rolling(meter)
    window.add(Answer(tokens_out=100))
    meter.now += 6
    window.add(Answer(tokens_out=1))
    gone = window.share(Answer(tokens_out=100))
    assert gone.joules is None
    assert "not in the window" in gone.flags[-1]


def test_an_estimate_needs_no_longer_window_and_stays_an_estimate() -> None:
    meter = Meter(period=None, provenance=Provenance.ESTIMATED)
    window = Rolling(meter)
    assert window.share(Answer(tokens_out=1)).joules is None
    meter.now += 0.125
    window.add(Answer(tokens_out=1), seconds=0.125)
    share = window.share(Answer(tokens_out=1))
    assert share.joules == pytest.approx(0.125 * WATTS)
    assert share.provenance is Provenance.ESTIMATED


def test_a_counter_that_stands_still_gives_no_share() -> None:
    meter = Meter()
    meter.stuck = True
    window = Rolling(meter)
    meter.now += 6
    window.add(Answer(tokens_out=1))
    share = window.share(Answer(tokens_out=1))
    assert share.joules is None
    assert share.flags == ("without package-0",)


def test_a_server_that_stands_idle_moves_its_window_on() -> None:
    meter = Meter(period=None)
    lock = threading.Lock()

    def read() -> Reading:
        with lock:
            meter.now += 0.3
            return meter()

    with rolling(read, every_seconds=0.001) as window:
        time.sleep(0.05)
    assert len(window._marks) > 2


def test_answers_of_many_threads_are_all_counted() -> None:
    meter = Meter()
    window = Rolling(meter)

    def answer() -> None:
        for _ in range(200):
            window.add(Answer(tokens_in=1, tokens_out=2))

    threads = [threading.Thread(target=answer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = window._marks[-1]
    assert (last.answers, last.tokens_in, last.tokens_out) == (1600, 1600, 3200)


class Clerk:
    """A session that takes its time."""

    def __init__(self, meter: Meter, seconds: float) -> None:
        self.meter, self.seconds, self.asked = meter, seconds, 0

    def answer(self, questions: list[object]) -> list[Answer]:
        self.asked += 1
        self.meter.now += self.seconds
        return [Answer(tokens_out=2) for _ in questions]


@pytest.mark.parametrize(
    ("period", "seconds", "asked", "joules"),
    [
        (None, 1.0, 1, 100.0),  # An estimate sees any length.
        (0.001, 1.0, 1, 100.0),
        (0.1, 1.0, 5, 100.0),  # A GPU needs 5 s.
        (0.1, 0.0625, 80, 6.25),
        (0.1, 7.0, 1, 700.0),
        (1.0, 2.0, 1, None),  # A plug needs 50 s: longer than one waits, and so no second try.
    ],
)
def test_one_answer_is_repeated_until_the_sensors_have_seen_enough(
    period: float | None, seconds: float, asked: int, joules: float | None
) -> None:
    from leanwatt.answering import _repeated
    from leanwatt.ledger import Ledger

    meter = Meter(period)
    clerk, window = Clerk(meter, seconds), Rolling(meter)
    answers = _repeated(clerk, [None], Ledger(meter), window)  # type: ignore[arg-type, list-item]
    assert clerk.asked == asked
    assert window.share(*answers).joules == (None if joules is None else pytest.approx(joules, rel=0.05))


def test_the_parts_of_a_batch_are_shared_out_of_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    window = Rolling(meter)
    parts = [[Answer(tokens_in=10)], [Answer(tokens_in=20), Answer(tokens_out=10)], []]
    assert [each.joules for each in window.shares(*parts)] == [None] * 3
    meter.now += 5
    window.add(*(answer for part in parts for answer in part), seconds=5.0)
    looked, look = [], Rolling.window
    monkeypatch.setattr(Rolling, "window", lambda self: looked.append(self) or look(self))
    assert [each.joules for each in window.shares(*parts)] == pytest.approx([125.0, 375.0, 0.0])
    assert len(looked) == 1, "finding the window takes long when it has many readings"
