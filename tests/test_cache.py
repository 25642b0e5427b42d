"""The cache of variants: the least recently used goes first, never what is used; nothing half is served."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import flow_of, study_of
from test_variants import DEPTH, EIGHT, FOUR, HALF, Workshop

from leanwatt import curve
from leanwatt.cache import COSTS, CURVE, SPENT, Cache, alone, draft_of, in_use, is_whole, publish, size_of
from leanwatt.curve import Curve, Point
from leanwatt.errors import StudyError
from leanwatt.model import load
from leanwatt.record import Record
from leanwatt.variants import local_base, read_costs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "variants").mkdir()
    return tmp_path / "variants"


@pytest.fixture
def workshop(saved: Callable[[str], Path], context: Any, folder: Path) -> Workshop:
    return Workshop(folder, local_base(str(saved("llama")), None), list(context.train))


def stage(folder: Path, name: str, size: int, used: float) -> Path:
    made = folder / name
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"x" * (size - 2))
    (made / COSTS).write_text("[]")
    os.utime(made / COSTS, (used, 1.0))
    return made


def test_the_least_recently_used_goes_first(folder: Path) -> None:
    old, new, middle = stage(folder, "a", 400, 10), stage(folder, "b", 300, 30), stage(folder, "c", 300, 20)
    assert Cache(folder).trim() == []
    assert Cache(folder, 1000).trim() == []
    assert Cache(folder, 700).trim() == ["a"]
    assert [is_whole(each) for each in (old, new, middle)] == [False, True, True]
    with in_use(middle) as there:
        assert there
    assert Cache(folder, 300).trim() == ["b"], "using it made it the newest"
    assert size_of(folder) < 400
    assert not list(folder.glob(".*"))


def test_costs_stay_when_the_model_goes(workshop: Workshop) -> None:
    made = workshop.make(DEPTH, EIGHT)
    costs = read_costs(made)
    assert len(Cache(workshop.folder, 1).trim()) == 3
    assert read_costs(made) == costs
    assert [path.name for path in made.iterdir()] == [SPENT]
    assert read_costs(workshop.folder / "unknown") == []


def test_the_curve_of_a_fine_tuning_stays_when_the_model_goes(folder: Path) -> None:
    tuned = stage(folder, "a", 400, 10)
    point = Point(0, 0, 0.0, None, 3.0)
    Curve((point,)).save(tuned)
    assert Cache(folder, 1).trim() == ["a"]
    assert sorted(path.name for path in tuned.iterdir()) == [CURVE, SPENT]
    assert curve.read(tuned) == Curve((point,))
    assert not is_whole(tuned), "nobody takes it for a model"


def test_what_was_removed_is_made_again_from_what_is_left(workshop: Workshop) -> None:
    made = workshop.make(DEPTH, HALF, EIGHT)
    Cache(workshop.folder, size_of(made) + 1).trim([made])
    assert is_whole(made)
    workshop.make(DEPTH, HALF, EIGHT)
    assert workshop.spent == [("prune", True), ("prune", True), ("quantize", True)], (
        "charged, although only its end is left"
    )
    workshop.make(DEPTH, HALF, FOUR)
    assert workshop.spent == [("load", False), ("prune", False), ("prune", False), ("quantize", False)]


def test_what_is_needed_or_used_stays(folder: Path) -> None:
    needed, used, free = stage(folder, "a", 300, 1), stage(folder, "b", 300, 2), stage(folder, "c", 300, 3)
    with in_use(used):
        assert Cache(folder, 350).trim([needed]) == ["c"]
    assert is_whole(needed) and is_whole(used) and not is_whole(free)
    with pytest.raises(StudyError, match=r"cache_gb.*Allow more"):
        Cache(folder, 200).trim([needed])


def test_a_folder_that_goes_while_it_is_opened_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    made, real = stage(folder, "a", 300, 1), fcntl.flock

    def slow(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_SH:
            monkeypatch.setattr(fcntl, "flock", real)
            Cache(folder, 1).trim()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with in_use(made) as there:
        assert not there
    with in_use(folder / "never") as there:
        assert not there


HOLD = """
import sys, time
from pathlib import Path
from leanwatt.cache import draft_of
with draft_of(Path(sys.argv[1])) as draft:
    (draft / "model.safetensors").write_bytes(b"x")
    print("holds", flush=True)
    time.sleep(60)
"""


def test_drafts_of_killed_saves_are_swept_and_others_not(folder: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "key")], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "holds\n"
        [draft] = folder.glob(".key.*")
        old = time.time() - 3600
        os.utime(draft, (old, old))
        assert Cache(folder).sweep() == [], "its writer lives"
    finally:
        writer.kill()
        writer.communicate()
    os.utime(draft, (time.time(), time.time()))
    assert Cache(folder).sweep() == [], "it may have been begun just now"
    os.utime(draft, (old, old))
    assert Cache(folder).sweep() == [draft.name]
    stage(folder, "done", 10, 1)
    for name in (".done.work", ".open.work"):
        (folder / name).mkdir()
    assert Cache(folder).sweep() == [".done.work"], "a checkpoint of what is not made yet stays"


def test_only_a_whole_draft_is_published(folder: Path) -> None:
    target = folder / "key"
    with pytest.raises(RuntimeError), draft_of(target) as draft:
        (draft / "model.safetensors").write_bytes(b"half")
        raise RuntimeError
    assert list(folder.iterdir()) == []
    for content in (b"first", b"second"):
        with alone(target), draft_of(target) as draft:
            (draft / "model.safetensors").write_bytes(content)
            (draft / COSTS).write_text("[]")
            publish(draft, target)
    assert (target / "model.safetensors").read_bytes() == b"first"


def _make(arguments: tuple[Path, str, list[Any]]) -> list[tuple[str, bool]]:
    folder, base, examples = arguments
    workshop = Workshop(folder, local_base(base, None), examples)
    made = workshop.make(DEPTH, HALF, EIGHT)
    assert load(made).codes
    return workshop.spent


def test_several_writers_make_everything_once(workshop: Workshop) -> None:
    work = [(workshop.folder, workshop.base.place, workshop.examples)] * 3
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_make, work)
    stages = [stage for spent in found for stage in spent if stage[0] != "load"]
    assert sorted(stages) == sorted(
        [("prune", False), ("prune", False), ("quantize", False)]
        + 2 * [("prune", True), ("prune", True), ("quantize", True)]
    )
    assert not list(workshop.folder.glob(".*"))


def test_a_study_whose_models_were_removed_makes_them_again(
    saved: Callable[[str], Path], tickets: Path, tmp_path: Path
) -> None:
    small = study_of(saved("llama"), tickets, engine="transformers", baselines=[])
    small |= {"tasks": small["tasks"][:1], "protocol": {"quick": {"rounds": 1, "window_seconds": 0.05}}}
    told: list[Record] = []
    flow = flow_of(small | {"cache_gb": 1}, tmp_path, told)
    flow.run()
    gone = Cache(tmp_path / "variants", 1).trim()
    assert len(gone) == 3
    study = replace(flow.bench.study, protocol=replace(flow.bench.study.protocol, rounds=2))
    replace(flow, bench=replace(flow.bench, study=study)).run()
    fresh = [record for record in told if record.round == 1]
    assert {record.status for record in fresh} == {"done"}
    again = [m.stage for record in fresh for m in record.measurements if m.stage.startswith("again/")]
    assert again.count("again/finetune") == 1, "the second shares it"
    with pytest.raises(StudyError, match="cache_gb"):
        flow_of(small | {"cache_gb": 1e-6}, tmp_path / "small", told).run()
