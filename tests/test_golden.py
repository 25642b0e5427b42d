"""Records outlive the code that wrote them: one of every past schema must still be read."""

import json
from pathlib import Path

import pytest

from leanwatt.errors import StoreError
from leanwatt.record import SCHEMA_VERSION
from leanwatt.store import Store

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("schema", range(1, SCHEMA_VERSION + 1))
def test_old_records_are_read(schema: int, tmp_path: Path) -> None:
    text = (GOLDEN / f"record-schema-{schema}.json").read_text(encoding="utf-8")
    store = Store(tmp_path)
    (tmp_path / "records" / "old.json").write_text(text, encoding="utf-8")
    record = store.get("old")
    assert record.schema == schema
    assert record.status == "done"
    assert record.measurements[0].seconds > 0
    assert record.metrics["root_cause"]["macro_f1"] > 0
    assert record.trial.variant.recipe.steps[0].room == "finetune"


def test_newer_records_are_refused_with_advice(tmp_path: Path) -> None:
    data = json.loads((GOLDEN / "record-schema-1.json").read_text(encoding="utf-8"))
    store = Store(tmp_path)
    (tmp_path / "records" / "new.json").write_text(json.dumps(data | {"schema": SCHEMA_VERSION + 1}), encoding="utf-8")
    with pytest.raises(StoreError, match="Update leanwatt"):
        store.records()
