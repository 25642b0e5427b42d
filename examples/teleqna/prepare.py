"""Turn published telecom questions into rows with options: python prepare.py teleqna|faults SOURCE_FOLDER OUT.csv.

`teleqna` reads TeleQnA.zip, which is encrypted by its authors, and needs `pip install pyzipper`.
"""

import ast
import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPTIONS = 6
COLUMNS = ("id", "question", *(f"option_{n}" for n in range(1, OPTIONS + 1)), "right", "said", "split", "held_out")
PASSWORD = b"teleqnadataset"  # Published in the authors' README: it keeps crawlers out, not people.


def teleqna(source: Path) -> Iterator[dict[str, Any]]:
    """Question, options, the number of the right one as a list, the explanation."""
    import pyzipper

    with pyzipper.AESZipFile(source / "TeleQnA.zip") as packed:
        found = json.loads(packed.read("TeleQnA.txt", pwd=PASSWORD))
    for entry in found.values():
        options = [entry[f"option {n}"] for n in range(1, OPTIONS + 1) if entry.get(f"option {n}")]
        number = int(str(entry["answer"]).split(":", maxsplit=1)[0].removeprefix("option").strip())
        yield {"question": entry["question"], "options": options, "right": [number], "said": entry["explanation"]}


def faults(source: Path) -> Iterator[dict[str, Any]]:
    """The 5G faults; a row without a question, or whose options are all right, is none, and is left out."""
    with (source / "5G_Faults_Multi_Correct_MCQ.csv").open(encoding="utf-8", newline="") as file:
        next(file)  # A blank row stands above the header.
        for row in csv.DictReader(file):
            options = [row[f"Option {n}"] for n in range(1, OPTIONS + 1)]
            right = sorted(int(name.removeprefix("Option ")) for name in ast.literal_eval(row["Answer"]))
            if row["Question"].strip() and len(right) < len(options):
                yield {"question": row["Question"], "options": options, "right": right, "said": row["Explanation"]}


def split_of(question: str) -> str:
    """By a hash of the question, so that equal questions are on one side: 70 % train, 10 % validation, 20 % test."""
    place = int(hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()[:8], 16) % 10
    return "train" if place < 7 else "validation" if place < 8 else "test"


def line(number: int, found: dict[str, Any]) -> dict[str, str]:
    """One row; a missing option is an empty cell."""
    texts = [" ".join(str(each).split()) for each in found["options"]]
    split = split_of(found["question"])
    return {
        "id": f"q{number}",
        "question": " ".join(found["question"].split()),
        **{f"option_{n}": text for n, text in enumerate([*texts, *[""] * (OPTIONS - len(texts))], start=1)},
        "right": json.dumps(found["right"]),
        "said": " ".join(str(found["said"]).split()),
        "split": split,
        "held_out": str(int(split != "train")),
    }


def main(which: str, source: Path, out: Path) -> None:
    """Read the published file, write the rows."""
    found = {"teleqna": teleqna, "faults": faults}[which](source)
    rows = [line(number, each) for number, each in enumerate(found, start=1)]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} questions: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("teleqna", "faults"):
        sys.exit("Usage: python prepare.py teleqna|faults SOURCE_FOLDER OUT.csv")
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
