"""Code under test in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def environment(**variables: str) -> dict[str, str]:
    """The environment of a test process: it finds what this process can import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}


def run(code: str, *arguments: str, prefix: tuple[str, ...] = (), timeout: float = 100, **variables: str) -> str:
    """Run `code` to its end and return what it printed; `prefix` is a command in front, such as ``ip netns exec``."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout


def start(code: str, *arguments: str, prefix: tuple[str, ...], stdin: int | None = None) -> subprocess.Popen[str]:
    """Begin to run `code`; the caller reads its output, and ends it."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment(),
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
    )
