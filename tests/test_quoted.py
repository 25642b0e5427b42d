"""Quoted tickets: only on request, and those on which winner and reference differ most."""

import csv
from pathlib import Path

from invented import world

from leanwatt.quoted import quoted
from leanwatt.store import Store
from leanwatt.study import Study


def test_the_tickets_on_which_the_two_differ_most(tmp_path: Path) -> None:
    invented = world()
    table = invented.ranking()
    assert table.sweet_spot is not None and table.sweet_spot.label != table.reference
    store = Store(tmp_path)
    for record in invented.records():
        store.add(record, invented.rows.get(record.predictions or "", ()))
    with (tmp_path / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "cause"])
        for number in range(invented.examples):
            writer.writerow([f"alarm number {number} at a site of its own {number * 7}", ("power", "link")[number % 2]])
    data = {"path": str(tmp_path / "tickets.csv"), "near_duplicate": None}
    study = Study.parse(
        {**invented.settings, "name": "x", "tasks": [{"root_cause": {"data": data, "text": "text", "label": "cause"}}]}
    )
    [section] = quoted(study, table, store, 4)
    assert section.title == "Examples: root_cause"
    assert section.grid is not None and len(section.grid.rows) == 4
    for row in section.grid.rows:
        assert row[1].startswith("alarm number")
        assert row[3] != row[4], "the two differ"
    assert "mind who reads this" in section.text[0]
