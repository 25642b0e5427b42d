"""Ratings: kept, deleted when asked or too old, and handed out as training data that the study can read."""

import csv
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from offered import folder_of, offer_of

from leanwatt import catalog, verbs
from leanwatt.errors import StoreError, StudyError
from leanwatt.feedback import Columns, Feedback, Rating, write_training_data
from leanwatt.offer import columns
from leanwatt.question import Answer
from leanwatt.recipe import Choice
from leanwatt.study import Study

RIGHT = Rating("v", "site A <b>power</b> lost", "mains failure", "replaced power", is_right=True)
MENDED = Rating("v", 'link, "down"\nat B', "mains failure", "reset", False, "fibre cut", "spliced the fibre")
WRONG = Rating("v", "something else", "mains failure", "reset", is_right=False)


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path / "new" / "ratings.sqlite", days=30)


def test_what_is_kept_comes_back_until_it_is_deleted(feedback: Feedback) -> None:
    numbers = [feedback.add(rating) for rating in (RIGHT, MENDED, WRONG)]
    assert [each.id for each in feedback.all()] == numbers
    assert [each.ticket for each in feedback.all()] == [RIGHT.ticket, MENDED.ticket, WRONG.ticket]
    assert [each.true_cause for each in feedback.all()] == ["mains failure", "fibre cut", None]
    assert [each.true_response for each in feedback.all()] == ["replaced power", "spliced the fibre", None]
    assert feedback.file.stat().st_mode & 0o777 == 0o600
    assert feedback.delete(numbers[0])
    assert not feedback.delete(numbers[0])
    assert b"power" not in feedback.file.read_bytes(), "deleted text is overwritten"
    gaps = [abs(one - other) for one in numbers for other in numbers if one != other]
    assert len(gaps) == 6 and min(gaps) > 2**20 and max(numbers) < 2**53, "nobody guesses another's number"
    assert feedback.clear() == 2
    assert feedback.all() == []


def aged(feedback: Feedback) -> None:
    """All ratings so far are older than any are kept."""
    with closing(sqlite3.connect(feedback.file)) as base, base:
        base.execute("UPDATE ratings SET at = '2020-01-01T00:00:00+00:00'")


def in_file(file: Path) -> int:
    with closing(sqlite3.connect(file)) as base:
        return int(base.execute("SELECT count(*) FROM ratings").fetchone()[0])


def test_old_ratings_go_by_themselves(feedback: Feedback) -> None:
    feedback.add(RIGHT)
    aged(feedback)
    feedback.add(MENDED)
    assert in_file(feedback.file) == 1
    assert [each.ticket for each in feedback.all()] == [MENDED.ticket]
    aged(feedback)
    assert feedback.all() == [], "also when nobody rates any more"
    assert in_file(feedback.file) == 0


def test_who_only_looks_is_not_shown_what_is_too_old_and_deletes_nothing(feedback: Feedback) -> None:
    feedback.add(RIGHT)
    aged(feedback)
    looking = Feedback(feedback.file)
    assert looking.days == 30, "as the server said"
    assert looking.all() == []
    assert in_file(feedback.file) == 1
    Feedback(feedback.file, days=100_000)
    assert [each.ticket for each in Feedback(feedback.file).all()] == [RIGHT.ticket], "the latest server's days hold"


def test_a_file_in_which_no_server_has_said_how_long_is_shown_whole(feedback: Feedback) -> None:
    feedback.add(RIGHT)
    aged(feedback)
    with closing(sqlite3.connect(feedback.file)) as base, base:
        base.execute("DROP TABLE retention")
    assert [each.ticket for each in Feedback(feedback.file).all()] == [RIGHT.ticket]


@pytest.mark.parametrize("number", [0, -1, 2**63, -(2**63), 10**30])
def test_numbers_that_cannot_be_are_not_there(number: int, feedback: Feedback) -> None:
    feedback.add(RIGHT)
    assert not feedback.delete(number)
    assert in_file(feedback.file) == 1


STUDY = Path(__file__).parent.parent / "examples" / "tickets" / "study.yaml"


def test_the_tasks_of_the_study_read_what_was_rated(feedback: Feedback, tmp_path: Path) -> None:
    study, target = Study.read(STUDY), tmp_path / "new.csv"
    for place in range(24):
        cause = ("mains failure", "fibre cut")[place % 2]
        feedback.add(
            replace(RIGHT, ticket=f"{chr(97 + place) * 4} is down", said_cause=cause, said_response=f"mended {place}")
        )
    assert write_training_data(feedback.all(), columns(study), target) == 24
    asked = {choice.name: catalog.build(here(choice, target)) for choice in study.tasks}
    for task in asked.values():
        found = task.examples(0)
        assert len(found) == 24
        assert {each.split for each in found} == {"train", "validation", "test"}
    example = asked["response"].examples(0)[0]
    [row] = asked["response"].grade([example], [Answer(example.target)])
    assert row["rouge_l"] == 1
    assert (row["slot_place"], row["slots"]) == (None, None), "what is not known is not graded"
    feedback.add(replace(WRONG, cause="fibre cut"))
    partly = tmp_path / "partly.csv"
    assert write_training_data(feedback.all(), columns(study), partly) == 25
    sizes = {c.name: len(catalog.build(here(c, partly, skip_bad_rows=True)).examples(0)) for c in study.tasks}
    assert sizes == {"root_cause": 25, "response": 24}, "each task takes the rows that have its answer"


def here(choice: Choice, path: Path, **changes: Any) -> Choice:
    """The same task on other rows."""
    data = {**dict(choice.settings["data"]), "path": str(path), **changes}
    return replace(choice, settings={**choice.settings, "data": data})


def test_what_a_study_says_of_its_rows_is_filled_in(feedback: Feedback, tmp_path: Path) -> None:
    """A published split, groups and dates: an empty cell there would be a bad row."""
    names = Columns("text", "cause", None, id="key", group="incident", time="opened", split="part", others=("site",))
    number = feedback.add(RIGHT)
    write_training_data(feedback.all(), names, tmp_path / "new.csv")
    with (tmp_path / "new.csv").open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    key, at = f"rated-{number}", feedback.all()[0].at
    assert row == {
        **{"key": key, "rated": at, "incident": key, "opened": at, "part": "train"},
        **{"text": RIGHT.ticket, "cause": "mains failure", "site": ""},
    }


def test_known_truths_become_training_data(feedback: Feedback, tmp_path: Path) -> None:
    for rating in (RIGHT, MENDED, WRONG):
        feedback.add(rating)
    columns, target = Columns("description", "cause", "resolution"), tmp_path / "new.csv"
    assert write_training_data(feedback.all(), columns, target) == 2
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["description"], row["cause"], row["resolution"]) for row in rows] == [
        (RIGHT.ticket, "mains failure", "replaced power"),
        (MENDED.ticket, "fibre cut", "spliced the fibre"),
    ]
    with pytest.raises(StudyError, match="there already"):
        write_training_data(feedback.all(), columns, target)
    with pytest.raises(StoreError, match="cannot be written"):
        write_training_data(feedback.all(), columns, tmp_path / "no" / "new.csv")
    feedback.clear()
    feedback.add(WRONG)
    with pytest.raises(StudyError, match="No rating says what is right"):
        write_training_data(feedback.all(), columns, tmp_path / "more.csv")


def test_files_that_are_no_ratings_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 3, encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be read"):
        Feedback(tmp_path / "text", 1)
    with pytest.raises(StoreError, match="cannot be written"):
        Feedback(tmp_path / "text" / "ratings", 1)


def test_the_verb_counts_writes_and_deletes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    folder = folder_of(model, tmp_path / "exported")
    with pytest.raises(StudyError, match="no ratings yet"):
        verbs.feedback(folder)
    kept = Feedback(verbs.ratings_file(folder), 30)
    number = kept.add(RIGHT)
    kept.add(MENDED)
    assert verbs.feedback(folder) == 2
    assert verbs.feedback(folder, to=tmp_path / "new.csv") == 2
    assert (
        (tmp_path / "new.csv").read_text(encoding="utf-8").startswith("id,rated,description,cause,resolution,action\n")
    )
    assert verbs.feedback(folder, delete=number) == 1
    with pytest.raises(StudyError, match="holds no rating 99"):
        verbs.feedback(folder, delete=99)
    aged(kept)
    assert verbs.feedback(folder) == 0
    with pytest.raises(StudyError, match="No rating says what is right"):
        verbs.feedback(folder, to=tmp_path / "old.csv")
    assert verbs.feedback(folder, clear=True) == 1, "it was left out, and not deleted"
    assert offer_of(folder).columns == verbs.offer(folder).columns
