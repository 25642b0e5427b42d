"""Where the figures of a report come from: each kind of figure, what it is made of, and how sure it is."""

from collections.abc import Iterable

from leanwatt.ranking import Making, Ranking
from leanwatt.section import Grid, Section
from leanwatt.verdict import number

WORDS = {
    "measured": "measured (hardware counter)",
    "integrated": "measured (power readings, added up over time)",
    "measured-incomplete": "measured in part: a lower bound",
    "measured-suspect": "measured by a sensor that contradicts itself",
    "attributed": "attributed (a share of a measured whole)",
    "estimated": "estimated, with a band",
    "absent": "unknown",
}
"""What a provenance means."""
Row = tuple[str, str, str, str]


def origins(ranking: Ranking) -> Section:
    """One line per kind of figure."""
    rows = [*_costs(ranking), *_made(ranking), *_qualities(ranking), *_derived(ranking)]
    head = ("figure", "is", "comes from", "how sure")
    return Section("What was measured, what estimated", (_WHERE,), Grid(head, tuple(rows)))


_WHERE = (
    "`table.csv` and `ranking.json` beside this page hold every figure in full; `records/` holds each measurement that "
    "they were made of, and `predictions/` every answer."
)


def _costs(ranking: Ranking) -> Iterable[Row]:
    scale, rounds = ranking.scale, f"95 % interval over {ranking.rounds} rounds, paired within each"
    ranked = "ranked" if scale.unit == "cpu_seconds" else "not ranked"
    yield "CPU-seconds", "measured", f"the operating system's clock of the process; {ranked}", rounds
    yield "seconds", "measured", "a monotonic clock", rounds
    if not scale.devices:
        yield "joules", "unknown", "no sensor, and no estimate for this processor", "-"
        return
    ranked = "ranked" if scale.unit == "joules" else "not ranked"
    sure = "the band of each figure" if scale.provenance == "estimated" else f"{rounds}; the sensor's band beside it"
    yield "joules", WORDS.get(scale.provenance, scale.provenance), f"{_source(ranking)}; {ranked}", sure
    if any(entry.spending and entry.spending.net_joules is not None for entry in ranking.entries):
        yield "net of idle", "derived", "joules less idle watts, read once a round, times seconds", "not ranked"


def _source(ranking: Ranking) -> str:
    return f"{ranking.scale.source}: {', '.join(ranking.scale.devices)} ({ranking.scale.scope})"


def _made(ranking: Ranking) -> Iterable[Row]:
    yield "joules of making", _known(ranking.totals), "the same meter, stage by stage, failed jobs too", _gap(ranking)


def _known(total: Making) -> str:
    return "unknown" if total.joules is None else WORDS.get(total.provenance, total.provenance)


def _gap(ranking: Ranking) -> str:
    unknown = ranking.totals.unknown_seconds
    return f"one run; unknown for {number(unknown)} s of it" if unknown else "one run"


def _qualities(ranking: Ranking) -> Iterable[Row]:
    metrics = {task: result.metric for entry in ranking.entries for task, result in entry.tasks.items()}
    counts = {task: result.quality.repeats for entry in ranking.entries for task, result in entry.tasks.items()}
    for task, metric in metrics.items():
        sure = "95 % bootstrap over groups of examples; differences paired"
        yield f"{task}: {metric}", "measured", f"{counts[task]} validation examples, graded one by one", sure
    if any(entry.confirmation for entry in ranking.entries):
        sure = "one-sided 95 %, corrected for the candidates tried (Holm)"
        yield "test split", "measured", "examples that no choice had seen, answered once", sure


def _derived(ranking: Ranking) -> Iterable[Row]:
    yield "phi, R, pay-back", "derived", "the ranked cost and the task's metric, as the text above says", "as these"
    if ranking.terms is not None:
        yield "kWh, money, CO2e", "derived", f"the joules; {ranking.terms.words()}", "band of the joules only"
