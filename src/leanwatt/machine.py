"""The machine that figures hold for: what it is, what it has to spare, who uses it, and who may measure on it."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from leanwatt.errors import MeterError

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES: Final = ("leanwatt", "torch", "transformers", "openvino")
QUIET_SHARE: Final = 0.05
"""A machine is quiet while other processes use less than this share of it."""
_HARDWARE: Final = ("cpu_model", "cpus", "gpus", "gpu_driver", "architecture")
_UNLIMITED: Final = 1 << 60
"""Version 1 cgroups write a number near 2^63 for no limit."""


def describe(proc: str = "/proc") -> dict[str, Any]:
    """Facts for a record: hardware, software, time. `id` stays the same as long as hardware and driver do.

    No host name, user or address is in it. What cannot be found out is None. Nothing is imported to learn a version.
    """
    import hashlib
    import json
    import platform

    gpus, driver = _gpus()
    facts: dict[str, Any] = {
        "boot_id": _text(f"{proc}/sys/kernel/random/boot_id"),
        "cpu_model": cpu_model(proc),
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "architecture": platform.machine(),
        "memory_bytes": memory_bytes(proc),
        "gpus": gpus,
        "gpu_driver": driver,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "utc": _utc("T") + "+00:00",
    }
    installed = round((_meminfo_bytes("MemTotal", proc) or 0) / 2**30)  # kernels differ in the last megabytes
    same = json.dumps([installed, *(facts[key] for key in _HARDWARE)])
    return {"id": hashlib.sha256(same.encode()).hexdigest()[:16], **facts}


def cpu_model(proc: str = "/proc") -> str | None:
    """The model as the kernel names it; None where it does not say."""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+?)\s*$", _text(f"{proc}/cpuinfo") or "", re.MULTILINE)
    return found.group(1) if found else None


def usable_cpus(cgroup: str = "/sys/fs/cgroup") -> float:
    """Hardware threads that this process may use: its affinity, or a container's share where that is less."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    threads = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    words = (_text(f"{cgroup}/cpu.max") or "max").split()
    if len(words) == 2 and words[0].isdigit():
        return min(threads, int(words[0]) / int(words[1]))
    return threads


def memory_bytes(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> int | None:
    """Memory that this process may use: the machine's, or a container's limit where that is less; None if unknown."""
    installed = _meminfo_bytes("MemTotal", proc)
    limits = [] if installed is None else [installed]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _text(f"{cgroup}/{name}") or ""
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)


def available_memory_bytes(proc: str = "/proc") -> int | None:
    """Memory that can be had now without swapping; None if unknown."""
    return _meminfo_bytes("MemAvailable", proc)


def _meminfo_bytes(name: str, proc: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", _text(f"{proc}/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def free_disk_bytes(path: Path) -> int:
    """Room where `path` is, or will be."""
    import shutil

    there = next(each for each in [path.absolute(), *path.absolute().parents] if each.exists())
    return shutil.disk_usage(there).free


@dataclass(frozen=True)
class Quiet:
    """How busy others kept this machine for a while."""

    seconds: float
    other_share: float | None
    """CPU time of other processes over that of the whole machine, 0 to 1; None where it cannot be known."""
    stolen_share: float | None
    """CPU time that the host of a virtual machine gave to others meanwhile, 0 to 1."""

    @property
    def is_quiet(self) -> bool | None:
        """True below 5 % for both; None where it cannot be known."""
        if self.other_share is None or self.stolen_share is None:
            return None
        return max(self.other_share, self.stolen_share) < QUIET_SHARE


def quiet(seconds: float = 5.0, proc: str = "/proc") -> Quiet:
    """Watch the machine for `seconds`: shares below 1 s are rough, since the kernel counts in steps of 10 ms."""
    begin, started = _busy(proc), time.monotonic()
    time.sleep(seconds)
    end, passed = _busy(proc), time.monotonic() - started
    if begin is None or end is None:
        return Quiet(passed, None, None)
    room = passed * (os.cpu_count() or 1)
    others = max(0.0, end.others_seconds - begin.others_seconds)
    return Quiet(passed, others / room, (end.stolen_seconds - begin.stolen_seconds) / room)


@dataclass(frozen=True)
class _Busy:
    others_seconds: float
    stolen_seconds: float


def _busy(proc: str) -> _Busy | None:
    line = (_text(f"{proc}/stat") or "").partition("\n")[0].split()
    if len(line) < 9 or not all(word.isdigit() for word in line[1:9]):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in line[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    own = os.times()
    ours = own.user + own.system + own.children_user + own.children_system
    return _Busy((user + nice + system + irq + softirq) / tick - ours, steal / tick)


@final
class LeaseHeldError(MeterError):
    """Another process measures on the same energy domain."""


@contextmanager
def lease(domain: str, folder: Path | None = None, wait_seconds: float = 0.0) -> Iterator[None]:
    """Own an energy domain (`packages`, `gpu-0`) of this machine while the context lasts.

    A kernel lock: whatever ends this process also ends the lease, so a stale one is taken over by itself.
    Raises LeaseHeldError, which says who holds it, once `wait_seconds` are over.
    """
    path = (folder or _lease_folder()) / f"{re.sub(r'[^A-Za-z0-9._-]', '-', domain)}.lock"
    descriptor = _open_lock(path)
    try:
        _lock(descriptor, domain, path, wait_seconds)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}, since {_utc(' ')} UTC".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Everybody may lock it, whoever made it. It is never removed: a lock on a removed file protects nothing.

    Opened without O_CREAT where it is there: Linux refuses O_CREAT on another user's file in a sticky folder.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags if path.exists() else flags | os.O_CREAT, 0o666)
    except OSError as error:
        raise MeterError(f"{path}: cannot be opened for the lease ({error.strerror}). Remove it, or own it.") from error
    with suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    return descriptor


def _lock(descriptor: int, domain: str, path: Path, wait_seconds: float) -> None:
    end = time.monotonic() + wait_seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "an unknown process"
                raise LeaseHeldError(
                    f"The energy of {domain} is being measured by {holder} ({path}). "
                    "Two measurements at once would count the same joules: wait for it to end, or end it."
                ) from error
        time.sleep(min(0.1, max(0.0, end - time.monotonic())))


def _lease_folder() -> Path:
    """One for all users of this boot: `/run/lock` where anybody may write there, else the folder of short-lived files.

    The name holds the boot, so that a folder shared between machines does not share leases. LEANWATT_LEASES names
    another one: for containers of one machine, which see the same sensors and no common folder.
    """
    import tempfile
    from pathlib import Path

    if named := os.environ.get("LEANWATT_LEASES"):
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    boot = (_text("/proc/sys/kernel/random/boot_id") or "unknown")[:8]
    top = Path("/run/lock") if os.access("/run/lock", os.W_OK) else Path(tempfile.gettempdir())
    folder = top / f"leanwatt-{boot}"
    folder.mkdir(exist_ok=True)
    with suppress(PermissionError):
        folder.chmod(0o1777)
    return folder


def _gpus() -> tuple[list[str], str | None]:
    """Names of all NVIDIA GPUs, and the driver's version; no GPUs and None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return [], None
    except pynvml.NVMLError:
        return [], None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles], str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return [], None
    finally:
        pynvml.nvmlShutdown()


def same_machine(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Do two records' machines have the same hardware and driver? False where one does not say."""
    return first.get("id") is not None and first.get("id") == second.get("id")


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _utc(between: str) -> str:
    """The time now, to the second: every meter loads this file, and `datetime` takes as long as a tenth of it."""
    return time.strftime(f"%Y-%m-%d{between}%H:%M:%S", time.gmtime())


def _text(path: str) -> str | None:
    """A small file of the kernel, stripped; None where it is not there or not for us."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
