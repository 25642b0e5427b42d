"""The shape of the house: layers, sizes, names, and that nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import leanwatt
from leanwatt import catalog

ROOT = Path(leanwatt.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in FILES]

LAYERS = (
    # A file imports, when it is loaded, only from lines above its own, or from its own line and to its left.
    ("errors", "near", "network", "cache", "processes"),
    ("recipe", "measurement", "bill", "question", "source", "saving"),
    ("record", "study", "machine", "journal"),
    ("contracts",),
    ("prompt", "agreement", "console", "metrics", "files", "data", "split", "survey", "quiet", "model"),
    ("lesson", "checkpoint", "curve", "schedule", "training"),
    ("calibration", "second_order"),
    ("finetune", "merge", "prune", "quantize", "tasks", "baseline", "engine", "meter", "search", "executor"),
    ("catalog",),
    ("idle", "launcher", "ledger", "windows", "doctor", "attribution", "outlook", "variants"),
    ("simulate", "starter", "mirror"),
    ("store",),
    ("ranking", "compare", "evidence", "quality", "spending", "entry"),
    ("caveats", "least_form", "factors", "standing", "account", "verdict", "sweet_spot", "rank"),
    ("section", "marks", "apart", "charts", "drift", "gist", "mistakes", "origin", "usage"),
    ("sections", "page", "report", "beside", "quoted"),
    ("weigh", "listing"),
    ("form", "answering", "promise", "feedback", "offer", "card", "export"),
    ("serving", "batching", "remote", "wire", "keys", "pace", "gate", "connections", "gauges", "routes", "serve"),
    ("passes", "shape", "jobs", "plan", "budget", "agenda", "headway", "watch"),
    ("pipeline",),
    ("runs", "upkeep", "verbs"),
    ("options", "cli_serving", "cli", "__init__", "__main__"),
)
BROAD = {"jobs", "cli", "executor._process", "processes", "remote", "batching", "gate"}
"""Where a broad except may stand: a failure becomes data, words, a message to the parent, or one request's answer."""
HEAVY = ("torch", "transformers", "numpy", "pandas", "sklearn", "scipy", "peft", "plotly", "pyarrow", "tokenizers")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def loaded(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports when it is loaded; not those for type checkers, nor those in functions."""
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "leanwatt":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("leanwatt.")
                yield whole if whole in NAMES else str(node.module).removeprefix("leanwatt").lstrip(".") or "__init__"
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("leanwatt.") for a in node.names if a.name.startswith("leanwatt"))


GRAPH = {name: sorted(set(loaded(path))) for name, path in zip(NAMES, FILES, strict=True)}


def place(name: str) -> tuple[int, int]:
    top = name.partition(".")[0]
    found = [(row, line.index(top)) for row, line in enumerate(LAYERS) if top in line]
    assert found, f"{name}: put it on its line in LAYERS"
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_from_above(name: str) -> None:
    mine = place(name)
    for other in GRAPH[name]:
        if other == "__init__":
            continue  # The package's version.
        theirs = place(other)
        same_room = name.partition(".")[0] == other.partition(".")[0]
        assert same_room or theirs < mine, f"{name} imports {other}, which stands below it"


def test_rooms_do_not_import_each_other() -> None:
    for name, others in GRAPH.items():
        room = name.partition(".")[0]
        if room in catalog.ROOMS:
            assert not [o for o in others if o.partition(".")[0] in catalog.ROOMS and o.partition(".")[0] != room], name


def test_no_line_names_what_is_not_there() -> None:
    there = {name.partition(".")[0] for name in NAMES}
    assert {each for line in LAYERS for each in line} == there


def test_no_import_goes_round() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in GRAPH.get(name, []):
                if other not in ("__init__", name):
                    visit(other, (*path, name))
            done.add(name)

    for name in NAMES:
        visit(name, ())


def test_a_circle_would_be_found() -> None:
    """The walk sees imports at all."""
    assert "leanwatt.errors".removeprefix("leanwatt.") in GRAPH["recipe"]
    assert "prune._masking" in GRAPH["prune.width"]
    assert "verbs" not in GRAPH["cli"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_sizes_and_docstrings(path: Path) -> None:
    module = tree(path)
    doc = ast.get_docstring(module)
    assert doc and len(doc.splitlines()[0]) > 15, "say in the first line why this file is there"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name}: {length} lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            is_command = path.name in ("cli.py", "cli_serving.py")  # typer reads options from arguments
            assert count <= 5 or is_command, f"{node.name}: {count} arguments"


def test_functions_are_short_on_the_whole() -> None:
    sizes = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
    )
    assert sizes[len(sizes) // 2] <= 12
    assert sizes[int(len(sizes) * 0.9)] <= 30


def test_no_drawer_for_everything() -> None:
    words = {"utils", "util", "helpers", "helper", "common", "core", "base", "misc", "tools", "shared"}
    assert not [name for name in NAMES if words & set(name.strip("_").replace("._", ".").split("."))]


def test_a_folder_is_a_room() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*catalog.ROOMS, "tables", "desk"}


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = [handler.type] if not isinstance(handler.type, ast.Tuple) else handler.type.elts
    return any(
        each is None or (isinstance(each, ast.Name) and each.id in ("Exception", "BaseException")) for each in caught
    )


def test_broad_excepts_stand_in_few_places() -> None:
    found = {
        name
        for name, path in zip(NAMES, FILES, strict=True)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    }
    assert found <= BROAD
    assert found, "the search for them works"


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """At the top only in the rooms whose methods need them, which are loaded one by one, and never torch."""
    for name, path in zip(NAMES, FILES, strict=True):
        tops = {
            module.partition(".")[0]
            for node in tree(path).body
            for module in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        allowed = {"numpy", "openvino"} if name.startswith("engine.") else set()
        assert not (tops & {*HEAVY, "openvino"}) - allowed, f"{name} imports {tops & set(HEAVY)} when it is loaded"


def seconds(*words: str) -> float:
    """Best of three."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    return min(times)


LOADS = "import sys; {}; print(sorted(set(sys.modules) & {}))"


@pytest.mark.parametrize(
    "code",
    [
        "import leanwatt",
        "import leanwatt.verbs, leanwatt.plan, leanwatt.pipeline, leanwatt.cli, leanwatt.model, leanwatt.training",
        "import leanwatt.study, leanwatt.store, leanwatt.rank, leanwatt.report, leanwatt.simulate, leanwatt.starter",
        "from leanwatt import catalog; [catalog.names(room) for room in catalog.ROOMS]",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS.format(code, set(HEAVY))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom leanwatt.cli import main\nsys.argv = ['leanwatt', '--help']\n"
        f"try: main()\nexcept SystemExit: pass\nprint(sorted(set(sys.modules) & {set(HEAVY)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_import_and_help_are_quick() -> None:
    """Beyond what Python itself needs to start here, so that a busy machine does not fail it."""
    start = seconds("-c", "pass")
    assert seconds("-c", "import leanwatt") - start <= 0.4
    assert seconds("-m", "leanwatt", "--help") - start <= 0.6
