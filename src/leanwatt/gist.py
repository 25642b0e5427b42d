"""The first screen of a report, a sentence and a few figures: what is saved, what is lost, when it pays, how sure."""

import math
from collections.abc import Iterable
from typing import Final

from leanwatt.ranking import Entry, Ranking, Ratio, SweetSpot
from leanwatt.section import Fact
from leanwatt.verdict import number, percent, rivals, round_up, short_names, unit_words

VERDICTS: Final = {
    "nothing saves": "Nothing saves",
    "not yet confirmed": "Not yet confirmed",
    "confirmed": "Confirmed on unseen tickets",
    "cross-validated": "Cross-validated",
    "not confirmed": "Not confirmed",
}
PROVEN: Final = ("confirmed", "cross-validated")
MOST_SHARE: Final = 0.9
"""Of the reference's cost: above it nobody counts in times."""
KNOWN_BY: Final = {
    "measured": "measured by hardware counters",
    "integrated": "from power readings over time",
    "estimated": "an estimate: no sensor here",
}

STAY: Final = {
    "nothing saves": "nothing here is shown to save {unit} without losing quality",
    "not confirmed": "what looked cheaper and as good did not hold on unseen tickets",
}
"""Why the reference is recommended."""


def lead(ranking: Ranking) -> str:
    """The answer in one sentence, for those who read no other; empty where there is none."""
    spot = ranking.sweet_spot
    if spot is None:
        return ""
    names, beaten = short_names(ranking), rivals(ranking, spot)
    chosen, ratio = beaten[0] if beaten else (ranking.entry(spot.label), spot.to_reference)
    first_look = "" if ranking.protocol == "ranked" else "A first look: "
    if ratio is None:
        why = STAY.get(spot.verdict, "nothing here was compared with it").format(unit=unit_words(ranking))
        return f"{first_look}Stay with the reference, {names[ranking.reference]}: {why}."
    kind = ", which is no language model" if chosen.is_baseline else ""
    proof = VERDICTS["confirmed" if beaten else spot.verdict].lower()
    pays = f"; pays for itself after {_tickets(chosen.payback_tickets)}" if chosen.payback_tickets else ""
    return (
        f"{first_look}{names[chosen.label]}{kind}: {_less(ranking, ratio)}; quality no worse by more than "
        f"{ranking.margin:g} (95 %), {proof}{pays}."
    )


def _less(ranking: Ranking, ratio: Ratio) -> str:
    """How much is saved, of what, against whom, and how that is known."""
    unit, than = unit_words(ranking), f"the reference, {short_names(ranking)[ranking.reference]}"
    known = KNOWN_BY.get(ranking.scale.provenance, ranking.scale.provenance)
    how = known if ranking.scale.unit == "joules" else "with no energy sensor to rank by"
    if ratio.value > MOST_SHARE:
        return f"{percent(ratio)} of the {unit} per ticket of {than}, {how}"
    return f"{times_less(ratio)} {unit} per ticket than {than}, {how}"


def badges(ranking: Ranking) -> tuple[tuple[str, bool], ...]:
    """How far the answer may be relied on: words for a label, and whether they are good news."""
    spot = ranking.sweet_spot
    found = [(VERDICTS[spot.verdict], spot.verdict in PROVEN) if spot else ("No answer", False)]
    if ranking.protocol != "ranked":
        found.append(("A first look, not a ranking", False))
    if ranking.scale.unit == "cpu_seconds":
        found.append(("No energy sensor: CPU time ranks", False))
    else:
        found.append((f"Energy {KNOWN_BY.get(ranking.scale.provenance, ranking.scale.provenance)}", True))
    return tuple(found)


def gist(ranking: Ranking) -> tuple[Fact, ...]:
    """What a manager reads first; nothing where there is no answer."""
    spot = ranking.sweet_spot
    if spot is None:
        return ()
    chosen = ranking.entry(spot.label)
    if spot.label == ranking.reference:
        return tuple([*_closest(ranking), *_energy(ranking, chosen)])
    return tuple([*_saved(ranking, spot), *_kept(ranking, chosen), *_paid(ranking, chosen), *_energy(ranking, chosen)])


def times_less(ratio: Ratio) -> str:
    """`2.2 times less`, to two digits; the share where that says more."""
    if ratio.value > MOST_SHARE:
        return percent(ratio)
    factor = float(f"{1 / ratio.value:.2g}")
    return f"{factor:,.0f} times less" if factor >= 10 else f"{factor:g} times less"


def _saved(ranking: Ranking, spot: SweetSpot) -> Iterable[Fact]:
    ratio = spot.to_reference
    if ratio is None:
        return
    rounds = f"{percent(ratio)} of it; {ratio.rounds} round{'s' if ratio.rounds > 1 else ''}"
    yield Fact(times_less(ratio), f"{unit_words(ranking)} per ticket than the reference", rounds)


def _kept(ranking: Ranking, chosen: Entry) -> Iterable[Fact]:
    """Each task's metric, beside the reference's."""
    reference = ranking.entry(ranking.reference)
    scores = [
        f"{task}: {result.metric} {result.quality.value:.3f} against {reference.tasks[task].quality.value:.3f}"
        for task, result in chosen.tasks.items()
        if task in reference.tasks
    ]
    if chosen.word == "non-inferior":
        yield Fact("No worse", f"by more than {ranking.margin:g} on any task (95 %)", "; ".join(scores))


def _paid(ranking: Ranking, chosen: Entry) -> Iterable[Fact]:
    own, study = chosen.payback_tickets, ranking.searched.payback_tickets
    all_of_it = f"{_tickets(study)} until the whole study is, with all that was tried" if study else ""
    if own:
        yield Fact(_tickets(own), "until making it is paid back", all_of_it)
    elif study:
        yield Fact(_tickets(study), "until the whole study is paid back", "making it took no more than the reference")


def _tickets(number: float) -> str:
    return f"{round_up(math.ceil(number)):,} tickets"


def _energy(ranking: Ranking, chosen: Entry) -> Iterable[Fact]:
    spent = chosen.spending
    about = "per ticket, recommended" if chosen.label != ranking.reference else "per ticket of the reference"
    if spent is None or spent.joules is None:
        yield Fact("Joules unknown", about, "no sensor was read, and no estimate is possible")
        return
    band = ""
    if spent.joules_lower is not None and spent.joules_upper is not None:
        band = f", {number(spent.joules_lower)} to {number(spent.joules_upper)} J"
    how = KNOWN_BY.get(ranking.scale.provenance, ranking.scale.provenance)
    yield Fact(f"{number(spent.joules.value)} J", about, f"{how}{band}")


def _closest(ranking: Ranking) -> Iterable[Fact]:
    """The cheapest that loses nothing, though its saving is not certain."""
    names = short_names(ranking)
    for entry in ranking.entries:
        ratio = entry.to_reference
        if ratio is not None and ratio.value < 1 and entry.word == "non-inferior" and entry.saves == "cannot tell":
            value, _, band = percent(ratio).partition(" (")
            about = f"of the reference's {unit_words(ranking)}, perhaps: {names[entry.label]}"
            note = f"({band} in {ratio.rounds} rounds cannot tell; its quality is no worse"
            yield Fact(value, about, note)
            return
