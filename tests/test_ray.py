"""Jobs over a real Ray cluster of several nodes on this machine: order, deaths, lost nodes, leases, whole studies."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import untraced
from ray_jobs import fall, refuse, stamp, stay, who

from leanwatt import catalog, verbs
from leanwatt.contracts import WorkerDied
from leanwatt.errors import MissingExtraError, StoreError, StudyError
from leanwatt.executor import _cluster
from leanwatt.executor._cluster import Cluster, Lease, Place, Running
from leanwatt.executor._leases import Leases
from leanwatt.executor.local import Local
from leanwatt.executor.ray import Ray
from leanwatt.jobs import LOST
from leanwatt.machine import describe
from leanwatt.measurement import Reading
from leanwatt.meter.replay import record as recorded
from leanwatt.pipeline import Flow
from leanwatt.plan import check
from leanwatt.record import Record
from leanwatt.store import Store
from leanwatt.study import Study

ray = pytest.importorskip("ray")
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster as Started

    here = Path(__file__).parent
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{before}"  # Nodes load the jobs of this file.
    started = Started(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        started.add_node(num_cpus=1)
    _cluster.connect(started.address)
    yield started
    ray.shutdown()
    started.shutdown()
    os.environ["PYTHONPATH"] = before


@pytest.fixture
def two(cluster: Any) -> Ray:
    """Two jobs at once."""
    return Ray(address=cluster.address, jobs_per_host=2)


def until(is_so: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_SECONDS
    while not (found := is_so()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def node_of(cluster: Any, pid: int) -> Any:
    """The node that a process of a job runs on: its raylet is among the process's forebears."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    while pid not in raylets:
        assert pid > 1, "the process belongs to none of the nodes"
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return raylets[pid]


def test_every_job_has_a_process_of_its_own_without_ray_in_the_folder_of_the_driver(two: Ray) -> None:
    outcomes = sorted(two.run(who, ["a", "b", "c"]))
    assert [item for item, *_ in outcomes] == ["a", "b", "c"]
    assert len({os.getpid(), *(pid for _, pid, *_ in outcomes)}) == 4
    assert {(folder, has_ray) for *_, folder, has_ray in outcomes} == {(os.getcwd(), False)}


def test_a_crash_is_an_outcome_with_words_and_a_machine_and_others_go_on(two: Ray) -> None:
    outcomes = list(two.run(fall, ["fine", "fall", "also fine"]))
    [died] = [outcome for outcome in outcomes if isinstance(outcome, WorkerDied)]
    assert (died.item, died.is_lost) == ("fall", True)
    assert "exit code -11: a crash in native code" in died.reason
    assert died.machine is not None and died.machine["id"] == describe()["id"]
    assert {outcome for outcome in outcomes if outcome is not died} == {"fine", "also fine"}


def test_an_error_crosses_with_its_type_and_words(two: Ray) -> None:
    with pytest.raises(StoreError, match="no room for x"):
        list(two.run(refuse, ["x"]))


def test_a_lost_node_is_an_outcome_and_the_rest_goes_on_elsewhere(cluster: Any, tmp_path: Path) -> None:
    extra = cluster.add_node(num_cpus=1)
    places = [str(tmp_path / name) for name in ("a", "b", "c")]
    outcomes: list[Any] = []
    three = Ray(address=cluster.address, jobs_per_host=3)
    thread = threading.Thread(target=lambda: outcomes.extend(three.run(stay, [*places, str(tmp_path / "d")])))
    thread.start()
    pids = {place: int(until(lambda path=place: Path(path).exists() and Path(path).read_text())) for place in places}
    [(lost, pid)] = [(place, pid) for place, pid in pids.items() if node_of(cluster, pid) is extra]
    cluster.remove_node(extra, allow_graceful=False)
    died = until(lambda: outcomes)[0]
    assert isinstance(died, WorkerDied)
    assert (died.item, died.is_lost, died.machine) == (lost, True, {})
    assert "lost" in died.reason and "IP" not in died.reason
    until(lambda: not Path(f"/proc/{pid}").exists())
    for place in [*places, str(tmp_path / "d")]:
        Path(f"{place}.go").touch()
    thread.join(WAIT_SECONDS)
    assert sorted(outcomes[1:]) == sorted({*places, str(tmp_path / "d")} - {lost})


def test_a_job_that_is_alone_is_alone_on_all_nodes_of_the_machine(cluster: Any, two: Ray) -> None:
    """Two drivers' worth of jobs: those that weigh meet nobody, the others meet each other."""
    found: dict[bool, list[tuple[float, float]]] = {}

    def drive(alone: bool) -> None:
        found[alone] = list(Ray(address=cluster.address, jobs_per_host=2).run(stamp, range(4), alone=alone))

    threads = [threading.Thread(target=drive, args=(alone,)) for alone in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    everyone = [(span, alone) for alone, spans in found.items() for span in spans]
    for (begin, end), alone in everyone:
        beside = [other for other, _ in everyone if other != (begin, end) and other[0] < end and begin < other[1]]
        assert not (alone and beside), "somebody computed while it weighed"
    gradings = sorted(found[False])
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(gradings))


def test_to_close_the_outcomes_ends_the_jobs_and_gives_their_leases_back(two: Ray, tmp_path: Path) -> None:
    place = tmp_path / "place"
    outcomes = two.run(stay, ["", str(place)])
    with pytest.raises(IsADirectoryError):
        next(outcomes)
    # The other one may have begun or not: nothing of it is left.
    time.sleep(1)
    if place.exists():
        pid = int(place.read_text())
        until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: ray.get(two._office.holders.remote(str(describe()["boot_id"]))) == [])


STOPPING = """
import itertools, os, random, signal, threading
from ray_jobs import who
from leanwatt.executor.ray import Ray

signal.signal(signal.SIGINT, signal.default_int_handler)
executor = Ray(address="local", jobs_per_host=2)
list(executor.run(who, ["all is loaded"]))
for number in range(8):
    threading.Timer(0.2 + 1.5 * random.Random(number).random(), os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        list(executor.run(who, itertools.count()))
    except KeyboardInterrupt:
        print("stopped")
"""


def test_ctrl_c_may_come_when_a_job_is_just_over() -> None:
    """Ray tells of it when it has an outcome to give, and may end the driver if that very task is cancelled then."""
    command = [sys.executable, "-c", STOPPING]
    there = untraced() | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False, timeout=150)
    assert (done.returncode, done.stdout.split()) == (0, ["stopped"] * 8), done.stderr


def test_items_are_asked_for_when_there_is_a_place_and_none_means_wait(two: Ray) -> None:
    asked: list[str] = []

    def items() -> Iterator[Any]:
        for item in ("a", None, "b", "c"):
            asked.append(str(item))
            yield item

    outcomes = two.run(who, items())
    next(outcomes)
    assert asked[:2] == ["a", "None"]
    assert sorted(item for item, *_ in outcomes) == ["b", "c"]


def a_study(folder: Path, base: Path, tickets: Path, **changes: Any) -> Flow:
    """One model and two baselines, on a meter that is read from a file."""
    meter = folder.parent / "meter.jsonl"
    recorded(meter, [Reading(float(i), i / 2) for i in range(500)])
    data = {"path": str(tickets), "near_duplicate": None, "validation": 0.25, "test": 0.25}
    study = Study.parse(
        {
            "name": "small",
            "base": str(base),
            "engine": "transformers",
            "tasks": [{"root_cause": {"data": data, "text": "description", "label": "cause"}}],
            "baselines": ["majority", "tfidf"],
            "protocol": {"quick": {"rounds": 1, "window_seconds": 0.05}},
            "meter": {"replay": {"path": str(meter)}},
            **changes,
        }
    )
    store = Store(folder)
    plan = check(study, store)
    return Flow(verbs._bench(plan, store), list(plan.trials), store, lambda record: None)


def told(records: list[Record]) -> dict[str, Any]:
    """What must not depend on where a job ran."""
    passing = ("wall_seconds", "option_agreement", "flags")
    return {
        record.id: (
            record.job,
            record.trial.label,
            record.status,
            rounded(record.metrics),
            record.artifact,
            rounded({key: value for key, value in record.facts.items() if key not in passing}),
        )
        for record in records
    }


def rounded(tree: Any) -> Any:
    """Sums of floats depend on the number of threads."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    return round(tree, 5) if isinstance(tree, float) else tree


def test_a_study_with_a_node_killed_in_mid_trial_ends_with_the_records_of_a_local_one(
    cluster: Any, saved: Callable[[str], Path], tickets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = saved("llama")
    here = a_study(tmp_path / "here", base, tickets, executor={"local": {"process": "same"}})
    here.try_all()
    executor = {"ray": {"address": cluster.address, "jobs_per_host": 3}}
    there = a_study(tmp_path / "there", base, tickets, executor=executor)
    thread = threading.Thread(target=there.try_all)
    thread.start()
    folder = tmp_path / "there" / "journals"
    make = here.space[0]
    name = there._agenda.turn("make", make).record_id
    journal = until(lambda: [path for path in folder.glob(f"{name}.*") if path.read_text()])[0]
    pid = int(json.loads(journal.read_text().splitlines()[0])["key"].split("-")[0])
    cluster.remove_node(node_of(cluster, pid), allow_graceful=False)
    thread.join(2 * WAIT_SECONDS)
    assert not thread.is_alive()
    for flow in (here, there):  # Baselines only: a model takes long to load.
        dataclasses.replace(flow, space=[trial for trial in flow.space if trial.is_baseline])._weigh(0)
    failed = [record for record in there.store.records() if record.status == "failed"]
    assert {(record.attempt, record.facts[LOST]) for record in failed} == {(0, True)}, "all that ran on that node"
    [lost] = [record for record in failed if record.job == "make"]
    assert lost.whole is not None and lost.whole.flags == ("killed",), "what it had spent is a lower bound"
    again = {record.again(0).id: record for record in there.store.records() if record.status == "done"}
    found = told([record.again(0) for record in again.values()])
    assert found == told(here.store.records())
    assert {record.job for record in again.values()} == {"make", "grade", "weigh"}
    assert [r.attempt for r in again.values() if r.job == "make"] == [1]
    for name, record in again.items():
        rows = here.store.rows(here.store.get(name))
        assert there.store.rows(record) == rows, "predictions are the same, one by one"
    assert not list(folder.iterdir())
    assert "raylet" not in "".join(capfd.readouterr()).lower(), "the last words of a node are not for the screen"
    cluster.add_node(num_cpus=1)


def test_a_study_on_nodes_that_share_only_a_url_has_the_records_of_a_local_one(
    cluster: Any, saved: Callable[[str], Path], tickets: Path, tmp_path: Path
) -> None:
    base, far = saved("llama"), tmp_path / "far"
    here = a_study(tmp_path / "here", base, tickets, executor={"local": {"process": "same"}})
    executor = {"ray": {"address": cluster.address, "jobs_per_host": 2, "store": f"file://{far}"}}
    there = a_study(tmp_path / "there", base, tickets, executor=executor)
    for flow in (here, there):
        flow.try_all()
        assert {record.status for record in flow.store.records()} == {"done"}
    assert told(there.store.records()) == told(here.store.records())
    assert not list(there.store.variants.iterdir()), "the driver needs no model"
    assert len(list((far / "records").iterdir())) == len(there.store.records())


def test_ctrl_c_ends_the_jobs_keeps_the_records_and_says_nothing_of_ray(
    saved: Callable[[str], Path], tickets: Path, tmp_path: Path
) -> None:
    """With a cluster of its own, as a user has it."""
    flow = a_study(tmp_path / "plan", saved("llama"), tickets)
    task = {"root_cause": flow.bench.study.tasks[0].settings}
    meter = {"replay": dict(flow.bench.study.meter.settings)}
    study = {"name": "s", "base": str(saved("llama")), "tasks": [task], "meter": meter, "baselines": ["majority"]}
    study |= {"engine": "transformers", "protocol": "quick"}
    study |= {"executor": {"ray": {"address": "local", "jobs_per_host": 2}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    command = [sys.executable, "-m", "leanwatt", "run", "study.yaml", "--out", "run"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=untraced(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    records = tmp_path / "run" / "records"
    until(lambda: process.poll() is not None or list(records.glob("*.json")))
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "goes on from there" in said
    assert "Traceback" not in said
    assert "ray" not in said.lower(), said
    assert Store(tmp_path / "run").records()


def place(node: str, domain: str = "a", cpus: float = 4, gpus: float = 0, *offers: str) -> Place:
    return Place(node, domain, f"hardware of {domain}", cpus, gpus, frozenset(offers))


def cluster_of(monkeypatch: pytest.MonkeyPatch, places: list[Place], most: int = 1, weigh_on: str | None = None) -> Any:
    monkeypatch.setattr(Cluster, "_look", lambda self: None)
    return Cluster(most, weigh_on, _places=places)


def running(*places: Place) -> list[Running]:
    return [Running("item", each, Lease("holder", 1.0, ".", "0")) for each in places]


def test_machines_fill_one_after_the_other_and_blamed_nodes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, other = place("one"), place("two"), place("other", "b")
    seen = cluster_of(monkeypatch, [one, two, other], most=2)
    first = seen.place([], alone=False)
    assert first == one
    assert seen.place(running(one), alone=False) == other, "the emptier machine"
    assert seen.place(running(one, other), alone=False) in (two, other)
    assert seen.place(running(one, two, other, other), alone=False) is None
    assert seen.place(running(one, other, other), alone=False) == two, "a node takes no more than its part"
    seen.is_gone("one")
    assert seen.place([], alone=False) == other


def test_a_node_is_blamed_until_a_job_goes_well_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = cluster_of(monkeypatch, [place("one"), place("two", "b")])
    [sent] = running(place("one"))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    assert isinstance(_cluster.outcome(WorkerDied("item", "gone", True), sent, seen), WorkerDied)
    assert seen.place([], alone=False).node == "two"
    assert _cluster.outcome("well", sent, seen) == "well"
    assert seen.place([], alone=False).node == "one"


def test_what_never_began_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> None:
        raise ray.exceptions.TaskUnschedulableError("its node has gone")

    seen = cluster_of(monkeypatch, [place("one"), place("two", "b")])
    monkeypatch.setattr(ray, "get", gone)
    assert _cluster.outcome("reference", running(place("one"))[0], seen) is _cluster.UNSENT
    assert seen.place([], alone=False).node == "two"


def test_what_never_began_begins_elsewhere_and_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.executor import ray as room

    sent: list[str] = []

    def send(_job: Any, running: Running, *_: Any) -> str:
        sent.append(running.item)
        return f"{running.item} {len(sent)}"

    def come(reference: str, *_: Any) -> Any:
        return _cluster.UNSENT if reference == "b 2" else reference

    monkeypatch.setattr(room, "connect", lambda _: None)
    monkeypatch.setattr(room, "leases", lambda: None)
    monkeypatch.setattr(room, "send", send)
    monkeypatch.setattr(room, "outcome", come)
    monkeypatch.setattr(room, "_ended", list)
    monkeypatch.setattr(Cluster, "place", lambda _, running, alone: None if list(running) else place("one"))
    assert list(Ray().run(who, ["a", "b", "c"])) == ["a 1", "b 3", "c 4"]
    assert sent == ["a", "b", "b", "c"]


def test_memory_that_ran_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise ray.exceptions.OutOfMemoryError("node at 192.0.2.2")

    monkeypatch.setattr(ray, "get", full)
    died = _cluster.outcome("reference", running(place("one"))[0], cluster_of(monkeypatch, []))
    assert "smaller batch" in died.reason and "192" not in died.reason


def test_all_weighings_go_to_one_machine_whatever_order_the_nodes_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    small, gpu, big = place("s", "a", 4), place("g", "b", 4, 2), place("h", "c", 64)
    for places in ([small, gpu, big], [big, gpu, small]):
        seen = cluster_of(monkeypatch, places, most=4)
        assert seen.place([], alone=True) == gpu
        assert seen.place(running(gpu), alone=True) is None
    seen = cluster_of(monkeypatch, [gpu, place("w", "d", 1, 0, "weigher")], weigh_on="weigher")
    assert seen.place([], alone=True).node == "w"


def test_a_better_machine_that_comes_later_does_not_take_over_the_weighing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = cluster_of(monkeypatch, [place("s", "a", 4)])
    assert seen.place([], alone=True).node == "s"
    seen._places.append(place("g", "b", 64, 2))
    assert seen.place([], alone=True).node == "s"
    seen._places.pop(0)
    assert seen.place([], alone=True).node == "g", "the first one is gone"


def test_a_job_takes_its_part_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = place("one", "a", 8, 4)
    assert cluster_of(monkeypatch, [whole]).resources(whole, alone=False) == {"num_cpus": 8, "num_gpus": 4}
    four = cluster_of(monkeypatch, [whole], most=4)
    assert four.resources(whole, alone=False) == {"num_cpus": 2, "num_gpus": 1}
    assert four.resources(whole, alone=True) == {"num_cpus": 8, "num_gpus": 4}
    many = cluster_of(monkeypatch, [place("one", "a", 1)], most=7)
    assert 0 < 7 * many.resources(place("one", "a", 1), alone=False)["num_cpus"] <= 1


def test_a_cluster_without_a_node_for_jobs_is_an_error_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cluster, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(StoreError, match=r"no node of the cluster has CPUs.*run again"):
        cluster_of(monkeypatch, []).place([], alone=False)
    with pytest.raises(StoreError, match="offers the resource 'weigher'"):
        cluster_of(monkeypatch, [place("one")], weigh_on="weigher").place([], alone=True)


def test_no_cluster_is_an_error_that_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(StudyError, match="ray start --head"):
        _cluster.connect("auto")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt import errors

    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"leanwatt\[ray\]"):
        Ray()


@pytest.mark.parametrize(("version", "folder"), [("0.0.1", "."), (None, "/nowhere/at/all")])
def test_nodes_with_another_version_or_without_the_folder_stop_the_study(version: str | None, folder: str) -> None:
    from leanwatt import __version__

    there = _cluster._There(Lease("holder", 1.0, folder, version or __version__), who)
    with pytest.raises(StoreError, match=r"install the same|all nodes share"):
        there("item")


class Office:
    """Leases without a cluster: what `remote` gives is the answer itself."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.leases, name))


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Office:
    """And a main module without a file, as a node makes it, and ray.get that only gives."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    return Office(Leases())


HERE = Lease("us", 1.0, ".", "0.1.0")


def test_a_node_holds_the_lease_while_the_job_runs_and_no_longer(office: Office) -> None:
    domain = str(describe()["boot_id"])
    office.leases.take(domain, "before us", 0.5)
    threading.Timer(0.5, lambda: office.leases.give("before us")).start()
    begun = time.monotonic()
    assert _cluster.on_node(who, "item", HERE, office)[0] == "item"
    assert time.monotonic() - begun >= 0.4, "it waited for its turn"
    assert office.leases.holders(domain) == []
    died = _cluster.on_node(fall, "fall", HERE, office)
    assert isinstance(died, WorkerDied) and died.is_lost and died.machine is not None
    assert office.leases.holders(domain) == []


def test_a_job_whose_lease_is_lost_is_ended_at_once(office: Office, tmp_path: Path) -> None:
    place = tmp_path / "place"
    begun: list[float] = []

    def keep(*_: Any) -> bool:
        if place.exists() and place.read_text():
            begun.append(time.monotonic())
        return not begun

    office.leases.keep = keep  # type: ignore[method-assign]
    died = _cluster.on_node(stay, str(place), HERE, office)
    assert time.monotonic() - begun[0] < 5
    assert isinstance(died, WorkerDied) and died.is_lost
    assert "lease" in died.reason
    assert not Path(f"/proc/{place.read_text()}").exists()


def test_local_takes_jobs_that_are_alone_too() -> None:
    assert list(Local(process="same").run(who, ["a"], alone=True)) == [("a", os.getpid(), os.getcwd(), True)]


GUIDE = Path(__file__).parent.parent / "docs" / "cluster.md"


def blocks() -> list[str]:
    """The indented files of the guide."""
    return [textwrap.dedent(block) for block in re.findall(r"(?:^(?: {4}.*)?\n)+", GUIDE.read_text(), re.MULTILINE)]


def test_the_guide_explains_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", GUIDE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [field.name for field in dataclasses.fields(Ray)]
    for (_, default), field in zip(rows, dataclasses.fields(Ray), strict=True):
        assert default.strip("`") == str(field.default).replace("None", "none")


def test_the_files_of_the_guide_can_be_read_by_those_they_are_for() -> None:
    [job] = [yaml.safe_load(block) for block in blocks() if "kind: RayJob" in block]
    head, [workers] = job["spec"]["rayClusterSpec"]["headGroupSpec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [first], [second] = head["template"]["spec"]["containers"], workers["template"]["spec"]["containers"]
    assert (first["image"], first["env"], first["volumeMounts"]) == (
        second["image"],
        second["env"],
        second["volumeMounts"],
    )
    [script] = [block for block in blocks() if "#SBATCH" in block]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in re.findall(r"executor: \{ray: .*?\}\}", GUIDE.read_text()):
        study = Study.parse({"name": "a", "tasks": ["root_cause"], **yaml.safe_load(line)})
        assert isinstance(catalog.build(study.executor), Ray)
