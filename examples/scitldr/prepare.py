"""Turn the published abstracts and their short summaries into rows: python prepare.py SOURCE_FOLDER OUT.csv."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

FILES = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
MOST = 5
"""Summaries of one abstract that are kept; the first is the one that training learns."""
COLUMNS = ("id", "abstract", *(f"summary_{n}" for n in range(1, MOST + 1)), "split", "held_out")


def paper(split: str, number: int, row: dict[str, Any]) -> dict[str, str]:
    """One abstract, one sentence a line, with its summaries; a missing one is empty."""
    said = [" ".join(each.split()) for each in row["target"]][:MOST]
    return {
        "id": f"{split}-{number}",
        "abstract": "\n".join(" ".join(each.split()) for each in row["source"]),
        **{f"summary_{n}": text for n, text in enumerate([*said, *[""] * (MOST - len(said))], start=1)},
        "split": split,
        "held_out": str(int(split != "train")),
    }


def main(source: Path, out: Path) -> None:
    """Read the published files, write the rows."""
    found = []
    for split, name in FILES.items():
        with (source / name).open(encoding="utf-8") as file:
            found += [paper(split, number, json.loads(line)) for number, line in enumerate(file, start=1)]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print(f"{len(found)} abstracts: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"Usage: python prepare.py SOURCE_FOLDER OUT.csv\nSOURCE_FOLDER holds {', '.join(FILES.values())}.")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
