"""Results on disk: one JSON file per record, predictions beside them, variants as folders under their stage key."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from leanwatt.errors import StoreError
from leanwatt.journal import spent
from leanwatt.measurement import Measurement
from leanwatt.record import SCHEMA_VERSION, Record


class Store:
    """A study's folder: `records/`, `predictions/`, `variants/`, `journals/`; every file is renamed into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variants = folder / "variants"
        self._records = folder / "records"
        self._predictions = folder / "predictions"
        self._journals = folder / "journals"
        self._known: dict[str, tuple[int, Record]] = {}
        """What was read before, and when it had been written: a study asks for all records after each trial."""
        try:
            for each in (self.variants, self._records, self._predictions, self._journals):
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot be written ({error.strerror}). Choose another folder with --out."
            ) from error

    def __contains__(self, record_id: str) -> bool:
        return (self._records / f"{record_id}.json").exists()

    def add(self, record: Record, rows: Sequence[Mapping[str, Any]] = ()) -> Record:
        """Keep a record and its predictions; returns it with the place of the predictions. Raises StoreError."""
        from dataclasses import replace

        if rows:
            name = f"{record.id}.parquet"
            self._write(self._predictions / name, lambda path: _frame(rows).to_parquet(path, index=False))
            record = replace(record, predictions=f"predictions/{name}")
        text = json.dumps(asdict(record), indent=1)
        self._write(self._records / f"{record.id}.json", lambda path: path.write_text(text, encoding="utf-8"))
        return record

    def get(self, record_id: str) -> Record:
        """One record. Raises StoreError where it is not there or cannot be read."""
        return self._read_once(f"{record_id}.json")

    def records(self) -> list[Record]:
        """All records, in a fixed order. Raises StoreError for one that cannot be read."""
        names = (name for name in os.listdir(self._records) if name.endswith(".json"))
        return [self._read_once(name) for name in sorted(names)]

    def rows(self, record: Record) -> list[dict[str, Any]]:
        """The predictions of a record: one row per task and example; empty where there are none."""
        if record.predictions is None:
            return []
        import pandas

        frame = pandas.read_parquet(self.folder / record.predictions)
        return frame.to_dict("records")  # type: ignore[return-value]

    def journal(self, record_id: str) -> Path:
        """A new place for a job to write down what it spends; to be removed once its record is kept."""
        return self._journals / f"{record_id}.{uuid4().hex[:8]}.jsonl"

    def interrupted(self) -> list[Measurement]:
        """What jobs spent that never came to a record, because they were stopped from outside; or run right now."""
        return [each for path in sorted(self._journals.glob("*.jsonl")) for each in spent(path)]

    @cached_property
    def _adapter(self) -> Any:
        from pydantic import TypeAdapter

        return TypeAdapter(Record)

    def _read_once(self, name: str) -> Record:
        """By text, not by Path, which takes several times as long: a study asks a million times."""
        path = f"{self._records}/{name}"
        try:
            written = os.stat(path).st_mtime_ns
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}).") from error
        known = self._known.get(name)
        if known is None or known[0] != written:
            known = self._known[name] = (written, self._read(Path(path)))
        return known[1]

    def _read(self, path: Path) -> Record:
        from pydantic import ValidationError

        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or not isinstance(data.get("schema", 0), int):
                raise ValueError("no mapping with a schema number")
            if data.get("schema", 0) > SCHEMA_VERSION:
                raise StoreError(f"{path}: was written by a newer version (schema {data['schema']}). Update leanwatt.")
            return self._adapter.validate_python(data)  # type: ignore[no-any-return]
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}).") from error
        except (ValueError, ValidationError) as error:
            raise StoreError(f"{path}: is not a record ({error}). Move it away to go on without it.") from error

    @staticmethod
    def _write(target: Path, write: Any) -> None:
        """Write beside the target, then rename: a reader never meets half a file."""
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            write(draft)
            draft.replace(target)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StoreError(f"{target}: cannot be written ({error.strerror}). What was finished is safe.") from error


def _frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    import pandas

    return pandas.DataFrame(list(rows))


def file_name(label: str) -> str:
    """A label as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-")
