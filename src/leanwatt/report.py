"""A ranking as files: `report.md`, `report.html`, `table.csv`, `ranking.json`; no ticket is quoted unasked."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leanwatt.bill import Amount
from leanwatt.errors import StoreError
from leanwatt.page import page
from leanwatt.ranking import Entry, Figure, Ranking
from leanwatt.section import Grid, Section
from leanwatt.sections import sections
from leanwatt.verdict import sentence, text_table

__all__ = ["report", "sentence", "text_table"]


def report(ranking: Ranking, folder: Path, command: str = "", besides: Sequence[Section] = ()) -> dict[str, Path]:
    """Write all four; returns their paths by file name. Raises StoreError.

    `command` is what repeats the study, where that is known; `besides` are sections that somebody asked for, such as
    quoted tickets.
    """
    parts = [*sections(ranking, command), *besides]
    texts = {
        "report.md": markdown(ranking, parts),
        "report.html": page(ranking, parts),
        "table.csv": table_csv(ranking),
        "ranking.json": json.dumps(asdict(ranking), indent=1, allow_nan=False) + "\n",
    }
    paths = {name: folder / name for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            paths[name].write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be written ({error.strerror}). Choose another folder with --out."
        ) from error
    return paths


def markdown(ranking: Ranking, parts: list[Section]) -> str:
    """The report for people who read files."""
    said = [f"# Leanwatt: {_plain(ranking.study)}"]
    for part in parts:
        said.append(f"## {_plain(part.title)}")
        said += [_plain(text) for text in part.text]
        if part.facts:
            said.append("\n".join(f"- **{_plain(f.value)}** {_plain(f.about)}: {_plain(f.note)}" for f in part.facts))
        if part.items:
            said.append("\n".join(f"- {_plain(item)}" for item in part.items))
        if part.grid is not None:
            said.append(_table(part.grid))
        if part.code:
            said.append(f"```sh\n{part.code}\n```")
    return "\n\n".join(said) + "\n"


def _plain(text: str) -> str:
    """One line in which no HTML and no table can begin."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _table(grid: Grid) -> str:
    lines = [grid.head, tuple("---" for _ in grid.head), *grid.rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def table_csv(ranking: Ranking) -> str:
    """One line per variant; an empty cell is unknown."""
    rows = [_row(ranking, entry) for entry in ranking.entries]
    head = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(ranking: Ranking, entry: Entry) -> dict[str, Any]:
    spending, making, ratio = entry.spending, entry.making, entry.to_reference
    row: dict[str, Any] = {
        "variant": entry.label,
        "status": entry.status,
        "why": entry.why,
        "quality_verdict": entry.word,
        "saves": entry.saves,
        "on_front": entry.is_on_front,
        "tied_with_cheapest": entry.is_tied,
        **_figure("cpu_seconds_per_ticket", spending.cpu_seconds if spending else None),
        **_figure("joules_per_ticket", spending.joules if spending else None),
        "joules_provenance": ranking.scale.provenance,
        "cost_of_reference": ratio.value if ratio else None,
        "cost_of_reference_low": ratio.low if ratio else None,
        "cost_of_reference_high": ratio.high if ratio else None,
        "phi": entry.phi,
        "r": entry.r,
        "r_least": entry.r_least,
        "making_cpu_seconds": making.cpu_seconds if making else None,
        "making_joules": making.joules if making else None,
        "payback_tickets": entry.payback_tickets,
        "bytes_on_disk": entry.bytes_on_disk,
    }
    if ranking.terms is not None:
        for name in ("kwh", "money", "grams"):
            row |= _amount(f"{_BILLED[name]}_per_1000_tickets", getattr(entry.bill, name, None))
    for task, result in entry.tasks.items():
        for name, value in result.figures.items():
            row |= _figure(f"{task}.{name}", value)
    return row


_BILLED = {"kwh": "kwh", "money": "money", "grams": "gco2e"}


def _amount(name: str, amount: Amount | None) -> Mapping[str, float | None]:
    value, lower, upper = (amount.value, amount.lower, amount.upper) if amount else (None, None, None)
    return {name: value, f"{name}_lower": lower, f"{name}_upper": upper}


def _figure(name: str, figure: Figure | None) -> Mapping[str, float | None]:
    low, high = (figure.low, figure.high) if figure else (None, None)
    return {name: figure.value if figure else None, f"{name}_low": low, f"{name}_high": high}
