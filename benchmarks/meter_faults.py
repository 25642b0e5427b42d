"""The table of faults, ours beside theirs: what each meter says when a sensor misbehaves and the truth is known.

    unshare -rm true && python benchmarks/meter_faults.py        # with zeus and codecarbon installed beside leanwatt

Each cell is one run of the real, unmodified library in a fresh process. RAPL is a folder laid out as the kernel does,
in a private mount namespace (needs root or `unshare -rm`); a GPU is the real pynvml with its functions replaced. Power
flows only between the begin and the end of a window, so that the truth does not depend on how long a meter takes to
start. A dash says why a meter could not be driven. Rows bear the numbers of our tests (`test_row_08_...`); `--row 08`
runs those of one number.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fake_machine as fake
from fake_machine import Sensor

METERS = ("leanwatt", "zeus", "codecarbon")
LIMIT_SECONDS = 90


@dataclass(frozen=True)
class Fault:
    """One row: the machine before the window, and what happens in it."""

    row: str
    what: str
    build: Callable[[Sensor], None]
    play: Callable[[Sensor], None]
    truth: str = ""
    """Where it is not the joules that were spent."""
    times: int = 1
    """Where it is a matter of luck: the worst of so many is shown."""
    ask: Callable[[str], str] | None = None
    """What to do instead of a window, given the meter's name."""


def killed(name: str) -> str:
    """What is known of a window, and what still runs, after its process was killed."""
    sensor = fake.watched_package()
    with tempfile.TemporaryDirectory() as folder:
        victim = started(name, folder)
        sensor.spend(3.0)
        victim.kill()
        victim.wait()
        time.sleep(1.0)
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, os.getpid())]
        known = "no record"
        if name == "leanwatt":
            from leanwatt.meter._journal import unclosed

            [found] = unclosed(Path(folder) / "journal")
            known = f"{_joules(found.devices['package-0'].joules)} ({found.devices['package-0'].provenance})"
        elif list(Path(folder).iterdir()):
            known = "a file"
    return f"{known}, {len(left)} processes"


def ranks(name: str) -> str:
    """The sum of what four processes of one node report."""
    sensor = fake.watched_package()
    with tempfile.TemporaryDirectory() as folder:
        found = [started(name, folder, LOCAL_RANK=str(rank)) for rank in range(4)]
        sensor.spend(2.0)
        said = [_answer(each) for each in found]
    known = [each for each in said if each is not None]
    return f"{sum(known):.1f} J by {len(known)} processes"


def _answer(process: "subprocess.Popen[str]") -> float | None:
    """Its figure. Its end is not waited for: a helper process may hold its pipe open for ever."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("end\n")
    process.stdin.flush()
    lines = iter(process.stdout.readline, "")
    return next((json.loads(line) for line in lines if line[0] in "0123456789n"), None)


def started(name: str, folder: str, **environment: str) -> "subprocess.Popen[str]":
    """A process with an open window."""
    command = [sys.executable, __file__, "--window", name, folder]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, env={**os.environ, **environment}, **pipes)
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    return process


def window(name: str, folder: str) -> None:
    """Open a window, say so, close it when told, and say what it holds."""
    said: float | None
    if name == "leanwatt":
        from leanwatt.meter._journal import window as journal

        from leanwatt.meter.auto import Auto

        with Auto().open() as read, journal(read, "fault", Path(folder) / "journal") as opened:
            _wait()
        assert opened.measurement is not None
        energy = opened.measurement.devices.get("package-0")
        said = energy.joules if energy else None
    elif name == "zeus":
        from zeus.monitor import ZeusMonitor

        monitor = ZeusMonitor(approx_instant_energy=False)
        monitor.begin_window("fault", sync_execution=False)
        _wait()
        said = sum((monitor.end_window("fault", sync_execution=False).cpu_energy or {}).values())
    else:
        from codecarbon import OfflineEmissionsTracker

        tracker = OfflineEmissionsTracker(
            country_iso_code="FRA", measure_power_secs=1, output_dir=folder, log_level="critical"
        )
        tracker.start()
        _wait()
        tracker.stop()
        said = tracker.final_emissions_data.cpu_energy * 3.6e6
    print("\n" + json.dumps(said), flush=True)
    os._exit(0)


def _wait() -> None:
    print("\nready", flush=True)
    sys.stdin.readline()


def network(name: str) -> str:
    """How often a plain window asks for a name or an address on the network."""
    import socket

    asked: list[Any] = []

    def refuse(*arguments: Any, **_settings: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network here")

    socket.getaddrinfo, socket.socket.connect = refuse, refuse  # type: ignore[assignment, method-assign]
    if name == "codecarbon":
        from codecarbon import EmissionsTracker

        tracker = EmissionsTracker(save_to_file=False, log_level="critical")
        tracker.start()
        tracker.stop()
    else:
        quick = Fault("33", "", fake.one_package, lambda _: time.sleep(0.2))
        {"leanwatt": leanwatt, "zeus": zeus}[name](quick, Sensor())
    return str(len(asked))


def carbon(name: str, **given: Any) -> str:
    """What becomes of an input that cannot be."""
    if name == "zeus":
        return "— zeus takes none offline"
    if name == "leanwatt":
        from leanwatt.bill import Terms
        from leanwatt.errors import StudyError

        try:
            Terms.parse({**given, "year": 2024} if "country" in given else given)
        except StudyError:
            return "refused"
        return "accepted"
    from codecarbon import OfflineEmissionsTracker

    settings = {"country_iso_code": given.get("country", "FRA"), "pue": given.get("pue", 1.0)}
    tracker = OfflineEmissionsTracker(**settings, save_to_file=False, log_level="critical")
    tracker.start()
    Sensor.spend(fake.watched_package(), 2.0)
    tracker.stop()
    found = tracker.final_emissions_data
    return f"accepted: {found.emissions * 1e6:.2f} mg CO2e for {found.energy_consumed * 3.6e6:.0f} J"


def noise(name: str) -> str:
    """Bytes that a program's stdout gets from the import alone."""
    ours = "from leanwatt.meter import codecarbon, zeus; zeus.status(); codecarbon.Codecarbon().open()"
    code = {"leanwatt": ours, "zeus": "import zeus.monitor", "codecarbon": "import codecarbon"}[name]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return f"{len(done.stdout)}" + ("" if done.returncode == 0 else " (fails)")


FAULTS = (
    Fault("01", "no sensor at all", fake.nothing, lambda _: time.sleep(2.0), "unknown"),
    Fault("02", "counter not readable for us", fake.denied, lambda _: time.sleep(2.0), "unknown"),
    Fault("03", "powercap hidden by a container", lambda _: fake.ROOT.mkdir(exist_ok=True), lambda _: time.sleep(2.0),
          "unknown"),
    Fault("04", "steady 100 W, 3 s", fake.one_package, fake.spend(3.0)),
    Fault("05", "wrap at 500 W, window ends at once", fake.with_start(fake.RANGE - 1.5e8),
          fake.spend(0.31, z0=500.0), times=5),
    Fault("05", "wrap at 500 W, window ends 0.3 s later", fake.with_start(fake.RANGE - 1.5e8),
          fake.spend(0.6, z0=500.0), times=5),
    Fault("06", "three wraps of a range of 1 kJ", fake.with_start(5e8, largest=1_000_000_000),
          fake.spend(7.0, z0=450.0)),
    Fault("07", "wrap, range not readable", fake.no_range, fake.spend(3.0)),
    Fault("08", "reset from 200 kJ to 3 J", fake.with_start(2e11),
          fake.then(fake.spend(1.5), fake.reset(3e6), fake.spend(1.5))),
    Fault("09", "only DRAM wraps", fake.then(fake.one_package, lambda s: fake.dram(s, fake.RANGE - 1e7)),
          lambda s: s.spend(2.0, {"intel-rapl:0": 100.0, "intel-rapl:0/intel-rapl:0:0": 10.0})),
    Fault("10", "one empty read", fake.one_package, fake.then(fake.spend(1.5), fake.garbled, fake.spend(1.5))),
    Fault("11", "zone vanishes half-way", fake.one_package, fake.then(fake.spend(2.0), fake.vanish)),
    Fault("12", "counter stuck for 3 s of 4", fake.one_package,
          fake.then(fake.spend(1.0), lambda s: s.spend(3.0, shown=False))),
    Fault("13", "jump of 100 kJ", fake.one_package, fake.then(fake.spend(1.0), fake.jump, fake.spend(1.0))),
    Fault("14", "core and psys beside the package", fake.board, fake.board_spends),
    Fault("15", "2 sockets, 27 W and DRAM 10 W", fake.sockets,
          lambda s: s.spend(2.0, {"intel-rapl:0": 15.0, "intel-rapl:1": 12.0, "intel-rapl:0/intel-rapl:0:0": 4.0,
                                  "intel-rapl:1/intel-rapl:1:0": 6.0})),
    Fault("16", "two dies that mirror one counter", fake.dies(("package-0-die-0", "package-0-die-1")), fake.mirrored),
    Fault("16", "two sockets that start within 1 J", fake.dies(("package-0", "package-1")),
          fake.spend(2.0, z0=50.0, z1=50.0)),
    Fault("04", "steady GPU at 300 W, 6 s", fake.gpu(), fake.spend(6.0, gpu=300.0)),
    Fault("17", "GPU counter every 100 ms, window 30 ms", fake.gpu(0.1), fake.spend(0.03, gpu=300.0)),
    Fault("18", "GPU counter reset", fake.gpu(),
          fake.then(fake.spend(3.0, gpu=300.0), fake.gpu_reset, fake.spend(3.0, gpu=300.0))),
    Fault("19", "GPU lost at the end", fake.gpu(), fake.then(fake.spend(6.0, gpu=300.0), fake.gpu_lost)),
    Fault("20", "GPU without a counter, 300 W", fake.gpu(has_counter=False), fake.spend(6.0, gpu=300.0)),
    Fault("24", "wall clock set back by 60 s in a window", fake.clock,
          fake.then(fake.clock_back, fake.spend(2.0)), "0 s off"),
    Fault("26", "kill -9 after 3 s at 100 W", fake.one_package, fake.nothing, "300 J, 0 processes", ask=killed),
    Fault("28", "4 ranks of one node, 2 s at 100 W", fake.one_package, fake.nothing, "200 J", ask=ranks),
    Fault("33", "look-ups and connects, tracker of the README", fake.one_package, fake.nothing, "0", ask=network),
    Fault("34", "country ZZZ", fake.one_package, fake.nothing, "refused", ask=lambda name: carbon(name, country="ZZZ")),
    Fault("35", "PUE 0.5", fake.one_package, fake.nothing, "refused", ask=lambda name: carbon(name, pue=0.5)),
    Fault("35", "PUE -1", fake.one_package, fake.nothing, "refused", ask=lambda name: carbon(name, pue=-1)),
    Fault("48", "bytes on stdout at import, zeus and codecarbon installed", fake.nothing, fake.nothing, "0", ask=noise),
)  # fmt: skip


def leanwatt(fault: Fault, sensor: Sensor) -> str:
    from leanwatt.measurement import Measurement
    from leanwatt.meter.auto import Auto

    with Auto().open() as read:
        begun, begin = time.perf_counter(), read()
        fault.play(sensor)
        spent = Measurement.between("fault", begin, read())
    if fault.row == "24":
        return _off(spent.seconds, begun)
    # What no sensor sees is estimated, and stands apart: here only where there is nothing else.
    seen = {n: e for n, e in spent.devices.items() if e.source in ("rapl", "nvml")}
    estimated = {n: e for n, e in spent.devices.items() if n not in seen and e.scope != "memory"}
    parts = [(name, e.joules, str(e.provenance), e.flags) for name, e in (seen or estimated).items()]
    return ", ".join(
        f"{_joules(joules)} {name} ({'; '.join([provenance, *flags])})" for name, joules, provenance, flags in parts
    )


def zeus(fault: Fault, sensor: Sensor) -> str:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(approx_instant_energy=False)
    monitor.begin_window("before", sync_execution=False)  # Its pollers of wraps start with the first window.
    time.sleep(1.5)
    monitor.end_window("before", sync_execution=False)
    begun = time.perf_counter()
    monitor.begin_window("fault", sync_execution=False)
    fault.play(sensor)
    found = monitor.end_window("fault", sync_execution=False)
    if fault.row == "24":
        return _off(found.time, begun)
    groups = {"gpu": found.gpu_energy, "cpu": found.cpu_energy, "dram": found.dram_energy}
    told = [f"{_joules(each)} {name}-{key}" for name, group in groups.items() for key, each in (group or {}).items()]
    return ", ".join(told) or f"total_energy {found.total_energy:g} J"


def codecarbon(fault: Fault, sensor: Sensor) -> str:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", measure_power_secs=1, save_to_file=False, log_level="critical", rapl_include_dram=True
    )
    tracker.start()
    begun = time.perf_counter()
    fault.play(sensor)
    tracker.stop()
    found = tracker.final_emissions_data
    if fault.row == "24":
        return _off(found.duration, begun)
    told = {"cpu": found.cpu_energy * 3.6e6, "gpu": found.gpu_energy * 3.6e6}
    wanted = "gpu" if "GPU" in fault.what else "cpu"
    return f"{_joules(told[wanted])} {wanted}"


def _off(seconds: float, begun: float) -> str:
    return f"{abs(seconds - (time.perf_counter() - begun)):.0f} s off"


def _joules(value: float | None) -> str:
    return "absent" if value is None else f"{value:.1f} J"


def child(place: int, name: str) -> None:
    """One cell, as JSON on the last line."""
    fault, sensor = FAULTS[place], Sensor()
    fault.build(sensor)
    windows = {"leanwatt": leanwatt, "zeus": zeus, "codecarbon": codecarbon}
    try:
        said = fault.ask(name) if fault.ask else windows[name](fault, sensor)
    except Exception as error:  # What a meter raises is what its user would see.
        said = f"raises {type(error).__name__}"
    print("\n" + json.dumps({"said": said, "truth": fault.truth or f"{sensor.truth:.1f} J"}), flush=True)
    os._exit(0)  # Helper processes of a meter are not waited for.


def cell(place: int, name: str) -> dict[str, str]:
    """The worst of one cell's runs."""
    if not _version(name):
        return {"said": "— not installed", "truth": ""}
    fault = FAULTS[place]
    found = [run(place, name) for _ in range(fault.times)]
    worst = max(found, key=_error)
    return worst if fault.times == 1 else {**worst, "said": f"{worst['said']} (worst of {fault.times})"}


def _error(found: dict[str, str]) -> float:
    """Joules between what was said and the truth; what says no figure at all is the worst."""
    try:
        return abs(float(found["said"].split()[0]) - float(found["truth"].split()[0]))
    except (ValueError, IndexError):
        return float("inf")


def run(place: int, name: str) -> dict[str, str]:
    """One run in namespaces of its own: a private /sys/class, and no process that outlives it."""
    folder = {"01": "/sys/class", "03": "/sys/class/powercap"}.get(FAULTS[place].row, "/sys/class/powercap/intel-rapl")
    inside = f'mount -t tmpfs none /sys/class && chmod 755 /sys/class && mkdir -p {folder} && exec "$@"'
    root = [] if os.geteuid() == 0 else ["-r"]
    spaces = ["-m", "--propagation", "private", "-p", "-f", "--kill-child", "--mount-proc"]
    capable = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if FAULTS[place].row == "02" else []
    command = ["unshare", *root, *spaces, "sh", "-c", inside, "x", *capable, sys.executable, __file__]
    with tempfile.TemporaryFile("w+") as out:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, "--child", str(place), name],
                stdout=out, stderr=subprocess.DEVNULL, timeout=LIMIT_SECONDS, check=False,
            )  # fmt: skip
        out.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith('{"said"')]
    return json.loads(lines[-1]) if lines else {"said": "— no answer", "truth": ""}


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    if name == "leanwatt":
        import leanwatt as ours

        return ours.__version__
    return None


def main() -> None:
    """Print the table, or one cell for the process that prints it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--window", nargs=2)
    parser.add_argument("--row")
    asked = parser.parse_args()
    if asked.child:
        child(int(asked.child[0]), asked.child[1])
    if asked.window:
        window(*asked.window)
    named = ", ".join(f"{name} {_version(name) or '(not installed)'}" for name in METERS)
    print(f"{named}; Python {platform.python_version()}, {platform.system()} {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} hardware threads; {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"| row | fault | truth | {' | '.join(METERS)} |")
    print(f"|---|---|---:|{'---|' * len(METERS)}")
    for place, fault in enumerate(FAULTS):
        if asked.row and fault.row != asked.row:
            continue
        cells = {name: cell(place, name) for name in METERS}
        truth = next((each["truth"] for each in cells.values() if each["truth"]), "")
        print(f"| {fault.row} | {fault.what} | {truth} | {' | '.join(cells[n]['said'] for n in METERS)} |", flush=True)


if __name__ == "__main__":
    main()
