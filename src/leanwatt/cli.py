"""The command line: parse, call one verb, print. Everything heavy is imported when a verb needs it."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from leanwatt import __version__, cli_serving
from leanwatt.console import say
from leanwatt.errors import LeanwattError, StudyError, UserError
from leanwatt.options import Json, Out, StudyFile, Variant
from leanwatt.options import show as _show


class _Stopped(Exception):
    """Ctrl-C, as an error that typer lets through: by itself it ends without a word, or with exit code 1."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with _ctrl_c() as heard:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                raise _Stopped from error
            except Exception as error:
                if heard:  # A library made it an error of its own, as pydantic does while it builds a schema.
                    raise _Stopped from error
                raise


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Notes every Ctrl-C meanwhile, and passes it on."""
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def noted(number: int, frame: Any) -> None:
        heard.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, noted)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


app = typer.Typer(
    cls=_Commands,
    help="Which cheaper version of a language model still does your job, how many joules it saves, how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Meter = Annotated[str, typer.Option("--meter", help="As a study writes it: rapl, or {plug: {url: ..., kind: shelly}}.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of every command; `main` reads --debug."""


@app.command()
def plan(study: StudyFile, out: Out = None, as_json: Json = False) -> None:
    """Check a study and say what would run; nothing runs."""
    from leanwatt import verbs

    found = verbs.plan(study, out)
    _show(_plan_facts(found) if as_json else "\n".join(found.lines()))


@app.command()
def run(
    study: StudyFile,
    out: Out = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed and refused trials again.")] = False,
    as_json: Json = False,
) -> None:
    """Run what is missing, rank it, and write the report. Run it again after a stop: it goes on."""
    from leanwatt import verbs

    checked = verbs.plan(study, out)
    print("\n".join(checked.lines()), file=sys.stderr)
    look = verbs.look(study, out, planned=checked)

    def notice(record: Any) -> None:
        _tell(record)
        say(look().line())

    ranking = verbs.run(study, out, retry=retry, notice=notice, planned=checked)
    _show_ranking(ranking, as_json)
    folder = verbs.store_of(checked.study, out).folder / "report"
    print(f"\nThe report: {folder / 'report.html'}", file=sys.stderr if as_json else sys.stdout)


@app.command()
def rank(study: StudyFile, out: Out = None, as_json: Json = False) -> None:
    """Print the table and the sweet spot from what was measured so far."""
    from leanwatt import verbs

    _show_ranking(verbs.rank(study, out), as_json)


@app.command()
def report(
    study: StudyFile,
    out: Out = None,
    examples: Annotated[int, typer.Option(min=0, help="Quote so many tickets of each task: personal data!")] = 0,
) -> None:
    """Write the report anew: Markdown, CSV, JSON and one HTML file."""
    from leanwatt import verbs

    _show("\n".join(str(path) for path in verbs.report(study, out, examples=examples)))


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Folders of results, such as runs/tickets.", show_default=False)
    ],
    page: Annotated[
        Path | None, typer.Option("--page", help="Write it as one HTML file too.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Put several studies or machines side by side, each ranked on its own."""
    from dataclasses import asdict

    from leanwatt import verbs
    from leanwatt.beside import text

    found = verbs.compare(results, page)
    _show([asdict(each) for each in found] if as_json else text(results, found))


@app.command()
def export(
    study: StudyFile,
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    out: Out = None,
    variant: Variant = None,
    form: Annotated[str, typer.Option("--to", help="huggingface, openvino, onnx or gguf.")] = "huggingface",
) -> None:
    """Write the winner to a folder with a model card, checked on real tickets."""
    from leanwatt import verbs

    _show(str(verbs.export(study, folder, out, variant, form=form)))


@app.command()
def ask(
    study: StudyFile,
    ticket: Annotated[str, typer.Argument(help="The ticket's text, or - for standard input.", show_default=False)],
    out: Out = None,
    variant: Variant = None,
    as_json: Json = False,
) -> None:
    """Let the winner answer a ticket: likely causes, a drafted response, and what it took."""
    from dataclasses import asdict

    from leanwatt import verbs

    reply = verbs.ask(study, sys.stdin.read() if ticket == "-" else ticket, out, variant)
    if as_json:
        _show(asdict(reply))
        return
    lines = [f"{share:6.1%}  {cause}" for cause, share in reply.causes[:5]]
    if reply.response is not None:
        lines += ["", f"Draft: {reply.response}"]
    _show("\n".join([*lines, "", f"{reply.variant}: {_energy_words(reply)}"]))


@app.command()
def methods(
    room: Annotated[str | None, typer.Argument(help="One room, such as prune.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List every method, what it is, and what its settings mean."""
    from leanwatt import verbs

    found = verbs.methods(room)
    if as_json:
        _show(found)
        return
    for each, inside in found.items():
        _show(f"{each}:")
        for name, about in inside.items():
            _show(f"  {name}: {about['about'].splitlines()[0]}")
            for setting, meaning in about["settings"].items():
                _show(f"      {setting}: {' '.join(meaning.split())}")


@app.command()
def doctor(as_json: Json = False, meter: Meter = "") -> None:
    """Show what this machine can measure and run; what is wrong with each source, and the step that would help."""
    from leanwatt import verbs

    found = verbs.doctor(meter or None)
    if as_json:
        _show(found)
        return
    machine = found["machine"]
    _show(f"{machine.get('cpu_model') or 'unknown CPU'}, {(found['memory_bytes'] or 0) / 1e9:.0f} GB of memory")
    for source in found["sources"]:
        fix = f". To change that: {source['fix']}" if source["fix"] else ""
        period = f"; changes every {source['period_seconds']:.3g} s" if source["period_seconds"] else ""
        _show(f"  {source['source']}: {source['status']}. {source['detail']}{period}{fix}")
    _show(f"Energy here comes from: {', '.join(found['meter'])}")
    _show("Engines: " + ", ".join(f"{n}{'' if ok else ' (not installed)'}" for n, ok in found["engines"].items()))


@app.command(context_settings={"allow_interspersed_args": False})
def meter(
    command: Annotated[list[str] | None, typer.Argument(help="After --: what to run.", show_default=False)] = None,
    source: Meter = "auto",
    repeat: Annotated[int, typer.Option(min=1, help="Run it so often, and give the mean with its interval.")] = 1,
    warm_up: Annotated[int, typer.Option(min=0, help="Runs beforehand that do not count.")] = 0,
    idle: Annotated[float, typer.Option(min=0, help="Seconds of idling before and after; 0 reads no idle power.")] = 5,
    recover: Annotated[bool, typer.Option("--recover", help="Only tell what killed weighings had spent.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, the last of the error stream.")] = False,
) -> None:
    """Weigh any command: leanwatt meter -- COMMAND. Says what it took on the error stream; its exit code is ours."""
    from leanwatt import verbs
    from leanwatt.weigh import Run, facts, lines, words

    killed = verbs.recover()
    for each in killed:
        _say(f"a weighing was killed after at least {words(Run(each, 0))}")
    if recover:
        return
    if not command:
        raise StudyError("There is nothing to weigh. Write it after two dashes: leanwatt meter -- python train.py")
    weighing = verbs.meter(command, source, repeat=repeat, warm_up=warm_up, idle_seconds=idle)
    for line in [json.dumps(facts(weighing), default=str)] if as_json else lines(weighing):
        print(line, file=sys.stderr) if as_json else _say(line)
    raise typer.Exit(weighing.exit_code)


@app.command()
def simulate(
    path: Annotated[Path, typer.Argument(help="The CSV file to write.", show_default=False)],
    tickets: Annotated[int, typer.Option(min=1, help="How many.")] = 9_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write fault tickets of a simulated communication network."""
    from leanwatt import verbs

    _show(str(verbs.simulate(path, tickets, seed)))


@app.command()
def profile(
    shape: Annotated[str, typer.Option(help="14m, 134m, 1b, 8b, or a JSON object with the sizes of a Llama.")],
    folder: Annotated[Path, typer.Option(help="Where the models are kept.")] = Path("shapes"),
    engine: Annotated[list[str] | None, typer.Option(help="As in a study; may be given several times.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="16, 8 or 4; may be given several times.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="May be given several times.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 128,
    answer: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Repeats, each in random order.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Shortest window.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Weigh prefill and decode of a model's shape, with random weights: no quality, and no ranking."""
    from dataclasses import asdict

    from leanwatt import verbs

    asked = {"bits": bits, "batches": batch, "prompt": prompt, "answer": answer, "rounds": rounds}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in asked.items() if value}
    found = verbs.profile(shape, folder, engine or ["openvino", "transformers"], window_seconds=seconds, **given)
    _show([asdict(each) for each in found.outcomes] if as_json else found.table)


def _show_ranking(ranking: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from leanwatt.gist import lead
    from leanwatt.verdict import sentence, text_table

    said = [text_table(ranking), lead(ranking), sentence(ranking)]
    _show(asdict(ranking) if as_json else "\n\n".join(filter(None, said)))


cli_serving.add_to(app)


def _plan_facts(found: Any) -> dict[str, Any]:
    labels = list(dict.fromkeys(trial.label for trial in found.trials))
    return {
        "variants": labels,
        "trials": len(found.trials),
        "done": found.done,
        "data": {task: summary.lines() for task, summary in found.summaries.items()},
        "warnings": list(found.warnings),
        "hours": found.hours,
        "memory_bytes": found.memory_bytes,
        "disk_bytes": found.disk_bytes,
    }


def _energy_words(reply: Any) -> str:
    energy = reply.energy
    spent = f"{reply.cpu_seconds:.3f} CPU-seconds"
    if energy.joules is None:
        return f"{spent}; energy unknown" + (f" ({'; '.join(energy.flags)})" if energy.flags else "")
    band = f" ({energy.lower:.2g} to {energy.upper:.2g})" if energy.lower is not None else ""
    return f"{spent}, {energy.joules:.2g} J{band}, {energy.provenance}"


def _tell(record: Any) -> None:
    """One line per finished job, on the error stream."""
    seconds = sum(part.seconds for part in record.spent)
    cpu = sum(part.cpu_seconds for part in record.spent)
    place = f" round {record.round + 1}" if record.job == "weigh" else ""
    figures = ", ".join(f"{task} {_primary(values)}" for task, values in record.metrics.items())
    trouble = f": {record.error.splitlines()[0]}" if record.error else ""
    what = f"{record.job}{place}  {record.trial.label}"
    print(f"{record.status:8}{what}  {seconds:.0f} s, {cpu:.0f} CPU-s  {figures}{trouble}", file=sys.stderr)


def _primary(values: Any) -> str:
    name = next((name for name in ("macro_f1", "rouge_l", *values) if name in values), None)
    return f"{name} {values[name]:.3f}" if name else ""


def main() -> None:
    """Run the command line: exit code 2 for the user's mistakes, 1 for failures, 130 for Ctrl-C."""
    if "--debug" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]:
        sys.argv.remove("--debug")  # Wherever it stands: people add it to the end of what failed.
        app()
        return
    try:
        app()
    except UserError as error:
        sys.exit(_said(str(error), 2))
    except LeanwattError as error:
        sys.exit(_said(str(error), 1))
    except (KeyboardInterrupt, _Stopped):
        sys.exit(_said("Stopped. What was finished is kept; the same command goes on from there.", 130))
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        sys.exit(_said(f"{error.filename or 'The system'}: {error.strerror}. Finished records are kept.", 1))
    except Exception as error:  # The last resort: a bug, told in one line.
        sys.exit(_said(f"{type(error).__name__}: {error}. This is a bug; --debug shows where.", 1))


def _said(message: str, code: int) -> int:
    _say(message)
    return code


def _say(message: str) -> None:
    print(f"leanwatt: {message}", file=sys.stderr)
