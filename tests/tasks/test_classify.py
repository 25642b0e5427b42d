import csv
from pathlib import Path

from leanwatt import catalog, metrics
from leanwatt.question import Answer, Score
from leanwatt.recipe import Choice

INTENTS = ("card arrival", "exchange rate", "pin blocked")


def written(folder: Path) -> str:
    path = folder / "queries.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "intent"])
        writer.writerows([f"query{n} word{n} about{n}", INTENTS[n % 3]] for n in range(60))
    return str(path)


def test_labels_of_any_kind_are_options_in_words_of_ones_own(tmp_path: Path) -> None:
    settings = {"data": written(tmp_path), "text": "query", "label": "intent", "lead": "Intent:"}
    task = catalog.build(Choice("tasks", "classify", settings))
    examples = task.examples(0)
    assert task.primary == "macro_f1"
    first = examples[0].question
    assert isinstance(first, Score)
    assert first.options == INTENTS
    assert (first.prompt.instruction, first.prompt.lead) == ("Choose the class of this text.", "Intent:")
    right = [Answer(scores=tuple(-float(o != e.target) for o in INTENTS)) for e in examples]
    found = metrics.figures(task.grade(examples, right))
    assert (found["macro_f1"], found["accuracy"], found["unmatched"]) == (1, 1, 0)


def test_settings_that_tasks_share_are_documented_in_each() -> None:
    _, about = catalog.documentation("tasks", "classify")
    _, cause = catalog.documentation("tasks", "root_cause")
    assert list(about) == list(cause) == ["data", "text", "label", "instruction", "lead", "mode", "options", "limit"]
    assert "root cause of this fault" in cause["instruction"]
    assert "class of this text" in about["instruction"]
    assert about["data"] == cause["data"]
