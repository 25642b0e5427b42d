"""Rows of the fault table about machines without sensors, and what `auto` and `replay` do."""

import csv
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanwatt.doctor import statuses
from leanwatt.errors import MeterError
from leanwatt.measurement import Measurement, Provenance, why_not_comparable
from leanwatt.meter import _cpu_share, _gpus, _zones, auto, estimate, replay
from leanwatt.meter._cpu_share import CpuShareSource, look_up, table
from leanwatt.meter._reader import Reader
from leanwatt.meter.auto import Auto
from leanwatt.meter.estimate import Estimate
from leanwatt.meter.replay import Replay
from meter import fakes
from meter.fakes import Clock, Powercap


@pytest.fixture
def no_sensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_zones, "ROOTS", (str(tmp_path / "nowhere"),))
    monkeypatch.setitem(sys.modules, "pynvml", None)


def spent_at(
    monkeypatch: pytest.MonkeyPatch, loads: list[float], step: float = 0.2, threads: float = 4.0
) -> Measurement:
    """What a process is charged that keeps `loads` of its threads busy, a step each."""
    clock, cpu = Clock(), Clock()
    monkeypatch.setattr(_cpu_share, "own_cpu_seconds", cpu)
    monkeypatch.setattr("leanwatt.meter._reader.own_cpu_seconds", cpu)
    read = Reader([CpuShareSource(look_up("AMD EPYC 8024P", threads))], clock=clock)
    begin = read()
    for load in loads:
        clock.now += step
        cpu.now += step * load * threads
        read.sample()
    return Measurement.between("x", begin, read())


def test_row_01_without_sensors_every_figure_is_an_estimate_and_none_is_zero(no_sensors: None) -> None:
    with Auto().open() as read:
        begin = read()
        sum(range(300_000))
        spent = Measurement.between("x", begin, read())
    assert auto.chosen() == ("estimate",)
    assert {each.provenance for each in spent.devices.values()} == {Provenance.ESTIMATED}
    assert all(each.joules for each in spent.devices.values())
    assert spent.total.scope == "package"


def test_row_36_a_known_cpu_takes_its_share_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    tdp = look_up("AMD EPYC 8024P 8-Core Processor", 4)
    assert (tdp.watts, tdp.is_guess, tdp.band) == (22.5, False, 3.2)
    spent = spent_at(monkeypatch, [1.0] * 50).devices["package"]
    assert spent.joules == pytest.approx(22.5 * 10 * 0.761)
    assert spent.lower == pytest.approx(22.5 * 10 * 0.761 / 3.2)
    assert spent.upper == pytest.approx(22.5 * 10 * 0.761 * 3.2)
    assert spent.provenance is Provenance.ESTIMATED


@pytest.mark.parametrize(
    "model", ["AMD EPYC", "Intel(R) Xeon(R) Processor", "Intel Xeon Processor (Icelake)", "", None]
)
def test_row_36_the_model_of_a_virtual_machine_is_a_guess_with_a_wider_band(model: str | None) -> None:
    tdp = look_up(model, 2)
    assert tdp.is_guess and tdp.watts == 8
    assert tdp.band >= 2.9
    assert tdp.band == pytest.approx(math.exp(math.hypot(math.log(3.2), math.log(3))), rel=0.02)
    assert "guess" in tdp.basis


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz", "Xeon Gold 6248R"),
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "Xeon Gold 6248"),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", "Xeon E5-2680 v4"),
        ("Intel(R) Xeon(R) Platinum 8480+", "Xeon Platinum 8480+"),
        ("12th Gen Intel(R) Core(TM) i7-12700K", "Core i7-12700K"),
        ("AMD Ryzen 7 5800X3D 8-Core Processor", "Ryzen 7 5800X3D"),
        ("AMD EPYC 7763 64-Core Processor", "EPYC 7763"),
    ],
)
def test_the_table_knows_the_names_that_kernels_give(name: str, model: str) -> None:
    assert look_up(name, 2).basis.startswith(f"{model}: ")


def test_every_row_of_the_table_has_a_plausible_figure_a_year_and_a_source() -> None:
    rows = table()
    assert len(rows) > 90
    assert len({row.model for row in rows}) == len(rows)
    for row in rows:
        assert look_up(row.model, 1).basis.startswith(f"{row.model}: ")
        assert 1.2 < row.watts / row.threads < 12, row
        assert 2010 <= row.year <= 2026 and row.source and row.threads % 2 == 0


def test_every_row_of_the_table_names_the_tables_that_agree_or_says_that_none_does() -> None:
    lines = (Path(_cpu_share.__file__).parents[1] / "tables" / "tdp.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines):
        assert set(row["checked"].split()) <= {"codecarbon", "boaviztapi"}
        assert bool(row["checked"]) != row["source"].endswith("unverified"), row


def test_row_37_the_shape_of_the_load_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    steady = spent_at(monkeypatch, [0.5] * 200).total.joules
    for period in (1.0, 4.0):
        half = round(period / 2 / 0.2)
        square = spent_at(monkeypatch, (([1.0] * half + [0.0] * half) * 100)[:200]).total.joules
        assert square == pytest.approx(steady, rel=0.05)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 5.0, 20.0])
def test_row_38_full_load_is_full_load_in_windows_of_any_length(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    spent = spent_at(monkeypatch, [1.0] * round(seconds / 0.1), step=0.1)
    assert spent.cpu_seconds / (4 * spent.seconds) == pytest.approx(1.0, abs=0.02)


@settings(deadline=None)
@given(parts=st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_row_31_the_parts_of_a_stage_give_the_whole(parts: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = spent_at(patch, parts).total.joules
        assert whole == pytest.approx(math.fsum(spent_at(patch, [part]).total.joules or 0.0 for part in parts))


def test_the_line_stays_near_the_curve_that_it_stands_for() -> None:
    for percent in range(10, 101):
        u = percent / 100
        line, curve = _cpu_share.IDLE_SHARE + _cpu_share.BUSY_SHARE * u, 0.02 + 0.70 * u**0.6
        assert abs(line / curve - 1) < 0.11


BUSY = "import time\nwhile time.process_time() < 0.3: pass"
"""0.3 seconds of CPU time, however fast the machine is."""


def test_finished_children_are_charged(no_sensors: None) -> None:
    with Estimate().open() as read:
        begin = read()
        subprocess.run([sys.executable, "-c", BUSY], check=True)
        spent = Measurement.between("x", begin, read())
    assert spent.cpu_seconds > 0.2


def test_row_28_ranks_share_the_idle_power_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    spent = spent_at(monkeypatch, [1.0] * 50)
    assert spent.total.joules == pytest.approx(22.5 * 10 * 0.606)
    assert "memory" not in spent.devices


def test_memory_stands_apart_and_has_its_own_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu_share, "memory_bytes", lambda: 10 * 10**9)
    spent = spent_at(monkeypatch, [0.0] * 50)
    memory = spent.devices["memory"]
    assert (memory.joules, memory.lower, memory.upper) == (
        pytest.approx(30), pytest.approx(20), pytest.approx(54)
    )  # fmt: skip
    assert spent.total.joules == spent.devices["package"].joules
    assert why_not_comparable(memory, spent.devices["package"]) == "their scope differs: memory and package"


@pytest.mark.parametrize("watts", [-50.0, 0.0, float("nan"), float("inf")])
def test_row_35_a_tdp_that_makes_no_sense_is_refused(watts: float) -> None:
    with pytest.raises(ValueError, match="tdp_watts must be a finite number above 0"):
        Estimate(tdp_watts=watts)


def test_a_tdp_from_the_study_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "usable_cpus", lambda: 8.0)
    assert Estimate(tdp_watts=100, threads=16).tdp().watts == 50
    assert Estimate(tdp_watts=100).tdp().watts == 100 * 8 / (os.cpu_count() or 1)
    assert not Estimate(tdp_watts=100, threads=16).tdp().is_guess


def test_a_guess_is_flagged_in_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "cpu_model", lambda: "AMD EPYC")
    with Estimate().open() as read:
        begin = read()
        spent = Measurement.between("x", begin, read())
    assert spent.total.flags == ("tdp_guessed",)
    assert not spent.is_spoiled
    assert "4 W per hardware thread" in estimate.status().detail and estimate.status().fix


def test_auto_reads_rapl_and_nvml_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    powercap, library = Powercap(tmp_path), fakes.Nvml()
    zone = powercap.zone("intel-rapl:0", "package-0")
    monkeypatch.setattr(_zones, "ROOTS", (str(powercap.root),))
    monkeypatch.setattr(_gpus, "PROBE_SECONDS", 0.01)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with Auto().open() as read:
        begin = read()
        powercap.spend(zone, 1.5)
        library.millijoules = [5_000_900]
        time.sleep(0.02)  # In less time 1.5 J are more than a package can draw, and would be taken for a fault.
        spent = Measurement.between("x", begin, read())
    assert auto.chosen() == ("rapl", "nvml")
    assert {name: each.joules for name, each in spent.devices.items() if name != "memory"} == {
        "package-0": pytest.approx(1.5),
        "gpu-0": pytest.approx(0.9),
    }
    assert spent.total.source == "nvml+rapl"
    assert [each.status for each in statuses()[:2]] == ["ok", "ok"]


def test_auto_with_a_gpu_and_no_rapl_estimates_the_cpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch, no_sensors: None
) -> None:
    library = fakes.Nvml()
    monkeypatch.setattr(_gpus, "PROBE_SECONDS", 0.01)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with Auto().open() as read:
        begin = read()
        library.millijoules = [5_000_900]
        spent = Measurement.between("x", begin, read())
    assert auto.chosen() == ("nvml", "estimate")
    assert spent.devices["gpu-0"].provenance is Provenance.MEASURED
    assert spent.total.provenance is Provenance.ESTIMATED
    assert spent.total.scope == "gpu+package"
    assert library.opened == 0


def test_a_recorded_run_is_read_again(tmp_path: Path) -> None:
    with Estimate().open() as read:
        readings = [read(), replace(read(), other_cpu_seconds=None)]
    replay.record(tmp_path / "run.jsonl", readings)
    with Replay(str(tmp_path / "run.jsonl")).open() as again:
        assert [again(), again()] == readings
        with pytest.raises(MeterError, match="holds 2 readings"):
            again()


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"devices": {}}', '{"devices": {"a": {}}}'])
def test_a_run_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "run.jsonl"
    with pytest.raises(MeterError, match="cannot be read"):
        Replay(str(file)).open()
    file.write_text(f"\n{line}\n")
    with pytest.raises(MeterError, match="line 2 is no reading"):
        Replay(str(file)).open()
