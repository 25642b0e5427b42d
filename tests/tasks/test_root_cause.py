import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanwatt.catalog import build
from leanwatt.errors import DataError, StudyError
from leanwatt.question import Answer, Generate, Score
from leanwatt.recipe import Choice
from leanwatt.tasks.root_cause import RootCause

CAUSES = ("fiber cut", "mains power loss", "power supply")


def written(folder: Path, last: str = "power supply") -> str:
    path = folder / "tickets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "description", "site", "cause", "part"])
        for n in range(30):
            part = ("train", "train", "validation", "test")[n % 4] if n < 28 else "train"
            writer.writerow([f"t{n}", f"ticket{n} alarm{n}", f"s{n}", CAUSES[n % 3], part])
        writer.writerow(["t30", "another ticket", "s30", last, "test"])
    return str(path)


def task(path: str, **settings: Any) -> RootCause:
    plain = {"data": {"path": path, "id": "id", "split": "part"}, "text": "description", "label": "cause"}
    found = build(Choice("tasks", "root_cause", {**plain, **settings}))
    assert isinstance(found, RootCause)
    return found


def test_examples_ask_for_one_of_the_training_causes(tmp_path: Path) -> None:
    examples = task(written(tmp_path)).examples(0)
    assert len(examples) == 31
    first = examples[0]
    assert (first.id, first.split, first.target) == ("t0", "train", "fiber cut")
    assert isinstance(first.question, Score)
    assert first.question.options == CAUSES
    assert first.question.prompt.body == "ticket0 alarm0"
    assert first.question.prompt.instruction == "Name the root cause of this fault."
    assert first.question.prompt.lead == "Root cause:"


def test_several_columns_make_the_text(tmp_path: Path) -> None:
    first = task(written(tmp_path), text=["site", "description"]).examples(0)[0]
    assert isinstance(first.question, Score)
    assert first.question.prompt.body == "site: s0\ndescription: ticket0 alarm0"


def test_grade_chooses_the_likeliest_and_says_how_sure(tmp_path: Path) -> None:
    scored = task(written(tmp_path))
    example = scored.examples(0)[0]
    [row] = scored.grade([example], [Answer(scores=(-1.0, -2.0, -3.0), truncated=True, tokens_out=9)])
    total = 1 + math.exp(-1) + math.exp(-2)
    assert row["chosen"] == row["target"] == "fiber cut"
    assert row["correct"] is True
    assert row["confidence"] == pytest.approx(1 / total)
    assert row["p_target"] == pytest.approx(1 / total)
    assert (row["truncated"], row["tokens_out"], row["unmatched"]) == (True, 9, False)
    [wrong] = scored.grade([example], [Answer(scores=(-2000.0, -1000.0, -3000.0))])
    assert (wrong["chosen"], wrong["correct"]) == ("mains power loss", False)
    assert wrong["confidence"] == pytest.approx(1)
    assert wrong["p_target"] == 0


def test_scores_that_do_not_fit_the_options_are_an_error(tmp_path: Path) -> None:
    scored = task(written(tmp_path))
    with pytest.raises(ValueError, match="2 scores came back for 3 options of example t0"):
        scored.grade(scored.examples(0)[:1], [Answer(scores=(0.0, 1.0))])


def test_a_held_out_cause_that_training_lacks_is_kept_and_always_wrong(tmp_path: Path) -> None:
    scored = task(written(tmp_path, last="lightning"))
    last = scored.examples(0)[-1]
    assert isinstance(last.question, Score)
    assert (last.target, last.split) == ("lightning", "test")
    assert "lightning" not in last.question.options
    [row] = scored.grade([last], [Answer(scores=(0.0, -1.0, -1.0))])
    assert (row["correct"], row["p_target"]) == (False, 0.0)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("fiber cut", "fiber cut"),
        (" Mains  power LOSS.\nSecond line", "mains power loss"),
        ("The cause is a fiber cut near the site", "fiber cut"),
        ("power supply or fiber cut", ""),
        ("weather", ""),
        ("", ""),
    ],
)
def test_a_written_answer_is_matched_to_a_cause(tmp_path: Path, text: str, chosen: str) -> None:
    writing = task(written(tmp_path), mode="generate", limit=5)
    example = writing.examples(0)[0]
    assert isinstance(example.question, Generate)
    assert (example.question.limit, example.question.stop) == (5, ("\n",))
    [row] = writing.grade([example], [Answer(text=text)])
    assert row["chosen"] == chosen
    assert row["correct"] is (chosen == "fiber cut")
    assert row["unmatched"] is (chosen == "")
    assert row["confidence"] is row["p_target"] is None


def test_of_options_within_options_the_longest_is_meant(tmp_path: Path) -> None:
    writing = task(written(tmp_path), mode="generate", options=[*CAUSES, "power"])
    example = writing.examples(0)[0]
    [row] = writing.grade([example], [Answer(text="it was the power supply unit")])
    assert row["chosen"] == "power supply"


def test_options_must_hold_every_training_cause(tmp_path: Path) -> None:
    path = written(tmp_path)
    first = task(path, options=["power supply", "mains power loss", "fiber cut", "rain"]).examples(0)[0]
    assert isinstance(first.question, Score)
    assert first.question.options == ("power supply", "mains power loss", "fiber cut", "rain")
    with pytest.raises(DataError, match="'cause' is 'power supply' in a training row"):
        task(path, options=["mains power loss", "fiber cut"]).examples(0)


def test_training_rows_of_one_cause_only_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,description,cause,part\n1,a b,x,train\n2,c d,x,dev\n3,e f,y,test\n")
    with pytest.raises(DataError, match=r"training split has one 'cause' only: \['x'\]"):
        task(str(path)).examples(0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"limit": 0}, "root_cause.limit: Input should be greater than or equal to 1 (got 0)"),
        ({"options": ["a"]}, "at least two"),
        ({"options": ["a", "a"]}, "stands twice"),
        ({"mode": "guess"}, "root_cause.mode"),
        ({"data": {"path": "x", "grup": "y"}}, "Did you mean 'group'"),
        ({"lable": "cause"}, "Did you mean 'label'"),
    ],
)
def test_wrong_settings_are_refused_before_the_file_is_opened(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError) as caught:
        task("nowhere.csv", **settings)
    assert expected in str(caught.value)


def test_a_path_alone_is_enough(tmp_path: Path) -> None:
    examples = task(written(tmp_path), data=written(tmp_path)).examples(0)
    assert {example.split for example in examples} == {"train", "validation", "test"}
    assert replace(examples[0], split="train").id == "row-1"
