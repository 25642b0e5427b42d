import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from meter import fakes

from leanwatt import machine
from leanwatt.errors import MeterError
from leanwatt.machine import LeaseHeldError, Quiet, lease


def test_a_description_is_plain_data_without_a_host_name() -> None:
    facts = machine.describe()
    text = json.dumps(facts)
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert facts["versions"]["torch"].startswith("2.")
    assert datetime.fromisoformat(facts["utc"]).utcoffset() == timedelta(0)
    assert facts["cpus"] == os.cpu_count()


def test_a_machine_keeps_its_id_until_its_hardware_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = machine.describe()
    assert machine.same_machine(before, machine.describe())
    assert not machine.same_machine({}, {})
    (tmp_path / "cpuinfo").write_text("model name\t: Another CPU\n")
    other = machine.describe(str(tmp_path))
    assert other["cpu_model"] == "Another CPU"
    assert other["memory_bytes"] is None and other["boot_id"] is None
    assert not machine.same_machine(before, other)
    library = fakes.Nvml(2)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with_gpus = machine.describe()
    assert (with_gpus["gpus"], with_gpus["gpu_driver"]) == (["Fake H100"] * 2, "999.1")
    assert not machine.same_machine(before, with_gpus)
    assert library.opened == 0


def test_gpus_are_none_where_the_library_is_missing_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    library = fakes.Nvml()
    library.init_error = fakes.NotFound("no")
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert machine.describe()["gpus"] == []
    library.init_error = None
    library.nvmlDeviceGetCount = lambda: library._shown(None)  # type: ignore[method-assign]
    assert machine.describe()["gpu_driver"] is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.describe()["gpus"] == []


def test_versions_are_learnt_without_importing() -> None:
    program = (
        "import sys, leanwatt.machine as m; m.describe(); print([n for n in ('torch', 'openvino') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert machine._version("no-such-package") is None


def test_the_limits_of_a_container_are_kept(tmp_path: Path) -> None:
    threads = float(len(os.sched_getaffinity(0)))
    assert machine.usable_cpus(str(tmp_path)) == threads
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.usable_cpus(str(tmp_path)) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cpus(str(tmp_path)) == threads
    whole = machine.memory_bytes(cgroup=str(tmp_path))
    assert whole is not None
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes(cgroup=str(tmp_path)) == whole
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.memory_bytes(cgroup=str(tmp_path)) == 1048576
    assert machine.memory_bytes("/nowhere", "/nowhere") is None


def test_room_in_memory_and_on_disk(tmp_path: Path) -> None:
    assert 0 < (machine.available_memory_bytes() or 0) <= (machine.memory_bytes() or 0) * 2
    assert machine.free_disk_bytes(tmp_path / "not" / "there") > 0


def hold(domain: str, folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with lease(domain, folder):
        ready.set()
        time.sleep(60)


def test_row_29_a_lease_says_who_holds_it_and_a_crash_releases_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=("packages", tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(LeaseHeldError, match=f"by process {holder.pid}, since"), lease("packages", tmp_path):
        pass
    with lease("gpu-0", tmp_path):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    with lease("packages", tmp_path, wait_seconds=10):
        assert f"process {os.getpid()}," in (tmp_path / "packages.lock").read_text()
    holder.join()


def test_row_29_a_stale_lock_file_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "packages.lock").write_text("process 4194304, since 2001-01-01 00:00:00 UTC, of a longer note")
    with lease("packages", tmp_path):
        assert "4194304" not in (tmp_path / "packages.lock").read_text()


def test_a_lease_waits_no_longer_than_asked(tmp_path: Path) -> None:
    with lease("a/b c", tmp_path):
        assert (tmp_path / "a-b-c.lock").exists()
        started = time.monotonic()
        with pytest.raises(LeaseHeldError), lease("a/b c", tmp_path, wait_seconds=0.25):
            pass
        assert 0.25 <= time.monotonic() - started < 2


def test_a_lease_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "packages.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(MeterError, match="cannot be opened"), lease("packages", tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lease_of_this_machine_needs_no_folder() -> None:
    with lease("leanwatt-test"), pytest.raises(LeaseHeldError), lease("leanwatt-test"):
        pass


def test_row_22_a_busy_neighbour_makes_a_machine_unquiet() -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        found = machine.quiet(1.0)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert found.other_share is not None and found.other_share > 0.3 / (os.cpu_count() or 1)
    assert found.is_quiet is False


def test_our_own_work_is_not_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  1000 0 0 9000 0 0 0 0 0 0\n")
    found = machine.quiet(0.01, str(tmp_path))
    assert (found.other_share, found.stolen_share, found.is_quiet) == (0.0, 0.0, True)


def test_quiet_is_unknown_without_proc(tmp_path: Path) -> None:
    found = machine.quiet(0.01, str(tmp_path))
    assert (found.other_share, found.is_quiet) == (None, None)
    assert Quiet(5.0, 0.01, 0.2).is_quiet is False
