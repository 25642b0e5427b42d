import csv
from pathlib import Path

from leanwatt import metrics
from leanwatt.catalog import build
from leanwatt.question import Answer, Generate
from leanwatt.recipe import Choice


def test_a_question_is_answered_in_words_and_may_be_half_right(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket", "question", "answer"])
        writer.writerows([f"alarm{n} at site{n}", "Where is it?", f"at site{n}"] for n in range(30))
    settings = {"data": str(path), "text": ["ticket", "question"], "reference": "answer", "limit": 8}
    task = build(Choice("tasks", "answer", settings))
    examples = task.examples(0)
    first = examples[0].question
    assert isinstance(first, Generate)
    assert (first.prompt.body, first.limit) == ("ticket: alarm0 at site0\nquestion: Where is it?", 8)
    right, half, none = task.grade(examples[:3], [Answer("At SITE0."), Answer("site1 it is"), Answer(None)])
    assert (right["token_f1"], right["exact"]) == (1, 1)
    assert (half["token_f1"], half["exact"]) == (2 * 1 / (2 + 3), 0)
    assert (none["token_f1"], none["exact"]) == (0, 0)
    found = metrics.figures(task.grade(examples, [Answer(e.target) for e in examples]))
    assert found[task.primary] == found["exact"] == 1
