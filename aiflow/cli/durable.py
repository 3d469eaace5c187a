"""Durable writes: one sync for all files of a slice.

A few files are synced one by one. This affects no other data and identifies a file that the disk refused. For many
files, syncfs(2) writes the whole file system: one journal commit instead of thousands. In both cases the directories
with new names are synced, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from aiflow._system.descriptors import Descriptor

_ONE_BY_ONE = 16  # files and directories; above this limit their file systems are synced
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # the file system cannot sync a file

_libc = ctypes.CDLL(None, use_errno=True)


class Unsynced:
    """Files and directories changed since the last :meth:`sync`."""

    def __init__(self) -> None:
        self._files: list[tuple[str, Descriptor]] = []
        self._directories: dict[tuple[int, int], Descriptor] = {}
        self._streams: list[str] = []
        self._systems: dict[int, Descriptor] = {}  # one directory of each file system, kept open
        self._touched: set[int] = set()

    def file(self, stream: str, file: int, directory: Descriptor, device_inode: tuple[int, int] | None = None) -> None:
        """Record a write for `stream` to a file that is, or will be, in `directory`, of `device_inode` if known.

        `file` is a descriptor of it; a copy of that is kept.
        """
        self._streams.append(stream)
        self._system(directory, device_inode)
        if len(self._files) <= _ONE_BY_ONE:  # one above the limit is enough to switch
            self._files.append((stream, Descriptor(os.dup(file))))

    def directory(
        self, directory: Descriptor, stream: str | None = None, device_inode: tuple[int, int] | None = None
    ) -> None:
        """Record a directory with a new name, or with a new mode for `stream`."""
        if stream is not None:
            self._streams.append(stream)
        place = self._system(directory, device_inode)
        if place not in self._directories and len(self._directories) <= _ONE_BY_ONE:
            self._directories[place] = copied(directory)

    def sync(self, then: Callable[[dict[str, OSError]], bool] | None = None) -> dict[str, OSError]:
        """Wait until every recorded change is on the disk.

        Parameters
        ----------
        then : callable, optional
            Called when the changes are on the disk, with what failed. If it returns True, it has changed some of the
            files once more, and they are synced once more.

        Returns
        -------
        dict of str to OSError
            Streams that may not be on the disk, and the reason.
        """
        failed: dict[str, OSError] = {}
        try:
            self._sync_all(failed)
            if then is not None and then(failed):
                self._sync_all(failed)
        finally:
            self._forget()
        return failed

    def close(self) -> None:
        """Drop the records, and close all descriptors."""
        self._forget()
        while self._systems:
            self._systems.popitem()[1].close()

    def _system(self, directory: Descriptor, device_inode: tuple[int, int] | None = None) -> tuple[int, int]:
        """Record the file system of `directory`. Return device and inode of the directory."""
        if device_inode is None:
            status = os.fstat(directory.fd)
            device_inode = status.st_dev, status.st_ino
        device = device_inode[0]
        if device not in self._systems:
            self._systems[device] = copied(directory)
        self._touched.add(device)
        return device_inode

    def _sync_all(self, failed: dict[str, OSError]) -> None:
        if len(self._files) + len(self._directories) > _ONE_BY_ONE:
            self._sync_systems(failed)
        else:
            self._sync_each(failed)

    def _sync_each(self, failed: dict[str, OSError]) -> None:
        for stream, file in self._files:
            try:
                fsync(file)
            except OSError as error:
                failed[stream] = error.with_traceback(None)  # the traceback would keep the callers' frames alive
        for directory in self._directories.values():
            try:
                fsync(directory)
            except OSError as error:
                error = error.with_traceback(None)
                failed.update((stream, error) for stream in self._streams if stream not in failed)

    def _sync_systems(self, failed: dict[str, OSError]) -> None:
        for device in self._touched:
            if _libc.syncfs(self._systems[device].fd) != 0:
                number = ctypes.get_errno()
                if number in _UNSUPPORTED:  # in a sandbox: sync everything, without error reports
                    os.sync()
                else:
                    failed.update((stream, OSError(number, os.strerror(number))) for stream in self._streams)

    def _forget(self) -> None:
        while self._files or self._directories:
            with contextlib.suppress(OSError):  # a close may repeat the error of the sync
                (self._files.pop()[1] if self._files else self._directories.popitem()[1]).close()
        self._streams.clear()
        self._touched.clear()


def copied(descriptor: Descriptor) -> Descriptor:
    """Return another descriptor of the same open file."""
    return Descriptor(os.dup(descriptor.fd))


def fsync(descriptor: Descriptor) -> None:
    """Wait until a file or directory is on the disk, if its file system supports this."""
    try:
        os.fsync(descriptor.fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def make_durably(path: Path) -> None:
    """Create a directory unless it exists, and sync its name."""
    if path.is_dir():
        return
    path.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # a parent with write but no read permission
        parent = Descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            fsync(parent)
        finally:
            parent.close()
