"""A Ray cluster as executors see it: its nodes and the machines they stand on, a place for a job, the leases."""

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import uuid4

from leanwatt.contracts import WorkerDied
from leanwatt.errors import StoreError, StudyError
from leanwatt.executor._leases import ASK_SECONDS, Leases
from leanwatt.executor._process import outcome_of
from leanwatt.machine import describe
from leanwatt.processes import or_raise

LOOK_SECONDS = 5.0
"""Nodes that come and go are noticed after so long."""
FIRST_SECONDS = 30.0
"""So long all nodes are waited for at the beginning; who answers later is taken later."""
PATIENCE_SECONDS = 60.0
"""How long a cluster may be without a node that jobs can run on."""
NAMESPACE = "leanwatt"


@dataclass(frozen=True)
class Place:
    """A node of the cluster."""

    node: str
    """Ray's id of it."""
    domain: str
    """The machine it stands on, by boot: nodes of one machine share its sensors."""
    hardware: str
    """Equal for machines of the same hardware and driver."""
    cpus: float
    gpus: float
    offers: frozenset[str]
    """Names of its Ray resources."""


@dataclass(frozen=True)
class Lease:
    """What a job needs to hold while it runs."""

    holder: str
    share: float
    folder: str
    """The driver's current folder, from which relative paths are meant."""
    version: str
    """Of leanwatt, in the driver."""
    is_shared: bool = True
    """All nodes have that folder."""


@dataclass
class Running:
    """A job that was sent off."""

    item: Any
    place: Place
    lease: Lease


def connect(address: str) -> None:
    """Join the cluster, or start one for `local`; what Ray says stays off the screen. Raises StudyError."""
    import ray

    if ray.is_initialized():
        return
    # Ray would hide all GPUs from jobs of nodes without any; and it reports its use to its makers unless told not to.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 128 << 20} if address == "local" else {}
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(
            f"executor ray: no cluster can be reached at '{address}' ({str(error).splitlines()[0]}). Start one with "
            "`ray start --head`, give its address, or write `address: local` for one on this machine alone."
        ) from error
    # There is no public way to keep the last words of a lost node off the screen; they are in Ray's log files.
    ray._private.worker._worker_logs_enabled = False


@dataclass
class Cluster:
    """Seen from the driver. Ray is connected."""

    jobs_per_host: int
    weigh_on: str | None
    blamed: Counter[str] = field(default_factory=Counter)
    """By node: how many workers were lost there since a job went well. Such nodes are taken last."""
    _known: dict[str, Place] = field(default_factory=dict)
    _asked: dict[Any, str] = field(default_factory=dict)
    """Nodes that have yet to answer, by Ray's reference to their answer."""
    _places: list[Place] = field(default_factory=list)
    _weighs: str | None = None
    """The machine on which was weighed last."""
    _looked: float = -math.inf
    _seen: float = field(default_factory=time.monotonic)
    """When there was a place at all."""

    def place(self, running: Iterable[Running], *, alone: bool) -> Place | None:
        """Where the next job goes; None while everything is taken. Raises StoreError where no node is left."""
        self._look()
        there, now = self._weighing() if alone else self._places, time.monotonic()
        if not there:
            if now - self._seen > PATIENCE_SECONDS:
                raise StoreError(f"executor ray: {self._lack(alone)} What was finished is safe; run again to go on.")
            return None
        self._seen = now
        on_host, on_node = Counter[str](), Counter[str]()
        for each in running:
            on_host[each.place.domain] += 1
            on_node[each.place.node] += 1
        most = 1 if alone else self.jobs_per_host
        free = [p for p in there if on_host[p.domain] < most and on_node[p.node] < self._parts(p, alone)]
        order = [(self.blamed[p.node], on_host[p.domain], on_node[p.node], p.node, p) for p in free]
        return min(order)[-1] if order else None

    def is_gone(self, node: str) -> None:
        """Look again before the next job is placed."""
        self.blamed[node] += 1
        self._looked = -math.inf

    def resources(self, place: Place, *, alone: bool) -> dict[str, float]:
        """A job takes its part of the node, so that neither our jobs nor others' crowd it."""
        parts = self._parts(place, alone)
        return {"num_cpus": _part(place.cpus, parts), "num_gpus": _part(place.gpus, parts)}

    def _parts(self, place: Place, alone: bool) -> int:
        """Jobs that a node takes at once: those of its machine are shared out among its nodes."""
        beside = sum(each.domain == place.domain for each in self._places)
        return 1 if alone else math.ceil(self.jobs_per_host / max(1, beside))

    def _weighing(self) -> list[Place]:
        """Nodes of one machine, the same as long as it is there: figures of different machines are never compared."""
        able = [place for place in self._places if self.weigh_on is None or self.weigh_on in place.offers]
        if able and not any(place.domain == self._weighs for place in able):
            best = min(able, key=lambda place: (-place.gpus, -place.cpus, place.hardware, place.domain))
            self._weighs = best.domain
        return [place for place in able if place.domain == self._weighs]

    def _lack(self, alone: bool) -> str:
        if alone and self.weigh_on is not None:
            return f"no node offers the resource '{self.weigh_on}', on which is to be weighed."
        return "no node of the cluster has CPUs for jobs."

    def _look(self) -> None:
        """See who is there. Only the first time all are waited for, lest a better machine to weigh on be overlooked."""
        import ray

        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        able = {node: resources for node, resources in alive.items() if resources.get("CPU", 0) > 0}
        new = able.keys() - self._known.keys() - set(self._asked.values())
        self._asked |= {ray.remote(_about).options(num_cpus=0, **pinned(node)).remote(): node for node in new}
        patience = FIRST_SECONDS if math.isinf(self._looked) and not self._known else 0
        self._hear(able, patience)
        self._places = [self._known[node] for node in able if node in self._known]
        self._looked = time.monotonic()

    def _hear(self, able: Mapping[str, Mapping[str, float]], patience: float) -> None:
        """What nodes that were asked say of themselves."""
        import ray

        asked = list(self._asked)
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=patience) if asked else ([], [])
        for each in ready:
            node = self._asked.pop(each)
            try:
                domain, hardware = ray.get(each)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:  # It has gone, or not quite come yet: it is asked again.
                continue
            if node in able:
                has = able[node]
                self._known[node] = Place(node, domain, hardware, has["CPU"], has.get("GPU", 0.0), frozenset(has))


def _part(whole: float, parts: int) -> float:
    share = whole / parts
    return float(math.floor(share)) if share >= 1 else math.floor(share * 1e4) / 1e4  # Ray counts in 1e-4.


def pinned(node: str) -> dict[str, Any]:
    """Options of a task that runs on this node, or not at all; it is retried by us alone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False), "max_retries": 0}


def _about() -> tuple[str, str]:
    """Boot and hardware of this machine."""
    facts = describe()
    return str(facts["boot_id"]), str(facts["id"])


def leases() -> Any:
    """The actor that hands out shares of energy domains: one for the whole cluster, whoever came first."""
    import ray

    options = {"name": "leases", "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    return ray.remote(_Office).options(**options, num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


class _Office(Leases):
    """The leases as an actor: it knows whether it was restarted, and has forgotten who holds what."""

    def __init__(self) -> None:
        import ray

        super().__init__(forgot=bool(ray.get_runtime_context().was_current_actor_reconstructed))


class _LeaseLostError(Exception):
    """Nobody heard of us for too long, and others may measure here by now."""


def on_node(job: Callable[[Any], Any], item: Any, lease: Lease, office: Any) -> Any:
    """What a node does: hold the lease of its machine while the job runs in a process of its own."""
    import ray

    domain = _about()[0]
    vars(sys.modules["__main__"]).pop("__file__", None)  # Else the process would load Ray's main file, and Ray.

    def beat() -> None:
        if not ray.get(office.keep.remote(domain, lease.holder, lease.share)):
            raise _LeaseLostError

    try:
        while not (has := ray.get(office.take.remote(domain, lease.holder, lease.share))):
            if has is None:
                raise _LeaseLostError
            time.sleep(ASK_SECONDS)
        # From nothing: a node that is killed must take its jobs along, and they stand close to it so.
        outcome = outcome_of(_There(lease, job), item, beat, is_copied=False)
    except (_LeaseLostError, ray.exceptions.RayActorError):
        return WorkerDied(item, "the lease of its machine was lost, and the job was ended", True, describe())
    finally:
        with suppress(ray.exceptions.RayActorError):
            ray.get(office.give.remote(lease.holder))
    if isinstance(outcome, WorkerDied):
        return WorkerDied(item, outcome.reason, True, describe())
    return outcome


@dataclass(frozen=True)
class _There:
    """A job in the driver's folder."""

    lease: Lease
    job: Callable[[Any], Any]

    def __call__(self, item: Any) -> Any:
        from leanwatt import __version__

        if __version__ != self.lease.version:
            raise StoreError(f"A node has leanwatt {__version__}, the driver {self.lease.version}: install the same.")
        try:
            if self.lease.is_shared or os.path.isdir(self.lease.folder):
                os.chdir(self.lease.folder)
        except OSError as error:
            raise StoreError(
                f"{self.lease.folder}: cannot be entered on a node ({error.strerror}). Start the study in a folder "
                "that all nodes share (docs/cluster.md)."
            ) from error
        return self.job(item)


def send(job: Callable[[Any], Any], running: Running, resources: dict[str, float], office: Any) -> Any:
    """Start a job on its place; gives Ray's reference to its outcome."""
    options = {**pinned(running.place.node), **resources}
    return _task().options(**options).remote(job, running.item, running.lease, office)


@cache
def _task() -> Any:
    """Made once: Ray sends a function to the cluster each time it is made."""
    import ray

    return ray.remote(on_node)


UNSENT = object()
"""The node had gone before the job could begin: nothing was spent, and it may begin elsewhere."""


def outcome(reference: Any, running: Running, cluster: Cluster) -> Any:
    """What came of a job, or UNSENT. Raises what the job raised."""
    import ray

    try:
        found = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.TaskUnschedulableError:
        cluster.is_gone(running.place.node)
        return UNSENT
    except ray.exceptions.RayError as error:
        found = WorkerDied(running.item, _why_lost(error), True, {})
    if isinstance(or_raise(found), WorkerDied):
        cluster.is_gone(running.place.node)
    else:
        cluster.blamed.pop(running.place.node, None)
    return found


def _why_lost(error: Exception) -> str:
    """Ray's own words name addresses of machines."""
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node had no memory left, and Ray ended it; use a smaller batch or base"
    return f"its node or its worker was lost ({type(error).__name__})"


def new_lease(share: float, *, is_shared: bool) -> Lease:
    """For one job."""
    from leanwatt import __version__

    return Lease(uuid4().hex, share, os.getcwd(), __version__, is_shared)
