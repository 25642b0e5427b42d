"""Simulated tickets with a free question about each: python make_data.py OUT.csv [COUNT].

Three tasks read the same file, each with text of its own, so the split is made once, on the tickets, and written into
the file: no ticket trains one task and tests another.
"""

import csv
import sys
import tempfile
from pathlib import Path

from leanwatt.data import Columns
from leanwatt.simulate import simulate, write
from leanwatt.source import Source
from leanwatt.split import items

QUESTIONS = (
    ("What has failed?", "cause"),
    ("Which equipment is it?", "equipment"),
    ("Where is it?", "place"),
    ("What should be done?", "action"),
)
"""Asked in turn; the answer is a column that the text of the ticket leads to."""


def splits(rows: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Split and group of each ticket by its id, as `leanwatt` deals them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tickets.csv")
        write(rows, path)
        source = Source(str(path), id="id", validation=0.15, test=0.34, stratify="cause")
        found = items(source, Columns(("description",), "cause", closed=True))
    return {item.id: (item.split, item.group) for item in found}


def asked(place: int, row: dict[str, str]) -> dict[str, str]:
    """The question of one ticket, the next one where its answer is unknown."""
    turn = QUESTIONS[place % len(QUESTIONS) :] + QUESTIONS[: place % len(QUESTIONS)]
    question, column = next((question, column) for question, column in turn if row[column])
    return {"question": question, "answer": row[column]}


def main(out: Path, count: int = 9000) -> None:
    """Simulate, split, ask, write."""
    rows = simulate(count, seed=0)
    where = splits(rows)
    made = [
        {**row, **asked(place, row), "split": where[row["id"]][0], "belongs_to": where[row["id"]][1]}
        for place, row in enumerate(rows)
    ]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
    print(f"{len(made)} tickets: {out}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
