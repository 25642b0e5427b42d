"""Quoted tickets: only on request, and those on which winner and reference differ most."""

import csv
from pathlib import Path

from invented import Truth, World, world

from leanwatt.quoted import quoted
from leanwatt.section import Section
from leanwatt.store import Store
from leanwatt.study import Study


def quotes(invented: World, folder: Path, count: int = 4) -> list[Section]:
    """Of a study's table, with its rows in a store and its tickets in a file."""
    table = invented.ranking()
    store = Store(folder)
    for record in invented.records():
        store.add(record, invented.rows.get(record.predictions or "", ()))
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "cause"])
        for number in range(invented.examples):
            words = "".join(chr(97 + int(digit)) + " " for digit in f"{number * 7919:08d}")
            writer.writerow([number, f"alarm {words}", ("power", "link")[number % 2]])
    data = {"path": str(folder / "tickets.csv"), "near_duplicate": None, "id": "id"}
    study = Study.parse(
        {**invented.settings, "name": "x", "tasks": [{"root_cause": {"data": data, "text": "text", "label": "cause"}}]}
    )
    return quoted(study, table, store, count)


def test_the_tickets_on_which_the_two_differ_most(tmp_path: Path) -> None:
    invented = world(gptq=Truth(cost=0.5, right=0.89))
    spot = invented.ranking().sweet_spot
    assert spot is not None and spot.label == invented.label("gptq")
    [section] = quotes(invented, tmp_path)
    assert section.title == "Examples: root_cause"
    assert section.grid is not None and len(section.grid.rows) == 4
    assert section.grid.head[3:] == ("full(precision=fp32)", "gptq(bits=4)")
    for row in section.grid.rows:
        assert row[1].startswith("alarm ")
        assert row[3] != row[4], "the two differ"
    assert "mind who reads this" in section.text[0]


def test_where_the_reference_is_recommended_the_closest_cheaper_one_is_quoted(tmp_path: Path) -> None:
    """`wanda` loses more than `gptq`, `wanda+gptq` is the cheapest and loses most, TF-IDF does one task only."""
    invented = world(gptq=Truth(cost=0.9, right=0.8))
    spot = invented.ranking().sweet_spot
    assert spot is not None and spot.label == invented.label("plain")
    [section] = quotes(invented, tmp_path)
    assert section.grid is not None and len(section.grid.rows) == 4
    assert section.grid.head[3:] == ("full(precision=fp32)", "gptq(bits=4)")
    assert section.text[0].startswith("Where gptq(bits=4) and the reference, full(precision=fp32), differ most")
    assert all(row[3] == row[2] != row[4] for row in section.grid.rows), "right, and wrong"


def test_where_nothing_can_be_quoted_the_report_says_why(tmp_path: Path) -> None:
    dear = world(**{name: Truth(cost=1.5) for name in ("gptq", "wanda", "wanda+gptq")}, tfidf=Truth(cost=2.0))
    [section] = quotes(dear, tmp_path)
    assert section.grid is None and section.text[0].startswith(
        "Nothing is quoted: no finished variant is known to take less"
    )
    alike = tmp_path / "alike"
    alike.mkdir()
    [section] = quotes(world(), alike)
    assert section.grid is None and "are equally right on every validation ticket" in section.text[0]
