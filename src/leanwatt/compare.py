"""Is one cheaper, is one worse, or can it not be told? Paired comparisons of costs and of qualities."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leanwatt.ranking import Figure, Loss, Ratio, Segment, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.05
"""Chance of a false claim, for every claim made here."""
RESOLUTION = 0.02
"""A window of 50 sensor periods may be off by so much, whatever the number of rounds: smaller differences are none."""
KERNEL_ALLOWANCE = 0.30
"""CPU-seconds of unlike kernels (AMX, AVX-512, int8) differ in watts by up to this share at equal load."""
POWER = 0.80
TINY_INFLUENCE = 0.1
"""A group that moves the metric by less than this share of 1 / groups neither agrees nor disagrees."""


@dataclass(frozen=True, order=True)
class Window:
    """Where a cost was measured. Costs are compared within one round only, where heat and neighbours are alike."""

    round: int
    seed: int = 0
    fold: int = 0


Costs = Mapping[Window, float]


def average(costs: Costs) -> Figure | None:
    """Geometric mean with a 95 % t-interval over rounds, so that a ratio of averages is the average ratio.

    None without a cost; all costs must be above 0.
    """
    logs = _by_round({window: math.log(cost) for window, cost in costs.items()})
    if not logs:
        return None
    mean, half = _mean_and_half_width(logs)
    if half is None:
        return Figure(math.exp(mean), repeats=1)
    return Figure(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def mean(costs: Costs) -> Figure | None:
    """Arithmetic mean with a 95 % t-interval over rounds, for differences, which may fall below 0."""
    rounds = _by_round(costs)
    if not rounds:
        return None
    middle, half = _mean_and_half_width(rounds)
    if half is None:
        return Figure(middle, repeats=1)
    return Figure(middle, middle - half, middle + half, len(rounds))


def ratio(mine: Costs, other: Costs, allowance: float = RESOLUTION) -> Ratio | None:
    """My cost over the other's, paired in each window that both have; None where they share none."""
    logs = _by_round({window: math.log(mine[window] / other[window]) for window in mine.keys() & other.keys()})
    if not logs:
        return None
    mean, half = _mean_and_half_width(logs)
    if half is None:
        return Ratio(math.exp(mean), None, None, 1, None, allowance)
    p = _beyond(mean, logs, math.log1p(allowance))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs), p, allowance)


def _by_round(logs: Mapping[Window, float]) -> list[float]:
    """Mean of each round: seeds and folds of one round share its heat, so they are one repeat, not several."""
    rounds: dict[int, list[float]] = defaultdict(list)
    for window in sorted(logs):
        rounds[window.round].append(logs[window])
    return [math.fsum(values) / len(values) for values in rounds.values()]


def _mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    from scipy import stats

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * _standard_error(values)


def _standard_error(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _beyond(mean: float, values: Sequence[float], allowance: float) -> float:
    """Two-sided p of a t-test whose null hypothesis is |true log-ratio| <= allowance."""
    from scipy import stats

    error, excess = _standard_error(values), abs(mean) - allowance
    if error == 0:
        return 0.0 if excess > 0 else 1.0
    return min(1.0, 2 * float(stats.t.sf(excess / error, len(values) - 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979): below the level, each claim holds among all of them."""
    corrected, worst = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        worst = max(worst, min(1.0, p_values[name] * (len(p_values) - place)))
        corrected[name] = worst
    return {name: corrected[name] for name in p_values}


def told_apart(ratios: Mapping[str, Ratio | None]) -> dict[str, bool]:
    """Which of these costs differ from the one they are compared with, by more than their allowance, Holm-corrected."""
    corrected = holm({name: 1.0 if r is None or r.p is None else r.p for name, r in ratios.items()})
    return {name: p <= LEVEL for name, p in corrected.items()}


@dataclass(frozen=True)
class Sampled:
    """One metric of one variant: as it is, in resamples that all variants share, and without each group in turn."""

    value: float
    samples: "Floats"
    """(times,)"""
    without: "Floats"
    """(groups,)"""
    examples: int


def loss(mine: Sampled, reference: Sampled, margin: float) -> Loss:
    """Does it lose more than `margin` of the metric against the reference? One-sided, 5 %.

    The bootstrap's spread is widened for few groups (Hesterberg 2015, expanded percentile interval). Where few groups
    disagree, a bootstrap is too sure of itself, so the bounds also move by the most that one more such group would
    move them; and where none speaks against the variant, a loss that so many groups could hide is not ruled out.
    """
    import numpy as np

    difference = mine.value - reference.value
    drawn = _widened(mine.samples - reference.samples, difference, len(mine.without))
    influence = difference - (mine.without - reference.without)
    influence = influence[np.isfinite(influence)]
    down, up = max(0.0, -influence.min(initial=0.0)), max(0.0, influence.max(initial=0.0))
    hidden = _hidden(influence, margin)
    p = max(hidden, _share(drawn - down <= -margin))
    p_worse = _share(drawn + up >= -margin)
    word: Word = "non-inferior" if p <= LEVEL else "inferior" if p_worse <= LEVEL else "cannot tell"
    low = min(float(np.quantile(drawn, LEVEL)) - down, _least_visible(influence))
    high = float(np.quantile(drawn, 1 - LEVEL)) + up
    needed = _needed(difference, float(drawn.std()), margin, mine) if word == "cannot tell" else None
    p_higher = max(_by_chance(influence), _share(drawn - down <= 0))
    return Loss(word, difference, low, high, p, mine.examples, needed, p_higher)


def _widened(samples: "Floats", centre: float, groups: int) -> "Floats":
    import numpy as np
    from scipy import stats

    samples = samples[np.isfinite(samples)]
    if groups < 2:
        return np.asarray([-1.0, 1.0])  # one group says nothing of others: any loss is possible
    factor = math.sqrt(groups / (groups - 1)) * stats.t.ppf(1 - LEVEL, groups - 1) / stats.norm.ppf(1 - LEVEL)
    return np.asarray(centre + factor * (samples - centre))


def _share(hits: "NDArray[np.bool_]") -> float:
    """Share of the resamples, never 0: there could have been one more."""
    return (1 + int(hits.sum())) / (1 + len(hits))


def _speaks_against(influence: "Floats") -> bool:
    return bool((influence < -TINY_INFLUENCE / max(1, len(influence))).any())


def _by_chance(influence: "Floats") -> float:
    """Chance that all groups that clearly speak do so for a variant that gains nothing: few groups prove no gain.

    Clearly: at least a quarter of the strongest, which leaves out those that a metric over classes moves along.
    """
    strength = abs(influence)
    return 0.5 ** int((strength > max(TINY_INFLUENCE / max(1, len(strength)), strength.max(initial=0.0) / 4)).sum())


def _hidden(influence: "Floats", margin: float) -> float:
    """Chance that no group speaks against a variant although a share `margin` of all groups would (rule of three)."""
    return 0.0 if _speaks_against(influence) else math.pow(1 - margin, len(influence))


def _least_visible(influence: "Floats") -> float:
    """Minus the share of groups that may be lost without one being seen; above every bound where one was seen."""
    if _speaks_against(influence):
        return math.inf
    return math.pow(LEVEL, 1 / max(1, len(influence))) - 1


def _needed(difference: float, error: float, margin: float, mine: Sampled) -> int | None:
    """Examples at which the same difference and spread would be told with 80 % power; None if no number would."""
    from scipy import stats

    gap, groups = abs(difference + margin), max(1, len(mine.without))
    if gap < 1e-9:
        return None
    wanted = groups * (float(stats.norm.ppf(1 - LEVEL) + stats.norm.ppf(POWER)) * error / gap) ** 2
    least = math.log(LEVEL) / math.log(1 - margin) if 0 < margin < 1 else 0.0
    return max(mine.examples + 1, math.ceil(max(wanted, least) * mine.examples / groups))


@dataclass(frozen=True)
class Line:
    """A score that is linear in a weight or price."""

    label: str
    at_zero: float
    slope: float


def best_over(lines: Sequence[Line], end: float | None) -> tuple[Segment, ...]:
    """Which line is highest from 0 to `end` (None: for ever), exactly; at a draw the name that sorts first."""
    if not lines:
        return ()
    place = 0.0
    segments: list[Segment] = []
    best = min(lines, key=lambda line: (-line.at_zero, -line.slope, line.label))
    while True:
        later = [(_crossing(best, line), line) for line in lines if line.slope > best.slope]
        cross, rival = min(later, key=lambda found: (found[0], -found[1].slope, found[1].label), default=(end, best))
        if cross is None or rival is best or (end is not None and cross >= end):
            return (*segments, Segment(place, end, best.label))
        if cross > place:
            segments.append(Segment(place, cross, best.label))
        place, best = cross, rival


def _crossing(now: Line, rival: Line) -> float:
    """Where the steeper rival overtakes; the current line leads up to there, so it is never in the past."""
    return (now.at_zero - rival.at_zero) / (rival.slope - now.slope)


def on_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names whose (cost, quality) no other point beats: none is as cheap and as good, and better in one of the two."""
    return {
        name
        for name, (cost, quality) in points.items()
        if not any(
            other_cost <= cost and other_quality >= quality and (other_cost, other_quality) != (cost, quality)
            for other_cost, other_quality in points.values()
        )
    }
