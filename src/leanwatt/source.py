"""Where the rows of a task come from and how they are split: the `data` setting of a task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import Literal

from leanwatt.errors import StudyError, not_among

Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "hub"]


@dataclass(frozen=True)
class Source:
    """Where rows come from, and how they are split. The same source gives every task the same split."""

    path: str
    """A file; with `format: hub` the name of a data set on a hub."""
    format: Format | None = None
    """csv, tsv, json (a list of objects), jsonl, parquet or hub; by default the suffix of `path`."""
    encoding: str = "utf-8"
    """Of a text file."""
    delimiter: str | None = None
    """Between the cells of a csv or tsv file; by default a comma or a tab."""
    revision: str | None = None
    """Of a data set on a hub."""
    id: str | None = None
    """Column with the identity of a row; by default the row number."""
    group: str | None = None
    """Column whose equal values (an alarm set, an incident) land in one split and are resampled together."""
    time: str | None = None
    """Column with ISO dates: the oldest rows train, the newest test."""
    split: str | None = None
    """Column with a published split: train, validation (optional) and test."""
    stratify: str | None = None
    """Column whose values are spread over the splits as evenly as the groups allow, usually the label."""
    folds: int = 1
    """Above 1: grouped cross-validation. Part k of the rows is the test split of fold k."""
    validation: float = 0.15
    """Share of all rows."""
    test: float = 0.2
    """Share of all rows; unused with `folds`, `split` or `test_from`."""
    test_from: str | None = None
    """With `time`: rows of this date (2026-01-31) and later are the test split."""
    validation_from: str | None = None
    """With `time`: rows from this date to the test split are the validation split; by default a share of the newest."""
    validation_by: Literal["date", "group"] = "date"
    """With `time`: `group` draws the validation split by groups from all rows that are older than the test split."""
    seed: int = 0
    """Of the split only."""
    near_duplicate: float | None = 0.9
    """Texts whose sets of three-word runs overlap this much (Jaccard) share a group. None joins equal texts only."""
    skip_bad_rows: bool = False
    """Leave bad rows out and count them, instead of refusing the file."""
    known_later: tuple[str, ...] = ()
    """Columns that are known only after the ticket is closed: never part of the text."""
    known_at_open: tuple[str, ...] = ()
    """Columns that are known when the ticket is opened, although their name says otherwise."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other; raises StudyError."""
        if not self.path:
            raise StudyError("data.path: is empty; give a file.")
        _refuse_range("validation", self.validation, 0, 1)
        _refuse_range("test", self.test, 0, 1)
        if self.near_duplicate is not None and not 0.5 <= self.near_duplicate <= 1:
            raise StudyError(f"data.near_duplicate: got {self.near_duplicate}; 0.5 to 1, or null, is allowed.")
        if self.folds < 1:
            raise StudyError(f"data.folds: got {self.folds}; whole numbers from 1 are allowed.")
        if self.folds > 1 and (self.time or self.split):
            raise StudyError("data.folds: cannot be used together with `time` or `split`; leave one out.")
        if self.time and self.split:
            raise StudyError("data.time: cannot be used together with `split`; leave one out.")
        self._refuse_shares()
        self._refuse_dates()

    def _refuse_shares(self) -> None:
        test = 1 / self.folds if self.folds > 1 else self.test
        if self.validation + test >= 1:
            raise StudyError(
                f"data.validation: {self.validation} and the test share {test:.2f} leave nothing to train on."
            )

    def _refuse_dates(self) -> None:
        for name in ("test_from", "validation_from"):
            value = getattr(self, name)
            if value is None:
                continue
            if not self.time:
                raise StudyError(f"data.{name}: needs `time`, the column with the dates.")
            if moment(value) is None:
                raise StudyError(f"data.{name}: got {value!r}; write an ISO date such as 2026-01-31.")
        if self.validation_by == "group" and (self.validation_from or not self.time):
            raise StudyError("data.validation_by: group needs `time`, and no `validation_from`.")
        if self.validation_from and not self.test_from:
            raise StudyError("data.validation_from: needs `test_from`, so that the validation split has an end.")
        if self.validation_from and self.test_from and _later(self.validation_from, self.test_from):
            raise StudyError("data.validation_from: must lie before `test_from`.")

    @classmethod
    def parse(cls, value: object) -> "Source":
        """Read a task's `data` setting: a path, or a mapping of the fields above. Raises StudyError."""
        from pydantic import TypeAdapter, ValidationError

        if isinstance(value, Source):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise StudyError(f"data: got {value!r}; give a path, or a mapping with `path`.")
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise StudyError(not_among("the settings of data", key, known))
        try:
            return TypeAdapter(cls).validate_python({key: _plain(key, setting) for key, setting in value.items()})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("data", *first["loc"])))
            raise StudyError(f"{where}: {first['msg']} (got {first['input']!r})") from error


def moment(text: str) -> datetime | None:
    """An ISO date or time, or a bare year or month, as UTC; None where it is none."""
    padded = {4: f"{text}-01-01", 7: f"{text}-01"}.get(len(text), text)
    try:
        found = datetime.fromisoformat(padded)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _refuse_range(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high or math.isnan(value):
        raise StudyError(f"data.{name}: got {value}; a share above {low} and below {high} is needed.")


def _plain(key: str, setting: object) -> object:
    """YAML reads 2026-01-31 as a date and 2026 as a number; both mean the text."""
    if key in ("test_from", "validation_from") and isinstance(setting, date | int):
        return str(setting)
    return setting


def _later(one: str, other: str) -> bool:
    first, second = moment(one), moment(other)
    return first is not None and second is not None and first >= second
