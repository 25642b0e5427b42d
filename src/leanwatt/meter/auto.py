"""The best this machine has: RAPL and NVML read together, and an estimate of the CPU where it has no counter.

A GPU's measured joules and a CPU's estimated ones stand beside each other as devices of their own; a total of both is
as good as the worse of the two, and a ranking takes the widest scope that was measured alike for all. Nothing is asked
over a network. `leanwatt doctor` shows what was found.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

from leanwatt.contracts import Meter
from leanwatt.meter import _gpus, _zones, estimate
from leanwatt.meter._cpu_share import CpuShareSource
from leanwatt.meter._reader import HERTZ, Reader, Source, sampling


@final
@dataclass(frozen=True)
class Auto(Meter):
    """All local sensors that can be read; an estimate for what they leave out."""

    def open(self) -> AbstractContextManager[Reader]:
        """Start reading. Works everywhere: each figure says where it comes from."""
        zones, gpus = _zones.find(), _gpus.find()
        sources: list[Source] = [_zones.ZoneSource(zones)] if zones.zones else []
        if gpus.gpus:
            sources.append(_gpus.GpuSource(gpus))
        else:
            gpus.close()
        sources.append(CpuShareSource(estimate.Estimate().tdp(), with_package=not zones.zones))
        hertz = _gpus.HERTZ if gpus.gpus else HERTZ
        return sampling(sources, hertz=hertz, at_edges=_gpus.synchronize)


def chosen() -> tuple[str, ...]:
    """The sources that `auto` reads here, best first: `("rapl", "nvml")`, or `("nvml", "estimate")`."""
    from leanwatt.meter import nvml, rapl

    found = [each.source for each in (rapl.status(), nvml.status()) if each.status == "ok"]
    return tuple(found if "rapl" in found else [*found, "estimate"])
