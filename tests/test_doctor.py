"""What `leanwatt doctor` says of each source: found or not, how often it changes, and what would help."""

import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from meter import fakes
from meter.fakes import Powercap
from meter.test_http import Server, power, server  # noqa: F401

from leanwatt import doctor, verbs
from leanwatt.doctor import SOURCES, statuses
from leanwatt.errors import StudyError, UnknownNameError
from leanwatt.measurement import SourceStatus
from leanwatt.meter import _gpus, _http, _zones
from leanwatt.recipe import Choice


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without sensors and without optional libraries."""
    monkeypatch.setattr(_zones, "ROOTS", (str(tmp_path / "nowhere"),))
    monkeypatch.setattr(_gpus, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 0.5)
    for name in ("pynvml", "zeus", "zeus.device"):
        monkeypatch.setitem(sys.modules, name, None)


def found(named: Choice | None = None) -> dict[str, SourceStatus]:
    return {status.source: status for status in statuses(named)}


def test_every_source_has_a_status_and_what_is_not_there_says_what_would_help() -> None:
    all_of_them = statuses()
    assert tuple(status.source for status in all_of_them) == SOURCES
    assert {name: each.status for name, each in found().items() if name != "codecarbon"} == {
        **{name: "absent" for name in SOURCES if name not in ("codecarbon", "estimate")},
        "estimate": "ok",
    }
    for status in all_of_them:
        assert status.detail and "\n" not in status.detail + status.fix
    assert found()["zeus"].fix == "pip install 'leanwatt[zeus]'"
    assert found()["nvml"].fix == "pip install nvidia-ml-py"


@pytest.mark.parametrize("name", ["redfish", "plug", "prometheus"])
def test_a_meter_on_the_network_is_absent_until_it_has_an_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = found()[name]
    assert (status.status, status.detail) == ("absent", "no address is given")
    example = status.fix.split("'")[1]
    [choice] = [verbs._meter(example)]
    assert choice.name == name
    monkeypatch.setattr(_http, "TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", _refuse)
    assert found(choice)[name].detail.startswith(f"meter: {name} gives no value (unreachable)")


def _refuse(*_args: Any, **_kwargs: Any) -> None:
    raise OSError("no network in a test")


def test_an_address_is_asked_and_its_period_measured(server: Server) -> None:  # noqa: F811
    watts = [100]

    def answer() -> tuple[int, object]:
        watts[0] += 1
        return power(watts[0])()

    server.answer = answer
    status = found(Choice("meter", "redfish", {"url": server.url, "every_seconds": 0.05}))["redfish"]
    assert (status.status, status.detail) == ("ok", "node")
    assert status.period_seconds is not None and 0.05 <= status.period_seconds < 0.6  # We look five times a second.


def test_a_meter_that_wants_a_password_is_denied_and_names_the_variables(server: Server) -> None:  # noqa: F811
    server.answer = lambda: (401, {})
    status = found(Choice("meter", "redfish", {"url": server.url}))["redfish"]
    assert status.status == "denied"
    assert status.fix == "set LEANWATT_REDFISH_USER and LEANWATT_REDFISH_PASSWORD"


def test_the_period_of_local_counters_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    powercap, library, stop = Powercap(tmp_path), fakes.Nvml(), threading.Event()
    zone = powercap.zone("intel-rapl:0", "package-0")
    monkeypatch.setattr(_zones, "ROOTS", (str(powercap.root),))
    monkeypatch.setattr(_gpus, "PROBE_SECONDS", 0.5)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def drive() -> None:
        while not stop.wait(0.02):
            (zone / "next").write_text(f"{time.monotonic_ns()}\n")
            (zone / "next").replace(zone / "energy_uj")
            library.millijoules = [(library.millijoules[0] or 0) + 5]

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        both = found()
    finally:
        stop.set()
        thread.join()
    for name in ("rapl", "nvml"):
        assert both[name].status == "ok"
        assert both[name].period_seconds == pytest.approx(0.02, abs=0.018)


def test_zeus_is_watched_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    gpus = SimpleNamespace(
        __len__=lambda self: 1,
        supports_get_total_energy_consumption=lambda index: True,
        get_total_energy_consumption=lambda index: int((time.monotonic() - began) / 0.05) * 1000,
    )
    modules = {name: ModuleType(name) for name in ("zeus", "zeus.device", "zeus.exception")}
    one = type("One", (), {"__len__": lambda self: 1})()
    vars(one).update(vars(gpus))
    modules["zeus.exception"].ZeusBaseError = type("ZeusBaseError", (Exception,), {})  # type: ignore[attr-defined]
    modules["zeus.device"].get_gpus = lambda: one  # type: ignore[attr-defined]
    modules["zeus.device"].get_soc = _no_chip(modules["zeus.exception"])  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    status = found()["zeus"]
    assert (status.status, status.detail) == ("ok", "gpu-0")
    assert status.period_seconds == pytest.approx(0.05, abs=0.03)


def _no_chip(exception: Any) -> Any:
    def get() -> Any:
        raise exception.ZeusBaseError

    return get


def test_a_named_library_that_is_not_installed_is_absent() -> None:
    status = found(Choice("meter", "zeus"))["zeus"]
    assert status.status == "absent" and "pip install 'leanwatt[zeus]'" in status.detail


@pytest.mark.parametrize("text", ["{", "[]", "{a: 1, b: 2}", "3"])
def test_a_meter_that_is_no_meter_is_refused(text: str) -> None:
    with pytest.raises(StudyError, match="meter: got"):
        verbs.doctor(text)


def test_a_name_that_is_no_source_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'rapl'"):
        verbs.doctor("rapll")


def test_a_setting_that_cannot_be_is_refused() -> None:
    with pytest.raises(StudyError, match="url must start with http"):
        verbs.doctor("{plug: {url: nowhere, kind: shelly}}")
