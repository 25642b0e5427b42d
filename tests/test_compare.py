import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leanwatt.compare import (
    LEVEL,
    Line,
    Sampled,
    Window,
    average,
    best_over,
    holm,
    loss,
    on_front,
    ratio,
    told_apart,
)
from leanwatt.metrics import resamples

ROUNDS = 5


def noisy(generator: np.random.Generator, mean: float, variation: float) -> dict[Window, float]:
    return {Window(number): mean * float(np.exp(generator.normal(0, variation))) for number in range(ROUNDS)}


def accuracy(right: np.ndarray, counts: np.ndarray) -> Sampled:
    number = len(right)
    figure = right.astype(float)
    return Sampled(figure.mean(), counts @ figure / number, (figure.sum() - figure) / (number - 1), number)


def test_ratio_has_the_t_interval_of_scipy():
    generator = np.random.default_rng(0)
    mine, other = noisy(generator, 2.0, 0.1), noisy(generator, 1.0, 0.1)
    logs = [math.log(mine[window] / other[window]) for window in mine]
    low, high = stats.t.interval(0.95, len(logs) - 1, loc=np.mean(logs), scale=stats.sem(logs))
    found = ratio(mine, other)
    assert found.value == pytest.approx(math.exp(np.mean(logs)))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    no_allowance = ratio(mine, other, allowance=0.0)
    assert no_allowance.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert found.p > no_allowance.p


def test_ratio_pairs_only_what_both_have_measured():
    mine, other = {Window(0): 2.0, Window(1): 2.0, Window(2): 99.0}, {Window(0): 1.0, Window(1): 1.0, Window(7): 5.0}
    assert ratio(mine, other).value == pytest.approx(2)
    assert ratio(mine, other).rounds == 2
    assert ratio({Window(0): 1.0}, {Window(1): 1.0}) is None


def test_seeds_of_a_round_are_one_repeat():
    mine = {Window(number, seed): 2.0 + seed for number in range(3) for seed in range(4)}
    other = {window: 1.0 for window in mine}
    assert ratio(mine, other).rounds == 3
    assert average(mine).repeats == 3


def test_one_round_gives_no_interval_and_tells_nothing():
    found = ratio({Window(0): 9.0}, {Window(0): 1.0})
    assert (found.low, found.high, found.p) == (None, None, None)
    assert told_apart({"a": found, "b": None}) == {"a": False, "b": False}
    assert average({Window(0): 9.0}).low is None
    assert average({}) is None


def test_equal_costs_in_every_round_are_told_apart_by_the_allowance_alone():
    one = {Window(number): 1.0 for number in range(3)}
    assert ratio({w: 1.01 for w in one}, one).p == 1.0
    assert ratio({w: 1.10 for w in one}, one).p == 0.0
    assert ratio({w: 1.25 for w in one}, one, allowance=0.30).p == 1.0


def trials_told_apart(gap: float, variation: float, seed: int) -> list[float]:
    """Of 200 simulated trials of two variants, the ratios of those in which a difference was told."""
    generator = np.random.default_rng(seed)
    found = [ratio(noisy(generator, 1 + gap, variation), noisy(generator, 1.0, variation)) for _ in range(200)]
    return [each.value for each in found if told_apart({"x": each})["x"]]


@pytest.mark.parametrize("seed", range(5))
def test_row_40_two_per_cent_apart_at_a_variation_of_five_cannot_be_told(seed):
    """Five rounds each: at least 95 % of 200 trials say so."""
    assert len(trials_told_apart(0.02, 0.05, seed)) <= 10


@pytest.mark.parametrize("seed", range(5))
def test_row_41_ten_per_cent_apart_at_a_variation_of_two_gives_the_right_winner(seed):
    """Five rounds each: at least 95 % of 200 trials."""
    assert sum(value > 1 for value in trials_told_apart(0.10, 0.02, seed)) >= 190


def slow_holm(p_values: dict[str, float], level: float) -> set[str]:
    """Step down: the smallest against level / n, the next against level / (n - 1), until one fails."""
    rejected: set[str] = set()
    for name in sorted(p_values, key=p_values.__getitem__):
        if p_values[name] > level / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return rejected


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 0.2), max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    corrected = holm(p_values)
    assert {name for name, p in corrected.items() if p <= LEVEL} == slow_holm(p_values, LEVEL)
    assert all(corrected[name] >= p for name, p in p_values.items())


@pytest.mark.parametrize("churn", [0.0, 0.04])
@pytest.mark.parametrize("number", [150, 400])
def test_a_true_loss_of_the_margin_is_seldom_called_non_inferior(number, churn):
    """Reference right in 90 %; the variant loses 2 points net, with or without other answers that change."""
    generator, margin, runs = np.random.default_rng(5), 0.02, 200
    counts = resamples([str(i) for i in range(number)], times=400).astype(float)
    called = 0
    for _ in range(runs):
        base = generator.random(number) < 0.9
        mine, chance = base.copy(), generator.random(number)
        mine[base & (chance < (margin + churn) / 0.9)] = False
        mine[~base & (chance < churn / 0.1)] = True
        called += loss(accuracy(mine, counts), accuracy(base, counts), margin).word == "non-inferior"
    assert called <= stats.binom.ppf(0.999, runs, LEVEL)


def test_no_loss_on_many_examples_is_non_inferior_and_on_few_is_not():
    def same(number: int):
        counts = resamples([str(i) for i in range(number)], times=200).astype(float)
        right = np.arange(number) % 10 > 0
        return loss(accuracy(right, counts), accuracy(right, counts), 0.02)

    assert same(200).word == "non-inferior"
    assert same(200).examples_needed is None
    assert same(200).low == pytest.approx(LEVEL ** (1 / 200) - 1)
    assert same(40).word == "cannot tell"
    assert same(40).examples_needed == math.ceil(math.log(0.05) / math.log(0.98))


def test_a_large_loss_is_inferior():
    counts = resamples([str(i) for i in range(300)], times=300).astype(float)
    base = np.ones(300, dtype=bool)
    found = loss(accuracy(np.arange(300) % 5 > 0, counts), accuracy(base, counts), 0.02)
    assert found.word == "inferior"
    assert found.difference == pytest.approx(-0.2)
    assert found.low < found.difference < found.high < -0.02


def test_one_group_tells_nothing():
    counts = np.ones((50, 4))
    right, wrong = np.ones(4), np.zeros(4)
    mine = Sampled(1.0, counts @ right / 4, np.array([np.nan]), 4)
    base = Sampled(0.0, counts @ wrong / 4, np.array([np.nan]), 4)
    assert loss(mine, base, 0.02).word == "cannot tell"


def test_as_many_examples_as_are_said_to_be_needed_mostly_tell():
    """4 % of the answers get worse and 4 % better: no net loss, and 200 examples cannot tell."""
    generator, margin = np.random.default_rng(0), 0.02

    def judged(chance: np.ndarray):
        counts = resamples([str(i) for i in range(len(chance))], times=1000).astype(float)
        base = (chance < 0.86) | (chance >= 0.96)
        mine = (chance < 0.86) | ((chance >= 0.92) & (chance < 0.96))
        return loss(accuracy(mine, counts), accuracy(base, counts), margin)

    few = judged((np.arange(200) + 0.5) / 200)
    assert few.word == "cannot tell" and few.difference == pytest.approx(0)
    told = [judged(generator.random(few.examples_needed)).word == "non-inferior" for _ in range(40)]
    assert sum(told) >= 25


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7),
    st.floats(0, 1),
)
@settings(max_examples=200)
def test_best_over_names_a_highest_line_everywhere(ends, weight):
    lines = [Line(str(place), begin, end - begin) for place, (begin, end) in enumerate(ends)]
    segments = best_over(lines, 1.0)
    assert segments[0].begin == 0 and segments[-1].end == 1
    assert all(left.end == right.begin for left, right in pairwise(segments))
    here = next(s for s in segments if s.begin <= weight <= s.end)
    value = {line.label: line.at_zero + weight * line.slope for line in lines}
    assert value[here.label] == pytest.approx(max(value.values()), abs=1e-9)


def test_best_over_without_end_and_without_lines():
    segments = best_over([Line("cheap", -1.0, -0.5), Line("good", -2.0, -0.25)], None)
    assert [(s.label, s.begin, s.end) for s in segments] == [("cheap", 0.0, 4.0), ("good", 4.0, None)]
    assert best_over([], 1.0) == ()


def test_front_keeps_equals_and_drops_what_is_beaten():
    points = {"a": (1.0, 0.5), "b": (1.0, 0.5), "c": (2.0, 0.5), "d": (3.0, 0.9)}
    assert on_front(points) == {"a", "b", "d"}


@pytest.mark.parametrize("churn", [0.05, 0.2])
def test_no_gain_is_seldom_called_higher(churn):
    generator, called = np.random.default_rng(5), 0
    for _ in range(200):
        base = generator.random(150) < 0.8
        moved = generator.random(150) < churn
        mine = np.where(moved, generator.random(150) < 0.8, base)
        counts = generator.multinomial(150, np.full(150, 1 / 150), size=400)
        called += loss(accuracy(mine, counts), accuracy(base, counts), 0.02).p_higher <= 0.05
    assert called <= 18  # 5 % of 200, and three standard deviations


@pytest.mark.parametrize(("gained", "is_higher"), [(0, False), (3, False), (12, True)])
def test_a_gain_without_a_loss_needs_enough_groups_to_speak_for_it(gained, is_higher):
    generator = np.random.default_rng(6)
    base = np.arange(200) >= 40
    mine = base | (np.arange(200) < gained)
    counts = generator.multinomial(200, np.full(200, 1 / 200), size=1000)
    assert (loss(accuracy(mine, counts), accuracy(base, counts), 0.02).p_higher <= 0.05) is is_higher
