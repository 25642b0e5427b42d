"""NVIDIA GPUs by their driver's library, NVML: the energy counter (Volta and later), or power integrated over time.

Read are the GPUs that CUDA_VISIBLE_DEVICES leaves to this process, whole and with everything that runs on them. A MIG
slice has no sensor of its own: it is left out, since the whole GPU's figure would hold its neighbours' work. All work
given to a GPU is waited for at each edge. Needs `nvidia-ml-py`, which comes with leanwatt, and NVIDIA's driver.

The counter counts millijoules since the driver was loaded and changes about every 100 ms; power is an average over 1 s
on Ampere and later (NVML API reference, nvmlDeviceGetTotalEnergyConsumption and nvmlDeviceGetPowerUsage).
Not yet run on hardware: tested against a fake library.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

from leanwatt.contracts import Meter
from leanwatt.errors import MeterError
from leanwatt.measurement import SourceStatus
from leanwatt.meter._gpus import HERTZ, GpuSource, find, synchronize
from leanwatt.meter._reader import Reader, require_positive, sampling


@final
@dataclass(frozen=True)
class Nvml(Meter):
    """Joules of each NVIDIA GPU that this process may use."""

    hertz: float = HERTZ
    """Samples per second between the edges of windows."""

    def __post_init__(self) -> None:
        require_positive(hertz=self.hertz)

    def open(self) -> AbstractContextManager[Reader]:
        """Start reading. Raises MeterError where no GPU can be read, and says what would help."""
        found = find()
        if not found.gpus:
            found.close()
            raise MeterError(f"meter: nvml found no GPU it can read: {found.detail}. What helps: {found.fix}")
        return sampling([GpuSource(found)], hertz=self.hertz, at_edges=synchronize)


def status() -> SourceStatus:
    """What `doctor` shows of NVML."""
    found = find()
    try:
        period = found.gpus[0].period_seconds() if found.gpus else None
        return SourceStatus("nvml", found.status, found.detail, "" if found.status == "ok" else found.fix, period)
    finally:
        found.close()
