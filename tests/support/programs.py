"""The command `aiflow …`, as programs that a test starts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEADLINE = 120  # seconds; everything here takes a few


class Program:
    """`aiflow …` running; ended at the latest when the test ends."""

    def __init__(self, *arguments: object, prefix: tuple[str, ...] = (), **variables: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "aiflow", *map(str, arguments)],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ends(self, exit_code: int) -> dict[str, Any]:
        """Wait for the end; give the JSON document."""
        stdout, stderr = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == exit_code, stdout + stderr
        assert "Traceback" not in stderr
        document: dict[str, Any] = json.loads(stdout)
        assert document["exit_code"] == exit_code
        return document

    def text(self, exit_code: int) -> tuple[str, str]:
        """Wait for the end; give stdout and stderr."""
        stdout, stderr = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == exit_code, stdout + stderr
        assert "Traceback" not in stderr
        return stdout, stderr

    def says(self, text: str) -> None:
        """Wait until stderr has a line with `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return
        raise AssertionError(f"ended without saying {text!r}")


@contextlib.contextmanager
def programs() -> Iterator[Any]:
    """Start programs; none survives the body."""
    running: list[Program] = []

    def start(*arguments: object, **options: Any) -> Program:
        running.append(Program(*arguments, **options))
        return running[-1]

    try:
        yield start
    finally:
        for program in running:
            if program.process.poll() is None:
                program.process.kill()
            program.process.communicate()


def content(root: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def unnamed_bytes(pid: int, directory: Path) -> int:
    """Bytes that a process has written to files in `directory` that have no name yet."""
    nbytes = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(descriptor.readlink()).startswith(f"{directory}/#"):
                nbytes += descriptor.stat().st_size
    return nbytes
