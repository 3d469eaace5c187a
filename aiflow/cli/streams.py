"""Standard streams that work for every way a command is started.

Service managers start programs with closed streams. Logs can be full, readers can be gone, terminals may not be UTF-8.
Only a result that cannot be written to stdout may change the exit code.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BestEffort(io.FileIO):
    """A file that accepts every write: bytes that the system refuses are dropped."""

    def write(self, content: Buffer, /) -> int:
        """Write as much of `content` as possible, and report all of it as written."""
        nbytes = memoryview(content).nbytes
        try:
            return super().write(content) or nbytes  # None: the write would block, because the reader is stuck
        except OSError:
            return nbytes


def provide() -> None:
    """Open descriptors 0, 1 and 2 if they are closed, and let ``sys.stdout`` and ``sys.stderr`` accept any text.

    Call it before any file is opened. A file could get the number of a closed stream, and output of C code would be
    written to that file.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        _open_if_closed(number, flags)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper | None):
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(BestEffort(2, "w", closefd=False)),
            encoding=sys.stderr.encoding if sys.stderr else "utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )


def _open_if_closed(number: int, flags: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, flags)
        if null == number:
            os.set_inheritable(number, True)  # like a standard stream
        else:
            os.dup2(null, number)
            os.close(null)
