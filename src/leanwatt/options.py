"""Options that several commands share, and how all of them print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

StudyFile = Annotated[Path, typer.Argument(help="The study, a YAML file.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the results; by default runs/<name of the study>.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Variant = Annotated[str | None, typer.Option("--variant", help="A variant by its name in the table; else the winner.")]
StudyOrFolder = Annotated[
    Path, typer.Argument(help="The study, a YAML file; or a folder that was exported.", show_default=False)
]


def show(what: Any) -> None:
    """Text as it is, anything else as JSON."""
    print(what if isinstance(what, str) else json.dumps(what, indent=1, default=str))
