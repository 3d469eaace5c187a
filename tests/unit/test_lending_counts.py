"""The counts of lent memory (tests/core/lend.c): two loops send from one array, and no reference is lost."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from core import compiled, run

pytestmark = pytest.mark.unit


def test_two_loops_that_begin_at_once_lose_no_reference(tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config here")
    flags = subprocess.run(["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True, check=False)
    if flags.returncode:
        pytest.skip("no headers of DPDK here")
    program = compiled("lend.c", tmp_path / "lend", "-fno-sanitize=all", "-O2", *shlex.split(flags.stdout))
    assert run(program)["rounds"] == 100_000
