import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from leanwatt import metrics
from leanwatt.catalog import build
from leanwatt.question import Answer, Generate
from leanwatt.recipe import Choice
from leanwatt.tasks._overlap import rouge_l, rouge_n


def written(folder: Path) -> str:
    path = folder / "papers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "abstract", "tldr", "tldr_2"])
        for n in range(30):
            text = f"paper{n} prunes nets{n}. It saves half."
            writer.writerow([f"p{n}", text, f"paper{n} prunes", "" if n else "half is saved"])
    return str(path)


def task(path: str, **settings: Any) -> Any:
    plain = {"data": {"path": path, "id": "id"}, "text": "abstract", "reference": "tldr", "also": ["tldr_2"]}
    return build(Choice("tasks", "summarize", {**plain, **settings}))


def test_examples_ask_for_a_summary_and_learn_the_first(tmp_path: Path) -> None:
    first = task(written(tmp_path), limit=9).examples(0)[0]
    assert isinstance(first.question, Generate)
    assert (first.question.limit, first.question.prompt.lead) == (9, "Summary:")
    assert first.target == "paper0 prunes"


def test_the_nearest_of_several_summaries_counts(tmp_path: Path) -> None:
    asked = task(written(tmp_path))
    first, second = asked.examples(0)[:2]
    near, far = asked.grade([first, second], [Answer("half is saved"), Answer("half is saved")])
    assert (near["rouge_l"], near["rouge_2"], near["token_f1"]) == (1, 1, 1)
    assert (far["rouge_l"], far["rouge_2"], far["token_f1"]) == (0, 0, 0)
    assert near["reference"] == "paper0 prunes"
    assert near["copied"] == pytest.approx(1 / 3)  # "half" stands in the abstract, "is" and "saved" do not
    [copied, nothing] = asked.grade([first, second], [Answer("It saves half."), Answer("")])
    assert copied["copied"] == 1
    assert nothing["copied"] is None


def test_graded_rows_give_every_metric(tmp_path: Path) -> None:
    asked = task(written(tmp_path))
    examples = asked.examples(0)
    found = metrics.figures(asked.grade(examples, [Answer(e.target) for e in examples]))
    assert set(found) == {"rouge_l", "rouge_2", "token_f1", "copied", "chrf", "bleu", "truncated"}
    assert found["rouge_l"] == found["copied"] == 1


@settings(deadline=None)
@given(st.text(alphabet="ab C1-_.,\n"), st.text(alphabet="ab C1-_.,\n"))
def test_rouge_is_that_of_rouge_score(answer: str, reference: str) -> None:
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, answer)
    assert rouge_n(answer, reference, 1) == pytest.approx(expected["rouge1"].fmeasure)
    assert rouge_n(answer, reference, 2) == pytest.approx(expected["rouge2"].fmeasure)
    assert rouge_l(answer, reference) == pytest.approx(expected["rougeL"].fmeasure)
