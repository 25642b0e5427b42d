"""What one can do with a study, as functions: all commands, those of `upkeep.py` included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanwatt.errors import StoreError, StudyError, missing_extra
from leanwatt.recipe import Choice, Trial
from leanwatt.record import Record
from leanwatt.runs import command_of, is_exported, read, store_of
from leanwatt.store import Store
from leanwatt.study import Study
from leanwatt.upkeep import feedback, keys, look, ratings_file, records, watch

__all__ = [
    "Reply",
    "ask",
    "doctor",
    "export",
    "feedback",
    "keys",
    "look",
    "methods",
    "offer",
    "plan",
    "rank",
    "ratings_file",
    "read",
    "recommended_model",
    "records",
    "report",
    "run",
    "serve",
    "simulate",
    "store_of",
    "watch",
    "winner",
]

if TYPE_CHECKING:
    from leanwatt.jobs import Bench
    from leanwatt.measurement import Energy, Measurement
    from leanwatt.mirror import Mirror
    from leanwatt.offer import Offer
    from leanwatt.plan import Plan
    from leanwatt.ranking import Ranking
    from leanwatt.serving import Settings
    from leanwatt.variants import Base
    from leanwatt.weigh import Weighing


def plan(study: Study | str | Path, out: str | Path | None = None) -> Plan:
    """Check everything and predict time, memory and disk; nothing runs. Raises UserError for whatever cannot be."""
    from leanwatt.plan import check

    asked = read(study)
    return check(asked, store_of(asked, out))


def run(
    study: Study | str | Path,
    out: str | Path | None = None,
    *,
    retry: bool = False,
    notice: Callable[[Record], None] = lambda record: None,
    planned: Plan | None = None,
) -> Ranking:
    """Run what is missing, rank, confirm, and write the report. A run that was stopped goes on where it stood.

    `planned` is what `plan` said of the same study, where it was asked already.
    """
    from leanwatt.budget import Budget
    from leanwatt.pipeline import Flow
    from leanwatt.report import report as write

    planned = planned or plan(study, out)
    store = store_of(planned.study, out)
    budget = Budget(planned.study, planned.needs)
    flow = Flow(_bench(planned, store), list(planned.trials), store, notice, retry, budget)
    ranking = flow.run()
    write(ranking, store.folder / "report", command_of(study, out))
    return ranking


def rank(study: Study | str | Path, out: str | Path | None = None) -> Ranking:
    """What the records of a study say; nothing runs."""
    from leanwatt import catalog
    from leanwatt.rank import rank as ranked
    from leanwatt.rank import with_interrupted

    asked = read(study)
    store = store_of(asked, out)
    primaries = {choice.name: catalog.find("tasks", choice.name).primary for choice in asked.tasks}
    found = store.records()
    if not found:
        raise StudyError(f"{store.folder}: holds no records yet. Run the study first: leanwatt run.")
    return with_interrupted(ranked(asked, primaries, found, store.rows), store.interrupted())


def report(study: Study | str | Path, out: str | Path | None = None, *, examples: int = 0) -> list[Path]:
    """Write the report anew (Markdown, CSV, JSON and one HTML file); returns the files.

    With `examples`, so many tickets of each task are quoted in it.
    """
    from leanwatt.quoted import quoted
    from leanwatt.report import report as write

    asked = read(study)
    store, ranking = store_of(asked, out), rank(asked, out)
    besides = quoted(asked, ranking, store, examples) if examples else []
    return list(write(ranking, store.folder / "report", command_of(study, out), besides).values())


def compare(places: Sequence[str | Path], page: str | Path | None = None) -> list[Ranking]:
    """The rankings of several folders of results, each as it was made: nothing is compared across them.

    `page` is an HTML file to write them to.
    """
    from leanwatt.beside import read as read_ranking
    from leanwatt.beside import write_page

    found = [read_ranking(Path(place)) for place in places]
    if page is not None:
        write_page([Path(place) for place in places], found, Path(page))
    return found


def _bench(planned: Plan, store: Store) -> Bench:
    """The bases at hand, `starter` made where it is not there yet."""
    from leanwatt.executor.local import Local
    from leanwatt.jobs import Bench, send_base

    asked = {(t.variant.recipe.base, t.variant.recipe.revision) for t in planned.trials if not t.is_baseline}
    bases = {(name, revision): _base(name, revision) for name, revision in sorted(asked, key=str)}
    bench = Bench(planned.study, store.folder, bases, _mirror(planned.study))
    if bench.mirror is not None:
        local = [base for base in bases.values() if Path(base.place).is_dir()]
        for died in Local().run(send_base, [(bench, base) for base in local]):
            if died is not None:
                raise StoreError(f"A base could not be sent to the executor's store: {died.reason}.")
    return bench


def _mirror(study: Study) -> Mirror | None:
    from leanwatt.catalog import build
    from leanwatt.mirror import Mirror

    url = build(study.executor).store
    return Mirror(url) if url else None


def _base(name: str, revision: str | None) -> Base:
    """A base at hand; `starter` is made in a process of its own, which gives its memory back."""
    from leanwatt import starter
    from leanwatt.contracts import WorkerDied
    from leanwatt.executor.local import Local
    from leanwatt.variants import local_base

    if name != starter.NAME:
        return local_base(name, revision)
    if starter.is_made():
        return starter.base()
    [made] = Local().run(starter.base, [starter.Shape()])
    if isinstance(made, WorkerDied):
        raise StoreError(f"The base `starter` could not be made: {made.reason}.")
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Reply:
    """What the winner says to one ticket."""

    variant: str
    causes: tuple[tuple[str, float], ...]
    """Likely causes with their probability, the likeliest first; empty where the study has no such task."""
    response: str | None
    cpu_seconds: float
    energy: Energy
    """This answer's share of what the sensors saw while it was given, repeatedly if need be; absent where they are too
    slow for that, and a flag says so."""


def recommended_model(ranking: Ranking) -> str:
    """The language model to put to work: the sweet spot, or the best model after a baseline that won."""
    spot = ranking.sweet_spot
    if spot is None:
        raise StudyError(f"The reference '{ranking.reference}' is not finished, so nothing is recommended yet.")
    return spot.best_model or spot.label


def winner(study: Study | str | Path, out: str | Path | None = None, variant: str | None = None) -> Trial:
    """The trial to put to work: the recommended language model, or the one that is named."""
    ranking = rank(study, out)
    label = variant or recommended_model(ranking)
    graded = [record.trial for record in store_of(read(study), out).records() if record.job == "grade"]
    found = [trial for trial in graded if trial.label == label and not trial.is_baseline]
    if not found:
        known = sorted({trial.label for trial in graded if not trial.is_baseline})
        raise StudyError(f"No finished variant is called '{label}'. There are: {'; '.join(known) or '(none)'}.")
    return found[0]


def export(
    study: Study | str | Path,
    to: str | Path,
    out: str | Path | None = None,
    variant: str | None = None,
    *,
    form: str = "huggingface",
) -> Path:
    """Write a variant, the winner unless named, to a folder: as Hugging Face files, or in an engine's own form."""
    from leanwatt.export import export as write

    asked = read(study)
    found = offer(asked, out, variant)
    return write(rank(asked, out), found, Path(to), form, _some_tickets(asked, found.trial))


def _some_tickets(study: Study, trial: Trial) -> list[str]:
    """Validation tickets of the first task, each once."""
    from leanwatt import catalog

    examples = catalog.build(study.tasks[0]).examples(trial.variant.fold)
    bodies = [example.question.prompt.body for example in examples if example.split == "validation"]
    return list(dict.fromkeys(bodies))


def offer(study: Study | str | Path, out: str | Path | None = None, variant: str | None = None) -> Offer:
    """What is to be put to work: the winner of a study, the variant that is named, or an exported folder."""
    from leanwatt.offer import Offer

    if is_exported(study):
        if out is not None or variant is not None:
            raise StudyError(f"{study}: is an exported folder, which holds one variant; leave out --out and --variant.")
        return Offer.read(Path(str(study)))
    asked = read(study)
    trial = winner(asked, out, variant)
    return Offer.of(asked, rank(asked, out), trial, _artifact(asked, out, trial))


def serve(
    study: Study | str | Path,
    settings: Settings,
    out: str | Path | None = None,
    variant: str | None = None,
    *,
    notice: Callable[[str], None] = lambda line: None,
) -> None:
    """Put the winner, or an exported folder, behind an API and a page until it is told to stop."""
    try:
        from leanwatt.serve import serve as run_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("leanwatt"):
            raise
        raise missing_extra("leanwatt", "serve", error.name) from error
    run_server(offer(study, out, variant), settings, notice)


def ask(study: Study | str | Path, ticket: str, out: str | Path | None = None, variant: str | None = None) -> Reply:
    """Let the winner answer one ticket: causes with probabilities, a drafted response, and what it took."""
    from leanwatt.answering import answer

    asked = read(study)
    trial = winner(asked, out, variant)
    return Reply(variant=trial.label, **answer(asked, trial, _artifact(asked, out, trial), ticket))


def _artifact(study: Study, out: str | Path | None, trial: Trial) -> Path:
    store = store_of(study, out)
    made = [r for r in store.records() if r.job == "grade" and r.trial.id == trial.id and r.artifact]
    folder = store.folder / str(made[-1].artifact) if made else None
    if folder is not None and not folder.is_dir() and (mirror := _mirror(study)) is not None:
        mirror.bring(folder)
    if folder is None or not folder.is_dir():
        raise StudyError(f"The model of '{trial.label}' is no longer in {store.folder}; run the study again.")
    return folder


def methods(room: str | None = None) -> dict[str, dict[str, Any]]:
    """Every method of every room: what it is, its settings, and whether what it needs is installed."""
    from leanwatt import catalog
    from leanwatt.errors import MissingExtraError, not_among

    if room is not None and room not in catalog.ROOMS:
        raise StudyError(not_among("the rooms", room, catalog.ROOMS))
    found: dict[str, dict[str, Any]] = {}
    for each in [room] if room else list(catalog.ROOMS):
        found[each] = {}
        for name in catalog.names(each):
            try:
                about, settings = catalog.documentation(each, name)
                there = catalog.is_installed(each, name)
                found[each][name] = {"about": about, "settings": settings, "installed": there}
            except MissingExtraError as error:
                found[each][name] = {"about": str(error), "settings": {}, "installed": False}
    return found


def doctor(meter: str | None = None) -> dict[str, Any]:
    """What this machine can measure and run. `meter`, as a study writes it, is opened and watched for some seconds."""
    from leanwatt.doctor import statuses
    from leanwatt.machine import describe, free_disk_bytes, memory_bytes
    from leanwatt.meter.auto import chosen

    engines = {name: about["installed"] for name, about in methods("engine")["engine"].items()}
    return {
        "machine": describe(),
        "memory_bytes": memory_bytes(),
        "free_disk_bytes": free_disk_bytes(Path.cwd()),
        "sources": [asdict(status) for status in statuses(_meter(meter) if meter else None)],
        "meter": list(chosen()),
        "engines": engines,
    }


def meter(
    command: Sequence[str],
    source: str = "auto",
    *,
    repeat: int = 1,
    warm_up: int = 0,
    idle_seconds: float = 5.0,
) -> Weighing:
    """Weigh any command. `source` is a meter as a study writes it. Raises MeterError, StudyError."""
    from leanwatt.weigh import Request, weigh

    return weigh(Request(tuple(command), _meter(source), repeat, warm_up, idle_seconds))


def recover() -> list[Measurement]:
    """What commands that were killed while they were weighed had spent by their last heartbeat; told once."""
    from leanwatt.weigh import recover as recovered

    return recovered()


def _meter(text: str) -> Choice:
    """`rapl`, or `{plug: {url: ..., kind: shelly}}`: what stands behind `meter:` in a study. Raises StudyError."""
    import yaml

    try:
        return Choice.parse("meter", yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise StudyError(f"--meter: got {text!r}, which is not YAML: {error}") from error


@dataclass(frozen=True)
class Profiled:
    """What came of `profile`."""

    outcomes: list[Any]
    table: str


def profile(shape: str, folder: str | Path, engines: Sequence[str], **settings: Any) -> Profiled:
    """Weigh a model's shape with random weights in each engine; `settings` are the fields of shape.Plan."""
    import yaml

    from leanwatt.catalog import build
    from leanwatt.recipe import Choice
    from leanwatt.shape import Plan, parse, table
    from leanwatt.shape import profile as profiled

    choices = tuple(Choice.parse("engine", yaml.safe_load(each)) for each in engines)
    plan = Plan(parse(shape), choices, **settings)
    for choice in (*choices, plan.meter, plan.executor):
        build(choice)
    outcomes = profiled(plan, Path(folder))
    return Profiled(outcomes, table(outcomes))


def simulate(path: str | Path, tickets: int = 9_000, seed: int = 0) -> Path:
    """Write simulated fault tickets as CSV; the same seed gives the same bytes."""
    from leanwatt.simulate import simulate as simulated
    from leanwatt.simulate import write

    target = Path(path)
    write(simulated(tickets, seed), target)
    return target
