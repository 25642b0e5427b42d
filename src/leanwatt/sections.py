"""What a report holds, in order: headings, sentences and tables, whatever they are written as."""

from collections.abc import Iterable, Sequence

from leanwatt.apart import taken_apart
from leanwatt.drift import drift
from leanwatt.gist import gist, lead
from leanwatt.mistakes import abstaining, by_class, errors_by_class
from leanwatt.origin import origins
from leanwatt.ranking import Entry, Figure, Making, Ranking, Segment
from leanwatt.section import Grid, Section, figure, or_dash
from leanwatt.usage import megabytes, usage
from leanwatt.verdict import number, percent, provenance_sentence, sentence, short_names, word


def sections(ranking: Ranking, command: str) -> list[Section]:
    """The whole report, answer first. Empty parts are left out."""
    found = [
        answer(ranking),
        Section("Cost against quality", (FRONT,), chart="front") if ranking.leader else None,
        Section("Before you rely on it", items=ranking.caveats),
        _table(ranking),
        _quality(ranking),
        _test(ranking),
        *taken_apart(ranking),
        *usage(ranking),
        _making(ranking),
        _making_by_stage(ranking),
        _study(ranking),
        _searched(ranking),
        _weights(ranking),
        _prices(ranking),
        *by_class(ranking),
        *errors_by_class(ranking),
        *abstaining(ranking),
        _notes(ranking),
        drift(ranking),
        origins(ranking),
        _machine(ranking),
        Section("Do it again", (_AGAIN,), code=command) if command else None,
    ]
    return [section for section in found if section is not None and _holds_something(section)]


def answer(ranking: Ranking) -> Section:
    """In one sentence, then exactly, then in figures."""
    said = (lead(ranking), sentence(ranking), provenance_sentence(ranking))
    return Section("The answer", tuple(filter(None, said)), facts=gist(ranking))


FRONT = (
    "Each point is one variant on one task: left is cheaper, up is better. Bars are 95 % intervals: of cost over "
    "rounds, of quality over resampled groups of examples. The star is the recommended one, the diamond the reference, "
    "squares are no language models. No point is both cheaper and better than one on the dotted line. Point at a mark "
    "for its figures."
)
"""What stands beside the plane."""
_AGAIN = "What is finished is kept: the same command goes on where it stood, or only ranks and reports again."
_R = (
    "R = w x phi + (1 - w) x rho, with phi = J_reference / (J_reference + J_own), which is 0.5 for the reference "
    "whoever else is in the table, and rho the primary metric; per task, then the mean."
)


def _holds_something(section: Section) -> bool:
    return (
        bool(section.grid and section.grid.rows)
        or bool(section.items or section.chart or section.code)
        or bool(section.text and section.grid is None)
    )


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
            or_dash(entry.phi),
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


def _making(ranking: Ranking) -> Section:
    names = short_names(ranking)
    head = ("variant", "CPU-seconds", "of it shared", "joules", "tickets to pay back", "MB on disk")
    rows = tuple(
        (
            names[entry.label],
            *_spent(entry.making),
            or_dash(entry.payback_tickets),
            megabytes(entry.bytes_on_disk),
        )
        for entry in ranking.entries
        if entry.making is not None
    )
    total = ranking.totals
    unknown = f"; unknown for {number(total.unknown_seconds)} s of it" if total.unknown_seconds else ""
    text: tuple[str, ...] = (
        "Shared work is charged to each variant that rests on it. `tickets to pay back`: what making it took beyond "
        "the reference, over what it saves per ticket.",
        f"The whole study took {number(total.cpu_seconds)} CPU-seconds and {or_dash(total.joules)} J "
        f"({total.provenance}{unknown}), shared work counted once.",
    )
    if ranking.interrupted:
        lost = ranking.interrupted
        text += (
            f"Jobs that were stopped from outside took {number(lost.cpu_seconds)} CPU-seconds and "
            f"{or_dash(lost.joules)} J besides ({lost.provenance}).",
        )
    return Section("What making it took", text, Grid(head, rows), chart="stages" if rows else None)


def _making_by_stage(ranking: Ranking) -> Section:
    """A line per variant, two columns per stage; a line's parts add up to what stands above."""
    names = short_names(ranking)
    made = [(entry, entry.making) for entry in ranking.entries if entry.making is not None]
    stages = dict.fromkeys(stage for _, making in made for stage in making.stages)
    head = ("variant", *(f"{stage}, {unit}" for stage in stages for unit in ("J", "CPU-s")), "all, J", "all, CPU-s")
    rows = tuple(
        (
            names[entry.label],
            *(cell for stage in stages for cell in _stage(making, stage)),
            _joules(making.joules),
            number(making.cpu_seconds),
            "unknown" if making.joules is None else making.provenance,
        )
        for entry, making in made
    )
    text = (
        "What the bars show, in figures: the mean over seeds and folds, shared work included. A dash: the variant has "
        "no such stage. `unknown`: no sensor saw it, and it is not in the joules of all."
    )
    return Section("What each stage took", (text,), Grid((*head, "joules are"), rows))


def _stage(making: Making, stage: str) -> tuple[str, str]:
    took = making.stages.get(stage)
    return ("-", "-") if took is None else (_joules(took["joules"]), or_dash(took["cpu_seconds"]))


def _joules(joules: float | None) -> str:
    return "unknown" if joules is None else number(joules)


def _study(ranking: Ranking) -> Section:
    """All jobs together, stage by stage; the parts add up to the totals."""
    rows = tuple(
        (stage, *(or_dash(took[what]) for what in ("seconds", "cpu_seconds", "joules")))
        for stage, took in ranking.totals.stages.items()
    )
    text = (
        "All jobs together, failed ones too, shared work counted once. `unattributed` is what no stage names: starting "
        "a process, reading data, warming up, saving."
    )
    return Section("Where the study's energy went", (text,), Grid(("stage", "seconds", "CPU-seconds", "joules"), rows))


def _spent(making: Making) -> tuple[str, ...]:
    joules = "-" if making.joules is None else f"{number(making.joules)} ({making.provenance})"
    return number(making.cpu_seconds), number(making.reused_cpu_seconds), joules


def _searched(ranking: Ranking) -> Section:
    """What the search left out, what it took, and what sharing saved."""
    found, total, unit = ranking.searched, ranking.totals, ranking.scale.symbol
    spent = total.cpu_seconds if ranking.scale.unit == "cpu_seconds" else total.joules
    rows = [
        ("search", found.method),
        ("tried in full", str(found.tried)),
        ("not tried", str(len(found.not_tried))),
        ("the search would still try", str(found.still_wanted)),
        ("trials with less work", str(found.glances)),
        (f"the whole study, {unit}", or_dash(spent)),
        ("tickets until the whole study is paid back", or_dash(found.payback_tickets)),
        ("fine-tuning, CPU-seconds", number(found.sharing.spent_cpu_seconds)),
        ("saved by sharing it, CPU-seconds", number(found.sharing.saved_cpu_seconds)),
        ("fine-tuning, J", or_dash(found.sharing.spent_joules)),
        ("saved by sharing it, J", or_dash(found.sharing.saved_joules)),
    ]
    if found.spent_on_glances is not None:
        rows.insert(5, ("spent on them, CPU-seconds", number(found.spent_on_glances.cpu_seconds)))
    rows += [
        (f"budget, {key}", f"{number(found.charged[key]) if key in found.charged else '-'} of {limit:g}")
        for key, limit in found.budget.items()
    ]
    text = (
        "What the whole study took, beyond the making of the reference, over what the recommended one saves per "
        "ticket, gives the tickets until all of it is paid back. In a budget, estimates count at their upper bound.",
    )
    items = tuple(f"not tried: {label}" for label in found.not_tried)
    return Section("What finding it took", text, Grid(("what", "value"), tuple(rows)), items)


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
        f"A wrong answer costs money too. Write its price in {unit}: where one of these costs 0.20, an answer that "
        "costs 10 when wrong is worth 50. The cheapest in all, energy and mistakes together, is:"
    )
    head: tuple[str, ...] = (f"{unit} per wrong answer, from", "to", "cheapest")
    rows = list(_segments(ranking, ranking.winner_by_price))
    price = ranking.terms.price_per_kwh if ranking.terms and ranking.scale.unit == "joules" else None
    if price:
        head = (*head, f"from, {ranking.terms.currency if ranking.terms else ''}")
        rows = [(*row, number(each.begin * price)) for row, each in zip(rows, ranking.winner_by_price, strict=True)]
    return Section("What a wrong answer is worth", (text,), Grid(head, tuple(rows)), chart="prices")


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
