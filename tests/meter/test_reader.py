"""Rows of the fault table that concern the sampler, the clock and the process."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from leanwatt.measurement import Counter, Measurement, Provenance
from leanwatt.meter import _reader
from leanwatt.meter._reader import Reader, local_rank, other_cpu_seconds, sampling
from leanwatt.meter._totals import CounterTotal, Device
from leanwatt.meter._zones import ZoneSource, find
from leanwatt.meter.auto import Auto
from meter.fakes import Clock, Powercap


class Steady:
    """A counter that follows a clock at 100 W."""

    of_process = False

    def __init__(self, clock: object = time.monotonic) -> None:
        self.clock = clock
        self.total = CounterTotal(Device("package-0", "fake", "package", 1000.0))
        self.closed = 0
        self.slow = 0

    def tick(self, now: float, stopped: bool) -> None:
        self.total.add(now, round(now * 100e6), stopped=stopped)

    def slow_tick(self, now: float) -> None:
        self.slow += 1

    def counters(self) -> dict[str, Counter]:
        return {"package-0": self.total.counter()}

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("step", [-60.0, 3600.0])
def test_row_24_a_stepped_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    wall = time.time
    with sampling([Steady()]) as read:
        edges = [time.perf_counter()]
        begin = read()
        edges.append(time.perf_counter())
        monkeypatch.setattr(time, "time", lambda: wall() + step)
        time.sleep(0.2)
        edges.append(time.perf_counter())
        spent = Measurement.between("x", begin, read())
        edges.append(time.perf_counter())
    assert edges[2] - edges[1] - 0.001 <= spent.seconds <= edges[3] - edges[0] + 0.001
    assert spent.total.joules == pytest.approx(100 * spent.seconds, abs=0.01)


def test_row_25_a_silence_of_ten_seconds_without_cpu_time_is_a_gap() -> None:
    clock = Clock()
    read = Reader([Steady()], clock=clock)
    begin = read()
    clock.now += 10
    read.sample()
    clock.now += 1
    spent = Measurement.between("x", begin, read())
    assert spent.total.flags == ("gap",)
    assert spent.total.coverage == pytest.approx(1 / 11)
    assert spent.is_spoiled


def test_row_25_a_silence_in_which_we_computed_is_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something held the interpreter's lock, so that the sampler could not run."""
    clock, cpu = Clock(), Clock()
    monkeypatch.setattr(time, "process_time", cpu)
    read = Reader([Steady()], clock=clock)
    begin = read()
    clock.now += 10
    cpu.now += 9
    spent = Measurement.between("x", begin, read())
    assert spent.total.provenance is Provenance.MEASURED
    assert spent.total.flags == ()


def test_row_25_a_suspend_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    read = Reader([Steady()], clock=clock)
    begin = read()
    asleep = _reader._asleep_seconds()
    monkeypatch.setattr(_reader, "_asleep_seconds", lambda: asleep + 60)
    clock.now += 0.2
    assert Measurement.between("x", begin, read()).total.flags == ("gap",)


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from meter.test_reader import Steady
from leanwatt.measurement import Measurement
from leanwatt.meter._reader import sampling
with sampling([Steady()]) as read:
    begin = read()
    print("ready", flush=True)
    sys.stdin.readline()
    print(Measurement.between("x", begin, read()).total.flags, flush=True)
    sys.stdin.readline()
"""


def start_program() -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), tests]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    return program


def test_row_25_a_real_stop_is_a_gap() -> None:
    program = start_program()
    program.send_signal(signal.SIGSTOP)
    time.sleep(2.6)
    program.send_signal(signal.SIGCONT)
    out, _ = program.communicate("go\nend\n", timeout=30)
    assert out == "('gap',)\n"


def test_row_26_a_kill_leaves_no_child_and_closes_the_pipe() -> None:
    program = start_program()
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    assert not children.exists() or children.read_text() == ""
    program.kill()
    started = time.monotonic()
    program.communicate(timeout=30)
    assert time.monotonic() - started < 1
    assert program.returncode == -signal.SIGKILL


def test_row_27_an_exception_in_a_window_gives_everything_back() -> None:
    source = Steady()
    with pytest.raises(KeyError), sampling([source]):
        raise KeyError
    assert source.closed == 1
    assert not any(thread.name == "leanwatt-meter" for thread in threading.enumerate())


def test_row_27_a_window_of_no_length_divides_by_nothing() -> None:
    read = Reader([Steady()], clock=Clock())
    begin = read()
    spent = Measurement.between("x", begin, begin)
    assert spent.seconds == 0
    assert spent.total.joules is None


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_row_28_four_ranks_of_a_node_together_measure_it_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = []
    for rank in range(4):
        monkeypatch.setenv(name, str(rank))
        assert local_rank() == rank
        with sampling([Steady()]) as read:
            begin = read()
            time.sleep(0.02)
            spent = Measurement.between("x", begin, read())
            known.append((spent.total.joules or 0.0) / spent.seconds)
    assert sum(known) == pytest.approx(100, rel=0.01)


def test_row_32_a_thousand_windows_are_cheap(tmp_path: Path) -> None:
    powercap = Powercap(tmp_path)
    for package in (0, 1):
        powercap.zone(f"intel-rapl:{package}", f"package-{package}", start=10**9 * (package + 1))
        powercap.zone(f"intel-rapl:{package}/intel-rapl:{package}:0", "dram", start=10**8)
    edges = []
    with sampling([ZoneSource(find(str(powercap.root)))]) as read:
        for _ in range(100):
            read()
        before = resident_bytes()
        for _ in range(2000):
            started = time.perf_counter()
            read()
            edges.append(time.perf_counter() - started)
        grown = resident_bytes() - before
    assert sorted(edges)[len(edges) // 2] <= 50e-6 * slack()
    assert grown < 1 << 20


def slack() -> float:
    """A tracer (coverage) slows every line; the benchmark holds the limit without one."""
    return 20.0 if sys.gettrace() or "coverage" in sys.modules else 2.0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_row_32_the_sampler_takes_little_of_a_core(tmp_path: Path) -> None:
    powercap = Powercap(tmp_path)
    powercap.zone("intel-rapl:0", "package-0")
    powercap.zone("intel-rapl:0/intel-rapl:0:0", "dram", start=10**8)
    with sampling([ZoneSource(find(str(powercap.root)))]):
        time.sleep(0.3)
        before = time.process_time()
        time.sleep(2.0)
        share = (time.process_time() - before) / 2.0
    assert share <= 0.005 * slack()


def test_row_33_no_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    with Auto().open() as read:
        begin = read()
        Measurement.between("x", begin, read())
    assert asked == []


def test_row_22_a_neighbour_on_the_cpu_is_flagged(tmp_path: Path) -> None:
    stat, clock = tmp_path / "stat", Clock()
    cpus = os.cpu_count() or 1
    stat.write_text("cpu  1000 0 0 9000 0 0 0 0 0 0\n")
    read = Reader([Steady()], clock=clock, stat=str(stat))
    begin = read()
    for busy, flags in ((0.04, ()), (0.5, ("contended",))):
        stat.write_text(f"cpu  {1000 + round(busy * 10 * 100 * cpus)} 0 0 9000 0 0 0 0 0 0\n")
        clock.now = begin.at_seconds + 10
        read.sample()
        spent = Measurement.between("x", begin, read())
        assert spent.flags == flags
        assert spent.is_spoiled or not flags
        read._others_at = 0


def test_other_processes_are_unknown_without_proc(tmp_path: Path) -> None:
    assert other_cpu_seconds(str(tmp_path / "stat")) is None
    (tmp_path / "stat").write_text("nonsense")
    assert other_cpu_seconds(str(tmp_path / "stat")) is None
    clock = Clock()
    read = Reader([], clock=clock, stat=str(tmp_path / "stat"))
    begin = read()
    clock.now += 20
    assert Measurement.between("x", begin, read()).flags == ()


def test_the_sampler_asks_dear_things_about_once_a_second() -> None:
    source = Steady()
    clock = Clock()
    read = Reader([source], clock=clock)
    for _ in range(20):
        clock.now += 0.2
        read.sample()
    assert source.slow in (3, 4)


def test_an_edge_waits_for_the_device_and_a_glance_does_not() -> None:
    waited: list[int] = []
    with sampling([], at_edges=lambda: waited.append(1)) as read:
        read.glance()
        assert waited == []
        read()
        assert waited == [1]
