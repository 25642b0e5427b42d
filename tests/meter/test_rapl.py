"""Rows of the fault table that RAPL's folders can show, on folders laid out as the kernel does."""

import locale
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from leanwatt.errors import MeterError
from leanwatt.measurement import Measurement, Reading
from leanwatt.meter import rapl
from leanwatt.meter._reader import Reader
from leanwatt.meter._zones import ZoneSource, find, read_integer
from leanwatt.meter.rapl import Rapl
from meter.fakes import Clock, Powercap


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path)


class Watched:
    """A reader on a clock that the test moves."""

    def __init__(self, powercap: Powercap) -> None:
        self.clock = Clock()
        self.read = Reader([ZoneSource(find(str(powercap.root)))], clock=self.clock)

    def after(self, seconds: float) -> Reading:
        self.clock.now += seconds
        return self.read()


def test_row_01_no_powercap_is_absent_and_says_what_to_do(tmp_path: Path) -> None:
    assert rapl.status(str(tmp_path / "nothing")).status == "absent"
    with pytest.raises(MeterError, match=r"is not there.*meter: auto") as caught:
        Rapl(root=str(tmp_path / "nothing")).open()
    assert "0.0" not in str(caught.value)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can pass through, which tmp_path is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_row_02_a_counter_that_we_may_not_read_is_denied_and_the_fix_is_one_line(open_folder: Path) -> None:
    powercap = Powercap(open_folder)
    zone = powercap.zone("intel-rapl:0", "package-0")
    (zone / "energy_uj").chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        found = rapl.status(str(powercap.root))
        with pytest.raises(MeterError, match="chmod 440") as caught:
            Rapl(root=str(powercap.root)).open()
    finally:
        if is_root:
            os.seteuid(0)
    assert found.status == "denied"
    assert "chgrp" in found.fix and "\n" not in found.fix + str(caught.value)


@pytest.mark.parametrize("dangling", [False, True])
def test_row_03_an_empty_folder_is_masked(tmp_path: Path, dangling: bool) -> None:
    (tmp_path / "powercap").mkdir()
    if dangling:
        (tmp_path / "powercap" / "intel-rapl").symlink_to("/nowhere")
        (tmp_path / "powercap" / "intel-rapl:0").symlink_to("/nowhere/intel-rapl:0")
    found = rapl.status(str(tmp_path / "powercap"))
    assert found.status == "masked"
    assert "docker run" in found.fix


def test_row_09_a_wrap_of_the_dram_zone_leaves_the_package_alone(powercap: Powercap) -> None:
    package = powercap.zone("intel-rapl:0", "package-0")
    dram = powercap.zone("intel-rapl:0/intel-rapl:0:1", "dram", largest=65_000_000_000, start=64_999_000_000)
    watched = Watched(powercap)
    begin = watched.after(0)
    powercap.spend(package, 30)
    powercap.spend(dram, 5, largest=65_000_000_000)
    spent = Measurement.between("x", begin, watched.after(1)).devices
    assert spent["package-0"].joules == pytest.approx(30)
    assert spent["package-0"].flags == ()
    assert spent["dram-0"].joules == pytest.approx(5)
    assert spent["dram-0"].flags == ("wrap",)


@pytest.mark.parametrize("content", ["", "garbage\n", None])
def test_row_10_an_empty_or_garbled_read_loses_nothing(powercap: Powercap, content: str | None) -> None:
    zone = powercap.zone("intel-rapl:0", "package-0")
    watched = Watched(powercap)
    begin = watched.after(0)
    kept = (zone / "energy_uj").read_text()
    (zone / "energy_uj").unlink()
    if content is not None:
        (zone / "energy_uj").write_text(content)
    watched.after(0.5)
    (zone / "energy_uj").write_text(kept)
    powercap.spend(zone, 300)
    spent = Measurement.between("x", begin, watched.after(0.5)).devices["package-0"]
    assert spent.joules == pytest.approx(300)
    assert spent.coverage == 1
    assert spent.flags == ("read_failed",)


def test_row_14_psys_core_and_uncore_are_never_added(powercap: Powercap) -> None:
    zones = [
        powercap.zone("intel-rapl:0", "package-0"),
        powercap.zone("intel-rapl:0/intel-rapl:0:0", "core"),
        powercap.zone("intel-rapl:0/intel-rapl:0:1", "uncore"),
        powercap.zone("intel-rapl:1", "psys"),
    ]
    mmio = powercap.root / "intel-rapl-mmio:0"
    shutil.copytree(zones[0], mmio)
    watched = Watched(powercap)
    begin = watched.after(0)
    for zone in zones:
        powercap.spend(zone, 27)
    spent = Measurement.between("x", begin, watched.after(1))
    assert list(spent.devices) == ["package-0"]
    assert spent.total.joules == pytest.approx(27)


def test_row_15_two_sockets_and_their_memory(powercap: Powercap) -> None:
    for socket in (0, 1):
        powercap.zone(f"intel-rapl:{socket}", f"package-{socket}", start=1_000_000_000 + socket * 777_000_000)
        powercap.zone(f"intel-rapl:{socket}/intel-rapl:{socket}:0", "dram", start=333_000_000)
    watched = Watched(powercap)
    begin = watched.after(0)
    for socket, package, dram in ((0, 15, 4), (1, 12, 6)):
        powercap.spend(powercap.root / f"intel-rapl:{socket}", package)
        powercap.spend(powercap.root / f"intel-rapl:{socket}/intel-rapl:{socket}:0", dram)
    spent = Measurement.between("x", begin, watched.after(1)).devices
    assert {name: each.joules for name, each in spent.items()} == {
        "package-0": pytest.approx(15),
        "package-1": pytest.approx(12),
        "dram-0": pytest.approx(4),
        "dram-1": pytest.approx(6),
    }
    assert {each.scope for each in spent.values()} == {"package", "dram"}


@pytest.mark.parametrize(
    ("names", "joules"), [(("package-0-die-0", "package-0-die-1"), 10), (("package-0", "package-1"), 20)]
)
def test_row_16_mirrored_dies_count_once_and_sockets_that_start_alike_twice(
    powercap: Powercap, names: tuple[str, str], joules: float
) -> None:
    zones = [powercap.zone(f"intel-rapl:{i}", name, start=1_000_000_000 + i * 900_000) for i, name in enumerate(names)]
    watched = Watched(powercap)
    begin = watched.after(0)
    for zone in zones:
        powercap.spend(zone, 10)
    assert Measurement.between("x", begin, watched.after(1)).total.joules == pytest.approx(joules)


def test_row_16_dies_with_counters_of_their_own_are_both_counted(powercap: Powercap) -> None:
    for die in (0, 1):
        powercap.zone(f"intel-rapl:{die}", f"package-0-die-{die}", start=1_000_000_000 * (die + 1))
    assert [zone.device for zone in find(str(powercap.root)).zones] == ["package-0-die-0", "package-0-die-1"]


@pytest.mark.parametrize("text", ["123\r\n", "  123  \n", "123", "123\n\n"])
def test_row_49_blanks_line_ends_and_the_locale_do_not_matter(tmp_path: Path, text: str) -> None:
    with suppress(locale.Error):
        locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
    try:
        (tmp_path / "energy_uj").write_bytes(text.encode())
        assert read_integer(str(tmp_path / "energy_uj")) == 123
    finally:
        locale.setlocale(locale.LC_NUMERIC, "C")


def test_a_counter_that_stays_at_zero_is_left_out(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0")
    powercap.zone("intel-rapl:0/intel-rapl:0:0", "dram", start=0)
    assert [zone.device for zone in find(str(powercap.root)).zones] == ["package-0"]
    (powercap.root / "intel-rapl:0" / "energy_uj").write_text("0\n")
    assert rapl.status(str(powercap.root)).status == "absent"


def test_unreadable_names_ranges_and_values_are_no_zones(powercap: Powercap) -> None:
    zone = powercap.zone("intel-rapl:0", "package-0", largest=None)
    (zone / "energy_uj").write_text("?")
    assert rapl.status(str(powercap.root)).detail.endswith("no counter can be read")
    (zone / "name").unlink()
    assert find(str(powercap.root)).status == "absent"


def test_the_period_is_measured_and_the_sampler_sees_each_wrap(powercap: Powercap) -> None:
    """With the real clock and sampler: a small range is crossed many times between two edges."""
    zone = powercap.zone("intel-rapl:0", "package-0", start=1, largest=2_000_000)
    stop = threading.Event()

    def drive() -> None:
        file, beside, raw = zone / "energy_uj", zone / "beside", 1
        while not stop.wait(0.01):
            raw = (raw + 100_000) % 2_000_000
            beside.write_text(f"{raw}\n")
            beside.replace(file)

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        found = rapl.status(str(powercap.root))
        with Rapl(root=str(powercap.root), most_watts=20, hertz=20).open() as read:
            begin = read()
            stop.wait(1.0)
            spent = Measurement.between("x", begin, read()).devices["package-0"]
    finally:
        stop.set()
        thread.join()
    assert found.status == "ok" and found.detail == "package-0"
    assert found.period_seconds is not None and 0.009 < found.period_seconds < 0.05
    assert spent.joules is not None and 2 < spent.joules < 11
    assert "wrap" in spent.flags
    assert not any(thread.name == "leanwatt-meter" for thread in threading.enumerate())


@pytest.mark.parametrize("settings", [{"most_watts": -50}, {"most_watts": float("inf")}, {"hertz": float("nan")}])
def test_row_35_limits_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite number above 0"):
        Rapl(**settings)  # type: ignore[arg-type]
