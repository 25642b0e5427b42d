"""What a report says of use: what a ticket takes, a thousand cost, and a day at the study's load."""

from collections.abc import Iterable

from leanwatt.bill import Amount
from leanwatt.ranking import Entry, Figure, Ranking
from leanwatt.section import Grid, Section, figure, or_dash
from leanwatt.verdict import number, short_names


def usage(ranking: Ranking) -> Iterable[Section | None]:
    """In order; None where nothing is known."""
    yield _serving(ranking)
    yield _phases(ranking)
    yield _day(ranking)
    yield _bills(ranking)


def _serving(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = ("variant", "J per ticket", "band", "net of idle", "CPU-seconds", "seconds", "tokens out", "MB served")
    rows = tuple(
        (
            names[entry.label],
            figure(s.joules),
            f"{number(s.joules_lower)} to {number(s.joules_upper)}" if s.joules_lower and s.joules_upper else "-",
            or_dash(s.net_joules),
            figure(s.cpu_seconds),
            figure(s.seconds),
            number(s.tokens_out),
            megabytes(entry.weight_bytes),
        )
        for entry in ranking.entries
        if (s := entry.spending) is not None
    )
    text = "Gross joules; `band` is what the sensor or the estimate itself may be off by, which rounds do not narrow."
    return Section("What a ticket takes", (text,), Grid(head, rows))


def _phases(ranking: Ranking) -> Section:
    names, unit = short_names(ranking), ranking.scale.symbol
    head = ("variant", f"{unit} per prompt token", f"{unit} per new token", "prompt tokens", "new tokens")
    rows = tuple(
        (names[entry.label], figure(p.prefill), figure(p.decode), number(p.prompt_tokens), number(p.new_tokens))
        for entry in ranking.entries
        if (p := entry.phases) is not None
    )
    text = (
        "Reading the prompt and writing the answer apart, at the same fixed lengths for all: what writing takes is the "
        "difference of two windows of the same round. The ranking above is at natural stopping instead."
    )
    return Section("Prefill and decode", (text,), Grid(head, rows))


def _day(ranking: Ranking) -> Section | None:
    """Answering and what lies around it, apart."""
    tickets = ranking.load.get("tickets_per_day")
    if tickets is None:
        return None
    names, unit, known = short_names(ranking), ranking.scale.symbol, [e for e in ranking.entries if e.cost_per_day]
    around = "idle in between" if ranking.load.get("always_on") else "one reload a day"
    rows = tuple((names[entry.label], *_of_a_day(ranking, entry, float(tickets))) for entry in known)
    head = ("variant", f"{unit} per day", "answering", around, "of the reference")
    text = f"At {tickets:g} tickets a day. "
    if not ranking.load.get("always_on"):
        text += "The model is loaded once a day; with `always_on` in `load` it idles between tickets instead."
    elif ranking.scale.unit == "cpu_seconds":
        text += "CPU-seconds know nothing of what an idle machine draws: with a sensor this table would."
    else:
        text += "Between tickets the machine idles, and draws what was read before each round."
    return Section("A day at your load", (text,), Grid(head, rows))


def _of_a_day(ranking: Ranking, entry: Entry, tickets: float) -> tuple[str, ...]:
    whole, answering = entry.cost_per_day, tickets * entry.cost.value if entry.cost else None
    if whole is None or answering is None:
        return "-", "-", "-", "-"
    reference = ranking.entry(ranking.reference).cost_per_day
    share = f"{100 * whole / reference:.0f} %" if reference else "-"
    return number(whole), number(answering), number(max(0.0, whole - answering)), share


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


def megabytes(size: int | None) -> str:
    """Of a number of bytes."""
    return "-" if size is None else number(size / 1e6)
