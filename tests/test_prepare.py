import csv
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from leanwatt.catalog import build
from leanwatt.recipe import Choice

EXAMPLES = Path(__file__).parent.parent / "examples"


def script(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"prepare_{example}", EXAMPLES / example / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(*parts: str) -> Path:
    if not (shared := os.environ.get("LEANWATT_SHARED")):
        pytest.skip("LEANWATT_SHARED does not name the folder with the published data")
    return Path(shared, "data", *parts)


def task(example: str, prepared: Path):  # type: ignore[no-untyped-def]
    study = yaml.safe_load((EXAMPLES / example / "study.yaml").read_text())
    [(name, settings)] = study["tasks"][0].items()
    return build(Choice("tasks", name, {**settings, "data": {**settings["data"], "path": str(prepared)}}))


def test_alarms_become_words(tmp_path: Path) -> None:
    names = [f"alarm_{n}" for n in range(164)]
    values = dict.fromkeys(names, 0) | {"alarm_3": 900, "alarm_12": 450, "alarm_100": 1}
    with (tmp_path / "dataset_TNSM_06995_v2.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([[*names, "label"], [*values.values(), 3], [0] * 165])
    script("microwave").main(tmp_path, tmp_path / "out.csv")
    first, second = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert first == {"id": "window-1", "alarms": "a3 a12 long a100 brief", "cause": "power", "alarm_set": "3-12-100"}
    assert second == {"id": "window-2", "alarms": "no alarm", "cause": "indoor unit", "alarm_set": "none"}


def test_the_published_microwave_data_are_read_in_full(tmp_path: Path) -> None:
    script("microwave").main(published("microwave_failures"), tmp_path / "out.csv")
    found = task("microwave", tmp_path / "out.csv")
    tested = [e for fold in range(5) for e in found.examples(fold) if e.split == "test"]
    assert len(tested) == len({e.id for e in tested}) == 1669
    assert len({e.group for e in tested}) == 541


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("as of Thursday, 2020-07-23 13:42 US/Pacific. Thanks", "as of [time]. Thanks"),
        ("Between July 21 11:45 PM and July 22 12:56 AM PDT, we saw", "Between [time] and [time], we saw"),
        ("On 24 May 2022 from 18:04 it may rain", "On [time] from [time] it may rain"),
        ("in us-central1, 3 of 10 zones, error 503", "in us-central1, 3 of 10 zones, error 503"),
    ],
)
def test_days_and_clock_times_are_masked(text: str, masked: str) -> None:
    assert script("cloud_incidents").mask(text) == masked


@pytest.mark.parametrize(
    ("text", "closing"),
    [
        ("The issue has been resolved for all affected users.", True),
        ("The service is operating normally.", True),
        ("The issue is partially resolved.", False),
        ("The issue was mitigated. We will provide another update by noon.", False),
        ("ISSUE SUMMARY: the issue was resolved.", False),
        ("We are investigating.", False),
        ("It was resolved " + "and more " * 100, False),
    ],
)
def test_a_closing_notice_says_that_it_is_over_and_no_more(text: str, closing: bool) -> None:
    assert script("cloud_incidents").closes(text) is closing


def test_a_thread_keeps_its_newest_updates() -> None:
    thread = script("cloud_incidents").thread
    assert thread(["first", "x " * 200 + "y", "z " * 100]).startswith("first\nx")
    assert thread(["first", "x " * 300, "z " * 51]) == "z " * 51
    assert len(thread(["x " * 400]).split()) == 350


def test_an_incident_becomes_a_ticket_with_its_facts(tmp_path: Path) -> None:
    updates = [
        "We are investigating errors of Cloud Storage in us-east1.",
        "Cloud Storage in us-east1: the issue with packet loss has been resolved as of 13:42 US/Pacific.",
        "ISSUE SUMMARY The issue was resolved.",
    ]
    incident = {
        "row": 7,
        "service": "Google Cloud Storage",
        "updates": [{"time": "2021-05-01", "text": t} for t in updates],
    }
    open_ = {**incident, "row": 8, "updates": incident["updates"][:1]}
    lines = [json.dumps(incident), json.dumps(open_)]
    (tmp_path / "derived_gcp_incidents_dedup.jsonl").write_text("\n".join(lines))
    script("cloud_incidents").main(tmp_path, tmp_path / "out.csv", ["gcp"])
    [row] = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert row == {
        "id": "gcp-7",
        "provider": "gcp",
        "year": "2021",
        "service": "Google Cloud Storage",
        "thread": updates[0],
        "notice": "Cloud Storage in us-east1: the issue with packet loss has been resolved as of [time].",
        "said_service": "Cloud Storage",
        "region": "us-east1",
        "symptom": "packet loss",
        "resolved": "resolved",
    }


def test_the_published_incidents_are_read_in_full(tmp_path: Path) -> None:
    script("cloud_incidents").main(published("cloud_incidents"), tmp_path / "out.csv")
    examples = task("cloud_incidents", tmp_path / "out.csv").examples(0)
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "out.csv").read_text().splitlines())}
    assert len(rows) == 1311
    assert len(examples) == 1311
    assert all((rows[e.id]["year"] == "2022") == (e.split == "test") for e in examples)
