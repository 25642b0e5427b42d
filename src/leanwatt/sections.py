"""What a report holds, in order: headings, sentences and tables, whatever they are written as."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from leanwatt.bill import Amount
from leanwatt.ranking import Entry, Figure, Making, Ranking, Segment
from leanwatt.verdict import factor_sentence, number, percent, provenance_sentence, sentence, short_names, word

Chart = Literal["front", "stages", "weights"]


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    text: tuple[str, ...] = ()
    grid: Grid | None = None
    items: tuple[str, ...] = ()
    chart: Chart | None = None
    code: str = ""


def sections(ranking: Ranking, command: str) -> list[Section]:
    """The whole report, answer first. Empty parts are left out."""
    found = [
        Section("The answer", (sentence(ranking), provenance_sentence(ranking))),
        Section("Before you rely on it", items=ranking.caveats),
        _table(ranking),
        _quality(ranking),
        Section("Cost against quality", (_FRONT,), chart="front") if ranking.leader else None,
        _serving(ranking),
        _bills(ranking),
        _making(ranking),
        _weights(ranking),
        _prices(ranking),
        Section("The saving taken apart", (_FACTORS,), items=tuple(_factors(ranking))),
        *_classes(ranking),
        _test(ranking),
        _notes(ranking),
        _machine(ranking),
        Section("Do it again", code=command),
    ]
    return [section for section in found if section is not None and _holds_something(section)]


_FRONT = (
    "Each point is one variant on one task: left is cheaper, up is better. Bars are 95 % intervals: of cost over "
    "rounds, of quality over resampled groups of examples. Numbers are those of the table above; the star is the "
    "recommended one, the diamond the reference, squares are no language models. No point is both cheaper and better "
    "than one on the line."
)
_FACTORS = "Pairs of variants that differ in one thing only; the cost of a ticket, paired within each round."
_R = (
    "R = w x phi + (1 - w) x rho, with phi = J_reference / (J_reference + J_own), which is 0.5 for the reference "
    "whoever else is in the table, and rho the primary metric; per task, then the mean."
)


def _holds_something(section: Section) -> bool:
    return (
        bool(section.grid and section.grid.rows)
        or bool(section.items or section.chart or section.code)
        or bool(section.text and section.grid is None and section.title != "The saving taken apart")
    )


def figure(value: Figure | None, digits: int = 3) -> str:
    """`0.900 (0.876 to 0.925)`, or a dash where it is unknown."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:.{digits}g}"
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)


def _table(ranking: Ranking) -> Section:
    names, unit = short_names(ranking), ranking.scale.symbol
    head = ("variant", "#", f"{unit} per ticket", "of the reference", "R", "phi", "quality", "saves", "tie", "front")
    rows = tuple(
        (
            names[entry.label],
            str(place),
            figure(entry.cost),
            percent(entry.to_reference) if entry.to_reference and entry.label != ranking.reference else "-",
            _r(entry),
            _or_dash(entry.phi),
            word(entry),
            entry.saves or "-",
            "yes" if entry.is_tied else "",
            "yes" if entry.is_on_front else "",
        )
        for place, entry in enumerate(ranking.entries, 1)
    )
    text = (
        f"Cheapest first. A ticket is one answer to every task. `quality` compares with the reference "
        f"({names[ranking.reference]}) at a margin of {ranking.margin:g}. `tie`: cost not distinguishable from the "
        f"cheapest. `front`: no other is both cheaper and better. `R` weighs energy and quality, at w = "
        f"{ranking.weight:g}, as explained below.",
    )
    return Section("All variants", text, Grid(head, rows))


def _r(entry: Entry) -> str:
    if entry.r is None:
        return "-"
    return figure(Figure(entry.r, entry.r_low, entry.r_high))


def _quality(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = (
        "variant",
        "task",
        "metric",
        "validation",
        "less the reference",
        "bounds",
        "quality",
        "examples",
        "would tell",
    )
    rows = tuple(
        (names[entry.label], task, result.metric, figure(result.quality), *_loss(entry, task))
        for entry in ranking.entries
        for task, result in entry.tasks.items()
    )
    text = (
        "Paired with the reference, example by example; bounds are one-sided at 95 %. `would tell`: examples at which "
        "the difference seen would probably be told (80 % power).",
    )
    return Section("Quality", text, Grid(head, rows))


def _loss(entry: Entry, task: str) -> tuple[str, ...]:
    loss, examples = entry.tasks[task].loss, str(entry.tasks[task].quality.repeats)
    if loss is None:
        return "-", "-", entry.word if entry.word == "reference" else "-", examples, ""
    bounds = f"{loss.low:+.3f} to {loss.high:+.3f}"
    needed = str(loss.examples_needed) if loss.examples_needed else ""
    return f"{loss.difference:+.3f}", bounds, loss.word, str(loss.examples), needed


def _serving(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = ("variant", "J per ticket", "band", "net of idle", "CPU-seconds", "seconds", "tokens out", "MB served")
    rows = tuple(
        (
            names[entry.label],
            figure(s.joules),
            f"{number(s.joules_lower)} to {number(s.joules_upper)}" if s.joules_lower and s.joules_upper else "-",
            _or_dash(s.net_joules),
            figure(s.cpu_seconds),
            figure(s.seconds),
            number(s.tokens_out),
            _megabytes(entry.weight_bytes),
        )
        for entry in ranking.entries
        if (s := entry.spending) is not None
    )
    text = "Gross joules; `band` is what the sensor or the estimate itself may be off by, which rounds do not narrow."
    return Section("What a ticket takes", (text,), Grid(head, rows))


def _bills(ranking: Ranking) -> Section | None:
    if ranking.terms is None:
        return None
    names, currency = short_names(ranking), ranking.terms.currency or "money"
    head = ("variant", "kWh", currency, "g CO2e", "from")
    rows = tuple(
        (names[entry.label], *map(_amount, (bill.kwh, bill.money, bill.grams)), bill.provenance)
        for entry in ranking.entries
        if (bill := entry.bill) is not None
    )
    text = (
        f"Derived from the joules: {ranking.terms.words()}. The band is that of the sensor or the estimate; price, "
        "grid and PUE are taken as they stand."
    )
    return Section("What a thousand tickets cost", (text,), Grid(head, rows))


def _amount(amount: Amount | None) -> str:
    return "-" if amount is None else figure(Figure(amount.value, amount.lower, amount.upper))


def _megabytes(size: int | None) -> str:
    return "-" if size is None else number(size / 1e6)


def _making(ranking: Ranking) -> Section:
    names, day = short_names(ranking), f"{ranking.scale.symbol} per day"
    head = ("variant", "CPU-seconds", "of it shared", "joules", "tickets to pay back", day, "MB on disk")
    rows = tuple(
        (
            names[entry.label],
            *_spent(entry.making),
            _or_dash(entry.payback_tickets),
            _or_dash(entry.cost_per_day),
            _megabytes(entry.bytes_on_disk),
        )
        for entry in ranking.entries
        if entry.making is not None
    )
    total = ranking.totals
    text = (
        "Shared work is charged to each variant that rests on it. `tickets to pay back`: what making it took beyond "
        "the reference, over what it saves per ticket.",
        f"The whole study took {number(total.cpu_seconds)} CPU-seconds and {_or_dash(total.joules)} J "
        f"({total.provenance}; unknown for {number(total.unknown_seconds)} s of it), shared work counted once.",
    )
    return Section("What making it took", text, Grid(head, rows), chart="stages" if rows else None)


def _spent(making: Making) -> tuple[str, ...]:
    joules = "-" if making.joules is None else f"{number(making.joules)} ({making.provenance})"
    return number(making.cpu_seconds), number(making.reused_cpu_seconds), joules


def _weights(ranking: Ranking) -> Section | None:
    if not ranking.winner_by_weight:
        return None
    least = ranking.least_form_winner
    text = [f"{_R} The winner at every w is exact, since R is linear in w."]
    if least is not None:
        text.append(
            f"In the form phi = J_least / J_own the winner at w = {ranking.weight:g} is {short_names(ranking)[least]}."
        )
    grid = Grid(("w from", "to", "highest R"), tuple(_segments(ranking, ranking.winner_by_weight)))
    return Section("If energy mattered more, or less", tuple(text), grid, chart="weights")


def _segments(ranking: Ranking, segments: Sequence[Segment]) -> Iterable[tuple[str, ...]]:
    names = short_names(ranking)
    for segment in segments:
        end = "any more" if segment.end is None else number(segment.end)
        yield number(segment.begin), end, names[segment.label]


def _prices(ranking: Ranking) -> Section | None:
    if not ranking.winner_by_price:
        return None
    unit = "kWh" if ranking.scale.unit == "joules" else "CPU-hours"
    text = (
        f"A wrong answer costs money too. With its price written in {unit} (money over the price of one), the cheapest "
        "in all, energy and mistakes together, is:"
    )
    grid = Grid(
        (f"{unit} per wrong answer, from", "to", "cheapest"), tuple(_segments(ranking, ranking.winner_by_price))
    )
    return Section("What a wrong answer is worth", (text,), grid)


def _factors(ranking: Ranking) -> Iterable[str]:
    names = short_names(ranking)
    return (f"{factor_sentence(factor)} ({names[factor.label]})" for factor in ranking.factors)


def _classes(ranking: Ranking) -> Iterable[Section]:
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
            yield Section(
                f"F1 by class: {task}", (), Grid(("class", "examples", *(names[e.label] for e in entries)), rows)
            )


def _test(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = ("variant", "task", "test", "less the reference", "bounds", "quality")
    rows = []
    for entry in ranking.entries:
        for task, value in (entry.confirmation.figures if entry.confirmation else {}).items():
            loss = entry.confirmation.losses.get(task) if entry.confirmation else None
            told = (
                (f"{loss.difference:+.3f}", f"{loss.low:+.3f} to {loss.high:+.3f}", loss.word) if loss else ("-",) * 3
            )
            rows.append((names[entry.label], task, figure(value), *told))
    text = "Corrected for how many candidates were tried (Holm); the words here are those of each one alone."
    return Section("On the test split", (text,), Grid(head, tuple(rows)))


def _notes(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = ("variant", "full name", "what really ran", "note")
    rows = tuple(
        (names[e.label], e.label, ", ".join(f"{key} {e.facts[key]}" for key in _RAN if key in e.facts) or "-", e.note)
        for e in ranking.entries
    )
    return Section("What really ran", (), Grid(head, rows))


_RAN = ("weight_dtype", "compute_dtype", "kernel")


def _machine(ranking: Ranking) -> Section:
    machine = ranking.machine
    versions = machine.get("versions") or {}
    rows = [(str(key), str(machine[key])) for key in _MACHINE if machine.get(key) not in (None, [], "")]
    rows += [(str(name), str(version)) for name, version in versions.items()]
    return Section("Machine", (), Grid(("what", "value"), tuple(rows)))


_MACHINE = ("id", "cpu_model", "cpus", "usable_cpus", "memory_bytes", "gpus", "gpu_driver", "os", "python", "utc")
