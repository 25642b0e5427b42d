"""Every metric of two lines of a finished study on the test split, paired: the difference and its 95 % interval.

    python benchmarks/paired.py runs/cloud-incidents "base > full(...) | openvino | batch 8" nearest

The bootstrap resamples groups; both lines get the same resamples. Prints a Markdown table.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas

from leanwatt import metrics
from leanwatt.store import Store


def main() -> None:
    """Read the predictions of both and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished study")
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--job", choices=["grade", "confirm"], default="confirm", help="validation or test")
    asked = parser.parse_args()
    first, second = (rows(Store(asked.folder), label, asked.job) for label in (asked.first, asked.second))
    print("| task | metric | first | second | first - second (95 %) |\n|---|---|--:|--:|--:|")
    for task in sorted(set(first.task) & set(second.task)):
        for line in compared(first[first.task == task], second[second.task == task]):
            print(f"| {task} | {line} |")


def rows(store: Store, label: str, job: str) -> Any:
    """Predictions of all folds of a line, as one table."""
    found = [r for r in store.records() if r.job == job and r.trial.label == label and r.status == "done"]
    if not found:
        raise SystemExit(f"No finished `{job}` record of '{label}' in {store.folder}.")
    return pandas.concat([pandas.DataFrame(store.rows(record)) for record in found])


def compared(first: Any, second: Any) -> list[str]:
    """One line per metric that both have, on the tickets that both answered."""
    both = sorted(set(first.id) & set(second.id))
    mine, other = (each.drop_duplicates("id").set_index("id").loc[both].reset_index() for each in (first, second))
    counts = metrics.resamples(list(mine.group), times=2000, seed=0)
    lines = []
    for name in metrics.names(mine):
        if name in ("truncated", "unmatched") or name not in metrics.names(other):
            continue
        gap = metrics.interval(metrics.bootstrap(name, mine, counts) - metrics.bootstrap(name, other, counts))
        ours, theirs = metrics.value(name, mine), metrics.value(name, other)
        lines.append(f"{name} | {ours:.3f} | {theirs:.3f} | {ours - theirs:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
    return lines


if __name__ == "__main__":
    main()
