"""`leanwatt meter -- COMMAND`: what a command took, whatever becomes of it or of us."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from meter.test_reader import Steady

from leanwatt import catalog, launcher, machine, verbs, weigh
from leanwatt.idle import Idle
from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.meter import _tree
from leanwatt.meter._reader import Reader, own_cpu_seconds, sampling
from leanwatt.weigh import Request, Run, Weighing, facts, lines, recover

BURN = "import time\nwhile time.process_time() < {}: pass"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Locks and journals of this test alone."""
    monkeypatch.setattr(machine, "_lease_folder", lambda: tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Fake:
    """A meter at 100 W, with devices that idle at what the test says."""

    def __init__(self, watts: Callable[[], float] = lambda: 100.0) -> None:
        self.watts = watts

    @contextmanager
    def open(self) -> Iterator[Reader]:
        with sampling([Steady()]) as read:
            yield read


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "build", lambda choice: Fake())


def weighed(*command: str, **settings: Any) -> Weighing:
    return weigh.weigh(Request(command, **{"idle_seconds": 0.0, **settings}))


def test_a_command_is_charged_its_time_its_energy_and_its_cpu_time(steady: None) -> None:
    found = weighed(*python(BURN.format(0.4)))
    [run] = found.runs
    spent = run.measurement
    assert run.exit_code == found.exit_code == 0
    assert 0.4 <= spent.cpu_seconds < 1.0
    assert spent.total.joules == pytest.approx(100 * spent.seconds, rel=0.01)
    assert spent.total.provenance is Provenance.MEASURED
    assert run.net_joules is None


def test_what_the_command_starts_is_charged_too(steady: None) -> None:
    code = f"import subprocess, sys; [subprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}]) for _ in '12']"
    assert weighed(*python(code)).runs[0].measurement.cpu_seconds >= 0.6


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (python("raise SystemExit(7)"), 7),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("no-such-command-anywhere",), launcher.NOT_FOUND),
        (("/etc",), launcher.NOT_EXECUTABLE),
    ],
)
def test_the_exit_code_is_passed_through_and_a_failure_is_the_last_run(
    steady: None, command: tuple[str, ...], code: int
) -> None:
    found = weighed(*command, repeat=3)
    assert found.exit_code == code
    assert len(found.runs) == 1


def test_repeats_have_a_mean_with_an_interval_and_warm_up_stays_out(steady: None) -> None:
    told: list[Run] = []
    request = Request(python(""), repeat=3, warm_up=1, idle_seconds=0)
    found = weigh.weigh(request, notice=told.append)
    assert (len(found.runs), len(found.warm_up), len(told)) == (3, 1, 4)
    mean = found.mean(lambda run: run.measurement.total.joules)
    assert mean is not None and mean.low is not None and mean.high is not None
    assert mean.low < mean.value < mean.high
    assert mean.repeats == 3
    assert lines(found)[-1].startswith("mean of 3 (95 %): ")
    assert facts(found)["mean"]["joules"]["value"] == mean.value
    json.dumps(facts(found), default=str)


def run_of(joules: float | None, *flags: str) -> Run:
    energy = Energy(joules, 0.95 * (joules or 0), 1.05 * (joules or 0), Provenance.MEASURED, "rapl", "package")
    return Run(Measurement("command", 2.0, 1.0, {"package-0": energy}, flags=flags), 0)


def weighing(*runs: Run, flags: tuple[str, ...] = ()) -> Weighing:
    return Weighing(("x",), runs, (), flags, {})


def test_a_disturbed_run_is_shown_and_not_averaged_in() -> None:
    found = weighing(run_of(10.0), run_of(99.0, "contended"), run_of(10.0))
    mean = found.mean(lambda run: run.measurement.total.joules)
    assert mean is not None and mean.value == pytest.approx(10.0)
    said = lines(found)
    assert said[1].endswith("contended  (not averaged in)")
    assert said[-1].startswith("mean of 2")


def test_where_all_runs_were_disturbed_all_are_averaged_and_say_so() -> None:
    found = weighing(run_of(10.0, "contended"), run_of(10.0, "contended"), flags=("contended", "drift"))
    assert len(found.counted) == 2
    assert lines(found)[-1] == "beware: contended, drift"


def test_an_unknown_energy_is_said_and_has_no_mean() -> None:
    unknown = replace(run_of(1.0).measurement, devices={"package-0": Energy(None)})
    found = weighing(Run(unknown, 0), run_of(1.0))
    assert "energy unknown" in lines(found)[0]
    assert "without package-0" in lines(found)[0]
    assert found.mean(lambda run: run.measurement.total.joules) is None
    assert "mean of 2 (95 %): unknown J" in lines(found)[-1]


def test_idle_power_is_read_before_and_after_and_net_is_what_remains(steady: None) -> None:
    found = weighed(*python("import time; time.sleep(0.2)"), idle_seconds=0.2)
    [run] = found.runs
    assert run.measurement.idle_watts == {"package-0": pytest.approx(100, rel=0.02)}
    assert run.net_joules == pytest.approx(0, abs=2)
    assert "drift" not in found.flags
    assert "net of idle" in lines(found)[0]


def test_net_leaves_out_what_the_total_leaves_out() -> None:
    energy = run_of(10.0).measurement.devices["package-0"]
    devices = {"package-0": energy, "memory": replace(energy, scope="memory")}
    spent = Measurement("command", 2.0, 1.0, devices, idle_watts={"package-0": 3.0})
    assert weigh.net_joules(spent) == pytest.approx(4.0)
    assert weigh.net_joules(replace(spent, idle_watts={"memory": 1.0})) is None


def test_idle_power_that_drifts_and_neighbours_are_flagged(steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([Idle({"package-0": 100.0}, is_quiet=False), Idle({"package-0": 110.0}, is_quiet=True)])
    monkeypatch.setattr(weigh, "idle", lambda read, seconds: next(told))
    found = weigh.weigh(Request(python(""), idle_seconds=1))
    assert found.flags == ("contended", "drift")
    assert found.runs[0].measurement.idle_watts == {"package-0": 105.0}


def test_a_journal_that_cannot_be_written_stops_nothing(steady: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = weigh.weigh(Request(python(""), idle_seconds=0), folder=tmp_path / "file" / "folder")
    assert found.runs[0].measurement.flags == ("journal_lost",)
    assert recover(tmp_path / "nowhere") == []


def test_a_weighing_that_ended_leaves_no_journal(steady: None) -> None:
    weighed(*python(""))
    assert list(weigh.state_folder().iterdir()) == []
    assert recover() == []


def test_the_cpu_time_of_a_running_command_is_known_while_it_runs() -> None:
    before = own_cpu_seconds()
    used = f"{BURN.format(0.3)}\nprint('used', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen(python(used), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"used\n"
        with _tree.watched(process.pid):
            grown = own_cpu_seconds() - before
        alone = _tree.tree_cpu_seconds(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert 0.28 <= alone <= grown + 0.02
    assert _tree.tree_cpu_seconds(process.pid) == 0
    assert _tree.running_cpu_seconds() == 0


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from leanwatt import catalog, machine
machine._lease_folder = lambda: Path({folder!r})
from test_weigh import Fake
build = catalog.build
catalog.build = lambda choice: Fake()
from leanwatt.cli import main
sys.argv = ["leanwatt", "meter", "--idle", "0", *sys.argv[1:]]
main()
"""
COMMAND = """
import os, subprocess, sys, time
while time.process_time() < 0.3: pass
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
while True: pass
"""


def start(tmp_path: Path, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], text=True, **pipes)


def pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def gone(pid: int, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_kill_of_the_meter_loses_a_second_at_most_and_leaves_nothing_behind(tmp_path: Path) -> None:
    meter = start(tmp_path, "--", *python(COMMAND))
    started = pids(meter)
    began = time.monotonic()
    time.sleep(2.2)
    meter.kill()
    ran = time.monotonic() - began
    meter.communicate(timeout=30)
    assert all(gone(pid) for pid in started)
    [found] = verbs.recover()
    assert found.flags == ("killed",)
    assert found.total.provenance is Provenance.INCOMPLETE
    assert found.total.joules is not None and found.total.joules >= 100 * (ran - 1.0)
    assert found.cpu_seconds > 0.25, "a command that still ran had used this"
    assert verbs.recover() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_ends_the_command_and_says_what_it_took(tmp_path: Path, number: int, code: int) -> None:
    meter = start(tmp_path, "--repeat", "5", "--json", "--", *python(COMMAND))
    command, child = pids(meter)
    time.sleep(0.3)
    meter.send_signal(number)
    out, err = meter.communicate(timeout=30)
    assert meter.returncode == code
    assert gone(command) and gone(child)
    assert out == ""
    said = json.loads(err.splitlines()[-1])
    assert len(said["runs"]) == 1
    assert said["total"][0]["joules"] > 0


def test_a_command_that_will_not_stop_is_killed_by_the_second_request(tmp_path: Path) -> None:
    stubborn = "import signal, os; signal.signal(signal.SIGINT, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
    meter = start(tmp_path, "--", *python(stubborn + "while True: pass"))
    [command] = pids(meter)
    for _ in range(2):
        meter.send_signal(signal.SIGINT)
        time.sleep(0.3)
    meter.communicate(timeout=30)
    assert meter.returncode == 137
    assert gone(command)


def test_stdout_stays_the_commands_and_its_arguments_too(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(3)"
    meter = start(tmp_path, "--repeat", "2", "--", *python(code), "--debug", "--json", "--repeat")
    out, err = meter.communicate(timeout=30)
    assert out == "['--debug', '--json', '--repeat']\n"
    assert meter.returncode == 3
    assert err.startswith("leanwatt: ") and "exit code 3" in err


def test_a_command_may_ask_the_terminal(tmp_path: Path) -> None:
    """In a terminal of its own, the command is in the foreground and we are again afterwards."""
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    script = "import pty, os, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = ("sh", "-c", "read line; echo got $line")
    spawn = [sys.executable, "-c", script, sys.executable, "-c", program, "--repeat", "2", "--", *command]
    done = subprocess.run(spawn, input="one\ntwo\n", capture_output=True, text=True, timeout=60, check=True)
    assert "got one" in done.stdout and "got two" in done.stdout
    assert "mean of 2" in done.stdout


def test_what_was_killed_is_told_by_the_next_start_and_by_recover(tmp_path: Path) -> None:
    folder = weigh.state_folder()
    folder.mkdir(parents=True)
    fields = {"stage": "command", "seconds": 2.0, "cpu_seconds": 1.0, "devices": {}, "idle_watts": {}, "flags": []}
    entry = {"event": "begin", "key": "1-1", "measurement": fields}
    (folder / "1.jsonl").write_text(json.dumps(entry) + "\n")
    meter = start(tmp_path, "--recover")
    out, err = meter.communicate(timeout=30)
    assert (meter.returncode, out) == (0, "")
    assert err.startswith("leanwatt: a weighing was killed after at least 2 s, 1 CPU-s, energy unknown")
    assert not list(folder.iterdir())


def test_nothing_to_weigh_is_said(tmp_path: Path) -> None:
    meter = start(tmp_path)
    _, err = meter.communicate(timeout=30)
    assert meter.returncode == 2
    assert "leanwatt meter -- python train.py" in err


def test_the_journal_of_one_that_lives_is_left_alone(steady: None) -> None:
    with weigh._journal(weigh.state_folder()) as path:
        assert recover() == []
        assert path.exists()


def test_a_launcher_whose_starter_is_gone_starts_nothing(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", launcher.__file__, str(theirs.fileno()), "touch", str(tmp_path / "ran")]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    assert ours.recv(1) == b"r"
    ours.close()
    assert process.wait(timeout=30) == 0
    assert not (tmp_path / "ran").exists()


def launched(lifeline: socket.socket, command: list[str]) -> None:
    os.setpgrp()
    raise SystemExit(launcher.launch(lifeline.fileno(), command))


@pytest.mark.parametrize(("command", "code"), [(["sh", "-c", "exit 5"], 5), (["sh", "-c", "kill -9 $$"], 137)])
def test_a_launcher_gives_the_exit_code_of_the_command(command: list[str], code: int) -> None:
    ours, theirs = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(target=launched, args=(theirs, command))
    with ours, theirs:
        process.start()
        assert ours.recv(1) == b"r"
        ours.send(b"g")
        process.join(30)
    assert process.exitcode == code


def left(lifeline: socket.socket, said: bool) -> None:
    """In a process of its own: how the launcher ends once its starter is gone."""

    def instead(group: int, number: int) -> None:
        raise SystemExit(100 + number if group == 0 else 1)

    os.setpgrp()
    launcher.os.killpg = instead  # type: ignore[attr-defined]
    if said:
        raise SystemExit(launcher.launch(lifeline.fileno(), ["sleep", "30"]))
    lifeline.shutdown(socket.SHUT_RD)
    raise SystemExit(10 + launcher.launch(lifeline.fileno(), ["sleep", "30"]))


@pytest.mark.parametrize(("said", "code"), [(True, 100 + signal.SIGKILL), (False, 10)])
def test_a_launcher_kills_its_group_when_its_starter_goes(said: bool, code: int) -> None:
    ours, theirs = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(target=left, args=(theirs, said))
    with ours, theirs:
        process.start()
        assert ours.recv(1) == b"r"
        if said:
            ours.send(b"g")
            time.sleep(0.3)
        theirs.close()
    process.join(30)
    assert process.exitcode == code
    if said:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)  # The command, which the stand-in left alone.


@pytest.mark.parametrize(
    ("error", "code"), [(FileNotFoundError(2, "No such file"), 127), (PermissionError(13, "Permission denied"), 126)]
)
def test_a_command_that_cannot_be_started_says_why(
    error: OSError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers: dict[int, object] = {}

    def fail(*_: object) -> None:
        raise error

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "execvp", fail)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        launcher._become(["nothing"])
    assert caught.value.code == code
    assert capsys.readouterr().err == f"leanwatt: nothing: {error.strerror}\n"
    assert handlers[signal.SIGINT] is signal.SIG_DFL
    assert handlers[signal.SIGTSTP] is signal.SIG_IGN
