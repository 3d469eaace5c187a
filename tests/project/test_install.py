"""An installed aiflow is found from anywhere, and our texts say how it is installed without harm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import aiflow

ROOT = Path(__file__).parents[2]
PROGRAM = """
import aiflow
with aiflow.Sender("local:x") as sender:
    reveal_type(sender)
reveal_type(aiflow.pair)
"""


def run(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds only what is installed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def beside_a_clone(tmp_path: Path) -> Path:
    """A directory in which a clone of ours lies, called aiflow."""
    if (ROOT / ".git").exists():
        safe = ("-c", f"safe.directory={ROOT}/.git", "-c", f"safe.directory={ROOT}")
        cloned = run("git", *safe, "clone", "-q", f"file://{ROOT}", tmp_path / "aiflow", cwd=tmp_path)
        assert cloned.returncode == 0, cloned.stderr
    else:  # a source distribution
        skip = shutil.ignore_patterns(".venv", "build", "*.so")
        shutil.copytree(ROOT, tmp_path / "aiflow", ignore=skip)
    return tmp_path


@pytest.mark.parametrize("how", [["-c"], ["-I", "-c"], ["-P", "-c"]], ids=" ".join)
def test_a_clone_in_the_current_directory_hides_nothing(how: list[str], beside_a_clone: Path) -> None:
    code = "import aiflow; aiflow.pair; aiflow.Sender; print(aiflow.__file__)"
    ran = run(sys.executable, *how, code, cwd=beside_a_clone)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_file()
    assert beside_a_clone not in Path(ran.stdout.strip()).parents


def test_the_command_runs_beside_a_clone(beside_a_clone: Path) -> None:
    for command in ([sys.executable, "-m", "aiflow"], [Path(sys.executable).parent / "aiflow"]):
        ran = run(*command, "--version", cwd=beside_a_clone)
        assert ran.stdout == f"aiflow {aiflow.__version__}\n", ran.stderr


def test_mypy_finds_the_types_beside_a_clone(beside_a_clone: Path) -> None:
    (beside_a_clone / "program.py").write_text(PROGRAM)
    options = ("--strict", "--no-incremental", "--python-executable", sys.executable)
    ran = run(sys.executable, "-m", "mypy", *options, "program.py", cwd=beside_a_clone)
    assert ran.returncode == 0, ran.stdout
    assert 'Revealed type is "aiflow.sender.Sender"' in ran.stdout
    assert "receiver_options" in ran.stdout


def test_pyright_finds_the_types_beside_a_clone(beside_a_clone: Path) -> None:
    (beside_a_clone / "program.py").write_text(PROGRAM)
    pyright = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    ran = run(*pyright, "program.py", cwd=beside_a_clone, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert 'Type of "sender" is "Sender"' in ran.stdout
    assert "receiver_options" in ran.stdout


def test_the_distribution_is_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "aiflow-dpdk"
    assert version("aiflow-dpdk") == aiflow.__version__
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert not [line for line in extras if re.match(r"aiflow(?!-dpdk\[)", line)]


HARMFUL = [  # tools/texts.sh leaves this file out
    "pip install aiflow",
    "pip install 'aiflow[lab]'",
    'pip install "aiflow[lab]"',
    "`pip install aiflow`",
    "python3 -m pip install -U aiflow",
    "pip3 install --user aiflow==0.1",
    "pip3.11 install 'aiflow'",
    "pipx install aiflow",
    "pip install . --break-system-packages",
    "sudo pip install .",
    "sudo -H pip3 install .",
    "sudo python3 -m pip install .",
]
HARMLESS = [
    "pip install 'aiflow-dpdk[lab]'",
    "pip install aiflow-dpdk",
    "pip install .",
    "pip install -e '.[dev]'",
    "pip install ./aiflow",
    "pip install . brings aiflow",
    "sudo apt-get install libdpdk-dev",
    "sudo aiflow lab run all",
]


@pytest.mark.unit
@pytest.mark.parametrize("text", [*HARMFUL, *HARMLESS])
def test_lint_rejects_advice_that_harms(text: str, tmp_path: Path) -> None:
    run("git", "init", "-q", cwd=tmp_path)
    (tmp_path / "README.md").write_text(f"First line.\n{text}\n")
    run("git", "add", ".", cwd=tmp_path)
    ran = run(ROOT / "tools" / "texts.sh", tmp_path, cwd=tmp_path)
    assert (ran.returncode != 0) == (text in HARMFUL), ran.stderr
    assert ("README.md:2:" in ran.stderr) == (text in HARMFUL)


def test_the_demo_says_where_things_are() -> None:
    ran = run(ROOT / "tools" / "where.sh", cwd=Path("/"))
    assert ran.returncode == 0, ran.stderr
    assert f"the command is {ROOT}/.venv/bin/aiflow" in ran.stdout
    picture = re.search(r"the picture is (/.*/demo-report\.png)$", ran.stdout, re.M)
    assert picture is not None
    assert Path(picture[1]).parent.is_dir()
    for said in ("--report=x.png", "--json"):
        assert "picture" not in run(ROOT / "tools" / "where.sh", said, cwd=Path("/")).stdout
