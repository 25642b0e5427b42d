"""Reads all sources together: at each edge on the caller's thread, and in between on one thread of its own."""

import math
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, final

from leanwatt.measurement import Counter, Reading
from leanwatt.meter._tree import running_cpu_seconds

HERTZ: Final = 5.0
"""Samples per second: often enough that no counter wraps unseen, seldom enough to cost 0.5 % of a core at most."""
STOPPED_SECONDS: Final = 2.0
"""A silence of the sampler longer than this is looked into."""
STOPPED_SHARE: Final = 0.1
"""Used less CPU than this during a silence, the process was stopped; used more, it was only busy."""
ASLEEP_SECONDS: Final = 1.0
"""The two clocks are read one after the other: a smaller difference may be a pause between the reads."""
OTHERS_SECONDS: Final = 1.0
"""How often other processes are looked at: the kernel takes up to a millisecond on machines of many cores."""


class Source(Protocol):
    """Sensors of one kind. Nothing here raises: what cannot be read is a flag."""

    of_process: bool
    """True where every process of a node has figures of its own; False for sensors that see the whole machine."""

    def tick(self, now: float, stopped: bool) -> None:
        """Read the sensors at `now`. `stopped`: this process did not run since the last tick."""
        ...

    def slow_tick(self, now: float) -> None:
        """What is too dear for an edge, about once a second."""
        ...

    def counters(self) -> Mapping[str, Counter]:
        """The running totals, by device."""
        ...

    def close(self) -> None:
        """Give the sensors back."""
        ...


@final
class Reader:
    """Running totals of several sources, read at one instant. Safe to call from any thread."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        clock: Callable[[], float] = time.monotonic,
        at_edges: Callable[[], None] = lambda: None,
        stat: str = "/proc/stat",
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._at_edges = at_edges
        self._stat = stat
        self._lock = threading.Lock()
        self._cpus = os.cpu_count() or 1
        self._last = clock()
        self._last_cpu = time.process_time()
        self._asleep = _asleep_seconds()
        self._others = other_cpu_seconds(stat)
        self._others_at = self._last
        self.glance()

    def __call__(self) -> Reading:
        """The totals once everything asked of the device so far is done."""
        self._at_edges()
        return self.glance()

    def glance(self) -> Reading:
        """The totals now, without waiting for a device."""
        with self._lock:
            now = self._clock()
            stopped = self._was_stopped(now)
            for source in self._sources:
                source.tick(now, stopped)
            devices = {name: counter for source in self._sources for name, counter in source.counters().items()}
            return Reading(now, own_cpu_seconds(), devices, self._others, self._cpus)

    def sample(self) -> None:
        """What the sampler does."""
        with self._lock:
            now = self._clock()
            stopped = self._was_stopped(now)
            for source in self._sources:
                source.tick(now, stopped)
            if now - self._others_at >= OTHERS_SECONDS:
                self._others, self._others_at = other_cpu_seconds(self._stat), now
                for source in self._sources:
                    source.slow_tick(now)

    def _was_stopped(self, now: float) -> bool:
        """Was the process stopped, or the machine asleep, since the last tick? A busy process also falls silent."""
        cpu, asleep = time.process_time(), _asleep_seconds()
        silence = now - self._last
        idle = silence > STOPPED_SECONDS and cpu - self._last_cpu < STOPPED_SHARE * silence
        suspended = asleep - self._asleep > ASLEEP_SECONDS
        self._last, self._last_cpu, self._asleep = now, cpu, asleep
        return idle or suspended


@contextmanager
def sampling(
    sources: Sequence[Source],
    *,
    hertz: float = HERTZ,
    at_edges: Callable[[], None] = lambda: None,
) -> Iterator[Reader]:
    """A reader of `sources` with its sampler running; both end with the context, and the sources are closed.

    Of several ranks on a node only the first owns its sensors, so that their figures add up to the node's.
    """
    owned = [source for source in sources if source.of_process or local_rank() == 0]
    reader = Reader(owned, at_edges=at_edges)
    stop = threading.Event()
    thread = threading.Thread(target=_sample_until, args=(stop, reader, 1 / hertz), name="leanwatt-meter", daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join()
        for source in sources:
            source.close()


def _sample_until(stop: threading.Event, reader: Reader, period: float) -> None:
    while not stop.wait(period):
        reader.sample()


def local_rank() -> int:
    """Which process of this node this is, where a launcher says so (torchrun, Slurm); 0 elsewhere."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def own_cpu_seconds() -> float:
    """User and system time of this process, all its threads, its finished children, and commands it watches."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime + running_cpu_seconds()


def other_cpu_seconds(stat: str = "/proc/stat") -> float | None:
    """CPU time of every other process since boot: the machine's, less our own. None without /proc."""
    try:
        with open(stat, encoding="utf-8") as file:
            user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in file.readline().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own_cpu_seconds()


def _asleep_seconds() -> float:
    """How long the machine was suspended since boot: only one of the two clocks runs on meanwhile."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS has no such clock: suspends go unseen there
    return time.clock_gettime(clock) - time.clock_gettime(time.CLOCK_MONOTONIC)


def require_positive(**settings: float) -> None:
    """Refuse a setting that is no finite number above 0: raises ValueError with its name."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0")
