"""The programs of tests/core: build one with the sanitizers, run it, and read the JSON that it prints."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 8
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
FLAGS = [*SANITIZERS, "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unused-parameter"]

Outcome = dict[str, Any]


def compiled(source: str, target: Path, *flags: str) -> Path:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc here")
    paths = ["-I", str(ROOT / "include"), str(ROOT / "tests/core" / source), "-o", str(target)]
    subprocess.run([gcc, *FLAGS, *flags, *paths], check=True, timeout=250)
    return target


def run(program: Path, *options: str, **environment: str) -> Outcome:
    # Of its own sanitizers, not those of the Python that runs us.
    environment |= {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    ran = subprocess.run(
        [str(program), *options], capture_output=True, text=True, timeout=250, env=environment, check=False
    )
    assert ran.returncode == 0, f"{' '.join(options)}\n{ran.stdout}{ran.stderr}"
    return json.loads(ran.stdout)


def run_seeds(program: Path, options: str, seeds: int = SEEDS, **environment: str) -> list[Outcome]:
    with ThreadPoolExecutor(2) as pool:
        return list(
            pool.map(lambda seed: run(program, *options.split(), f"seed={seed}", **environment), range(1, seeds + 1))
        )


def network(outcome: Outcome, what: str) -> int:
    return outcome["network"][what]
