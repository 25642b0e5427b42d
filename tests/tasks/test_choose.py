import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from leanwatt import metrics
from leanwatt.catalog import build
from leanwatt.errors import DataError
from leanwatt.question import Answer, Likelihood, Score
from leanwatt.recipe import Choice
from leanwatt.survey import summary
from leanwatt.tasks.choose import Choose

HEADER = ["id", "question", "a", "b", "c", "right"]


def written(folder: Path, rows: list[list[str]] | None = None) -> str:
    path = folder / "questions.csv"
    made = [
        [f"q{n}", f"what{n} is{n}", f"this{n}", f"that{n}", "" if n % 2 else "none", str(1 + n % 2)] for n in range(40)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(rows or made)
    return str(path)


def task(path: str, **settings: Any) -> Choose:
    plain = {"text": "question", "options": ["a", "b", "c"], "answer": "right", "answer_as": "number"}
    found = build(Choice("tasks", "choose", {"data": {"path": path, "id": "id"}, **plain, **settings}))
    assert isinstance(found, Choose)
    return found


def test_options_differ_from_question_to_question(tmp_path: Path) -> None:
    first, second = task(written(tmp_path)).examples(0)[:2]
    assert isinstance(first.question, Score)
    assert isinstance(second.question, Score)
    assert first.question.options == ("this0", "that0", "none")
    assert second.question.options == ("this1", "that1")
    assert (first.target, second.target) == ("this0", "that1")
    assert first.question.prompt.body == "what0 is0"


def test_options_can_be_shown(tmp_path: Path) -> None:
    [first, *_] = task(written(tmp_path), listed=True).examples(0)
    assert isinstance(first.question, Score)
    assert first.question.prompt.body == "what0 is0\nA. this0\nB. that0\nC. none"


def test_any_of_several_right_options_is_right(tmp_path: Path) -> None:
    rows = [[f"q{n}", f"what{n} is{n}", "x", "y", "z", '["A", "C"]'] for n in range(20)]
    asked = task(written(tmp_path, rows), answer_as="letter")
    [example] = asked.examples(0)[:1]
    assert (example.target, json.loads(example.fields["right"])) == ("x", ["x", "z"])
    [row] = asked.grade([example], [Answer(scores=(-3.0, -2.0, -1.0))])
    total = math.exp(-3) + math.exp(-2) + math.exp(-1)
    assert row["correct"] is True
    assert row["chance"] == pytest.approx(2 / 3)
    assert row["confidence"] == pytest.approx(math.exp(-1) / total)
    assert row["p_target"] == pytest.approx((math.exp(-3) + math.exp(-1)) / total)
    [wrong] = asked.grade([example], [Answer(scores=(-3.0, -1.0, -2.0))])
    assert wrong["correct"] is False


def test_figures_are_accuracy_and_chance_and_no_classes(tmp_path: Path) -> None:
    asked = task(written(tmp_path))
    examples = asked.examples(0)
    answers = [Answer(scores=(0.0, *[-1.0] * (len(e.question.options) - 1))) for e in examples]  # type: ignore[union-attr]
    found = metrics.figures(asked.grade(examples, answers))
    assert found["accuracy"] == 0.5
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert "macro_f1" not in found


def test_options_in_one_cell_and_an_answer_in_words(tmp_path: Path) -> None:
    rows = [[f"q{n}", f"what{n} is{n}", '["[1]", "2"]', "", "", "2"] for n in range(20)]
    [first, *_] = task(written(tmp_path, rows), options="a", answer_as="text").examples(0)
    assert isinstance(first.question, Score)
    assert first.question.options == ("[1]", "2")
    assert first.target == "2"


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        (["q0", "what is it", "x", "", "", "1"], {}, "row q0: has 1 options; at least two are needed"),
        (["q0", "what is it", "x", "y", "", "3"], {}, r"row q0: 'right' is '3', and the options are \['1', '2'\]"),
        (["q0", "what is it", "x", "y", "", "z"], {"answer_as": "text"}, r"'z', and the options are \['x', 'y'\]"),
        (["q0", "what is it", "[x", "y", "", "[x"], {"answer_as": "text", "options": "a"}, "has 1 options"),
    ],
)
def test_rows_without_a_right_option_are_refused(
    tmp_path: Path, row: list[str], settings: dict[str, Any], expected: str
) -> None:
    rest = [[f"q{n}", f"what{n} is{n}", "x", "y", "", "x" if settings else "1"] for n in range(1, 20)]
    with pytest.raises(DataError, match=expected):
        task(written(tmp_path, [row, *rest]), **settings).examples(0)


def test_an_engine_that_answers_something_else_is_an_error(tmp_path: Path) -> None:
    from dataclasses import replace

    asked = task(written(tmp_path))
    [example] = asked.examples(0)[:1]
    with pytest.raises(ValueError, match="2 scores came back for 3 options of example q0"):
        asked.grade([example], [Answer(scores=(0.0, 1.0))])
    with pytest.raises(TypeError, match="no options"):
        asked.grade([replace(example, question=Likelihood("x"))], [Answer(scores=(0.0,))])


def test_the_survey_counts_right_or_wrong_and_lists_no_classes(tmp_path: Path) -> None:
    asked = task(written(tmp_path))
    found = summary(asked.source, asked.columns)
    assert found.classes == {}
    closed = {**{"data": asked.data, "text": "question", "label": "right"}}
    shares = summary(asked.source, build(Choice("tasks", "classify", closed)).columns)
    assert found.detectable == shares.detectable


def test_scores_per_byte_do_not_favour_short_options(tmp_path: Path) -> None:
    rows = [[f"q{n}", f"what{n} is{n}", "no", "the longer one", "", "2"] for n in range(20)]
    path = written(tmp_path, rows)
    answer = Answer(scores=(-4.0, -14.0))
    rated = {per: task(path, per_byte=per).examples(0)[0] for per in (False, True)}
    assert rated[False] != rated[True], "a change of grading is graded anew"
    [whole] = task(path).grade([rated[False]], [answer])
    [each] = task(path, per_byte=True).grade([rated[True]], [answer])
    assert (whole["correct"], each["correct"]) == (False, True)
    assert each["confidence"] == pytest.approx(1 / (1 + math.exp(-1)))
