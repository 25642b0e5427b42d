"""The folder of variants as a cache: made once by one worker, never served by halves, and no larger than it may be.

All locks are the kernel's, so that whatever ends a process also ends its locks. A folder that somebody reads is locked
through itself; a stage that somebody makes, through a file beside it.
"""

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from leanwatt.errors import StudyError

COSTS = "costs.json"
"""Written last: a folder with it is whole. Its time of access tells when the folder was last used."""
SPENT = "spent.json"
"""What is left of a folder that was removed for room: its costs, since the work that rests on it is still charged."""
CURVE = "curve.json"
"""What a fine-tuning went through, if the stage is one. It is small and stays too: findings rest on it."""
DRAFT_SECONDS = 60.0
"""A draft younger than this may be about to be locked by its writer."""


def is_whole(folder: Path) -> bool:
    """Everything of this stage was saved."""
    return (folder / COSTS).is_file()


@contextmanager
def in_use(folder: Path) -> Iterator[bool]:
    """Keep a stage's folder from being removed; False where it is not there, or no longer."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        there = _is_still(descriptor, folder) and is_whole(folder)
        if there:
            _touch(folder / COSTS)
        yield there
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one worker at a time makes the stage of this folder; the others wait, and find it made."""
    locks = folder.parent.with_name("locks")
    locks.mkdir(exist_ok=True)
    descriptor = os.open(locks / folder.name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A folder to write a stage into, locked while it is written; removed unless it was published."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.{platform.node()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield draft
    finally:
        os.close(descriptor)
        shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, folder: Path) -> None:
    """Rename a whole draft into place; its maker is alone. A whole folder that is there stays: it is as good."""
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)  # Half of something, or what removing left.
        draft.replace(folder)


@dataclass(frozen=True)
class Cache:
    """All stages of a study."""

    folder: Path
    most_bytes: float | None = None
    """None keeps everything."""

    def sweep(self) -> list[str]:
        """Remove what killed workers left: drafts that nobody writes, work folders of stages that are whole."""
        gone = []
        for path in self.folder.glob(".*"):
            _, key, kind, *_ = [*path.name.split("."), ""]
            if path.is_dir() and (
                _is_stale(path) if kind.isdigit() else kind == "work" and is_whole(path.parent / key)
            ):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path.name)
        return sorted(gone)

    def trim(self, needed: Iterable[Path] = ()) -> list[str]:
        """Remove what was used least recently until the limit holds; never what a job uses, or what is `needed` yet.

        Raises StudyError where what is needed alone is larger than the limit.
        """
        if self.most_bytes is None:
            return []
        kept, sizes = {path.name for path in needed}, {path: size_of(path) for path in self._stages()}
        total, gone = sum(sizes.values()), []
        for path in sorted(sizes, key=_last_used):
            if total <= self.most_bytes:
                break
            if path.name not in kept and _removed(path):
                total -= sizes[path]
                gone.append(path.name)
        held = sum(size for path, size in sizes.items() if path.name in kept)
        if held > self.most_bytes:
            raise StudyError(
                f"cache_gb: {self.most_bytes / 1e9:g} GB are allowed, and the variants that are still to be weighed "
                f"take {held / 1e9:.2f} GB. Allow more; finished records are kept, and the study goes on."
            )
        return gone

    def _stages(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if not path.name.startswith(".") and is_whole(path)]


def size_of(folder: Path) -> int:
    """Bytes of all files; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _last_used(folder: Path) -> float:
    try:
        return (folder / COSTS).stat().st_atime
    except OSError:
        return 0.0


def _touch(path: Path) -> None:
    """The time of access, set by hand: many disks are mounted without it. What was written when stays as it is."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _removed(folder: Path) -> bool:
    """Take a folder away, unless somebody uses it; first its name, so that nobody meets half of it.

    Its costs stay, and the curve of a fine-tuning.
    """
    aside, stub = (folder.with_name(f".{folder.name}.{kind}") for kind in (os.getpid(), "stub"))
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stub.mkdir(exist_ok=True)
        shutil.copyfile(folder / COSTS, stub / SPENT)
        if (folder / CURVE).is_file():
            shutil.copyfile(folder / CURVE, stub / CURVE)
        folder.replace(aside)
        stub.replace(folder)
    except OSError:  # In use, or on a disk of a network that cannot lock: it stays.
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _is_stale(draft: Path) -> bool:
    """Nobody holds it, and it is old enough that its writer would."""
    try:
        descriptor = os.open(draft, os.O_RDONLY)
        age = time.time() - draft.stat().st_mtime
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return age >= DRAFT_SECONDS


def _is_still(descriptor: int, folder: Path) -> bool:
    """The folder was not removed between opening and locking it."""
    try:
        return os.fstat(descriptor).st_ino == folder.stat().st_ino
    except OSError:
        return False
