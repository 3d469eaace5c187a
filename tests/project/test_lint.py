"""The lint step: one list of checks for make, CI and pre-commit, and limits that a planted offence breaks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import sizes  # noqa: E402


def checks() -> list[str]:
    return subprocess.run([ROOT / "tools/lint.sh", "--list"], capture_output=True, text=True, check=True).stdout.split()


def test_pre_commit_runs_the_checks_of_ci() -> None:
    hooks = re.findall(r"entry: tools/lint\.sh ([\w-]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == checks()
    assert "tools/lint.sh $(ARGS)" in (ROOT / "Makefile").read_text()


def test_pre_commit_reads_its_configuration() -> None:
    pre_commit = shutil.which("pre-commit", path=f"{Path(sys.executable).parent}:/usr/bin")
    if pre_commit is None:
        pytest.skip("pre-commit is not installed (extra dev)")
    subprocess.run([pre_commit, "validate-config", ROOT / ".pre-commit-config.yaml"], check=True, timeout=60)


def test_lint_names_what_failed_and_refuses_unknown_checks() -> None:
    ran = subprocess.run([ROOT / "tools/lint.sh", "no-such-check"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "lint failed: no-such-check" in ran.stderr


C = """\
#define OPEN(x) do { (x)++; } while (0)  /* a brace in a directive: { */
struct af_pair {
	int first, second;
} __attribute__((aligned(64)));
static const int table[2] = { 1, 2 };
_Static_assert(sizeof(int) == 4, "int");
static inline int
af_short(void)
{
	return '{' + table[0]; /* } */
}

__attribute__((noinline)) static int
af_many(int a, int b, int (*c)(int, int), int d, int e, int f, int g, int h, int i)
{
	if (a) {
		b = "}"[0];
	}
	return a + b;
}
static int af_declared(int a, int b);
"""


def test_functions_of_c_are_found_with_their_size_and_parameters() -> None:
    assert list(sizes.c_functions(C)) == [
        sizes.Function("af_short", 7, 5, 0),
        sizes.Function("af_many", 13, 8, 9),
    ]


@pytest.mark.parametrize("text", ["int f(void) {", "int f(void) { } }"])
def test_c_that_cannot_be_read_is_an_offence(text: str) -> None:
    with pytest.raises(ValueError, match="unmatched"):
        list(sizes.c_functions(text))


CYTHON = '''\
cdef int counter = f(1, 2)
cdef extern from "x.h":
    int declared(int a)
cdef class Loop:
    cdef int look(self, int a, dict[int, int] b=(1, 2)) except -1 nogil:
        """Say: { nothing.

not indented
        """
        return a

    async def arecv(
        self,
        *,
        timeout=None,  # a comment, with a comma
    ):
        return 1
# the end
cdef inline void tiny(int a) noexcept nogil: pass
'''


def test_functions_of_cython_are_found_with_their_size_and_parameters() -> None:
    assert list(sizes.cython_functions(CYTHON)) == [
        sizes.Function("look", 5, 6, 2),
        sizes.Function("arecv", 12, 6, 1),
    ]


def offences(root: Path, name: str, text: str) -> list[str]:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return list(sizes.complaints(root))


LONG_C = "int\nlong_one(void)\n{\n%s}\n"
LONG_CYTHON = "def long_one():\n%s"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("aiflow/long.py", "x = 1\n" * 501, "501 lines"),
        ("docs/wide.md", "word " * 25, "125 columns"),
        ("tools/wide.sh", "\t" * 15 + "x", "121 columns"),
        ("include/aiflow/tx/long.h", LONG_C % ("\ti++;\n" * 57), "long_one: 61 lines"),
        ("aiflow/_dp_tx.pyx", LONG_CYTHON % ("    i += 1\n" * 60), "long_one: 61 lines"),
        ("aiflow/_wire.pyx", "def many(a, b, c, d, e, f, g, h, i):\n    pass\n", "many: 9 parameters"),
        ("bench/cut.py", "", "has the name of aiflow/lab/cut.py"),
    ],
)
def test_every_limit_is_enforced(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert offences(tmp_path, "aiflow/lab/cut.py", "") == []
    (offence,) = offences(tmp_path, name, text)
    assert said in offence


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("aiflow/long.py", "x = 1\n" * 500),
        ("docs/wide.md", "| " + "word " * 30 + "|\n```\n" + "x" * 130 + "\n```\n"),
        ("include/aiflow/tx/long.h", LONG_C % ("\ti++;\n" * 56)),
        ("aiflow/_wire.pyx", "def many(self, a, b, c, d, e, f, g, h):\n    pass\n"),
        ("aiflow/sender.py", "def many(a, b, c, d, e, f, g, h, i, j):\n    pass\n"),
        ("bench/__init__.py", ""),
    ],
)
def test_what_is_within_the_limits_passes(tmp_path: Path, name: str, text: str) -> None:
    assert offences(tmp_path, "aiflow/__init__.py", "") == []
    assert offences(tmp_path, name, text) == []
