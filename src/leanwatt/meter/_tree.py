"""CPU time of a command while it still runs: the kernel adds a child's time to its parent's only once it has ended."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

FRESH_SECONDS: Final = 0.4
"""A look at the descendants of a process is not repeated sooner."""
SCHEDULED: Final = 2
"""What such a clock counts: the time that was given to the process, to the nanosecond (clock_getcpuclockid(3))."""


@final
class _Tree:
    def __init__(self, root: int) -> None:
        self._root = root
        self._at = float("-inf")
        self._below = 0.0

    def seconds(self) -> float:
        """Its own are those of now; those of its descendants may be a little old."""
        own, now = _own(self._root), time.monotonic()
        if own is None:
            return 0.0
        if now - self._at >= FRESH_SECONDS:
            self._below, self._at = _below(self._root), now
        return own + self._below


_watched: list[_Tree] = []


@contextmanager
def watched(root: int) -> Iterator[None]:
    """Count the process `root` and its descendants as ours while they run. Leave once `root` has been waited for."""
    tree = _Tree(root)
    _watched.append(tree)
    try:
        yield
    finally:
        _watched.remove(tree)


def running_cpu_seconds() -> float:
    """User and system time so far of what is watched; 0 where nothing is."""
    return sum(tree.seconds() for tree in _watched)


def tree_cpu_seconds(root: int) -> float:
    """Of a process, its running descendants and those that ended and were waited for; 0 where it is not there."""
    own = _own(root)
    return 0.0 if own is None else own + _below(root)


def _own(process: int) -> float | None:
    """Of all its threads, from the clock that Linux keeps for every process; None where it is not there."""
    try:
        return time.clock_gettime((~process << 3) | SCHEDULED)
    except OSError:
        return None


def _below(root: int) -> float:
    """Of its descendants: the waited-for ones that it was told of, and those that run."""
    ticks, left = _ticks(root, of_itself=False), _children(root)
    while left:
        process = left.pop()
        ticks += _ticks(process)
        left += _children(process)
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: int, *, of_itself: bool = True) -> int:
    """With those of its waited-for children."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(int(word) for word in fields[11 if of_itself else 13 : 15])
    except (OSError, ValueError, IndexError):
        return 0


def _children(process: int) -> list[int]:
    """Those started by any of its threads."""
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{process}/task/{thread}/children", encoding="utf-8") as file:
                found += [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            continue
    return found
