"""The libraries zeus and codecarbon, by FAKE modules in their shape: neither is installed for the tests."""

import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from leanwatt.errors import MeterError, MissingExtraError
from leanwatt.measurement import Measurement, Provenance
from leanwatt.meter import zeus
from leanwatt.meter.codecarbon import Codecarbon
from leanwatt.meter.zeus import Zeus


class FakeZeusError(Exception):
    pass


class FakeGpus:
    def __init__(self) -> None:
        self.millijoules: list[int | None] = [1_000_000, None]

    def __len__(self) -> int:
        return 2

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return self.millijoules[index] is not None

    def get_total_energy_consumption(self, index: int) -> int:
        value = self.millijoules[index]
        if value is None:
            raise FakeZeusError("gone")
        return value


class FakeChip:
    def __init__(self) -> None:
        self.millijoules = 500.0

    def get_total_energy_consumption(self) -> Any:
        each = self.millijoules
        return SimpleNamespace(cpu_total_mj=each, gpu_mj=2 * each, dram_mj=None, efficiency_cores_mj=[each])


@pytest.fixture
def fake_zeus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    world = SimpleNamespace(gpus=FakeGpus(), chip=None)

    def found(name: str) -> Any:
        def get() -> Any:
            if getattr(world, name) is None:
                raise FakeZeusError(f"no {name}")
            return getattr(world, name)

        return get

    modules = {name: ModuleType(name) for name in ("zeus", "zeus.device", "zeus.exception")}
    modules["zeus.device"].get_gpus = found("gpus")  # type: ignore[attr-defined]
    modules["zeus.device"].get_soc = found("chip")  # type: ignore[attr-defined]
    modules["zeus.exception"].ZeusBaseError = FakeZeusError  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return world


def test_zeus_reads_the_gpus_that_have_a_counter(fake_zeus: SimpleNamespace) -> None:
    assert zeus.status().detail == "gpu-0"
    with Zeus().open() as read:
        begin = read()
        fake_zeus.gpus.millijoules[0] += 9000
        middle = read()
        fake_zeus.gpus.millijoules[0] = None
        time.sleep(0.1)
        end = read()
    spent = Measurement.between("x", begin, middle).devices
    assert list(spent) == ["gpu-0"]
    assert spent["gpu-0"].joules == pytest.approx(9)
    assert spent["gpu-0"].provenance is Provenance.MEASURED
    assert "read_failed" in Measurement.between("x", begin, end).devices["gpu-0"].flags


def test_zeus_reads_the_parts_of_a_chip_once(fake_zeus: SimpleNamespace) -> None:
    fake_zeus.gpus, fake_zeus.chip = None, FakeChip()
    with Zeus().open() as read:
        begin = read()
        fake_zeus.chip.millijoules += 1000
        spent = Measurement.between("x", begin, read()).devices
    assert {name: each.joules for name, each in spent.items()} == {"package": 1, "gpu-0": 2}


def test_zeus_without_a_device_says_so(fake_zeus: SimpleNamespace) -> None:
    fake_zeus.gpus = None
    assert zeus.status().status == "absent"
    with pytest.raises(MeterError, match="finds no GPU"):
        Zeus().open()


def test_what_is_not_installed_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zeus", "zeus.device", "codecarbon"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install .leanwatt\[zeus\]."):
        Zeus().open()
    assert zeus.status().fix == "pip install 'leanwatt[zeus]'"
    with pytest.raises(MissingExtraError, match=r"pip install .leanwatt\[codecarbon\]."):
        Codecarbon().open()


class FakeTracker:
    """codecarbon.OfflineEmissionsTracker: hands its totals to the logger it was given, at each flush."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.state: list[str] = []
        self.joules = 0.0

    def start(self) -> None:
        self.state.append("start")

    def flush(self) -> None:
        self.joules += 36.0
        kwh = self.joules / 3.6e6
        total = SimpleNamespace(cpu_energy=kwh, gpu_energy=0.0, ram_energy=2 * kwh)
        self.settings["logging_logger"].out(total, None)

    def stop(self) -> None:
        self.state.append("stop")


@pytest.fixture
def fake_codecarbon(monkeypatch: pytest.MonkeyPatch) -> list[FakeTracker]:
    made: list[FakeTracker] = []

    def tracker(**settings: Any) -> FakeTracker:
        print("noise on stdout")
        made.append(FakeTracker(**settings))
        return made[-1]

    module = ModuleType("codecarbon")
    module.OfflineEmissionsTracker = tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    return made


def test_codecarbon_is_labelled_estimated(
    fake_codecarbon: list[FakeTracker], capsys: pytest.CaptureFixture[str]
) -> None:
    with Codecarbon(country="DEU", every_seconds=2).open() as read:
        begin = read()
        spent = Measurement.between("x", begin, read())
    assert capsys.readouterr().out == ""
    [tracker] = fake_codecarbon
    assert tracker.state == ["start", "stop"]
    assert tracker.settings["country_iso_code"] == "DEU"
    assert tracker.settings["measure_power_secs"] == 2
    assert not tracker.settings["save_to_file"]
    assert {name: each.joules for name, each in spent.devices.items()} == {
        "package": pytest.approx(36),
        "memory": pytest.approx(72),
    }
    assert spent.total.provenance is Provenance.ESTIMATED
    assert spent.total.lower == pytest.approx(36 / 1.47)
    assert spent.total.upper == pytest.approx(36 / 0.26)


@pytest.mark.parametrize("meter", [lambda: Codecarbon(every_seconds=0), lambda: Zeus(most_watts=-1)])
def test_row_35_settings_that_make_no_sense_are_refused(meter: Any) -> None:
    with pytest.raises(ValueError, match="finite number above 0"):
        meter()


def test_row_48_what_a_library_prints_as_it_loads_stays_off_stdout(tmp_path: Any) -> None:
    (tmp_path / "codecarbon.py").write_text("print('noise'); OfflineEmissionsTracker = None\n")
    (tmp_path / "zeus").mkdir()
    (tmp_path / "zeus" / "__init__.py").write_text("print('noise')\n")
    (tmp_path / "zeus" / "exception.py").write_text("class ZeusBaseError(Exception): pass\n")
    device = "from zeus.exception import ZeusBaseError\ndef fail(): raise ZeusBaseError\nget_gpus = get_soc = fail\n"
    (tmp_path / "zeus" / "device.py").write_text(device)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from leanwatt.meter import codecarbon, zeus\n"
        "zeus.status()\n"
        "try: codecarbon.Codecarbon().open()\n"
        "except TypeError: pass\n"
        "print('{}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert done.stderr.count("noise") == 2


@pytest.mark.parametrize("module", ["auto", "rapl", "nvml", "estimate", "redfish", "plug", "prometheus", "_totals"])
def test_a_meter_loads_no_third_party_library(module: str) -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        f"import leanwatt.meter.{module}\n"
        "top = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(name for name in top - set(sys.stdlib_module_names) if not name.startswith('_')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['leanwatt']\n"


def test_opening_no_meter_loads_what_only_others_need() -> None:
    """Each of these takes a tenth of the time that the import of `auto` may take (benchmarks/meter.py)."""
    slow = {"pathlib", "datetime", "json", "difflib", "urllib", "csv", "http", "ssl", "tempfile", "subprocess"}
    program = (
        "import sys; before = set(sys.modules)\n"
        "import leanwatt.meter.auto\n"
        f"print(sorted((set(sys.modules) - before) & {slow}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
