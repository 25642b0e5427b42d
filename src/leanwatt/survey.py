"""What a data set holds, before anything runs: counts, likely leaks, and the smallest loss that it can detect."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from leanwatt.data import Columns, Table, read
from leanwatt.question import Split
from leanwatt.source import Source
from leanwatt.split import ORDER, Grouping, Item, assign, groups, items

LEAK_ACCURACY = 0.95
"""A single field that predicts the label better than this is flagged."""

DISAGREEMENT = 0.10
"""Assumed share of tickets that one of two variants gets right and the other wrong."""

DEVIATION = 0.15
"""Assumed standard deviation of the difference of two variants' ROUGE-L on one ticket."""


@dataclass(frozen=True)
class Suspect:
    """A field that predicts the label by itself."""

    column: str
    accuracy: float
    """Of looking the field's value up, cross-validated over groups."""
    chance: float
    """Of always naming the most frequent label."""
    read: bool
    """The task gives it to the model."""


@dataclass(frozen=True)
class Summary:
    """One task's data in one fold."""

    rows: int
    """Usable rows."""
    skipped: Mapping[str, int]
    """Bad rows left out, by kind of fault."""
    splits: Mapping[Split, int]
    classes: Mapping[str, Mapping[Split, int]]
    """Rows of each class by split; empty for a task whose answer is a text."""
    unseen: Mapping[Split, int]
    """Rows whose class no training row has: every answer to them is wrong."""
    empty_cells: Mapping[str, int]
    """By column of the file, where there are any."""
    groups: int
    duplicates: int
    near_duplicates: int
    largest_alike: int
    """Rows in the largest cluster of equal or nearly equal texts."""
    near_duplicate: float | None
    """The overlap that counts as nearly equal; None: only equal texts were looked for."""
    left_out: int
    """Split by date: older rows left out because a later split holds their group."""
    leaking: int
    """Published split: groups that stand in more than one split."""
    words: Mapping[str, int]
    """Words of the tickets: `median`, `p95`, `longest`."""
    suspects: tuple[Suspect, ...]
    detectable: Mapping[Split, float]
    """Smallest loss of quality that the validation and test splits can detect, see `detectable_loss`; empty for a task
    without answers."""

    def lines(self) -> list[str]:
        """The summary for people, one fact a line; warnings begin with `Warning`."""
        return [*self._facts(), *self._warnings()]

    def _facts(self) -> list[str]:
        alike = "not looked for" if self.near_duplicate is None else str(self.near_duplicates)
        loss = ", ".join(f"{split} {value:.3f}" for split, value in self.detectable.items())
        found = [
            f"{self.rows} rows in {self.groups} groups: {_listed(self.splits)}",
            f"Equal texts {self.duplicates}, nearly equal {alike}, largest cluster {self.largest_alike} rows",
            f"Words per ticket: {_listed(self.words)}",
        ]
        if self.detectable:
            found.append(f"Smallest loss that can be detected (one-sided 95 %, power 80 %): {loss}")
        found += [f"Class '{name}': {_listed(counts)}" for name, counts in self.classes.items()]
        return found + ([f"Empty cells: {_listed(self.empty_cells)}"] if self.empty_cells else [])

    def _warnings(self) -> list[str]:
        found = [f"Warning: {count} rows skipped: {kind}" for kind, count in self.skipped.items()]
        found += [
            f"Warning: {n} {split} rows have a class that no training row has" for split, n in self.unseen.items()
        ]
        if self.left_out:
            found.append(f"Warning: {self.left_out} older rows left out: a later split holds nearly the same text")
        if self.leaking:
            found.append(f"Warning: {self.leaking} groups stand in more than one part of the published split")
        for suspect in self.suspects:
            use = "the model reads it" if suspect.read else "the model does not read it"
            found.append(
                f"Warning: '{suspect.column}' alone predicts the label at {suspect.accuracy:.3f} ({use}); was it known "
                "when the ticket was opened?"
            )
        return found


@lru_cache(maxsize=16)
def summary(source: Source, columns: Columns, fold: int = 0) -> Summary:
    """Sum up a task's data. Raises DataError and StudyError as reading them does."""
    table = read(source, columns)
    grouping, assignment, found = groups(table), assign(table, fold), items(source, columns, fold)
    return Summary(
        rows=len(found),
        skipped=dict(table.skipped),
        splits={split: sum(item.split == split for item in found) for split in ORDER},
        classes=_classes(found) if columns.closed else {},
        unseen=_unseen(found) if columns.closed else {},
        empty_cells=_empty_cells(table),
        groups=len({item.group for item in found}),
        duplicates=grouping.duplicates,
        near_duplicates=grouping.near_duplicates,
        largest_alike=grouping.largest_alike,
        near_duplicate=source.near_duplicate,
        left_out=assignment.left_out,
        leaking=assignment.leaking,
        words=_words(found),
        suspects=tuple(suspects(table, grouping)) if columns.closed else (),
        detectable=_detectable(found, columns),
    )


def detectable_loss(group_sizes: Sequence[int], *, closed: bool) -> float:
    """The smallest true loss that a paired, one-sided 95 % test finds with power 80 %.

    k = z(0.95) + z(0.80) = 2.486; n is Kish's effective number of tickets, (sum m)^2 / sum m^2 over the group sizes m,
    as if the tickets of one group said the same. For accuracy with a share d of tickets on which two variants disagree
    (0.10 is assumed) the difference has the variance d - loss^2, so loss = k * sqrt(d / (n + k^2)). For ROUGE-L with
    standard deviation s of the difference (0.15 is assumed) loss = k * s / sqrt(n).
    """
    factor = NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.80)
    effective = float(sum(group_sizes)) ** 2 / sum(size**2 for size in group_sizes)
    if closed:
        return float(factor * (DISAGREEMENT / (effective + factor**2)) ** 0.5)
    return float(factor * DEVIATION / effective**0.5)


def suspects(table: Table, grouping: Grouping) -> list[Suspect]:
    """Fields whose value, looked up in other groups, gives the label at above 0.95 and with less than half the error
    of always naming the most frequent label. A field that is never repeated across groups cannot be flagged; one that
    is declared in `known_later` need not be.
    """  # noqa: D205
    source = table.source
    own = (table.columns.target, source.id, source.group, source.split, *source.known_later)
    places = [place for place, row in enumerate(table.rows) if not row.fault]
    labels = [table.rows[place].cells[table.columns.target or ""] for place in places]
    chance = max(Counter(labels).values()) / len(labels)
    # Parts by a hash of the group: the same on every machine, and a group is never on both sides.
    parts = [zlib.crc32(grouping.names[place].encode()) % 5 for place in places]
    found = []
    for column in table.header:
        if column in own:
            continue
        values = [table.rows[place].cells.get(column, "") for place in places]
        accuracy = _lookup_accuracy(values, labels, parts)
        if accuracy > LEAK_ACCURACY and 1 - accuracy < (1 - chance) / 2:
            found.append(Suspect(column, accuracy, chance, column in table.columns.text))
    return found


def _lookup_accuracy(values: Sequence[str], labels: Sequence[str], parts: Sequence[int]) -> float:
    """Share of rows whose label is the most frequent one for their value in the other parts."""
    everywhere: dict[str, Counter[str]] = defaultdict(Counter)
    inside: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for value, label, part in zip(values, labels, parts, strict=True):
        everywhere[value][label] += 1
        inside[part, value][label] += 1
    fallback = Counter(labels).most_common(1)[0][0]
    best = {
        key: ((everywhere[key[1]] - counts).most_common(1) or [(fallback, 0)])[0][0] for key, counts in inside.items()
    }
    right = sum(best[part, value] == label for value, label, part in zip(values, labels, parts, strict=True))
    return right / len(labels)


def _classes(found: Sequence[Item]) -> dict[str, dict[Split, int]]:
    counts = Counter((item.target, item.split) for item in found)
    return {name: {split: counts[name, split] for split in ORDER} for name in sorted({item.target for item in found})}


def _unseen(found: Sequence[Item]) -> dict[Split, int]:
    known = {item.target for item in found if item.split == "train"}
    return dict(Counter(item.split for item in found if item.target not in known))


def _empty_cells(table: Table) -> dict[str, int]:
    counts = {name: sum(not row.cells.get(name) for row in table.rows) for name in table.header}
    return {name: count for name, count in counts.items() if count}


def _words(found: Sequence[Item]) -> dict[str, int]:
    lengths = sorted(len(item.text.split()) for item in found)
    return {"median": lengths[len(lengths) // 2], "p95": lengths[int(len(lengths) * 0.95)], "longest": lengths[-1]}


def _detectable(found: Sequence[Item], columns: Columns) -> dict[Split, float]:
    """None for a task without answers: how two variants' likelihoods of a text differ is not known beforehand."""
    if columns.target is None:
        return {}
    splits: tuple[Split, ...] = ("validation", "test")
    sizes = {split: Counter(item.group for item in found if item.split == split) for split in splits}
    is_share = columns.closed or columns.right_or_wrong
    return {split: detectable_loss(list(counts.values()), closed=is_share) for split, counts in sizes.items()}


def _listed(counts: Mapping[str, int] | Mapping[Split, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
