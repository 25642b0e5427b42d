"""The whole flow on a tiny model and tiny tickets: everything real but the size."""

import dataclasses
import json
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

from leanwatt import verbs
from leanwatt.errors import StudyError
from leanwatt.form import likely
from leanwatt.jobs import Turn
from leanwatt.pipeline import Flow
from leanwatt.plan import check
from leanwatt.recipe import Choice
from leanwatt.record import Record
from leanwatt.serve import opened
from leanwatt.serving import Settings
from leanwatt.store import Store
from leanwatt.study import Study


def study_of(base: Path, tickets: Path, **changes: Any) -> dict[str, Any]:
    data = {"path": str(tickets), "near_duplicate": None, "validation": 0.25, "test": 0.25}
    return {
        "name": "tiny",
        "base": str(base),
        "steps": [
            {"finetune": [{"full": {"epochs": 4, "learning_rate": 0.003}}]},
            {"quantize": ["none", {"round_to_nearest": {"bits": 8, "group": 16}}]},
        ],
        "engine": ["transformers", "openvino"],
        "batch": 4,
        "tasks": [
            {"root_cause": {"data": data, "text": "description", "label": "cause"}},
            {
                "response": {
                    "data": data,
                    "text": "description",
                    "reference": "resolution",
                    "slots": {"place": "place"},
                    "limit": 12,
                }
            },
        ],
        "baselines": ["majority", "constant", "tfidf", "nearest"],
        "protocol": {"quick": {"rounds": 2, "window_seconds": 0.05}},
        "executor": {"local": {"process": "same"}},
        **changes,
    }


def flow_of(data: dict[str, Any], folder: Path, told: list[Record] | None = None) -> Flow:
    study, store = Study.parse(data), Store(folder)
    plan = check(study, store)
    notice = told.append if told is not None else lambda record: None
    return Flow(verbs._bench(plan, store), list(plan.trials), store, notice)


@pytest.fixture
def tiny(saved: Callable[[str], Path], tickets: Path) -> dict[str, Any]:
    return study_of(saved("llama"), tickets)


def test_a_study_from_start_to_answer(tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, out = Study.parse(tiny), tmp_path / "run"
    ranking = verbs.run(study, out)
    records = Store(out).records()
    assert {record.status for record in records} == {"done"}
    assert len([r for r in records if r.job == "make"]) == 2, "engines share what is made"
    assert len([r for r in records if r.job == "grade"]) == 8
    assert len([r for r in records if r.job == "weigh"]) == 16
    assert ranking.sweet_spot is not None
    for name in ("report.md", "table.csv", "ranking.json", "report.html"):
        assert (out / "report" / name).stat().st_size > 500
    json.loads((out / "report" / "ranking.json").read_text(encoding="utf-8"))
    assert "site A0" not in "".join(p.read_text(encoding="utf-8") for p in (out / "report").iterdir()), (
        "ticket text leaked"
    )

    told: list[Record] = []
    assert verbs.run(study, out, notice=told.append) == ranking
    assert told == [], "nothing is left to do"

    label = next(r.trial.label for r in records if r.job == "grade" and "openvino" in r.trial.label)
    reply = verbs.ask(study, "site B power lost then alarm 3", out, label)
    assert sum(share for _, share in reply.causes) == pytest.approx(1.0)
    assert reply.response is not None
    assert reply.cpu_seconds > 0
    assert verbs.look(study, out)().stage == "done"
    offer = verbs.offer(study, out, label)
    with opened(offer, Settings()) as (_, batcher):
        questions = offer.form.about("site B power lost then alarm 3")
        answered = batcher.submit(list(questions.values())).result(60)
    causes = dict(likely(questions["root_cause"], answered.answers[0]))
    assert causes == pytest.approx(dict(reply.causes), abs=1e-3), "the server says what ask says"
    folder = verbs.export(study, tmp_path / "exported", out, label)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "macro_f1" in card or "macro-F1" in card
    origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert origin["questions"]["root_cause"]["prompt"]["lead"] == "Root cause:"
    assert "with all that is uncertain" in card
    assert dataclasses.replace(verbs.offer(folder), artifact=offer.artifact) == offer
    with pytest.raises(StudyError, match="not empty"):
        verbs.export(study, tmp_path / "exported", out, label)
    with pytest.raises(StudyError, match="There are"):
        verbs.ask(study, "x", out, "no such variant")
    with pytest.raises(StudyError, match="empty"):
        verbs.ask(study, "  ", out, label)


def test_shared_work_is_done_once_and_charged_to_all(tiny: dict[str, Any], tmp_path: Path) -> None:
    flow = flow_of(tiny | {"baselines": [], "engine": "transformers"}, tmp_path)
    flow.run()
    makes = [record for record in flow.store.records() if record.job == "make"]
    tuned = [m for record in makes for m in record.measurements if m.stage == "finetune"]
    assert sorted(m.reused for m in tuned) == [False, True]
    assert len({m.seconds for m in tuned}) == 1, "the reused cost is that of the run that made it"


def test_a_failing_trial_is_a_record_and_the_study_goes_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.quantize.round_to_nearest import RoundToNearest

    def broken(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(RoundToNearest, "apply", broken)
    told: list[Record] = []
    flow = flow_of(tiny | {"baselines": [], "engine": "transformers"}, tmp_path, told)
    ranking = flow.run()
    [failed] = [record for record in told if record.status == "failed"]
    assert failed.error is not None
    assert failed.error.startswith("ZeroDivisionError: on purpose")
    assert [m.stage for m in failed.measurements][-1] == "quantize", "a stage that fails still spent its joules"
    assert [entry.status for entry in ranking.entries].count("done") == 1
    assert not [r for r in told if r.job == "grade" and r.trial.variant.id == failed.trial.variant.id]

    monkeypatch.undo()
    again = dataclasses.replace(flow, retry=True, notice=told.append)
    ranking = again.run()
    assert [entry.status for entry in ranking.entries].count("done") == 2
    assert failed.id in flow.store, "the old attempt stays"


def test_a_refusal_is_told_from_a_failure(tiny: dict[str, Any], tmp_path: Path) -> None:
    steps = [{"quantize": ["none", {"round_to_nearest": {"bits": 8}}]}, {"prune": [{"magnitude": {"sparsity": 0.5}}]}]
    told: list[Record] = []
    flow_of(tiny | {"steps": steps, "baselines": [], "engine": "transformers"}, tmp_path, told).run()
    [refused] = [record for record in told if record.status == "refused"]
    assert "put prune before quantize" in str(refused.error)


def test_a_wrong_engine_fails_its_trial(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.engine import openvino

    real = openvino._OpenVino._run
    monkeypatch.setattr(openvino._OpenVino, "_run", lambda *a: real(*a)[..., ::-1].copy())
    told: list[Record] = []
    flow_of(tiny | {"baselines": [], "engine": "openvino"}, tmp_path, told).run()
    failed = [record for record in told if record.status == "failed"]
    assert len(failed) == 2
    assert "computes something else" in str(failed[0].error)


def test_the_test_split_is_met_only_by_the_last_few(tiny: dict[str, Any], tmp_path: Path) -> None:
    told: list[Record] = []
    flow = flow_of(tiny, tmp_path, told)
    ranking = flow.run()
    confirmed = {record.trial.label for record in told if record.job == "confirm"}
    plain = {record.trial.label for record in told if record.trial.is_baseline}
    allowed = {ranking.reference, *ranking.order_of_candidates, *plain}
    assert confirmed <= allowed
    graded_ids = {row["id"] for r in told if r.job == "grade" for row in flow.store.rows(r)}
    tested_ids = {row["id"] for r in told if r.job == "confirm" for row in flow.store.rows(r)}
    assert not graded_ids & tested_ids


def test_folds_make_a_variant_each_and_test_every_row_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    [cause, _] = tiny["tasks"]
    cause["root_cause"]["data"] = cause["root_cause"]["data"] | {"folds": 3}
    told: list[Record] = []
    flow = flow_of(tiny | {"tasks": [cause], "engine": "transformers", "baselines": ["tfidf"]}, tmp_path, told)
    flow.run()
    assert len([r for r in told if r.job == "make"]) == 6
    tested = [row["id"] for r in told if r.job == "confirm" and r.trial.is_baseline for row in flow.store.rows(r)]
    assert len(tested) in (0, 120)
    assert len(set(tested)) == len(tested)


def test_the_stages_of_a_job_add_up_to_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    flow = flow_of(tiny | {"baselines": ["tfidf"], "engine": "transformers"}, tmp_path)
    ranking = flow.run()
    records = flow.store.records()
    assert {record.job for record in records} >= {"make", "grade", "weigh"}
    for record in records:
        assert record.whole is not None
        assert record.spent[-1].stage == "unattributed"
        assert sum(stage.seconds for stage in record.spent) == pytest.approx(record.whole.seconds)
        assert sum(stage.cpu_seconds for stage in record.spent) == pytest.approx(record.whole.cpu_seconds)
        assert record.spent[-1].seconds >= 0
    assert ranking.totals.cpu_seconds == pytest.approx(sum(r.whole.cpu_seconds for r in records if r.whole))
    by_stage = sum(took["cpu_seconds"] or 0.0 for took in ranking.totals.stages.values())
    assert by_stage == pytest.approx(ranking.totals.cpu_seconds)
    assert ranking.interrupted is None
    assert not list((tmp_path / "journals").iterdir()), "a record has taken the journal's place"


def test_a_worker_that_is_killed_still_tells_what_it_spent(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.contracts import WorkerDied
    from leanwatt.executor.local import Local
    from leanwatt.journal import window
    from leanwatt.meter.estimate import Estimate

    def dies(self: Local, job: Any, items: Any, **_: Any) -> Any:
        for item in items:
            if isinstance(item, Turn) and item.attempt.job == "grade":
                journal = item.attempt.journal
                assert journal is not None
                with Estimate().open() as read, window(read, "grade", journal):
                    sum(i * i for i in range(10**6))
                text = journal.read_text().splitlines()
                journal.write_text("\n".join(text[:-1]).replace('"begin"', '"beat"'))
                yield WorkerDied(item, "killed")
            else:
                yield job(item)

    monkeypatch.setattr(Local, "run", dies)
    flow = flow_of(tiny | {"baselines": [], "engine": "transformers"}, tmp_path)
    flow.run()
    died = [record for record in flow.store.records() if record.job == "grade"]
    assert died
    for record in died:
        assert record.whole is not None and record.whole.flags == ("killed",)
        assert [stage.stage for stage in record.spent] == ["unattributed"]
    assert not list((tmp_path / "journals").iterdir())


KILLED = """
import sys, os
from leanwatt import verbs
from leanwatt.study import Study
import json
count = 0
def notice(record):
    global count
    count += 1
    print(record.job, flush=True)
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
verbs.run(Study.parse(json.load(open(sys.argv[1]))), sys.argv[2], notice=notice)
"""


LEFT = (
    '{"event": "beat", "key": "1-2.5", "measurement": {"stage": "make", "seconds": 12.0, "cpu_seconds": 9.5, '
    '"devices": {}, "idle_watts": {}, "answers": 0, "tokens_in": 0, "tokens_out": 0, "within": "", "reused": false, '
    '"flags": []}}\n'
)
"""What a worker leaves that was killed in mid-job."""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_killed_run_ends_with_the_same_records(tiny: dict[str, Any], tmp_path: Path, after: int) -> None:
    small = tiny | {"engine": "transformers", "baselines": ["tfidf"]}
    (tmp_path / "study.json").write_text(json.dumps(small), encoding="utf-8")
    (tmp_path / "killer.py").write_text(KILLED, encoding="utf-8")
    whole = flow_of(small, tmp_path / "whole")
    whole.run()
    command = [sys.executable, str(tmp_path / "killer.py"), str(tmp_path / "study.json"), str(tmp_path / "killed")]
    died = subprocess.run([*command, str(after)], check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL
    kept = {record.id for record in Store(tmp_path / "killed").records()}
    assert len(kept) == after, "no finished record is lost"
    (tmp_path / "killed" / "journals" / "left.jsonl").write_text(LEFT, encoding="utf-8")
    ranking = flow_of(small, tmp_path / "killed").run()
    assert ranking.interrupted is not None and ranking.interrupted.cpu_seconds == 9.5
    assert {r.id for r in Store(tmp_path / "killed").records()} == {r.id for r in whole.store.records()}


def test_ctrl_c_keeps_what_is_finished(tiny: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    tiny["executor"] = "local"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    command = [sys.executable, "-m", "leanwatt", "run", "study.yaml", "--out", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=untraced(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "records").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "goes on from there" in said
    assert "Traceback" not in said
    assert Store(tmp_path / "run").records()


def test_weights_of_a_variant_are_made_once_for_all_folders(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The same study in another place has the same trials."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    source = Path(tiny["tasks"][0]["root_cause"]["data"]["path"])
    (moved / "other.csv").write_bytes(source.read_bytes())
    first = check(Study.parse(tiny), Store(tmp_path / "a"))
    for task in tiny["tasks"]:
        for settings in task.values():
            settings["data"] = settings["data"] | {"path": str(moved / "other.csv")}
    second = check(Study.parse(tiny), Store(tmp_path / "b"))
    assert [trial.id for trial in first.trials] == [trial.id for trial in second.trials]
    assert Choice.parse("prune", "none").name == "none"
