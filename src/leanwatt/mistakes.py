"""What a report says of wrong answers: on which classes they fall, and how many are left if a model may abstain."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from leanwatt.ranking import Ranking
from leanwatt.section import Grid, Section
from leanwatt.verdict import short_names

MOST_LOSERS: Final = 5
"""Classes named, of those that lose."""
Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By variant, then by class: the row of TaskResult.classes."""


def by_class(ranking: Ranking) -> Iterable[Section]:
    """F1 of every class, a column per variant."""
    names = short_names(ranking)
    for task in dict.fromkeys(task for entry in ranking.entries for task in entry.tasks):
        entries = [entry for entry in ranking.entries if task in entry.tasks and entry.tasks[task].classes]
        scores = {e.label: {str(row["class"]): row for row in e.tasks[task].classes} for e in entries}
        support = {name: row["support"] for rows in scores.values() for name, row in rows.items()}
        rows = tuple(
            (
                name,
                str(support[name]),
                *(f"{scores[e.label][name]['f1']:.2f}" if name in scores[e.label] else "-" for e in entries),
            )
            for name in sorted(support)
        )
        if rows:
            head = ("class", "examples", *(names[e.label] for e in entries))
            yield Section(f"F1 by class: {task}", _losers(ranking, scores), Grid(head, rows))


def errors_by_class(ranking: Ranking) -> Iterable[Section]:
    """What the reference and the recommended variant get wrong, class by class, and what they say instead."""
    names, spot = short_names(ranking), ranking.sweet_spot
    labels = dict.fromkeys([ranking.reference, *([spot.label] if spot else [])])
    for task in dict.fromkeys(task for entry in ranking.entries for task in entry.tasks):
        found = {
            label: ranking.entry(label).tasks[task].classes for label in labels if task in ranking.entry(label).tasks
        }
        scores = {label: {str(row["class"]): row for row in rows} for label, rows in found.items() if rows}
        head = (
            "class",
            "examples",
            *(said for e in scores for said in (f"errors: {names[e]}", f"most often: {names[e]}")),
        )
        support = {name: row["support"] for rows in scores.values() for name, row in rows.items()}
        rows = tuple(
            (name, str(support[name]), *(cell for each in scores.values() for cell in _errors(name, each.get(name))))
            for name in sorted(support)
        )
        if rows:
            yield Section(f"Errors by class: {task}", (_ERRORS,), Grid(head, rows))


_ERRORS = (
    "Validation examples that were answered wrongly, by their right answer, for the reference and the recommended "
    "variant; and the confusion that comes most often: right answer -> what was said (how often)."
)


def _errors(name: str, row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    said = f"{name} -> {row['said'] or 'no class'} ({row['said_times']})" if row["errors"] else "-"
    return str(row["errors"]), said


def _losers(ranking: Ranking, scores: Scores) -> tuple[str, ...]:
    """The classes on which a variant falls furthest behind the reference: the recommended one, else each model."""
    spot = ranking.sweet_spot
    if spot is None or ranking.reference not in scores:
        return ()
    models = [e.label for e in ranking.entries if e.label in scores and not e.is_baseline]
    told = [spot.label] if spot.label != ranking.reference else [e for e in models if e != ranking.reference]
    return tuple(_loser(ranking, scores, label) for label in told if label in scores)


def _loser(ranking: Ranking, scores: Scores, label: str) -> str:
    mine, other, name = scores[label], scores[ranking.reference], short_names(ranking)[label]
    lost = sorted((mine[each]["f1"] - other[each]["f1"], each) for each in mine.keys() & other.keys())
    worst = [f"{each} ({difference:+.2f})" for difference, each in lost[:MOST_LOSERS] if difference < 0]
    if not worst:
        return f"{name} loses on no class."
    return f"Where {name} loses most against the reference: {', '.join(worst)}."


def abstaining(ranking: Ranking) -> Iterable[Section]:
    """What would be wrong if only the most confident answers were used."""
    names = short_names(ranking)
    for task in dict.fromkeys(task for entry in ranking.entries for task in entry.tasks):
        held = [(entry, entry.tasks[task].risk) for entry in ranking.entries if task in entry.tasks]
        shares = list(next((risk for _, risk in held if risk), {}))
        rows = tuple((names[e.label], *(f"{risk[share]:.1%}" for share in shares)) for e, risk in held if risk)
        text = (
            "Share of wrong answers when only the most confident share is answered, and the rest passed on to a "
            "person. Read on validation; a threshold that is put to work wants a look at fresh tickets."
        )
        head = ("variant", *(f"{float(share):.0%} answered" for share in shares))
        if rows:
            yield Section(f"If it may abstain: {task}", (text,), Grid(head, rows), chart="risks", task=task)
