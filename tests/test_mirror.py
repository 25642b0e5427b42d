"""Models and records at a URL: whole or not there, found by machines that share nothing else."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from test_pipeline import flow_of, study_of

from leanwatt import verbs
from leanwatt.cache import COSTS, SPENT, is_whole
from leanwatt.errors import StoreError, StudyError
from leanwatt.mirror import Mirror
from leanwatt.pipeline import Flow
from leanwatt.store import Store
from leanwatt.study import Study


@pytest.fixture(params=["memory", "file"])
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Mirror:
    url = f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/far"
    return Mirror(url)


def stage(folder: Path) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "config.json").write_text("{}")
    (folder / COSTS).write_text("[]")
    return folder


def a_store(place: Path) -> Path:
    (place / "variants").mkdir(parents=True)
    return place


def test_a_stage_goes_there_and_comes_back_whole(mirror: Mirror, tmp_path: Path) -> None:
    mirror.send(stage(a_store(tmp_path / "one") / "variants" / "abc"))
    folder = a_store(tmp_path / "two") / "variants" / "abc"
    assert mirror.bring(folder)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model.safetensors",
        "config.json",
        "adapter/config.json",
        COSTS,
    }
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert mirror.bring(folder), "what is here is not fetched again"


def test_half_a_stage_is_no_stage(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage(a_store(tmp_path / "one") / "variants" / "abc")
    put, done = Mirror._put, list[str]()

    def breaks(self: Mirror, path: Path, name: str) -> None:
        if len(done) == 2:
            raise OSError("the line is dead")
        done.append(name)
        put(self, path, name)

    monkeypatch.setattr(Mirror, "_put", breaks)
    with pytest.raises(StoreError, match="What was finished is safe"):
        mirror.send(folder)
    monkeypatch.undo()
    other = a_store(tmp_path / "two") / "variants" / "abc"
    assert not mirror.bring(other)
    assert not other.exists()
    mirror.send(folder)
    assert mirror.bring(other)


def test_what_is_not_whole_here_is_not_sent(mirror: Mirror, tmp_path: Path) -> None:
    folder = stage(a_store(tmp_path / "one") / "variants" / "abc")
    (folder / COSTS).unlink()
    mirror.send(folder)
    assert not mirror.bring(a_store(tmp_path / "two") / "variants" / "abc")


def test_of_a_chain_the_last_stage_and_the_parent_come_and_of_others_the_costs(mirror: Mirror, tmp_path: Path) -> None:
    here = a_store(tmp_path / "one") / "variants"
    for name in ("base", "tuned", "merged", "pruned"):
        mirror.send(stage(here / name))
    there = a_store(tmp_path / "two") / "variants"
    folders = [there / name for name in ("base", "tuned", "merged", "pruned", "quantized")]
    mirror.bring_stages(folders, parent=2)
    assert [is_whole(folder) for folder in folders] == [False, False, True, True, False]
    assert [(folder / SPENT).is_file() for folder in folders] == [True, True, False, False, False]


def test_a_mirror_travels_as_its_url(mirror: Mirror) -> None:
    assert mirror._system is not None
    again = pickle.loads(pickle.dumps(mirror))
    assert again == mirror
    assert again._root == mirror._root


def test_a_base_of_the_driver_is_sent_ahead_and_no_other_machine_needs_it(
    saved: Callable[[str], Path], tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(saved("llama"), base)
    url = f"file://{tmp_path}/far"
    monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / "driver"))
    data = study_of(base, tickets, engine=["transformers"], executor={"ray": {"store": url}}, baselines=[])
    flow = flow_of(data, tmp_path / "run")
    shutil.rmtree(base)
    monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / "node"))
    for trial in flow.space:
        record, _ = flow._agenda.turn("make", trial).attempt(trial)
        assert record.status == "done", record.error
        assert (tmp_path / "node" / "mirrors").is_dir()


@pytest.mark.parametrize("url", ["nosuch://bucket/study", "hdfs3://a/b"])
def test_a_url_that_cannot_be_used_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=url):
        Mirror(url).bring(a_store(tmp_path) / "variants" / "abc")
    with pytest.raises(StudyError) as told:
        Mirror(url.replace("//", "//me:secret@")).bring(tmp_path / "variants" / "abc")
    assert "secret" not in str(told.value)


def test_a_study_over_machines_that_share_only_a_url(
    mirror: Mirror, saved: Callable[[str], Path], tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = study_of(saved("llama"), tickets, engine=["transformers"], baselines=["majority"])
    here = flow_of(data, tmp_path / "here")
    here.try_all()
    monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / "nobody"))

    def on(machine: str, flow: Flow, job: str) -> None:
        monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / machine))
        flow._do(job, [trial for trial in flow.space if not trial.is_baseline or job != "make"])  # type: ignore[arg-type]

    plain = flow_of(data, tmp_path / "there")
    there = dataclasses.replace(plain, bench=dataclasses.replace(plain.bench, mirror=mirror))
    for machine, job in (("first", "make"), ("second", "grade")):
        on(machine, there, job)
    assert not list((tmp_path / "there" / "variants").iterdir()), "the driver needs no model"
    assert {record.status for record in there.store.records()} == {"done"}
    ours = {r.id: (r.metrics, r.artifact) for r in here.store.records() if r.job in ("make", "grade")}
    assert {r.id: (r.metrics, r.artifact) for r in there.store.records() if r.job in ("make", "grade")} == ours

    elsewhere = flow_of(data, tmp_path / "elsewhere")
    resumed = dataclasses.replace(elsewhere, bench=there.bench)
    mirror.bring_records(resumed.store.folder)
    assert {r.id for r in resumed.store.records()} == {r.id for r in there.store.records()}
    for record in there.store.records():
        assert repr(resumed.store.rows(record)) == repr(there.store.rows(record))
    fsspec.filesystem(mirror.url.partition(":")[0]).pipe_file(f"{mirror._root}/records/half.json.part", b"{")
    mirror.bring_records(resumed.store.folder)
    assert not list((resumed.store.folder / "records").glob("half*"))


def test_the_winner_is_fetched_when_it_is_asked_for(
    mirror: Mirror, saved: Callable[[str], Path], tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = study_of(saved("llama"), tickets, engine=["transformers"], steps=[], baselines=[])
    plain = flow_of(data, tmp_path / "run")
    monkeypatch.setenv("LEANWATT_CACHE", str(tmp_path / "node"))
    flow = dataclasses.replace(plain, bench=dataclasses.replace(plain.bench, mirror=mirror))
    flow.try_all()
    [trial] = flow.space
    with pytest.raises(StudyError, match="no longer in"):
        verbs._artifact(Study.parse(data), tmp_path / "run", trial)
    far: Any = Study.parse(data | {"executor": {"ray": {"store": mirror.url}}})
    folder = verbs._artifact(far, tmp_path / "run", trial)
    assert is_whole(folder)
    assert folder.parent == Store(tmp_path / "run").variants
    assert verbs._mirror(Study.parse(data)) is None
