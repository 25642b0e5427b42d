"""What a report says of where a saving comes from: pairs that differ in one thing, and the way from the reference."""

from collections.abc import Iterable, Sequence

from leanwatt.ranking import Apart, Axis, Ranking
from leanwatt.section import Grid, Section
from leanwatt.verdict import number, percent, short_names, some_percent

WAY = "From the reference to each variant"
"""A title."""
_PAIRS = (
    "Pairs of variants that differ in one thing only. `cost afterwards`: of a ticket, in percent of before, "
    "paired within each round, with its 95 % interval; below 100 % saves."
)
_ABOUT = (
    "The reference is turned into each variant, axis by axis from left to right; `all` is the product of its row. "
    "Below 100 % saves. `engine` holds the precision that it computes in. `with`: nothing was weighed that differs in "
    "this alone, so it is told together with the other. In another order the same product would be shared out a "
    "little differently."
)
_LENGTH = (
    "`output length`: what the reference would spend if it wrote as many tokens as the variant, over what it spends. "
    "So the other columns are at equal length: a model that answers in fewer words spends less for that alone."
)
_NO_LENGTH = (
    "How many tokens are written is in these figures: with `phases: true` in the protocol it would be told apart."
)


def taken_apart(ranking: Ranking) -> Iterable[Section]:
    """In order; a section without rows says nothing."""
    yield _pairs(ranking)
    yield _way(ranking)


def _pairs(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = ("what changed", "from", "to", "cost afterwards", "variant")
    rows = tuple((f.axis, f.before, f.after, percent(f.ratio), names[f.label]) for f in ranking.factors)
    return Section("The saving taken apart", (_PAIRS,), Grid(head, rows))


def _way(ranking: Ranking) -> Section:
    names = short_names(ranking)
    axes = list(dict.fromkeys(axis for axis in _ORDER for each in ranking.apart if axis in _axes(each)))
    rows = tuple(
        (names[each.label], *_cells(each, axes), some_percent(each.whole), _tokens(ranking, each.label))
        for each in ranking.apart
    )
    length = _LENGTH if "output length" in axes else _NO_LENGTH
    head = ("variant", *axes, "all", "tokens out")
    return Section(WAY, (_ABOUT, length), Grid(head, rows))


_ORDER: tuple[Axis, ...] = ("training", "engine", "batch", "precision", "pruning", "output length")


def _axes(apart: Apart) -> set[Axis]:
    return {axis for part in apart.parts for axis in part.axes}


def _cells(apart: Apart, axes: Sequence[Axis]) -> list[str]:
    """A dash where the variant is as the reference is."""
    said = {axis: f"with {part.axes[-1]}" for part in apart.parts for axis in part.axes}
    said |= {part.axes[-1]: some_percent(part.factor) for part in apart.parts}
    return [said.get(axis, "-") for axis in axes]


def _tokens(ranking: Ranking, label: str) -> str:
    spent = ranking.entry(label).spending
    return "-" if spent is None else number(spent.tokens_out)
