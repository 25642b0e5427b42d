"""What a report says of how near each engine came to the reference engine, before it was graded (agreement.py)."""

from collections.abc import Iterable, Sequence

from leanwatt.agreement import SAME, TOLERANCE, is_whole
from leanwatt.ranking import Entry, Ranking
from leanwatt.section import Grid, Section, or_dash
from leanwatt.verdict import short_names

PREFILL, DECODE, SHARE, CHECKED = "logit_error_prefill", "logit_error_decode", "option_agreement", "option_examples"
"""Facts of a record."""


def drift(ranking: Ranking) -> Section:
    """A line per variant that was checked; no rows where none was."""
    names, found = short_names(ranking), [entry for entry in ranking.entries if PREFILL in entry.facts]
    head = ("variant", "weights", "logit error, prefill", "decode", "same option", "examples", "which means")
    rows = tuple(
        (
            names[entry.label],
            _weights(entry),
            or_dash(entry.facts[PREFILL]),
            or_dash(entry.facts.get(DECODE)),
            _percent(entry.facts.get(SHARE)),
            str(entry.facts.get(CHECKED, "-")),
            _meaning(entry),
        )
        for entry in found
    )
    first = " Of the first seed and fold." if len(ranking.seeds) > 1 or ranking.folds > 1 else ""
    return Section("How near the engines are to plain transformers", (_ABOUT + first, *_told(found)), Grid(head, rows))


_ABOUT = (
    "Before a variant is graded, its engine and plain transformers in fp32 are asked the same, on the same folder. So "
    "this is what the engine changes; what pruning and quantization change stands under Quality. `logit error`: size "
    f"of the difference over the size of the logits; above {TOLERANCE:g} a trial fails. `same option`: share of the "
    f"scored examples that were checked. At 16 bits and more, fewer than {SAME:.0%} fail the trial, near ties left "
    "out; at fewer bits the share is told, and what it does to the answers is graded."
)


def _told(found: Sequence[Entry]) -> Iterable[str]:
    """The worst of each kind, in a sentence."""
    for words, is_kind in (("At 16 bits and more", True), ("At fewer bits", False)):
        kind = [entry for entry in found if is_whole(entry.facts) == is_kind]
        if not kind:
            continue
        error = max(float(entry.facts[each]) for entry in kind for each in (PREFILL, DECODE) if each in entry.facts)
        shares = [float(entry.facts[SHARE]) for entry in kind if SHARE in entry.facts]
        same = f"the same option on {_percent(min(shares))} or more, " if shares else ""
        yield f"{words} ({_variants(len(kind))}): {same}logits off by {or_dash(error)} or less."


def _variants(count: int) -> str:
    return "1 variant" if count == 1 else f"{count} variants"


def _weights(entry: Entry) -> str:
    """What they are multiplied as: `int4 weights, bfloat16`, or the dtype."""
    again = ", quantized again by the engine" if entry.facts.get("requantized") is True else ""
    return f"{entry.facts.get('kernel') or entry.facts.get('weight_dtype') or 'unknown'}{again}"


def _meaning(entry: Entry) -> str:
    share = entry.facts.get(SHARE)
    if share is None:
        return "logits agree; no task scores options"
    if share >= SAME:
        return "agrees"
    return "as near as 16 bits must be" if is_whole(entry.facts) else "drifts"


def _percent(share: object) -> str:
    """Never 100 % for less than all."""
    if not isinstance(share, int | float):
        return "-"
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"
