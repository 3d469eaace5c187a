"""Set the version for a release: pyproject.toml, aiflow/__init__.py, and a section of CHANGELOG.md.

Usage: python tools/version.py 0.2.0 [YYYY-MM-DD]        the date defaults to today
"""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "## [Unreleased]"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?")


def _key(version: str) -> tuple[float, ...]:
    """Order of versions; a release candidate comes before its release."""
    parts = _VERSION.fullmatch(version)
    if parts is None:
        raise SystemExit(f"{version!r} is no version: use X.Y.Z, or X.Y.ZrcN for a release candidate")
    return (*map(int, parts.groups()[:3]), float(parts[4] or "inf"))


def _replaced(text: str, pattern: str, version: str, where: str) -> str:
    """`text` with the version in the only line that matches `pattern`."""
    new, found = re.subn(pattern, lambda match: f"{match[1]}{version}{match[2]}", text, flags=re.M)
    if found != 1:
        raise SystemExit(f"{where} has {found} lines with the version, not one")
    return new


def cut(changelog: str, version: str, date: str) -> str:
    """The changelog with all unreleased entries in a section of their own, below an empty ``[Unreleased]``."""
    before, heading, rest = changelog.partition(f"\n{UNRELEASED}\n")
    entries, *older = re.split(r"^(?=## \[)", rest, maxsplit=1, flags=re.M)
    if not heading or not entries.strip():
        raise SystemExit(f"CHANGELOG.md has nothing under {UNRELEASED}: write what users will notice first")
    if re.search(rf"^## \[{re.escape(version)}\]", changelog, re.M):
        raise SystemExit(f"CHANGELOG.md has a section for {version} already: take the next version")
    return f"{before}{heading}\n## [{version}] - {date}\n\n{entries.strip()}\n" + "".join(f"\n{part}" for part in older)


def release(root: Path, version: str, date: str) -> None:
    """Write the three files, or none of them.

    Parameters
    ----------
    root : Path
        The checkout.
    version : str
        ``X.Y.Z`` or ``X.Y.ZrcN``, at least the present version.
    date : str
        ISO 8601.

    Raises
    ------
    SystemExit
        The version is malformed, goes back, or was released before; nothing is unreleased. Nothing was written.
    """
    places = {
        root / "pyproject.toml": r'^(version = ")[^"]+(")$',
        root / "aiflow" / "__init__.py": r'^(__version__ = ")[^"]+(")$',
    }
    (present,) = re.findall(r'^version = "([^"]+)"$', (root / "pyproject.toml").read_text(), re.M)
    if _key(version) < _key(present):
        raise SystemExit(f"{version} is older than the present version {present}")
    new = {
        path: _replaced(path.read_text(), pattern, version, str(path.relative_to(root)))
        for path, pattern in places.items()
    }
    changelog = root / "CHANGELOG.md"
    new[changelog] = cut(changelog.read_text(), version, date)
    for path, text in new.items():
        path.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(str(__doc__).rstrip())
    day = datetime.date.fromisoformat(sys.argv[2]) if len(sys.argv) == 3 else datetime.date.today()
    release(ROOT, sys.argv[1], day.isoformat())
    print(f"version {sys.argv[1]}; next: git commit -a -m 'Release {sys.argv[1]}' (RELEASING.md)")
