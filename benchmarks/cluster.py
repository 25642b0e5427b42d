"""What a cluster adds to a trial: a study of trivial trials, on this machine alone and on Ray with 1 to 8 workers.

    python benchmarks/cluster.py --trials 1000 --workers 1 2 4 8

Prints a Markdown table. A trial is a baseline that is fitted and graded on 120 tickets, one per seed, on a meter that
is read from a file: nodes of one machine share its sensors. Each worker is a Ray node with one CPU; all are on this
machine, so beyond its cores more workers only wait for each other, and CPU-seconds per trial tell more than the clock.
`local` is what a trial takes without Ray, a process each, so the rest is what Ray and our placing and leasing add.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanwatt.jobs import Bench
from leanwatt.measurement import Reading
from leanwatt.meter.replay import record as recorded
from leanwatt.pipeline import Flow
from leanwatt.record import Record
from leanwatt.store import Store
from leanwatt.study import Study
from leanwatt.variants import Base

TICKETS = 120
CAUSES = {"mains failure": "power", "fibre cut": "link"}


@dataclass
class Run:
    """One study."""

    name: str
    trials: int
    seconds: float = 0.0
    machine_cpu_seconds: float = 0.0
    """Of everything on this machine meanwhile: workers, Ray's own processes, this one."""
    driver_cpu_seconds: float = 0.0
    ends: list[float] = field(default_factory=list)
    """When each trial was over."""
    driver_at: list[float] = field(default_factory=list)
    """CPU-seconds of the driver by then."""

    def row(self) -> str:
        tenth = max(1, len(self.ends) // 10)
        first = (self.driver_at[tenth] - self.driver_at[0]) / tenth
        last = (self.driver_at[-1] - self.driver_at[-1 - tenth]) / tenth
        each = [self.seconds, self.machine_cpu_seconds, self.driver_cpu_seconds]
        per_trial = [f"{1000 * value / self.trials:.0f}" for value in each]
        cells = [self.name, str(self.trials), f"{self.seconds:.0f}", *per_trial]
        return "| " + " | ".join([*cells, f"{1000 * first:.1f}", f"{1000 * last:.1f}"]) + " |"


def a_study(folder: Path, trials: int, executor: Any) -> Study:
    """So many seeds of one baseline, and a language model that is left out."""
    rows = ["id,description,cause"]
    for i in range(TICKETS):
        cause = list(CAUSES)[(i // 2) % 2]
        rows.append(f"t{i},site {'ABCD'[i % 4]}{i} {CAUSES[cause]} lost then alarm {i * 7},{cause}")
    (folder / "tickets.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    recorded(folder / "meter.jsonl", [Reading(float(i), i / 2) for i in range(100)])
    data = {"path": str(folder / "tickets.csv"), "near_duplicate": None}
    return Study.parse(
        {
            "name": "trivial",
            "base": "none",
            "tasks": [{"root_cause": {"data": data, "text": "description", "label": "cause"}}],
            "baselines": ["majority"],
            "reference": "none",
            "seeds": list(range(trials)),
            "protocol": "quick",
            "meter": {"replay": {"path": str(folder / "meter.jsonl")}},
            "executor": executor,
        }
    )


def measure(name: str, trials: int, executor: Any) -> Run:
    """Make and grade all trials of a new study."""
    with tempfile.TemporaryDirectory() as place:
        study, run = a_study(Path(place), trials, executor), Run(name, trials)

        def notice(record: Record) -> None:
            assert record.status == "done", record.error
            run.ends.append(time.perf_counter())
            run.driver_at.append(driver_cpu_seconds())

        # The grid wants every seed of its language model too, which is no trivial trial: only baselines are tried.
        space = [trial for trial in study.trials("", 1) if trial.is_baseline]
        base = Base("none", "none", "none")
        flow = Flow(
            Bench(study, Path(place) / "run", {("none", None): base}), space, Store(Path(place) / "run"), notice
        )
        warm_up(flow)
        begun, busy, driver = time.perf_counter(), machine_cpu_seconds(), driver_cpu_seconds()
        flow.try_all()
        run.seconds = time.perf_counter() - begun
        run.machine_cpu_seconds = machine_cpu_seconds() - busy
        run.driver_cpu_seconds = driver_cpu_seconds() - driver
        assert len(run.ends) == trials, f"{len(run.ends)} of {trials} trials"
    return run


def warm_up(flow: Flow) -> None:
    """Nodes are known and their workers started before the clock runs."""
    list(flow._executor.run(abs, range(8)))


def driver_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def machine_cpu_seconds() -> float:
    """Busy time of all cores since boot."""
    words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, _steal = map(int, words)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


@contextmanager
def nodes(workers: int) -> Iterator[str]:
    """A cluster of so many nodes on this machine; gives its address."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000, help="of the run with the most workers")
    parser.add_argument("--few", type=int, default=100, help="trials of the other runs")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    given = parser.parse_args()
    print(
        "| Workers | Trials | s | ms per trial | CPU-ms of the machine per trial | of the driver | "
        "of the driver, first tenth | last tenth |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print(measure("1, `local`", given.few, "local").row(), flush=True)
    for workers in given.workers:
        trials = given.trials if workers == max(given.workers) else given.few
        with nodes(workers) as address:
            executor = {"ray": {"address": address, "jobs_per_host": workers}}
            print(measure(f"{workers}, `ray`", trials, executor).row(), flush=True)


if __name__ == "__main__":
    main()
