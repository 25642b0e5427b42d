"""Where a study is and where its results are kept: what every command is given."""

import shlex
from pathlib import Path

from leanwatt.store import Store
from leanwatt.study import Study

RUNS = Path("runs")
"""Where studies keep their results, in the current folder, each under its name."""


def read(study: Study | str | Path) -> Study:
    """A study, or the file it is in. Raises StudyError."""
    return study if isinstance(study, Study) else Study.read(Path(study))


def store_of(study: Study, out: str | Path | None) -> Store:
    """Where the results of a study are kept."""
    return Store(Path(out) if out else RUNS / study.name)


def is_exported(study: Study | str | Path) -> bool:
    """A folder, where a study would be a file."""
    return not isinstance(study, Study) and Path(study).is_dir()


def command_of(study: Study | str | Path, out: str | Path | None) -> str:
    """What repeats a study in a shell; empty for one that was given without a file."""
    if isinstance(study, Study):
        return ""
    return shlex.join(["leanwatt", "run", str(study), *(["--out", str(out)] if out else [])])
