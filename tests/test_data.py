import csv
import json
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leanwatt.data import Columns, digest, read
from leanwatt.errors import DataError, MissingExtraError, StudyError
from leanwatt.files import cell
from leanwatt.source import Source, moment

COLUMNS = Columns(("text",), "cause", closed=True)
ROWS = [
    {"key": "t1", "text": "link down at R1", "cause": "fiber cut"},
    {"key": "t2", "text": "no mains, \nbattery low", "cause": "power"},
    {"key": "t3", "text": 'alarm "LOS" on port', "cause": "fiber cut"},
]


def written(folder: Path, rows: list[dict[str, str]], name: str = "tickets.csv") -> str:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def refused(path: str, columns: Columns = COLUMNS, **settings: Any) -> str:
    with pytest.raises((DataError, StudyError)) as caught:
        read(Source(path, **settings), columns)
    return str(caught.value)


def as_file(folder: Path, suffix: str) -> str:
    path = folder / f"tickets.{suffix}"
    if suffix in ("csv", "tsv"):
        return written(folder, ROWS, path.name)
    if suffix == "json":
        path.write_text(json.dumps(ROWS))
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    table = read(Source(as_file(tmp_path, suffix), id="key"), COLUMNS)
    assert [dict(row.cells) for row in table.rows] == ROWS
    assert [row.number for row in table.rows] == [1, 2, 3]
    assert [table.row_id(row) for row in table.rows] == ["t1", "t2", "t3"]
    assert table.text(table.rows[2]) == 'alarm "LOS" on port'


def test_several_text_columns_are_named_lines(tmp_path: Path) -> None:
    table = read(Source(written(tmp_path, ROWS)), Columns(("key", "text"), "cause"))
    assert table.text(table.rows[0]) == "key: t1\ntext: link down at R1"
    assert table.row_id(table.rows[0]) == "row-1"


def test_an_error_names_data_row_and_physical_line(tmp_path: Path) -> None:
    rows = [*ROWS, {"key": "t4", "text": "x", "cause": " "}, {"key": "t5", "text": "", "cause": "power"}]
    message = refused(written(tmp_path, rows))
    assert "tickets.csv, row 4 (line 6): the cell 'cause' is empty" in message
    assert "skip_bad_rows: true" in message
    assert "1 more rows are bad" in message


def test_bad_rows_are_skipped_on_request_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"key": "t4", "text": "x", "cause": ""}, {"key": "t1", "text": "y", "cause": "power"}]
    table = read(Source(written(tmp_path, rows), id="key", skip_bad_rows=True), COLUMNS)
    assert table.skipped == {"empty cause": 1, "repeated id": 1}
    assert [row.fault is None for row in table.rows] == [True, True, True, False, False]


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert "nowhere.csv: cannot be read (No such file" in refused("nowhere.csv")
    assert "cannot be read (Is a directory)" in refused(str(tmp_path))


def test_a_missing_column_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    message = refused(written(tmp_path, ROWS), Columns(("text",), "cuase"))
    assert "No 'cuase'" in message
    assert "Did you mean 'cause'?" in message


def test_a_wrong_delimiter_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;cause\nx;y\nz;w\n")
    assert "set delimiter: ';'" in refused(str(path))
    assert len(read(Source(str(path), delimiter=";"), COLUMNS).rows) == 2
    assert "one character" in refused(str(path), delimiter=";;")


def test_bytes_in_another_encoding_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,cause\nok,power\ncâble,cut\n".encode("cp1252"))
    assert "line 3: byte 0xe2 is not utf-8" in refused(str(path))
    assert read(Source(str(path), encoding="cp1252"), COLUMNS).rows[1].cells["text"] == "câble"
    assert "data.encoding: got 'klingon'" in refused(str(path), encoding="klingon")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,cause\nx,y\nz,w\n")
    assert read(Source(str(path)), COLUMNS).header == ("text", "cause")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "has no rows"),
        ("a.csv", "text,cause\n", "has no rows"),
        ("a.csv", "text,text\nx,y\n", "names 'text' twice"),
        ("a.csv", 'text,cause\nx,y\n"open,z\nb,c\n', "row 2 (line 4): is not valid CSV"),
        ("a.csv", "text,cause\nx,y\nx\n", "row 2 (line 3): has 1 cells where the header has 2"),
        ("a.xlsx", "x", "No 'xlsx' in the formats"),
        ("a.json", "{", "line 1: is not JSON"),
        ("a.json", "{}", "holds a dict; a list of objects is needed"),
        ("a.json", "[1]", "row 1: is a int, not an object"),
        ("a.jsonl", '{"text": "x", "cause": "y"}\n\n{"text"\n', "row 2 (line 3): is not JSON"),
        ("a.jsonl", "oops\n", "no row of the file can be used"),
        ("a.parquet", "PAR0", "is not valid Parquet"),
        ("a.csv", "text,cause\nx,y\nz,y\n", "'cause' has one value only, 'y'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert expected in refused(str(path))


def test_dates_and_split_words_are_checked(tmp_path: Path) -> None:
    rows = [{**row, "day": "2026-01-31", "part": "train"} for row in ROWS]
    rows[1]["day"], rows[2]["part"] = "31.01.2026", "trian"
    path = written(tmp_path, rows)
    assert "row 2 (line 4): 'day' is '31.01.2026'. Write an ISO date" in refused(path, time="day")
    assert "row 3 (line 5): 'part' is 'trian'. Use one of train" in refused(path, split="part")


@pytest.mark.parametrize("name", ["close_code", "Work Notes", "workNotes", "resolution", "closing-text", "root_cause"])
def test_what_is_written_at_closing_is_refused_as_text(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, [{**row, name: "x"} for row in ROWS])
    columns = Columns(("text", name), "cause")
    assert f"known_at_open: [{name}]" in refused(path, columns)
    assert read(Source(path, known_at_open=(name,)), columns).rows


def test_declared_later_columns_and_the_target_are_refused_as_text(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    assert "'text' is listed in known_later" in refused(path, known_later=("text",))
    assert "the very column to be answered" in refused(path, Columns(("cause",), "cause"))
    assert "No 'typo' in its columns" in refused(path, known_later=("typo",))
    with pytest.raises(StudyError, match="name at least one column"):
        Columns((), "cause")


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    source = Source(written(tmp_path, ROWS))
    before = digest(source, COLUMNS)
    assert len(read(source, COLUMNS).rows) == 3
    written(tmp_path, [*ROWS, {"key": "t4", "text": "new ticket", "cause": "power"}])
    assert len(read(source, COLUMNS).rows) == 4
    assert digest(source, COLUMNS) != before


def test_the_digest_follows_content_and_settings_but_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = written(tmp_path, ROWS), written(tmp_path / "other", ROWS)
    assert digest(Source(here), COLUMNS) == digest(Source(there), COLUMNS)
    assert digest(Source(here, seed=1), COLUMNS) != digest(Source(here), COLUMNS)
    assert digest(Source(here), Columns(("key",), "cause")) != digest(Source(here), COLUMNS)
    with pytest.raises(DataError, match="cannot be read"):
        digest(Source("nowhere.csv"), COLUMNS)


def test_a_hub_data_set_is_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, revision: str | None) -> dict[str, list[dict[str, str]]]:
        asked.append((name, revision))
        if name == "gone":
            raise ValueError("no such data set")
        return {"train": ROWS[:2], "test": ROWS[2:]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = Source("owner/tickets", format="hub", revision="v1", split="split")
    table = read(source, COLUMNS)
    assert asked == [("owner/tickets", "v1")]
    assert [row.cells["split"] for row in table.rows] == ["train", "train", "test"]
    assert len(digest(source, COLUMNS)) == 16
    assert "gone: cannot be loaded from the hub (no such data set)" in refused("gone", format="hub")


def test_a_hub_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leanwatt\[hub\]'"):
        read(Source("owner/none", format="hub"), COLUMNS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        (True, "true"),
        (3, "3"),
        (2.5, "2.5"),
        ("  x ", "x"),
        (date(2026, 1, 31), "2026-01-31"),
        (["ä"], '["ä"]'),
    ],
)
def test_cell(value: object, expected: str) -> None:
    assert cell(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"path": "x", "grup": "y"}, "Did you mean 'group'?"),
        ({"path": "x", "test": "a"}, "data.test"),
        ({"group": "y"}, "data.path: Field required"),
        ({"path": ""}, "data.path: is empty"),
        ({"path": "x", "test": 0}, "data.test: got 0.0"),
        ({"path": "x", "validation": 1}, "data.validation: got 1.0"),
        ({"path": "x", "validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"path": "x", "validation": 0.5, "folds": 2}, "leave nothing to train on"),
        ({"path": "x", "folds": 0}, "data.folds: got 0"),
        ({"path": "x", "folds": 3, "time": "t"}, "cannot be used together"),
        ({"path": "x", "split": "s", "time": "t"}, "cannot be used together"),
        ({"path": "x", "near_duplicate": 0.1}, "data.near_duplicate: got 0.1"),
        ({"path": "x", "test_from": "2026-01-31"}, "data.test_from: needs `time`"),
        ({"path": "x", "time": "t", "test_from": "soon"}, "got 'soon'; write an ISO date"),
        ({"path": "x", "time": "t", "validation_from": "2026"}, "needs `test_from`"),
        ({"path": "x", "time": "t", "validation_from": 2027, "test_from": 2026}, "must lie before"),
        ({"path": "x", "validation_by": "group"}, "group needs `time`"),
        (7, "data: got 7"),
    ],
)
def test_a_wrong_source_is_refused(value: object, expected: str) -> None:
    with pytest.raises(StudyError) as caught:
        Source.parse(value)
    assert expected in str(caught.value)


def test_a_source_is_a_path_or_a_mapping() -> None:
    assert Source.parse("a.csv") == Source("a.csv")
    parsed = Source.parse({"path": "a.csv", "time": "t", "test_from": date(2026, 1, 31), "known_later": ["x"]})
    assert parsed == Source("a.csv", time="t", test_from="2026-01-31", known_later=("x",))
    assert Source.parse(parsed) is parsed


def test_moments_are_compared_in_one_time_zone() -> None:
    first, second = moment("2026-01-31T12:00:00+02:00"), moment("2026-01-31T10:00:00")
    assert first == second
    assert moment("2026") == moment("2026-01-01")
    assert moment("2026-05") == moment("2026-05-01")
    assert moment("yesterday") is None
