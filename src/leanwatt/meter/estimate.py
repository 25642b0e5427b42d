"""No sensor: joules from this process's own CPU time and a table of thermal design power. For wide margins only.

P = T (0.155 + 0.606 u), where u is the share of the usable hardware threads that this process and its finished
children keep busy, and T their share of the package's thermal design power (TDP). It is the straight line nearest to
T (0.02 + 0.70 u^0.6), the curve that predicts a CPU it was not fitted to best of those tried (docs/energy.md), and
stays within 11 % of it from u = 0.1 up. A line adds up: the parts of a stage give the whole, and the shape of the load
does not matter. On CPUs not seen before the curve is off by up to 2.9 times either way; with the line, 3.2 times.

Memory is a device of its own, scope `memory`, and never part of a total: 0.3 W per GB installed (0.2 to 0.54).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

from leanwatt.contracts import Meter
from leanwatt.machine import cpu_model, usable_cpus
from leanwatt.measurement import SourceStatus
from leanwatt.meter._cpu_share import CpuShareSource, Tdp, look_up
from leanwatt.meter._reader import HERTZ, Reader, require_positive, sampling


@final
@dataclass(frozen=True)
class Estimate(Meter):
    """Joules of the CPU share that this process used, estimated; see the band."""

    tdp_watts: float | None = None
    """Thermal design power of one package; None looks the CPU up in the table, and guesses where it is not there."""
    threads: int | None = None
    """Hardware threads of one package; None takes all of this machine's. Only used with `tdp_watts`."""

    def __post_init__(self) -> None:
        require_positive(**{name: value for name, value in vars(self).items() if value is not None})

    def open(self) -> AbstractContextManager[Reader]:
        """Start reading. Works everywhere."""
        return sampling([CpuShareSource(self.tdp())], hertz=HERTZ)

    def tdp(self) -> Tdp:
        """What the estimate rests on."""
        return look_up(cpu_model(), usable_cpus(), self.tdp_watts, self.threads)


def status() -> SourceStatus:
    """What `doctor` shows of the estimate: always there, and how much it is worth."""
    tdp = Estimate().tdp()
    fix = "give the CPU's own: `meter: {estimate: {tdp_watts: ..., threads: ...}}`" if tdp.is_guess else ""
    return SourceStatus("estimate", "ok", f"{tdp.basis}; band x/÷ {tdp.band:g}", fix)
