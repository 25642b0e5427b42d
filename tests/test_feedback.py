"""Ratings: kept, deleted when asked or too old, and handed out as training data that the study can read."""

import csv
import sqlite3
from pathlib import Path

import pytest
from offered import folder_of, offer_of

from leanwatt import verbs
from leanwatt.errors import StoreError, StudyError
from leanwatt.feedback import Columns, Feedback, Rating, write_training_data

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
    assert feedback.add(RIGHT) > numbers[-1], "a number is never given twice"
    assert feedback.clear() == 3
    assert feedback.all() == []


def test_old_ratings_go_by_themselves(feedback: Feedback) -> None:
    feedback.add(RIGHT)
    with sqlite3.connect(feedback.file) as base:
        base.execute("UPDATE ratings SET at = '2020-01-01T00:00:00+00:00'")
    base.close()
    feedback.add(MENDED)
    assert [each.ticket for each in feedback.all()] == [MENDED.ticket]


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
    assert (tmp_path / "new.csv").read_text(encoding="utf-8").startswith("id,rated,description,cause,resolution")
    assert verbs.feedback(folder, delete=number) == 1
    with pytest.raises(StudyError, match="holds no rating 99"):
        verbs.feedback(folder, delete=99)
    assert verbs.feedback(folder, clear=True) == 1
    assert offer_of(folder).columns == verbs.offer(folder).columns
