"""A study with invented records, for tests of ranking and reports: what is set is what must be found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.plan import Needs
from leanwatt.rank import rank
from leanwatt.ranking import Ranking
from leanwatt.recipe import Trial
from leanwatt.record import Record
from leanwatt.study import Study

PRIMARIES = {"root_cause": "macro_f1", "response": "rouge_l"}
CAUSES = ("power", "link", "card", "fibre")
MACHINE = {"id": "m1", "cpu_model": "Test CPU <1>", "cpus": 2, "gpus": [], "utc": "2026-01-01T00:00:00+00:00"}


@dataclass(frozen=True)
class Truth:
    """What one variant is like."""

    cost: float = 1.0
    """Joules, and CPU-seconds, per answer."""
    right: float = 0.9
    """Share of causes that are right."""
    kernel: str = "dense float32"
    facts: Mapping[str, Any] = field(default_factory=dict)
    status: str = "done"
    only: tuple[str, ...] = ("root_cause", "response")
    right_on_test: float | None = None
    making: float = 100.0
    tokens_out: float = 3.0
    """Written per answer."""
    weak: Mapping[str, float] = field(default_factory=dict)
    """Causes of which another share is right."""


@dataclass
class World:
    """Studies and their records; change a field, then `ranking()`."""

    settings: dict[str, Any]
    truths: dict[str, Truth]
    provenance: Provenance = Provenance.MEASURED
    noise: float = 0.01
    examples: int = 600
    folds: int = 1
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("root_cause", "response")
    device: Callable[[str, int, float], dict[str, Energy]] | None = None
    factor: Callable[[Trial], float] = lambda trial: 1.0

    @property
    def study(self) -> Study:
        tasks = [{task: {"data": "tickets.csv"}} for task in self.tasks]
        return Study.parse({"name": "invented", "tasks": tasks, **self.settings})

    def trials(self) -> list[Trial]:
        return self.study.trials("data", self.folds)

    def needs(self) -> Needs:
        """Of data without a word and a model without a weight: starts, rounds and windows alone are foretold."""
        config = SimpleNamespace(hidden_size=0, num_hidden_layers=0, vocab_size=0, intermediate_size=0)
        recipes = {trial.variant.recipe for trial in self.trials() if not trial.is_baseline}
        return Needs(self.study, self.trials(), {task: [] for task in self.tasks}, dict.fromkeys(recipes, config))

    def records(self, confirmed: Sequence[str] = ()) -> list[Record]:
        found = []
        for trial in self.trials():
            truth = self.truth(trial)
            found += self._making(trial, truth)
            if truth.status == "done":
                found += [self._graded("grade", trial, truth.right)]
                found += [self._weighed(trial, truth, number) for number in range(self.study.protocol.rounds)]
            if trial.label in confirmed:
                right = truth.right if truth.right_on_test is None else truth.right_on_test
                found.append(self._graded("confirm", trial, right))
        return found

    def truth(self, trial: Trial) -> Truth:
        [name] = [name for name in self.truths if name == self.name(trial)]
        return self.truths[name]

    def name(self, trial: Trial) -> str:
        steps = [step.name for step in trial.variant.recipe.steps if step.room != "finetune"]
        return trial.engine.name if trial.is_baseline else "+".join(steps) or "plain"

    def label(self, name: str) -> str:
        return next(trial.label for trial in self.trials() if self.name(trial) == name)

    def ranking(self, confirmed: Sequence[str] = (), records: Sequence[Record] | None = None) -> Ranking:
        found = self.records(confirmed) if records is None else records
        return rank(self.study, {task: PRIMARIES[task] for task in self.tasks}, found, self.rows_of)

    def rows_of(self, record: Record) -> list[dict[str, Any]]:
        return self.rows[record.predictions or ""]

    def _making(self, trial: Trial, truth: Truth) -> list[Record]:
        if trial.is_baseline:
            return []
        shared = Measurement("finetune", 50, 50, self._devices("finetune", 0, 50 * 10), reused=trial.ordinal > 0)
        own = Measurement("quantize", truth.making, truth.making, self._devices("quantize", 0, truth.making * 10))
        error = "ValueError: no <b>room</b>\nTraceback: secret ticket" if truth.status != "done" else None
        facts = {"bytes_on_disk": 1000}
        stages = (shared, own)
        return [Record("make", trial, truth.status, measurements=stages, facts=facts, machine=MACHINE, error=error)]  # type: ignore[arg-type]

    def _graded(self, job: str, trial: Trial, right: float) -> Record:
        truth, name = self.truth(trial), f"{job} {trial.id}"
        self.rows[name] = [
            row for task in self.tasks if task in truth.only for row in self._rows(job, trial, task, right)
        ]
        facts = {"kernel": truth.kernel, **truth.facts}
        stages = (Measurement("load", 2, 2, self._devices("load", 0, 20.0)),)
        return Record(job, trial, "done", measurements=stages, predictions=name, facts=facts, machine=MACHINE)  # type: ignore[arg-type]

    def _rows(self, job: str, trial: Trial, task: str, right: float) -> list[dict[str, Any]]:
        """The same hard examples are wrong for everybody: the k-th hardest are missed."""
        count = self.examples // self.folds
        hard = (
            np.random.default_rng([trial.variant.fold, trial.variant.seed, job == "grade"]).permutation(count) / count
        )
        first = trial.variant.fold * count
        found = []
        for place, how_hard in enumerate(hard):
            number = first + place
            row: dict[str, Any] = {"task": task, "id": str(number), "group": f"g{number}"}
            is_right = bool(how_hard < right)
            if task == "root_cause":
                target = CAUSES[number % 4]
                is_right = bool(how_hard < self.truth(trial).weak.get(target, right))
                chosen = target if is_right else CAUSES[(number + 1) % 4]
                row |= {"target": target, "chosen": chosen, "correct": is_right, "confidence": 0.9}
            else:
                row |= {"rouge_l": 0.9 if is_right else 0.1, "token_f1": 0.5, "reference": "SECRET TICKET"}
            found.append(row)
        return found

    def _weighed(self, trial: Trial, truth: Truth, number: int) -> Record:
        common = np.random.default_rng([7, number]).normal(0, 0.2)  # heat and neighbours of the round
        own = np.random.default_rng([int(trial.id[:8], 16), number]).normal(0, self.noise)
        each = truth.cost * self.factor(trial) * float(np.exp(common + own))
        stages = tuple(
            Measurement(
                f"weigh/{task}",
                seconds=50 * each,
                cpu_seconds=100 * each,
                devices=self._devices(self.name(trial), number, 100 * each),
                idle_watts={"package-0": 0.5},
                answers=100,
                tokens_out=round(100 * truth.tokens_out),
            )
            for task in self.tasks
            if task in truth.only
        )
        facts = {"kernel": truth.kernel, **truth.facts}
        return Record("weigh", trial, "done", round=number, measurements=stages, facts=facts, machine=MACHINE)

    def _devices(self, name: str, number: int, joules: float) -> dict[str, Energy]:
        if self.device is not None:
            return self.device(name, number, joules)
        if self.provenance == Provenance.ABSENT:
            return {}
        energy = Energy(joules, joules * 0.9, joules * 1.1, self.provenance, source="rapl", scope="package")
        return {"package-0": energy}


def world(**truths: Truth) -> World:
    """Reference `plain`, a good and cheap `gptq`, a cheap and bad `wanda`, both, and a TF-IDF that does one task."""
    settings = {
        "steps": [
            {"finetune": [{"full": {"precision": "fp32"}}]},
            {"prune": ["none", {"wanda": {"sparsity": 0.5}}]},
            {"quantize": ["none", {"gptq": {"bits": 4}}]},
        ],
        "baselines": ["tfidf"],
        "engine": "openvino",
    }
    usual = {
        "plain": Truth(facts={"weight_dtype": "bfloat16"}),
        "gptq": Truth(cost=0.5, right=0.9, facts={"weight_bytes": 400, "weight_dtype": "int4"}),
        "wanda": Truth(cost=0.99, right=0.7, facts={"sparsity": 0.5}),
        "wanda+gptq": Truth(cost=0.45, right=0.6),
        "tfidf": Truth(cost=0.01, right=0.8, kernel="classical", only=("root_cause",)),
    }
    return World(settings, usual | truths)
