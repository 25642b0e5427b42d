"""Tasks of the evaluation harness on local files: three types of questions, its own grading, our splits."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from leanwatt import metrics
from leanwatt.catalog import build
from leanwatt.errors import DataError, MissingExtraError, StudyError
from leanwatt.question import Answer, Generate, Likelihood, Score
from leanwatt.recipe import Choice

HEAD = "dataset_path: json\ndataset_kwargs: {data_files: {train: a.jsonl, test: a.jsonl}}\ntest_split: test\n"
METRIC = "{metric: %s, aggregation: mean, higher_is_better: true}"
CHOICE = HEAD + (
    'training_split: train\noutput_type: multiple_choice\ndoc_to_text: "Q: {{q}}\\nA:"\n'
    f"doc_to_choice: options\ndoc_to_target: gold\nmetric_list: [{METRIC % 'acc'}, {METRIC % 'acc_norm'}]\n"
)
WRITTEN = HEAD + (
    'output_type: generate_until\ndoc_to_text: "Q: {{q}}\\nA:"\ndoc_to_target: "{{options[gold]}}"\n'
    f'generation_kwargs: {{until: ["\\n"]}}\nmetric_list: [{METRIC % "exact_match"}]\n'
)
ROLLING = HEAD + 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{q}}"\n'
ROLLING += "metric_list: [{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n"
OTHER = HEAD + 'output_type: loglikelihood\ndoc_to_text: "{{q}}"\ndoc_to_target: "x"\n'
OTHER += f"metric_list: [{METRIC % 'acc'}]\n"
FILES = {"choice": CHOICE, "written": WRITTEN, "rolling": ROLLING, "other": OTHER}
ABSENT = CHOICE.replace("a.jsonl", "nowhere.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")
    made = tmp_path_factory.mktemp("harness")
    docs = [{"q": f"what{n}", "options": ["aa", "bbbb bbbb"], "gold": n % 2, "kind": f"k{n // 2}"} for n in range(12)]
    (made / "a.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in {**FILES, "absent": ABSENT}.items():
        (made / f"{name}.yaml").write_text(f"task: my_{name}\n{text}")
    return made


@pytest.fixture(autouse=True)
def no_cache_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))


def task(folder: Path, name: str, **settings: Any) -> Any:
    return build(Choice("tasks", "lm_eval", {"task": f"my_{name}", "data": str(folder), **settings}))


def test_options_are_scored_and_the_harness_grades(folder: Path) -> None:
    asked = task(folder, "choice", group="kind")
    examples = asked.examples(0)
    parts = {split: [e for e in examples if e.split == split] for split in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [12, 6, 6]
    bodies = {e.question.prompt.body for e in parts["validation"]} | {e.question.prompt.body for e in parts["test"]}
    assert len(bodies) == 12, "no document validates and tests"
    first = examples[0]
    assert isinstance(first.question, Score)
    assert first.question.prompt.body == "Q: what0\nA:"
    assert (first.question.options, first.target, first.group) == (("aa", "bbbb bbbb"), "aa", "k0")
    rows = asked.grade(examples[:2], [Answer(scores=(-1.0, -2.0))] * 2)
    assert [row["score"] for row in rows] == [row["harness_acc"] for row in rows] == [1, 0]
    assert [row["harness_acc_norm"] for row in rows] == [0, 1], "by length the second option is the likelier"
    assert rows[0]["confidence"] == pytest.approx(1 / (1 + math.exp(-1)))
    found = metrics.figures(rows)
    assert (found[asked.primary], found["accuracy"], found["harness_acc_norm"]) == (0.5, 0.5, 0.5)
    by_length = task(folder, "choice", metric="acc_norm").grade(examples[:2], [Answer(scores=(-1.0, -2.0))] * 2)
    assert [row["score"] for row in by_length] == [0, 1]


def test_solved_examples_stand_before_the_question(folder: Path) -> None:
    [first, *_] = task(folder, "choice", shots=1).examples(0)
    body = first.question.prompt.body
    assert body.endswith("\n\nQ: what0\nA:")
    assert body.startswith("Q: what")
    assert body.split("\nA: ")[1].split("\n")[0] in ("aa", "bbbb bbbb")


def test_a_written_answer_is_graded_as_the_harness_does(folder: Path) -> None:
    asked = task(folder, "written", limit=7)
    examples = asked.examples(0)
    assert {e.split for e in examples} == {"validation", "test"}
    [first, second] = examples[:2]
    assert isinstance(first.question, Generate)
    assert (first.question.limit, first.question.stop) == (7, ("\n",))
    right, wrong = asked.grade([first, second], [Answer(first.target), Answer("something")])
    assert (right["score"], wrong["score"]) == (1, 0)


def test_a_rolling_likelihood_is_the_probability_of_a_byte(folder: Path) -> None:
    asked = task(folder, "rolling")
    [first, *_] = asked.examples(0)
    assert isinstance(first.question, Likelihood)
    [row] = asked.grade([first], [Answer(scores=(-first.question.bytes * math.log(2),))])
    assert row["score"] == pytest.approx(0.5)
    assert metrics.figures([row])["byte_probability"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "settings", "error", "expected"),
    [
        ("other", {}, StudyError, "No 'loglikelihood' in the types of harness tasks"),
        ("choise", {}, StudyError, "Did you mean 'my_choice'"),
        ("absent", {}, DataError, "the data of my_absent cannot be loaded"),
        ("choice", {"metric": "ac"}, StudyError, "Did you mean 'acc'"),
        ("choice", {"filter": "strict"}, StudyError, "the filters of my_choice"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    folder: Path, name: str, settings: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        task(folder, name, **settings).examples(0)


def test_a_folder_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        task(folder / "gone", "choice").examples(0)


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import leanwatt.tasks.lm_eval as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leanwatt\[lm_eval\]'"):
        build(Choice("tasks", "lm_eval", {"task": "arc_easy"}))
    assert sys.modules[module.__name__] is module
