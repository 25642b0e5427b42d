"""What came of a job: the only thing that ranking, reports and searches ever read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from leanwatt.measurement import Measurement, whole_stages
from leanwatt.recipe import Trial, digest

SCHEMA_VERSION = 1

Job = Literal["make", "grade", "weigh", "confirm"]
Status = Literal["done", "failed", "refused"]


@dataclass(frozen=True)
class Record:
    """One attempt of one job of a trial."""

    job: Job
    """make a variant, grade it on validation, weigh it (one round), or confirm it on test."""
    trial: Trial
    status: Status
    round: int = 0
    """Of weighing; 0 for the other jobs."""
    attempt: int = 0
    measurements: tuple[Measurement, ...] = ()
    """Of its stages."""
    whole: Measurement | None = None
    """Of the whole job in its process: the stages, and what lies between them. Of a worker that was killed, up to its
    last heartbeat."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By task, then by metric. Intervals are computed from the predictions when ranking."""
    artifact: str | None = None
    """Folder of the variant, relative to the store."""
    predictions: str | None = None
    """Parquet file with one row per task and example, relative to the store."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What really ran: weight dtype, compute dtype, kernel family, sizes in bytes, checks passed."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """See machine.py: id, hardware, software versions, time."""
    error: str | None = None
    schema: int = SCHEMA_VERSION

    @property
    def id(self) -> str:
        """Same job, same id, on every run: a killed study that is run again ends with the same ids."""
        return record_id(self.job, self.trial, self.round, self.attempt)

    @property
    def spent(self) -> list[Measurement]:
        """What this job itself spent, stage by stage, and last what no stage names: parts that add up to the whole."""
        stages = [each for each in whole_stages(self.measurements) if not each.reused]
        return [*stages, self.whole.rest(stages)] if self.whole is not None else stages

    def again(self, attempt: int) -> "Record":
        """The same record as a later attempt; the earlier one stays."""
        return replace(self, attempt=attempt)


def record_id(job: Job, trial: Trial, round_: int = 0, attempt: int = 0) -> str:
    """A variant is made once for all engines and batch sizes, so `make` is known by the variant alone."""
    what = trial.variant.id if job == "make" else trial.id
    return digest([job, what, round_, attempt])
