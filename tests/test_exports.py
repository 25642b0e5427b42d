"""What the package offers by name is complete, sorted, typed and real."""

from pathlib import Path

import pytest

import leanwatt


def test_every_name_is_there_and_in_order() -> None:
    assert leanwatt.__all__ == sorted(leanwatt.__all__)
    for name in leanwatt.__all__:
        assert getattr(leanwatt, name) is not None
    assert leanwatt.Study.__module__ == "leanwatt.study"
    assert leanwatt.verbs.run.__module__ == "leanwatt.verbs"


def test_the_list_is_complete() -> None:
    """Every name that the lazy import knows is in `__all__`."""
    import ast

    tree = ast.parse(Path(leanwatt.__file__).read_text(encoding="utf-8"))
    [lazy] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    known = {
        comparison.comparators[0].value
        for comparison in ast.walk(lazy)
        if isinstance(comparison, ast.Compare) and isinstance(comparison.comparators[0], ast.Constant)
    }
    assert known == set(leanwatt.__all__)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        leanwatt.nothing  # noqa: B018


def test_every_command_is_a_function() -> None:
    from leanwatt import verbs
    from leanwatt.cli import app

    for command in app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__
        assert callable(getattr(verbs, name)), f"verbs.{name} is missing"
        assert getattr(verbs, name).__doc__


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert leanwatt.__version__ == version("leanwatt")


def test_types_are_shipped() -> None:
    assert Path(leanwatt.__file__).with_name("py.typed").is_file()
