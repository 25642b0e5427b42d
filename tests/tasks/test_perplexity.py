import csv
import math
from pathlib import Path
from typing import Any

import pytest

from leanwatt import metrics
from leanwatt.catalog import build
from leanwatt.errors import DataError, StudyError
from leanwatt.question import Answer, Generate, Likelihood, Prompt
from leanwatt.recipe import Choice
from leanwatt.survey import summary


def task(folder: Path, **settings: Any) -> Any:
    path = folder / "texts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "body"])
        writer.writerows([f"t{n}", f"title{n}", f"bodÿ{n} of{n}"] for n in range(30))
    return build(Choice("tasks", "perplexity", {"data": {"path": str(path), "id": "id"}, "text": "body", **settings}))


def test_a_text_is_asked_for_as_it_is(tmp_path: Path) -> None:
    [first, *rest] = task(tmp_path).examples(0)
    assert first.question == Likelihood("bodÿ0 of0")
    assert first.target == ""
    assert {example.split for example in rest} == {"train", "validation", "test"}
    both = task(tmp_path, text=["title", "body"]).examples(0)[0]
    assert both.question == Likelihood("title: title0\nbody: bodÿ0 of0")


def test_the_primary_is_the_probability_of_a_byte(tmp_path: Path) -> None:
    asked = task(tmp_path)
    examples = asked.examples(0)[:2]
    rows = asked.grade(examples, [Answer(scores=(-11 * math.log(4),)), Answer(scores=(-11 * math.log(16),))])
    assert [row["bytes"] for row in rows] == [11, 11]  # 9 letters, one of them of two bytes, and the end
    found = metrics.figures(rows)
    assert found[asked.primary] == pytest.approx(1 / 8)
    assert found["bits_per_byte"] == pytest.approx(3)


def test_an_engine_that_answers_something_else_is_an_error(tmp_path: Path) -> None:
    from dataclasses import replace

    asked = task(tmp_path)
    [example] = asked.examples(0)[:1]
    with pytest.raises(ValueError, match="got 2 scores"):
        asked.grade([example], [Answer(scores=(0.0, 1.0))])
    with pytest.raises(ValueError, match="t0"):
        asked.grade([replace(example, question=Generate(Prompt("", "", ""), 1))], [Answer(scores=(0.0,))])


def test_the_survey_needs_no_answer(tmp_path: Path) -> None:
    asked = task(tmp_path)
    found = summary(asked.source, asked.columns)
    assert (found.rows, found.detectable, found.classes) == (30, {}, {})
    assert not any("Smallest loss" in line for line in found.lines())


def test_wrong_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bodi"):
        task(tmp_path, text="bodi").examples(0)
    with pytest.raises(StudyError, match="at least one column"):
        task(tmp_path, text=[]).examples(0)
