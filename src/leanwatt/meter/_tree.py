"""CPU time of a command while it still runs: the kernel adds a child's time to its parent's only once it has ended."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

FRESH_SECONDS: Final = 0.4
"""A look at a whole tree of processes is not repeated sooner."""


@final
class _Tree:
    def __init__(self, root: int) -> None:
        self._root = root
        self._at = float("-inf")
        self._seconds = 0.0

    def seconds(self) -> float:
        now = time.monotonic()
        if now - self._at >= FRESH_SECONDS:
            self._seconds, self._at = tree_cpu_seconds(self._root), now
        return self._seconds


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
    ticks, left = 0, [root]
    while left:
        process = left.pop()
        ticks += _ticks(process)
        left += _children(process)
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: int) -> int:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return sum(int(word) for word in fields[11:15])
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
