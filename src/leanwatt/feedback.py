"""What people said of answers: kept in SQLite for a time, deleted when asked, handed out as new training data."""

from __future__ import annotations

import csv
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leanwatt.errors import StoreError, StudyError

_COLUMNS = ("at", "variant", "ticket", "said_cause", "said_response", "is_right", "cause", "response")
_TABLE = f"CREATE TABLE IF NOT EXISTS ratings (id INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(_COLUMNS)})"


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

    def __init__(self, file: Path, days: int) -> None:
        """Ratings older than `days` are deleted. Raises StoreError."""
        self.file, self.days = file, days
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreError(f"{file}: cannot be written ({error.strerror}).") from error
        with self._open() as base:
            base.execute(_TABLE)
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
        """Keep it; its number. Whatever is too old goes at the same time."""
        self.expire()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        values = (now, *(getattr(rating, name) for name in _COLUMNS[1:]))
        marks = ", ".join("?" * len(_COLUMNS))
        with self._open() as base:
            found = base.execute(f"INSERT INTO ratings ({', '.join(_COLUMNS)}) VALUES ({marks})", values)
            return int(found.lastrowid or 0)

    def all(self) -> list[Kept]:
        """Oldest first."""
        with self._open() as base:
            rows = base.execute(f"SELECT id, {', '.join(_COLUMNS)} FROM ratings ORDER BY id").fetchall()
        found = [dict(zip(("id", *_COLUMNS), row, strict=True)) for row in rows]
        return [Kept(**{**each, "is_right": bool(each["is_right"])}) for each in found]

    def delete(self, number: int) -> bool:
        """Whether there was one of that number."""
        with self._open() as base:
            return base.execute("DELETE FROM ratings WHERE id = ?", (number,)).rowcount > 0

    def clear(self) -> int:
        """Delete all; how many there were."""
        with self._open() as base:
            return base.execute("DELETE FROM ratings").rowcount

    def expire(self) -> int:
        """Delete what is too old; how many."""
        oldest = (datetime.now(UTC) - timedelta(days=self.days)).isoformat(timespec="seconds")
        with self._open() as base:
            return base.execute("DELETE FROM ratings WHERE at < ?", (oldest,)).rowcount


@dataclass(frozen=True)
class Columns:
    """What the study calls its columns."""

    text: str
    cause: str | None
    response: str | None


def write_training_data(ratings: Sequence[Kept], columns: Columns, target: Path) -> int:
    """Tickets whose right answer is now known, as CSV with the study's columns; how many. Raises StudyError.

    A ticket that was rated wrong, with nothing right said, teaches nothing and is left out.
    """
    truths = {columns.cause: "true_cause", columns.response: "true_response"}
    named = {name: truth for name, truth in truths.items() if name is not None}
    rows = [
        {"id": f"rated-{each.id}", "rated": each.at, columns.text: each.ticket}
        | {name: getattr(each, truth) or "" for name, truth in named.items()}
        for each in ratings
    ]
    known = [row for row in rows if any(row[name] for name in named)]
    if not known:
        raise StudyError("No rating says what is right yet: rate answers as right, name the cause, or edit the draft.")
    try:
        with target.open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "rated", columns.text, *named])
            writer.writeheader()
            writer.writerows(known)
    except FileExistsError as error:
        raise StudyError(f"{target}: is there already. Give a new file.") from error
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}).") from error
    return len(known)
