"""The budget: everything counts, the next trial must fit, and what weighing and confirming take is held back."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from leanwatt.account import WALL, account, charged_joules, sharing
from leanwatt.budget import Budget, Forecast, tunings
from leanwatt.errors import StudyError
from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.plan import SECONDS_PER_START, Needs
from leanwatt.question import Example, Prompt, Score
from leanwatt.recipe import Fidelity, Trial
from leanwatt.record import Record
from leanwatt.study import Study

CONFIG = SimpleNamespace(hidden_size=10, num_hidden_layers=2, vocab_size=100, intermediate_size=20)


def a_study(**changes: Any) -> Study:
    return Study.parse(
        {
            "name": "a",
            "steps": [
                {"finetune": [{"full": {"epochs": 2}}]},
                {"quantize": ["none", {"round_to_nearest": {"bits": 8}}]},
            ],
            "engine": ["transformers", "openvino"],
            "tasks": [{"root_cause": {"data": "t.csv"}}],
            "baselines": ["majority"],
            "protocol": {"quick": {"rounds": 2, "window_seconds": 1}},
            **changes,
        }
    )


def examples() -> list[Example]:
    question = Score(Prompt("one two", "three four five", "x"), ("six", "seven"))
    splits = ["train"] * 20 + ["validation"] * 10 + ["test"] * 5
    return [Example(str(i), str(i), split, question, "six") for i, split in enumerate(splits)]  # type: ignore[arg-type]


def needs_of(study: Study, speed: float = 1000.0) -> Needs:
    trials = study.trials("data", 1)
    configs = {trial.variant.recipe: CONFIG for trial in trials if not trial.is_baseline}
    needs = Needs(study, trials, {"root_cause": examples()}, configs)
    needs.__dict__["operations_per_second"] = speed
    return needs


def energy(joules: float | None, provenance: Provenance = Provenance.MEASURED, upper: float | None = None) -> Any:
    return {"package-0": Energy(joules, upper=upper, provenance=provenance, scope="package")}


def a_record(trial: Trial, job: str, wall: float, *stages: Measurement, status: str = "done") -> Record:
    return Record(job, trial, status, measurements=stages, facts={WALL: wall})  # type: ignore[arg-type]


def test_everything_that_was_spent_counts() -> None:
    first, second, *_ = a_study().trials("data", 1)
    tune = Measurement("finetune", 10, 8, energy(100.0))
    records = [
        a_record(first, "make", 12, tune),
        a_record(first, "grade", 5, Measurement("grade/root_cause", 4, 4, energy(40.0))),
        a_record(second, "make", 1, replace(tune, reused=True)),
        a_record(second, "grade", 6, Measurement("grade/root_cause", 6, 4, energy(60.0)), status="failed"),
        Record("grade", second, "failed", attempt=1, facts={WALL: 20.0}, error="killed"),
    ]
    found = account(records)
    assert found.seconds == 12 + 5 + 1 + 6 + 20
    assert found.watts == pytest.approx(10.0)
    assert found.joules == pytest.approx(200 + 10 * (44 - 20)), "a killed worker is charged at the mean power"
    assert found.trials == 2
    assert found.charged() == {
        "kwh": pytest.approx(440 / 3.6e6),
        "hours": pytest.approx(44 / 3600),
        "trials": 2.0,
    }


def test_estimates_count_at_their_upper_bound() -> None:
    assert charged_joules(Measurement("a", 1, 1, energy(5.0, Provenance.MEASURED, 9.0))) == 5.0
    assert charged_joules(Measurement("a", 1, 1, energy(5.0, Provenance.ESTIMATED, 9.0))) == 9.0
    assert charged_joules(Measurement("a", 1, 1, energy(5.0, Provenance.INCOMPLETE))) == 5.0
    assert charged_joules(Measurement("a", 1, 1, energy(None))) is None


def test_nothing_known_is_not_nothing_spent() -> None:
    [first, *_] = a_study().trials("data", 1)
    found = account([a_record(first, "make", 3, Measurement("finetune", 2, 2))])
    assert (found.joules, found.watts, found.seconds) == (None, None, 3.0)
    assert "kwh" not in found.charged()
    assert account([]).seconds == 0


def test_sharing_is_what_was_not_done_again() -> None:
    first, _, second, third, *_ = a_study().trials("data", 1)
    tune = Measurement("finetune", 10, 8, energy(100.0))
    load = Measurement("load", 1, 1, energy(1.0))
    records = [
        a_record(first, "make", 1, load, tune),
        a_record(second, "make", 1, replace(tune, reused=True)),
        a_record(third, "grade", 1, replace(tune, reused=True)),
    ]
    found = sharing([*records, replace(records[1], attempt=1)])
    again = sharing([*records, replace(records[0], attempt=1), replace(records[1], attempt=1)])
    assert (again.spent_cpu_seconds, again.saved_cpu_seconds) == (16, 8), "an attempt that was lost was spent"
    resumed = sharing([*records, replace(records[0], attempt=1, measurements=(load, replace(tune, reused=True)))])
    assert (resumed.spent_cpu_seconds, resumed.saved_cpu_seconds) == (8, 8), "its own first attempt shares nothing"
    assert (found.spent_cpu_seconds, found.saved_cpu_seconds) == (8, 8)
    assert (found.spent_joules, found.saved_joules) == (100.0, 100.0)
    assert sharing([a_record(first, "make", 1, Measurement("finetune", 1, 1))]).spent_joules is None


def test_a_forecast_counts_a_shared_fine_tuning_once() -> None:
    study = a_study()
    needs = needs_of(study)
    plain, _, eight, *_ = needs.trials
    assert tunings(plain) == tunings(eight)
    training = needs.training(plain, 1)
    assert training == pytest.approx(6 * (100 * 10 + 2 * (400 + 600)) * 20 * 7 * 2.0 * 2)
    fresh = Forecast(needs, []).seconds([plain])
    after = Forecast(needs, [Record("make", plain, "done")])
    assert fresh > training / 1000
    assert after.seconds([eight]) < training / 1000
    other_seed = replace(eight, variant=replace(eight.variant, seed=1))
    assert after.seconds([other_seed]) > training / 1000
    assert Forecast(needs, []).seconds([plain, eight]) < fresh + training / 1000


def test_less_work_is_foretold_as_less() -> None:
    needs = needs_of(a_study())
    plain = needs.trials[0]
    glance = replace(plain, variant=replace(plain.variant, fidelity=Fidelity(examples=5, steps=1)))
    assert needs.asking(glance) == needs.asking(plain) / 2
    assert needs.asking(glance, "test") == needs.asking(plain, "test")
    assert needs.training(glance, 1) == pytest.approx(min(2.0, 32 / 20) / 2 * needs.training(plain, 1))
    assert Forecast(needs, []).seconds([glance]) < Forecast(needs, []).seconds([plain])
    assert needs.asking(needs.trials[-1]) == 0.0


def test_a_forecast_is_corrected_by_what_was_taken() -> None:
    needs = needs_of(a_study())
    plain, other, *_ = needs.trials
    foretold = SECONDS_PER_START + needs.asking(plain) / 1000
    told = Forecast(needs, [a_record(plain, "make", 1), a_record(plain, "grade", 3 * foretold)])
    assert told._grade(other) == pytest.approx(3 * foretold)
    failed = Forecast(needs, [a_record(plain, "grade", 999, status="failed")])
    assert failed._grade(other) == pytest.approx(foretold)
    weighed = Forecast(needs, [a_record(plain, "weigh", 2 * (SECONDS_PER_START + 4))])
    assert weighed._weighing([plain]) == pytest.approx(2 * (SECONDS_PER_START + 4)), "one of two rounds is left, twice"


def test_weighing_and_confirming_are_held_back() -> None:
    study = a_study()
    needs = needs_of(study)
    plain, *_ = needs.trials
    done = [a_record(plain, "make", 1), a_record(plain, "grade", 1)]
    held = Forecast(needs, done).seconds([])
    assert held >= 2 * (SECONDS_PER_START + 4)
    rounds = [replace(a_record(plain, "weigh", 9), round=number) for number in range(2)]
    confirmed = a_record(plain, "confirm", 1)
    assert Forecast(needs, [*done, *rounds, confirmed]).seconds([]) == 0.0
    glance = replace(plain, variant=replace(plain.variant, fidelity=Fidelity(examples=5)))
    assert Forecast(needs, [a_record(glance, "grade", 1)]).seconds([]) == 0.0, "it is never weighed"


@pytest.mark.parametrize(
    ("budget", "word"),
    [
        ({}, None),
        ({"trials": 2}, None),
        ({"trials": 1}, "trials: 2 would be reached, 1 are allowed"),
        ({"hours": 100}, None),
        ({"hours": 0.01}, "hours"),
        ({"kwh": 1e-9}, "kwh"),
        ({"kwh": 100, "hours": 100, "trials": 100}, None),
    ],
)
def test_the_next_trial_must_fit(budget: dict[str, float], word: str | None) -> None:
    study = a_study(budget=budget)
    needs = needs_of(study)
    plain, other, *_ = needs.trials
    records = [
        a_record(plain, "make", 10, Measurement("finetune", 10, 8, energy(100.0))),
        a_record(plain, "grade", 10, Measurement("grade/root_cause", 10, 8, energy(100.0))),
    ]
    said = Budget(study, needs).refusal(other, records)
    assert (said is None) == (word is None)
    if word is not None and said is not None:
        assert word in said
        assert other.label in said


def test_kwh_need_joules() -> None:
    study = a_study(budget={"kwh": 1})
    needs = needs_of(study)
    plain, other, *_ = needs.trials
    assert Budget(study, needs).refusal(plain, []) is None
    with pytest.raises(StudyError, match=r"budget.kwh.*hours"):
        Budget(study, needs).refusal(other, [a_record(plain, "make", 10, Measurement("finetune", 10, 8))])
