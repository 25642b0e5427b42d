"""Turn the published microwave failures into tickets: python prepare.py SOURCE_FOLDER OUT.csv."""

import csv
import sys
from pathlib import Path

PUBLISHED = "dataset_TNSM_06995_v2.csv"
CAUSES = ("indoor unit", "outdoor unit", "cable", "power")
"""By the label in the file, 0 to 3."""
WINDOW_SECONDS = 900
COLUMNS = ("id", "alarms", "cause", "alarm_set")


def ticket(number: int, row: dict[str, str]) -> dict[str, str]:
    """One 15-minute window: `a28 a56 a128 brief` says that alarms 28 and 56 stood, and that 128 came and went."""
    seconds = {int(name.removeprefix("alarm_")): int(value) for name, value in row.items() if name != "label"}
    active = {alarm: value for alarm, value in sorted(seconds.items()) if value > 0}
    return {
        "id": f"window-{number}",
        "alarms": " ".join(words(alarm, value) for alarm, value in active.items()) or "no alarm",
        "cause": CAUSES[int(row["label"])],
        "alarm_set": "-".join(map(str, active)) or "none",
    }


def words(alarm: int, seconds: int) -> str:
    """An alarm that stood for the whole window is its name alone."""
    if seconds >= WINDOW_SECONDS:
        return f"a{alarm}"
    return f"a{alarm} {'long' if seconds >= WINDOW_SECONDS / 2 else 'brief'}"


def main(source: Path, out: Path) -> None:
    """Read the published file, write the tickets."""
    with (source / PUBLISHED).open(encoding="utf-8", newline="") as file:
        tickets = [ticket(number, row) for number, row in enumerate(csv.DictReader(file), start=1)]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(tickets)
    print(f"{len(tickets)} tickets, {len({row['alarm_set'] for row in tickets})} alarm sets: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"Usage: python prepare.py SOURCE_FOLDER OUT.csv\nSOURCE_FOLDER holds {PUBLISHED}.")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
