"""No row of the list of faults is without a test that bears its number."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROWS = 50
TESTS = Path(__file__).parent


def rows() -> dict[int, list[str]]:
    """Row -> names of its tests, as the parser sees them: a name in a comment is none."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (row := re.match(r"test_row_(\d\d)_", node.name)):
                assert any(isinstance(each, ast.Assert | ast.With) for each in ast.walk(node)), f"{node.name} is empty"
                found[int(row[1])].append(f"{path.name}::{node.name}")
    return found


def test_every_fault_has_a_test() -> None:
    found = rows()
    assert sorted(found) == list(range(1, ROWS + 1))


def test_no_two_tests_of_a_row_have_one_name() -> None:
    names = [name for each in rows().values() for name in each]
    assert len(set(names)) == len(names)
