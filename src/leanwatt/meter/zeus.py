"""AMD GPUs, Apple silicon and Jetson boards by the library `zeus`: its devices' energy counters, our bookkeeping.

Only counters are read: zeus opens no windows and starts no monitor of CPUs, whose child processes outlive a kill.
On Apple silicon CPU, GPU, neural engine and memory are apart; a Jetson gives its CPU and GPU.
Not yet run on hardware: tested against a fake module. Reference: ml.energy/zeus, `zeus.device`, version 0.16.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

from leanwatt.contracts import Meter
from leanwatt.errors import MeterError, MissingExtraError
from leanwatt.measurement import Counter, Scope, SourceStatus
from leanwatt.meter._gpus import synchronize
from leanwatt.meter._reader import HERTZ, Reader, require_positive, sampling
from leanwatt.meter._totals import CounterTotal, Device, observed_period

PARTS: Final[Mapping[str, tuple[str, Scope]]] = {
    "cpu_total_mj": ("package", "package"),
    "cpu_energy_mj": ("package", "package"),
    "gpu_mj": ("gpu-0", "gpu"),
    "gpu_energy_mj": ("gpu-0", "gpu"),
    "ane_mj": ("neural-engine", "gpu"),
    "dram_mj": ("dram-0", "dram"),
}
"""Field of zeus's measurement -> device and scope. Cores and clusters are parts of these and are never added."""
FIX: Final = "pip install 'leanwatt[zeus]'"
PROBE_SECONDS: Final = 0.8
PROBE_CHANGES: Final = 4


@final
@dataclass(frozen=True)
class Zeus(Meter):
    """Joules of the GPUs or the chip that zeus can read."""

    most_watts: float = 2000.0
    """No device draws more: larger steps are rejected."""

    def __post_init__(self) -> None:
        require_positive(most_watts=self.most_watts)

    def open(self) -> AbstractContextManager[Reader]:
        """Start reading. Raises MissingExtraError without zeus, and MeterError where it finds no device."""
        try:
            sensors = _sensors()
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"meter: zeus needs '{error.name}'. Install it with: {FIX}") from error
        if not sensors:
            raise MeterError("meter: zeus finds no GPU, Apple silicon or Jetson here. Choose `meter: auto`.")
        return sampling([_Source(sensors, self.most_watts)], hertz=HERTZ, at_edges=synchronize)


def status() -> SourceStatus:
    """What `doctor` shows of zeus."""
    try:
        sensors = _sensors()
    except ModuleNotFoundError as error:
        return SourceStatus("zeus", "absent", f"the Python package '{error.name}' is not installed", FIX)
    if not sensors:
        return SourceStatus("zeus", "absent", "zeus finds no GPU, Apple silicon or Jetson here")
    period = observed_period(sensors[0].millijoules, PROBE_SECONDS, PROBE_CHANGES, pause=0.001)
    return SourceStatus("zeus", "ok", ", ".join(each.name for each in sensors), period_seconds=period)


@dataclass(frozen=True)
class _Sensor:
    name: str
    scope: Scope
    millijoules: Callable[[], float | None]


@final
class _Source:
    """Zeus's counters with our running totals."""

    of_process = False

    def __init__(self, sensors: list[_Sensor], most_watts: float) -> None:
        self._totals = [(sensor, CounterTotal(_device(sensor, most_watts))) for sensor in sensors]

    def tick(self, now: float, stopped: bool) -> None:
        for sensor, total in self._totals:
            value = sensor.millijoules()
            total.add(now, None if value is None else round(value), stopped=stopped)

    def slow_tick(self, now: float) -> None:
        """Zeus does not say who else computes."""

    def counters(self) -> Mapping[str, Counter]:
        return {sensor.name: total.counter() for sensor, total in self._totals}

    def close(self) -> None:
        """Zeus keeps its devices until the process ends."""


def _device(sensor: _Sensor, most_watts: float) -> Device:
    return Device(sensor.name, "zeus", sensor.scope, most_watts, joules_per_step=1e-3, slack_joules=100.0)


def _sensors() -> list[_Sensor]:
    """Each counter that zeus can read now. Raises ModuleNotFoundError."""
    # One of its dependencies prints to stdout as it is imported, where our commands write JSON.
    with contextlib.redirect_stdout(sys.stderr):
        device, exception = importlib.import_module("zeus.device"), importlib.import_module("zeus.exception")
    failure = exception.ZeusBaseError
    return _gpu_sensors(device.get_gpus, failure) + _chip_sensors(device.get_soc, failure)


def _gpu_sensors(get_gpus: Callable[[], Any], failure: type[Exception]) -> list[_Sensor]:
    try:
        gpus = get_gpus()
        indices = [index for index in range(len(gpus)) if gpus.supports_get_total_energy_consumption(index)]
    except failure:
        return []
    return [
        _Sensor(f"gpu-{index}", "gpu", _guarded(partial(gpus.get_total_energy_consumption, index), failure))
        for index in indices
    ]


def _chip_sensors(get_soc: Callable[[], Any], failure: type[Exception]) -> list[_Sensor]:
    try:
        chip = get_soc()
        there = vars(chip.get_total_energy_consumption())
    except failure:
        return []

    def part(name: str) -> Callable[[], float | None]:
        return _guarded(lambda: getattr(chip.get_total_energy_consumption(), name), failure)

    return [_Sensor(*PARTS[name], part(name)) for name in PARTS if there.get(name) is not None]


def _guarded(ask: Callable[[], Any], failure: type[Exception]) -> Callable[[], float | None]:
    def millijoules() -> float | None:
        try:
            value = ask()
        except failure:
            return None
        return None if value is None else float(value)

    return millijoules
