"""From records to an answer: what each variant costs and is worth, against the reference and against the cheapest.

Pure: the same records give the same ranking, in whatever order they come. Costs and qualities that were not obtained
alike are never compared; what is left out is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from leanwatt.account import searched
from leanwatt.bill import JOULES_PER_KWH, SECONDS_PER_HOUR
from leanwatt.caveats import caveats
from leanwatt.compare import Line, best_over
from leanwatt.entry import Writer
from leanwatt.evidence import Gathered, gather, making, totals
from leanwatt.factors import Chain, factors
from leanwatt.least_form import turned_by, winner, with_least_form
from leanwatt.measurement import Measurement, Provenance
from leanwatt.quality import Judge, RowsOf
from leanwatt.ranking import Entry, Making, Ranking, Segment
from leanwatt.record import Record
from leanwatt.spending import weigh_up
from leanwatt.standing import Standing, by_cost
from leanwatt.study import Study
from leanwatt.sweet_spot import candidates, next_candidates, sweet_spot

__all__ = ["next_candidates", "rank", "with_interrupted"]

NO_MAKING = Making(0.0, 0.0, None, str(Provenance.ABSENT), 0.0, 0.0)
"""A study without any record has spent nothing."""


def rank(
    study: Study,
    primaries: Mapping[str, str],
    records: Sequence[Record],
    rows_of: RowsOf,
    data: str | None = None,
) -> Ranking:
    """Rank everything that the study names.

    `primaries`: the metric in [0, 1] that ranks each task. `rows_of`: the predictions of a record. `data`: digest of
    what the tasks read; None takes that of the newest record. Raises StudyError for a reference that is no variant.
    """
    gathered = gather(study, records, data)
    weighed = weigh_up(gathered.lines, gathered.reference)
    reference = next(line for line in gathered.lines if line.label == gathered.reference)
    writer = Writer(study, weighed, Judge(rows_of, primaries, reference, study.margin))
    single = [writer.entry(line) for line in gathered.lines]
    own = next(entry for entry in single if entry.label == gathered.reference)
    standing = Standing(single, weighed, list(primaries), own, study.weight)
    draft = _draft(study, gathered, standing)
    draft = replace(draft, order_of_candidates=candidates(draft))
    draft = replace(draft, sweet_spot=sweet_spot(draft, standing.ratio))
    draft = replace(draft, searched=searched(study, gathered, standing, draft.sweet_spot))
    return replace(draft, caveats=caveats(draft, gathered))


def with_interrupted(ranking: Ranking, spent: Sequence[Measurement]) -> Ranking:
    """The ranking, told what jobs spent that were stopped from outside."""
    return replace(ranking, interrupted=making([spent], lambda measurement: measurement.total))


def _draft(study: Study, gathered: Gathered, standing: Standing) -> Ranking:
    """All but what follows from the table as a whole: the sweet spot and the caveats."""
    scale = standing.weighed.scale
    entries = with_least_form(sorted(standing.compared(), key=by_cost), scale.unit, study.weight)
    by_label = {entry.label: entry for entry in entries}
    whole = [line for line in gathered.lines if by_label[line.label].is_complete]
    return Ranking(
        study=study.name,
        protocol=study.protocol.name,
        rounds=study.protocol.rounds,
        margin=study.margin,
        weight=study.weight,
        folds=gathered.folds,
        seeds=study.seeds,
        reference=gathered.reference,
        scale=scale,
        entries=tuple(entries),
        leader=standing.leader,
        order_of_candidates=(),
        sweet_spot=None,
        best_by_task={task: best for task in standing.tasks if (best := standing.best_on(entries, task))},
        winner_by_weight=_by_weight(entries),
        winner_by_price=_by_price(entries, scale.unit),
        least_form_winner=winner(entries),
        least_form_turned_by=turned_by(entries, scale.unit, study.weight),
        factors=factors(whole, standing.ratio),
        apart=Chain(whole, by_label, standing.ticket_costs, gathered.reference).all(),
        totals=totals(gathered.records + gathered.glances) or NO_MAKING,
        machine=_machine(gathered, scale.machine),
        searched=searched(study, gathered, standing, None),
        caveats=(),
        load=study.load,
        terms=study.bill,
    )


def _machine(gathered: Gathered, machine_id: str | None) -> Mapping[str, object]:
    """The newest description of the machine that was weighed on; of any, where nothing was weighed."""
    here = [record.machine for record in gathered.records if record.machine.get("id") == machine_id]
    found = here or [record.machine for record in gathered.records]
    return max(found, key=lambda machine: str(machine.get("utc") or ""), default={})


def _by_weight(entries: Sequence[Entry]) -> tuple[Segment, ...]:
    """R = quality + w * (phi - quality): linear in w, so that the winner at every w is exact."""
    lines = [
        Line(entry.label, entry.quality, entry.phi - entry.quality)
        for entry in entries
        if entry.quality is not None and entry.phi is not None
    ]
    return best_over(lines, 1.0)


def _by_price(entries: Sequence[Entry], unit: str) -> tuple[Segment, ...]:
    """Least of energy + price of a wrong answer * share wrong; the price in kWh (CPU-hours) per wrong answer."""
    size = JOULES_PER_KWH if unit == "joules" else SECONDS_PER_HOUR
    lines = [
        Line(entry.label, -entry.cost.value / size, entry.quality - 1)
        for entry in entries
        if entry.cost is not None and entry.quality is not None
    ]
    return best_over(lines, None)
