"""Rows of the fault table (docs/energy.md) that a counter or a power sensor can show by itself."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanwatt.measurement import Counter, Energy, Provenance
from leanwatt.meter._totals import CounterTotal, Device, PowerTotal
from meter.fakes import RANGE

PACKAGE = Device("package-0", "rapl", "package", 1000.0, range_steps=RANGE, period_seconds=0.001)
GPU = Device("gpu-0", "nvml", "gpu", 1400.0, joules_per_step=1e-3, period_seconds=0.1)
NODE = Device("node", "redfish", "node", 10_000.0, period_seconds=1.0)


class Run:
    """A counter sampled five times a second while it spends `watts`."""

    def __init__(self, device: Device = PACKAGE, start_joules: float = 1000.0, watts: float = 100.0) -> None:
        self.total = CounterTotal(device)
        self.now, self.watts = 50.0, watts
        self.raw = round(start_joules / device.joules_per_step)
        self.total.add(self.now, self.raw)

    def spend(self, seconds: float, *, stopped: bool = False) -> None:
        """Time passes and energy is spent, unseen."""
        device = self.total.device
        self.now += seconds
        self.raw += round(self.watts * seconds / device.joules_per_step)
        if device.range_steps:
            self.raw %= device.range_steps

    def sample(self, seconds: float, step: float = 0.2) -> Counter:
        """Time passes and the counter is read."""
        for _ in range(round(seconds / step)):
            self.spend(step)
            self.total.add(self.now, self.raw)
        return self.total.counter()

    def fail(self, seconds: float, step: float = 0.2) -> Counter:
        """Time passes and the counter cannot be read."""
        for _ in range(round(seconds / step)):
            self.spend(step)
            self.total.add(self.now, None)
        return self.total.counter()


def test_row_04_steady_load_is_within_half_a_percent_in_ten_windows_of_one_second() -> None:
    run = Run()
    for _ in range(10):
        begin, at = run.total.counter(), run.now
        jitter = random.Random(4).uniform(0.9, 1.1)
        energy = Energy.between(begin, run.sample(jitter, step=jitter / 5), run.now - at)
        assert energy.joules == pytest.approx(100.0 * jitter, rel=0.005)
        assert energy.provenance is Provenance.MEASURED


@pytest.mark.parametrize("late", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("below", [1.0, 5.0, 10.0, 15.0, 19.9, 0.1, 7.0, 12.0, 18.0, 3.3])
def test_row_05_a_wrap_costs_at_most_a_tenth_of_a_joule(below: float, late: float) -> None:
    run = Run(start_joules=RANGE * 1e-6 - below)
    run.sample(0.2)
    run.spend(late)
    run.total.add(run.now, run.raw)
    counter = run.total.counter()
    assert counter.joules == pytest.approx(100.0 * (0.2 + late), abs=0.1)
    assert counter.flags["wrap"] == 1


def test_row_06_three_wraps_of_a_small_range_are_exact_to_one_percent() -> None:
    run = Run(Device("package-0", "rapl", "package", 1000.0, range_steps=1_000_000_000))
    counter = run.sample(35.0)
    assert counter.joules == pytest.approx(3500.0, rel=0.01)
    assert counter.flags["wrap"] == 4  # at 0, 10, 20 and 30 s
    assert "gap_may_hide_wrap" not in counter.flags


def test_row_07_a_wrap_of_an_unreadable_range_is_incomplete_and_never_negative() -> None:
    run = Run(Device("package-0", "rapl", "package", 1000.0, range_steps=None))
    begin, at = run.sample(1.0), run.now
    run.raw = 0
    energy = Energy.between(begin, run.sample(1.0), run.now - at)
    assert energy.joules == pytest.approx(80.0)
    assert energy.provenance is Provenance.INCOMPLETE
    assert energy.upper is not None and energy.upper >= 100.0


@pytest.mark.parametrize("before", [200_000.0, 1_000.0])
def test_row_08_a_reset_is_not_taken_for_a_wrap(before: float) -> None:
    run = Run(start_joules=before)
    run.raw, run.now = 3_000_000, run.now + 0.2
    run.total.add(run.now, run.raw)
    counter = run.total.counter()
    assert 0 <= counter.joules <= 3
    assert counter.flags["counter_reset"] == 1
    assert counter.seen_seconds == 0


def test_row_10_one_failed_read_loses_nothing() -> None:
    run = Run()
    run.sample(1.0)
    run.fail(0.2)
    counter = run.sample(1.8)
    assert counter.joules == pytest.approx(300.0)
    assert counter.flags["read_failed"] == 1
    assert counter.seen_seconds == pytest.approx(3.0)


@pytest.mark.parametrize("returns", [False, True])
def test_row_11_a_zone_that_vanishes_half_way_is_half_covered(returns: bool) -> None:
    run = Run()
    begin, at = run.total.counter(), run.now
    run.sample(5.0)
    run.fail(4.8)
    end = run.sample(0.2) if returns else run.fail(0.2)
    energy = Energy.between(begin, end, run.now - at)
    assert energy.coverage == pytest.approx(0.5, abs=0.05)
    assert energy.provenance is Provenance.INCOMPLETE
    assert ("gap" in energy.flags) is returns
    assert energy.joules == pytest.approx(1000.0 if returns else 500.0)
    assert energy.upper is not None and energy.upper >= 1000.0


def test_bounds_of_a_window_that_begins_while_reads_fail_still_hold_its_figure() -> None:
    run = Run()
    begin, at = run.fail(3.0), run.now
    energy = Energy.between(begin, run.sample(1.0), run.now - at)
    assert energy.joules is not None and energy.lower is not None and energy.upper is not None
    assert energy.lower <= energy.joules <= energy.upper


def test_row_12_a_stuck_counter_is_suspect_within_three_seconds() -> None:
    run = Run()
    begin, at = run.sample(1.0), run.now
    run.watts = 0.0
    assert "stuck" not in run.sample(1.8).flags
    end = run.sample(1.0)
    assert "stuck" in end.flags
    run.watts = 100.0
    assert Energy.between(begin, run.sample(1.0), run.now - at).provenance is Provenance.SUSPECT


def test_row_12_a_counter_that_never_moves_again_is_absent_and_not_zero() -> None:
    run = Run()
    begin, at = run.sample(1.0), run.now
    run.watts = 0.0
    energy = Energy.between(begin, run.sample(3.0), run.now - at)
    assert energy.joules is None
    assert energy.provenance is Provenance.ABSENT
    assert "stuck" in energy.flags


@pytest.mark.parametrize(("device", "jump"), [(GPU, 1_000_000.0), (PACKAGE, 100_000.0)])
def test_row_13_a_jump_of_a_megajoule_is_rejected(device: Device, jump: float) -> None:
    """In 0.2 s; a package's counter goes round at 262 kJ and can only jump by less."""
    run = Run(device, start_joules=0)
    begin, at = run.sample(1.0), run.now
    run.raw += round(jump / device.joules_per_step)
    energy = Energy.between(begin, run.sample(1.0), run.now - at)
    assert energy.joules == pytest.approx(80.0)
    assert energy.provenance is Provenance.SUSPECT
    assert "implausible_jump" in energy.flags


@pytest.mark.parametrize("window", [0.005, 0.03, 0.1, 1.0])
def test_row_17_a_window_too_short_for_the_sensor_says_so_and_is_never_a_bare_zero(window: float) -> None:
    """A counter that changes every 100 ms, at 300 W, met at a random phase."""
    chance = random.Random(17)
    for _ in range(200):
        total, phase = CounterTotal(GPU), chance.random()
        total.add(phase, int(phase / 0.1) * 30_000)
        end = phase + window
        begin = total.counter()
        total.add(end, int(end / 0.1) * 30_000)
        energy = Energy.between(begin, total.counter(), window)
        assert "short" in energy.flags
        assert energy.joules != 0
        if energy.joules is not None:
            assert energy.lower is not None and energy.upper is not None
            assert energy.lower <= 300.0 * window <= energy.upper


def test_row_17_a_window_of_fifty_periods_is_not_short() -> None:
    run = Run(GPU, watts=300.0)
    begin, at = run.total.counter(), run.now
    assert Energy.between(begin, run.sample(5.2), run.now - at).flags == ()


def test_row_18_a_gpu_counter_that_is_reset_is_never_negative() -> None:
    run = Run(GPU, watts=300.0)
    begin, at = run.sample(1.0), run.now
    run.raw = 0
    energy = Energy.between(begin, run.sample(1.0), run.now - at)
    assert energy.joules == pytest.approx(240.0)
    assert energy.provenance is Provenance.INCOMPLETE
    assert "counter_reset" in energy.flags


def test_row_25_energy_spent_while_we_were_stopped_is_flagged_as_a_gap() -> None:
    run = Run()
    begin, at = run.sample(1.0), run.now
    run.spend(10.0)
    run.total.add(run.now, run.raw, stopped=True)
    energy = Energy.between(begin, run.sample(1.0), run.now - at)
    assert "gap" in energy.flags
    assert energy.coverage == pytest.approx(1 / 11, abs=0.01)
    assert energy.provenance is Provenance.INCOMPLETE


def test_a_silence_that_may_hide_a_wrap_is_flagged() -> None:
    run = Run()
    run.spend(400.0)
    run.total.add(run.now, run.raw)
    counter = run.total.counter()
    assert counter.flags["gap_may_hide_wrap"] == 1
    assert counter.upper >= 1000.0 * 400


@settings(deadline=None)
@given(
    watts=st.lists(st.floats(0.5, 400.0), min_size=1, max_size=60),
    start=st.integers(0, RANGE - 1),
    failed=st.sets(st.integers(0, 59)),
)
def test_whatever_happens_the_total_never_falls_and_its_bounds_hold_it(
    watts: list[float], start: int, failed: set[int]
) -> None:
    total, raw, truth, before = CounterTotal(PACKAGE), start, 0.0, -1.0
    total.add(0.0, raw)
    for index, each in enumerate(watts):
        steps = round(each * 0.2 * 1e6)
        raw, truth = (raw + steps) % RANGE, truth + steps * 1e-6
        total.add(0.2 * (index + 1), None if index in failed else raw)
        counter = total.counter()
        assert counter.joules >= before
        assert counter.lower <= counter.joules <= counter.upper
        before = counter.joules
    if len(watts) - 1 not in failed:
        assert total.counter().joules == pytest.approx(truth)


def test_power_is_integrated_by_straight_lines() -> None:
    total = PowerTotal(NODE)
    for second, watts in enumerate([100.0, 200.0, 200.0, 0.0]):
        total.add(float(second), watts)
    counter = total.counter()
    assert counter.joules == pytest.approx(150 + 200 + 100)
    assert counter.provenance is Provenance.INTEGRATED
    assert counter.seen_seconds == 3
    assert counter.lower == pytest.approx(counter.joules * 0.95)


def test_power_that_is_lost_or_makes_no_sense_is_a_gap_in_the_coverage() -> None:
    total = PowerTotal(NODE)
    total.add(0.0, 100.0)
    begin = total.counter()
    for second in (1.0, 2.0, 3.0):
        total.add(second, None)
    total.add(3.5, -4.0)
    total.add(3.6, float("nan"))
    total.add(4.0, 100.0)
    total.add(5.0, 100.0)
    total.note("stale")
    energy = Energy.between(begin, total.counter(), 5.0)
    assert energy.joules == pytest.approx(100.0)
    assert energy.coverage == pytest.approx(0.2)
    assert energy.provenance is Provenance.INCOMPLETE
    assert energy.flags == ("gap", "implausible_power", "read_failed", "short", "stale")
    assert energy.upper is not None and energy.upper > 4 * 10_000


def test_power_while_we_were_stopped_is_not_counted() -> None:
    total = PowerTotal(NODE)
    total.add(0.0, 100.0)
    total.add(1.0, 100.0, stopped=True)
    assert total.counter().joules == 0
    assert total.counter().flags == {"gap": 1}
