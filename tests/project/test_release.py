"""The version step of a release: three files change together, or none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "aiflow/__init__.py", "CHANGELOG.md", "tools/version.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\nThe format.\n\n## [Unreleased]\n\n### Added\n\n- A.\n\n## [0.0.9] - 2020-01-01\n\n- Old.\n"
    )
    return tmp_path


def contents(checkout: Path) -> dict[str, str]:
    return {name: (checkout / name).read_text() for name in FILES}


def step(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, checkout / "tools/version.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_one_command_sets_the_version_everywhere(checkout: Path) -> None:
    before = contents(checkout)
    ran = step(checkout, "9.2.0", "2031-02-03")
    assert ran.returncode == 0, ran.stderr
    after = contents(checkout)
    for name, text in (("pyproject.toml", 'version = "9.2.0"'), ("aiflow/__init__.py", '__version__ = "9.2.0"')):
        changed = set(before[name].splitlines()) ^ set(after[name].splitlines())
        assert {line for line in changed if line in after[name].splitlines()} == {text}
        assert len(changed) == 2
    assert after["CHANGELOG.md"] == (
        "# Changelog\n\nThe format.\n\n## [Unreleased]\n\n## [9.2.0] - 2031-02-03\n\n### Added\n\n- A.\n"
        "\n## [0.0.9] - 2020-01-01\n\n- Old.\n"
    )


def test_candidates_come_before_their_release(checkout: Path) -> None:
    for version in ("9.2.0rc1", "9.2.0rc2", "9.2.0"):
        log = checkout / "CHANGELOG.md"
        log.write_text(log.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n- More.\n"))
        ran = step(checkout, version)
        assert ran.returncode == 0, ran.stderr
    assert step(checkout, "9.2.0rc3").returncode != 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["1.2"], "is no version"),
        (["v9.2.0"], "is no version"),
        (["0.0.1"], "is older than"),
        ([], "Usage"),
        (["9.2.0", "yesterday"], "Invalid isoformat"),
    ],
)
def test_a_wrong_call_changes_nothing(checkout: Path, arguments: list[str], said: str) -> None:
    before = contents(checkout)
    ran = step(checkout, *arguments)
    assert ran.returncode != 0
    assert said in ran.stderr
    assert contents(checkout) == before


@pytest.mark.parametrize(
    ("changelog", "said"),
    [
        ("# Changelog\n\n## [Unreleased]\n\n## [0.0.9] - 2020-01-01\n\n- Old.\n", "has nothing under"),
        ("# Changelog\n\n- Old.\n", "has nothing under"),
        ("# Changelog\n\n## [Unreleased]\n\n- A.\n\n## [9.2.0] - 2020-01-01\n\n- Old.\n", "already"),
    ],
)
def test_a_changelog_that_does_not_fit_changes_nothing(checkout: Path, changelog: str, said: str) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog)
    before = contents(checkout)
    ran = step(checkout, "9.2.0")
    assert ran.returncode != 0
    assert said in ran.stderr
    assert contents(checkout) == before


def test_our_own_changelog_can_be_cut(checkout: Path) -> None:
    shutil.copy(ROOT / "CHANGELOG.md", checkout)
    entries = (ROOT / "CHANGELOG.md").read_text().partition("## [Unreleased]\n")[2].partition("\n## [")[0].strip()
    ran = step(checkout, "9.2.0", "2031-02-03")
    if not entries:  # just released
        assert "has nothing under" in ran.stderr
    else:
        assert ran.returncode == 0, ran.stderr
        assert f"## [Unreleased]\n\n## [9.2.0] - 2031-02-03\n\n{entries}\n" in (checkout / "CHANGELOG.md").read_text()
