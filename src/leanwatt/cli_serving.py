"""The commands that put a winner to work, and those that look on: serve, keys, feedback, watch, records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from leanwatt.options import Out, StudyFile, StudyOrFolder, Variant, show

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="File of the keys; by default $LEANWATT_KEYS, or ~/.config/leanwatt/keys.json.",
        show_default=False,
    ),
]


def add_to(app: typer.Typer) -> None:
    """Make these commands of `app`."""
    for command in (serve, keys, feedback, watch, records):
        app.command()(command)


def serve(  # noqa: PLR0913, PLR0917 - typer reads options from arguments
    study: StudyOrFolder,
    out: Out = None,
    variant: Variant = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Requests answered at once; else as the variant was weighed.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Milliseconds that a request waits for others.")] = 20.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are sent away with 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds within which a request is answered.")] = 60.0,
    rate: Annotated[int, typer.Option(min=1, help="Requests a minute for each client.")] = 600,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one completion.")] = 512,
    max_body: Annotated[int, typer.Option(min=1, help="Most kilobytes of one request.")] = 256,
    key_file: KeyFile = None,
    ratings: Annotated[bool, typer.Option(help="Keep what people say of answers, tickets included.")] = True,
    rating_days: Annotated[int, typer.Option(min=1, help="Days after which ratings are deleted.")] = 90,
) -> None:
    """Put the winner behind an OpenAI-compatible API and a page; Ctrl-C or SIGTERM ends it."""
    from leanwatt import verbs
    from leanwatt.keys import default_file
    from leanwatt.serving import Settings

    settings = Settings(
        host=host,
        port=port,
        batch=batch,
        wait_seconds=wait / 1000,
        queue=queue,
        timeout_seconds=timeout,
        per_minute=rate,
        most_tokens=max_tokens,
        body_bytes=max_body * 1024,
        keys=key_file or default_file(),
        ratings=verbs.ratings_file(study, out) if ratings else None,
        rating_days=rating_days,
    )
    verbs.serve(study, settings, out, variant, notice=lambda line: print(line, file=sys.stderr, flush=True))


def keys(
    action: Annotated[str, typer.Argument(help="add, list or remove.", show_default=False)],
    name: Annotated[str | None, typer.Argument(help="Whose key.", show_default=False)] = None,
    key_file: KeyFile = None,
) -> None:
    """Add, list or remove the keys that a server asks for; a new key is shown once."""
    from leanwatt import verbs

    found = verbs.keys(action, name, key_file)
    show("\n".join(found.values() if action == "add" else (f"{who}  made {made}" for who, made in found.items())))


def feedback(
    study: StudyOrFolder,
    out: Out = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Write rated tickets to this CSV, to train on.", show_default=False)
    ] = None,
    delete: Annotated[
        int | None, typer.Option("--delete", help="Delete the rating of this number.", show_default=False)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all ratings.")] = False,
) -> None:
    """Count what people said of the server's answers, write it as new training data, or delete it."""
    from leanwatt import verbs

    count = verbs.feedback(study, out, to=to, delete=delete, clear=clear)
    what = "deleted" if clear or delete is not None else f"written to {to}" if to else "kept"
    show(f"{count} ratings {what}")


def watch(
    study: StudyFile,
    out: Out = None,
    web: Annotated[bool, typer.Option("--web", help="As a page of this machine.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 8001,
    once: Annotated[bool, typer.Option("--once", help="Show it once and return.")] = False,
) -> None:
    """Follow a study that runs elsewhere: what is done, spent, found and left."""
    from leanwatt import verbs

    if not web:
        verbs.watch(study, out, once=once)
        return
    from leanwatt.watch import Page

    page = Page(verbs.look(study, out), port)
    print(f"Watching on {page.url}; Ctrl-C ends it, and not the study.", file=sys.stderr, flush=True)
    page.serve()


def records(
    study: StudyFile,
    out: Out = None,
    to: Annotated[Path | None, typer.Option("--to", help="A new .csv or .parquet file.", show_default=False)] = None,
    mlflow: Annotated[
        str | None, typer.Option("--mlflow", help="Address of an MLflow server.", show_default=False)
    ] = None,
) -> None:
    """Write the records of a study to a file, or log them to MLflow, for dashboards of your own."""
    from leanwatt import verbs

    show(f"{verbs.records(study, out, to=to, mlflow=mlflow)} records")
