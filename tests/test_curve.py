from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanwatt.cache import CURVE
from leanwatt.curve import Curve, Point, read
from leanwatt.errors import StoreError


def curve(*losses: float, joules: bool = True) -> Curve:
    points = [Point(10 * n, 100 * n, 2.0 * n, 30.0 * n if joules else None, loss) for n, loss in enumerate(losses)]
    return Curve(tuple(points), "measured" if joules else "absent")


def test_the_cost_of_a_loss_lies_between_two_looks() -> None:
    found = curve(3.0, 2.0, 1.0)
    assert found.cost_to(1.5, "cpu_seconds") == 3.0
    assert found.cost_to(1.5, "joules") == 45.0
    assert found.cost_to(1.0, "joules") == 60.0
    assert found.cost_to(3.5, "joules") == 0.0, "it was there before training"


def test_what_was_never_reached_or_never_read_has_no_cost() -> None:
    assert curve(3.0, 2.0).cost_to(1.9, "joules") is None
    assert curve(3.0, 2.0, joules=False).cost_to(2.5, "joules") is None
    assert curve(3.0, 2.0, joules=False).cost_to(2.5, "cpu_seconds") == 1.0


def test_the_first_time_counts_and_the_best_is_told() -> None:
    found = curve(3.0, 1.0, 2.0, 0.5)
    assert found.cost_to(1.5, "cpu_seconds") == 1.5
    assert found.least_loss == 0.5


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_lower_loss_never_costs_less(losses: list[float], one: float, other: float) -> None:
    high, low = (curve(*losses).cost_to(loss, "cpu_seconds") for loss in (max(one, other), min(one, other)))
    assert low is None or (high is not None and high <= low + 1e-9)


def test_it_is_kept_beside_the_model(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    curve(3.0, 2.0, joules=False).save(tmp_path)
    assert read(tmp_path) == curve(3.0, 2.0, joules=False)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 99, "points": []}', '{"schema": 1, "points": [{}]}'])
def test_what_is_no_curve_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CURVE).write_text(text)
    with pytest.raises(StoreError, match=CURVE):
        read(tmp_path)
