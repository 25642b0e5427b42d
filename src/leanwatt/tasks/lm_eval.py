"""Any single task of the EleutherAI evaluation harness, or one of your own in its YAML (extra `lm_eval`).

The harness gives the prompts, the choices and the grading; Leanwatt asks, weighs and ranks. Tasks of the types
multiple_choice, generate_until and loglikelihood_rolling can be asked. Ranked by `score`: the harness's own figure of
each document, from 0 to 1; of a rolling likelihood the mean probability of a byte. All its figures stand beside it as
`harness_<name>`. Figures differ a little from the harness's own: an option is scored with its end token, one blank
stands before an answer, and writing is always greedy. Where a task has one held-out split only, half of it validates
and half tests, so that no choice sees the test half. Reference: github.com/EleutherAI/lm-evaluation-harness, 0.4.13.
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

from annotated_types import Ge

from leanwatt.contracts import Task
from leanwatt.errors import DataError, MissingExtraError, StudyError, not_among
from leanwatt.question import Answer, Example, Generate, Likelihood, Prompt, Question, Score, Split
from leanwatt.tasks._rows import effort
from leanwatt.tasks._scoring import chances

TYPES = ("multiple_choice", "generate_until", "loglikelihood_rolling")


@final
@dataclass(frozen=True)
class LmEval(Task):
    """A task of the harness."""

    primary: ClassVar[str] = "score"

    task: str
    """Its name in the harness, or in a file of `data`."""
    data: str | None = None
    """Folder with task files (YAML) of your own; data files that they name are looked for beside them."""
    metric: str | None = None
    """Which of the harness's figures is the score; by default the first that lies between 0 and 1."""
    filter: str | None = None
    """Which of the task's filters reads the answers; by default its first."""
    shots: Annotated[int, Ge(0)] | None = None
    """Solved examples in the prompt; by default as many as the task says."""
    limit: Annotated[int, Ge(1)] = 256
    """Most tokens of a written answer, unless the task says so itself."""
    group: str | None = None
    """Field of a document whose equal values are resampled together; by default each stands for itself."""
    seed: int = 0
    """Of the division into halves and of the solved examples."""

    def __post_init__(self) -> None:
        """Refuse what cannot be read before anything runs. Raises MissingExtraError."""
        if find_spec("lm_eval") is None:
            raise MissingExtraError("tasks: lm_eval needs 'lm_eval'. Install it with: pip install 'leanwatt[lm_eval]'")

    def examples(self, fold: int) -> Sequence[Example]:
        """All documents of all splits; there is one fold. Raises DataError, StudyError."""
        return list(_examples(self))

    def grade(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Sequence[Mapping[str, Any]]:
        """One row per example: `score`, `harness_<name>`, what calibration and byte figures need, and the effort."""
        loaded, found = _load(self), []
        asked = [_asked(loaded, loaded.docs[e.id], "", e.id) for e in examples]
        for instances, answer in zip(asked, answers, strict=True):
            for instance, reply in zip(instances, _replies(loaded.kind, answer), strict=True):
                instance.resps = [reply]
        loaded.harness._instances = [instance for instances in asked for instance in instances]
        loaded.harness.apply_filters()
        for example, instances, answer in zip(examples, asked, answers, strict=True):
            found.append(self._row(loaded, example, instances, answer))
        return found

    def _row(self, loaded: "_Loaded", example: Example, instances: list[Any], answer: Answer) -> dict[str, Any]:
        name = self._filter(instances[0].filtered_resps)
        given = loaded.harness.process_results(
            loaded.docs[example.id], [instance.filtered_resps[name] for instance in instances]
        )
        row: dict[str, Any] = effort(answer)
        if loaded.kind == "loglikelihood_rolling":
            question = example.question
            size = question.bytes if isinstance(question, Likelihood) else 1
            return {**row, "nats": -answer.scores[0], "bytes": size, "score": math.exp(answer.scores[0] / size)}
        if loaded.kind == "multiple_choice":
            given.pop("exact_match", None)  # Whether greedy writing gives the option is not asked.
        shares = {key: float(value) for key, value in given.items() if _is_share(value)}
        row |= {f"harness_{key}": value for key, value in shares.items()}
        better = loaded.harness.higher_is_better()
        row["score"] = shares[self._metric({key: share for key, share in shares.items() if better.get(key, True)})]
        if isinstance(example.question, Score) and "acc" in shares:
            row |= {
                "correct": bool(shares["acc"]),
                "confidence": max(chances(example, example.question, answer)),
            }
        return row

    def _metric(self, shares: Mapping[str, float]) -> str:
        if not shares:
            raise StudyError(f"tasks.lm_eval: {self.task} gives no figure between 0 and 1 for each document.")
        if self.metric is not None and self.metric not in shares:
            raise StudyError(not_among(f"the figures of {self.task} that can be a score", self.metric, shares))
        return self.metric or next(iter(shares))

    def _filter(self, found: Mapping[str, Any]) -> str:
        if self.filter is not None and self.filter not in found:
            raise StudyError(not_among(f"the filters of {self.task}", self.filter, found))
        return self.filter or next(iter(found))


@dataclass(frozen=True)
class _Loaded:
    """A task of the harness with its documents."""

    harness: Any
    kind: str
    docs: Mapping[str, Any]
    """By the id of the example."""
    splits: Mapping[str, Split]


@lru_cache(maxsize=4)
def _load(task: LmEval) -> _Loaded:
    from lm_eval.tasks import TaskManager

    folder = Path(task.data).resolve() if task.data else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"tasks.lm_eval.data: {task.data} is no folder; give the one with your task files.")
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if task.task not in manager.all_subtasks:
        raise StudyError(not_among("the single tasks of the harness", task.task, manager.all_subtasks))
    try:
        with chdir(folder) if folder else nullcontext():  # Data files that a task names are looked for from here.
            [harness] = manager.load(task.task)["tasks"].values()
    except (OSError, ValueError) as error:
        raise DataError(
            f"tasks.lm_eval: the data of {task.task} cannot be loaded ({error}). Is its file there, or its hub?"
        ) from error
    kind = str(harness.OUTPUT_TYPE)
    if kind not in TYPES:
        raise StudyError(not_among("the types of harness tasks that can be asked here", kind, TYPES))
    docs = {f"{split}-{place}": (split, doc) for split, each in _parts(harness, task).items() for place, doc in each}
    return _Loaded(
        harness, kind, {i: doc for i, (_, doc) in docs.items()}, {i: split for i, (split, _) in docs.items()}
    )


def _parts(harness: Any, task: LmEval) -> dict[Split, list[tuple[int, Any]]]:
    """Documents by split, each with its place in the harness's own split. Raises StudyError without a held-out one."""
    train = list(enumerate(harness.training_docs())) if harness.has_training_docs() else []
    validation = list(enumerate(harness.validation_docs())) if harness.has_validation_docs() else []
    test = list(enumerate(harness.test_docs())) if harness.has_test_docs() else []
    held_out = validation or test
    if not held_out:
        raise StudyError(f"tasks.lm_eval: {task.task} has no held-out documents; give one with a test split.")
    if validation and test:
        return {"train": train, "validation": validation, "test": test}
    order = random.Random(task.seed).sample(held_out, len(held_out))
    half = len(order) // 2
    return {"train": train, "validation": sorted(order[:half], key=_place), "test": sorted(order[half:], key=_place)}


def _place(numbered: tuple[int, Any]) -> int:
    return numbered[0]


@lru_cache(maxsize=4)
def _examples(task: LmEval) -> tuple[Example, ...]:
    loaded, found = _load(task), []
    loaded.harness.set_fewshot_seed(task.seed)
    # How it is graded belongs to an example, so that a change is graded anew.
    grading = {"metric": task.metric or "", "filter": task.filter or ""}
    shots = task.shots if task.shots is not None else int(loaded.harness.config.num_fewshot or 0)
    for name, doc in loaded.docs.items():
        prompt = loaded.harness.fewshot_context(doc, shots, gen_prefix=loaded.harness.doc_to_prefix(doc))
        question = _question(task, loaded, _asked(loaded, doc, prompt, name))
        group = str(doc[task.group]) if task.group else name
        target = _target(loaded, doc, question)
        found.append(Example(name, group, loaded.splits[name], question, target, grading))
    task.grade(found[:1], [_empty(found[0].question)])  # A wrong metric or filter is told before anything runs.
    return tuple(found)


def _empty(question: Question) -> Answer:
    """An answer that says nothing."""
    if isinstance(question, Generate):
        return Answer("")
    return Answer(scores=(0.0,) * len(question.options) if isinstance(question, Score) else (0.0,))


def _asked(loaded: _Loaded, doc: Any, prompt: str, name: str) -> list[Any]:
    """The harness's requests about one document."""
    made = loaded.harness.construct_requests(doc=doc, ctx=prompt, metadata=(name, 0, 1))
    return made if isinstance(made, list) else [made]


def _question(task: LmEval, loaded: _Loaded, instances: list[Any]) -> Question:
    arguments = [instance.args for instance in instances]
    if loaded.kind == "loglikelihood_rolling":
        return Likelihood(arguments[0][0])
    prompts = {pair[0] for pair in arguments}
    if len(prompts) > 1 or not all(isinstance(prompt, str) for prompt in prompts):
        raise StudyError(f"tasks.lm_eval: {task.task} puts its options into several prompts, which is not asked here.")
    prompt = Prompt("", arguments[0][0], "")
    if loaded.kind == "multiple_choice":
        return Score(prompt, tuple(option.strip() for _, option, *_ in arguments))
    settings = arguments[0][1]
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Generate(prompt, int(settings.get("max_gen_toks") or task.limit), stop)


def _target(loaded: _Loaded, doc: Any, question: Question) -> str:
    """What training learns: the first right answer; nothing for a likelihood."""
    if isinstance(question, Likelihood):
        return ""
    right = loaded.harness.doc_to_target(doc)
    right = right[0] if isinstance(right, list) else right
    if isinstance(right, int) and loaded.harness.config.doc_to_choice is not None:
        return str(loaded.harness.doc_to_choice(doc)[right]).strip()
    return str(right).strip()


def _replies(kind: str, answer: Answer) -> list[Any]:
    """What the harness expects from a model: per option the log-probability, and whether it was the greedy answer."""
    if kind == "generate_until":
        return [answer.text or ""]
    if kind == "multiple_choice":
        return [(score, False) for score in answer.scores]
    return [answer.scores[0]]


def _is_share(value: Any) -> bool:
    """A single number from 0 to 1: what can be averaged, resampled and ranked."""
    return isinstance(value, Real) and 0 <= float(value) <= 1
