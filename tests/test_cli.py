"""The command line: every verb, every kind of mistake, one clear message, the right exit code, no traceback.

The golden texts of --help are written anew with: python tests/test_cli.py > tests/golden/help.txt
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import untraced

from leanwatt import cli

GOLDEN = Path(__file__).parent / "golden" / "help.txt"
COMMANDS = [command.callback.__name__ for command in cli.app.registered_commands if command.callback]
SPLIT = {"near_duplicate": None, "validation": 0.2, "test": 0.3}


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as strict JSON: NaN and Infinity are none."""

        def refuse(word: str) -> None:
            raise ValueError(f"{word} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


def told(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """One command in this process."""
    monkeypatch.setattr(sys, "argv", ["leanwatt", *words])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    code = ended.value.code
    return Said(code if isinstance(code, int) else 0, said.out, said.err)


@pytest.fixture
def lw(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    return lambda *words: told(tuple(map(str, words)), capsys, monkeypatch)


def study_of(model: Path, tickets: Path, **changes: Any) -> dict[str, Any]:
    """Two variants and a baseline, as quick as can be."""
    data = {"path": str(tickets), **SPLIT}
    return {
        "name": "tickets",
        "base": str(model),
        "steps": [{"quantize": ["none", {"round_to_nearest": {"bits": 8}}]}],
        "tasks": [{"root_cause": {"data": data, "text": "description", "label": "cause"}}],
        "baselines": ["majority"],
        "engine": "transformers",
        "meter": "estimate",
        "protocol": {"quick": {"rounds": 1, "window_seconds": 0.1}},
        **changes,
    }


@pytest.fixture
def study(saved: Callable[[str], Path], tickets: Path, tmp_path: Path) -> Callable[..., Path]:
    """A study file with some keys changed."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study_of(saved("llama"), tickets, **changes)))
        return path

    return write


def one_message(said: Said, code: int) -> str:
    """The rules for every error: the right code, one message on the error stream, no traceback."""
    assert said.code == code, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("leanwatt: ") == 1
    return said.err.removeprefix("leanwatt: ")


# ---- help, version, what there is


def help_texts() -> str:
    """--help of every command, in a terminal 80 columns wide."""
    from contextlib import redirect_stdout, suppress
    from io import StringIO
    from unittest.mock import patch

    from typer.main import get_command

    texts, program = [], get_command(cli.app)
    for command in [[], *([name] for name in COMMANDS)]:
        words = [*command, "--help"]
        with patch.dict(os.environ, {"COLUMNS": "80"}), redirect_stdout(StringIO()) as said, suppress(SystemExit):
            program.main(words, prog_name="leanwatt")
        texts.append(f"$ leanwatt {' '.join(words)}\n{said.getvalue()}")
    return "\n".join(texts)


def test_help_is_what_it_was() -> None:
    assert help_texts() == GOLDEN.read_text(encoding="utf-8"), "see the first lines of this file"


def test_every_verb_is_there() -> None:
    verbs = {"plan", "run", "rank", "report", "export", "ask", "methods", "doctor", "meter", "simulate", "compare"}
    verbs |= {"serve", "keys", "feedback", "watch", "records"}
    assert verbs <= set(COMMANDS)


def test_version(lw: Callable[..., Said]) -> None:
    from leanwatt import __version__

    said = lw("--version")
    assert (said.code, said.out.strip()) == (0, __version__)


def test_methods(lw: Callable[..., Said]) -> None:
    from leanwatt import catalog

    said = lw("methods", "--json")
    assert said.code == 0
    assert {room: sorted(inside) for room, inside in said.json.items()} == {
        room: catalog.names(room) for room in catalog.ROOMS
    }
    assert "keep" in said.json["prune"]["width"]["settings"]
    text = lw("methods", "prune")
    assert text.out.startswith("prune:\n")
    assert "width: Fewer neurons" in text.out
    assert "      keep: float above 0 below 1 (required): Share of the neurons that stays.\n" in text.out
    assert "Did you mean 'prune'" in one_message(lw("methods", "prun"), 2)


def test_doctor(lw: Callable[..., Said]) -> None:
    said = lw("doctor", "--json")
    assert said.code == 0
    assert said.json["engines"]["transformers"] is True
    assert {source["source"] for source in said.json["sources"]} == {
        *("rapl", "nvml", "redfish", "plug", "prometheus", "zeus", "codecarbon", "estimate")
    }
    text = lw("doctor")
    assert "Energy here comes from: " in text.out
    assert "estimate: ok" in text.out
    assert "plug: absent. no address is given. To change that: leanwatt doctor --meter '{plug:" in text.out


def test_simulate(lw: Callable[..., Said], tmp_path: Path) -> None:
    for name in ("one", "two"):
        said = lw("simulate", tmp_path / name, "--tickets", 50, "--seed", 3)
        assert (said.code, said.out.strip()) == (0, str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len((tmp_path / "one").read_text().splitlines()) >= 51


def test_plan(lw: Callable[..., Said], study: Callable[..., Path], tmp_path: Path) -> None:
    said = lw("plan", study(), "--out", tmp_path / "out", "--json")
    assert said.code == 0
    assert (said.json["trials"], said.json["done"]) == (3, 0)
    assert said.json["variants"][-1] == "majority"
    text = lw("plan", study(), "--out", tmp_path / "out")
    assert text.code == 0
    assert "3 variants and baselines" in text.out


# ---- the user's mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nmae": "x"}, "Did you mean 'name'"),
        ({"engine": "openvno"}, "Did you mean 'openvino'"),
        ({"steps": [{"prune": ["magnitud"]}]}, "Did you mean 'magnitude'"),
        ({"steps": [{"prune": [{"width": {"kep": 0.5}}]}]}, "Did you mean 'keep'"),
        ({"steps": [{"prune": [{"width": {"keep": 7}}]}]}, "prune.width.keep: Input should be less than 1 (got 7)"),
        ({"steps": [{"prune": [{"magnitude": {"pattern": 124}}]}]}, "prune.magnitude.pattern"),
        ({"batch": 0}, "batch: got 0"),
        ({"protocol": "fast"}, "There are: quick, ranked"),
        ({"reference": "best"}, "no trial is called 'best'"),
        ({"base": "no/such-folder"}, "no model folder and no model of the hub"),
        ({"tasks": []}, "at least one task"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_wrong_study_is_one_message(
    *,
    verb: str,
    changes: dict[str, Any],
    words: str,
    lw: Callable[..., Said],
    study: Callable[..., Path],
    tmp_path: Path,
) -> None:
    assert words in one_message(lw(verb, study(**changes), "--out", tmp_path / "out"), 2)


@pytest.mark.parametrize("verb", ["plan", "run", "rank", "report"])
def test_a_study_that_is_not_there(verb: str, lw: Callable[..., Said], tmp_path: Path) -> None:
    message = one_message(lw(verb, tmp_path / "none.yaml"), 2)
    assert "none.yaml: cannot be read (No such file or directory)" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("id,description,cause,resolution,place\n", "has no rows"),
        ("id,description\n1,x\n", "No 'cause' in its columns"),
        ('id,description,cause,resolution,place\nt1,"x,y,z\n', "quote"),
        ("id,description,cause,resolution,place\nt1,x\n", "row 1 (line 2)"),
        (None, "cannot be read"),
    ],
)
def test_data_that_cannot_be_used(
    *,
    content: str | None,
    words: str,
    lw: Callable[..., Said],
    study: Callable[..., Path],
    tickets: Path,
    tmp_path: Path,
) -> None:
    path = study()
    if content is None:
        tickets.unlink()
    else:
        tickets.write_text(content)
    message = one_message(lw("plan", path, "--out", tmp_path / "out"), 2)
    assert words in message
    assert "tickets.csv" in message


def test_data_of_one_class(lw: Callable[..., Said], study: Callable[..., Path], tickets: Path, tmp_path: Path) -> None:
    tickets.write_text(tickets.read_text().replace("fibre cut", "mains failure"))
    assert "one value only, 'mains failure'" in one_message(lw("plan", study(), "--out", tmp_path / "out"), 2)


def test_a_base_that_is_no_causal_model(lw: Callable[..., Said], study: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert")
    message = one_message(lw("plan", study(base=str(tmp_path / "bert")), "--out", tmp_path / "out"), 2)
    assert "'BertForMaskedLM, bert' model, which is no causal language model" in message


@pytest.mark.parametrize(
    "words", [["nothing"], ["plan"], ["plan", "a", "b"], ["--no-such-option"], ["simulate", "x", "--tickets", "0"]]
)
def test_a_wrong_command_line_is_the_users_mistake(words: list[str], lw: Callable[..., Said]) -> None:
    said = lw(*words)
    assert said.code == 2
    assert "Usage:" in said.err
    assert "Traceback" not in said.err


def test_nothing_to_rank_yet(lw: Callable[..., Said], study: Callable[..., Path], tmp_path: Path) -> None:
    assert "Run the study first" in one_message(lw("rank", study(), "--out", tmp_path / "out"), 2)


# ---- failures


def test_a_folder_that_cannot_be_written(lw: Callable[..., Said], study: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--out" in one_message(lw("plan", study(), "--out", tmp_path / "file" / "x"), 1)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/big"),
            1,
            "/big: No space left on device. Finished records",
        ),
        (RuntimeError("boom"), 1, "RuntimeError: boom. This is a bug; --debug shows where."),
        (KeyboardInterrupt(), 130, "Stopped. What was finished is kept"),
    ],
)
def test_whatever_fails_is_one_message(
    error: BaseException, code: int, words: str, lw: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt import verbs

    def fail(*_args: Any, **_settings: Any) -> None:
        raise error

    monkeypatch.setattr(verbs, "doctor", fail)
    assert words in one_message(lw("doctor"), code)


SWALLOWS = """
import os, signal, sys, time
from leanwatt import cli, verbs

def build(*_args, **_settings):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        raise ValueError("Error building a validator: KeyboardInterrupt:") from None

verbs.doctor = build
sys.argv = ["leanwatt", "doctor"]
cli.main()
"""


def test_ctrl_c_that_a_library_made_an_error_of_its_own_is_still_ctrl_c() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS], env=untraced(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.startswith("leanwatt: Stopped. What was finished is kept")


def test_a_reader_that_went_away_is_no_error(lw: Callable[..., Said]) -> None:
    done = subprocess.run(
        f"{sys.executable} -m leanwatt methods | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stdout == "finetune:\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("first", [True, False])
def test_debug_shows_the_traceback_wherever_it_stands(first: bool, tmp_path: Path) -> None:
    words = ["plan", str(tmp_path / "none.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "leanwatt", *(["--debug", *words] if first else [*words, "--debug"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "StudyError: " in done.stderr


# ---- a whole run: interrupted, resumed, read


@pytest.fixture(scope="module")
def finished(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was stopped with Ctrl-C after its first record and run again to its end."""
    folder = tmp_path_factory.mktemp("interrupted")
    rows = ["id,description,cause,resolution,place"]
    for i in range(120):
        cause, word = (("mains failure", "power"), ("fibre cut", "link"))[(i // 2) % 2]
        rows.append(f"t{i},site A{i} {word} lost then alarm {i * 7},{cause},replaced {word},A")
    (folder / "tickets.csv").write_text("\n".join(rows) + "\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(study_of(saved("llama"), Path("tickets.csv"))))
    run = [sys.executable, "-m", "leanwatt", "run", "study.yaml", "--out", "out", "--json"]
    quiet = {"OMP_NUM_THREADS": "1", "LEANWATT_QUIET": "1"}

    started = subprocess.Popen(
        run,
        cwd=folder,
        env=untraced() | quiet,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((folder / "out").glob("records/*.json")) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(started.pid, signal.SIGINT)
    out, err = started.communicate(timeout=60)
    (folder / "stopped.json").write_text(json.dumps([started.returncode, out, err]))
    kept = {path.name: path.read_text() for path in (folder / "out" / "records").glob("*.json")}
    (folder / "kept.json").write_text(json.dumps(kept))

    resumed = subprocess.run(run, cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    (folder / "resumed.json").write_text(json.dumps([resumed.returncode, resumed.stdout, resumed.stderr]))
    return folder


def of(finished: Path, name: str) -> Said:
    return Said(*json.loads((finished / name).read_text()))


def test_ctrl_c_says_what_is_kept(finished: Path) -> None:
    said = of(finished, "stopped.json")
    assert said.code == 130, said.err
    assert said.err.strip().splitlines()[-1] == (
        "leanwatt: Stopped. What was finished is kept; the same command goes on from there."
    )
    assert "Traceback" not in said.err


def test_the_same_command_goes_on_and_loses_no_record(finished: Path) -> None:
    said = of(finished, "resumed.json")
    assert said.code == 0, said.err
    kept = json.loads((finished / "kept.json").read_text())
    assert kept
    for name, text in kept.items():
        assert (finished / "out" / "records" / name).read_text() == text
    from leanwatt.store import Store

    records = Store(finished / "out").records()
    jobs = [record.job for record in records]
    assert {record.status for record in records} == {"done"}
    assert {record.attempt for record in records} == {0}
    assert (jobs.count("make"), jobs.count("grade"), jobs.count("weigh")) == (2, 3, 3)


def test_the_ranking_is_strict_json(finished: Path) -> None:
    assert of(finished, "resumed.json").json


@pytest.fixture
def there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


def test_a_finished_study_does_nothing_again(there: Path, lw: Callable[..., Said]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (there / "out" / "records").iterdir()}
    said = lw("run", "study.yaml", "--out", "out")
    assert said.code == 0, said.err
    assert "3 trials, 3 done" in said.err
    assert "majority" in said.out
    assert said.out.strip().endswith("The report: out/report/report.html")
    assert "\nleanwatt run study.yaml --out out\n" in (there / "out/report/report.md").read_text(), "what repeats it"
    assert {path: path.stat().st_mtime_ns for path in (there / "out" / "records").iterdir()} == before


def test_rank_and_report_read_records_only(there: Path, lw: Callable[..., Said]) -> None:
    said = lw("rank", "study.yaml", "--out", "out")
    assert said.code == 0
    assert "majority" in said.out
    assert "\n\nA first look: " in said.out and "\n\nA first look (quick protocol)" in said.out, "plainly, then exactly"
    assert lw("rank", "study.yaml", "--out", "out", "--json").json
    written = lw("report", "./study.yaml", "--out", "out")
    assert written.code == 0
    assert "\nleanwatt run study.yaml --out out\n" in (there / "out/report/report.md").read_text(), "what repeats it"
    files = [Path(line) for line in written.out.split()]
    assert {file.suffix for file in files} >= {".md", ".csv", ".json", ".html"}
    assert all(file.stat().st_size > 0 for file in files)


def test_ask_and_export_a_named_variant(there: Path, lw: Callable[..., Said], tmp_path: Path) -> None:
    variant = lw("plan", "study.yaml", "--out", "out", "--json").json["variants"][1]
    asked = lw("ask", "study.yaml", "link lost at site A", "--out", "out", "--variant", variant, "--json")
    assert asked.code == 0, asked.err
    assert asked.json["variant"] == variant
    assert sum(share for _, share in asked.json["causes"]) == pytest.approx(1)
    text = lw("ask", "study.yaml", "link lost at site A", "--out", "out", "--variant", variant)
    assert "%  " in text.out and "CPU-seconds" in text.out
    to = tmp_path / "winner"
    exported = lw("export", "study.yaml", to, "--out", "out", "--variant", variant)
    assert (exported.code, exported.out.strip()) == (0, str(to)), exported.err
    assert (to / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    assert (
        json.loads((to / "provenance.json").read_text())["trial"]["variant"]["recipe"]["steps"][0]["name"]
        == "round_to_nearest"
    )
    assert "not empty" in one_message(lw("export", "study.yaml", to, "--out", "out", "--variant", variant), 2)


def test_what_cannot_be_asked(there: Path, lw: Callable[..., Said]) -> None:
    assert "No finished variant is called 'best'" in one_message(
        lw("ask", "study.yaml", "x", "--out", "out", "--variant", "best"), 2
    )
    variant = lw("plan", "study.yaml", "--out", "out", "--json").json["variants"][0]
    assert "ticket is empty" in one_message(lw("ask", "study.yaml", " ", "--out", "out", "--variant", variant), 2)


# ---- words


def test_every_finished_job_is_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    from leanwatt.store import Store

    records = {record.job: record for record in Store(finished / "out").records()}
    for record in (
        records["grade"],
        records["weigh"],
        replace(records["make"], status="failed", error="boom\nat line 1"),
    ):
        cli._tell(record)
    grade, weigh, make = capsys.readouterr().err.splitlines()
    assert grade.startswith("done    grade  ") and "root_cause macro_f1 0." in grade and "CPU-s" in grade
    assert weigh.startswith("done    weigh round 1  ")
    assert make.startswith("failed  make  ") and make.endswith(": boom")


@pytest.mark.parametrize(
    ("joules", "lower", "words"),
    [
        (None, None, "0.250 CPU-seconds; energy unknown"),
        (5.0, None, "0.250 CPU-seconds, 5 J, estimated"),
        (5.0, 2.0, "0.250 CPU-seconds, 5 J (2 to 8), estimated"),
    ],
)
def test_unknown_energy_is_said_and_never_zero(joules: float | None, lower: float | None, words: str) -> None:
    from leanwatt.measurement import Energy, Provenance
    from leanwatt.verbs import Reply

    energy = Energy(joules, lower, None if lower is None else 8.0, Provenance.ESTIMATED)
    assert cli._energy_words(Reply("v", (), None, 0.25, energy)) == words


def test_why_the_energy_of_an_answer_is_unknown_is_said() -> None:
    from leanwatt.measurement import Energy
    from leanwatt.verbs import Reply

    energy = Energy(None, flags=("no window yet: the sensors need 50 s",))
    words = "0.250 CPU-seconds; energy unknown (no window yet: the sensors need 50 s)"
    assert cli._energy_words(Reply("v", (), None, 0.25, energy)) == words


if __name__ == "__main__":
    print(help_texts(), end="")
