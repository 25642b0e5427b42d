"""NVIDIA GPUs: which of them are ours to read, what each can tell, and their running totals."""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

from leanwatt.measurement import Counter
from leanwatt.meter._totals import CounterTotal, Device, PowerTotal, observed_period

HERTZ: Final = 10.0
"""A GPU's sensor changes about every 100 ms; power must be sampled as often."""
PROBE_SECONDS: Final = 0.8
PROBE_CHANGES: Final = 4
MOST_WATTS_OVER_LIMIT: Final = 2.0
"""Short peaks exceed the power limit, which is held on average."""
MOST_WATTS: Final = 2000.0
"""Where the limit cannot be read: no GPU of today draws more."""
DRIVER_PERIOD_SECONDS: Final = 0.1
"""Where the counter stood still while we looked: what is known of the driver (energy.md, section 1)."""
POWER_PERIOD_SECONDS: Final = 1.0
"""The power sensor shows an average over so long (Ampere and later)."""
FIX_DRIVER: Final = "install NVIDIA's driver, and give the container its GPUs (docker run --gpus all ...)"
FIX_VISIBLE: Final = "unset CUDA_VISIBLE_DEVICES, or name GPUs that are there"
FIX_RESTART: Final = "reload the driver or reboot: library and kernel module are of different versions"


@dataclass(frozen=True)
class Gpu:
    """One GPU that can be read."""

    name: str
    """`gpu-0`, by NVML's order (that of the PCI bus), whatever CUDA calls it."""
    library: Any
    handle: Any
    has_counter: bool

    def millijoules(self) -> int | None:
        """The energy counter; None where it cannot be read now."""
        return self._number("nvmlDeviceGetTotalEnergyConsumption")

    def milliwatts(self) -> int | None:
        """The power sensor; None where it cannot be read now."""
        return self._number("nvmlDeviceGetPowerUsage")

    def most_watts(self) -> float:
        """More than this it cannot draw."""
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return MOST_WATTS if not limit else MOST_WATTS_OVER_LIMIT * limit / 1000

    def period_seconds(self) -> float | None:
        """How often its sensor changes, as seen now; None where it stood still."""
        read = self.millijoules if self.has_counter else self.milliwatts
        return observed_period(read, PROBE_SECONDS, PROBE_CHANGES, pause=0.001)

    def is_shared(self) -> bool:
        """Does another process compute on it? False where the driver does not say."""
        try:
            running = [int(each.pid) for each in self.library.nvmlDeviceGetComputeRunningProcesses(self.handle)]
        except self.library.NVMLError:
            return False
        ours = sum(is_ours(pid) for pid in running)
        # In a container the driver may tell the host's numbers: then one of the processes is ours without a sign of it.
        unseen = 1 if not ours and cuda_is_used() else 0
        return len(running) > ours + unseen

    def _number(self, function: str) -> int | None:
        try:
            return int(getattr(self.library, function)(self.handle))
        except self.library.NVMLError:
            return None


@dataclass(frozen=True)
class Found:
    """What there is of NVIDIA GPUs for this process."""

    status: Literal["ok", "denied", "masked", "absent"]
    detail: str
    fix: str = ""
    gpus: tuple[Gpu, ...] = ()
    library: Any = None

    def close(self) -> None:
        """Give the library back."""
        if self.library is not None:
            self.library.nvmlShutdown()


def find(library: Any = None) -> Found:
    """The GPUs that this process may use and that have a sensor. `library` stands in for pynvml in tests."""
    library = library or _pynvml()
    if library is None:
        return Found("absent", "the Python package nvidia-ml-py is not installed", "pip install nvidia-ml-py")
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return _unusable(library, error)
    try:
        handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        visible = _visible(library, handles, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except library.NVMLError as error:
        return Found("absent", f"the driver fails: {error}", FIX_DRIVER, library=library)
    gpus = tuple(gpu for index in visible if (gpu := _gpu(library, index, handles[index])))
    if gpus:
        return Found("ok", ", ".join(_told(gpu) for gpu in gpus), gpus=gpus, library=library)
    if not visible:
        told = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Found("absent", f"{len(handles)} GPUs, none visible (CUDA_VISIBLE_DEVICES={told!r})", FIX_VISIBLE,
                     library=library)  # fmt: skip
    return Found("absent", "GPUs are there, but have neither an energy counter nor a power sensor", FIX_DRIVER,
                 library=library)  # fmt: skip


@final
class GpuSource:
    """GPUs with their running totals, to be read alone or together with other sources."""

    of_process = False

    def __init__(self, found: Found) -> None:
        self._found = found
        period = (found.gpus[0].period_seconds() if found.gpus else None) or DRIVER_PERIOD_SECONDS
        self._totals = [(gpu, _total(gpu, period)) for gpu in found.gpus]

    def tick(self, now: float, stopped: bool) -> None:
        """Read each GPU."""
        for gpu, total in self._totals:
            if isinstance(total, CounterTotal):
                total.add(now, gpu.millijoules(), stopped=stopped)
            else:
                milliwatts = gpu.milliwatts()
                total.add(now, None if milliwatts is None else milliwatts / 1000, stopped=stopped)

    def slow_tick(self, now: float) -> None:
        """See whether others use our GPUs."""
        for gpu, total in self._totals:
            if gpu.is_shared():
                total.note("contended")

    def counters(self) -> Mapping[str, Counter]:
        """The totals, by device."""
        return {gpu.name: total.counter() for gpu, total in self._totals}

    def close(self) -> None:
        """Give the library back."""
        self._found.close()


def synchronize() -> None:
    """Wait for all work given to the GPUs by this process, where it uses any. Loads nothing."""
    if not cuda_is_used():
        return
    cuda = sys.modules["torch"].cuda
    for index in range(cuda.device_count()):
        if cuda.memory_reserved(index):
            cuda.synchronize(index)


def cuda_is_used() -> bool:
    """Has this process used CUDA through torch?"""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # Another thread may be importing torch right now.
    return cuda is not None and bool(cuda.is_initialized())


def is_ours(pid: int) -> bool:
    """Is it this process, or one that it started?"""
    for _ in range(64):
        if pid == os.getpid():
            return True
        if pid <= 1:
            return False
        pid = _parent(pid)
    return False


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _pynvml() -> Any:
    """The library of `nvidia-ml-py`. The retired package `pynvml` has the same name and warns when it is loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import pynvml
    except ImportError:
        return None
    return pynvml


def _unusable(library: Any, error: Any) -> Found:
    if isinstance(error, library.NVMLError_LibraryNotFound | library.NVMLError_DriverNotLoaded):
        return Found("absent", f"no NVIDIA driver ({error})", FIX_DRIVER)
    if isinstance(error, library.NVMLError_NoPermission):
        return Found("denied", f"the driver refuses us ({error})", "give this user access to /dev/nvidia*")
    if isinstance(error, library.NVMLError_LibRmVersionMismatch):
        return Found("denied", f"the driver was updated under us ({error})", FIX_RESTART)
    return Found("absent", f"the driver fails ({error})", FIX_DRIVER)


def _visible(library: Any, handles: Sequence[Any], told: str | None) -> list[int]:
    """Which GPUs CUDA_VISIBLE_DEVICES leaves, by CUDA's rule: the first name that fits nothing ends the list.

    Numbers are taken in the order of the PCI bus, as NVML has them. CUDA's own order differs only on machines of mixed
    GPUs without CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    if told is None:
        return list(range(len(handles)))
    uuids = [str(library.nvmlDeviceGetUUID(handle)) for handle in handles]
    found: list[int] = []
    for name in (part.strip() for part in told.split(",")):
        indices = (
            [int(name)] if name.isdigit() else [i for i, uuid in enumerate(uuids) if name and uuid.startswith(name)]
        )
        if len(indices) != 1 or indices[0] >= len(handles):
            break
        found += [index for index in indices if index not in found]
    return found


def _gpu(library: Any, index: int, handle: Any) -> Gpu | None:
    """A GPU as it can be read; None where it has no sensor, or is cut into MIG slices."""
    if _is_sliced(library, handle):
        return None
    for has_counter in (True, False):
        gpu = Gpu(f"gpu-{index}", library, handle, has_counter)
        if (gpu.millijoules() if has_counter else gpu.milliwatts()) is not None:
            return gpu
    return None


def _is_sliced(library: Any, handle: Any) -> bool:
    try:
        current, _pending = library.nvmlDeviceGetMigMode(handle)
    except library.NVMLError:
        return False
    return bool(current == library.NVML_DEVICE_MIG_ENABLE)


def _total(gpu: Gpu, period: float) -> CounterTotal | PowerTotal:
    device = Device(gpu.name, "nvml", "gpu", gpu.most_watts(), joules_per_step=1e-3, period_seconds=period)
    if gpu.has_counter:
        return CounterTotal(device)
    return PowerTotal(replace(device, period_seconds=max(period, POWER_PERIOD_SECONDS)))


def _told(gpu: Gpu) -> str:
    name = gpu.library.nvmlDeviceGetName(gpu.handle)
    return f"{gpu.name} {name} ({'energy counter' if gpu.has_counter else 'power only'})"
