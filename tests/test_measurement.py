import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanwatt.measurement import (
    SPOILING,
    Counter,
    Energy,
    Measurement,
    Provenance,
    Reading,
    cross_checked,
    has_drifted,
    is_stable,
    shortest_window_seconds,
    total,
    unattributed,
    why_not_comparable,
    worst,
)


def counter(joules: float, seen: float = 0.0, provenance: Provenance = Provenance.MEASURED, **more: object) -> Counter:
    return Counter(joules, 0.95 * joules, 1.05 * joules, provenance, "rapl", "package", seen, **more)  # type: ignore[arg-type]


def energy(joules: float | None, provenance: Provenance = Provenance.MEASURED, scope: str = "package") -> Energy:
    if joules is None:
        return Energy(None, scope=scope)
    return Energy(joules, joules * 0.9, joules * 1.1, provenance, "rapl", scope)


def test_the_worst_part_names_the_whole() -> None:
    assert worst([Provenance.MEASURED, Provenance.SUSPECT, Provenance.INTEGRATED]) is Provenance.SUSPECT
    assert worst([]) is Provenance.ABSENT


def test_what_a_device_spent_between_two_readings() -> None:
    spent = Energy.between(counter(10, 1.0), counter(40, 2.0, flags={"wrap": 1}), 1.0)
    assert (spent.joules, spent.lower, spent.upper) == (30, pytest.approx(28.5), pytest.approx(31.5))
    assert spent.provenance is Provenance.MEASURED
    assert spent.flags == ("wrap",)
    assert spent.coverage == 1


def test_flags_from_before_the_window_are_not_its_own() -> None:
    assert Energy.between(counter(1, 0, flags={"wrap": 1}), counter(2, 1, flags={"wrap": 1}), 1.0).flags == ()


@pytest.mark.parametrize("provenance", list(Provenance)[:6])
def test_a_total_that_did_not_move_is_unknown_and_not_zero(provenance: Provenance) -> None:
    spent = Energy.between(counter(10, 1, provenance), counter(10, 2, provenance), 1.0)
    assert (spent.joules, spent.lower, spent.upper) == (None, None, None)
    assert spent.provenance is Provenance.ABSENT
    assert spent.source == "rapl"


def test_what_was_not_seen_makes_a_measurement_incomplete_but_not_an_estimate() -> None:
    measured = Energy.between(counter(0, 0), counter(10, 0.5), 1.0)
    estimated = Energy.between(counter(0, 0, Provenance.ESTIMATED), counter(10, 0.5, Provenance.ESTIMATED), 1.0)
    assert (measured.provenance, measured.coverage) == (Provenance.INCOMPLETE, 0.5)
    assert estimated.provenance is Provenance.ESTIMATED


@given(period=st.floats(0.01, 10), window=st.floats(0.01, 1000), watts=st.floats(1, 1000), phase=st.floats(0, 1))
def test_the_bounds_hold_what_the_edges_of_a_window_hide(
    period: float, window: float, watts: float, phase: float
) -> None:
    def seen(at: float) -> Counter:
        joules = int(at / period) * period * watts
        return Counter(joules, joules, joules, Provenance.MEASURED, "x", "package", at, period)

    start = phase * period
    spent = Energy.between(seen(start), seen(start + window), window)
    if spent.joules is not None:
        assert spent.lower is not None and spent.upper is not None
        assert spent.lower <= watts * window * (1 + 1e-9)
        assert spent.upper >= watts * window * (1 - 1e-9)
    assert ("short" in spent.flags) is (window < 50 * period)


def test_the_shortest_window_follows_the_sensor() -> None:
    assert shortest_window_seconds(0.1) == pytest.approx(5)
    assert shortest_window_seconds(None) == 0


def test_a_share_is_attributed() -> None:
    part = energy(100).share(0.25)
    assert (part.joules, part.lower, part.upper) == (25, 22.5, pytest.approx(27.5))
    assert part.provenance is Provenance.ATTRIBUTED
    assert energy(100, Provenance.ESTIMATED).share(0.5).provenance is Provenance.ESTIMATED
    assert energy(None).share(0.5) == energy(None)
    assert Energy(1.0).share(0.5).lower is None
    with pytest.raises(ValueError, match=r"got a share of 1\.5"):
        energy(100).share(1.5)


def test_a_total_is_as_good_as_its_worst_part_and_names_what_is_missing() -> None:
    spent = total(
        {
            "package-0": energy(10),
            "gpu-0": energy(20, Provenance.INTEGRATED, "gpu"),
            "gpu-1": energy(None, scope="gpu"),
            "memory": energy(5, Provenance.ESTIMATED, "memory"),
        }
    )
    assert spent.joules == 30
    assert spent.lower == pytest.approx(27)
    assert spent.provenance is Provenance.INTEGRATED
    assert spent.scope == "gpu+package"
    assert spent.flags == ("without gpu-1",)


def test_a_whole_node_stands_alone_unless_it_is_unknown() -> None:
    node, package = energy(100, Provenance.INTEGRATED, "node"), energy(10)
    assert total({"package-0": package, "node": node}).joules == 100
    assert total({"package-0": package, "node": energy(None, scope="node")}).joules == 10


def test_a_total_of_nothing_known_is_absent() -> None:
    assert total({}) == Energy(None)
    unknown = total({"gpu-0": energy(None, scope="gpu"), "memory": energy(5, scope="memory")})
    assert unknown.joules is None
    assert unknown.flags == ("without gpu-0",)


def test_a_bound_that_one_part_lacks_is_unknown() -> None:
    spent = total({"a": energy(1), "b": Energy(2.0, None, 3.0, Provenance.MEASURED)})
    assert spent.lower is None
    assert spent.upper == pytest.approx(4.1)


def test_a_measurement_is_of_the_devices_that_both_readings_have() -> None:
    begin = Reading(10.0, 1.0, {"package-0": counter(0), "gpu-0": counter(0)})
    end = Reading(12.0, 4.5, {"package-0": counter(50, 2.0), "gpu-1": counter(9)})
    spent = Measurement.between("grade/root_cause", begin, end)
    assert (spent.seconds, spent.cpu_seconds) == (2.0, 3.5)
    assert list(spent.devices) == ["package-0"]
    assert spent.total.joules == 50
    assert not spent.is_spoiled


def test_a_window_in_which_a_sensor_was_lost_is_to_be_repeated() -> None:
    begin = Reading(0.0, 0.0, {"package-0": counter(0)})
    for seen, spoiled in ((1.0, False), (0.6, True)):
        assert Measurement.between("x", begin, Reading(1.0, 0.0, {"package-0": counter(9, seen)})).is_spoiled is spoiled


def test_every_flag_and_label_is_explained() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs" / "energy.md").read_text()
    source = "".join(file.read_text() for file in sorted((root / "src/leanwatt/meter").glob("*.py")))
    flags = set(re.findall(r'(?:note\(|_flags\[|UnreadableError\()"([a-z_]+)"', source)) | SPOILING
    assert len(flags) > 15
    assert [flag for flag in sorted(flags) if f"`{flag}`" not in page] == []
    assert [label for label in Provenance if f"`{label}`" not in page] == []


def test_row_22_neighbours_are_judged_by_their_share_of_the_machine() -> None:
    begin = Reading(0.0, 0.0, {}, other_cpu_seconds=100.0, cpus=4)
    for seconds, others, flags in ((10, 1.9, ()), (10, 2.1, ("contended",)), (4, 16.0, ())):
        end = Reading(float(seconds), 0.0, {}, other_cpu_seconds=100.0 + others, cpus=4)
        assert Measurement.between("x", begin, end).flags == flags


def test_row_31_children_and_the_rest_give_the_parent() -> None:
    parent, parts = energy(100), [energy(40), energy(50)]
    assert unattributed(parent, parts) == 10
    assert unattributed(parent, [energy(60), energy(50)]) == -10
    assert unattributed(parent, [energy(None)]) is None
    assert unattributed(energy(None), parts) is None


def test_row_31_nested_windows_of_one_meter_add_up() -> None:
    edges = [counter(joules, seen) for joules, seen in ((0, 0), (10, 1), (35, 2), (60, 3))]
    whole = Energy.between(edges[0], edges[3], 3.0)
    parts = [Energy.between(a, b, 1.0) for a, b in pairwise(edges)]
    assert unattributed(whole, parts) == pytest.approx(0, abs=0.01 * 60)
    assert unattributed(whole, parts[1:]) == pytest.approx(10)


def test_row_39_only_like_is_compared_with_like() -> None:
    assert why_not_comparable(energy(1), energy(2)) is None
    estimated = energy(2, Provenance.ESTIMATED)
    assert why_not_comparable(energy(1), estimated) == "their provenance differs: measured and estimated"
    assert why_not_comparable(energy(1), energy(2, scope="gpu")) == "their scope differs: package and gpu"
    assert why_not_comparable(energy(1), energy(None)) == "one of the two is unknown"


def test_row_42_an_idle_baseline_that_drifts_is_seen() -> None:
    assert has_drifted(100, 110)
    assert not has_drifted(100, 102)


def test_row_43_two_sensors_that_disagree_are_suspect() -> None:
    assert cross_checked(energy(115), energy(100)).provenance is Provenance.SUSPECT
    assert cross_checked(energy(115), energy(100)).flags == ("disagrees",)
    assert cross_checked(energy(105), energy(100)) == energy(105)
    assert cross_checked(energy(105), energy(None)) == energy(105)
    assert cross_checked(energy(None), energy(1)) == energy(None)


def test_row_44_the_warm_up_is_over_once_times_are_stable() -> None:
    times = [5.0, 1.3, 1.0, 1.01, 0.99, 1.0]
    assert not is_stable(times)
    assert is_stable([*times, 1.0])
    assert not is_stable([1.0] * 4)
    kept = [*times, 1.0, 1.0, 1.0][4:]
    assert sum(kept) / len(kept) == pytest.approx(1.0, rel=0.02)
