"""Rows of the fault table about sensors over HTTP, against a server on this machine."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from leanwatt.errors import MeterError
from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.meter import _http
from leanwatt.meter._http import Endpoint, PolledSource, Poller, UnreadableError
from leanwatt.meter._totals import CounterTotal, Device, PowerTotal
from leanwatt.meter.plug import Plug
from leanwatt.meter.prometheus import Prometheus, _series, _Source
from leanwatt.meter.redfish import Redfish, _Sensor

Answer = Callable[[], tuple[int, object]]


class Server(ThreadingHTTPServer):
    """Answers whatever the test says, and remembers what it was asked."""

    daemon_threads = True
    answer: Answer
    asked: list[str]
    authorization: list[str | None]
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.authorization.append(self.headers["Authorization"])
        code, body = self.server.answer()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(code)
            for name, value in self.server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client did not wait

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked, made.authorization, made.headers = [], [], {}
    made.answer = lambda: (200, {"PowerControl": [{"PowerConsumedWatts": 200}]})
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def power(watts: object) -> Answer:
    return lambda: (200, {"PowerControl": [{"PowerConsumedWatts": watts}]})


def redfish(server: Server, **settings: float) -> Redfish:
    return Redfish(url=f"{server.url}/redfish/v1/Chassis/1/Power", every_seconds=0.05, **settings)  # type: ignore[arg-type]


def test_redfish_power_is_integrated_over_the_whole_node(server: Server) -> None:
    with redfish(server).open() as read:
        begin = read()
        time.sleep(0.5)
        spent = Measurement.between("x", begin, read())
    assert spent.total.joules == pytest.approx(200 * spent.seconds, rel=0.01)
    assert (spent.total.scope, spent.total.provenance) == ("node", Provenance.INTEGRATED)
    assert set(server.asked) == {"/redfish/v1/Chassis/1/Power"}


@pytest.mark.parametrize(
    ("answer", "flag"),
    [
        ((401, {}), "unauthorized"),
        ((503, {}), "http_503"),
        ((302, {}), "http_302"),
        ((200, b"<html>"), "garbled"),
        ((200, []), "garbled"),
        ((200, {}), "no_value"),
        ((200, {"PowerControl": [{"PowerConsumedWatts": None}]}), "no_value"),
        ((200, {"Reading": 0.2, "ReadingUnits": "kW.h"}), "wrong_unit"),
    ],
)
def test_row_45_what_is_no_power_figure_is_refused_by_name(
    server: Server, answer: tuple[int, object], flag: str
) -> None:
    server.answer = lambda: answer
    server.headers = {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(MeterError, match=f"redfish gives no value .{flag}."):
        redfish(server).open()
    assert "/elsewhere" not in server.asked


@pytest.mark.parametrize("answer", [(401, {}), (503, {}), (200, {"PowerControl": [{"PowerConsumedWatts": None}]})])
def test_row_45_a_sensor_lost_in_between_lowers_the_coverage(
    server: Server, answer: tuple[int, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "TIMEOUT_SECONDS", 0.5)
    with redfish(server).open() as read:
        begin = read()
        time.sleep(0.8)
        server.answer = lambda: answer
        time.sleep(1.0)
        spent = Measurement.between("x", begin, read()).total
    assert 0.1 < spent.coverage < 0.9
    assert spent.upper is not None and spent.upper > 200 * 1.8
    assert spent.provenance is Provenance.INCOMPLETE
    assert {"unauthorized", "http_503", "no_value"} & set(spent.flags)
    assert "read_failed" in spent.flags


def test_row_45_a_server_that_hangs_delays_nobody(server: Server) -> None:
    with redfish(server).open() as read:
        read()
        server.answer = lambda: (time.sleep(10), (200, {}))[1]
        time.sleep(0.2)
        started = time.monotonic()
        for _ in range(100):
            read()
        edges = time.monotonic() - started
        started = time.monotonic()
    assert edges < 0.5
    assert time.monotonic() - started < 2


def test_row_45_a_server_that_hangs_at_the_start_is_given_up_after_two_seconds(server: Server) -> None:
    server.answer = lambda: (time.sleep(10), (200, {}))[1]
    started = time.monotonic()
    with pytest.raises(MeterError, match="unreachable"):
        redfish(server).open()
    assert time.monotonic() - started < 3


def test_row_45_a_reading_whose_own_time_stands_still_is_stale(server: Server) -> None:
    server.answer = lambda: (200, {"Reading": 150.5, "ReadingUnits": "W", "ReadingTime": "2026-01-01T00:00:00Z"})
    sensor = _Sensor(Endpoint(server.url), stale_seconds=0.05)
    assert sensor.watts() == 150.5
    time.sleep(0.1)
    with pytest.raises(UnreadableError, match="stale"):
        sensor.watts()
    server.answer = lambda: (200, {"PowerWatts": {"Reading": 99}})
    assert sensor.watts() == 99


def test_credentials_come_from_the_environment_and_are_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANWATT_REDFISH_USER", "someone")
    monkeypatch.setenv("LEANWATT_REDFISH_PASSWORD", "hunter2")
    server.headers = {"WWW-Authenticate": 'Basic realm="bmc"'}
    expected = "Basic " + base64.b64encode(b"someone:hunter2").decode()
    server.answer = lambda: power(200)() if server.authorization[-1] == expected else (401, {})
    with redfish(server).open() as read:
        assert read().devices["node"].source == "redfish"
    server.answer = lambda: (401, {})
    with pytest.raises(MeterError) as caught:
        redfish(server).open()
    endpoint = _http.endpoint(server.url, "REDFISH")
    assert "hunter2" not in f"{caught.value} {endpoint!r} {caught.value.__context__!r}"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "bmc.example", "https://", "http://someone:hunter2@bmc.example"])
def test_an_address_that_is_none_or_holds_a_password_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must") as caught:
        Redfish(url=url)
    assert "hunter2" not in str(caught.value)


SHELLY = {"apower": 120.5, "aenergy": {"total": 1000.25}}
TASMOTA = {"StatusSNS": {"ENERGY": {"Power": 120, "Total": 1.5}}}


@pytest.mark.parametrize(("kind", "answer", "watts"), [("shelly", SHELLY, 120.5), ("tasmota", TASMOTA, 120)])
def test_a_plug_tells_its_power(server: Server, kind: Any, answer: object, watts: float) -> None:
    server.answer = lambda: (200, answer)
    with Plug(url=f"{server.url}/", kind=kind, every_seconds=0.05).open() as read:
        begin = read()
        time.sleep(0.3)
        spent = Measurement.between("x", begin, read())
    assert spent.total.joules == pytest.approx(watts * spent.seconds, rel=0.01)
    assert spent.total.scope == "node"
    assert server.asked[0] in ("/rpc/Switch.GetStatus?id=0", "/cm?cmnd=Status%2010")


@pytest.mark.parametrize("kind", ["shelly", "tasmota"])
def test_a_plug_tells_its_energy(server: Server, kind: Any) -> None:
    watt_hours = [1000.0]

    def answer() -> tuple[int, object]:
        total = watt_hours[0]
        if kind == "shelly":
            return 200, {"aenergy": {"total": total}}
        return 200, {"StatusSNS": {"ENERGY": {"Total": total / 1000}}}

    server.answer = answer
    with Plug(url=server.url, kind=kind, read="energy", every_seconds=0.02).open() as read:
        begin = read()
        watt_hours[0] += 1
        time.sleep(0.2)
        spent = Measurement.between("x", begin, read()).total
    assert spent.joules == pytest.approx(3600)
    assert spent.provenance is Provenance.MEASURED
    assert "short" in spent.flags


@pytest.mark.parametrize("read", ["power", "energy"])
@pytest.mark.parametrize("body", [{}, [], {"apower": True, "aenergy": {"total": "1"}}])
def test_a_plug_without_a_figure_is_refused(server: Server, read: Any, body: object) -> None:
    server.answer = lambda: (200, body)
    with pytest.raises(MeterError, match="no_value"):
        Plug(url=server.url, kind="shelly", read=read).open()


class Told:
    """A poller that says what the test says."""

    every_seconds = 1.0

    def __init__(self) -> None:
        self.polled = _http.Polled(0, 0.0, None)

    def say(self, at: float, value: Any, flag: str = "") -> None:
        self.polled = _http.Polled(self.polled.number + 1, at, value, flag)

    def last(self) -> Any:
        return self.polled

    def close(self) -> None:
        pass


def test_row_46_the_step_of_a_plug_is_in_the_bounds_and_a_reboot_is_flagged() -> None:
    """1 Wh steps at 120 W: one step in 30 s."""
    device = Device("node", "plug", "node", 3680.0, 3.6, slack_joules=3600.0, stuck_seconds=float("inf"))
    poller, now = Told(), time.monotonic()
    source = PolledSource(poller, CounterTotal(device))  # type: ignore[arg-type]

    def run(seconds: int, offset: int = 0) -> None:
        nonlocal now
        for _ in range(seconds):
            now += 1
            poller.say(now, ((round(now - started) - offset) * 120 // 3600) * 3600.0)
            source.tick(now, False)

    started = now
    run(50)
    begin = source.counters()["node"]
    run(310)
    energy = Energy.between(begin, source.counters()["node"], 310)
    assert energy.joules is not None and abs(energy.joules - 310 * 120) <= 3600
    assert energy.period_seconds == pytest.approx(30)
    assert energy.lower is not None and energy.upper is not None
    assert energy.upper - energy.lower >= 2 * 3600
    assert energy.lower <= 310 * 120 <= energy.upper
    assert energy.flags == ("short",)
    run(10, offset=360)
    assert source.counters()["node"].flags["counter_reset"] == 1


def test_a_value_is_held_for_a_few_rounds_and_then_lost() -> None:
    poller, now = Told(), time.monotonic()
    source = PolledSource(poller, PowerTotal(Device("node", "plug", "node", 3680.0)))  # type: ignore[arg-type]
    for second in range(20):
        if second < 5:
            poller.say(now + second, 100.0)
        elif second < 7:
            poller.say(now + second, None, "unreachable")
        source.tick(now + second, False)
    counter = source.counters()["node"]
    assert counter.joules == pytest.approx(900)
    assert counter.seen_seconds == pytest.approx(9)
    assert counter.flags["unreachable"] == 2
    assert counter.flags["read_failed"] == 10


def matrix(values: list[list[object]], **labels: str) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": labels, "values": values}]}}


def test_prometheus_counters_are_read_by_their_raw_samples(server: Server) -> None:
    began = time.time()

    def answer() -> tuple[int, object]:
        steps = int((time.time() - began) / 0.1)
        samples: list[list[object]] = [[began + 0.1 * i, str(5e6 + 30_000 * i)] for i in range(steps + 1)]
        return 200, matrix(samples[-20:], gpu="3")

    server.answer = answer
    with Prometheus(url=server.url, kind="dcgm", selector='Hostname="n"', every_seconds=0.05).open() as read:
        time.sleep(0.3)
        begin = read()
        time.sleep(1.0)
        spent = Measurement.between("x", begin, read())
    assert list(spent.devices) == ["gpu-3"]
    assert spent.total.joules == pytest.approx(300 * spent.seconds, abs=120)
    assert spent.total.period_seconds == pytest.approx(0.1)
    assert spent.total.provenance is Provenance.MEASURED
    assert server.asked[0].endswith("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION%7BHostname%3D%22n%22%7D%5B180s%5D")


def test_row_47_resets_repeats_disorder_and_gaps_are_flagged() -> None:
    poller, wall = Told(), time.time()
    device = Device("gpu-0", "prometheus", "gpu", 2000.0, joules_per_step=1e-3, stuck_seconds=float("inf"))
    source = _Source(poller, [device], longest_gap_seconds=45.0)  # type: ignore[arg-type]

    def told(*samples: tuple[float, float]) -> dict[str, int]:
        values: list[list[object]] = [[wall + at, str(joules * 1000)] for at, joules in samples]
        poller.say(time.monotonic(), _series(matrix(values, gpu="0"), "dcgm"))
        source.tick(time.monotonic(), False)
        return dict(source.counters()["gpu-0"].flags)

    assert told((0, 0), (15, 1500), (30, 3000)) == {}
    assert told((15, 1500), (30, 3000), (45, 4500)) == {}
    assert told((60, 6000), (60, 6000), (75, 7500)) == {"duplicate": 1}
    assert told((90, 9000), (80, 8000)) == {"duplicate": 1, "out_of_order": 1}
    assert told((150, 15000))["gap"] == 1
    assert told((165, 10))["counter_reset"] == 1
    counter = source.counters()["gpu-0"]
    assert counter.joules == pytest.approx(15000)
    assert counter.seen_seconds == pytest.approx(90, abs=1)
    poller.say(0, None, "unreachable")
    source.tick(time.monotonic(), False)
    source._offset += 10
    poller.say(0, None, "http_503")
    source.tick(time.monotonic(), False)
    flags = source.counters()["gpu-0"].flags
    assert (flags["unreachable"], flags["http_503"], flags["clock_stepped"]) == (1, 1, 1)


def test_kepler_zones_are_never_added_to_the_package_that_holds_them() -> None:
    zones = {"package": "/sys/class/powercap/intel-rapl:1", "dram": "", "core": "", "uncore": "", "psys": ""}
    result = [
        {"metric": {"zone": zone, "path": path}, "values": [[1.0, "2.5"]]} for zone, path in zones.items()
    ]  # fmt: skip
    series = _series({"status": "success", "data": {"resultType": "matrix", "result": result}}, "kepler")
    assert {name: samples[0].steps for name, samples in series.items()} == {"package-1": 2500, "dram-0": 2500}


@pytest.mark.parametrize(
    "answer",
    [{}, [], {"status": "error"}, matrix([[1, "x"]], gpu="0"), matrix([[1, "inf"]], gpu="0"), matrix([], host="n")],
)
def test_an_answer_of_prometheus_that_is_none_is_garbled(answer: object) -> None:
    with pytest.raises(UnreadableError, match="garbled"):
        _series(answer, "dcgm")


def test_two_series_of_one_device_need_a_selector(server: Server) -> None:
    one = {"metric": {"gpu": "0"}, "values": [[1, "1"]]}
    server.answer = lambda: (200, {"status": "success", "data": {"resultType": "matrix", "result": [one, one]}})
    with pytest.raises(MeterError, match="narrow the selector"):
        Prometheus(url=server.url, kind="dcgm").open()
    server.answer = lambda: (200, {"status": "success", "data": {"resultType": "matrix", "result": []}})
    with pytest.raises(MeterError, match="prometheus has no DCGM_FI"):
        Prometheus(url=server.url, kind="dcgm").open()


def test_a_poller_ends_when_closed() -> None:
    asked: list[int] = []

    def ask() -> float:
        asked.append(1)
        return 1.0

    poller = Poller(ask, 0.01)
    assert poller.first("x") == 1.0
    poller.close()
    time.sleep(0.05)
    before = len(asked)
    time.sleep(0.05)
    assert len(asked) == before
