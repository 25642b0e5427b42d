"""What one can do, as functions: plan, run, rank, report, export, ask, methods, doctor, profile, simulate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanwatt.errors import StoreError, StudyError
from leanwatt.recipe import Trial
from leanwatt.record import Record
from leanwatt.store import Store
from leanwatt.study import Study

if TYPE_CHECKING:
    from leanwatt.jobs import Bench
    from leanwatt.measurement import Energy
    from leanwatt.plan import Plan
    from leanwatt.ranking import Ranking
    from leanwatt.variants import Base

RUNS = Path("runs")
"""Where studies keep their results, in the current folder, each under its name."""


def read(study: Study | str | Path) -> Study:
    """A study, or the file it is in. Raises StudyError."""
    return study if isinstance(study, Study) else Study.read(Path(study))


def store_of(study: Study, out: str | Path | None) -> Store:
    """Where the results of a study are kept."""
    return Store(Path(out) if out else RUNS / study.name)


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
) -> Ranking:
    """Run what is missing, rank, confirm, and write the report. A run that was stopped goes on where it stood."""
    from leanwatt.pipeline import Flow
    from leanwatt.report import report as write

    planned = plan(study, out)
    store = store_of(planned.study, out)
    flow = Flow(_bench(planned, store), list(planned.trials), store, notice, retry)
    ranking = flow.run()
    write(ranking, store.folder / "report")
    return ranking


def rank(study: Study | str | Path, out: str | Path | None = None) -> Ranking:
    """What the records of a study say; nothing runs."""
    from leanwatt import catalog
    from leanwatt.rank import rank as ranked

    asked = read(study)
    store = store_of(asked, out)
    primaries = {choice.name: catalog.find("tasks", choice.name).primary for choice in asked.tasks}
    records = store.records()
    if not records:
        raise StudyError(f"{store.folder}: holds no records yet. Run the study first: leanwatt run.")
    return ranked(asked, primaries, records, store.rows)


def report(study: Study | str | Path, out: str | Path | None = None) -> list[Path]:
    """Write the report anew (Markdown, CSV, JSON and one HTML file); returns the files."""
    from leanwatt.report import report as write

    asked = read(study)
    return list(write(rank(asked, out), store_of(asked, out).folder / "report").values())


def _bench(planned: Plan, store: Store) -> Bench:
    """The bases at hand, `starter` made where it is not there yet."""
    from leanwatt.jobs import Bench

    asked = {(t.variant.recipe.base, t.variant.recipe.revision) for t in planned.trials if not t.is_baseline}
    bases = {(name, revision): _base(name, revision) for name, revision in sorted(asked, key=str)}
    return Bench(planned.study, store.folder, bases)


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
    """Of this answer alone: an estimate, or absent where the sensors are too slow for one answer."""


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
    study: Study | str | Path, to: str | Path, out: str | Path | None = None, variant: str | None = None
) -> Path:
    """Copy a variant, the winner unless named, as a Hugging Face folder with a model card."""
    from leanwatt.export import export as write

    asked = read(study)
    trial = winner(asked, out, variant)
    return write(rank(asked, out), trial, _artifact(asked, out, trial), Path(to), asked.tasks)


def ask(study: Study | str | Path, ticket: str, out: str | Path | None = None, variant: str | None = None) -> Reply:
    """Let the winner answer one ticket: causes with probabilities, a drafted response, and what it took."""
    from leanwatt.answering import answer

    asked = read(study)
    trial = winner(asked, out, variant)
    return Reply(variant=trial.label, **answer(asked, trial, _artifact(asked, out, trial), ticket))


def _artifact(study: Study, out: str | Path | None, trial: Trial) -> Path:
    store = store_of(study, out)
    made = [r for r in store.records() if r.job == "grade" and r.trial.id == trial.id and r.artifact]
    if not made or not (store.folder / str(made[-1].artifact)).is_dir():
        raise StudyError(f"The model of '{trial.label}' is no longer in {store.folder}; run the study again.")
    return store.folder / str(made[-1].artifact)


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


def doctor() -> dict[str, Any]:
    """What this machine can measure and run."""
    from leanwatt.machine import describe, free_disk_bytes, memory_bytes
    from leanwatt.meter.auto import chosen, statuses

    engines = {name: about["installed"] for name, about in methods("engine")["engine"].items()}
    return {
        "machine": describe(),
        "memory_bytes": memory_bytes(),
        "free_disk_bytes": free_disk_bytes(Path.cwd()),
        "sources": [asdict(status) for status in statuses()],
        "meter": list(chosen()),
        "engines": engines,
    }


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
