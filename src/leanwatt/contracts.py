"""Every extension point, on one page.

A class below is a room; its folder holds one file per method. To add a method, drop a file in the
folder: its name is the method's name in the YAML, its one public class is the method, the fields of
that class are the method's settings, and the pip extra it needs (if any) has the file's name.
Nothing is registered and no other file changes.

Each class here is abstract; each method is a frozen dataclass marked `@final`. What needs a live
resource (a model in memory, a sensor, a polling thread) gets it from `open()`, which also gives it back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from leanwatt.measurement import Reading
    from leanwatt.model import Model
    from leanwatt.question import Answer, Example, Question
    from leanwatt.recipe import Trial
    from leanwatt.record import Record

Progress = Callable[[str, float], None]
"""Told a short text and the share done, from 0 to 1."""


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model. Never the test split."""

    train: Sequence[Example]
    validation: Sequence[Example]
    seed: int
    folder: Path
    """For checkpoints; survives a kill, and is emptied when the step is done. A `curve.json` in it is kept."""
    progress: Progress
    parent: Path | None = None
    """The saved model before the first pruning of the recipe; None where nothing was pruned."""
    max_steps: int | None = None
    """Most optimizer steps; None leaves it to the method's settings."""
    stage: Callable[[str], AbstractContextManager[object]] = nullcontext
    """Weighs a part of the step apart: `with context.stage("calibrate"): ...`."""
    read: Callable[[], Reading] | None = None
    """The open meter, for a step that tells what it spent along the way; None where nothing is measured."""


@dataclass
class Outlook:
    """What a model will be after the steps so far, as far as configuration and names tell."""

    config: Any
    """A copy of the base's configuration, changed as the steps will change the model's."""
    left: dict[str, str] = field(default_factory=dict)
    """`adapters`, `masks`, `pattern`, `codes`, `cast`, `vocabulary` or `pruned` -> the step that left it so."""
    warnings: list[str] = field(default_factory=list)


class Step(ABC):
    """`finetune/`, `merge/`, `prune/`, `quantize/`: turns a model into another model."""

    version: ClassVar[int] = 1
    """Raise it when the method's output changes: artifacts made before are then made anew."""
    reads_data: ClassVar[bool] = False
    """True where `apply` looks at the examples: the cache then follows the data too."""

    def files(self) -> Sequence[Path]:
        """Files of the user's that `apply` reads, such as a text to calibrate on: the cache follows their content."""
        return ()

    def foresee(self, outlook: Outlook) -> None:  # noqa: B027 - a step that changes nothing of it writes nothing.
        """Change `outlook` as `apply` will change the model. Raises RefusedError for what can be told already.

        Asked before the first joule; `outlook.py` knows the orders that hold for whole rooms.
        """

    @abstractmethod
    def apply(self, model: Model, context: Context) -> Model:
        """The new model; `model` may be changed in place. Raises RefusedError if it cannot be done here."""


class Task(ABC):
    """`tasks/`: what is asked of a model, and how good its answers are."""

    primary: ClassVar[str]
    """The metric in [0, 1] that ranks: a key of what `grade` and `metrics` give."""

    @abstractmethod
    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold, each with its split. Raises DataError."""

    @abstractmethod
    def grade(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Sequence[Mapping[str, Any]]:
        """One flat row per example, from which metrics.py computes every figure and its interval."""


class Session(Protocol):
    """An opened engine or a fitted baseline."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What really runs: `weight_dtype`, `compute_dtype`, `kernel`, `requantized`, `weight_bytes`."""
        ...

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """One answer per question, in order, whatever the batch size."""
        ...


class Engine(ABC):
    """`engine/`: runs a saved model."""

    uses_gpu: ClassVar[bool] = False
    """True where it runs on an NVIDIA GPU that torch sees: the plan tells when a GPU would stand idle."""
    takes_adapters: ClassVar[bool] = False
    """True where it runs a model whose adapters are not merged. All others refuse one; the plan says so first."""

    @abstractmethod
    def open(self, artifact: Path, batch: int) -> AbstractContextManager[Session]:
        """Load `artifact`, answering up to `batch` questions at once. Raises RefusedError if it cannot run it."""


class Baseline(ABC):
    """`baseline/`: what one would use instead of a language model; weighed by the same meter."""

    @abstractmethod
    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Learn one task from its training examples; None where the task is not one it can do."""


class Meter(ABC):
    """`meter/`: a source of energy readings. What it opens tells the running total."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Callable[[], Reading]]:
        """Start reading. A device that cannot be read is absent from the readings; raises MeterError if it must be."""


class Search(ABC):
    """`search/`: which trials are wanted, given what is known so far.

    A pure function of what is in the store, so that a run that was stopped goes on to the same choices. It may name
    trials that are already done; when all it wants is done, so is the study. It always wants the reference, whose
    trials stand first in the space, and the baselines. Trials of less fidelity than the space's are for the search
    alone: they are made and graded, and never weighed, ranked or confirmed.
    """

    @abstractmethod
    def wanted(self, space: Sequence[Trial], records: Sequence[Record], running: Sequence[Trial]) -> Sequence[Trial]:
        """Everything wanted so far, including what is done."""


class Executor(ABC):
    """`executor/`: where jobs run. Two weighings never share a device."""

    store: str | None = None
    """URL through which models and records go, where machines share no folder. A setting, if a method offers it."""

    @abstractmethod
    def run(
        self, job: Callable[[Any], Any], items: Iterable[Any], *, alone: bool = False
    ) -> Generator[Any, None, None]:
        """The outcome of `job` for each item, as each is over. Both must pickle. A worker that dies yields WorkerDied.

        The next item is asked for when there is a place for it; an item that is None says that nothing can start until
        another job is over. With `alone` one job runs after the other, all on the same machine, and nothing beside it.
        """


@dataclass(frozen=True)
class WorkerDied:
    """A worker ended without an answer: killed for memory, crashed in native code, or its machine was lost."""

    item: Any
    reason: str
    is_lost: bool = False
    """The job may do better elsewhere, and is worth another try."""
    machine: Mapping[str, Any] | None = None
    """Where it ran, as machine.py tells; None for this machine, empty where nobody is left to tell."""
