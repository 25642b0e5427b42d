import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from leanwatt import metrics
from leanwatt.catalog import build
from leanwatt.errors import DataError, StudyError
from leanwatt.question import Answer, Generate
from leanwatt.recipe import Choice
from leanwatt.tasks._overlap import rouge_l, token_f1
from leanwatt.tasks.response import Response

NOTE = "Replaced the fan of router R3-A at Site-07."


def written(folder: Path) -> str:
    path = folder / "tickets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "description", "resolution", "equipment", "place"])
        for n in range(40):
            writer.writerow([f"t{n}", f"ticket{n} alarm{n}", NOTE, "R3-A", "Site-07" if n else ""])
    return str(path)


def task(path: str, **settings: Any) -> Response:
    plain = {"data": {"path": path, "id": "id"}, "text": "description", "reference": "resolution"}
    found = build(Choice("tasks", "response", {**plain, **settings}))
    assert isinstance(found, Response)
    return found


def test_examples_ask_for_the_note(tmp_path: Path) -> None:
    examples = task(written(tmp_path), limit=20, stop=["\n"], slots={"where": "place"}).examples(0)
    assert len(examples) == 40
    first = examples[0]
    assert isinstance(first.question, Generate)
    assert (first.question.limit, first.question.stop) == (20, ("\n",))
    assert first.question.prompt.body == "ticket0 alarm0"
    assert (first.target, first.fields) == (NOTE, {"where": ""})
    assert examples[1].fields == {"where": "Site-07"}


def test_grade_counts_words_and_facts(tmp_path: Path) -> None:
    writing = task(written(tmp_path), slots={"what": "equipment", "where": "place"})
    examples = writing.examples(0)[:3]
    answers = [Answer(text=f" {NOTE}\n"), Answer(text="fan of R3-A"), Answer(text=None, truncated=True)]
    same, half, none = writing.grade(examples, answers)
    assert (same["rouge_l"], same["token_f1"], same["hypothesis"]) == (1, 1, NOTE)
    assert (same["slot_what"], same["slot_where"], same["slots"]) == (1, None, 1)
    assert (half["slot_what"], half["slot_where"], half["slots"]) == (1, 0, 0.5)
    assert half["rouge_l"] == pytest.approx(2 * 4 / (4 + 10))
    assert (none["rouge_l"], none["token_f1"], none["slots"], none["truncated"]) == (0, 0, 0, True)


def test_graded_rows_give_every_metric(tmp_path: Path) -> None:
    writing = task(written(tmp_path), slots={"what": "equipment"})
    rows = writing.grade(writing.examples(0), [Answer(text=NOTE)] * 40)
    found = metrics.figures(rows)
    assert set(found) == {"rouge_l", "token_f1", "chrf", "bleu", "slot_what", "slots", "truncated"}
    assert (found["chrf"], found["bleu"]) == pytest.approx((1, 1))


def test_without_slots_there_are_no_slot_figures(tmp_path: Path) -> None:
    writing = task(written(tmp_path))
    [row] = writing.grade(writing.examples(0)[:1], [Answer(text="x")])
    assert not [name for name in row if name.startswith("slot")]


@pytest.mark.parametrize(
    ("answer", "named"),
    [("at SITE 07 today", 1), ("at Site-070", 0), ("07 site", 0), ("site\n07", 1), ("", 0)],
)
def test_a_fact_is_named_by_its_words_in_order(tmp_path: Path, answer: str, named: int) -> None:
    writing = task(written(tmp_path), slots={"where": "place"})
    [row] = writing.grade(writing.examples(0)[1:2], [Answer(text=answer)])
    assert row["slot_where"] == named


@settings(deadline=None)
@given(st.text(alphabet="ab C1-_.,\n"), st.text(alphabet="ab C1-_.,\n"))
def test_rouge_is_that_of_rouge_score(answer: str, reference: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_other_scripts_are_read_too() -> None:
    assert rouge_l("Кабель заменён", "кабель заменён") == 1
    assert token_f1("Übertragung gestört", "Übertragung läuft") == pytest.approx(0.5)


def test_the_reference_as_text_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="the very column to be answered"):
        task(written(tmp_path), text="resolution").examples(0)
    with pytest.raises(DataError, match="No 'plaze' in its columns"):
        task(written(tmp_path), slots={"where": "plaze"}).examples(0)
    with pytest.raises(StudyError, match=r"response\.limit: .*\(got 0\)"):
        task("nowhere.csv", limit=0)
