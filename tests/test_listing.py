"""Records as flat rows: nothing invented, nothing private, and MLflow told once."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from invented import Truth, world

from leanwatt import listing, verbs
from leanwatt.errors import MissingExtraError, StoreError, StudyError
from leanwatt.measurement import Provenance
from leanwatt.store import Store


def test_rows_have_the_same_keys_and_unknown_is_none() -> None:
    here = world(wanda=Truth(status="failed"))
    rows = listing.rows(here.records())
    assert len({tuple(row) for row in rows}) == 1
    weighed = next(row for row in rows if row["job"] == "weigh" and row["engine"] == "openvino")
    assert weighed["joules"] > 0
    assert weighed["provenance"] == "measured"
    assert weighed["answers"] == 200
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["error"] == "ValueError", "its kind, and not its words"
    assert "secret" not in str(rows).lower()
    here.provenance = Provenance.ABSENT
    assert all(row["joules"] is None for row in listing.rows(here.records()))


@pytest.fixture
def stored(tmp_path: Path, tickets: Path) -> dict[str, Any]:
    store = Store(tmp_path / "run")
    for record in world().records():
        store.add(record)
    study = {
        "name": "invented",
        "tasks": [{"root_cause": {"data": str(tickets), "text": "description", "label": "cause"}}],
    }
    return {"study": verbs.Study.parse(study), "out": tmp_path / "run"}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_hold_all_records(ending: str, stored: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / f"records.{ending}"
    assert verbs.records(**stored, to=target) == len(world().records())
    frame = pandas.read_csv(target) if ending == "csv" else pandas.read_parquet(target)
    assert list(frame["record"]) == [record.id for record in Store(stored["out"]).records()]
    assert frame["joules"].notna().all()


def test_mistakes_are_said(stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match=r"\.csv and \.parquet"):
        verbs.records(**stored, to=tmp_path / "records.xlsx")
    with pytest.raises(StoreError, match="cannot be written"):
        verbs.records(**stored, to=tmp_path / "no" / "records.csv")
    with pytest.raises(StudyError, match="say where to"):
        verbs.records(**stored)
    with pytest.raises(StudyError, match="no records yet"):
        verbs.records(stored["study"], tmp_path / "empty", to=tmp_path / "x.csv")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"leanwatt\[mlflow\]"):
        verbs.records(**stored, mlflow="sqlite:///x")


class Client:
    """Keeps what it is told, as an MLflow server does."""

    runs: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    experiments: dict[str, str] = {}  # noqa: RUF012
    fails = False

    def __init__(self, tracking_uri: str) -> None:
        if tracking_uri.startswith("sqlite"):  # As mlflow-skinny does.
            raise sys.modules["mlflow.exceptions"].MlflowException("no such store")
        self.uri = tracking_uri

    def get_experiment_by_name(self, name: str) -> Any:
        if self.fails:
            raise sys.modules["mlflow.exceptions"].MlflowException("secret address")
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = "1"
        return "1"

    def search_runs(self, experiments: list[str], words: str, max_results: int) -> list[Any]:
        return [run for run in self.runs.values() if f"tags.record = '{run['tags']['record']}'" == words][:max_results]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        key = str(len(self.runs))
        self.runs[key] = {"tags": tags, "name": run_name, "metrics": {}, "params": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

    def log_metric(self, key: str, name: str, value: float) -> None:
        self.runs[key]["metrics"][name] = value

    def log_param(self, key: str, name: str, value: str) -> None:
        self.runs[key]["params"][name] = value

    def set_terminated(self, key: str, status: str) -> None:
        self.runs[key]["status"] = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Client]]:
    package, exceptions = types.ModuleType("mlflow"), types.ModuleType("mlflow.exceptions")
    package.MlflowClient = Client  # type: ignore[attr-defined]
    exceptions.MlflowException = type("MlflowException", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    Client.runs, Client.experiments, Client.fails = {}, {}, False
    yield Client


def test_mlflow_is_told_of_each_record_once(stored: dict[str, Any], mlflow: type[Client]) -> None:
    count = len(world().records())
    assert verbs.records(**stored, mlflow="http://127.0.0.1:5000") == count
    assert verbs.records(**stored, mlflow="http://127.0.0.1:5000") == 0, "all are there already"
    assert len(mlflow.runs) == count
    run = next(run for run in mlflow.runs.values() if run["params"]["job"] == "weigh")
    assert run["metrics"]["joules"] > 0
    assert run["params"]["engine"]
    assert "joules" not in run["params"]
    assert {run["status"] for run in mlflow.runs.values()} == {"FINISHED"}
    mlflow.fails = True
    with pytest.raises(StoreError, match="did not take") as refused:
        verbs.records(**stored, mlflow="http://127.0.0.1:5000")
    assert "secret" not in str(refused.value)
    with pytest.raises(StoreError, match="pip install mlflow"):
        verbs.records(**stored, mlflow="sqlite:///x")


def test_the_real_mlflow_takes_them(stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed. Its store of files has to be allowed by name."""
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    uri = (tmp_path / "mlruns").as_uri()
    assert verbs.records(**stored, mlflow=uri) == len(world().records())
    assert verbs.records(**stored, mlflow=uri) == 0
    runs = mlflow.MlflowClient(tracking_uri=uri).search_runs(["0", *_experiments(uri)], max_results=1000)
    assert {run.data.tags["record"] for run in runs} == {record.id for record in world().records()}


def _experiments(uri: str) -> list[str]:
    import mlflow

    return [found.experiment_id for found in mlflow.MlflowClient(tracking_uri=uri).search_experiments()]
