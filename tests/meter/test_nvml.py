"""Rows of the fault table that GPUs can show, against a stand-in for NVIDIA's library."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from leanwatt.errors import MeterError
from leanwatt.measurement import Measurement, Provenance, Reading
from leanwatt.meter import _gpus, nvml
from leanwatt.meter._gpus import GpuSource, find, is_ours, synchronize
from leanwatt.meter._reader import Reader
from leanwatt.meter.nvml import Nvml
from meter import fakes
from meter.fakes import Clock


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpus, "PROBE_SECONDS", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> fakes.Nvml:
    fake = fakes.Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


class Watched:
    """A reader on a clock that the test moves, at 300 W."""

    def __init__(self, library: fakes.Nvml) -> None:
        self.clock, self.library = Clock(), library
        self.read = Reader([GpuSource(find(library))], clock=self.clock)

    def after(self, seconds: float, watts: float = 300.0) -> Reading:
        for _ in range(round(seconds / 0.1)):
            self.clock.now += 0.1
            self.library.millijoules = [
                each if each is None else each + round(watts * 100) for each in self.library.millijoules
            ]
            self.read.sample()
        return self.read()


def test_the_energy_counter_is_measured(library: fakes.Nvml) -> None:
    watched = Watched(library)
    begin = watched.after(0)
    spent = Measurement.between("x", begin, watched.after(10)).total
    assert spent.joules == pytest.approx(3000)
    assert (spent.provenance, spent.scope, spent.source) == (Provenance.MEASURED, "gpu", "nvml")
    assert spent.flags == ()


def test_row_19_a_gpu_that_is_lost_leaves_what_was_read(library: fakes.Nvml) -> None:
    watched = Watched(library)
    begin = watched.after(0)
    watched.after(8)
    library.millijoules = [None]
    spent = Measurement.between("x", begin, watched.after(2)).devices["gpu-0"]
    assert spent.joules == pytest.approx(2400)
    assert spent.coverage == pytest.approx(0.8)
    assert spent.provenance is Provenance.INCOMPLETE
    assert "read_failed" in spent.flags


def test_row_20_without_a_counter_power_is_integrated(library: fakes.Nvml) -> None:
    library.millijoules = [None]
    watched = Watched(library)
    begin = watched.after(0)
    spent = Measurement.between("x", begin, watched.after(60)).total
    assert spent.joules == pytest.approx(18_000)
    assert spent.provenance is Provenance.INTEGRATED
    library.milliwatts = [None]
    assert Measurement.between("x", begin, watched.after(60)).total.provenance is Provenance.INCOMPLETE


def test_row_20_without_any_sensor_a_gpu_is_absent(library: fakes.Nvml) -> None:
    library.millijoules, library.milliwatts = [None], [None]
    assert nvml.status().status == "absent"
    assert "neither an energy counter nor a power sensor" in nvml.status().detail


def test_row_20_a_sliced_gpu_is_absent_and_its_neighbour_is_read(library: fakes.Nvml) -> None:
    library.millijoules, library.milliwatts, library.sliced = [1, 1], [1, 1], {0}
    assert [gpu.name for gpu in find().gpus] == ["gpu-1"]
    library.nvmlDeviceGetMigMode = lambda handle: [library._shown(None)]  # type: ignore[method-assign]
    assert [gpu.name for gpu in find().gpus] == ["gpu-0", "gpu-1"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("2,3", [2, 3]),
        (" 3 , 2 ", [3, 2]),
        ("2,2", [2]),
        ("GPU-50000000-aaaa", [5]),
        ("GPU-6", [6]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("9", []),
        ("MIG-1234", []),
    ],
)
def test_row_21_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, library: fakes.Nvml, visible: str | None, expected: list[int]
) -> None:
    library.__init__(8)  # type: ignore[misc]
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find()
    assert [gpu.name for gpu in found.gpus] == [f"gpu-{index}" for index in expected]
    assert (found.status == "ok") is bool(expected)
    assert expected or "none visible" in found.detail


def test_row_22_a_second_process_on_the_gpu_is_contention(library: fakes.Nvml) -> None:
    watched = Watched(library)
    begin = watched.after(0)
    library.pids = [os.getpid()]
    assert not Measurement.between("x", begin, watched.after(6)).is_spoiled
    library.pids = [os.getpid(), 1]
    spent = Measurement.between("x", begin, watched.after(6))
    assert "contended" in spent.total.flags
    assert spent.is_spoiled


def test_row_22_our_children_are_no_neighbours_and_init_is() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert is_ours(child.pid) and is_ours(os.getpid())
    finally:
        child.communicate(b"\n")
    assert not is_ours(child.pid)
    assert not is_ours(1)


def test_row_22_in_a_container_one_unknown_process_may_be_us(
    monkeypatch: pytest.MonkeyPatch, library: fakes.Nvml
) -> None:
    [gpu] = find().gpus
    library.pids = [1]
    monkeypatch.setattr(_gpus, "cuda_is_used", lambda: True)
    assert not gpu.is_shared()
    monkeypatch.setattr(_gpus, "cuda_is_used", lambda: False)
    assert gpu.is_shared()
    monkeypatch.setattr(
        library, "nvmlDeviceGetComputeRunningProcesses", lambda handle: library._shown(None), raising=False
    )
    assert not gpu.is_shared()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (fakes.NotFound("NVML Shared Library Not Found"), "absent", "no NVIDIA driver"),
        (fakes.NotLoaded("Driver Not Loaded"), "absent", "no NVIDIA driver"),
        (fakes.NoPermission("Insufficient Permissions"), "denied", "refuses us"),
        (fakes.Mismatch("RM has detected an NVML/RM version mismatch."), "denied", "updated under us"),
        (fakes.NVMLError("Unknown Error"), "absent", "the driver fails"),
    ],
)
def test_row_23_a_driver_that_fails_is_one_clean_sentence(
    library: fakes.Nvml, error: fakes.NVMLError, status: str, words: str
) -> None:
    library.init_error = error
    found = nvml.status()
    assert found.status == status
    assert words in found.detail and found.fix
    with pytest.raises(MeterError, match=words):
        Nvml().open()


def test_row_23_without_the_package_the_fix_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.status().fix == "pip install nvidia-ml-py"


def test_row_23_beside_the_retired_package_of_the_same_name_nothing_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The old `pynvml` warns as it is loaded, and hands over to `nvidia-ml-py`; here warnings are errors."""
    retired = "import warnings; warnings.warn('deprecated', FutureWarning)\nfrom meter.fakes import *\n"
    (tmp_path / "pynvml.py").write_text(retired)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _gpus._pynvml().__file__ == str(tmp_path / "pynvml.py")
    sys.modules.pop("pynvml")


def test_row_23_a_driver_that_fails_later_is_closed_again(library: fakes.Nvml) -> None:
    library.nvmlDeviceGetCount = lambda: library._shown(None)  # type: ignore[method-assign]
    assert nvml.status().status == "absent"
    assert library.opened == 0


def test_the_real_library_tells_what_it_finds_here() -> None:
    """Wherever this runs, with a GPU or without."""
    found = nvml.status()
    assert (found.status == "ok") is bool(find().gpus)
    assert found.detail


def test_what_is_opened_is_closed(library: fakes.Nvml) -> None:
    with Nvml().open() as read:
        assert list(read().devices) == ["gpu-0"]
        assert library.opened == 1
    assert library.opened == 0
    assert nvml.status().detail == "gpu-0 Fake H100 (energy counter)"
    assert library.opened == 0


def test_the_period_is_measured(library: fakes.Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpus, "PROBE_SECONDS", 0.5)
    start = time.perf_counter()
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle: int(  # type: ignore[method-assign]
        (time.perf_counter() - start) / 0.05
    )
    assert nvml.status().period_seconds == pytest.approx(0.05, rel=0.6)


def test_work_given_to_the_gpu_is_waited_for_where_torch_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 3,
        memory_reserved=lambda index: 7 * (index != 1),
        synchronize=waited.append,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    synchronize()
    assert waited == [0, 2]
    cuda.is_initialized = lambda: False
    synchronize()
    monkeypatch.delitem(sys.modules, "torch")
    synchronize()
    assert waited == [0, 2]
    assert "torch" not in sys.modules


def test_a_limit_that_cannot_be_read_is_the_most_any_gpu_draws(library: fakes.Nvml) -> None:
    [gpu] = find().gpus
    assert gpu.most_watts() == 1400
    library.nvmlDeviceGetEnforcedPowerLimit = lambda handle: library._shown(None)  # type: ignore[method-assign]
    assert gpu.most_watts() == 2000
