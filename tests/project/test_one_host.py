"""bench/one_host.py at its smallest size: every table has its lines, and a tree that is not built is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "bench" / "one_host.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--tiny", "--pairs", "2", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def lines_of(table: dict[str, Any], beside: str) -> list[dict[str, Any]]:
    return [line for line in table["lines"] if line["beside"].startswith(beside)]


@pytest.mark.slow
def test_every_table_has_its_lines(tmp_path) -> None:
    done = run("--before", ROOT, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "one_host.md").read_text() == done.stdout
    tables = json.loads((tmp_path / "one_host.json").read_text())
    assert list(tables) == ["copy", "cpu", "senders", "small"]
    # these need no package of the index
    assert len(lines_of(tables["copy"], "memcpy")) == len(lines_of(tables["copy"], "TCP sockets")) == 1
    assert lines_of(tables["copy"], "its own 4 KB")
    assert [line["what"] for line in lines_of(tables["cpu"], "the tree before")] == ["receiver", "both sides"]
    assert [line["unit"] for line in lines_of(tables["senders"], "one sender")] == ["GB/s", "CPU s/GB"]
    assert len(lines_of(tables["small"], "TCP sockets")) == 2
    for table in tables.values():
        for line in table["lines"]:
            ratio = line["ratio"]
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"], line
            assert line["ours"] > 0, line
            assert line["theirs"] > 0, line


@pytest.mark.slow
def test_a_tree_that_is_not_built_is_refused(tmp_path) -> None:
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    done = run("cpu", "--before", tmp_path)
    assert done.returncode != 0
    assert f"would be measured in place of {tmp_path}/aiflow" in done.stderr


def test_a_table_that_does_not_exist_is_refused() -> None:
    done = run("copies")
    assert done.returncode == 2
    assert "'copies' is not one of copy, cpu, senders, small" in done.stderr
