"""Every task through the whole flow on a tiny model: learned, pruned, asked, graded, ranked, reported."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leanwatt import catalog, verbs
from leanwatt.errors import StudyError
from leanwatt.store import Store
from leanwatt.study import Study

PARTS = ("train", "train", "validation", "test")
HEADER = ["id", "body", "kind", "note", "note_2", "question", "a", "b", "c", "right", "part"]


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """All tasks on one file, and the harness's on another."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for n in range(40):
            kind, site = ("power", "link")[n % 2], "ABCD"[n % 4]
            words = [f"r{n}", f"{kind} lost. Alarm a{n} at site {site}", kind, f"site {site}", f"{kind} at {site}"]
            writer.writerow([*words, "Which site?", f"site {site}", "router", f"cell {n}", 1, PARTS[n // 2 % 4]])
    data = {"path": str(path), "id": "id", "split": "part", "near_duplicate": None}
    both = {"data": data, "text": "body"}
    return [
        {"classify": {**both, "label": "kind"}},
        {"summarize": {**both, "reference": "note", "also": ["note_2"], "limit": 6}},
        {"answer": {**both, "text": ["body", "question"], "reference": "note", "limit": 6}},
        {"choose": {**both, "options": ["a", "b", "c"], "answer": "right", "answer_as": "number", "per_byte": True}},
        {"perplexity": both},
    ]


def harness(folder: Path) -> dict[str, Any]:
    made = folder / "harness"
    made.mkdir()
    docs = [{"q": f"alarm {n}", "options": ["power", "link"], "gold": n % 2} for n in range(12)]
    (made / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (made / "task.yaml").write_text(
        "task: tiny\ndataset_path: json\ndataset_kwargs: {data_files: {test: docs.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}\\nCause:"\ndoc_to_choice: options\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return {"lm_eval": {"task": "tiny", "data": str(made)}}


def study_of(base: Path, tasks: list[dict[str, Any]], **changes: Any) -> Study:
    return Study.parse(
        {
            "name": "tiny",
            "base": str(base),
            "steps": [{"finetune": [{"full": {"epochs": 1}}]}, {"prune": ["none", {"width": {"keep": 0.5}}]}],
            "engine": "transformers",
            "batch": 3,
            "tasks": tasks,
            "baselines": catalog.names("baseline"),
            "protocol": {"quick": {"rounds": 1, "window_seconds": 0.05}},
            "executor": {"local": {"process": "same"}},
            **changes,
        }
    )


def test_every_task_goes_through_the_flow(
    saved: Callable[[str], Path], tasks: list[dict[str, Any]], tmp_path: Path
) -> None:
    study = study_of(saved("llama"), tasks)
    ranking = verbs.run(study, tmp_path / "run")
    records = Store(tmp_path / "run").records()
    assert [record.error for record in records if record.status != "done"] == []
    names = [next(iter(task)) for task in tasks]
    for entry in ranking.entries:
        if not entry.is_baseline:
            assert list(entry.tasks) == names
            for name in names:
                quality = entry.tasks[name].quality
                assert entry.tasks[name].metric == catalog.find("tasks", name).primary
                assert 0 <= quality.value <= 1
                assert quality.low is not None
    can = {entry.label: set(entry.tasks) for entry in ranking.entries if entry.is_baseline}
    assert can["ngram"] == {"perplexity"}
    assert can["cue"] == can["retrieval"] == {"choose"}
    assert can["sentence"] == can["constant"] == {"summarize", "answer"}
    assert can["nearest"] == {"classify", "summarize", "answer"}
    assert can["majority"] == can["tfidf"] == {"classify"}
    text = (tmp_path / "run" / "report" / "report.md").read_text(encoding="utf-8")
    assert "byte_probability" in text
    with pytest.raises(StudyError, match="other options for every question"):
        verbs.ask(study_of(saved("llama"), tasks[3:4]), "site A", tmp_path / "run", ranking.reference)


def test_a_task_of_the_harness_goes_through_the_flow(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    study = study_of(saved("llama"), [harness(tmp_path)], steps=[{"prune": ["none", {"magnitude": {"sparsity": 0.5}}]}])
    ranking = verbs.run(study, tmp_path / "run")
    found = {entry.label: entry.status for entry in ranking.entries}
    assert found.pop("majority") == "refused", "without training documents nothing can be fitted"
    for entry in ranking.entries:
        if not entry.is_baseline:
            assert (entry.status, entry.tasks["lm_eval"].metric) == ("done", "score")
            assert entry.tasks["lm_eval"].quality.repeats == 6
