"""Errors of files that could not be written, with advice for the receiver's user and the sender's."""

from __future__ import annotations

import errno
from collections.abc import Callable

from aiflow._terminal.outcome import CommandError
from aiflow._terminal.text import printable
from aiflow.cli.safe_paths import safe_path

MOST_BYTES = (1 << 63) - 1
"""Bytes of the largest file that system calls can name (off_t)."""

_ADVICE = {
    errno.EACCES: "check who may write to {where}",
    errno.EPERM: "check who may write to {where}",
    errno.EROFS: "{where} is mounted read-only: mount it for writing, or choose another directory",
    errno.EMFILE: "raise the receiver's limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
    errno.EIO: "check the disk that holds {where} (dmesg)",
    errno.ENAMETOOLONG: "choose a directory with a shorter path, or rename the file",
    errno.EILSEQ: "rename the file: the file system does not support its name",
    errno.EINVAL: "rename the file: the file system may not support its name",
    errno.ESTALE: "remount {where}",
    errno.ENOENT: "create {where}: it was removed",
}


class WriteError(CommandError):
    """A file could not be written. The message names the file, the reason, and what to do.

    Attributes
    ----------
    reason : str
        The message for the sender. It does not name the file, so that several files can share one reason.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


NOT_WRITTEN = "it was not written by an earlier run"


class NotWritten(WriteError):
    """The answer to a sender that resumes: a file was not written by an earlier run, and must be sent."""

    def __init__(self) -> None:
        super().__init__(NOT_WRITTEN, NOT_WRITTEN)


def explained(
    error: OSError, stream: str, nbytes: int, where: str, free_bytes: Callable[[], int], nb_files: int
) -> WriteError:
    """Convert a system error into advice for the user.

    Parameters
    ----------
    error : OSError
    stream : str
        Stream that could not be written.
    nbytes : int
        Its size.
    where : str
        The receiver's output directory.
    free_bytes : callable
        Gives the free space there. It is called for a full disk only: on a broken file system it fails itself.
    nb_files : int
        Files that were completed before.
    """
    name = printable("/".join(safe_path(stream)))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WriteError(
            f"disk full: {name} ({nbytes} bytes) does not fit in {where}, where "
            f"{free_bytes()} bytes are free; the {nb_files} files before it are complete. "
            "Free some space or choose another directory, and repeat the transfer",
            f"disk full: it does not fit in the receiver's {where}; free some space there, and repeat the transfer",
        )
    if error.errno == errno.EFBIG:
        return WriteError(
            f"{name} ({nbytes} bytes) is larger than a file may be here (ulimit -f, or the file system)",
            f"it is larger than a file may be in the receiver's {where} (ulimit -f, or the file system)",
        )
    said = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, "choose another directory, and repeat the transfer").format(where=where)
    return WriteError(f"{name}: {said}; {advice}", f"{said} in the receiver's {where}: {advice}")


def unfit(stream: str, reason: str) -> WriteError:
    """Describe a part that does not fit its file."""
    return WriteError(f"{printable(stream)}: {reason}", reason)
