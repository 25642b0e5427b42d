"""The store: whole records or none, read back as they were, errors in words."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from leanwatt.errors import StoreError
from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.recipe import Choice, Fidelity, Recipe, Trial, Variant
from leanwatt.record import SCHEMA_VERSION, Record
from leanwatt.store import Store, file_name

STEPS = (Choice("finetune", "full", {"epochs": 2}), Choice("prune", "magnitude", {"pattern": "2:4"}))
TRIAL = Trial(
    Variant(Recipe("starter", STEPS, "v1"), "data", 3, 1, Fidelity(100, 5)), Choice("engine", "openvino"), 8, ordinal=4
)
ENERGY = Energy(5.0, 4.0, 6.0, Provenance.ESTIMATED, "estimate", "package", 0.5, 0.1, ("short",))
RECORD = Record(
    job="grade",
    trial=TRIAL,
    status="done",
    measurements=(
        Measurement("load", 1.0, 0.9, {"package-0": ENERGY, "gpu-0": Energy(None)}, {"package-0": 3.0}, 2, 30, 4, True),
        Measurement("grade/root_cause", 2.0, 1.5, flags=("contended",)),
    ),
    metrics={"root_cause": {"macro_f1": 0.5}},
    artifact="variants/0123",
    facts={"kernel": "dense fp32", "flags": []},
    machine={"id": "m", "gpus": []},
)
ROWS = [
    {"task": "root_cause", "id": "1", "group": "g", "correct": True, "confidence": 0.75, "tokens_out": 3},
    {"task": "response", "id": "1", "group": "g", "hypothesis": "réparé 光", "rouge_l": 0.5, "tokens_out": 9},
]


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = Store(tmp_path).add(RECORD)
    again = Store(tmp_path)
    assert kept == RECORD
    assert again.get(RECORD.id) == RECORD
    assert again.records() == [RECORD]
    assert again.get(RECORD.id).trial.id == TRIAL.id
    assert again.get(RECORD.id).measurements[0].devices["gpu-0"].joules is None
    assert RECORD.id in again
    assert "other" not in again


def test_predictions_come_back_row_by_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = store.add(RECORD, ROWS)
    assert kept.predictions == f"predictions/{RECORD.id}.parquet"
    rows = store.rows(store.get(RECORD.id))
    for got, expected in zip(rows, ROWS, strict=True):
        assert {key: got[key] for key in expected} == expected
    assert store.rows(RECORD) == []


def test_a_later_attempt_leaves_the_earlier_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    failed = replace(RECORD, status="failed", error="boom")
    store.add(failed)
    store.add(RECORD.again(1))
    assert {record.attempt: record.status for record in store.records()} == {0: "failed", 1: "done"}


def test_records_of_an_older_version_are_read(tmp_path: Path) -> None:
    """What outlives us: a record as version 1 wrote it, with fields left out that had defaults."""
    store = Store(tmp_path)
    old = {
        "job": "weigh",
        "trial": {"variant": {"recipe": {"base": "starter"}}, "engine": {"room": "engine", "name": "openvino"}},
        "status": "done",
        "measurements": [{"stage": "weigh/root_cause", "seconds": 1.0, "cpu_seconds": 1.0}],
        "schema": 1,
    }
    (tmp_path / "records" / "old.json").write_text(json.dumps(old))
    record = store.get("old")
    assert record.trial.variant.recipe == Recipe("starter")
    assert record.measurements[0].total.joules is None
    assert asdict(record)["metrics"] == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', '{"job": "make"}', '{"schema": "x"}', "\x00"])
def test_what_is_no_record_is_named(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / "records" / "bad.json"
    path.write_text(text)
    for read in (lambda: store.get("bad"), store.records):
        with pytest.raises(StoreError, match=r"(?s)bad\.json: is not a record .*Move it away"):
            read()


def test_a_newer_record_asks_for_a_newer_program(tmp_path: Path) -> None:
    store = Store(tmp_path)
    newer = asdict(RECORD) | {"schema": SCHEMA_VERSION + 1, "unheard_of": 1}
    (tmp_path / "records" / "new.json").write_text(json.dumps(newer))
    with pytest.raises(StoreError, match=f"schema {SCHEMA_VERSION + 1}.*Update"):
        store.records()


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path).get("none")


def test_drafts_of_a_killed_run_are_no_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(RECORD)
    (tmp_path / "records" / ".half.json.123").write_text('{"job": ')
    assert store.records() == [RECORD]


def _full_disk(*_args: Any, **_settings: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("target", ["pathlib.Path.write_text", "pandas.DataFrame.to_parquet", "pathlib.Path.replace"])
def test_a_full_disk_loses_nothing_that_was_kept(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.add(RECORD, ROWS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(target, _full_disk)
        with pytest.raises(StoreError, match=r"No space left on device.*What was finished is safe"):
            store.add(RECORD.again(1), ROWS)
    after = {path: path.read_bytes() for path in (tmp_path / "records").rglob("*") if path.is_file()}
    assert after.items() <= before.items()
    assert store.add(RECORD.again(1), ROWS).attempt == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where this machine lets us make one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("a small file system needs root; the tests with a pretended full disk run everywhere")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    store, kept = Store(small_disk), list[Record]()
    with pytest.raises(StoreError, match="No space left on device"):
        for attempt in range(100):
            kept.append(store.add(RECORD.again(attempt)))
    assert 0 < len(kept) < 100
    assert sorted(record.attempt for record in Store(small_disk).records()) == list(range(len(kept)))
    assert not [path for path in small_disk.rglob(".*") if path.is_file()], "drafts are swept up"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--out"):
        Store(tmp_path / "file" / "inside")


@pytest.mark.parametrize(
    ("label", "name"), [("a > b | c", "a-b-c"), ("full(epochs=2)", "full-epochs-2"), ("ok-1.2", "ok-1.2")]
)
def test_labels_as_file_names(label: str, name: str) -> None:
    assert file_name(label) == name


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record's own name never holds half a text, not even while it is written."""
    store, seen = Store(tmp_path), list[bool]()
    real: Callable[..., int] = Path.write_text

    def watched(path: Path, text: str, **settings: Any) -> int:
        written = real(path, text[: len(text) // 2], **settings)
        seen.append(RECORD.id in store)
        return written + real(path, text, **settings)

    monkeypatch.setattr(Path, "write_text", watched)
    store.add(RECORD)
    assert seen == [False]
    assert RECORD.id in store
