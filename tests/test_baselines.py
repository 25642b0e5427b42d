"""One suite for every baseline: what they learn, what they cannot do, and how they answer."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from leanwatt import catalog
from leanwatt.question import Answer, Example, Generate, Likelihood, Prompt, Score
from leanwatt.recipe import Choice

BASELINES = catalog.names("baseline")
OPTIONS = ("fibre cut", "flood", "mains failure")
WORDS = {"mains failure": "power lost at site", "fibre cut": "link down on the ring"}
TARGETS = ["mains failure"] * 3 + ["fibre cut"] * 2


def ask(body: str, kind: str) -> Any:
    prompt = Prompt("Name the root cause.", body, "Root cause:")
    if kind == "score":
        return Score(prompt, OPTIONS)
    if kind == "choice":
        return Score(prompt, (*OPTIONS, f"none at {body.rsplit(maxsplit=1)[-1]}"))
    return Likelihood(body) if kind == "likelihood" else Generate(prompt, 16, ("\n",))


def examples(kind: str, count: int = 40) -> list[Example]:
    """Tickets whose words tell the cause; three of five are mains failures."""
    found = []
    for i in range(count):
        cause = TARGETS[i % 5]
        fields = {"options": json.dumps(OPTIONS)} if kind == "generate" else {}
        closed = kind in ("score", "generate", "choice")
        target = cause if closed else f"replaced the {cause.split()[0]} unit at A{i % 3}"
        found.append(Example(f"e{i}", f"g{i}", "train", ask(f"{WORDS[cause]} A{i}", kind), target, fields))
    return found


def fitted(name: str, kind: str, count: int = 40) -> Any:
    return catalog.build(Choice("baseline", name)).fit(examples(kind, count))


CAN = {
    "majority": {"score", "generate"},
    "constant": {"response"},
    "tfidf": {"score", "generate"},
    "nearest": {"score", "generate", "response"},
    "sentence": {"response"},
    "cue": {"choice"},
    "retrieval": {"choice"},
    "ngram": {"likelihood"},
}


def test_the_suite_knows_every_baseline() -> None:
    assert set(CAN) == set(BASELINES)


@pytest.mark.parametrize("kind", ["score", "generate", "response", "likelihood", "choice"])
@pytest.mark.parametrize("name", BASELINES)
def test_it_can_do_what_it_says_and_nothing_else(name: str, kind: str) -> None:
    session = fitted(name, kind)
    if kind not in CAN[name]:
        assert session is None
        return
    questions = [ask("link down on the ring B7", kind), ask("never heard of", kind), ask("power lost at site C", kind)]
    answers = session.answer(questions)
    assert len(answers) == 3
    assert all(isinstance(answer, Answer) and (answer.text or kind == "likelihood") for answer in answers)
    assert {"engine", "kernel"} <= session.facts.keys()
    assert session.answer(questions) == answers
    assert session.answer(questions[::-1]) == answers[::-1]
    if kind in ("score", "choice"):
        for question, answer in zip(questions, answers, strict=True):
            assert answer.text in question.options
            assert len(answer.scores) == len(question.options)
            assert answer.scores[question.options.index(answer.text)] == max(answer.scores)
            assert all(math.isfinite(score) and score <= 1e-9 for score in answer.scores)
    if kind == "generate":
        assert {answer.text for answer in answers} <= set(OPTIONS)
        assert not any(answer.scores for answer in answers)


@pytest.mark.parametrize("name", BASELINES)
def test_without_examples_there_is_nothing_to_fit(name: str) -> None:
    assert catalog.build(Choice("baseline", name)).fit([]) is None


@pytest.mark.parametrize("kind", ["score", "generate"])
@pytest.mark.parametrize("name", ["tfidf", "nearest"])
def test_what_reads_the_ticket_gets_it_right(name: str, kind: str) -> None:
    questions = [ask(f"{WORDS[cause]} X{i}", kind) for i, cause in enumerate(TARGETS)]
    assert [answer.text for answer in fitted(name, kind).answer(questions)] == TARGETS


def test_majority_answers_the_shares_of_the_classes() -> None:
    [answer] = fitted("majority", "score").answer([ask("link down on the ring", "score")])
    assert answer.text == "mains failure"
    assert [math.exp(score) for score in answer.scores] == pytest.approx([0.4, 0.0, 0.6], abs=1e-6)


def test_tfidf_answers_probabilities() -> None:
    [answer] = fitted("tfidf", "score").answer([ask(WORDS["fibre cut"], "score")])
    shares = dict(zip(OPTIONS, map(math.exp, answer.scores), strict=True))
    assert shares["fibre cut"] > 0.6 > shares["mains failure"]
    assert shares["flood"] < 1e-6, "no training ticket has it"
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)


def test_constant_is_the_response_that_fits_the_others_best() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    responses = [
        "reset the router at A",
        "reset the router at B",
        "reset the router",
        "sent a crew to the mast",
        "no fault",
    ]
    found = [Example(str(i), str(i), "train", ask("x", "response"), text) for i, text in enumerate(responses)]
    [answer] = catalog.build(Choice("baseline", "constant")).fit(found).answer([ask("anything", "response")])
    scorer = RougeScorer(["rougeL"])
    slow = {text: sum(scorer.score(other, text)["rougeL"].fmeasure for other in responses) for text in responses}
    assert answer.text == max(slow, key=lambda text: slow[text])
    assert answer.text.startswith("reset the router")


def test_nearest_copies_the_answer_of_the_nearest_ticket() -> None:
    train = examples("response")
    answers = fitted("nearest", "response").answer([example.question for example in train])
    assert [answer.text for answer in answers] == [example.target for example in train]


@pytest.mark.parametrize("name", ["tfidf", "nearest", "majority"])
def test_few_tickets_are_enough(name: str) -> None:
    """Four tickets, two of each cause; every word that counts stands in two of them."""
    few = [examples("score")[i] for i in (0, 1, 3, 4)]
    session = catalog.build(Choice("baseline", name)).fit(few)
    assert len(session.answer([ask("power lost at site", "score")])) == 1


def test_groups_with_one_cause_each_do_not_stop_tfidf() -> None:
    """Two folds of groups may hold one class each: then no strength can be chosen, and the first is taken."""
    uneven = [
        replace(example, group="rare" if example.target == "fibre cut" else example.group)
        for example in examples("score")
    ]
    session = catalog.build(Choice("baseline", "tfidf")).fit(uneven)
    [answer] = session.answer([ask(WORDS["fibre cut"], "score")])
    assert answer.text == "fibre cut"


def test_tickets_without_a_common_word_do_not_stop_tfidf() -> None:
    """`least: 2` drops every word here; a baseline says what it needs instead of a riddle."""
    from leanwatt.errors import RefusedError

    alone = [Example(str(i), str(i), "train", ask(f"word{i}", "score"), TARGETS[i % 5]) for i in range(10)]
    with pytest.raises(RefusedError, match="least"):
        catalog.build(Choice("baseline", "tfidf")).fit(alone)


def choice(question: str, options: tuple[str, ...], target: str) -> Example:
    return Example(question, question, "train", Score(Prompt("", question, ""), options), target)


@pytest.mark.parametrize(
    ("place", "name"), [(lambda options: options[1], "option 2"), (lambda options: max(options, key=len), "longest")]
)
def test_cue_finds_the_mark_that_gives_the_answer_away(place: Any, name: str) -> None:
    found = []
    for number in range(30):
        options = tuple("x" * (1 + (number * 7 + 5 * place) % 11) + str(place) for place in range(4))
        found.append(choice(f"q{number}", options, place(options)))
    session = catalog.build(Choice("baseline", "cue")).fit(found)
    assert session.facts["cue"] == name
    asked = Score(Prompt("", "new", ""), ("aaa", "bb", "c", "dddddd"))
    [answer] = session.answer([asked])
    assert answer.text == place(asked.options)


def test_cue_counts_every_right_option() -> None:
    found = []
    for number in range(20):
        options = (f"a{number}", f"b{number}", f"long {number}")
        right = [options[number % 2], options[2]]
        example = choice(f"q{number}", options, right[0])
        found.append(replace(example, fields={"right": json.dumps(right)}))
    assert catalog.build(Choice("baseline", "cue")).fit(found).facts["cue"] in ("option 3", "last option", "longest")


def test_retrieval_knows_what_belonged_together() -> None:
    found = [
        choice("who names the cell", ("the gNB does", "a car"), "the gNB does"),
        choice("what lights the fibre", ("a laser", "a rope", "a horse"), "a laser"),
    ]
    session = catalog.build(Choice("baseline", "retrieval")).fit(found)
    [answer] = session.answer([Score(Prompt("", "which thing lights a fibre cable", ""), ("horse", "laser"))])
    assert answer.text == "laser"
    assert math.exp(answer.scores[1]) == pytest.approx(1)


def test_sentence_finds_the_place_and_copies_from_it() -> None:
    found = []
    for i in range(9):
        body = f"noise {i}. " + "more noise! " * (i % 4) + f"the point is {i}"
        found.append(Example(str(i), str(i), "train", ask(body, "response"), f"the point is {i}"))
    session = catalog.build(Choice("baseline", "sentence")).fit(found)
    assert session.facts["sentence"] == -1
    asked = [ask("Alpha. Beta? Gamma", "response"), ask("One only", "response")]
    assert [answer.text for answer in session.answer(asked)] == ["Gamma", "One only"]


def text(body: str) -> Example:
    return Example(body, body, "train", Likelihood(body), "")


def test_ngram_by_hand() -> None:
    """After one text `ab`: a, b and the end once each; Witten-Bell with three kinds of three."""
    session = catalog.build(Choice("baseline", "ngram", {"order": 1})).fit([text("ab")])
    [answer] = session.answer([Likelihood("a")])
    base = 1 / 257
    single = (1 + 3 * base) / (3 + 3)
    after_a = (0 + 1 * single) / (1 + 1)
    assert answer.scores[0] == pytest.approx(math.log(single) + math.log(after_a))


def test_ngram_is_a_probability_and_learns() -> None:
    session = catalog.build(Choice("baseline", "ngram")).fit([text("the link is down"), text("the link is up")])
    one_more = [chr(code) for code in range(128)]
    given = "the link is "
    [start] = session.answer([Likelihood(given)])
    shares = [math.exp(a.scores[0]) for a in session.answer([Likelihood(given + each) for each in one_more])]
    assert 0 < sum(shares) < 1
    known, strange = session.answer([Likelihood("the link is down"), Likelihood("zzzz zzzz zzzz z")])
    assert known.scores[0] > start.scores[0] - 10 > strange.scores[0]
