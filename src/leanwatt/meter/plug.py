"""A whole machine by a smart plug on the local network: Shelly (second generation) or Tasmota.

`read: power` integrates the power that the plug shows about once a second. `read: energy` takes its energy counter,
whose step (often 1 Wh = 3600 J) is added to the bounds of every window. User and password, where the plug wants them,
come from LEANWATT_PLUG_USER and LEANWATT_PLUG_PASSWORD. Cheap plugs count pulses: at low power they lag by seconds.
Not yet run on hardware: tested against a local server. References: Shelly Gen2 API, Switch; Tasmota, Commands.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from leanwatt.contracts import Meter
from leanwatt.measurement import SourceStatus
from leanwatt.meter._http import PolledSource, Poller, UnreadableError, endpoint, require_url, unasked
from leanwatt.meter._reader import Reader, require_positive, sampling
from leanwatt.meter._totals import CounterTotal, Device, PowerTotal

PATHS: Final = {"shelly": "/rpc/Switch.GetStatus?id=0", "tasmota": "/cm?cmnd=Status%2010"}
JOULES_PER_WH: Final = 3600.0
STEP_JOULES: Final = 3.6
"""Counters are kept in mWh, the finest that either plug tells."""


@final
@dataclass(frozen=True)
class Plug(Meter):
    """Joules of everything behind the plug."""

    url: str
    """Of the plug: `http://192.168.1.20`."""
    kind: Literal["shelly", "tasmota"]
    """Which maker's language it speaks."""
    read: Literal["power", "energy"] = "power"
    """Integrate its power, or take its energy counter."""
    every_seconds: float = 1.0
    """How often to ask."""
    most_watts: float = 3680.0
    """No more goes through it (16 A at 230 V): larger figures are rejected."""
    step_joules: float = 3600.0
    """Of its energy counter: how much it may show at once."""

    def __post_init__(self) -> None:
        require_url(self.url)
        require_positive(every_seconds=self.every_seconds, most_watts=self.most_watts, step_joules=self.step_joules)

    def open(self) -> AbstractContextManager[Reader]:
        """Start asking. Raises MeterError if there is no first figure within 2.5 s."""
        plug = endpoint(self.url.rstrip("/") + PATHS[self.kind], "PLUG")
        poller = Poller(lambda: _figure(plug.get(), self.kind, self.read), self.every_seconds)
        poller.first("plug")
        device = Device(
            "node",
            "plug",
            "node",
            self.most_watts,
            joules_per_step=STEP_JOULES,
            slack_joules=self.step_joules,
            period_seconds=self.every_seconds,
            stuck_seconds=float("inf"),
        )
        total = PowerTotal(device) if self.read == "power" else CounterTotal(device)
        return sampling([PolledSource(poller, total)])


def status() -> SourceStatus:
    """What `doctor` shows of it before an address is given."""
    return unasked("plug", "url: http://192.168.1.20, kind: shelly")


def _figure(answer: Any, kind: str, read: str) -> float:
    """Watts, or joules since whenever the plug began to count. Raises UnreadableError."""
    value = _value(answer, kind, read)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableError("no_value")
    if read == "power":
        return float(value)
    return value * JOULES_PER_WH * (1000 if kind == "tasmota" else 1)


def _value(answer: Any, kind: str, read: str) -> Any:
    match kind, read, answer:
        case "shelly", "power", {"apower": value}:
            return value
        case "shelly", "energy", {"aenergy": {"total": value}}:
            return value
        case "tasmota", "power", {"StatusSNS": {"ENERGY": {"Power": value}}}:
            return value
        case "tasmota", "energy", {"StatusSNS": {"ENERGY": {"Total": value}}}:
            return value
    raise UnreadableError("no_value")
