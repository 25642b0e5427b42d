"""Sensors with a known truth, in the shapes that the real ones have."""

from pathlib import Path
from typing import Any

RANGE = 262_143_328_850
"""Microjoules at which a package counter of many Intel CPUs starts again."""


class Clock:
    """A clock that goes only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Powercap:
    """A folder laid out as the kernel does: nested zones, and flat links to them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "powercap"
        (self.root / "intel-rapl").mkdir(parents=True)

    def zone(self, path: str, name: str, start: int = 1_000_000_000, largest: int | None = RANGE) -> Path:
        """Add `intel-rapl:0` or `intel-rapl:0/intel-rapl:0:1`."""
        folder = self.root / "intel-rapl" / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{start}\n")
        if largest is not None:
            (folder / "max_energy_range_uj").write_text(f"{largest}\n")
        (self.root / folder.name).symlink_to(folder)
        return folder

    @staticmethod
    def spend(folder: Path, joules: float, largest: int = RANGE) -> None:
        """The zone's counter moves on, and starts again at its range."""
        file = folder / "energy_uj"
        file.write_text(f"{(int(file.read_text()) + round(joules * 1e6)) % largest}\n")


class NVMLError(Exception):
    """As in pynvml."""


class NotFound(NVMLError):
    """As in pynvml."""


class NotLoaded(NVMLError):
    """As in pynvml."""


class NoPermission(NVMLError):
    """As in pynvml."""


class Mismatch(NVMLError):
    """As in pynvml."""


class Nvml:
    """A stand-in for the module pynvml: GPUs whose sensors show what the test says."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NotFound
    NVMLError_DriverNotLoaded = NotLoaded
    NVMLError_NoPermission = NoPermission
    NVMLError_LibRmVersionMismatch = Mismatch
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, gpus: int = 1) -> None:
        self.millijoules: list[int | None] = [5_000_000] * gpus
        self.milliwatts: list[int | None] = [300_000] * gpus
        self.sliced: set[int] = set()
        self.pids: list[int] = []
        self.init_error: NVMLError | None = None
        self.opened = 0

    def nvmlInit(self) -> None:
        if self.init_error:
            raise self.init_error
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Fake H100"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "999.1"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}0000000-aaaa"

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        return [int(handle in self.sliced)] * 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self._shown(self.millijoules[handle])

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._shown(self.milliwatts[handle])

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [type("Process", (), {"pid": pid}) for pid in self.pids]

    @staticmethod
    def _shown(value: int | None) -> int:
        if value is None:
            raise NVMLError("Not Supported")
        return value
