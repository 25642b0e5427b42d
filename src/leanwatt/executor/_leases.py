"""Leases of energy domains for a whole cluster: who measures where, so that two jobs never count the same joule."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

WHOLE = 1.0
LEASE_SECONDS = 20.0
"""A holder that says nothing for so long is gone, and its share is free again."""
ASK_SECONDS = 0.1
"""Who waits asks so often; who does not ask for a while waits no more."""
WAITING_SECONDS = 5.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Held:
    """A share of a domain."""

    share: float
    until: float
    """On the clock of the leases."""


@dataclass
class Domain:
    """The sensors of one machine, whoever reads them."""

    held: dict[str, Held] = field(default_factory=dict)
    """By holder."""
    waiting: dict[str, float] = field(default_factory=dict)
    """By holder, in order of coming: until when it waits, unless it asks again."""


class Leases:
    """Shares of every domain; those of one domain never add up to more than the whole.

    First come, first served: who wants the whole domain is not overtaken for ever by those who want a part.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, forgot: bool = False) -> None:
        self._clock = clock
        self._domains: dict[str, Domain] = {}
        self._blind_until = clock() + LEASE_SECONDS if forgot else 0.0
        """After a restart nothing is given until all who hold a share have had time to say so."""
        self._ended: set[str] = set()

    def take(self, domain: str, holder: str, share: float) -> bool | None:
        """Ask for a share, and ask again while the answer is False; None for a holder that was ended."""
        if holder in self._ended:
            return None
        found, now = self._swept(domain), self._clock()
        if holder in found.held:
            return True
        found.waiting[holder] = now + WAITING_SECONDS
        is_first = next(iter(found.waiting)) == holder
        taken = sum(held.share for held in found.held.values())
        if not is_first or taken + share > WHOLE + _ROUNDING or now < self._blind_until:
            return False
        del found.waiting[holder]
        found.held[holder] = Held(share, now + LEASE_SECONDS)
        return True

    def keep(self, domain: str, holder: str, share: float) -> bool:
        """Say that a share is still used; False where it has run out, and somebody may measure there by now."""
        found, now = self._swept(domain), self._clock()
        if holder in self._ended or (holder not in found.held and now >= self._blind_until):
            return False
        found.held[holder] = Held(share, now + LEASE_SECONDS)
        return True

    def give(self, holder: str) -> None:
        """Give back whatever the holder has, and wait no more."""
        for domain in self._domains.values():
            domain.held.pop(holder, None)
            domain.waiting.pop(holder, None)

    def end(self, holder: str) -> None:
        """Nobody wants its job any more: it waits no longer, and gives back what it has once it has heard of that."""
        self._ended.add(holder)
        for domain in self._domains.values():
            domain.waiting.pop(holder, None)

    def holders(self, domain: str) -> list[str]:
        """Who has a share now."""
        return list(self._swept(domain).held)

    def _swept(self, domain: str) -> Domain:
        found, now = self._domains.setdefault(domain, Domain()), self._clock()
        found.held = {holder: held for holder, held in found.held.items() if held.until >= now}
        found.waiting = {holder: until for holder, until in found.waiting.items() if until >= now}
        return found
