"""One file that is being written, relative to an open directory (openat). No symbolic link is followed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from aiflow._system.descriptors import Descriptor
from aiflow.cli.safe_paths import is_temporary, temporary_name

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
UNNAMED = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
_NAMED = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}  # errors of file systems without O_TMPFILE
HOLE_BYTES = 64 << 10  # a shorter run of zeros is written
_WRITE_BYTES = 16 << 20  # limit of one write: signals such as Ctrl-C are handled between writes


@dataclass
class OutFile:
    """A file that is not complete yet.

    Attributes
    ----------
    directory, file : Descriptor
    path : tuple of str
        The name reserved for it.
    total : int
        Its final size in bytes; -1 while it is not known.
    nbytes : int
        Bytes written so far.
    temporary : str
        Its temporary name in `directory`; "" if it has none.
    is_newer : bool
        A file of this run has the name, and is replaced.
    mtime_ns : int or None
        The sender's time of its first part.
    """

    directory: Descriptor
    path: tuple[str, ...]
    total: int
    nbytes: int = 0
    file: Descriptor = field(default_factory=lambda: Descriptor(-1))
    temporary: str = ""
    is_newer: bool = False
    mtime_ns: int | None = None

    def open(self, mode: int, unnamed: bool) -> None:
        """Create the file, with no name if `unnamed` and the file system can, else with a temporary one."""
        if unnamed:
            try:
                self.file = Descriptor(os.open(".", UNNAMED, mode, dir_fd=self.directory.fd))
                return
            except OSError as error:
                if error.errno not in NO_UNNAMED:
                    raise
        self.temporary, self.file = open_temporary(self.directory, mode)

    def append(self, view: memoryview) -> None:
        """Write the next bytes. Long runs of zeros become holes."""
        end = 0
        for begin, end in _runs(view):
            at = begin
            while at < end:
                at += os.pwrite(self.file.fd, view[at : min(at + _WRITE_BYTES, end)], self.nbytes + at)
        self.nbytes += len(view)
        if end < len(view):
            os.ftruncate(self.file.fd, self.nbytes)

    def skip_to(self, offset: int) -> None:
        """Let a hole follow, up to `offset`."""
        os.ftruncate(self.file.fd, offset)
        self.nbytes = offset

    def replaces(self) -> bool:
        """Return whether a file of an earlier run has the name."""
        try:
            os.stat(on_disk(self.path[-1]), dir_fd=self.directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def link(self) -> None:
        """Give an unnamed file its name. If a file of an earlier run has it, use a temporary name to rename later."""
        unnamed = f"/proc/self/fd/{self.file.fd}"
        try:
            os.link(unnamed, on_disk(self.path[-1]), dst_dir_fd=self.directory.fd, follow_symlinks=True)
        except FileExistsError:
            _lock(self.file)
            self.temporary = temporary_name()
            os.link(unnamed, self.temporary, dst_dir_fd=self.directory.fd, follow_symlinks=True)

    def rename(self) -> None:
        """Replace the temporary name by the final one."""
        os.rename(
            self.temporary, on_disk(self.path[-1]), src_dir_fd=self.directory.fd, dst_dir_fd=self.directory.fd
        )  # fmt: skip
        self.temporary = ""

    def discard(self) -> None:
        """Close the file and remove it, unless it has its final name."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self.temporary:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary, dir_fd=self.directory.fd)
        with contextlib.suppress(OSError):
            self.directory.close()


def can_link_unnamed(directory: Descriptor) -> bool:
    """Test whether an unnamed file can get a name here. This needs O_TMPFILE, /proc and the right to link."""
    name = temporary_name()
    try:
        file = Descriptor(os.open(".", UNNAMED, 0o600, dir_fd=directory.fd))
        try:
            os.link(f"/proc/self/fd/{file.fd}", name, dst_dir_fd=directory.fd, follow_symlinks=True)
            os.unlink(name, dir_fd=directory.fd)
        finally:
            file.close()
    except OSError:
        return False
    return True


def _runs(view: memoryview) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each part of `view` that must be written: everything except blocks of zeros."""
    begin: int | None = None
    for at in range(0, len(view), HOLE_BYTES):
        block = view[at : at + HOLE_BYTES]
        if len(block) < HOLE_BYTES or np.frombuffer(block, np.uint8).any():
            begin = at if begin is None else begin
        elif begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(view)


def open_directory(directory: Descriptor, name: str) -> Descriptor | None:
    """Open a subdirectory; None if the name belongs to something else."""
    try:
        return Descriptor(os.open(on_disk(name), _DIRECTORY, dir_fd=directory.fd))
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def on_disk(name: str) -> bytes:
    """Encode a name as UTF-8, independent of the locale."""
    return name.encode()


def _lock(file: Descriptor) -> None:
    """Tell later runs that this file is being written. The kernel releases the lock when the process ends."""
    with contextlib.suppress(OSError):  # a file system without locks: no later run can lock the file to remove it
        fcntl.flock(file.fd, fcntl.LOCK_EX)


def open_temporary(directory: Descriptor, mode: int) -> tuple[str, Descriptor]:
    """Create a file with a temporary name. The lock protects it from `sweep`."""
    while True:
        name = temporary_name()
        file = Descriptor(os.open(name, _NAMED, mode, dir_fd=directory.fd))
        _lock(file)
        if os.fstat(file.fd).st_nlink:  # 0: another run removed it before it was locked
            return name, file
        file.close()


def sweep(directory: Descriptor) -> None:
    """Remove the files of killed runs: files with temporary names that no process has locked."""
    for name in filter(is_temporary, os.listdir(directory.fd)):
        with contextlib.suppress(OSError):
            file = Descriptor(os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory.fd))
            try:
                fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory.fd)
            finally:
                file.close()
