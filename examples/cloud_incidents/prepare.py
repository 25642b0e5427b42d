"""Turn published incident threads into tickets with a closing notice: prepare.py SOURCE_FOLDER OUT.csv [gcp|aws]."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FILES = {"gcp": "derived_gcp_incidents_dedup.jsonl", "aws": "derived_aws_incidents_dedup.jsonl"}
COLUMNS = ("id", "provider", "year", "service", "thread", "notice", "said_service", "region", "symptom", "resolved")
THREAD_WORDS = 350
NOTICE_WORDS = 120
"""A longer last word is a report, which comes days later and tells what the thread cannot know."""

CLOSING = re.compile(
    r"\b(resolved|mitigated|restored|recovered|operating normally|no longer impacted)\b", re.IGNORECASE
)
REPORT = re.compile(r"issue summary|incident report|detailed description of impact|incident start", re.IGNORECASE)
NOT_YET = re.compile(
    r"\b(will provide (an|another|more|our next)|next update|continue(s)? to (work|investigate)|"
    r"are (still )?(working|investigating)|(partially|mostly) (resolved|mitigated))\b",
    re.IGNORECASE,
)
MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]*\.?"
CLOCK = (
    r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
    r"|\d{4}-\d\d-\d\d"
    rf"|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}}\b)?"
    rf"|\d{{1,2}} {MONTH}(?:,? \d{{4}}\b)?"
    r"|\d{1,2}:\d\d(?::\d\d)?(?:\s*[AP]M\b)?"
    r"|\d{1,2}\s*[AP]M\b"
    r"|\(?(?:P[SD]T\b|US/Pacific(?:\s+time)?|UTC\b|GMT\b)\)?)"
)
TIMES = re.compile(rf"{CLOCK}(?:[\s,]*(?:at\s+)?{CLOCK})*", re.IGNORECASE)
NO_PRODUCT = {"Multiple Products", "Support Center", "Support"}
REGION = re.compile(
    r"\b(?:us|eu|ap|sa|ca|me|af|cn|europe|asia|australia|northamerica|southamerica)-(?:gov-)?"
    r"(?:north|south|east|west|central|northeast|northwest|southeast|southwest)-?\d(?:-[a-f]\b)?",
    re.IGNORECASE,
)
SYMPTOMS = re.compile(
    r"\b(error rates?|errors?|latenc(?:y|ies)|timeouts?|packet loss|connectivity|delays?|delayed|unavailab(?:le|ility)|"
    r"launch(?:es)? fail(?:ures?|ing)|failures?|failing|unable|degraded|degradation|outage|disruption)\b",
    re.IGNORECASE,
)
RESOLVED = re.compile(r"\b(resolved|mitigated|restored|recovered|operating normally)\b", re.IGNORECASE)


def mask(text: str) -> str:
    """Days and clock times as `[time]`: the end of an incident cannot be known from what came before."""
    return " ".join(
        TIMES.sub(" [time] ", text).replace(" [time] ,", " [time],").replace(" [time] .", " [time].").split()
    )


def closes(text: str) -> bool:
    """The update tells customers that it is over."""
    short = len(text.split()) <= NOTICE_WORDS
    return bool(short and CLOSING.search(text) and not REPORT.search(text) and not NOT_YET.search(text))


def thread(updates: Sequence[str]) -> str:
    """The newest updates that fit, oldest first; of a single one that is longer, its first words."""
    kept: list[str] = []
    room = THREAD_WORDS
    for update in reversed(updates):
        if len(update.split()) > room:
            break
        kept.insert(0, update)
        room -= len(update.split())
    return "\n".join(kept) or " ".join(updates[-1].split()[:THREAD_WORDS])


def ticket(provider: str, incident: dict[str, Any], products: Sequence[str]) -> dict[str, str] | None:
    """The thread up to its closing notice, and what the notice says; None for a thread without one."""
    texts = [mask(update["text"]) for update in incident["updates"]]
    last = max((place for place, text in enumerate(texts) if closes(text)), default=0)
    if not last or not any(texts[:last]):
        return None
    notice = texts[last]
    return {
        "id": f"{provider}-{incident['row']}",
        "provider": provider,
        "year": str(incident.get("year") or incident["updates"][0]["time"][:4]),
        "service": incident["service"],
        "thread": thread([text for text in texts[:last] if text]),
        "notice": notice,
        "said_service": next((name for name in products if re.search(rf"\b{re.escape(name)}\b", notice)), ""),
        "region": first(REGION, notice),
        "symptom": first(SYMPTOMS, notice),
        "resolved": first(RESOLVED, notice),
    }


def first(pattern: re.Pattern[str], text: str) -> str:
    """The first match in lower case, or nothing."""
    found = pattern.search(text)
    return found[0].lower() if found else ""


def product_names(incidents: Sequence[dict[str, Any]]) -> list[str]:
    """Service names without the maker's name and the place, longest first."""
    names = {re.sub(r"\s*\(.*\)$", "", incident["service"]) for incident in incidents}
    short = {re.sub(r"^(Google|Amazon|AWS)\s+", "", name) for name in names}
    return sorted((name for name in short - NO_PRODUCT if len(name) > 2), key=lambda n: (-len(n), n))


def read(source: Path, providers: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Provider and incident, in the order of the files."""
    for provider in providers:
        with (source / FILES[provider]).open(encoding="utf-8") as file:
            yield from ((provider, json.loads(line)) for line in file)


def main(source: Path, out: Path, providers: Sequence[str] = tuple(FILES)) -> None:
    """Read the files, write the tickets."""
    incidents = list(read(source, providers))
    products = product_names([incident for _, incident in incidents])
    tickets = [found for provider, incident in incidents if (found := ticket(provider, incident, products))]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(tickets)
    print(f"{len(tickets)} of {len(incidents)} incidents end with a closing notice: {out}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or not set(sys.argv[3:]) <= set(FILES):
        usage = "Usage: python prepare.py SOURCE_FOLDER OUT.csv [gcp|aws]"
        sys.exit(f"{usage}\nSOURCE_FOLDER holds {' and '.join(FILES.values())}.")
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or tuple(FILES))
