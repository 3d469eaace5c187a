"""A short run of the fuzzers (tools/fuzz.sh, tests/fuzz), and of every input that once found a fault.

``make fuzz SECONDS=…`` makes long runs. Each finding becomes a file in tests/fuzz/findings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from core import ROOT

pytestmark = pytest.mark.unit

EXECUTIONS = {"parser": 300_000, "receiver": 3_000, "sender": 15_000}
SOAK_EXECUTIONS = {"parser": 10**8, "receiver": 10**6, "sender": 10**6}


@pytest.fixture(scope="module")
def clang(tmp_path_factory) -> str:
    """The compiler, if it can make a fuzzer."""
    source = tmp_path_factory.mktemp("probe") / "probe.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 1ul << 60; }")
    command = [
        os.environ.get("FUZZ_CC", "clang"),
        "-fsanitize=fuzzer,address",
        str(source),
        "-o",
        str(source.with_suffix("")),
    ]
    if shutil.which(command[0]) is None:
        pytest.skip("no clang here: apt-get install clang libclang-rt-dev")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    if ran.returncode:
        pytest.skip(f"clang has no libFuzzer here (apt-get install libclang-rt-dev): {ran.stderr.splitlines()[-1]}")
    return command[0]


def plain_environment() -> dict[str, str]:
    """Without the sanitizers of this process: a fuzzer has its own, and two of them crash."""
    return {k: v for k, v in os.environ.items() if k not in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LD_PRELOAD")}


def fuzz(target: str, executions: int, clang: str, directory: Path, patience_s: float) -> int:
    environment = plain_environment() | {"CC": clang, "FUZZ_DIR": str(directory), "RUNS": str(executions)}
    command = [str(ROOT / "tools/fuzz.sh"), "0", target]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience_s, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    line = next(line for line in ran.stdout.splitlines() if "number_of_executed_units" in line)
    return int(line.split()[-1])


@pytest.mark.parametrize("target", EXECUTIONS)
def test_fuzzing_finds_nothing(clang: str, target: str, tmp_path: Path) -> None:
    assert fuzz(target, EXECUTIONS[target], clang, tmp_path, 280) >= EXECUTIONS[target]
    seeds = list((tmp_path / "seeds" / target).iterdir())
    assert len(seeds) >= 6, "the corpus begins with what real ends say"
    findings = [str(path) for path in (ROOT / "tests/fuzz/findings").glob(f"{target}-*")]
    if findings:
        command = [str(tmp_path / target), *findings]
        ran = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, timeout=250, check=False)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.soak
@pytest.mark.parametrize("target", SOAK_EXECUTIONS)
def test_fuzzing_for_long_finds_nothing(clang: str, target: str, tmp_path: Path) -> None:
    assert fuzz(target, SOAK_EXECUTIONS[target], clang, tmp_path, 24 * 3600) >= SOAK_EXECUTIONS[target]
