"""Wrong engines are caught, right ones pass, and the reference is asked once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import flow_of, study_of

from leanwatt import agreement
from leanwatt.agreement import check
from leanwatt.engine.transformers import Transformers
from leanwatt.errors import RefusedError
from leanwatt.question import Answer, Generate, Likelihood, Prompt, Score

PROMPTS = [Prompt("Name the root cause.", f"alarm at site {x} {y}", "Root cause:") for x in "ABCD" for y in "ABC"]
OPTIONS = ("mains failure", "fibre cut", "router down in cell")
ASKED = {"cause": [Score(prompt, OPTIONS) for prompt in PROMPTS], "note": [Generate(PROMPTS[0], 4)]}


@dataclass
class Session:
    """A right session but for what a test breaks."""

    inner: Any
    facts: dict[str, Any] = field(default_factory=dict)
    breaks: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = lambda first, second: (first, second)
    turns: Callable[[int, Score, Answer], str] = lambda place, question, answer: str(answer.text)

    def probe(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        return self.breaks(*self.inner.probe(prompts))

    def answer(self, questions: Sequence[Score]) -> list[Answer]:
        right = self.inner.answer(questions)
        return [replace(a, text=self.turns(i, q, a)) for i, (q, a) in enumerate(zip(questions, right, strict=True))]


@pytest.fixture
def artifact(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy, since what the reference says is kept beside it."""
    import shutil

    return Path(shutil.copytree(saved("llama"), tmp_path / "artifact"))


@pytest.fixture
def right(artifact: Path) -> Any:
    with Transformers("fp32").open(artifact, 3) as session:
        yield session


def test_a_right_engine_agrees_and_the_record_says_how_well(artifact: Path, right: Any) -> None:
    found = check("e", right, artifact, ASKED)
    assert found["option_agreement"] == 1
    assert found["option_examples"] == len(PROMPTS)
    assert 0 <= found["logit_error_prefill"] < 1e-5
    assert 0 <= found["logit_error_decode"] < 1e-5


def test_log_probabilities_do_as_well_as_logits(artifact: Path, right: Any) -> None:
    shifted = Session(right, breaks=lambda first, second: (first - 7, second + 3))
    assert max(list(check("e", shifted, artifact, ASKED).values())[:2]) < 1e-4


@pytest.mark.parametrize(
    "breaks",
    [
        lambda first, second: (first, second * 1e4),
        lambda first, second: (first * -1, second),
        lambda first, second: (first, second * np.nan),
        # Garbage for one at a time only: what torchao's compiled int8 did.
        lambda first, second: (first, second * 1e4 if len(first) == 1 else second),
    ],
    ids=["decode", "prefill", "nan", "batch 1 only"],
)
def test_garbage_is_caught(breaks: Any, artifact: Path, right: Any) -> None:
    with pytest.raises(RuntimeError, match="computes something else"):
        check("e", Session(right, breaks=breaks), artifact, ASKED)


def other(_place: int, question: Score, answer: Answer) -> str:
    return question.options[int(np.argmin(answer.scores))]


def test_other_choices_fail_at_sixteen_bits_and_are_reported_below(
    artifact: Path, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "TIE_NATS", 0.0)
    with pytest.raises(RuntimeError, match="12 of 12 examples"):
        check("e", Session(right, turns=other), artifact, ASKED)
    for facts in ({"codes_bits": 4}, {"requantized": True}, {"activations": "int8"}):
        assert check("e", Session(right, facts, turns=other), artifact, ASKED)["option_agreement"] == 0
    one = Session(right, turns=lambda i, q, a: other(i, q, a) if i == 3 else str(a.text))
    assert check("e", one, artifact, ASKED)["option_agreement"] == pytest.approx(11 / 12), "one may always differ"


def test_near_ties_are_no_fault_but_are_counted(artifact: Path, right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "TIE_NATS", 1e6)
    assert check("e", Session(right, turns=other), artifact, ASKED)["option_agreement"] == 0


def test_where_the_first_differ_more_are_asked(artifact: Path, right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "FIRST", 4)
    monkeypatch.setattr(agreement, "TIE_NATS", 0.0)
    assert check("e", right, artifact, ASKED)["option_examples"] == 4
    late = Session(right, turns=lambda i, q, a: other(i, q, a) if i == 2 else str(a.text))
    assert check("e", late, artifact, ASKED)["option_examples"] == 12


def test_the_reference_is_asked_once(artifact: Path, right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = check("e", right, artifact, ASKED)

    def closed(*_: Any) -> Any:
        raise AssertionError("what it said is kept")

    monkeypatch.setattr(Transformers, "open", closed)
    assert check("e", right, artifact, ASKED) == first
    with pytest.raises(AssertionError, match="kept"):
        check("e", right, artifact, {"other": [Score(PROMPTS[0], ("a", "b"))]})


def test_texts_are_probed_too_and_nothing_asked_is_nothing_known(artifact: Path, right: Any) -> None:
    found = check("e", right, artifact, {"text": [Likelihood("power lost at site A")]})
    assert found.keys() == {"logit_error_prefill", "logit_error_decode"}
    assert check("e", right, artifact, {}) == {}


def test_an_engine_without_logits_is_refused(artifact: Path) -> None:
    with pytest.raises(RefusedError, match="probe"):
        check("e", object(), artifact, ASKED)


def test_a_wrong_engine_fails_its_trial(
    saved: Callable[[str], Path], tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.engine.openvino import _OpenVino

    step = _OpenVino.step
    monkeypatch.setattr(_OpenVino, "step", lambda self, *inputs: -1e4 * step(self, *inputs))
    data = study_of(saved("llama"), tickets, steps=[], engine=["openvino"], baselines=[])
    flow = flow_of(data, tmp_path / "run")
    [trial] = flow.space
    flow._do("make", [trial])
    flow._do("grade", [trial])
    record = flow._agenda.last("grade", trial)
    assert record is not None
    assert record.status == "failed"
    assert "its speed means nothing" in str(record.error)
    flow._weigh(0)
    assert not flow._agenda.has("weigh", trial)
