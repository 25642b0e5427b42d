"""Keys and pace: hashes only, one owner each, gone when removed; a bucket that fills evenly."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanwatt import verbs
from leanwatt.errors import StoreError, StudyError
from leanwatt.keys import Keys, default_file
from leanwatt.pace import MOST_CLIENTS, Pace


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "new" / "keys.json")
    first, second = keys.add("noc"), keys.add("lab")
    assert first != second
    assert keys.owner(first) == "noc"
    assert keys.owner(second) == "lab"
    assert keys.owner("lw-nothing") is None
    assert keys.owner("") is None
    assert first not in keys.file.read_text(encoding="utf-8")
    assert keys.file.stat().st_mode & 0o777 == 0o600
    assert list(keys.names()) == ["noc", "lab"]


def test_a_removed_key_stops_working_at_once(tmp_path: Path) -> None:
    server, admin = Keys(tmp_path / "keys.json"), Keys(tmp_path / "keys.json")
    key = admin.add("noc")
    assert server.owner(key) == "noc"
    admin.remove("noc")
    os.utime(admin.file, ns=(1, 1))
    assert server.owner(key) is None


def test_a_key_that_is_removed_within_one_tick_of_the_clock_stops_working(tmp_path: Path) -> None:
    server, admin = Keys(tmp_path / "keys.json"), Keys(tmp_path / "keys.json")
    key = admin.add("noc")
    os.utime(admin.file, ns=(1, 1))
    assert server.owner(key) == "noc"
    admin.remove("noc")
    os.utime(admin.file, ns=(1, 1))
    assert server.owner(key) is None


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "né"])
def test_unfit_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="are allowed"):
        Keys(tmp_path / "keys.json").add(name)


def test_mistakes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    [key] = verbs.keys("add", "noc", file).values()
    assert key.startswith("lw-")
    assert list(verbs.keys("list", None, file)) == ["noc"]
    with pytest.raises(StudyError, match="there already"):
        verbs.keys("add", "noc", file)
    with pytest.raises(StudyError, match="Did you mean 'noc'"):
        verbs.keys("remove", "nok", file)
    with pytest.raises(StudyError, match="whose key"):
        verbs.keys("add", None, file)
    with pytest.raises(StudyError, match="what can be done with keys"):
        verbs.keys("show", "noc", file)
    assert verbs.keys("remove", "noc", file) == {}
    for damaged in ("[]", "{", json.dumps({"noc": "x"})):
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(StoreError, match="no file of keys"):
            Keys(file).names()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        Keys(tmp_path / "file" / "keys.json").add("noc")
    monkeypatch.setenv("LEANWATT_KEYS", str(file))
    assert default_file() == file
    monkeypatch.delenv("LEANWATT_KEYS")
    assert default_file().name == "keys.json"


def test_a_client_may_ask_so_often_and_is_told_when_again() -> None:
    now = [0.0]
    pace = Pace(60, clock=lambda: now[0])
    assert [pace.wait_seconds("a") for _ in range(61)] == [0] * 60 + [1]
    assert pace.wait_seconds("b") == 0, "each has a bucket of their own"
    now[0] = 0.5
    assert pace.wait_seconds("a") == 1
    now[0] = 1.0
    assert pace.wait_seconds("a") == 0
    assert Pace(2, clock=lambda: 0.0).wait_seconds("x") == 0


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 120), st.lists(st.floats(0, 20), max_size=60))
def test_nobody_gets_more_than_a_full_bucket_and_what_flowed_in(per_minute: int, gaps: list[float]) -> None:
    now = [0.0]
    pace, served = Pace(per_minute, clock=lambda: now[0]), 0
    for gap in gaps:
        now[0] += gap
        served += pace.wait_seconds("a") == 0
    assert served <= per_minute + now[0] * per_minute / 60 + 1e-6


def test_memory_of_clients_stays_flat() -> None:
    pace = Pace(5)
    for number in range(MOST_CLIENTS + 50):
        pace.wait_seconds(str(number))
    assert len(pace._left) == MOST_CLIENTS
