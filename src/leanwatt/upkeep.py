"""What one can do beside a study: keys and ratings of its server, watching it, its records for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from leanwatt.errors import StudyError
from leanwatt.runs import is_exported, read, store_of
from leanwatt.study import Study

if TYPE_CHECKING:
    from leanwatt.headway import Headway
    from leanwatt.plan import Plan

RATINGS = "ratings.sqlite"


def keys(action: str, name: str | None = None, file: str | Path | None = None) -> dict[str, str]:
    """`add` a key, `remove` it, or `list` all: name -> the new key's text, or when it was made."""
    from leanwatt.errors import not_among
    from leanwatt.keys import Keys, default_file

    kept = Keys(Path(file) if file else default_file())
    if action == "list":
        return kept.names()
    if action not in ("add", "remove"):
        raise StudyError(not_among("what can be done with keys", action, ("add", "list", "remove")))
    if name is None:
        raise StudyError(f"keys: whose key? Give a name: leanwatt keys {action} NAME.")
    if action == "add":
        return {name: kept.add(name)}
    kept.remove(name)
    return {}


def ratings_file(study: Study | str | Path, out: str | Path | None = None) -> Path:
    """Where the ratings of what a study's server answered are kept."""
    if is_exported(study):
        return Path(str(study)) / RATINGS
    return store_of(read(study), out).folder / RATINGS


def feedback(
    study: Study | str | Path,
    out: str | Path | None = None,
    *,
    to: str | Path | None = None,
    delete: int | None = None,
    clear: bool = False,
) -> int:
    """How many ratings there are; or write them `to` a CSV to train on, or delete one or all: how many that were."""
    from leanwatt.feedback import Feedback, write_training_data
    from leanwatt.offer import Offer, columns

    file = ratings_file(study, out)
    if not file.is_file():
        raise StudyError(f"{file}: there are no ratings yet. They come from the page of leanwatt serve.")
    kept = Feedback(file)
    if clear:
        return kept.clear()
    if delete is not None:
        if not kept.delete(delete):
            raise StudyError(f"{file}: holds no rating {delete}.")
        return 1
    if to is None:
        return len(kept.all())
    named = Offer.read(Path(str(study))).columns if is_exported(study) else columns(read(study))
    return write_training_data(kept.all(), named, Path(to))


def look(
    study: Study | str | Path, out: str | Path | None = None, *, planned: Plan | None = None
) -> Callable[[], Headway]:
    """What this gives tells, whenever it is called, how far the study has come; it is planned once, if it is not."""
    from leanwatt import catalog
    from leanwatt.headway import headway
    from leanwatt.plan import check
    from leanwatt.watch import ended

    checked = planned or check(read(study), store_of(read(study), out))
    store = store_of(checked.study, out)
    primaries = {choice.name: catalog.find("tasks", choice.name).primary for choice in checked.study.tasks}
    return lambda: ended(headway(checked.needs, primaries, store.records()), store)


def watch(study: Study | str | Path, out: str | Path | None = None, *, once: bool = False) -> None:
    """Show in the terminal how far a study has come, until it is done; `once` shows it and returns."""
    from leanwatt.watch import follow

    follow(look(study, out), once=once)


def records(
    study: Study | str | Path,
    out: str | Path | None = None,
    *,
    to: str | Path | None = None,
    mlflow: str | None = None,
) -> int:
    """Write a study's records `to` a CSV or Parquet file, or log them to an MLflow server; how many."""
    from leanwatt.listing import log_to_mlflow, write

    asked = read(study)
    found = store_of(asked, out).records()
    if not found:
        raise StudyError(f"{store_of(asked, out).folder}: holds no records yet. Run the study first: leanwatt run.")
    if to is None and mlflow is None:
        raise StudyError("records: say where to: --to FILE.csv, --to FILE.parquet or --mlflow ADDRESS.")
    if to is not None:
        write(found, Path(to))
    return len(found) if mlflow is None else log_to_mlflow(found, asked.name, mlflow)
