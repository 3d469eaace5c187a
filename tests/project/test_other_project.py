"""The notice about another project called aiflow, whose files overwrite ours, and ours its."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aiflow

PACKAGE = Path(aiflow.__file__).parent


def python(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in which `site` comes first."""
    return subprocess.run(
        [sys.executable, "-P", *words],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of installed packages with ours."""
    (tmp_path / "aiflow").mkdir()
    for path in PACKAGE.iterdir():
        (tmp_path / "aiflow" / path.name).symlink_to(path)
    (tmp_path / "aiflow_dpdk-0.1.0.dist-info").mkdir()
    return tmp_path


def test_alone_nothing_is_said(site: Path) -> None:
    ran = python(site, "-W", "error", "-c", "import aiflow; aiflow.Sender; print(aiflow.__file__)")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(str(site))


@pytest.mark.parametrize("theirs", ["aiflow-0.3.1.dist-info", "aiflow-0.3.1-py3.11.egg-info"])
def test_the_other_project_beside_ours_is_noticed(site: Path, theirs: str) -> None:
    (site / theirs).mkdir()
    ran = python(site, "-c", "import aiflow; aiflow.Sender")
    assert ran.returncode == 0, ran.stderr
    for said in ("RuntimeWarning", theirs, str(site), "pip uninstall aiflow aiflow-dpdk"):
        assert said in ran.stderr
    assert ran.stderr.count("RuntimeWarning") == 1


def test_the_command_notices_that_ours_was_overwritten(site: Path) -> None:
    (site / "aiflow" / "__init__.py").unlink()
    (site / "aiflow" / "__init__.py").write_text('__version__ = "0.3.1"\n')
    ran = python(site, "-c", "from aiflow.cli import main; main()")
    assert ran.returncode == 1
    assert "another project called aiflow" in ran.stderr
    assert "Traceback" not in ran.stderr
