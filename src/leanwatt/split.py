"""Which rows train, validate and test: groups of equal, nearly equal and belonging rows, dealt out without a leak."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from leanwatt.data import SPLIT_WORDS, Columns, Table, read
from leanwatt.errors import DataError, StudyError
from leanwatt.near import Forest, near_pairs
from leanwatt.question import Example, Likelihood, Split
from leanwatt.source import Source, moment

if TYPE_CHECKING:
    import numpy

ORDER: tuple[Split, ...] = ("train", "validation", "test")

NUMBER = re.compile(r"(?<![\w-])\d[\d:.,/tz-]*(?![\w-])")
"""A number, date or time that stands free; the digits of a name (`a28`, `SITE-23`, `R3`) are part of the name."""

GIANT_SHARE = 0.2
"""A cluster of nearly equal texts that holds more than this share of the rows is a template, not a duplicate."""


@dataclass(frozen=True)
class Grouping:
    """Which rows belong together, and why."""

    names: tuple[str, ...]
    """Group of each row: the value of the group column, or the id of the first row of the group."""
    duplicates: int
    """Rows whose normalised text stands in an earlier row."""
    near_duplicates: int
    """Rows whose text is not equal, but nearly equal, to that of another row."""
    largest_alike: int
    """Rows in the largest cluster of equal or nearly equal texts."""


@dataclass(frozen=True)
class Assignment:
    """The split of each row of a table, in one fold."""

    splits: tuple[Split | None, ...]
    """None for bad rows and for those left out."""
    left_out: int
    """Split by date: older rows that are left out because a later split holds their group."""
    leaking: int
    """Published split: groups that stand on both sides. They are reported, and the split is honoured."""


@dataclass(frozen=True)
class Item:
    """A usable row, as a task needs it."""

    id: str
    group: str
    split: Split
    text: str
    target: str
    """Empty for a task that asks for no answer."""
    slots: Mapping[str, str]
    """By column; empty where unknown."""


def items(source: Source, columns: Columns, fold: int = 0) -> tuple[Item, ...]:
    """All usable rows of one fold, in the order of the file. Raises DataError and StudyError."""
    table = read(source, columns)
    grouping = groups(table)
    found = []
    for row, group, split in zip(table.rows, grouping.names, assign(table, fold).splits, strict=True):
        if split is None:
            continue
        slots = {name: row.cells.get(name, "") for name in columns.slots}
        target = row.cells[columns.target] if columns.target else ""
        found.append(Item(table.row_id(row), group, split, table.text(row), target, slots))
    return tuple(found)


def normalise(text: str) -> str:
    """What two tickets that differ only in case, space and free-standing numbers (clock times, counts) share."""
    return " ".join(NUMBER.sub("0", text.casefold()).split())


@lru_cache(maxsize=8)
def groups(table: Table) -> Grouping:
    """Join rows of equal text, nearly equal text, and equal group value. Raises DataError on a giant cluster."""
    texts = [normalise(table.text(row)) or f"\0{row.number}" for row in table.rows]
    first: dict[str, int] = {}
    alike = Forest(len(texts))
    for place, text in enumerate(texts):
        alike.join(first.setdefault(text, place), place)
    duplicates = len(texts) - len(first)
    largest_equal = alike.largest()
    distinct = tuple(first)
    pairs = near_pairs(distinct, table.source.near_duplicate)
    for one, other in pairs:
        alike.join(first[distinct[one]], first[distinct[other]])
    largest_alike = alike.largest()
    _refuse_giant(table, largest_equal, largest_alike)
    near = {distinct[place] for pair in pairs for place in pair}
    return Grouping(
        names=_names(table, alike),
        duplicates=duplicates,
        near_duplicates=sum(text in near for text in texts),
        largest_alike=largest_alike,
    )


def assign(table: Table, fold: int = 0) -> Assignment:
    """The split of each row. Deterministic from the file and the source. Raises DataError for an empty split."""
    if not 0 <= fold < table.source.folds:
        raise StudyError(f"data: fold {fold} was asked for; `folds: {table.source.folds}` gives 0 to its last.")
    names = groups(table).names
    if table.source.split:
        found = _published(table, names)
    elif table.source.time:
        found = _by_date(table, names)
    else:
        found = Assignment(_dealt(table, names, fold), 0, 0)
    usable = tuple(split if row.fault is None else None for row, split in zip(table.rows, found.splits, strict=True))
    _refuse_empty(table, usable)
    return Assignment(usable, found.left_out, found.leaking)


def refuse_crossed(tasks: Mapping[str, Sequence[Example]]) -> None:
    """Raise StudyError if a text that trains one task validates or tests another: one model learns them all."""
    held = {
        name: {normalise(_body(example)) for example in examples if example.split != "train"}
        for name, examples in tasks.items()
    }
    for name, examples in tasks.items():
        for example in examples:
            text = normalise(_body(example)) if example.split == "train" else None
            crossed = next((other for other in tasks if other != name and text in held[other]), None)
            if crossed:
                raise StudyError(
                    f"tasks: a text of {name} (row {example.id}) is in its training split, and in {crossed} it is held "
                    "out. Give both tasks the same `data` settings and `text`, or two files without common tickets."
                )


def deal(
    members: Sequence[Sequence[int]],
    classes: Sequence[str],
    shares: Sequence[float],
    generator: "numpy.random.Generator",
) -> list[int]:
    """Deal groups into parts so that each part gets its share of every class; gives the part of each group.

    Large groups first, each into the part where it raises the chi-square distance from the wanted counts least (the
    rule of scikit-learn's StratifiedGroupKFold, for parts of any size). `classes` holds the class of each row.
    """
    import numpy as np

    names = {name: place for place, name in enumerate(dict.fromkeys(classes))}
    counts = np.zeros((len(members), len(names)))
    for place, rows in enumerate(members):
        for row in rows:
            counts[place, names[classes[row]]] += 1
    wanted = np.outer(shares, counts.sum(axis=0))
    there = np.zeros_like(wanted)
    order = generator.permutation(len(members))
    order = order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]
    parts = [0] * len(members)
    for place in order:
        group = counts[place]
        rise = ((2 * (there - wanted) + group) * group / np.maximum(wanted, 1e-9)).sum(axis=1)
        parts[place] = int(rise.argmin())
        there[parts[place]] += group
    return parts


def _names(table: Table, alike: Forest) -> tuple[str, ...]:
    """Join equal group values to what is alike already, and name each group."""
    column, first = table.source.group, dict[str, int]()
    for place, row in enumerate(table.rows):
        if column and (value := row.cells.get(column)):
            alike.join(first.setdefault(value, place), place)
    heads = [table.rows[alike.root(place)] for place in range(len(table.rows))]
    own = column or table.source.id
    return tuple((own and head.cells.get(own)) or f"row-{head.number}" for head in heads)


def _refuse_giant(table: Table, equal: int, alike: int) -> None:
    limit = max(20, GIANT_SHARE * len(table.rows))
    if alike > limit >= equal:
        raise DataError(
            f"{table.source.path}: {alike} of {len(table.rows)} rows are nearly equal to one another (near_duplicate: "
            f"{table.source.near_duplicate}), so they would all land in one split. If they follow a template without "
            "being copies, raise near_duplicate (0.95), or set it to null so that only equal texts stay together."
        )


def _rows_of(names: Iterable[str], chosen: Iterable[int]) -> dict[str, list[int]]:
    """The chosen rows of each group, in order."""
    keep, found = set(chosen), defaultdict(list)
    for place, name in enumerate(names):
        if place in keep:
            found[name].append(place)
    return dict(found)


def _classes(table: Table) -> list[str]:
    column = table.source.stratify
    return [row.cells.get(column, "") if column else "" for row in table.rows]


def _pick(table: Table, members: Mapping[str, Sequence[int]], count: float, stream: int) -> set[int]:
    """About `count` rows, by whole groups."""
    import numpy as np

    total = sum(map(len, members.values()))
    share = min(0.5, count / max(1, total))
    generator = np.random.default_rng([table.source.seed, stream])
    parts = deal(list(members.values()), _classes(table), [1 - share, share], generator)
    return {row for rows, part in zip(members.values(), parts, strict=True) if part == 1 for row in rows}


def _dealt(table: Table, names: Sequence[str], fold: int) -> tuple[Split, ...]:
    """Test part by shares or folds, then validation from the rest."""
    import numpy as np

    source, size = table.source, len(names)
    members = _rows_of(names, range(size))
    shares = [1 / source.folds] * source.folds if source.folds > 1 else [source.test, 1 - source.test]
    parts = deal(list(members.values()), _classes(table), shares, np.random.default_rng([source.seed, 0]))
    test = {row for rows, part in zip(members.values(), parts, strict=True) if part == fold for row in rows}
    rest = _rows_of(names, set(range(size)) - test)
    validation = _pick(table, rest, source.validation * size, fold + 1)
    return tuple("test" if row in test else "validation" if row in validation else "train" for row in range(size))


def _published(table: Table, names: Sequence[str]) -> Assignment:
    """As the column says; without published validation rows, a share of the training groups."""
    words = [row.cells.get(table.source.split or "", "").lower() for row in table.rows]
    splits: list[Split | None] = [SPLIT_WORDS.get(word) for word in words]
    if "validation" not in splits:
        _draw_validation(table, names, splits)
    sides = defaultdict(set)
    for name, split in zip(names, splits, strict=True):
        if split:
            sides[name].add(split)
    return Assignment(tuple(splits), 0, sum(len(found) > 1 for found in sides.values()))


def _by_date(table: Table, names: Sequence[str]) -> Assignment:
    """By date; of a group that spans a border only the newest side stays, so that training holds the past alone."""
    places = _dated(table)
    newest: dict[str, int] = {}
    for name, place in zip(names, places, strict=True):
        newest[name] = max(newest.get(name, 0), place or 0)
    kept = [
        ORDER[place] if place is not None and place == newest[name] else None
        for name, place in zip(names, places, strict=True)
    ]
    left_out = sum(place is not None and split is None for place, split in zip(places, kept, strict=True))
    if table.source.validation_by == "group":
        _draw_validation(table, names, kept)
    return Assignment(tuple(kept), left_out, 0)


def _dated(table: Table) -> list[int | None]:
    """Place in ORDER of each row by its date alone."""
    source = table.source
    times = [moment(row.cells.get(source.time or "", "")) for row in table.rows]
    stamps = [time.timestamp() if time else None for time in times]
    known = sorted(stamp for stamp in stamps if stamp is not None)
    test_from = _border(source.test_from, known, source.test)
    older = [stamp for stamp in known if stamp < test_from]
    if source.validation_by == "group":
        return [None if stamp is None else 2 * (stamp >= test_from) for stamp in stamps]
    validation_from = _border(source.validation_from, older, source.validation * len(known) / max(1, len(older)))
    return [None if stamp is None else (stamp >= validation_from) + (stamp >= test_from) for stamp in stamps]


def _draw_validation(table: Table, names: Sequence[str], splits: list[Split | None]) -> None:
    """Turn a share of the training groups into the validation split, in place."""
    train = [place for place, split in enumerate(splits) if split == "train"]
    for place in _pick(table, _rows_of(names, train), table.source.validation * len(names), 1):
        splits[place] = "validation"


def _border(given: str | None, stamps: Sequence[float], share: float) -> float:
    """The first second of the newer side: the date given, or the one that leaves `share` of the rows above it."""
    found = moment(given) if given else None
    if found:
        return found.timestamp()
    return stamps[int(len(stamps) * max(0.0, 1 - share))] if stamps else float("inf")


def _refuse_empty(table: Table, splits: Sequence[Split | None]) -> None:
    counts = Counter(splits)
    for split in ORDER:
        if not counts[split]:
            held = ", ".join(f"{name} {counts[name]}" for name in ORDER)
            raise DataError(
                f"{table.source.path}: no row lands in the {split} split ({held}). Give more rows or groups, "
                "other shares, other dates or a published split with training and test rows."
            )


def _body(example: Example) -> str:
    question = example.question
    return question.text if isinstance(question, Likelihood) else question.prompt.body
