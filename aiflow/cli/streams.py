"""The standard streams, fit for use whatever the command was started with.

Service managers start programs with closed streams, logs are full, readers go away, terminals are not UTF-8. Only one
of these may end a command with another exit code: a result that cannot be written to stdout.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BestEffort(io.FileIO):
    """A file that takes every write: what the system refuses is dropped."""

    def write(self, content: Buffer, /) -> int:
        """Write all of `content`, or as much as goes."""
        nbytes = memoryview(content).nbytes
        try:
            return super().write(content) or nbytes  # None: it would block, and nobody reads
        except OSError:
            return nbytes


def provide() -> None:
    """Open what is closed of descriptors 0, 1 and 2, and make ``sys.stdout`` and ``sys.stderr`` take any text.

    Call it before anything else is opened. The next file would get the number of a closed stream, and what C code
    prints would land in that file.
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
            os.set_inheritable(number, True)  # as a standard stream is
        else:
            os.dup2(null, number)
            os.close(null)
