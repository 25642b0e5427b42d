"""The bill for an energy: kWh, money and grams of CO2 equivalent, derived from joules and never better known than they.

Nothing is guessed and no network is asked. Carbon needs a country and a year, and takes the factor from
`tables/carbon_intensity.csv` (source and licence: tables/README.md); money needs a price; both a site's overhead (PUE)
only if one is given. Bounds are those of the energy: a yearly mean of a country's grid, a price and a PUE are taken as
they stand.
"""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Final

from leanwatt.errors import StudyError, not_among
from leanwatt.measurement import Energy

JOULES_PER_KWH: Final = 3.6e6
SECONDS_PER_HOUR: Final = 3600.0
LEAST_PUE: Final = 1.0
MOST_PUE: Final = 3.0
"""Energy of a site over that of its machines: below 1 is impossible, above 3 is a mistake."""
MOST_GRAMS_PER_KWH: Final = 2000.0
"""No grid is dirtier: more is a slip in the table."""
WHOLE_SITE: Final = "site"
"""Scope of a figure that has cooling and losses of the building in it already, so that PUE does not apply. No source
here has one yet: `node` is a machine at its plug."""


@dataclass(frozen=True)
class Intensity:
    """What a kWh of a country's grid cost the climate in one year."""

    country: str
    """ISO 3166 alpha-3."""
    name: str
    year: int
    grams_per_kwh: float
    """CO2 equivalent, life cycle, of electricity generated there."""
    source: str
    """Package and version whose table has it."""


@dataclass(frozen=True)
class Amount:
    """A figure of a bill with the bounds of the energy behind it; None where those are not known."""

    value: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Bill:
    """What an energy comes to. A part is None where the terms do not say what it needs, or the energy is unknown."""

    kwh: Amount | None
    """At the site's meter: PUE is in it, where one was given."""
    money: Amount | None
    grams: Amount | None
    """CO2 equivalent."""
    provenance: str
    """Of the joules."""


@dataclass(frozen=True)
class Terms:
    """On what terms energy is paid for, with money and with carbon."""

    intensity: Intensity | None = None
    pue: float | None = None
    """None: not applied."""
    price_per_kwh: float | None = None
    currency: str | None = None

    @classmethod
    def parse(cls, data: object) -> "Terms | None":
        """The study's `bill`; None for an empty one. Raises StudyError for what is half said, unknown or impossible."""
        if not isinstance(data, Mapping):
            raise StudyError(f"bill: got {data!r}; a mapping with {', '.join(_KEYS)} is needed.")
        for key in data:
            if key not in _KEYS:
                raise StudyError(not_among("the keys of bill", key, _KEYS))
        _refuse_half(data, "country", "year", "No country and no year is taken for granted.")
        _refuse_half(data, "price_per_kwh", "currency", "A price without a currency says nothing.")
        read = {key: check(data[key]) for key, check in _CHECKS.items() if key in data}
        if not data:
            return None
        if "country" in data:
            read["intensity"] = look_up(data["country"], data["year"])
        return cls(**read)

    def bill(self, energy: Energy, answers: float = 1.0) -> Bill:
        """What `answers` times this energy come to."""
        if energy.joules is None:
            return Bill(None, None, None, str(energy.provenance))
        site = 1.0 if self.pue is None or energy.scope == WHOLE_SITE else self.pue
        kwh = _scaled(energy, answers * site / JOULES_PER_KWH)
        return Bill(
            kwh=kwh,
            money=None if self.price_per_kwh is None else _times(kwh, self.price_per_kwh),
            grams=None if self.intensity is None else _times(kwh, self.intensity.grams_per_kwh),
            provenance=str(energy.provenance),
        )

    def words(self) -> str:
        """On what terms, in one line for people."""
        said = []
        if self.price_per_kwh is not None:
            said.append(f"{self.price_per_kwh:g} {self.currency} per kWh")
        if self.intensity is not None:
            found = self.intensity
            said.append(
                f"{found.grams_per_kwh:g} g of CO2 equivalent per kWh generated in {found.name} in {found.year} "
                f"(Our World in Data and Ember, CC BY 4.0, as in {found.source})"
            )
        said.append("PUE not applied" if self.pue is None else f"PUE {self.pue:g}")
        return "; ".join(said)


def look_up(country: object, year: object) -> Intensity:
    """The factor of a country (ISO 3166, two or three letters) in a year. Raises StudyError, with the nearest years."""
    code = country.upper() if isinstance(country, str) else ""
    found = [each for codes, each in table() if code in codes]
    if not found:
        raise StudyError(
            f"bill.country: got {country!r}; give a country by its ISO 3166 code, such as FR or FRA. "
            "Regions, and countries without a figure in the table, are not replaced by an average."
        )
    for each in found:
        if each.year == year and not isinstance(year, bool):
            return each
    years = ", ".join(str(each.year) for each in found)
    raise StudyError(f"bill.year: got {year!r}; for {found[0].name} the table has {years}. Name one of them.")


@cache
def table() -> tuple[tuple[tuple[str, str], Intensity], ...]:
    """Every factor with the two codes of its country. Raises ValueError for a line that cannot be true."""
    with files("leanwatt").joinpath("tables/carbon_intensity.csv").open(encoding="utf-8") as file:
        return tuple(((row["alpha3"], row["alpha2"]), _intensity(row)) for row in csv.DictReader(file))


def _intensity(row: Mapping[str, str]) -> Intensity:
    grams = float(row["grams_per_kwh"])
    if not 0 < grams <= MOST_GRAMS_PER_KWH:
        raise ValueError(f"{row['alpha3']} {row['year']}: {grams} g per kWh is impossible; mend the table.")
    return Intensity(row["alpha3"], row["country"], int(row["year"]), grams, row["source"])


def _refuse_half(data: Mapping[str, Any], one: str, other: str, why: str) -> None:
    if (one in data) != (other in data):
        given, missing = (one, other) if one in data else (other, one)
        raise StudyError(f"bill: has {given} and lacks {missing}. {why}")


def _between(key: str, low: float, high: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise StudyError(f"bill.{key}: got {value!r}; a number from {low:g} to {high:g} is needed.")
        return float(value)

    return check


def _currency(value: object) -> str:
    if not isinstance(value, str) or len(value) != 3 or not value.isascii() or not value.isalpha():
        raise StudyError(f"bill.currency: got {value!r}; the three letters of ISO 4217 are needed, such as EUR.")
    return value.upper()


_KEYS: Final = ("country", "year", "pue", "price_per_kwh", "currency")
_CHECKS: Final[Mapping[str, Callable[[object], Any]]] = {
    "pue": _between("pue", LEAST_PUE, MOST_PUE),
    "price_per_kwh": _between("price_per_kwh", 0.0, math.nextafter(math.inf, 0.0)),
    "currency": _currency,
}


def _scaled(energy: Energy, factor: float) -> Amount:
    assert energy.joules is not None
    return _times(Amount(energy.joules, energy.lower, energy.upper), factor)


def _times(amount: Amount, factor: float) -> Amount:
    lower = None if amount.lower is None else amount.lower * factor
    upper = None if amount.upper is None else amount.upper * factor
    return replace(amount, value=amount.value * factor, lower=lower, upper=upper)
