"""Every header of the C core has a unit test of its own in tests/core, compiled with the sanitizers on, and passes it.

``include/aiflow/path/pktnum.h`` is tested by ``tests/core/test_pktnum.c``. A header without a test fails here, and so
does a test without a header.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
HEADERS = {path.stem: path for path in sorted((ROOT / "include/aiflow").rglob("*.h"))}
TESTS = {path.stem.removeprefix("test_"): path for path in sorted((ROOT / "tests/core").glob("test_*.c"))}
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-std=gnu11", "-D_GNU_SOURCE", "-O0", "-g1", "-pthread", "-I", str(ROOT / "include")]


def test_headers_and_tests_belong_together_one_to_one() -> None:
    assert sorted(HEADERS) == sorted(TESTS)
    for name, test in TESTS.items():
        text = test.read_text()
        # crc32c.h includes the one for carry-less multiplication, where the CPU has it
        assert f'"aiflow/{HEADERS[name].relative_to(ROOT / "include/aiflow")}"' in text or name == "crc32c_clmul"
        cases = re.findall(r"^static void\n(\w+)\(void\)\n\{", text, re.M)
        listed = re.findall(r"\bCASE\((\w+)\)", text)
        helpers = {case for case in cases if re.search(rf"^\t.*\b{case}\(\)", text, re.M)}
        assert sorted(set(cases) - helpers) == sorted(listed), f"{test.name} lists other cases than it has"


def compiled(name: str, directory: Path) -> Path:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc here")
    simd = ["-msse4.2"] if "sse4_2" in Path("/proc/cpuinfo").read_text() else []  # as DPDK's flags have it
    program = directory / f"test_{name}"
    command = [gcc, *FLAGS, *simd, TESTS[name], "-o", program, "-lm"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ran.returncode == 0, ran.stderr
    return program


@pytest.fixture(scope="module")
def programs(request, tmp_path_factory) -> Iterator[dict[str, Future[Path]]]:
    """The test programs of this run, compiled two at a time while others run."""
    directory = tmp_path_factory.mktemp("headers")
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if getattr(item, "fixturenames", None) and "programs" in item.fixturenames and item.module is request.module
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(compiled, name, directory) for name in names}


@pytest.mark.parametrize("name", sorted(TESTS))
def test_header(programs: dict[str, Future[Path]], name: str) -> None:
    # Of its own sanitizers, not those of the Python that runs us.
    environment = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    program = programs[name].result()
    ran = subprocess.run([program], capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran_cases = ran.stdout.split()
    assert ran_cases
    lists = re.findall(r"^CASES\(((?:\s*CASE\(\w+\),?)+)\)", TESTS[name].read_text(), re.MULTILINE)
    assert set(ran_cases) in [set(re.findall(r"CASE\((\w+)\)", cases)) for cases in lists]  # one for each kind of build
