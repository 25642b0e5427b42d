"""A machine whose sensors misbehave on purpose, in real time: RAPL's folder, a GPU inside pynvml, the wall clock.

For meter_faults.py, which runs every meter in a mount namespace of its own: what is written here is all it sees.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

RANGE = 262_143_328_850
"""Microjoules at which a package counter of many Intel CPUs starts again."""
ROOT = Path("/sys/class/powercap")
STEP_SECONDS = 0.01
NOBODY = 65534


class Sensor:
    """Fake counters of a machine; `spend` takes real time, and adds what was really spent to `truth`."""

    def __init__(self) -> None:
        self.truth = 0.0
        self.zones: dict[str, float] = {}
        self.ranges: dict[str, int] = {}
        self.gpu_millijoules: float | None = 5e9
        self.clock_offset = 0.0

    def zone(self, path: str, name: str, *, start: float = 1e9, largest: int | None = RANGE) -> None:
        folder = ROOT / "intel-rapl" / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        self.ranges[path] = largest or RANGE
        if largest:
            (folder / "max_energy_range_uj").write_text(f"{largest}\n")
        self.show(path, start)
        with suppress(FileExistsError):
            (ROOT / folder.name).symlink_to(folder)
            (ROOT / "intel-rapl" / "subsystem").symlink_to(ROOT)

    def show(self, path: str, microjoules: float) -> None:
        self.zones[path] = microjoules
        self.write(path, f"{round(microjoules)}\n")

    @staticmethod
    def write(path: str, text: str) -> None:
        file = ROOT / "intel-rapl" / path / "energy_uj"
        file.with_suffix(".next").write_text(text)
        file.with_suffix(".next").replace(file)

    def spend(self, seconds: float, watts: dict[str, float] | None = None, *, shown: bool = True) -> None:
        """Real time passes; `gpu` and zones spend their watts. Not `shown`: the sensor stands still."""
        flows = {"intel-rapl:0": 100.0} if watts is None else watts
        last = time.perf_counter()
        end = last + seconds
        while last < end:
            time.sleep(STEP_SECONDS)
            now = min(time.perf_counter(), end)
            for path, each in flows.items():
                self._flow(path, each * (now - last), shown)
            last = now

    def _flow(self, path: str, joules: float, shown: bool) -> None:
        self.truth += joules
        if not shown:
            return
        if path == "gpu":
            self.gpu_millijoules = (self.gpu_millijoules or 0.0) + joules * 1e3
        else:
            self.show(path, (self.zones[path] + joules * 1e6) % self.ranges[path])


def one_package(sensor: Sensor) -> None:
    sensor.zone("intel-rapl:0", "package-0")


def with_start(microjoules: float, **settings: Any) -> Callable[[Sensor], None]:
    return lambda sensor: sensor.zone("intel-rapl:0", "package-0", start=microjoules, **settings)


def nothing(_sensor: Sensor) -> None:
    """Not even a folder."""


def spend(seconds: float, **flows: float) -> Callable[[Sensor], None]:
    named = {path.replace("_", ":"): watts for path, watts in flows.items()}
    watts = {("gpu" if path == "gpu" else f"intel-rapl:{path[1:]}"): each for path, each in named.items()}
    return lambda sensor: sensor.spend(seconds, watts or None)


def then(*parts: Callable[[Sensor], None]) -> Callable[[Sensor], None]:
    def play(sensor: Sensor) -> None:
        for part in parts:
            part(sensor)

    return play


def denied(sensor: Sensor) -> None:
    one_package(sensor)
    for file in ROOT.rglob("energy_uj"):
        file.chmod(0o400)
        os.chown(file, NOBODY, NOBODY)


def dram(sensor: Sensor, start: float = 3e8, largest: int = RANGE) -> None:
    sensor.zone("intel-rapl:0/intel-rapl:0:0", "dram", start=start, largest=largest)


def sockets(sensor: Sensor) -> None:
    for socket in (0, 1):
        sensor.zone(f"intel-rapl:{socket}", f"package-{socket}", start=1e9 + socket * 7.77e8)
        sensor.zone(f"intel-rapl:{socket}/intel-rapl:{socket}:0", "dram", start=3e8 + socket * 5e7)


def dies(names: tuple[str, str]) -> Callable[[Sensor], None]:
    def build(sensor: Sensor) -> None:
        for place, name in enumerate(names):
            sensor.zone(f"intel-rapl:{place}", name, start=1e9 + place * 9e5)

    return build


def mirrored(sensor: Sensor) -> None:
    sensor.spend(2.0, {"intel-rapl:0": 50.0, "intel-rapl:1": 50.0})
    sensor.truth /= 2


def board(sensor: Sensor) -> None:
    one_package(sensor)
    sensor.zone("intel-rapl:0/intel-rapl:0:0", "core", start=1e8)
    sensor.zone("intel-rapl:1", "psys", start=4e9)


def board_spends(sensor: Sensor) -> None:
    sensor.spend(2.0, {"intel-rapl:0": 100.0, "intel-rapl:0/intel-rapl:0:0": 80.0, "intel-rapl:1": 200.0})
    sensor.truth = 200.0 * sensor.truth / 760.0


def reset(to: float) -> Callable[[Sensor], None]:
    return lambda sensor: sensor.show("intel-rapl:0", to)


def garbled(sensor: Sensor) -> None:
    """One empty read for a tenth of a second."""
    sensor.write("intel-rapl:0", "")
    time.sleep(0.3)
    sensor.show("intel-rapl:0", sensor.zones["intel-rapl:0"])


def vanish(sensor: Sensor) -> None:
    file = ROOT / "intel-rapl" / "intel-rapl:0" / "energy_uj"
    file.unlink()
    sensor.spend(2.0, shown=False)


def jump(sensor: Sensor) -> None:
    sensor.show("intel-rapl:0", sensor.zones["intel-rapl:0"] + 1e11)


def no_range(sensor: Sensor) -> None:
    sensor.zone("intel-rapl:0", "package-0", start=RANGE - 1e8, largest=None)


def gpu(step_seconds: float = 0.0, *, has_counter: bool = True) -> Callable[[Sensor], None]:
    """A Hopper GPU at 300 W in the real pynvml, whose counter may change only every so often."""

    def build(sensor: Sensor) -> None:
        import pynvml

        def energy(_handle: Any) -> int:
            if sensor.gpu_millijoules is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            if not has_counter:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            step = 300e3 * step_seconds
            return int(sensor.gpu_millijoules // step * step if step else sensor.gpu_millijoules)

        def watts(_handle: Any) -> int:
            if sensor.gpu_millijoules is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return 300_000

        memory = type("Memory", (), {"total": 80 << 30, "free": 40 << 30, "used": 40 << 30})
        use = type("Use", (), {"gpu": 100, "memory": 10})
        replaced: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda _: "Fake H100",
            "nvmlDeviceGetUUID": lambda _: "GPU-00000000-aaaa",
            "nvmlDeviceGetArchitecture": lambda _: pynvml.NVML_DEVICE_ARCH_HOPPER,
            "nvmlDeviceGetTotalEnergyConsumption": energy,
            "nvmlDeviceGetPowerUsage": watts,
            "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
            "nvmlDeviceGetMemoryInfo": lambda _: memory,
            "nvmlDeviceGetUtilizationRates": lambda _: use,
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [],
            "nvmlDeviceGetGraphicsRunningProcesses": lambda _: [],
            "nvmlDeviceGetTemperature": lambda *_: 50,
            "nvmlDeviceGetComputeMode": lambda _: 0,
        }
        tool = Path(tempfile.mkdtemp()) / "nvidia-smi"  # codecarbon asks whether there is one.
        tool.write_text("#!/bin/sh\nexit 0\n")
        tool.chmod(0o755)
        os.environ["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
        for name, function in replaced.items():
            setattr(pynvml, name, function)

    return build


def gpu_reset(sensor: Sensor) -> None:
    sensor.gpu_millijoules = 0.0


def gpu_lost(sensor: Sensor) -> None:
    sensor.gpu_millijoules = None


def clock(sensor: Sensor) -> None:
    """A wall clock that can be set, also for those who take the function itself."""
    wall = time.time
    time.time = lambda: wall() + sensor.clock_offset  # type: ignore[assignment]
    one_package(sensor)


def clock_back(sensor: Sensor) -> None:
    sensor.clock_offset = -60.0


def watched_package() -> Sensor:
    sensor = Sensor()
    sensor.zones, sensor.ranges = {"intel-rapl:0": 1e9}, {"intel-rapl:0": RANGE}
    return sensor
