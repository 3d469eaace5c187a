"""Each of the sixty faults that aiflow has to stand has a test that is named after it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROWS = range(1, 61)


def functions() -> list[str]:
    """Names of all test functions, wherever they are."""
    return [
        node.name
        for path in Path(__file__).parents[1].rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def test_every_row_of_the_faults_has_a_test() -> None:
    names = functions()
    missing = [row for row in ROWS if not any(name.startswith(f"test_fault_{row:02}_") for name in names)]
    assert not missing, f"no test_fault_NN_… for the rows {missing}"
