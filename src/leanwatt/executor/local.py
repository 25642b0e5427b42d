"""One job after another on this machine, each in a fresh process: a crash harms nothing else, and memory comes back."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

from leanwatt.contracts import Executor
from leanwatt.executor._process import outcome_of
from leanwatt.processes import or_raise


@final
@dataclass(frozen=True)
class Local(Executor):
    """Run jobs here."""

    process: Literal["fresh", "same"] = "fresh"
    """`same` runs in this process: for debugging."""

    def run(
        self, job: Callable[[Any], Any], items: Iterable[Any], *, alone: bool = False
    ) -> Generator[Any, None, None]:
        """The outcome of each item, in order; a worker that dies yields WorkerDied. Every job is alone here."""
        for item in items:
            yield job(item) if self.process == "same" else _in_fresh_process(job, item)


def _in_fresh_process(job: Callable[[Any], Any], item: Any) -> Any:
    return or_raise(outcome_of(job, item))
