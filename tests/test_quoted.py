"""Quoted tickets: only on request, and those on which winner and reference differ most."""

import csv
from pathlib import Path

from invented import Truth, world

from leanwatt.quoted import quoted
from leanwatt.store import Store
from leanwatt.study import Study


def test_the_tickets_on_which_the_two_differ_most(tmp_path: Path) -> None:
    invented = world(gptq=Truth(cost=0.5, right=0.89))
    table = invented.ranking()
    assert table.sweet_spot is not None and table.sweet_spot.label != table.reference
    store = Store(tmp_path)
    for record in invented.records():
        store.add(record, invented.rows.get(record.predictions or "", ()))
    with (tmp_path / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "cause"])
        for number in range(invented.examples):
            words = "".join(chr(97 + int(digit)) + " " for digit in f"{number * 7919:08d}")
            writer.writerow([number, f"alarm {words}", ("power", "link")[number % 2]])
    data = {"path": str(tmp_path / "tickets.csv"), "near_duplicate": None, "id": "id"}
    study = Study.parse(
        {**invented.settings, "name": "x", "tasks": [{"root_cause": {"data": data, "text": "text", "label": "cause"}}]}
    )
    [section] = quoted(study, table, store, 4)
    assert section.title == "Examples: root_cause"
    assert section.grid is not None and len(section.grid.rows) == 4
    for row in section.grid.rows:
        assert row[1].startswith("alarm ")
        assert row[3] != row[4], "the two differ"
    assert "mind who reads this" in section.text[0]
