"""The same study over a Ray cluster: making and grading on all machines at once, weighing on one that is left alone.

Nodes need the folder of results and the data under the same path (docs/cluster.md). Every job holds a lease of the
machine that it runs on, in a process of its own. A worker that dies is tried once more, elsewhere if there is another
node, and then recorded as failed; both attempts are kept.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, final

from annotated_types import Ge

from leanwatt.contracts import Executor
from leanwatt.errors import require
from leanwatt.executor._cluster import UNSENT, Cluster, Running, connect, leases, new_lease, outcome, send
from leanwatt.executor._leases import WHOLE

WAIT_SECONDS = 1.0
END = object()


@final
@dataclass(frozen=True)
class Ray(Executor):
    """Run jobs on the nodes of a cluster."""

    address: str = "auto"
    """`auto` for the cluster that this machine belongs to, `host:port` for another, `local` for one of its own here."""
    jobs_per_host: Annotated[int, Ge(1)] = 1
    """How many make or grade at once on one machine. Above 1, sensors count the neighbours too, and windows are
    `contended`; weighings are alone whatever is set."""
    weigh_on: str | None = None
    """A Ray resource that the node must offer on which is weighed; by default the machine with most GPUs, then CPUs."""
    store: str | None = None
    """URL (`s3://bucket/study`) through which models and records go, where nodes share no folder; the package of its
    kind is needed, such as s3fs."""

    def __post_init__(self) -> None:
        require("ray", "executor", "ray")

    def run(
        self, job: Callable[[Any], Any], items: Iterable[Any], *, alone: bool = False
    ) -> Generator[Any, None, None]:
        """Outcomes as they come. Raises StudyError without a cluster, StoreError where no node is left in it."""
        back, running = list[Any](), dict[Any, Running]()
        source = _with_those_back(iter(items), back)
        try:
            while self._send_off(job, source, running, alone) or running or back:
                for reference in _ended(running):
                    ended = running.pop(reference)
                    found = outcome(reference, ended, self._cluster)
                    if found is UNSENT:
                        back.append(ended.item)
                    else:
                        yield found
        finally:
            for left in running.values():  # Ray (2.60) may abort if what is just over is cancelled.
                self._office.end.remote(left.lease.holder)

    def _send_off(
        self, job: Callable[[Any], Any], items: Iterator[Any], running: dict[Any, Running], alone: bool
    ) -> bool:
        """As many as there are places for; False once no item is left."""
        while (place := self._cluster.place(running.values(), alone=alone)) is not None:
            item = next(items)
            if item is END:
                return False
            if item is None:
                return bool(running)
            share = WHOLE if alone else WHOLE / self.jobs_per_host
            sent = Running(item, place, new_lease(share, is_shared=self.store is None))
            running[send(job, sent, self._cluster.resources(place, alone=alone), self._office)] = sent
        return True

    @cached_property
    def _cluster(self) -> Cluster:
        connect(self.address)
        return Cluster(self.jobs_per_host, self.weigh_on)

    @cached_property
    def _office(self) -> Any:
        return leases()


def _with_those_back(items: Iterator[Any], back: list[Any]) -> Iterator[Any]:
    """Without an end of its own: END says that there is none left now."""
    while True:
        yield back.pop() if back else next(items, END)


def _ended(running: dict[Any, Running]) -> list[Any]:
    """The next jobs that are over; none where none is within a while."""
    import ray

    if not running:
        time.sleep(WAIT_SECONDS)
        return []
    ended, _ = ray.wait(list(running), timeout=WAIT_SECONDS)
    return list(ended)
