"""Write simulated tickets for the harness task beside this file: python make_data.py FOLDER [COUNT].

Three files of one JSON document a line: train.jsonl, validation.jsonl, test.jsonl.
"""

import json
import sys
from pathlib import Path

from leanwatt.simulate import simulate

SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}


def main(folder: Path, count: int = 3000) -> None:
    """Simulate, divide in order, write."""
    rows = simulate(count, seed=3)
    begin = 0.0
    for split, share in SHARES.items():
        part = rows[round(begin * count) : round((begin + share) * count)]
        begin += share
        lines = [json.dumps({key: row[key] for key in ("id", "description", "cause")}) for row in part]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(part)} tickets")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
