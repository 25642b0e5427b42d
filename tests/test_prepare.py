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


def script(example: str, name: str = "prepare") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_{example}", EXAMPLES / example / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(*parts: str) -> Path:
    if not (shared := os.environ.get("LEANWATT_SHARED")):
        pytest.skip("LEANWATT_SHARED does not name the folder with the published data")
    return Path(shared, "data", *parts)


def task(example: str, prepared: Path, study_file: str = "study.yaml"):  # type: ignore[no-untyped-def]
    study = yaml.safe_load((EXAMPLES / example / study_file).read_text())
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


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_intents_become_words(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text('text,category\n"where  is\nit?",reverted_card_payment?\n')
    script("banking77").main(tmp_path, tmp_path / "out.csv")
    first, second = rows_of(tmp_path / "out.csv")
    assert first == {
        "id": "train-1",
        "text": "where is it?",
        "intent": "reverted card payment",
        "split": "train",
        "held_out": "0",
    }
    assert (second["split"], second["held_out"]) == ("test", "1")


def test_the_published_queries_are_read_in_full(tmp_path: Path) -> None:
    script("banking77").main(published("banking77"), tmp_path / "out.csv")
    found = task("banking77", tmp_path / "out.csv").examples(0)
    assert len(found) == 13083
    assert len(found[0].question.options) == 77
    assert sum(example.split == "test" for example in found) == 3080


def test_an_abstract_keeps_its_sentences_and_up_to_five_summaries(tmp_path: Path) -> None:
    said = {"source": ["First  one.", "Then two."], "target": [f"summary {n}" for n in range(7)]}
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(said) + "\n")
    script("scitldr").main(tmp_path, tmp_path / "out.csv")
    first, second, _ = rows_of(tmp_path / "out.csv")
    assert first["abstract"] == "First one.\nThen two."
    assert [first[f"summary_{n}"] for n in range(1, 6)] == said["target"][:5]
    assert [(row["split"], row["held_out"]) for row in (first, second)] == [("train", "0"), ("validation", "1")]


def test_the_published_abstracts_are_read_in_full(tmp_path: Path) -> None:
    script("scitldr").main(published("scitldr"), tmp_path / "out.csv")
    found = task("scitldr", tmp_path / "out.csv").examples(0)
    assert [sum(e.split == split for e in found) for split in ("train", "validation", "test")] == [1992, 619, 618]
    assert any(json.loads(example.fields["also"]) for example in found)
    assert len(task("scitldr", tmp_path / "out.csv", "perplexity.yaml").examples(0)) == len(found)


def test_a_fault_keeps_its_right_options_and_all_right_is_no_question(tmp_path: Path) -> None:
    header = ["Question", *(f"Option {n}" for n in range(1, 7)), "Answer", "Explanation"]
    with (tmp_path / "5G_Faults_Multi_Correct_MCQ.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([[""] * 9, header])
        writer.writerow(["What broke?", *"abcdef", "['Option 6', 'Option 2']", "because"])
        writer.writerow([" ", *"abcdef", "['Option 1']", "because"])
        writer.writerow(["All?", *"abcdef", str([f"Option {n}" for n in range(1, 7)]), "because"])
    script("teleqna").main("faults", tmp_path, tmp_path / "out.csv")
    [row] = rows_of(tmp_path / "out.csv")
    assert (row["question"], row["option_6"], row["right"], row["said"]) == ("What broke?", "f", "[2, 6]", "because")


def test_a_question_is_always_in_the_same_split() -> None:
    split_of = script("teleqna").split_of
    assert split_of("What is  LTE?") == split_of("what is lte?")
    found = [split_of(f"question {n}") for n in range(2000)]
    assert [round(found.count(split) / 2000, 1) for split in ("train", "validation", "test")] == [0.7, 0.1, 0.2]


def test_the_published_questions_are_read_in_full(tmp_path: Path) -> None:
    pytest.importorskip("pyzipper", reason="TeleQnA.zip is encrypted and needs pyzipper")
    script("teleqna").main("teleqna", published("teleqna"), tmp_path / "out.csv")
    found = task("teleqna", tmp_path / "out.csv").examples(0)
    assert len(found) == 10000
    assert {len(example.question.options) for example in found} == {2, 3, 4, 5}
    script("teleqna").main("faults", published("telco_fault_mcq"), tmp_path / "faults.csv")
    faults = task("teleqna", tmp_path / "faults.csv", "faults.yaml").examples(0)
    assert len(faults) == 347
    assert any(len(json.loads(example.fields["right"])) == 5 for example in faults)


def test_simulated_tickets_become_documents_of_the_harness(tmp_path: Path) -> None:
    script("harness", "make_data").main(tmp_path, 100)
    counts = {path.stem: len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl")}
    assert counts == {"train": 50, "validation": 20, "test": 30}
    causes = yaml.safe_load((EXAMPLES / "harness" / "tasks" / "fault_cause.yaml").read_text())["doc_to_choice"]
    for line in (tmp_path / "train.jsonl").read_text().splitlines():
        assert json.loads(line)["cause"] in causes


def test_the_task_file_of_the_harness_example_is_one(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")
    import shutil

    shutil.copytree(EXAMPLES / "harness" / "tasks", tmp_path / "tasks")
    script("harness", "make_data").main(tmp_path / "tasks", 100)
    asked = build(Choice("tasks", "lm_eval", {"task": "fault_cause", "data": str(tmp_path / "tasks")}))
    found = asked.examples(0)
    assert [sum(e.split == split for e in found) for split in ("train", "validation", "test")] == [50, 20, 30]
    assert all(example.target in example.question.options for example in found)
