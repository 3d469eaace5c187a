"""Documents name the tests behind their promises: docs/faults.md per fault, docs/delivery.md per promise."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parents[1]
FAULTS = (TESTS.parent / "docs/faults.md").read_text()
DELIVERY = (TESTS.parent / "docs/delivery.md").read_text()
ROWS = range(1, 61)
ROW = re.compile(r"^\| (\d+) \|.*\| (.*) \|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
FILE = re.compile(r"`((?:cli|faults)/test_\w+\.py)`")

Tests = set[tuple[str, str]]


@cache
def functions(tests: Path = TESTS) -> Tests:
    """Every test function below `tests`: its file and its name."""
    return {
        (str(path.relative_to(tests)), node.name)
        for path in tests.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def mistakes(document: str, tests: Tests) -> list[str]:
    """Mistakes in the numbered rows of a document, given the tests that exist."""
    rows = [(int(row[1]), row[2]) for row in ROW.finditer(document)]
    named = {number: set(TEST.findall(cell)) for number, cell in rows}
    numbered = [(int(test[1].split("_")[2]), test) for test in sorted(tests) if test[1].startswith("test_fault_")]
    return [
        *([] if [number for number, _ in rows] == list(ROWS) else ["the rows are not 1 to 60"]),
        *(f"no test in row {number}" for number, found in named.items() if not found),
        *(f"row {number}: no {'::'.join(test)}" for number, found in named.items() for test in found - tests),
        *(f"{'::'.join(test)} is in no row" for number, test in numbered if test not in named.get(number, set())),
    ]


def test_every_row_of_the_faults_has_a_test() -> None:
    assert mistakes(FAULTS, functions()) == []


def test_a_renamed_test_a_missing_row_and_a_missing_test_are_found(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    source = (TESTS / "faults/test_frames.py").read_text()
    planted = source.replace("def test_fault_01_runt(", "def test_fault_01_short(")
    (tmp_path / "faults/test_frames.py").write_text(planted)
    renamed = {test for test in functions() if test[0] != "faults/test_frames.py"} | functions(tmp_path)
    assert mistakes(FAULTS, renamed) == [
        "row 1: no faults/test_frames.py::test_fault_01_runt",
        "faults/test_frames.py::test_fault_01_short is in no row",
    ]

    (row,) = re.findall(r"^\| 17 \|.*\n", FAULTS, re.MULTILINE)
    assert mistakes(FAULTS.replace(row, ""), functions()) == [
        "the rows are not 1 to 60",
        "faults/test_chunks.py::test_fault_17_replayed_frame is in no row",
    ]
    assert mistakes(FAULTS.replace(row, TEST.sub("", row)), functions())[0] == "no test in row 17"


def test_every_file_of_faults_is_named_and_every_named_file_is_there() -> None:
    named = set(FILE.findall(FAULTS)) | {file for file, _ in TEST.findall(FAULTS)}
    files = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    assert named <= files
    assert {file for file in files if file.startswith("faults/")} - {"faults/test_registry.py"} <= named


def unproved(document: str, tests: Tests) -> list[str]:
    """Rows of the tables of promises whose last cell names no test, or one that does not exist."""
    promised = document[document.index("## Promised") : document.index("## The states")]
    rows = [row for row in promised.splitlines() if row.startswith("| ") and not row.endswith("| Test |")]
    named = {row: set(TEST.findall(row.rsplit(" | ", 1)[-1])) for row in rows}
    return [row for row, found in named.items() if not found or found - tests]


def test_every_promise_of_delivery_has_a_test() -> None:
    tests = functions()
    assert unproved(DELIVERY, tests) == []
    for test in set(TEST.findall(DELIVERY)):
        assert unproved(DELIVERY, tests - {test}), "a test that does not exist is found"
    assert len(unproved(TEST.sub("", DELIVERY), tests)) == 11
