"""Print the requirements of the build, of aiflow and of one extra of pyproject.toml, one a line.

Usage: python tools/requirements.py demo
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extra: str, pyproject: Path = PYPROJECT) -> list[str]:
    """Requirements of one extra, with ``aiflow-dpdk[a,b]`` inside it spelt out.

    Parameters
    ----------
    extra : str
        Name under ``[project.optional-dependencies]``.
    pyproject : Path
        The file to read.

    Returns
    -------
    list of str
        Sorted, each once.
    """
    table = tomllib.loads(pyproject.read_text())
    extras = table["project"]["optional-dependencies"]
    found = {*table["build-system"]["requires"], *table["project"]["dependencies"]}
    waiting = [extra]
    while waiting:
        for requirement in extras[waiting.pop()]:
            own = re.fullmatch(r"aiflow-dpdk\[([\w\s,-]+)\]", requirement)
            if own:
                waiting += [name.strip() for name in own[1].split(",")]
            else:
                found.add(requirement)
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
