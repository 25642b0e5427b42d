"""Rows of a data file: where they come from, how they are read, and what is refused, with its row number."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from leanwatt.errors import DataError, StudyError, not_among
from leanwatt.files import Fault, Row, load
from leanwatt.question import Split
from leanwatt.recipe import digest as content_hash
from leanwatt.source import Source, moment

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Words that a published split column may hold, in any case."""

LATE_NAME = re.compile(
    r"(^|_)(clos(e|ed|es|ing|ure)|resol(ution|ved|ve)|work_?notes?|solution|root_?cause|outcome|post_?mortem|fix(ed)?)(_|$)"
)
"""Names of columns that are usually written when a ticket is closed."""


@dataclass(frozen=True)
class Columns:
    """Which columns a task reads."""

    text: tuple[str, ...]
    """The ticket; several columns become `name: value` lines."""
    target: str | None
    """The right answer; None for a task that asks for none."""
    slots: tuple[str, ...] = ()
    """Facts that the answer should name; a cell may be empty where the fact is unknown."""
    closed: bool = False
    """The target is a class, not a text."""
    right_or_wrong: bool = False
    """The target is one of options that differ from row to row."""

    def __post_init__(self) -> None:
        """Raises StudyError without a text."""
        if not all([*self.text, *self.slots]) or not self.text or self.target == "":
            raise StudyError(f"text: got {list(self.text)} for '{self.target}'; name at least one column for each.")

    @property
    def needed(self) -> tuple[str, ...]:
        """Every column that must be there."""
        target = () if self.target is None else (self.target,)
        return tuple(dict.fromkeys([*self.text, *target, *self.slots]))


@dataclass(frozen=True, eq=False)
class Table:
    """A file, read and checked for one task."""

    source: Source
    columns: Columns
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    """All rows in order, bad ones too: they take part in the grouping, so that every task sees the same split."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many rows are left out, by kind of fault."""
        return Counter(row.fault.kind for row in self.rows if row.fault)

    def text(self, row: Row) -> str:
        """The ticket as the model reads it."""
        values = [(name, row.cells.get(name, "")) for name in self.columns.text]
        if len(values) == 1:
            return values[0][1]
        return "\n".join(f"{name}: {value}" for name, value in values if value)

    def row_id(self, row: Row) -> str:
        """Identity of a row within the file."""
        return row.cells[self.source.id] if self.source.id else f"row-{row.number}"


def read(source: Source, columns: Columns) -> Table:
    """Read and check a file. Raises DataError with file, row, what was found, what to do; StudyError for settings."""
    return _read(source, columns, _stamp(source))


def digest(source: Source, columns: Columns) -> str:
    """Content hash of the rows that a task sees: the file's bytes and all settings, but not where the file lies."""
    settings = {key: value for key, value in asdict(source).items() if key != "path"}
    return content_hash([_content(source), settings, asdict(columns)])


@lru_cache(maxsize=8)
def _read(source: Source, columns: Columns, _stamp: object) -> Table:
    loaded = load(source)
    if not loaded.rows:
        raise DataError(f"{source.path}: has no rows; give a file with tickets.")
    if loaded.header:
        _refuse_columns(source, columns, loaded.header)
    table = Table(source, columns, tuple(loaded.header), ())
    table = replace(table, rows=_unique(table, [_checked(table, row) for row in loaded.rows]))
    _refuse_bad_rows(table)
    _refuse_one_class(table)
    return table


def _refuse_columns(source: Source, columns: Columns, header: Sequence[str]) -> None:
    """Every column that is named must be there, and the text must be known when the ticket is opened."""
    own = (source.id, source.group, source.time, source.split, source.stratify)
    wanted = [*columns.needed, *(name for name in own if name), *source.known_later, *source.known_at_open]
    for name in wanted:
        if name not in header:
            raise DataError(f"{source.path}: {not_among('its columns', name, header)}{_delimiter_hint(header)}")
    for name in columns.text:
        if name == columns.target:
            raise StudyError(f"text: '{name}' is the very column to be answered; leave it out of the text.")
        if name in source.known_later:
            raise StudyError(f"text: '{name}' is listed in known_later; leave it out of the text.")
        if LATE_NAME.search(_snake(name)) and name not in source.known_at_open:
            raise StudyError(
                f"text: '{name}' is usually written when a ticket is closed, and would give the answer away. Leave it "
                f"out of the text or, if it is known when the ticket is opened, write known_at_open: [{name}]."
            )


def _checked(table: Table, row: Row) -> Row:
    """The row with the first fault found in it."""
    if row.fault:
        return row
    source, columns = table.source, table.columns
    needed = [name for name in (columns.target, source.id, source.group, source.time, source.split) if name]
    empty = next((name for name in needed if not row.cells.get(name)), None)
    if not any(row.cells.get(name) for name in columns.text):
        empty = ", ".join(columns.text)
    if empty:
        return replace(row, fault=Fault(f"empty {empty}", f"the cell '{empty}' is empty. Fill it"))
    if source.time and moment(row.cells[source.time]) is None:
        found = row.cells[source.time]
        return replace(row, fault=Fault("bad date", f"'{source.time}' is {found!r}. Write an ISO date: 2026-01-31"))
    if source.split and row.cells[source.split].lower() not in SPLIT_WORDS:
        message = f"'{source.split}' is {row.cells[source.split]!r}. Use one of {', '.join(SPLIT_WORDS)}"
        return replace(row, fault=Fault("unknown split", message))
    return row


def _unique(table: Table, rows: Iterable[Row]) -> tuple[Row, ...]:
    """Predictions are kept by id, so an id stands once; a later row with the same id is bad."""
    first: dict[str, int] = {}
    found = []
    for row in rows:
        name = None if row.fault else table.row_id(row)
        if name is not None and first.setdefault(name, row.number) != row.number:
            message = f"the id {name!r} stands in row {first[name]} already. Make it unique"
            row = replace(row, fault=Fault("repeated id", message))  # noqa: PLW2901
        found.append(row)
    return tuple(found)


def _refuse_bad_rows(table: Table) -> None:
    bad = [row for row in table.rows if row.fault]
    if not bad or (table.source.skip_bad_rows and len(bad) < len(table.rows)):
        return
    row = bad[0]
    where = f"row {row.number}" + (f" (line {row.line})" if row.line else "")
    message = row.fault.message if row.fault else ""
    advice = "; no row of the file can be used." if len(bad) == len(table.rows) else ", or set skip_bad_rows: true."
    others = f" {len(bad) - 1} more rows are bad." if len(bad) > 1 else ""
    raise DataError(f"{table.source.path}, {where}: {message}{advice}{others}")


def _refuse_one_class(table: Table) -> None:
    if not table.columns.closed or table.columns.target is None:
        return
    classes = sorted({row.cells[table.columns.target] for row in table.rows if not row.fault})
    if len(classes) < 2:
        raise DataError(
            f"{table.source.path}: '{table.columns.target}' has one value only, {classes[0]!r}; two are needed."
        )


def _delimiter_hint(header: Sequence[str]) -> str:
    if len(header) == 1 and (found := [mark for mark in ";\t|" if mark in header[0]]):
        return f" The header is one single cell: set delimiter: {found[0]!r}."
    return ""


def _snake(name: str) -> str:
    """`Close Code`, `close-code` and `closeCode` as `close_code`."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def _stamp(source: Source) -> Any:
    """Changes when the file does, so that an edited file is read anew."""
    if source.format == "hub":
        return source.revision
    try:
        with Path(source.path).open("rb") as file:
            found = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read ({error.strerror}). Give the path of a data file.") from error
    return found.st_mtime_ns, found.st_size


def _content(source: Source) -> str:
    if source.format == "hub":
        return content_hash([dict(row.cells) for row in load(source).rows])
    _stamp(source)
    with Path(source.path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
