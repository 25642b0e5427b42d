"""Bayesian search by the library Optuna (Akiba et al., 2019, arXiv:1907.10902): it learns cost and quality as it goes.

Its tree-structured Parzen estimator with two objectives (MOTPE: Ozaki et al., 2022, JAIR 73) learns which bases, steps,
engines and batch sizes stand on the front of least cost and best quality. For large spaces of several axes; with fewer
than about forty variants to choose from it is little better than `random`. Needs the extra `optuna`.

Nothing is kept between runs: what was asked is asked again with the same seed and told the recorded results, so that
a run that was stopped, or stopped and weighed again, goes on to the same choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

import optuna
from annotated_types import Ge

from leanwatt.contracts import Search
from leanwatt.recipe import Trial
from leanwatt.record import Record
from leanwatt.search._findings import Candidate, Findings, anchors, drawn, models, trials

MOST_REPEATS = 20
"""The sampler may ask for what it knows, or for what the study has not. After so many in a row it gets a new one."""

Axes = tuple[str, ...]


@final
@dataclass(frozen=True)
class Optuna(Search):
    """Let Optuna choose one variant after the other."""

    variants: Annotated[int, Ge(1)] = 20
    """How many are tried in full, the reference not counted."""
    startup: Annotated[int, Ge(1)] = 8
    """The first so many are drawn at random."""
    at_once: Annotated[int, Ge(1)] = 1
    """How many are asked for before the first of them is told: more for an executor with several workers."""
    seed: int = 0
    """Of the sampler."""

    def wanted(self, space: Sequence[Trial], records: Sequence[Record], running: Sequence[Trial]) -> Sequence[Trial]:
        """What was asked for so far, and what is to be known next."""
        [reference, *others] = models(space)
        found, asked, repeats = Findings(records), list[Candidate](), 0
        teller = _Teller(self._study(), found, [reference, *others])
        while len(asked) < min(self.variants, len(others)):
            if repeats >= MOST_REPEATS:
                teller.suggest(next(each for each in drawn(others, None, self.seed) if each not in asked))
            fresh = teller.ask(min(self.at_once, self.variants - len(asked)))
            new = [each for _, each in fresh if each not in (reference, *asked)]
            asked += dict.fromkeys(new)
            repeats = 0 if new else repeats + 1
            if not all(found.is_over(each) for _, each in fresh):
                break
            for trial, candidate in fresh:
                teller.tell(trial, candidate)
        return [*anchors(space), *trials(asked)]

    def _study(self) -> Any:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=self.startup)
        return optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)


class _Teller:
    """Asks the sampler, and tells it what became of what it asked for."""

    def __init__(self, study: Any, found: Findings, candidates: Sequence[Candidate]) -> None:
        self._study = study
        self._found = found
        self._candidates = {_place(candidate): candidate for candidate in candidates}
        self._levels = _levels(self._candidates)
        self._in_joules: bool | None = None
        """As the first result was; one without joules among others that have them tells nothing."""

    def suggest(self, candidate: Candidate) -> None:
        """Have this one asked for next."""
        self._study.enqueue_trial({str(axis): word for axis, word in enumerate(_place(candidate))})

    def ask(self, count: int) -> list[tuple[Any, Candidate]]:
        """The next few; a combination that the study does not have is told as failed, and costs nothing."""
        fresh: list[tuple[Any, Candidate]] = []
        for _ in range(count):
            trial = self._study.ask()
            place = tuple(trial.suggest_categorical(str(axis), each) for axis, each in enumerate(self._levels))
            if place in self._candidates:
                fresh.append((trial, self._candidates[place]))
            else:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return fresh

    def tell(self, trial: Any, candidate: Candidate) -> None:
        shown = self._found.shown(candidate)
        if shown is not None and self._in_joules is None:
            self._in_joules = shown.joules is not None
        cost = None if shown is None else shown.joules if self._in_joules else shown.cpu_seconds
        if shown is None or cost is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, (cost, shown.quality))


def _place(candidate: Candidate) -> Axes:
    """Base, what is done in each room, in which order of rooms, engine and batch, as words."""
    trial = candidate.trials[0]
    recipe = trial.variant.recipe
    rooms = ("finetune", "merge", "prune", "quantize")
    done = [" > ".join(str(step) for step in recipe.steps if step.room == room) for room in rooms]
    order = " > ".join(step.room for step in recipe.steps)
    return (f"{recipe.base} {recipe.revision}", *done, order, str(trial.engine), str(trial.batch))


def _levels(places: Mapping[Axes, Candidate]) -> list[list[str]]:
    """The words of each axis."""
    return [list(dict.fromkeys(place[axis] for place in places)) for axis in range(len(next(iter(places))))]
