"""The executors: fresh processes, outcomes in order, deaths told in words, nobody left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import untraced

from leanwatt.contracts import WorkerDied
from leanwatt.executor.local import Local


def who(item: Any) -> tuple[Any, int]:
    return item, os.getpid()


def fall(how: str) -> str:
    """Ends the worker, or answers with the word itself."""
    ways: dict[str, Callable[[], object]] = {
        "os._exit": lambda: os._exit(3),
        "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "sys.exit": lambda: sys.exit(4),
    }
    if how in ways:
        ways[how]()
    return how


def refuse(item: str) -> None:
    from leanwatt.errors import StoreError

    raise StoreError(f"no room for {item}")


class Stubborn(Exception):
    """An error that cannot be pickled and opened again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def stubborn(item: str) -> None:
    raise Stubborn(item, "more")


def grow(item: int) -> bytes:
    return b"x" * item


def unpicklable(item: str) -> Any:
    return lambda: item


@pytest.fixture(autouse=True)
def no_child_left() -> Any:
    yield
    assert multiprocessing.active_children() == []


def test_every_job_has_a_process_of_its_own_and_the_order_is_kept() -> None:
    outcomes = list(Local().run(who, ["a", "b"]))
    assert [item for item, _ in outcomes] == ["a", "b"]
    assert len({os.getpid(), *(pid for _, pid in outcomes)}) == 3


def test_the_same_process_for_debugging() -> None:
    assert list(Local(process="same").run(who, [1, 2])) == [(1, os.getpid()), (2, os.getpid())]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("os._exit", "exit code 3: no reason given"),
        ("SIGKILL", "exit code -9: killed, most often for memory; use a smaller batch or base"),
        ("SIGSEGV", "exit code -11: a crash in native code"),
        ("sys.exit", "exit code 4"),
    ],
)
def test_a_death_is_an_outcome_with_words_and_the_next_job_runs(how: str, words: str) -> None:
    died, after = Local().run(fall, [how, "fine"])
    assert isinstance(died, WorkerDied)
    assert died.item == how
    assert words in died.reason
    assert after == "fine"


def test_an_error_crosses_with_its_type_and_words() -> None:
    from leanwatt.errors import StoreError

    with pytest.raises(StoreError, match="no room for x"):
        list(Local().run(refuse, ["x"]))


def test_an_error_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="Stubborn: x and more"):
        list(Local().run(stubborn, ["x"]))


def test_large_outcomes_arrive_whole() -> None:
    [outcome] = Local().run(grow, [5_000_000])
    assert outcome == b"x" * 5_000_000


def test_an_outcome_that_cannot_travel_is_an_error_with_its_reason() -> None:
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"pickle|local object"):
        list(Local().run(unpicklable, ["x"]))


def test_jobs_are_started_one_by_one_when_asked_for() -> None:
    outcomes = Local().run(who, iter(["a", "b"]))
    assert next(outcomes)[0] == "a"
    assert multiprocessing.active_children() == []
    outcomes.close()  # type: ignore[attr-defined]


SCRIPT = """
import sys, time
from pathlib import Path
from leanwatt.executor.local import Local

def slow(place):
    import os
    Path(place).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    list(Local().run(slow, [sys.argv[1]]))
"""


@pytest.mark.parametrize("everyone", [True, False])
def test_an_interrupt_ends_the_worker_too(everyone: bool, tmp_path: Path) -> None:
    script, place = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(place)],
        env=untraced(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if place.exists() and place.read_text():
            break
        time.sleep(0.05)
    worker = int(place.read_text())
    send = os.killpg if everyone else os.kill
    send(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in errors
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_parent_that_is_killed_leaves_no_worker_behind(tmp_path: Path) -> None:
    script, place = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script), str(place)])
    for _ in range(600):
        if place.exists() and place.read_text():
            break
        time.sleep(0.05)
    worker = Path(f"/proc/{place.read_text()}")
    parent.kill()
    parent.wait(timeout=30)
    for _ in range(100):
        if not worker.exists():
            break
        time.sleep(0.05)
    assert not worker.exists()


@pytest.mark.parametrize("after_seconds", [0.0, 0.05, 0.15, 0.3])
def test_an_interrupt_while_the_worker_starts_is_one_traceback_of_the_parent(
    after_seconds: float, tmp_path: Path
) -> None:
    """The worker is still importing: it must not add a traceback of its own."""
    script, place = tmp_path / "script.py", tmp_path / "ready"
    heavy = "import time\nif __name__ != '__main__':\n    time.sleep(0.5)\n"
    ready = "    Path(sys.argv[1] + '-started').touch()\n    list("
    script.write_text(heavy + SCRIPT.replace("    list(", ready))
    parent = subprocess.Popen(
        [sys.executable, str(script), str(place)],
        env=untraced(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Path(f"{place}-started").exists():
        time.sleep(0.01)
    time.sleep(after_seconds)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode in (-signal.SIGINT, 130)
    assert errors.count("Traceback (most recent call last)") == 1, errors
