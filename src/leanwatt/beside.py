"""Several studies or machines side by side, each ranked on its own: figures of two are never put into one ranking."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanwatt.errors import StoreError
from leanwatt.page import whole
from leanwatt.ranking import Ranking
from leanwatt.section import Grid, Section
from leanwatt.sections import FRONT, answer
from leanwatt.verdict import number, percent, sentence, short_names


def read(place: Path) -> Ranking:
    """A ranking from a folder of results, or from a `ranking.json`. Raises StoreError."""
    from pydantic import TypeAdapter, ValidationError

    path = place / "report" / "ranking.json" if place.is_dir() else place
    adapter: Any = TypeAdapter(Ranking)
    try:
        return adapter.validate_python(json.loads(path.read_text(encoding="utf-8")))  # type: ignore[no-any-return]
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}). Give the folder of a finished study, such as runs/tickets."
        ) from error
    except (ValueError, ValidationError) as error:
        raise StoreError(f"{path}: is no ranking of this version; write it anew with `leanwatt report`.") from error


def beside(places: Sequence[Path], rankings: Sequence[Ranking]) -> Grid:
    """One line per study: where it was measured and how, what it recommends, and what that saves there."""
    rows = tuple(_row(place, ranking) for place, ranking in zip(places, rankings, strict=True))
    return Grid(_HEAD, rows)


_HEAD = (
    "study",
    "machine",
    "protocol",
    "ranked by",
    "recommended",
    "verdict",
    "of the reference",
    "of the best 16-bit",
    "per ticket",
)


def _row(place: Path, ranking: Ranking) -> tuple[str, ...]:
    spot, machine = ranking.sweet_spot, ranking.machine
    where = str(machine.get("cpu_model") or "unknown CPU")
    gpus = machine.get("gpus") or []
    how = f"{ranking.scale.symbol} ({ranking.scale.provenance})" if ranking.scale.unit == "joules" else "CPU-seconds"
    found = (f"{ranking.study} ({place})", " + ".join([where, *map(str, gpus)]), ranking.protocol, how)
    if spot is None:
        return *found, "nothing yet", "-", "-", "-", "-"
    ratios = (percent(each) if each else "-" for each in (spot.to_reference, spot.to_uncompressed))
    cost = ranking.entry(spot.label).cost
    spent = f"{number(cost.value)} {ranking.scale.symbol}" if cost else "-"
    return *found, short_names(ranking)[spot.label], spot.verdict, *ratios, spent


def text(places: Sequence[Path], rankings: Sequence[Ranking]) -> str:
    """For a terminal: one block per study."""
    grid = beside(places, rankings)
    blocks = []
    for row, ranking in zip(grid.rows, rankings, strict=True):
        facts = "\n".join(f"  {name + ':':20}{cell}" for name, cell in zip(grid.head[1:], row[1:], strict=True))
        blocks.append(f"{row[0]}\n{facts}\n  {sentence(ranking)}")
    return "\n\n".join([*blocks, NEVER])


NEVER = "Each study is ranked on its own. Energy is never compared across machines, data or kinds of measurement."


def write_page(places: Sequence[Path], rankings: Sequence[Ranking], path: Path) -> Path:
    """One HTML file like a report's: the lines of all, then each study's answer and plane. Raises StoreError."""
    lead = Section("Side by side", (NEVER,), beside(places, rankings))
    chapters = [(ranking, _chapter(ranking)) for ranking in rankings]
    try:
        path.write_text(whole("Leanwatt: studies side by side", [(None, [lead]), *chapters]), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}). Choose another --page.") from error
    return path


def _chapter(ranking: Ranking) -> list[Section]:
    plane = [Section("Cost against quality", (FRONT,), chart="front")] if ranking.leader else []
    return [answer(ranking), *plane, Section("Before you rely on it", items=ranking.caveats)]
