"""The simulated network: sites in a tree, their equipment, and what stands upstream, downstream and beside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

SITES = 60
"""Sites of one network, core site included."""


@dataclass(frozen=True)
class Naming:
    """How one operator names sites and equipment."""

    joint: str
    """Between site and equipment: `Tarnvale-RT1`."""
    dialect: int
    """Which spelling of the alarms its equipment uses."""
    power: str
    climate: str
    router: str
    cell: str
    core: Sequence[str]
    """Functions of the core, all at the core site."""


@dataclass(frozen=True)
class Device:
    """A piece of equipment at a site."""

    name: str
    site: str


@dataclass(frozen=True)
class Network:
    """A tree of transport links: the first site is the core, every other site hangs on one upstream site."""

    naming: Naming
    sites: Sequence[str]
    upstream: Mapping[str, str]
    downstream: Mapping[str, Sequence[str]]

    @property
    def dialect(self) -> int:
        """Which spelling of the alarms its equipment uses."""
        return self.naming.dialect

    def around(self, site: str, random: Random) -> dict[str, Device]:
        """Equipment by its place relative to `site`, any but the core site. A place that does not exist is absent."""
        parent = self.upstream[site]
        beside = [other for other in self.downstream[parent] if other != site]
        sector, other_sector = random.sample((1, 2, 3), 2)
        places = {
            "power": self._device(site, "power"),
            "climate": self._device(site, "climate"),
            "router": self._device(site, "router"),
            "cell": self._device(site, "cell", sector),
            "cell2": self._device(site, "cell", other_sector),
            "far": self._device(parent, "router"),
            "core": self._function(random),
        }
        if below := self.downstream[site]:
            child = random.choice(below)
            places |= {"near": self._device(child, "router"), "near_cell": self._device(child, "cell", sector)}
        if beside:
            neighbour = random.choice(beside)
            places |= {"side": self._device(neighbour, "router"), "side_cell": self._device(neighbour, "cell", sector)}
        return places

    def anywhere(self, kind: str, random: Random) -> Device:
        """Equipment of one kind at any site, for alarms that have nothing to do with the fault."""
        return self._device(random.choice(self.sites[1:]), kind)

    def _device(self, site: str, kind: str, number: int = 1) -> Device:
        return Device(f"{site}{self.naming.joint}{getattr(self.naming, kind)}{number}", site)

    def _function(self, random: Random) -> Device:
        name = random.choice(self.naming.core)
        return Device(f"{self.sites[0]}{self.naming.joint}{name}1", self.sites[0])


def build(names: Sequence[str], naming: Naming, random: Random) -> Network:
    """A random network over some of the names: a new site hangs on one of the latest ten, which gives chains and stars.

    Raises ValueError for fewer than `SITES` names.
    """
    sites = random.sample(list(names), SITES)
    upstream = {site: random.choice(sites[max(0, place - 10) : place]) for place, site in enumerate(sites) if place}
    downstream = {site: [child for child in sites[1:] if upstream[child] == site] for site in sites}
    return Network(naming, sites, upstream, downstream)
