"""What would run, what is there already, and whether it can: everything is checked before the first joule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leanwatt import catalog, split, starter
from leanwatt.bill import SECONDS_PER_HOUR
from leanwatt.console import duration
from leanwatt.contracts import Task
from leanwatt.errors import RefusedError, StudyError
from leanwatt.machine import available_memory_bytes, describe, free_disk_bytes, usable_cpus
from leanwatt.model import accelerator, config_of, context_length, inner_size
from leanwatt.outlook import foresee
from leanwatt.question import Example, Likelihood, Prompt, Score
from leanwatt.recipe import Choice, Recipe, Trial
from leanwatt.record import record_id
from leanwatt.store import Store
from leanwatt.study import Study
from leanwatt.survey import Summary, summary

BYTES_TRAINED = 16
"""Per parameter in training: weight, gradient and AdamW's two moments, 4 bytes each."""
BYTES_RUN = 8
"""Per parameter in loading, checking and converting: two copies in fp32."""
PROCESS_BYTES = 1.2e9
"""A worker with torch and an engine, before any model."""
VALUES_KEPT = 34
"""Per token, block and unit of width, for the way back (Korthikanti et al., 2022, arXiv:2205.05198)."""
TOKENS_PER_WORD = 2.0
"""Rough; plans are in words, since a base that is not there yet has no tokenizer."""
SECONDS_PER_START = 1.0
"""A process of its own that reads its data and opens its model."""


@dataclass(frozen=True)
class Plan:
    """A checked study, and what it would take."""

    study: Study
    trials: tuple[Trial, ...]
    done: int
    """Trials that are graded already."""
    data: str
    """Digest of all that the tasks ask and expect."""
    folds: int
    summaries: Mapping[str, Summary]
    """Of each task's data, in the first fold."""
    warnings: tuple[str, ...]
    hours: float
    memory_bytes: float
    disk_bytes: float
    needs: Needs
    """What the predictions rest on; a budget asks it before every trial."""

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        labels = list(dict.fromkeys(trial.label for trial in self.trials))
        found = [f"{len(labels)} variants and baselines, {len(self.trials)} trials, {self.done} done:"]
        found += [f"  {label}" for label in labels]
        for task, each in self.summaries.items():
            found += [f"Data of {task}:", *(f"  {line}" for line in each.lines())]
        found += [f"Warning: {warning}" for warning in self.warnings]
        search = self.study.search.name
        fewer = "" if search == "grid" else f" Of all variants; the search {search} tries fewer."
        if self.study.executor.name != "local":
            fewer += " One job after the other; several workers take less time."
        took, memory, disk = duration(self.hours * SECONDS_PER_HOUR), self.memory_bytes / 1e9, self.disk_bytes / 1e9
        found.append(f"Predicted, roughly: {took}, {memory:.1f} GB of memory, {disk:.2f} GB of disk.{fewer}")
        return found


def check(study: Study, store: Store) -> Plan:
    """Check settings, data, bases, memory and disk. Raises UserError for whatever cannot be."""
    for choice in study.choices():
        catalog.build(choice)
    tasks: dict[str, Task] = {choice.name: catalog.build(choice) for choice in study.tasks}
    folds = _folds(tasks)
    examples = {name: list(task.examples(0)) for name, task in tasks.items()}
    split.refuse_crossed(examples)
    data = _digest(examples)
    trials = study.trials(data, folds)
    _check_reference(study, trials)
    configs = _configs({trial.variant.recipe for trial in trials if not trial.is_baseline})
    needs = Needs(study, trials, examples, configs)
    warnings = [
        *_foreseen(study, trials, configs),
        *_idle_gpu(trials),
        *needs.refuse_what_cannot_fit(store.folder),
    ]
    done = sum(record_id("grade", trial) in store for trial in trials)
    return Plan(
        study=study,
        trials=tuple(trials),
        done=done,
        data=data,
        folds=folds,
        summaries={name: _summary(task) for name, task in tasks.items() if hasattr(task, "source")},
        warnings=tuple(warnings),
        hours=needs.hours(),
        memory_bytes=needs.memory_bytes(),
        disk_bytes=needs.disk_bytes(),
        needs=needs,
    )


def _folds(tasks: Mapping[str, Task]) -> int:
    """How often the data are split anew; the same for all tasks."""
    found = {name: task.source.folds if hasattr(task, "source") else 1 for name, task in tasks.items()}
    if len(set(found.values())) > 1:
        raise StudyError(f"tasks: folds differ ({found}); give every task the same number.")
    return next(iter(found.values()))


def _digest(examples: Mapping[str, Sequence[Example]]) -> str:
    """Of every question, answer and split: follows data, settings and prompts, and no file's place."""
    summed = hashlib.sha256()
    for name in sorted(examples):
        summed.update(name.encode())
        for example in examples[name]:
            summed.update(repr(example).encode())
    return summed.hexdigest()[:16]


def _check_reference(study: Study, trials: Sequence[Trial]) -> None:
    labels = {trial.label for trial in trials if not trial.is_baseline}
    if not labels:
        raise StudyError("The study has no variant of a language model; give a base.")
    if study.reference != "first" and study.reference not in labels:
        raise StudyError(f"reference: no trial is called '{study.reference}'. There are: {'; '.join(sorted(labels))}.")


def _foreseen(study: Study, trials: Sequence[Trial], configs: Mapping[Recipe, Any]) -> list[str]:
    """Which recipes will be refused, and which are doubtful. Raises StudyError where the reference cannot be made."""
    models = [trial for trial in trials if not trial.is_baseline]
    refused, warnings, adapted = {}, [], set()
    for recipe in dict.fromkeys(trial.variant.recipe for trial in models):
        try:
            outlook = foresee(recipe, configs[recipe])
        except RefusedError as error:
            refused[recipe] = str(error)
            continue
        warnings += [f"{recipe}: {warning}" for warning in outlook.warnings]
        adapted |= {recipe} if "adapters" in outlook.left else set()
    not_run = {
        trial.label: f"Its adapters are not merged, and engine {trial.engine.name} takes none; {_MERGED}."
        for trial in models
        if trial.variant.recipe in adapted and not catalog.find("engine", trial.engine.name).takes_adapters
    }
    first = next(trial for trial in models if study.reference in ("first", trial.label))
    if first.variant.recipe in refused:
        raise StudyError(f"The reference '{first.variant.recipe}' cannot be made. {refused[first.variant.recipe]}")
    if first.label in not_run:
        raise StudyError(f"The reference '{first.label}' cannot be run. {not_run[first.label]}")
    reasons = {str(recipe): reason for recipe, reason in refused.items()} | not_run
    return [*(f"{name} will be refused. {reason}" for name, reason in reasons.items()), *warnings]


_MERGED = "put `merge: [merge]` after finetune, or take engine: transformers"


def _idle_gpu(trials: Sequence[Trial]) -> list[str]:
    """Told where this machine has an NVIDIA GPU and every engine of the study computes on the CPU."""
    engines = list(dict.fromkeys(trial.engine.name for trial in trials if not trial.is_baseline))
    if any(catalog.find("engine", name).uses_gpu for name in engines):
        return []
    gpu = usable_gpu()
    if gpu is None:
        return []
    return [
        f"this machine has a GPU ({gpu}), and {', '.join(engines)} computes on the CPU: answers are given and weighed "
        "there. Write `engine: transformers` (or vllm) to use the GPU."
    ]


def usable_gpu() -> str | None:
    """Name of the first NVIDIA GPU of this machine; None without one, and where torch sees none."""
    gpus = describe()["gpus"]  # Asked first: torch takes a second to load.
    return str(gpus[0]) if gpus and accelerator() == "cuda" else None


def _configs(recipes: set[Recipe]) -> dict[Recipe, Any]:
    """Of every recipe; each base is looked at once."""
    firsts = {(recipe.base, recipe.revision): recipe for recipe in recipes}
    found = {base: _config(recipe) for base, recipe in firsts.items()}
    return {recipe: found[recipe.base, recipe.revision] for recipe in recipes}


def _config(recipe: Recipe) -> Any:
    return starter.config() if recipe.base == starter.NAME else config_of(recipe.base, recipe.revision)


def _summary(task: Any) -> Summary:
    return summary(task.source, task.columns)


def parameters(config: Any) -> float:
    """Roughly how many weights a configuration has: embeddings, attention and MLP of a decoder."""
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    words = int(config.vocab_size) * hidden * (1 if getattr(config, "tie_word_embeddings", True) else 2)
    return float(words + layers * (4 * hidden * hidden + 3 * hidden * inner_size(config)))


@dataclass(frozen=True)
class Needs:
    """Predictions, rough and stated so: they are to refuse what cannot fit and to tell minutes from days."""

    study: Study
    trials: Sequence[Trial]
    examples: Mapping[str, Sequence[Example]]
    configs: Mapping[Recipe, Any]

    def refuse_what_cannot_fit(self, folder: Path) -> list[str]:
        """Raises StudyError for too little memory or disk; returns warnings."""
        memory, disk = available_memory_bytes(), free_disk_bytes(folder)
        if memory is not None and self.memory_bytes() > memory:
            raise StudyError(
                f"This needs about {self.memory_bytes() / 1e9:.1f} GB of memory and {memory / 1e9:.1f} GB are free. "
                "Use a smaller base or batch, or lora instead of full fine-tuning."
            )
        if self.disk_bytes() > disk:
            raise StudyError(
                f"This needs about {self.disk_bytes() / 1e9:.1f} GB of disk; {disk / 1e9:.1f} GB are free in {folder}."
            )
        return [warning for config in self._different() if (warning := self._too_long(config))]

    def memory_bytes(self) -> float:
        """Of the largest single job: weights, and what training keeps of a batch for its way back."""
        runs = [parameters(config) * BYTES_RUN for config in self.configs.values()]
        trains = [self._training_bytes(recipe, step) for recipe in self.configs for step in recipe.steps]
        return PROCESS_BYTES + max([*runs, *trains], default=0.0)

    def _training_bytes(self, recipe: Recipe, step: Choice) -> float:
        if step.room != "finetune":
            return 0.0
        config = self.configs[recipe]
        longest = max((_words(e) for each in self.examples.values() for e in each if e.split == "train"), default=0)
        method = catalog.build(step)
        lessons = float(getattr(method, "at_once", None) or getattr(method, "batch", None) or 1)
        tokens = min(longest * TOKENS_PER_WORD, context_length(config)) * lessons
        kept = VALUES_KEPT * int(config.hidden_size) * int(config.num_hidden_layers) + 3 * int(config.vocab_size)
        return parameters(config) * BYTES_TRAINED + 4 * tokens * kept

    def disk_bytes(self) -> float:
        """All stages of all variants, in fp32 and once more as an engine's own copy.

        With `cache_gb` no more than that, nor less than the variant with the most stages takes.
        """
        stages = {(recipe.base, recipe.steps[:n]) for recipe in self.configs for n in range(len(recipe.steps) + 1)}
        sizes = {recipe.base: parameters(config) for recipe, config in self.configs.items()}
        repeats = len({(trial.variant.seed, trial.variant.fold) for trial in self.trials})
        whole = sum(sizes[base] * 8 for base, _ in stages) * repeats
        if self.study.cache_gb is None:
            return whole
        largest = max((sizes[recipe.base] * 8 * (len(recipe.steps) + 1) for recipe in self.configs), default=0.0)
        return min(whole, max(largest, self.study.cache_gb * 1e9))

    def hours(self) -> float:
        """Arithmetic over a speed measured now, plus starts of processes."""
        operations = sum(self.training(*tuned) for tuned in self._tuned()) + sum(map(self.asking, self.trials))
        if any(recipe.base == starter.NAME for recipe in self.configs) and not starter.is_made():
            operations += 6 * parameters(starter.config()) * starter.Shape.tickets * starter.TOKENS_PER_TICKET
        labels = len({trial.label for trial in self.trials})
        starts = 2 * len(self.trials) + labels * self.study.protocol.rounds
        windows = labels * self.study.protocol.rounds * len(self.examples) * 2 * self.study.protocol.window_seconds
        return (operations / self.operations_per_second + starts * SECONDS_PER_START + windows) / SECONDS_PER_HOUR

    @cached_property
    def operations_per_second(self) -> float:
        """Measured once."""
        return _operations_per_second()

    def _tuned(self) -> list[tuple[Trial, int]]:
        """Every distinct fine-tuning, as a trial and how many of its steps: variants that share it share its cost."""
        found = {}
        for trial in self.trials:
            recipe = trial.variant.recipe
            for place, step in enumerate(recipe.steps, 1):
                if step.room == "finetune":
                    found[recipe.base, recipe.steps[:place], trial.variant.seed, trial.variant.fold] = (trial, place)
        return list(found.values())

    def training(self, trial: Trial, place: int) -> float:
        """Operations of the fine-tuning that is step number `place`, from 1, of a trial's recipe."""
        recipe, method = trial.variant.recipe, catalog.build(trial.variant.recipe.steps[place - 1])
        lessons = [_words(e) for each in self.examples.values() for e in each if e.split == "train"]
        epochs, most = float(getattr(method, "epochs", 1.0)), trial.variant.fidelity.steps
        if most is not None and lessons:
            epochs = min(epochs, most * float(getattr(method, "batch", 1)) / len(lessons))
        return 6 * parameters(self.configs[recipe]) * sum(lessons) * TOKENS_PER_WORD * epochs

    def asking(self, trial: Trial, split: str = "validation") -> float:
        """Operations of answering a split once, as far as the trial's fidelity asks."""
        if trial.is_baseline:
            return 0.0
        most = trial.variant.fidelity.examples if split == "validation" else None
        words = 0.0
        for each in self.examples.values():
            sizes = [_words(e) for e in each if e.split == split]
            words += sum(sizes) * min(1.0, (most or len(sizes)) / len(sizes)) if sizes else 0.0
        return 2 * parameters(self.configs[trial.variant.recipe]) * words * TOKENS_PER_WORD * 2

    def _different(self) -> list[Any]:
        return list({id(config): config for config in self.configs.values()}.values())

    def _too_long(self, config: Any) -> str | None:
        room, sizes = context_length(config), [_words_at_once(e) for each in self.examples.values() for e in each]
        cut = sum(size * TOKENS_PER_WORD > room for size in sizes)
        if not cut:
            return None
        return f"about {cut} of {len(sizes)} prompts may not fit the context of {room} tokens; their start is cut."


def _words(example: Example) -> int:
    """Words of a question with its answer or all of its options."""
    question = example.question
    if isinstance(question, Likelihood):
        return len(question.text.split())
    return _words_with(question.prompt, " ".join(question.options) if isinstance(question, Score) else example.target)


def _words_at_once(example: Example) -> int:
    """Words that the context must hold: options stand beside each other, and a text without a question is windowed."""
    question = example.question
    if isinstance(question, Likelihood):
        return 0
    longest = max(question.options, key=len) if isinstance(question, Score) else example.target
    return _words_with(question.prompt, longest)


def _words_with(prompt: Prompt, answer: str) -> int:
    return sum(len(text.split()) for text in (prompt.instruction, prompt.body, answer))


def _operations_per_second() -> float:
    """Of matrix products of a small model's size; small models reach about a third of the best.

    One thread is timed, and counted once for each that there is: several would wait for each other on a busy machine.
    """
    import time

    import numpy as np
    from threadpoolctl import threadpool_limits

    one, best = np.ones((256, 256), np.float32), float("inf")
    with threadpool_limits(1):
        for _ in range(50):
            begin = time.perf_counter()
            one @ one
            best = min(best, time.perf_counter() - begin)
    return usable_cpus() * 2 * 256**3 / best / 3
