"""Tickets quoted in a report, only where somebody asks for them: tickets hold personal data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leanwatt import catalog
from leanwatt.ranking import Ranking
from leanwatt.record import Record
from leanwatt.section import Grid, Section
from leanwatt.store import Store
from leanwatt.study import Study
from leanwatt.verdict import short_names

Row = Mapping[str, Any]


def quoted(study: Study, ranking: Ranking, store: Store, count: int) -> list[Section]:
    """By task, up to `count` validation tickets on which the recommended variant and the reference differ most.

    Where the reference itself is recommended, the cheaper variant whose quality is closest stands in.
    """
    chosen = _beside_reference(ranking)
    if chosen is None:
        return [Section("Examples", (_NONE,))]
    records = store.records()
    mine, other = (_rows(store, records, label) for label in (chosen, ranking.reference))
    names = short_names(ranking)
    head = ("ticket", "text", "right answer", names[ranking.reference], names[chosen])
    who = f"{names[chosen]} and the reference, {names[ranking.reference]}"
    found = []
    for choice in study.tasks:
        texts = {
            e.id: e.question.prompt.body for e in catalog.build(choice).examples(0) if hasattr(e.question, "prompt")
        }
        apart = {key: abs(_score(mine[key]) - _score(other[key])) for key in mine.keys() & other.keys()}
        shared = [key for key, far in apart.items() if far and key[0] == choice.name and key[1] in texts]
        shared.sort(key=lambda key: (-apart[key], key))
        rows = tuple(
            (key[1], texts[key[1]], _right(mine[key]), _said(other[key]), _said(mine[key])) for key in shared[:count]
        )
        text = f"Where {who}, differ most, on validation. These are tickets as they were written: mind who reads this."
        nothing = f"Nothing is quoted: {who}, are equally right on every validation ticket that can be shown."
        found.append(
            Section(f"Examples: {choice.name}", (text if rows else nothing,), Grid(head, rows) if rows else None)
        )
    return found


_NONE = "Nothing is quoted: no finished variant is known to take less than the reference, and to be held beside it."


def _beside_reference(ranking: Ranking) -> str | None:
    """The recommended one; else, of those that took less than the reference, the one with the closest quality."""
    spot = ranking.sweet_spot
    if spot is not None and spot.label != ranking.reference:
        return spot.label
    cheaper = [e for e in ranking.entries if e.quality is not None and e.to_reference and e.to_reference.value < 1]
    return max(cheaper, key=lambda entry: entry.quality or 0.0).label if cheaper else None


def _rows(store: Store, records: Sequence[Record], label: str) -> dict[tuple[str, str], Row]:
    """Task and example -> graded row, of the first seed and fold."""
    graded: Iterable[Record] = (
        r for r in records if r.job == "grade" and r.status == "done" and r.trial.label == label
    )
    first = min(graded, key=lambda r: (r.trial.variant.seed, r.trial.variant.fold), default=None)
    return {} if first is None else {(row["task"], str(row["id"])): row for row in store.rows(first)}


def _score(row: Row) -> float:
    """How right an answer is: the row's own score, or right and wrong."""
    return float(row["rouge_l"]) if _is_given(row, "rouge_l") else float(bool(row.get("correct")))


def _right(row: Row) -> str:
    return str(row["reference"] if _is_given(row, "reference") else row.get("target", ""))


def _said(row: Row) -> str:
    return str(row["hypothesis"] if _is_given(row, "hypothesis") else row.get("chosen", ""))


def _is_given(row: Row, name: str) -> bool:
    """A table of several tasks has empty cells where a column belongs to another one."""
    return row.get(name) is not None and row[name] == row[name]
