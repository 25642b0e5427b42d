"""From bytes to rows: CSV, TSV, JSON, JSONL, Parquet and a hub, all as text, each row with its number."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import get_args

from leanwatt.errors import DataError, MissingExtraError, StudyError, not_among
from leanwatt.source import Format, Source


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be used."""

    kind: str
    """Short, for counting: `empty cause`."""
    message: str
    """What was found and what to do."""


@dataclass(frozen=True)
class Row:
    """One row of the file."""

    number: int
    """Counted from 1, the header apart."""
    line: int | None
    """Line of the file on which it ends; None for formats without lines."""
    cells: Mapping[str, str]
    """By column; stripped of outer space. An absent value is empty."""
    fault: Fault | None = None


@dataclass(frozen=True)
class Loaded:
    """What a file holds."""

    header: list[str]
    rows: list[Row]


def load(source: Source) -> Loaded:
    """All rows of a file or hub data set, nothing checked but the format. Raises DataError, MissingExtraError."""
    kind = source.format or Path(source.path).suffix.lower().removeprefix(".")
    if kind in ("csv", "tsv"):
        return _from_cells(source, kind)
    if kind == "jsonl":
        return _named(_jsonl(_text(source)))
    if kind == "json":
        return _named(_plain_rows(_json(source)))
    if kind == "parquet":
        return _named(_plain_rows(_parquet(source)))
    if kind == "hub":
        return _named(_plain_rows(_hub(source)))
    raise DataError(
        f"{source.path}: {not_among('the formats', kind, get_args(Format))} Set `format` if the suffix lies."
    )


def cell(value: object) -> str:
    """Any value as text: absent ones are empty, dates are ISO, nested ones are JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _text(source: Source) -> str:
    """The whole file, decoded. Raises DataError that names the line and the byte."""
    data = Path(source.path).read_bytes()
    encoding = "utf-8-sig" if source.encoding.lower() in ("utf-8", "utf8") else source.encoding
    try:
        return data.decode(encoding)
    except LookupError as error:
        raise StudyError(f"data.encoding: got {source.encoding!r}; names are utf-8, cp1252, ...") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{source.path}, line {line}: byte 0x{data[error.start]:02x} is not {source.encoding}. "
            "Save the file as UTF-8, or set `encoding` (often cp1252)."
        ) from error


def _from_cells(source: Source, kind: str) -> Loaded:
    """CSV and TSV. Strict: an unclosed quote is an error here, where a lax reader swallows the rest of the file."""
    mark = source.delimiter or {"csv": ",", "tsv": "\t"}[kind]
    if len(mark) != 1:
        raise StudyError(f"data.delimiter: got {mark!r}; one character is needed.")
    reader = csv.reader(io.StringIO(_text(source), newline=""), delimiter=mark, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    try:
        for values in reader:
            if not values:
                continue
            if not header:
                header = _header(source, values)
            else:
                rows.append(_row(header, values, len(rows) + 1, reader.line_num))
    except csv.Error as error:
        raise DataError(
            f"{source.path}, row {len(rows) + 1} (line {reader.line_num}): is not valid {kind.upper()}: {error}. "
            "Look for a quote that is not closed, and double the quotes inside a cell."
        ) from error
    if not header:
        raise DataError(f"{source.path}: has no rows: it is empty; give a file with tickets.")
    return Loaded(header, rows)


def _header(source: Source, values: list[str]) -> list[str]:
    names = [value.strip() for value in values]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{source.path}: the header names {', '.join(map(repr, twins))} twice; rename one.")
    return names


def _row(header: list[str], values: list[str], number: int, line: int) -> Row:
    cells = {name: value.strip() for name, value in zip(header, values, strict=False)}
    if len(values) == len(header):
        return Row(number, line, cells)
    message = f"has {len(values)} cells where the header has {len(header)}. Quote cells that hold the delimiter"
    return Row(number, line, cells, Fault("wrong number of cells", message))


def _jsonl(text: str) -> Iterator[Row]:
    number = 0
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        number += 1
        try:
            value = json.loads(content)
        except json.JSONDecodeError as error:
            yield Row(number, line, {}, Fault("not JSON", f"is not JSON: {error.msg} at column {error.colno}. Mend it"))
            continue
        yield _object(value, number, line)


def _object(value: object, number: int, line: int | None) -> Row:
    if isinstance(value, Mapping):
        return Row(number, line, {str(name): cell(content) for name, content in value.items()})
    message = f"is a {type(value).__name__}, not an object. Write {{column: value, ...}}"
    return Row(number, line, {}, Fault("not an object", message))


def _plain_rows(values: Iterable[object]) -> Iterator[Row]:
    return (_object(value, number, None) for number, value in enumerate(values, start=1))


def _named(rows: Iterable[Row]) -> Loaded:
    """Rows with the names of all their columns, in order of appearance; a name that a row lacks is an empty cell."""
    found = list(rows)
    return Loaded(list(dict.fromkeys(name for row in found for name in row.cells)), found)


def _json(source: Source) -> list[object]:
    try:
        values = json.loads(_text(source))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source.path}, line {error.lineno}: is not JSON: {error.msg}. For one object per line set format: jsonl."
        ) from error
    if not isinstance(values, list):
        raise DataError(f"{source.path}: holds a {type(values).__name__}; a list of objects is needed.")
    return values


def _parquet(source: Source) -> list[object]:
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.ParquetFile(source.path).read().to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{source.path}: is not valid Parquet ({error}). Write the file anew.") from error


def _hub(source: Source) -> Iterator[object]:
    """Rows of all published splits; `split` says which, unless the data set has such a column."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "data.format: hub needs 'datasets'. Install it with: pip install 'leanwatt[hub]'"
        ) from error
    try:
        parts = datasets.load_dataset(source.path, revision=source.revision)
    except (OSError, ValueError) as error:
        raise DataError(f"{source.path}: cannot be loaded from the hub ({error}). Check name and revision.") from error
    for split, rows in parts.items():
        for row in rows:
            yield {"split": split, **row}
