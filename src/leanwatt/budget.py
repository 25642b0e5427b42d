"""The budget of a study: whether the next trial still fits, and leaves what weighing and confirming will take."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from leanwatt.account import WALL, account
from leanwatt.bill import JOULES_PER_KWH, SECONDS_PER_HOUR
from leanwatt.errors import StudyError
from leanwatt.plan import SECONDS_PER_START, Needs
from leanwatt.recipe import Recipe, Trial
from leanwatt.record import Job, Record
from leanwatt.study import Study
from leanwatt.windows import WARM_UP_SECONDS

Tuning = tuple[str, tuple[object, ...], int, int, int | None]
"""A fine-tuning: base, steps up to it, seed, fold, most steps. Variants that share it share its cost."""


@dataclass(frozen=True)
class Budget:
    """Asked before every trial. It holds back what ranking and confirming what was tried will take."""

    study: Study
    needs: Needs

    def refusal(self, trial: Trial, records: Sequence[Record], begun: Sequence[Trial] = ()) -> str | None:
        """Why this trial no longer fits beside those begun; None where it does, or where the study has no budget.

        Raises StudyError where a kWh budget cannot be kept, because nothing here tells joules.
        """
        limits, spent = self.study.budget, account(records)
        if not limits:
            return None
        seconds = Forecast(self.needs, records).seconds([*begun, trial])
        if "kwh" in limits and spent.joules is None and spent.seconds > 0:
            raise StudyError(
                f"budget.kwh: no stage so far has a figure in joules (meter {self.study.meter}), so a budget in kWh "
                "cannot be kept. Use `hours` or `trials`, or `meter: estimate`."
            )
        after = {
            "trials": float(len(spent.tried | {each.id for each in (*begun, trial)})),
            "hours": (spent.seconds + seconds) / SECONDS_PER_HOUR,
            "kwh": ((spent.joules or 0.0) + (spent.watts or 0.0) * seconds) / JOULES_PER_KWH,
        }
        over = [key for key, limit in limits.items() if after[key] > limit]
        said = [f"{key}: {after[key]:.3g} would be reached, {limits[key]:g} are allowed" for key in over]
        return f"The budget ends the search before {trial.label} ({'; '.join(said)})." if over else None


@dataclass(frozen=True)
class Forecast:
    """Seconds that jobs will take: the plan's arithmetic, times how far it was off for the jobs that are done."""

    needs: Needs
    records: Sequence[Record]

    def seconds(self, new: Sequence[Trial], at_once: float = 1.0) -> float:
        """To make and grade these, then to weigh them and all that was graded before, and to confirm the answer.

        Of all jobs added up, as a budget counts; on the clock where so many run `at_once`. Weighings never do.
        """
        graded = [r.trial for r in self.records if r.job == "grade" and r.status == "done"]
        full = [t for t in (*graded, *new) if t.variant.fidelity == self.needs.study.fidelity]
        return (self._trying(new) + self._confirming(full)) / at_once + self._weighing(full)

    def _trying(self, new: Iterable[Trial]) -> float:
        """A fine-tuning that several share is made once."""
        there = {record.trial.variant.id for record in self.records if record.job == "make"}
        seconds, made = 0.0, set(self._made)
        for trial in new:
            is_made = trial.is_baseline or trial.variant.id in there
            seconds += self._grade(trial) + (0.0 if is_made else self._make(trial, made))
            made |= set(tunings(trial))
        return seconds

    def _weighing(self, trials: Iterable[Trial]) -> float:
        """Rounds that are still to come."""
        first = {trial.label: trial for trial in reversed(list(trials))}
        rounds = self.needs.study.protocol.rounds
        done = {(r.trial.label, r.round) for r in self.records if r.job == "weigh"}
        left = sum(rounds - sum((label, n) in done for n in range(rounds)) for label in first)
        tasks, window = len(self.needs.examples), self.needs.study.protocol.window_seconds
        return left * (SECONDS_PER_START + tasks * (WARM_UP_SECONDS + window)) * self._correction("weigh")

    def _confirming(self, trials: Sequence[Trial]) -> float:
        """The reference and one candidate meet the test split; baselines take little beyond their start."""
        if any(record.job == "confirm" for record in self.records):
            return 0.0
        models = [trial for trial in trials if not trial.is_baseline]
        plain = len({trial.label for trial in trials if trial.is_baseline})
        each = max((self._grade(trial, "test") for trial in models), default=0.0)
        repeats = len({(trial.variant.seed, trial.variant.fold) for trial in trials}) or 1
        return repeats * (2 * each + plain * SECONDS_PER_START)

    def _make(self, trial: Trial, made: Set[Tuning]) -> float:
        fresh = [each for each in tunings(trial) if each not in made]
        return self._make_seconds(trial, fresh) * self._correction("make")

    def _grade(self, trial: Trial, split: str = "validation") -> float:
        return self._grade_seconds(trial, split) * self._correction("grade")

    def _make_seconds(self, trial: Trial, fresh: Sequence[Tuning]) -> float:
        operations = sum(self.needs.training(trial, len(steps)) for _, steps, *_ in fresh)
        return SECONDS_PER_START + operations / self.needs.operations_per_second

    def _grade_seconds(self, trial: Trial, split: str) -> float:
        return SECONDS_PER_START + self.needs.asking(trial, split) / self.needs.operations_per_second

    def _correction(self, job: Job) -> float:
        """What finished jobs of this kind took over what was foretold for them; 1 before there are any."""
        return self._corrections.get(job, 1.0)

    @cached_property
    def _corrections(self) -> Mapping[Job, float]:
        found: dict[Job, list[tuple[float, float]]] = {}
        for record in self.records:
            wall = record.facts.get(WALL)
            if record.status == "done" and isinstance(wall, int | float) and not record.trial.is_baseline:
                found.setdefault(record.job, []).append((float(wall), self._foretold(record)))
        return {job: sum(w for w, _ in pairs) / sum(f for _, f in pairs) for job, pairs in found.items()}

    def _foretold(self, record: Record) -> float:
        if record.job == "make":
            done = tunings(record.trial)
            spent = sum(m.stage == "finetune" and not m.reused for m in record.measurements)
            return self._make_seconds(record.trial, done[len(done) - spent :])
        if record.job == "weigh":
            tasks, window = len(self.needs.examples), self.needs.study.protocol.window_seconds
            return SECONDS_PER_START + tasks * (WARM_UP_SECONDS + window)
        return self._grade_seconds(record.trial, "test" if record.job == "confirm" else "validation")

    @cached_property
    def _made(self) -> set[Tuning]:
        done = [record.trial for record in self.records if record.job == "make" and record.status == "done"]
        return {each for trial in done for each in tunings(trial)}


def tunings(trial: Trial) -> list[Tuning]:
    """Every fine-tuning that a trial's variant rests on, in order."""
    variant, recipe = trial.variant, trial.variant.recipe
    return [
        (_base(recipe), recipe.steps[: place + 1], variant.seed, variant.fold, variant.fidelity.steps)
        for place, step in enumerate(recipe.steps)
        if step.room == "finetune"
    ]


def _base(recipe: Recipe) -> str:
    return f"{recipe.base} {recipe.revision}"
