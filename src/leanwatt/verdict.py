"""The answer in words: one sentence for a manager, and a table that fits a terminal."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from leanwatt.compare import KERNEL_ALLOWANCE, LEVEL, holm
from leanwatt.ranking import Apart, Entry, Factor, Figure, Loss, Ranking, Ratio, SweetSpot

WIDTH = 120
"""Of the table in a terminal."""
CHECKS = {
    "confirmed": "confirmed on the test split, which no choice had seen",
    "cross-validated": "cross-validated (each example served to choose in one fold and to test in another)",
    "not yet confirmed": "seen on validation only, not yet confirmed on the test split",
}


def sentence(ranking: Ranking) -> str:
    """The answer, what it rests on, and what would change it."""
    spot = ranking.sweet_spot
    if spot is None:
        return _unanswered(ranking)
    head = _nothing(ranking, spot) if spot.label == ranking.reference else _use(ranking, spot)
    beaten = list(_beaten(ranking, spot))
    if beaten:
        head = f"Among the language models: {head[0].lower()}{head[1:]}"
    said = [*beaten, head, *_ties(ranking, spot), *_pays(ranking, spot)]
    said += [*_best_model(ranking, spot), *_single_tasks(ranking)]
    if ranking.protocol != "ranked":
        said.insert(0, f"A first look ({ranking.protocol} protocol), not a ranking.")
    return " ".join(said)


def rivals(ranking: Ranking, spot: SweetSpot) -> list[tuple[Entry, Ratio]]:
    """Baselines that validation could not tell from the reference, and the test split can: non-inferior, and cheaper.

    All of them meet the test split, whatever validation says, so their number alone is corrected for. Cheapest first,
    each with its cost over the reference's.
    """
    chosen = ranking.entry(spot.label)
    plain = [e for e in ranking.entries if e.is_baseline and e.is_complete and e.confirmation and e is not chosen]
    p_values = {e.label: e.confirmation.p for e in plain if e.confirmation and e.confirmation.p is not None}
    holds = [e for e in plain if holm(p_values).get(e.label, 1.0) <= LEVEL]
    cheaper = [e for e in holds if not chosen.is_baseline and _is_cheaper(e, chosen)]
    found = [(e, e.to_reference) for e in cheaper if e.to_reference is not None]
    return sorted(found, key=lambda pair: pair[1].value)


def _beaten(ranking: Ranking, spot: SweetSpot) -> Iterable[str]:
    for entry, ratio in rivals(ranking, spot):
        scores = "; ".join(_against_reference(ranking, entry, task) for task in entry.tasks)
        yield (
            f"Use {entry.label}: on the test split it is non-inferior to the reference ({scores}) at "
            f"{percent(ratio)} of its {unit_words(ranking)} per ticket; validation alone could not tell."
        )


def unit_words(ranking: Ranking) -> str:
    """What is ranked by: `energy` or `CPU time`."""
    return "energy" if ranking.scale.unit == "joules" else "CPU time"


def _is_cheaper(entry: Entry, chosen: Entry) -> bool:
    return entry.cost is not None and chosen.cost is not None and entry.cost.value < chosen.cost.value


def _against_reference(ranking: Ranking, entry: Entry, task: str) -> str:
    own, reference = entry.confirmation, ranking.entry(ranking.reference).confirmation
    metric = entry.tasks[task].metric
    if own is None or reference is None:
        return metric
    return f"{metric} {own.figures[task].value:.3f} against {reference.figures[task].value:.3f}"


def _unanswered(ranking: Ranking) -> str:
    why = ranking.entry(ranking.reference).why
    return f"No answer: the reference {short_names(ranking)[ranking.reference]} has no result to compare with ({why})."


def _nothing(ranking: Ranking, spot: SweetSpot) -> str:
    name = short_names(ranking)[spot.label]
    if spot.verdict == "not confirmed":
        tried = len(ranking.order_of_candidates)
        return (
            f"Not confirmed: {tried} cheaper variant{'s' if tried > 1 else ''} looked good enough on validation, and "
            f"none held on the test split. Stay with the reference, {name}."
        )
    cheaper = [e for e in ranking.entries if e.saves == "yes"]
    if not cheaper:
        return f"Nothing here saves: no variant is certainly cheaper than the reference, {name}.{_rounds_hint(ranking)}"
    unsure = [e for e in cheaper if e.word == "cannot tell"]
    lost = f"{len(cheaper)} {'is' if len(cheaper) == 1 else 'are'} cheaper than the reference, {name}, but "
    more = _examples_hint(unsure) if unsure else ""
    certain = f"{lost}none of these is shown to lose at most {ranking.margin:g} of the quality."
    return f"Nothing here saves: {certain}{more}{_rounds_hint(ranking)}"


def _rounds_hint(ranking: Ranking) -> str:
    """Of the first that loses nothing, and whose cost could not be told from the reference's: what would tell."""
    for entry in ranking.entries:
        ratio = entry.to_reference
        if ratio is None or ratio.value >= 1 or entry.word != "non-inferior" or entry.saves != "cannot tell":
            continue
        said = f"{short_names(ranking)[entry.label]} loses no more than {ranking.margin:g}"
        took = f"{said} and took {percent(ratio)} of the reference's {unit_words(ranking)}"
        return f" {took}, which is not certain: {_would_tell(ratio)}."
    return ""


def _would_tell(ratio: Ratio) -> str:
    if ratio.value < 1 / (1 + ratio.allowance):
        return "more rounds on a quiet machine may tell"
    if ratio.allowance >= KERNEL_ALLOWANCE:
        return f"unlike kernels may differ by {ratio.allowance:.0%} in power, and only an energy sensor can tell"
    return "so small a difference is within what windows may be off by"


def _examples_hint(entries: Sequence[Entry]) -> str:
    needed = [loss.examples_needed for entry in entries for loss in _losses(entry) if loss.examples_needed]
    if not needed:
        return ""
    return f" For {len(entries)} of them it cannot be told; about {round_up(min(needed))} validation examples would."


def _losses(entry: Entry) -> Iterable[Loss]:
    return (result.loss for result in entry.tasks.values() if result.loss is not None)


def _use(ranking: Ranking, spot: SweetSpot) -> str:
    quality = f"On every task it is at most {ranking.margin:g} below the reference (one-sided, 95 %)"
    return f"Use {short_names(ranking)[spot.label]}: {_against(spot, ranking)}. {quality}, {CHECKS[spot.verdict]}."


def _against(spot: SweetSpot, ranking: Ranking) -> str:
    unit = unit_words(ranking)
    said = []
    if spot.to_uncompressed is not None and spot.uncompressed != ranking.reference:
        said.append(
            f"it takes {percent(spot.to_uncompressed)} of the {unit} per ticket of the best {spot.uncompressed_bits} "
            f"model{_at_batch(ranking, spot)} ({short_names(ranking)[str(spot.uncompressed)]})"
        )
    if spot.to_reference is not None:
        same = f", the best {spot.uncompressed_bits} model" if spot.uncompressed == ranking.reference else ""
        said.append(
            f"{'' if said else 'it takes '}{percent(spot.to_reference)} of the {unit} per ticket of the reference{same}"
        )
    if spot.uncompressed == spot.label:
        said.append("it is not compressed, so the saving comes from the engine and the batch")
    return "; ".join(said)


def _at_batch(ranking: Ranking, spot: SweetSpot) -> str:
    return "" if ranking.entry(spot.label).is_baseline else " at the same batch"


def percent(ratio: Ratio) -> str:
    """`48 % (46 to 51 %)`."""
    return some_percent(ratio) + (" (one round, so no interval)" if ratio.low is None else "")


def some_percent(figure: Ratio | Figure) -> str:
    """The same of a figure that may have no interval."""
    if figure.low is None or figure.high is None:
        return f"{_percent(figure.value)} %"
    return f"{_percent(figure.value)} % ({_percent(figure.low)} to {_percent(figure.high)} %)"


def _percent(share: float) -> str:
    number = 100 * share
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _ties(ranking: Ranking, spot: SweetSpot) -> Iterable[str]:
    if spot.tied:
        names = short_names(ranking)
        yield f"Not distinguishable from it in cost: {'; '.join(names[label] for label in spot.tied)}."


def _pays(ranking: Ranking, spot: SweetSpot) -> Iterable[str]:
    tickets = ranking.entry(spot.label).payback_tickets
    if spot.label != ranking.reference and tickets:
        yield f"It pays for itself after {round_up(math.ceil(tickets)):,} tickets."


def _best_model(ranking: Ranking, spot: SweetSpot) -> Iterable[str]:
    if spot.best_model is not None:
        is_reference = " (the reference)" if spot.best_model == ranking.reference else ""
        yield f"The best language model here is {short_names(ranking)[spot.best_model]}{is_reference}."


def _single_tasks(ranking: Ranking) -> Iterable[str]:
    """A baseline that does only some of the tasks, and does one of them as well for less."""
    for task, label in ranking.best_by_task.items():
        entry = ranking.entry(label)
        if entry.is_baseline and not entry.is_complete:
            yield f"For {task} alone, use {label}: it is non-inferior to the reference there, and the cheapest."


def round_up(number: int) -> int:
    """To two digits: a number of examples or of tickets is never known better."""
    size = int(10 ** max(0, len(str(number)) - 2))
    return math.ceil(number / size) * size


@dataclass(frozen=True)
class Column:
    """Of the table in a terminal."""

    title: str
    cells: Sequence[str]
    is_number: bool = True


def short_names(ranking: Ranking) -> dict[str, str]:
    """Labels without what all that were changed share; whole labels where that would mix them up."""
    models = [entry for entry in ranking.entries if not entry.is_baseline]
    parts = {entry.label: entry.label.split(" | ")[0].split(" > ") for entry in models}
    changed = [set(each) for each in parts.values() if len(each) > 1] or [set(each) for each in parts.values()]
    shared = set.intersection(*changed) if len(models) > 1 else set()
    brief = _brief({part for each in parts.values() for part in each})
    engines, batches = {entry.engine for entry in models}, {entry.batch for entry in models}
    names = {entry.label: entry.label for entry in ranking.entries}
    for entry in models:
        own = [brief[part] for part in parts[entry.label] if part not in shared]
        if len(parts[entry.label]) == 1 and max(map(len, parts.values())) > 1:
            own = [f"{parts[entry.label][0]}, untouched"]
        tail = [entry.engine] * (len(engines) > 1) + [f"batch {entry.batch}"] * (len(batches) > 1)
        names[entry.label] = " | ".join([" > ".join(own) or parts[entry.label][-1], *tail])
    return names if len(set(names.values())) == len(names) else {label: label for label in names}


def _brief(steps: Collection[str]) -> dict[str, str]:
    """Steps without the settings that stay the same while others of their method change."""
    methods: dict[str, dict[str, list[str]]] = {}
    for step in steps:
        name, _, rest = step.partition("(")
        methods.setdefault(name, {})[step] = rest.removesuffix(")").split(", ") if rest else []
    found = {}
    for name, uses in methods.items():
        same = set.intersection(*map(set, uses.values())) if len(uses) > 1 else set()
        for step, settings in uses.items():
            own = ", ".join(each for each in settings if each not in same)
            found[step] = f"{name}({own})" if own else name
    return found


def text_table(ranking: Ranking) -> str:
    """All variants, cheapest first, in at most 120 columns; a star marks the sweet spot, a `~` what ties with it."""
    from rich.cells import set_cell_size

    names, spot = short_names(ranking), ranking.sweet_spot
    columns = [
        Column("", [_mark(entry, spot) for entry in ranking.entries], is_number=False),
        Column("variant", [names[entry.label] for entry in ranking.entries], is_number=False),
        Column(f"{ranking.scale.symbol}/ticket", [_spread(entry.cost) for entry in ranking.entries]),
        Column("of ref.", [_share_of_reference(entry, ranking) for entry in ranking.entries]),
        *(Column(_title(task, ranking), _qualities(task, ranking)) for task in _tasks(ranking)),
        Column("R", [f"{entry.r:.3f}" if entry.r is not None else "-" for entry in ranking.entries]),
        Column("quality", [word(entry) for entry in ranking.entries], is_number=False),
    ]
    widths = [max(len(column.title), *map(len, column.cells), 0) for column in columns]
    widths[1] = max(12, min(widths[1], WIDTH - sum(widths) + widths[1] - 2 * (len(widths) - 1)))
    rows = [[column.title for column in columns], *zip(*(column.cells for column in columns), strict=True)]
    lines = []
    for row in rows:
        cells = [shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
        fitted = [
            cell.rjust(width) if column.is_number else set_cell_size(cell, width)
            for cell, column, width in zip(cells, columns, widths, strict=True)
        ]
        lines.append("  ".join(fitted).rstrip()[:WIDTH])
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def shortened(text: str, width: int) -> str:
    """Keeps both ends: variants differ at the end as often as at the start."""
    if len(text) <= width:
        return text
    begin = (width - 2) // 2
    return f"{text[:begin]}..{text[len(text) - (width - 2 - begin) :]}"


def _mark(entry: Entry, spot: SweetSpot | None) -> str:
    if spot is None:
        return ""
    return "*" if entry.label == spot.label else "~" if entry.label in spot.tied else ""


def _tasks(ranking: Ranking) -> list[str]:
    return list(dict.fromkeys(task for entry in ranking.entries for task in entry.tasks))


def _title(task: str, ranking: Ranking) -> str:
    metric = next(entry.tasks[task].metric for entry in ranking.entries if task in entry.tasks)
    return metric if len({e.tasks[task].metric for e in ranking.entries if task in e.tasks}) == 1 else task


def _qualities(task: str, ranking: Ranking) -> list[str]:
    return [_quality(entry.tasks[task].quality) if task in entry.tasks else "-" for entry in ranking.entries]


def _quality(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    half = f"{(figure.high - figure.low) / 2:.3f}".lstrip("0")
    return f"{figure.value:.3f}±{half}"


def _spread(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return number(figure.value)
    half = (figure.high - figure.low) / 2 / figure.value
    return f"{number(figure.value)}±{_percent(half)}%"


def number(value: float) -> str:
    """Three digits, without an exponent where people read it."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 100_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2e}"


def _share_of_reference(entry: Entry, ranking: Ranking) -> str:
    if entry.label == ranking.reference:
        return "100 %"
    return f"{_percent(entry.to_reference.value)} %" if entry.to_reference else "-"


def word(entry: Entry) -> str:
    """What is said of its quality, or of its fate."""
    if entry.status != "done":
        return entry.status
    return entry.word if entry.quality is not None else f"only {', '.join(entry.tasks)}" if entry.tasks else "-"


def factor_sentence(factor: Factor) -> str:
    """`quantize none -> gptq(bits=4): 48 % (46 to 51 %) of the cost`."""
    return f"{factor.axis}: {factor.before} -> {factor.after}: {percent(factor.ratio)} of the cost"


def apart_sentence(apart: Apart) -> str:
    """`engine 40 % x batch 50 % = 20 % of the reference's cost`."""
    parts = " x ".join(f"{' and '.join(part.axes)} {some_percent(part.factor)}" for part in apart.parts)
    return f"{parts} = {some_percent(apart.whole)} of the reference's cost"


def provenance_sentence(ranking: Ranking) -> str:
    """Where the figures come from, in words."""
    scale = ranking.scale
    words = {
        "measured": "hardware energy counters",
        "integrated": "power readings, added up over time",
        "estimated": "an estimate from CPU time and a table of processors, without any sensor",
    }
    how = words.get(scale.provenance, scale.provenance)
    if scale.unit == "joules":
        return f"Ranked by gross joules from {how} ({scale.source}), counting {', '.join(scale.devices)}."
    shown = f" Joules beside them come from {how} ({scale.source})." if scale.devices else " No joules are known."
    return f"Ranked by CPU-seconds.{shown}"
