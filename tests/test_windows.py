"""Windows of weighing, on a clock and a sensor that the test sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from leanwatt.ledger import Ledger
from leanwatt.measurement import PREFILL, PREFILL_AND_DECODE, Counter, Provenance, Reading
from leanwatt.question import Answer, Generate, Likelihood, Prompt, Question, Score
from leanwatt.windows import ATTEMPTS, NEW_TOKENS, PROMPT_WORDS, fill, phases


@dataclass
class World:
    """Every call to the session takes a tenth of a second and ten joules; chosen windows lose the sensor."""

    period_seconds: float | None = None
    spoiled: set[int] = field(default_factory=set)
    now: float = 0.0
    flagged: int = 0
    asked: list[Question] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, object]:
        return {}

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        self.now += 0.1
        self.asked += questions
        return [Answer("x", tokens_in=5, tokens_out=2) for _ in questions]

    def read(self) -> Reading:
        flags = {"counter_reset": self.flagged}
        counter = Counter(
            100 * self.now, 100 * self.now, 100 * self.now, Provenance.MEASURED, "rapl", "package", self.now,
            self.period_seconds, flags,
        )  # fmt: skip
        return Reading(self.now, self.now, {"package-0": counter})


def filled(world: World, shortest: float = 1.0) -> Ledger:
    """One weighing; a window is spoiled by a flag that rises while its questions are answered."""
    ledger = Ledger(world.read)
    answer = world.answer

    def spoiling(questions: Sequence[Question]) -> list[Answer]:
        number = len(ledger.measurements)
        if number in world.spoiled and ledger._parts is not None:
            world.flagged += 1
        return answer(questions)

    world.answer = spoiling  # type: ignore[method-assign]
    fill(world, [Likelihood("a"), Likelihood("b")], ledger, "weigh/task", shortest)
    return ledger


def test_a_window_is_as_long_as_asked_and_counts_every_answer() -> None:
    [window] = filled(World()).measurements
    assert 1.0 <= window.seconds < 1.3
    assert window.answers == 2 * round(window.seconds / 0.1)
    assert window.tokens_in == 5 * window.answers
    assert not window.is_spoiled


def test_a_slow_sensor_makes_it_longer() -> None:
    [window] = filled(World(period_seconds=0.1)).measurements
    assert window.seconds >= 5.0
    assert "short" not in window.devices["package-0"].flags


def test_a_spoiled_window_is_kept_and_repeated() -> None:
    first, second = filled(World(spoiled={0})).measurements
    assert (first.stage, second.stage) == ("spoiled/weigh/task", "weigh/task")
    assert first.is_spoiled and not second.is_spoiled


def test_after_the_last_attempt_the_flags_stay_with_the_figure() -> None:
    windows = filled(World(spoiled=set(range(ATTEMPTS)))).measurements
    assert [window.stage for window in windows] == ["spoiled/weigh/task"] * (ATTEMPTS - 1) + ["weigh/task"]
    assert windows[-1].is_spoiled


def test_phases_ask_the_same_prompts_of_one_length() -> None:
    asked: list[Question] = [
        Score(Prompt("Name it.", "short ticket", "Cause:"), ("a", "b")),
        Generate(Prompt("Say it.", "word " * 500, "Note:"), 50),
        Likelihood("no prompt"),
    ]
    found = phases(asked, batch=3)
    assert list(found) == [PREFILL, PREFILL_AND_DECODE]
    first, both = found[PREFILL], found[PREFILL_AND_DECODE]
    assert [q.prompt for q in first] == [q.prompt for q in both]
    assert {len(q.prompt.body.split()) for q in first} == {PROMPT_WORDS}
    assert {(q.limit, q.at_least) for q in first} == {(1, 1)}
    assert {(q.limit, q.at_least) for q in both} == {(1 + NEW_TOKENS, 1 + NEW_TOKENS)}
    assert len(phases(asked, batch=32)[PREFILL]) == 32
    assert phases([Likelihood("no prompt")], 1) == {}
