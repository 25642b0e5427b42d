"""Weighs any command with the care of a study: idle before and after, neighbours, a journal, repeats.

The command runs in a process group of its own, in the foreground where there is a terminal, with our standard streams.
What it spends is known from edge to edge; its CPU time is its own and that of what it started and waited for.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from leanwatt import catalog, launcher
from leanwatt.compare import Window, average
from leanwatt.idle import Idle, idle
from leanwatt.journal import spent, window
from leanwatt.machine import describe, lease
from leanwatt.measurement import Energy, Measurement, Reading, has_drifted
from leanwatt.meter._tree import watched
from leanwatt.ranking import Figure
from leanwatt.recipe import Choice

LEASE_SECONDS: Final = 30.0
"""How long to wait for another weighing on this machine."""
NOT_WATCHED: Final = Idle({}, None)


@dataclass(frozen=True)
class Request:
    """What to weigh, and how."""

    command: Sequence[str]
    meter: Choice = field(default_factory=lambda: Choice("meter", "auto"))
    repeat: int = 1
    warm_up: int = 0
    """Runs beforehand that are not averaged in."""
    idle_seconds: float = 5.0
    """Before and after; a slow sensor makes it longer. 0 reads no idle power."""


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    measurement: Measurement
    exit_code: int

    @property
    def net_joules(self) -> float | None:
        """Less what the idle machine would have spent meanwhile; None where a counted device has no idle reading."""
        return net_joules(self.measurement)


@dataclass(frozen=True)
class Weighing:
    """What a command took."""

    command: tuple[str, ...]
    runs: tuple[Run, ...]
    warm_up: tuple[Run, ...]
    flags: tuple[str, ...]
    """`contended`: others used the machine before it began. `drift`: idle power differed before and after."""
    machine: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """Of the last run."""
        return (self.runs or self.warm_up)[-1].exit_code

    @property
    def counted(self) -> tuple[Run, ...]:
        """Runs in which nothing happened that would call for a repeat; all of them where none was spared."""
        good = tuple(run for run in self.runs if not run.measurement.is_spoiled)
        return good or self.runs

    def mean(self, what: Callable[[Run], float | None]) -> Figure | None:
        """Geometric mean of the counted runs with its 95 % t-interval; None where one is unknown or not above 0."""
        values = [what(run) for run in self.counted]
        known = {Window(place): value for place, value in enumerate(values) if value is not None and value > 0}
        return average(known) if known and len(known) == len(values) else None


def net_joules(measurement: Measurement) -> float | None:
    """Gross less idle watts times seconds, of the devices that the total is made of."""
    whole = measurement.total
    parts = {name: e for name, e in measurement.devices.items() if e.joules is not None and e.scope in _scopes(whole)}
    if whole.joules is None or any(name not in measurement.idle_watts for name in parts):
        return None
    return whole.joules - sum(measurement.idle_watts[name] for name in parts) * measurement.seconds


def _scopes(whole: Energy) -> list[str]:
    return whole.scope.split("+")


def weigh(asked: Request, folder: Path | None = None, notice: Callable[[Run], None] = lambda run: None) -> Weighing:
    """Run and weigh the command. A run that fails, or is stopped, is the last. Raises MeterError, StudyError.

    `folder` holds the journals; what a weighing had spent that was killed is told by `recover`. For the main thread,
    which signals come to.
    """
    warm_up: list[Run] = []
    runs: list[Run] = []
    with (
        lease("packages", wait_seconds=LEASE_SECONDS),
        catalog.build(asked.meter).open() as read,
        _journal(folder or state_folder()) as path,
    ):
        before = idle(read, asked.idle_seconds) if asked.idle_seconds else NOT_WATCHED
        for place in range(asked.warm_up + asked.repeat):
            run = Run(*_run(asked.command, read, path))
            (warm_up if place < asked.warm_up else runs).append(run)
            notice(run)
            if run.exit_code:
                break
        stopped = (runs or warm_up)[-1].exit_code > launcher.BY_SIGNAL
        after = idle(read, asked.idle_seconds).watts if asked.idle_seconds and not stopped else {}
    watts = {name: (each + after.get(name, each)) / 2 for name, each in before.watts.items()}
    drifted = any(has_drifted(each, after.get(name, each)) for name, each in before.watts.items())
    flags = {"contended": before.is_quiet is False, "drift": drifted}
    return Weighing(
        command=tuple(asked.command),
        runs=tuple(_with_idle(run, watts) for run in runs),
        warm_up=tuple(_with_idle(run, watts) for run in warm_up),
        flags=tuple(flag for flag, is_so in flags.items() if is_so),
        machine=describe(),
    )


def _with_idle(run: Run, watts: dict[str, float]) -> Run:
    return replace(run, measurement=replace(run.measurement, idle_watts=watts))


def _run(command: Sequence[str], read: Callable[[], Reading], path: Path) -> tuple[Measurement, int]:
    """What the command spent, and its exit code as a shell would give it."""
    ours, lifeline = socket.socketpair()
    start = [sys.executable, "-I", "-S", launcher.__file__, str(lifeline.fileno()), *command]
    # If anything goes wrong here, our end is closed, and the launcher ends the command.
    with ours, _foreground_back(), ExitStack() as watching:
        with lifeline:
            process = subprocess.Popen(start, pass_fds=[lifeline.fileno()], process_group=0)
        ours.recv(1)  # It is ready: its own start is not in the window.
        watching.enter_context(watched(process.pid))
        with _passing_signals(process), window(read, "command", path) as opened:
            _to_foreground(process.pid)
            ours.send(b"g")
            code = process.wait()
            watching.close()  # What has ended is counted by the kernel from here on.
    assert opened.measurement is not None
    return opened.measurement, code if code >= 0 else launcher.BY_SIGNAL - code


@contextmanager
def _passing_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C and a request to end go to the command; its end then ends us. A second one kills it."""
    asked = 0

    def passed(number: int, _frame: Any) -> None:
        nonlocal asked
        asked += 1
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number if asked == 1 else signal.SIGKILL)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, passed) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _to_foreground(group: int) -> None:
    """Give the terminal, if we have one, to the command: it may ask for input, and gets Ctrl-C itself."""
    with suppress(OSError):
        if os.tcgetpgrp(0) == os.getpgrp():
            os.tcsetpgrp(0, group)


@contextmanager
def _foreground_back() -> Iterator[None]:
    """Take the terminal back afterwards, if it was ours."""
    try:
        is_ours = os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        is_ours = False
    try:
        yield
    finally:
        if is_ours:
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # Else taking it would stop us.
            with suppress(OSError):
                os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)


def state_folder() -> Path:
    """Where the journals lie."""
    top = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(top) / "leanwatt" / "meter"


@contextmanager
def _journal(folder: Path) -> Iterator[Path]:
    """A journal of our own, locked while we live and removed when we end well."""
    path = folder / f"{os.getpid()}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_TRUNC, 0o600)
    except OSError:
        yield path  # The windows are flagged `journal_lost`, and the weighing goes on.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def recover(folder: Path | None = None) -> list[Measurement]:
    """What weighings that were killed had spent by their last heartbeat. Each is told once."""
    found: list[Measurement] = []
    for path in sorted((folder or state_folder()).glob("*.jsonl")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # Its owner lives.
            found += [each for each in spent(path) if "killed" in each.flags]
            path.unlink(missing_ok=True)
    return found


def lines(weighing: Weighing) -> list[str]:
    """For people: each run, and the mean of several."""
    said = [f"{words(run)}{'' if run in weighing.counted else '  (not averaged in)'}" for run in weighing.runs]
    if len(weighing.runs) > 1:
        shown = {"J": lambda run: run.measurement.total.joules, "s": lambda run: run.measurement.seconds}
        means = (f"{_interval(weighing.mean(what))} {unit}" for unit, what in shown.items())
        said.append(f"mean of {len(weighing.counted)} (95 %): {', '.join(means)}")
    return said + ([f"beware: {', '.join(weighing.flags)}"] if weighing.flags else [])


def words(run: Run) -> str:
    """`5.0 s, 0.2 CPU-s, 12 J (3.9 to 39), estimated from estimate; net of idle 1.3 J; flags`."""
    spent = run.measurement
    energy, net = spent.total, run.net_joules
    band = "" if energy.lower is None or energy.upper is None else f" ({energy.lower:.3g} to {energy.upper:.3g})"
    joules = "energy unknown"
    if energy.joules is not None:
        joules = f"{energy.joules:.3g} J{band}, {energy.provenance}, {energy.scope} by {energy.source}"
    flags = sorted({*spent.flags, *energy.flags})
    parts = [f"{spent.seconds:.3g} s, {spent.cpu_seconds:.3g} CPU-s, {joules}"]
    parts += [f"net of idle {net:.3g} J"] if net is not None else []
    parts += [", ".join(flags)] if flags else []
    parts += [f"exit code {run.exit_code}"] if run.exit_code else []
    return "; ".join(parts)


def _interval(figure: Figure | None) -> str:
    if figure is None:
        return "unknown"
    return (
        f"{figure.value:.3g}" if figure.low is None else f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"
    )


def facts(weighing: Weighing) -> dict[str, Any]:
    """For programs."""
    means = {
        "joules": weighing.mean(lambda run: run.measurement.total.joules),
        "net_joules": weighing.mean(lambda run: run.net_joules),
        "seconds": weighing.mean(lambda run: run.measurement.seconds),
        "cpu_seconds": weighing.mean(lambda run: run.measurement.cpu_seconds),
    }
    return {
        **asdict(weighing),
        "exit_code": weighing.exit_code,
        "counted": len(weighing.counted),
        "total": [{**asdict(run.measurement.total), "net_joules": run.net_joules} for run in weighing.runs],
        "mean": {name: None if each is None else asdict(each) for name, each in means.items()},
    }
