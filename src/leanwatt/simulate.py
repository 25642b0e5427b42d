"""Fault tickets from a simulated communication network: the embedded data of the main job.

A fault breaks one piece of equipment. Its alarms spread along the network graph with delays; some get lost, and
alarms of other faults mix in. An operator writes what was seen, and after the repair what was done. Causes of one
family raise the same alarms, so that the order and the place of alarms decide. The same seed gives the same bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from leanwatt.errors import StoreError, StudyError, not_among
from leanwatt.network import Device, Naming, Network, build

COLUMNS = (
    *("id", "opened", "site", "severity", "description"),
    *("cause", "resolution", "action", "equipment", "place", "work_notes", "close_code"),
)
"""Columns of the file. From `cause` on they are known only when the ticket is closed."""

FIRST_DAY = datetime(2024, 1, 1)
UNRELATED = (0.55, 0.35, 0.10)
"""Chance of 0, 1 or 2 alarms that have nothing to do with the fault."""
SLIP = 0.035
"""Chance that two letters of a longer word change places."""
SHORTENED = 0.3
"""Chance that a word with a known short form is shortened."""
HINTED = 0.7
"""Chance that the operator mentions a circumstance that points to some of the causes."""
ELSEWHERE = 0.35
"""Chance that the operator names another site with an alarm instead of the site at fault."""
BY_THE_BOOK = 0.92
"""Chance that the quick repair is chosen where customers feel the fault, and the thorough one elsewhere."""
MOST_ALARMS = 6
"""The management system cuts the list here."""


@dataclass(frozen=True)
class _Alarm:
    minute: int
    code: str
    device: Device


@dataclass(frozen=True)
class _Fault:
    """What happened, before anybody writes about it."""

    cause: str
    root: Device
    alarms: Sequence[_Alarm]
    opened: datetime
    suffering: str
    """The site that the operator names."""


def simulate(tickets: int, seed: int, *, bank: str = "study") -> list[dict[str, str]]:
    """Rows with the keys of `COLUMNS`, oldest first.

    `bank` picks networks and phrases: `study`, or `pretraining`, which share neither sites nor phrases. Equal arguments
    give equal rows. Raises StudyError for a bank that does not exist or fewer than one ticket.
    """
    if tickets < 1:
        raise StudyError(f"simulate: got {tickets} tickets; ask for 1 or more.")
    faults, phrases = _table("faults"), _table("phrases")
    banks = [name for name in phrases if name != "slips"]
    if bank not in banks:
        raise StudyError(f"simulate: {not_among('the banks of phrases', bank, banks)}")
    random = Random(f"{bank} {seed}")
    world = _World(faults, phrases[bank], phrases["slips"], _networks(phrases[bank], Random(bank)))
    moments = sorted(random.randrange(366 * 24 * 60) for _ in range(tickets))
    return [world.ticket(number, minute, random) for number, minute in enumerate(moments, 1)]


def write(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write rows as CSV (UTF-8, one header line, line feeds on every machine). Raises StoreError."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}). Give a folder that exists and has room."
        ) from error


def causes() -> list[str]:
    """Every root cause, in the order of the table."""
    return list(_table("faults")["causes"])


def _table(name: str) -> dict[str, Any]:
    import yaml

    text = files("leanwatt").joinpath("tables", f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def _networks(phrases: Mapping[str, Any], random: Random) -> list[Network]:
    """The networks of a bank are the same for every seed: tickets of two seeds are two years of the same operators."""
    names = [start + end for start in phrases["starts"] for end in phrases["ends"]]
    schemes = [Naming(**scheme) for scheme in phrases["schemes"]]
    return [build(names, schemes[number % len(schemes)], random) for number in range(phrases["networks"])]


@dataclass(frozen=True)
class _World:
    """Everything that writes tickets of one bank."""

    faults: Mapping[str, Any]
    phrases: Mapping[str, Any]
    slips: Mapping[str, str]
    networks: Sequence[Network]

    def ticket(self, number: int, minute: int, random: Random) -> dict[str, str]:
        """One row."""
        network = random.choice(self.networks)
        fault = self._fault(network, FIRST_DAY + timedelta(minutes=minute), random)
        return {
            "id": f"T{number:06d}",
            "opened": fault.opened.isoformat(timespec="minutes"),
            "site": fault.suffering,
            "severity": _severity(fault, random),
            "description": f"{self._text(fault, random)}\n{self._alarm_list(fault, network)}".strip(),
            "cause": fault.cause,
            **self._closing(fault, random),
        }

    def _fault(self, network: Network, opened: datetime, random: Random) -> _Fault:
        causes = self.faults["causes"]
        cause = random.choices(list(causes), [entry["weight"] for entry in causes.values()])[0]
        around = network.around(random.choice(network.sites[1:]), random)
        script = random.choice(causes[cause]["scripts"])
        alarms = [*_spread(script, around, random), *self._unrelated(network, random)]
        root = around[script[0][1]]
        shown = sorted(alarms, key=lambda alarm: alarm.minute)[:MOST_ALARMS]
        sites = [alarm.device.site for alarm in shown if alarm.device.site != root.site]
        suffering = random.choice(sites) if sites and random.random() < ELSEWHERE else root.site
        return _Fault(cause, root, shown, opened, suffering)

    def _unrelated(self, network: Network, random: Random) -> Iterator[_Alarm]:
        for _ in range(random.choices((0, 1, 2), UNRELATED)[0]):
            code, kind = random.choice(list(self.faults["unrelated"].items()))
            yield _Alarm(random.randint(-15, 30), code, network.anywhere(kind, random))

    def _text(self, fault: _Fault, random: Random) -> str:
        hints = self.faults["causes"][fault.cause]["hints"]
        topic = random.choices(list(hints), list(hints.values()))[0] if random.random() < HINTED else "none"
        symptom = random.choice(self.phrases["symptoms"]).format(site=fault.suffering)
        parts = [symptom, random.choice(self.phrases["hints"][topic])]
        random.shuffle(parts)
        opener = random.choice(self.phrases["openers"])
        text = f"{opener} {', '.join(parts)}.".strip()
        keep = {word for word in text.split() if fault.suffering in word}
        return " ".join(word if word in keep else self._typed(word, random) for word in text.split())

    def _typed(self, word: str, random: Random) -> str:
        """A word as somebody in a hurry types it."""
        if word in self.slips and random.random() < SHORTENED:
            return self.slips[word]
        if len(word) > 4 and word.isalpha() and random.random() < SLIP:
            place = random.randrange(1, len(word) - 2)
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        return word

    def _alarm_list(self, fault: _Fault, network: Network) -> str:
        spelling = self.faults["alarms"]
        lines = [
            f"{fault.opened + timedelta(minutes=alarm.minute):%H:%M} "
            f"{spelling[alarm.code][network.dialect]} {alarm.device.name}"
            for alarm in fault.alarms
        ]
        return "; ".join(lines)

    def _closing(self, fault: _Fault, random: Random) -> dict[str, str]:
        """What is known only after the repair."""
        felt = any(alarm.code in self.faults["felt"] for alarm in fault.alarms)
        thorough, quick = self.phrases["actions"][fault.cause]
        by_the_book = random.random() <= BY_THE_BOOK
        action = quick if felt == by_the_book else thorough
        result = random.choice(self.phrases["results"])
        note = self.phrases["notes"].format(
            action=action[0].upper() + action[1:], equipment=fault.root.name, place=fault.root.site, result=result
        )
        code = self.faults["causes"][fault.cause]["code"]
        return {
            "resolution": note,
            "action": action,
            "equipment": fault.root.name,
            "place": fault.root.site,
            "work_notes": f"Found {fault.cause} at {fault.root.site}. Crew on site {random.randint(20, 240)} minutes.",
            "close_code": code if random.random() < 0.97 else "OTHER",
        }


def _spread(script: Sequence[Sequence[Any]], around: Mapping[str, Device], random: Random) -> Iterator[_Alarm]:
    """The alarms of one fault, at the places that exist; some never arrive."""
    for code, place, earliest, latest, chance in script:
        if place in around and random.random() < chance:
            yield _Alarm(random.randint(earliest, latest), code, around[place])


def _severity(fault: _Fault, random: Random) -> str:
    """By the number of sites with alarms, as a hurried operator judges it."""
    sites = len({alarm.device.site for alarm in fault.alarms}) + random.choice((-1, 0, 0, 1))
    return "minor" if sites <= 1 else "major" if sites == 2 else "critical"
