"""What measuring costs: microseconds per window edge, share of a core while sampling, import time, beside others.

    python benchmarks/meter.py

Prints a Markdown table. zeus and codecarbon are measured in the same run where they are installed; each row runs in a
fresh process. RAPL is read from a folder laid out as the kernel does (two packages with DRAM), since few machines that
run benchmarks have one: reading the real files costs about the same (both are files in memory).
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

EDGES = 2000
SLOW_EDGES = 100
SAMPLING_SECONDS = 5.0
IMPORTS = 7
LIMITS = {"edge": "50 us", "share": "0.5 %", "import": "50 ms"}


def fake_powercap(folder: Path) -> str:
    """Two packages, each with DRAM: four counters."""
    for package in (0, 1):
        for path, name in ((f"intel-rapl:{package}", f"package-{package}"),
                           (f"intel-rapl:{package}/intel-rapl:{package}:0", "dram")):  # fmt: skip
            zone = folder / "intel-rapl" / path
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "energy_uj").write_text(f"{10**9 * (package + 1)}\n")
            (zone / "max_energy_range_uj").write_text("262143328850\n")
    return str(folder)


def cost(read: object, edges: int) -> dict[str, float]:
    """Median microseconds of one edge, and the share of a core that the process uses while nothing happens."""
    assert callable(read)
    times = []
    for _ in range(edges):
        started = time.perf_counter_ns()
        read()
        times.append((time.perf_counter_ns() - started) / 1000)
    before = time.process_time()
    time.sleep(SAMPLING_SECONDS)
    share = (time.process_time() - before) / SAMPLING_SECONDS
    return {"edge_us": statistics.median(times), "p99_us": sorted(times)[round(0.99 * edges) - 1], "share": share}


def leanwatt(name: str) -> dict[str, float]:
    """One of our own meters."""
    from leanwatt.meter.auto import Auto
    from leanwatt.meter.estimate import Estimate
    from leanwatt.meter.rapl import Rapl

    with tempfile.TemporaryDirectory() as folder:
        meters = {"auto": Auto, "estimate": Estimate, "rapl": lambda: Rapl(root=fake_powercap(Path(folder)))}
        with meters[name]().open() as read:
            return cost(read, EDGES)


def zeus() -> dict[str, float]:
    """A begin and an end of a window of zeus, halved: it has no reading that is both."""
    from zeus.device.cpu import rapl
    from zeus.monitor import ZeusMonitor

    rapl.RAPL_DIR = f"{fake_powercap(Path(tempfile.mkdtemp()))}/intel-rapl"
    monitor = ZeusMonitor(sync_execution_with="cuda", approx_instant_energy=False)

    def both() -> None:
        monitor.begin_window("edge", sync_execution=False)
        monitor.end_window("edge", sync_execution=False)

    found = cost(both, EDGES)
    return {**found, "edge_us": found["edge_us"] / 2, "p99_us": found["p99_us"] / 2}


def codecarbon() -> dict[str, float]:
    """A flush of codecarbon while it samples each second."""
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, log_level="critical", measure_power_secs=1
    )
    tracker.start()
    try:
        return cost(tracker.flush, SLOW_EDGES)
    finally:
        tracker.stop()


def import_milliseconds(module: str) -> float:
    """Of a module that is compiled already."""
    with tempfile.TemporaryDirectory() as compiled:
        return _import_milliseconds(module, compiled)


def _import_milliseconds(module: str, compiled: str) -> float:
    """CPU time, median over fresh processes; the start of the interpreter is not in it, nor what neighbours delay."""

    # Compiled once, as an installed package is, wherever it lies and whether or not this shell lets Python write there.
    here = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = {**here, "PYTHONPYCACHEPREFIX": compiled}
    subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, capture_output=True, check=True)

    def seconds(code: str) -> float:
        program = f"import time; t = time.process_time(); {code}; print(time.process_time() - t)"
        runs = [
            float(
                subprocess.run(
                    [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
                ).stdout.splitlines()[-1]
            )
            for _ in range(IMPORTS)
        ]  # fmt: skip
        return statistics.median(runs)

    return 1000 * seconds(f"import {module}")


ROWS = {
    "leanwatt auto": ("leanwatt.meter.auto", "leanwatt:auto"),
    "leanwatt estimate": ("leanwatt.meter.estimate", "leanwatt:estimate"),
    "leanwatt rapl (4 counters, folder)": ("leanwatt.meter.rapl", "leanwatt:rapl"),
    "zeus (begin and end, halved; the same folder)": ("zeus.monitor", "zeus"),
    "codecarbon (flush; what it finds here)": ("codecarbon", "codecarbon"),
}


def measured(label: str) -> str:
    """One row of the table, measured in fresh processes; says so where the library is missing or fails."""
    module, child = ROWS[label]
    if find_spec(module.partition(".")[0]) is None:
        return f"| {label} | not installed | | | |"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, __file__, child], text=True, start_new_session=True, **pipes) as done:
        out, errors = done.communicate()
    with suppress(ProcessLookupError):
        os.killpg(done.pid, signal.SIGKILL)  # The helper processes of zeus outlive it.
    if done.returncode:
        reason = (errors.strip().splitlines() or ["no message"])[-1]
        return f"| {label} | failed: {reason[:80]} | | | |"
    found = json.loads(out.splitlines()[-1])
    return (
        f"| {label} | {found['edge_us']:.1f} | {found['p99_us']:.1f} | "
        f"{100 * found['share']:.2f} % | {import_milliseconds(module):.0f} |"
    )


def main() -> None:
    """Print the table, or one row's figures for the process that prints it."""
    if len(sys.argv) > 1:
        name, _, which = sys.argv[1].partition(":")
        print(json.dumps(leanwatt(which) if name == "leanwatt" else {"zeus": zeus, "codecarbon": codecarbon}[name]()))
        return
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} hardware threads, load {os.getloadavg()[0]:.1f}\n")
    print("| meter | us per edge (median) | p99 | of a core while sampling | ms of CPU to import |")
    print("|---|---:|---:|---:|---:|")
    for label in ROWS:
        print(measured(label), flush=True)
    print(f"| *limit* | {LIMITS['edge']} | | {LIMITS['share']} | {LIMITS['import']} |")


if __name__ == "__main__":
    main()
