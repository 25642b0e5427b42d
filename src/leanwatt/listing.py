"""A study's records for people with dashboards of their own: one flat row each, as CSV, Parquet, or runs in MLflow.

No ticket, no answer and no words of an error are in it: only its kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanwatt.errors import StoreError, StudyError, missing_extra
from leanwatt.evidence import totals
from leanwatt.record import Record

Row = dict[str, Any]


def rows(records: Sequence[Record]) -> list[Row]:
    """One per record, all with the same keys; None where a figure is unknown or does not apply."""
    found = [_row(record) for record in records]
    keys = dict.fromkeys(key for row in found for key in row)
    return [{key: row.get(key) for key in keys} for row in found]


def _row(record: Record) -> Row:
    trial, spent = record.trial, totals([record])
    return {
        "record": record.id,
        "job": record.job,
        "status": record.status,
        "round": record.round,
        "attempt": record.attempt,
        "variant": trial.label,
        "base": trial.variant.recipe.base,
        "steps": " > ".join(f"{step.room}: {step}" for step in trial.variant.recipe.steps),
        "engine": str(trial.engine),
        "batch": trial.batch,
        "seed": trial.variant.seed,
        "fold": trial.variant.fold,
        "seconds": spent.seconds if spent else None,
        "cpu_seconds": spent.cpu_seconds if spent else None,
        "joules": spent.joules if spent else None,
        "provenance": spent.provenance if spent else None,
        "unknown_seconds": spent.unknown_seconds if spent else None,
        "answers": sum(each.answers for each in record.measurements),
        "tokens_in": sum(each.tokens_in for each in record.measurements),
        "tokens_out": sum(each.tokens_out for each in record.measurements),
        "error": record.error.partition(":")[0][:80] if record.error and record.status == "failed" else None,
        "machine": record.machine.get("id"),
        "utc": record.machine.get("utc"),
        **_flat("fact", record.facts),
        **{f"{task}.{name}": value for task, metrics in record.metrics.items() for name, value in metrics.items()},
    }


def _flat(prefix: str, values: Mapping[str, Any]) -> Row:
    return {f"{prefix}.{name}": value for name, value in values.items() if isinstance(value, str | int | float)}


def write(records: Sequence[Record], target: Path) -> Path:
    """CSV or Parquet, by the name's ending. Raises StudyError, StoreError."""
    import pandas

    if target.suffix not in (".csv", ".parquet"):
        raise StudyError(f"{target}: got the ending '{target.suffix}'; .csv and .parquet can be written.")
    frame = pandas.DataFrame(rows(records))
    try:
        if target.suffix == ".csv":
            frame.to_csv(target, index=False)
        else:
            frame.to_parquet(target, index=False)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}).") from error
    return target


def log_to_mlflow(records: Sequence[Record], study: str, uri: str) -> int:
    """One run per record in the experiment named like the study; records that are there already are left. How many.

    Raises MissingExtraError, and StoreError where the server does not take them.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise missing_extra("records", "mlflow", "mlflow") from error
    try:
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(study)
        experiment = known.experiment_id if known is not None else client.create_experiment(study)
        found = rows(records)
        new = [row for row in found if not _is_logged(client, experiment, row)]
        for row in new:
            _log(client, experiment, row)
    except MlflowException as error:
        raise StoreError(
            f"MLflow at {uri} did not take the records ({type(error).__name__}). The extra talks to a server "
            "(http://...); for an address of a database install the whole package: pip install mlflow."
        ) from error
    return len(new)


def _is_logged(client: Any, experiment: str, row: Row) -> bool:
    return bool(client.search_runs([experiment], f"tags.record = '{row['record']}'", max_results=1))


def _log(client: Any, experiment: str, row: Row) -> None:
    """Numbers are metrics, words and settings are parameters, and what is unknown is left out."""
    settings = ("variant", "base", "steps", "engine", "batch", "seed", "fold", "job", "round", "attempt")
    run = client.create_run(experiment, tags={"record": row["record"]}, run_name=f"{row['job']} {row['variant']}"[:250])
    key = run.info.run_id
    for name, value in row.items():
        if value is None or name == "record":
            continue
        if isinstance(value, int | float) and name not in settings:
            client.log_metric(key, name, float(value))
        else:
            client.log_param(key, name, str(value)[:500])
    client.set_terminated(key, "FINISHED" if row["status"] == "done" else "FAILED")
