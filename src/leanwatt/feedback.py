"""What people said of answers: kept in SQLite for a time, deleted when asked, handed out as new training data."""

from __future__ import annotations

import csv
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leanwatt.errors import StoreError, StudyError

NUMBER_BITS = 52
"""Of the number of a rating, which a browser's script must hold exactly."""
_COLUMNS = ("at", "variant", "ticket", "said_cause", "said_response", "is_right", "cause", "response")
_TABLES = (
    f"CREATE TABLE IF NOT EXISTS ratings (id INTEGER PRIMARY KEY, {', '.join(_COLUMNS)})",
    "CREATE TABLE IF NOT EXISTS retention (days INTEGER)",
)


@dataclass(frozen=True)
class Rating:
    """One ticket, what was answered, and what a person said of it."""

    variant: str
    ticket: str
    said_cause: str | None
    """The likeliest cause, as answered."""
    said_response: str | None
    """The draft, as answered."""
    is_right: bool
    cause: str | None = None
    """The right cause, where the person named one."""
    response: str | None = None
    """The response as the person edited it; None where it was not touched."""


@dataclass(frozen=True)
class Kept(Rating):
    """A rating in the file."""

    id: int = 0
    at: str = ""
    """UTC."""

    @property
    def true_cause(self) -> str | None:
        """What is now known to be right: the cause named, or the answer where it was rated right."""
        return self.cause or (self.said_cause if self.is_right else None)

    @property
    def true_response(self) -> str | None:
        """The edited text, or the draft where it was rated right."""
        return self.response or (self.said_response if self.is_right else None)


class Feedback:
    """The ratings in one file that only its owner can read. Safe to use from several threads."""

    def __init__(self, file: Path, days: int | None = None) -> None:
        """A server's: ratings older than `days` are deleted, and the file says so. Raises StoreError.

        Without `days`, those of the latest server hold: what is older is not shown, and nothing goes by itself.
        """
        self.file, self.days = file, days
        self._deletes = days is not None
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreError(f"{file}: cannot be written ({error.strerror}).") from error
        with self._open() as base:
            for table in _TABLES:
                base.execute(table)
            if days is None:
                [self.days] = base.execute("SELECT max(days) FROM retention").fetchone()
            else:
                base.execute("DELETE FROM retention")
                base.execute("INSERT INTO retention VALUES (?)", (days,))
        self.expire()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. What is deleted is overwritten: it holds tickets."""
        with self._lock:
            base = sqlite3.connect(self.file, timeout=10)
            try:
                base.execute("PRAGMA secure_delete = ON")
                with base:
                    yield base
            except sqlite3.Error as error:
                raise StoreError(f"{self.file}: the ratings cannot be read or written ({error}).") from error
            finally:
                base.close()

    def add(self, rating: Rating) -> int:
        """Keep it; its number, which nobody guesses: who knows it may delete the rating. What is too old goes."""
        self.expire()
        number, now = secrets.randbits(NUMBER_BITS), datetime.now(UTC).isoformat(timespec="microseconds")
        values = (number, now, *(getattr(rating, name) for name in _COLUMNS[1:]))
        marks = ", ".join("?" * len(values))
        with self._open() as base:
            base.execute(f"INSERT INTO ratings (id, {', '.join(_COLUMNS)}) VALUES ({marks})", values)
        return number

    def all(self) -> list[Kept]:
        """Oldest first, without those that are too old."""
        self.expire()
        kept = f"SELECT id, {', '.join(_COLUMNS)} FROM ratings WHERE at >= ? ORDER BY at, id"
        with self._open() as base:
            rows = base.execute(kept, (self._oldest(),)).fetchall()
        found = [dict(zip(("id", *_COLUMNS), row, strict=True)) for row in rows]
        return [Kept(**{**each, "is_right": bool(each["is_right"])}) for each in found]

    def delete(self, number: int) -> bool:
        """Whether there was one of that number."""
        if number.bit_length() > 63:  # SQLite has no such numbers.
            return False
        with self._open() as base:
            return base.execute("DELETE FROM ratings WHERE id = ?", (number,)).rowcount > 0

    def clear(self) -> int:
        """Delete all; how many there were."""
        with self._open() as base:
            return base.execute("DELETE FROM ratings").rowcount

    def expire(self) -> int:
        """Delete what is too old, if this is a server's; how many."""
        if not self._deletes:
            return 0
        with self._open() as base:
            return base.execute("DELETE FROM ratings WHERE at < ?", (self._oldest(),)).rowcount

    def _oldest(self) -> str:
        """Since when ratings are kept; everything is where no server has said how long."""
        if self.days is None:
            return ""
        return (datetime.now(UTC) - timedelta(days=self.days)).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Columns:
    """What the study calls its columns."""

    text: str
    cause: str | None
    response: str | None
    id: str = "id"
    group: str | None = None
    time: str | None = None
    split: str | None = None
    others: tuple[str, ...] = ()
    """All others that its tasks name. A rating knows nothing of them."""


def write_training_data(ratings: Sequence[Kept], columns: Columns, target: Path) -> int:
    """Tickets whose right answer is now known, as CSV with all columns that the study's tasks read; how many.

    A ticket that was rated wrong, with nothing right said, teaches nothing and is left out. Raises StudyError.
    """
    known = [
        _row(each, columns)
        for each in ratings
        if (columns.cause and each.true_cause) or (columns.response and each.true_response)
    ]
    if not known:
        raise StudyError("No rating says what is right yet: rate answers as right, name the cause, or edit the draft.")
    try:
        with target.open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(known[0]))
            writer.writeheader()
            writer.writerows(known)
    except FileExistsError as error:
        raise StudyError(f"{target}: is there already. Give a new file.") from error
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}).") from error
    return len(known)


def _row(rating: Kept, columns: Columns) -> dict[str, str]:
    """Each ticket is a group of its own, and to train on: what people choose to rate is no fair test."""
    key = f"rated-{rating.id}"
    known = {
        columns.id: key,
        "rated": rating.at,
        columns.group: key,
        columns.time: rating.at,
        columns.split: "train",
        columns.text: rating.ticket,
        columns.cause: rating.true_cause or "",
        columns.response: rating.true_response or "",
    }
    row = {name: value for name, value in known.items() if name is not None}
    return row | dict.fromkeys(columns.others, "")
