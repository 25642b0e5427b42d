"""What a search saves: grids recorded once, then replayed from the store with every search.

    python benchmarks/search.py record benchmarks/grids/tickets.yaml --out runs/grid-tickets
    python benchmarks/search.py judge benchmarks/grids/tickets.yaml=runs/grid-tickets ...
    python benchmarks/search.py judge --every benchmarks/grids/tickets.yaml=runs/grid-tickets

The first takes hours, and goes on when it is run again; the second takes minutes.

Recording makes and grades every variant in full and at each rung of fewer examples, and weighs the full ones. Judging
replays the records: nothing runs. A trial is charged what its record says it took, a fine-tuning once however many
variants share it, weighing included. The optimum is the cheapest language model of the whole grid that is non-inferior
to the reference on validation. A search succeeds with a seed if the cheapest non-inferior variant that it tried in
full is within 5 % of the optimum's cost, for at most 20 % of what the grid took.

The settings of the searches are chosen on all grids but one, by successes and then by what they took, and judged on
the one left out, in turn. Random search is beside them, at the budget that the chosen search took.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leanwatt import catalog, verbs
from leanwatt.measurement import Measurement, whole_stages
from leanwatt.ranking import Ranking
from leanwatt.recipe import Choice, Fidelity, Trial
from leanwatt.record import Record
from leanwatt.search._findings import anchors
from leanwatt.spending import RANKABLE
from leanwatt.store import Store
from leanwatt.study import Study

RUNGS = (16, 32, 64)
"""Validation examples of the rungs that are recorded; searches may only ask for these."""
SEEDS = range(10)
MOST_COST = 1.05
MOST_SHARE = 0.20
SEARCHES = [
    Choice("search", "halving", {"rungs": rungs, "keep": keep, "examples": examples, "slack": slack, **start})
    for rungs, keep, examples in (
        *((1, 0.5, 16), (1, 0.5, 32), (1, 0.5, 64), (2, 0.5, 16), (2, 0.5, 32), (3, 0.5, 16), (2, 0.25, 16)),
        *((1, 0.05, 16), (1, 0.05, 32), (1, 0.05, 64), (1, 0.1, 16), (1, 0.1, 32), (1, 0.1, 64)),
    )
    for slack in (0.02, 0.05, 0.1)
    for start in ({}, {"variants": 32}, {"variants": 16}, {"tuned_alike": True})
] + [Choice("search", "optuna", {"variants": count, "startup": 4}) for count in (6, 10)]


@dataclass(frozen=True)
class Recorded:
    """A grid with all its records."""

    study: Study
    records: tuple[Record, ...]
    ranking: Ranking
    space: tuple[Trial, ...]

    @cached_property
    def by_trial(self) -> dict[str, list[Record]]:
        """Newest finished attempts; a make stands for every trial of its variant."""
        found: dict[str, list[Record]] = {}
        for record in sorted(self.records, key=lambda r: r.attempt):
            found.setdefault(record.trial.variant.id if record.job == "make" else record.trial.id, []).append(record)
        return found

    @cached_property
    def in_joules(self) -> bool:
        stages = [stage for record in self.records for stage in whole_stages(record.measurements)]
        return all(m.total.joules is not None and m.total.provenance in RANKABLE for m in stages)

    def outcome(self, trial: Trial) -> list[Record]:
        """What trying it comes to. Raises KeyError where it was not recorded."""
        made = [] if trial.is_baseline else self.by_trial[trial.variant.id]
        if made and made[-1].status != "done":
            return made
        return [*made, *(r for r in self.by_trial[trial.id] if r.job == "grade")]

    def cost(self, trials: Iterable[Trial]) -> float:
        """Of trying all of these from nothing, and weighing those of full fidelity."""
        total, done = 0.0, set[Any]()
        for trial in trials:
            records = [*self.outcome(trial), *(r for r in self.by_trial.get(trial.id, []) if r.job == "weigh")]
            for record in records:
                for key, stage in self._stages(trial, record):
                    total += 0.0 if key in done else self._spent(stage)
                    done.add(key)
        return total

    def _stages(self, trial: Trial, record: Record) -> Iterable[tuple[Any, Measurement]]:
        """Each stage with what it is the work of: the making of a prefix is shared, all else is not."""
        recipe, variant, place = trial.variant.recipe, trial.variant, 0
        for number, stage in enumerate(whole_stages(record.measurements)):
            if record.job != "make" or stage.stage == "load":
                yield (record.id, number), stage
                continue
            place += 1
            steps = recipe.steps[:place]
            work = (recipe.base, steps, variant.seed, variant.fold, variant.fidelity.steps)
            yield ("make", *work), stage

    def _spent(self, stage: Measurement) -> float:
        return float(stage.total.joules or 0.0) if self.in_joules else stage.cpu_seconds

    @cached_property
    def good(self) -> dict[str, float]:
        """Cost per ticket of every language model that is not worse than the reference, which is one of them."""
        found = [e for e in self.ranking.entries if not e.is_baseline and e.cost is not None]
        return {e.label: e.cost.value for e in found if e.cost and e.word in ("reference", "non-inferior")}


@dataclass(frozen=True)
class Result:
    """One search with one seed on one grid."""

    ratio: float | None
    """Cost of what it found over that of the optimum; None where it found nothing."""
    share: float
    """Of what the grid took."""

    @property
    def succeeds(self) -> bool:
        return self.ratio is not None and self.ratio <= MOST_COST and self.share <= MOST_SHARE


def replay(grid: Recorded, search: Choice, seed: int) -> Result:
    """Follow a search over the records until it wants nothing more."""
    method = catalog.build(replace(search, settings={**search.settings, "seed": seed}))
    known: list[Record] = []
    tried: list[Trial] = []
    while True:
        done = {trial.id for trial in tried}
        missing = [trial for trial in method.wanted(grid.space, known, []) if trial.id not in done]
        if not missing:
            return _result(grid, tried)
        tried += missing
        known += [record for trial in missing for record in grid.outcome(trial)]


def blind(grid: Recorded, share: float, seed: int) -> Result:
    """Random search until as much is spent as that share of the grid."""
    search = catalog.build(Choice("search", "random", {"variants": len(grid.space), "seed": seed}))
    order, found = list(search.wanted(grid.space, [], [])), _result(grid, [])
    for count in range(1, len(order) + 1):
        more = _result(grid, order[:count])
        if more.share > share:
            break
        found = more
    return found


def _result(grid: Recorded, tried: Sequence[Trial]) -> Result:
    full = {trial.id for trial in grid.space}
    labels = {trial.label for trial in tried if trial.id in full}
    found = [cost for label, cost in grid.good.items() if label in labels]
    best = min(grid.good.values())
    return Result(min(found) / best if found else None, grid.cost(tried) / grid.cost(grid.space))


def judged(grids: Mapping[str, Recorded], searches: Sequence[Choice] = SEARCHES) -> list[str]:
    """A Markdown table: for each grid the search chosen on the others, and random search at its budget."""
    table = {(name, str(search)): _replays(grid, search) for name, grid in grids.items() for search in searches}
    lines = [
        "| judged on | variants | search | chosen on | within 5 % for at most 20 % | cost of found | share of grid |"
    ]
    lines.append("|---|--:|---|---|--:|--:|--:|")
    for name, grid in grids.items():
        others = [other for other in grids if other != name] or [name]
        chosen = max(searches, key=lambda search: _worth([r for o in others for r in table[o, str(search)]]))
        results = table[name, str(chosen)]
        share = sum(result.share for result in results) / len(results)
        models = len({trial.label for trial in grid.space if not trial.is_baseline})
        for search, found in ((str(chosen), results), ("random", [blind(grid, share, seed) for seed in SEEDS])):
            lines.append(f"| {name} | {models} | {search} | {', '.join(others)} | {_words(found)} |")
    return lines


def every(grids: Mapping[str, Recorded], searches: Sequence[Choice] = SEARCHES) -> list[str]:
    """A Markdown table of all searches on each grid, whatever is chosen elsewhere."""
    lines = ["| grid | search | within 5 % for at most 20 % | cost of found | share of grid |", "|---|---|--:|--:|--:|"]
    return lines + [f"| {name} | {s} | {_words(_replays(grid, s))} |" for name, grid in grids.items() for s in searches]


def _replays(grid: Recorded, search: Choice) -> list[Result]:
    """One per seed; a search that draws nothing does the same with every seed."""
    draws = search.name != "halving" or search.settings.get("variants") is not None
    return [replay(grid, search, seed) for seed in SEEDS] if draws else [replay(grid, search, 0)] * len(SEEDS)


def _worth(results: Sequence[Result]) -> tuple[int, float]:
    return sum(result.succeeds for result in results), -sum(result.share for result in results)


def _words(results: Sequence[Result]) -> str:
    ratios = sorted(result.ratio for result in results if result.ratio is not None)
    middle = f"{ratios[len(ratios) // 2]:.2f}" if ratios else "-"
    share = sum(result.share for result in results) / len(results)
    return f"{sum(result.succeeds for result in results)} of {len(results)} | {middle} | {share:.1%}"


def recorded(study: Study, store: Store) -> Recorded:
    """Read a recorded grid."""
    records = store.records()
    data = next(record.trial.variant.data for record in records)
    folds = 1 + max(record.trial.variant.fold for record in records)
    return Recorded(study, tuple(records), verbs.rank(study, store.folder), tuple(_space(study, data, folds)))


def _space(study: Study, data: str, folds: int) -> list[Trial]:
    return study.reference_first(study.trials(data, folds))


def lowered(trial: Trial, examples: int) -> Trial:
    """The same trial on one of the rungs."""
    return replace(trial, variant=replace(trial.variant, fidelity=replace(trial.variant.fidelity, examples=examples)))


def record(study: Study, out: Path) -> None:
    """Whatever of the grid is missing: full trials first, then the rungs."""
    from leanwatt.pipeline import Flow
    from leanwatt.plan import check

    store = Store(out)
    planned = check(study, store)
    flow = Flow(
        verbs._bench(planned, store),
        list(planned.trials),
        store,
        lambda each: print(each.job, each.status, each.trial.label, flush=True),
    )
    flow.run()
    for examples in RUNGS:
        for trial in planned.trials:
            if not trial.is_baseline and trial.variant.fidelity == Fidelity():
                flow.try_out(lowered(trial, examples))


def main() -> None:
    """Record a grid, or judge the searches on recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs_ = parser.add_subparsers(dest="verb", required=True)
    one = verbs_.add_parser("record")
    one.add_argument("study", type=Path)
    one.add_argument("--out", type=Path, required=True)
    many = verbs_.add_parser("judge")
    many.add_argument("grids", nargs="+", help="study.yaml=folder")
    many.add_argument("--every", action="store_true", help="every search on every grid, in place of the chosen ones")
    asked = parser.parse_args()
    if asked.verb == "record":
        record(Study.read(asked.study), asked.out)
        return
    pairs = [each.split("=", 1) for each in asked.grids]
    grids = {Path(path).stem: recorded(Study.read(Path(path)), Store(Path(folder))) for path, folder in pairs}
    for name, grid in grids.items():
        unit = "joules" if grid.in_joules else "CPU-seconds (no sensor was read for every stage)"
        print(f"{name}: in {unit}; optimum {min(grid.good, key=lambda label: grid.good[label])}")
        must = grid.cost(anchors(grid.space)) / grid.cost(grid.space)
        print(f"{name}: {len(grid.good)} are non-inferior; what every search tries takes {must:.0%} of the grid")
    print("\n".join(every(grids) if asked.every else judged(grids)))


if __name__ == "__main__":
    main()
