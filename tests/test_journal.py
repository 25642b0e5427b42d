"""Rows of the fault table about runs that are killed and journals that cannot be written."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from meter.test_reader import Steady

from leanwatt.journal import spent, window
from leanwatt.measurement import Measurement, Provenance
from leanwatt.meter._reader import sampling

PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from meter.test_reader import Steady
from leanwatt.journal import window
from leanwatt.meter._reader import sampling
with sampling([Steady()]) as read, window(read, "finetune", Path(sys.argv[2])):
    print("open", flush=True)
    time.sleep(60)
"""


def closed(path: Path, beat_seconds: float = 1.0, seconds: float = 0.05) -> Measurement:
    with sampling([Steady()]) as read, window(read, "grade", path, beat_seconds) as opened:
        time.sleep(seconds)
    assert opened.measurement is not None
    return opened.measurement


def test_row_26_a_kill_loses_at_most_a_second_of_energy(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(Path(__file__).parent), str(path)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "open\n"
    opened = time.monotonic()
    time.sleep(2.5)
    program.kill()
    truth = 100 * (time.monotonic() - opened)
    program.communicate(timeout=30)
    [found] = spent(path)
    assert found.stage == "finetune"
    assert found.total.joules is not None and truth - 100 <= found.total.joules <= truth + 10
    assert found.total.provenance is Provenance.INCOMPLETE
    assert found.total.upper is None
    assert found.flags == ("killed",)


def test_row_27_an_exception_closes_the_window(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with sampling([Steady()]) as read:
        with pytest.raises(KeyError), window(read, "grade", path) as opened:
            time.sleep(0.01)
            raise KeyError
        assert opened.measurement is not None and opened.measurement.total.joules
    assert spent(path) == [opened.measurement]


def test_row_30_a_journal_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "folder.jsonl", Path("/dev/full")):
        measured = closed(path)
        assert measured.total.joules == pytest.approx(100 * measured.seconds)
        assert measured.flags == ("journal_lost",)


def test_row_50_a_cut_off_last_line_leaves_the_others_readable(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    closed(path, beat_seconds=0.02, seconds=0.1)
    lines = path.read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "begin" and events[-1] == "end" and events.count("beat") >= 2
    path.write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    [found] = spent(path)
    assert found.stage == "grade"
    assert found.flags == ("killed",)
    path.write_text("\n".join(["[]", "nonsense", *lines]))
    [found] = spent(path)
    assert found.flags == ()


def test_a_kill_before_the_first_heartbeat_is_unknown_and_not_zero(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    closed(path)
    path.write_text(path.read_text().splitlines()[0])
    [found] = spent(path)
    assert found.total.joules is None
    assert found.flags == ("killed",)


def test_no_journal_has_no_windows(tmp_path: Path) -> None:
    assert spent(tmp_path / "journal.jsonl") == []


def test_any_meter_can_be_watched(tmp_path: Path) -> None:
    with sampling([Steady()]) as read, window(read.glance, "x", tmp_path / "j", 0.01) as opened:
        time.sleep(0.05)
    assert opened.measurement is not None and opened.measurement.total.joules
