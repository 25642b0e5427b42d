"""From a name in the YAML to a class: `prune: wanda` is the one public class of `leanwatt/prune/wanda.py`."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from importlib.metadata import entry_points
from typing import Any

from leanwatt import contracts
from leanwatt.errors import MissingExtraError, StudyError, UnknownNameError, missing_extra, not_among
from leanwatt.recipe import Choice

ROOMS: dict[str, type[Any]] = {
    "finetune": contracts.Step,
    "merge": contracts.Step,
    "prune": contracts.Step,
    "quantize": contracts.Step,
    "tasks": contracts.Task,
    "baseline": contracts.Baseline,
    "engine": contracts.Engine,
    "meter": contracts.Meter,
    "search": contracts.Search,
    "executor": contracts.Executor,
}


def names(room: str) -> list[str]:
    """Every method in a room, ours and other packages', without importing any. Raises StudyError on a name clash."""
    folder = importlib.import_module(f"leanwatt.{room}")
    ours = [m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_")]
    theirs = [entry.name for entry in entry_points(group=f"leanwatt.{room}")]
    if clash := set(ours) & set(theirs):
        raise StudyError(f"{room}: another installed package also offers {sorted(clash)}; rename its entry point.")
    return sorted(ours + theirs)


def find(room: str, name: str) -> type[Any]:
    """The class behind a name. Only the module asked for is imported; raises UnknownNameError, MissingExtraError."""
    if room not in ROOMS:
        raise UnknownNameError(not_among("the list of rooms", room, ROOMS))
    if name not in names(room):
        raise UnknownNameError(not_among(room, name, names(room)))
    paths = [entry.value for entry in entry_points(group=f"leanwatt.{room}", name=name)]
    path = paths[0] if paths else f"leanwatt.{room}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("leanwatt"):
            raise
        raise missing_extra(room, name, error.name) from error
    [method] = [cls for cls in vars(module).values() if _is_method(cls, ROOMS[room], module.__name__)]
    return method  # type: ignore[no-any-return]


def _is_method(value: Any, contract: type[Any], module: str) -> bool:
    """A concrete class that keeps the contract and was written in this very file."""
    return inspect.isclass(value) and issubclass(value, contract) and value.__module__ == module


def build(choice: Choice) -> Any:
    """Make the object a choice describes. Raises StudyError for unknown, ill-typed or out-of-range settings."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    cls = find(choice.room, choice.name)
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in choice.settings:
        if key not in fields:
            raise StudyError(not_among(f"the settings of {choice.room}.{choice.name}", key, fields))
    try:
        strict = with_config(ConfigDict(extra="forbid"))(cls)
        return TypeAdapter(strict).validate_python(dict(choice.settings))
    except ValidationError as error:
        raise StudyError(_first_error(choice, error)) from error


def is_installed(room: str, name: str) -> bool:
    """Whether all that a method needs is there; some ask for their package when they are built, not when loaded."""
    try:
        build(Choice(room, name))
    except MissingExtraError:
        return False
    except StudyError:
        return True  # It has settings without a default.
    return True


def _first_error(choice: Choice, error: Any) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, (choice.room, choice.name, *first["loc"])))
    message = str(first["msg"]).removeprefix("Value error, ")
    got = "" if first["type"] == "missing" else f" (got {_without_secrets(first['input'])})"
    return f"{where}: {message}{got}"


def _without_secrets(value: object) -> str:
    """A rejected setting as text; the name and password in an address stay out of messages and logs."""
    return re.sub(r"//[^/@\s]*@", "//...@", repr(value))


def documentation(room: str, name: str) -> tuple[str, dict[str, str]]:
    """What a method is, and what each of its settings means: the docstrings, read from the source."""
    cls = find(room, name)
    docs: dict[str, str] = {}
    for each in reversed(cls.__mro__):  # What methods of a room share stands above them.
        if each not in ROOMS.values() and dataclasses.is_dataclass(each):
            docs |= _field_docs(each)
    in_order = sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))
    return inspect.getdoc(inspect.getmodule(cls)) or "", {field.name: docs[field.name] for field in in_order}


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """Setting -> `type = default: docstring`. Docstrings under fields are seen by the parser only."""
    import ast
    import textwrap

    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = definition.body  # type: ignore[attr-defined]
    docs: dict[str, str] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        default = f" = {ast.unparse(node.value)}" if node.value else " (required)"
        is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = inspect.cleandoc(str(after.value.value)) if is_doc else ""
        docs[ast.unparse(node.target)] = f"{_plain_type(ast.unparse(node.annotation))}{default}: {text}"
    return docs


_LIMITS = {"Gt": "above", "Ge": "from", "Lt": "below", "Le": "to"}


def _plain_type(annotation: str) -> str:
    """`Annotated[float, Gt(0), Lt(1)] | None` as `float above 0 below 1 | None`."""

    def plain(found: re.Match[str]) -> str:
        limits = re.findall(r"(G[te]|L[te])\(([^)]*)\)", found[2])
        return " ".join([found[1], *(f"{_LIMITS[name]} {value}" for name, value in limits)])

    return re.sub(r"Annotated\[([^,\]]+)((?:, [GL][te]\([^)]*\))+)\]", plain, annotation)
