"""Turn the published bank queries into texts with an intent: python prepare.py SOURCE_FOLDER OUT.csv."""

import csv
import sys
from pathlib import Path

FILES = {"train": "train.csv", "test": "test.csv"}
COLUMNS = ("id", "text", "intent", "split", "held_out")


def query(split: str, number: int, row: dict[str, str]) -> dict[str, str]:
    """One query; the intent in words, since a model reads it."""
    return {
        "id": f"{split}-{number}",
        "text": " ".join(row["text"].split()),
        "intent": row["category"].replace("_", " ").strip().rstrip("?"),
        "split": split,
        "held_out": str(int(split == "test")),
    }


def main(source: Path, out: Path) -> None:
    """Read the published files, write the queries."""
    found = []
    for split, name in FILES.items():
        with (source / name).open(encoding="utf-8", newline="") as file:
            found += [query(split, number, row) for number, row in enumerate(csv.DictReader(file), start=1)]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print(f"{len(found)} queries, {len({row['intent'] for row in found})} intents: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"Usage: python prepare.py SOURCE_FOLDER OUT.csv\nSOURCE_FOLDER holds {' and '.join(FILES.values())}.")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
