"""A whole server by its management controller, over Redfish: power samples, integrated over time.

Any resource that holds a power figure will do: `Power` (PowerControl/PowerConsumedWatts), `EnvironmentMetrics`
(PowerWatts/Reading) or a `Sensor` in W. Controllers refresh about once a second and may average inside: windows of a
minute or more are worth something. User and password come from LEANWATT_REDFISH_USER and LEANWATT_REDFISH_PASSWORD.
Not yet run on hardware: tested against a local server. Reference: DMTF DSP2046, Redfish Resource and Schema Guide.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

from leanwatt.contracts import Meter
from leanwatt.measurement import SourceStatus
from leanwatt.meter._http import Endpoint, PolledSource, Poller, UnreadableError, endpoint, require_url, unasked
from leanwatt.meter._reader import Reader, require_positive, sampling
from leanwatt.meter._totals import Device, PowerTotal


@final
@dataclass(frozen=True)
class Redfish(Meter):
    """Joules of the whole node, as its management controller sees them."""

    url: str
    """Of the resource: `https://bmc.example/redfish/v1/Chassis/1/Power`."""
    every_seconds: float = 1.0
    """How often to ask."""
    stale_seconds: float = 10.0
    """A reading whose own time stands still for longer is lost."""
    most_watts: float = 10_000.0
    """The node draws no more: larger figures are rejected."""
    certificate: str = ""
    """File with the controller's own certificate, where no public authority signed it."""

    def __post_init__(self) -> None:
        require_url(self.url)
        require_positive(every_seconds=self.every_seconds, stale_seconds=self.stale_seconds, most_watts=self.most_watts)

    def open(self) -> AbstractContextManager[Reader]:
        """Start asking. Raises MeterError if there is no first figure within 2.5 s."""
        sensor = _Sensor(endpoint(self.url, "REDFISH", self.certificate), self.stale_seconds)
        poller = Poller(sensor.watts, self.every_seconds)
        poller.first("redfish")
        device = Device("node", "redfish", "node", self.most_watts, period_seconds=self.every_seconds)
        return sampling([PolledSource(poller, PowerTotal(device))])


def status() -> SourceStatus:
    """What `doctor` shows of it before an address is given."""
    return unasked("redfish", "url: https://bmc.example/redfish/v1/Chassis/1/Power")


class _Sensor:
    """One power figure, and whether it is still fresh."""

    def __init__(self, endpoint: Endpoint, stale_seconds: float) -> None:
        self._endpoint = endpoint
        self._stale_seconds = stale_seconds
        self._stamp: str | None = None
        self._stamped_at = time.monotonic()

    def watts(self) -> float:
        """The figure now. Raises UnreadableError."""
        answer = self._endpoint.get()
        if not isinstance(answer, dict):
            raise UnreadableError("garbled")
        self._check_age(answer)
        watts = _watts(answer)
        if isinstance(watts, bool) or not isinstance(watts, int | float):
            raise UnreadableError("no_value")
        return float(watts)

    def _check_age(self, answer: dict[str, Any]) -> None:
        stamp = answer.get("ReadingTime")
        if stamp is None or stamp != self._stamp:
            self._stamp, self._stamped_at = stamp, time.monotonic()
        elif time.monotonic() - self._stamped_at > self._stale_seconds:
            raise UnreadableError("stale")


def _watts(answer: dict[str, Any]) -> Any:
    """The figure wherever the resource keeps it; a unit other than watts is refused, not converted."""
    if answer.get("ReadingUnits", "W") != "W":
        raise UnreadableError("wrong_unit")
    match answer:
        case {"PowerControl": [{"PowerConsumedWatts": watts}, *_]}:
            return watts
        case {"PowerWatts": {"Reading": watts}}:
            return watts
        case {"ReadingUnits": "W", "Reading": watts}:
            return watts
    raise UnreadableError("no_value")
