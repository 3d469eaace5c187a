"""What was written reaches the disk: one sync for all files of a slice.

Few files are synced one by one, which touches nobody else's data and tells which file the disk refused. For many,
syncfs(2) writes out whatever the file system holds: one journal commit in place of thousands. Either way the
directories in which names were made are synced, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from aiflow._system.descriptors import Descriptor

_ONE_BY_ONE = 16  # files and directories; more are synced with their file system
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # by the file system: there is no more to be had

_libc = ctypes.CDLL(None, use_errno=True)


class Unsynced:
    """Files and directories that were changed since the last :meth:`sync`."""

    def __init__(self) -> None:
        self._files: list[tuple[str, Descriptor]] = []
        self._directories: dict[tuple[int, int], Descriptor] = {}
        self._streams: list[str] = []
        self._systems: dict[int, Descriptor] = {}  # a directory of each file system, for good
        self._touched: set[int] = set()

    def file(self, stream: str, file: Descriptor, directory: Descriptor) -> None:
        """Note what was written for `stream` to a file that is, or will be, in `directory`."""
        self._streams.append(stream)
        self._system(directory)
        if len(self._files) <= _ONE_BY_ONE:  # one more than that tells that there are many
            self._files.append((stream, copied(file)))

    def directory(self, directory: Descriptor, stream: str | None = None) -> None:
        """Note a directory in which a name was made, or, for `stream`, its own mode set."""
        if stream is not None:
            self._streams.append(stream)
        place = self._system(directory)
        if place not in self._directories and len(self._directories) <= _ONE_BY_ONE:
            self._directories[place] = copied(directory)

    def sync(self) -> dict[str, OSError]:
        """Wait until everything noted is on the disk.

        Returns
        -------
        dict of str to OSError
            Streams of which that cannot be said, and why.
        """
        failed: dict[str, OSError] = {}
        try:
            if len(self._files) + len(self._directories) > _ONE_BY_ONE:
                self._sync_systems(failed)
            else:
                self._sync_each(failed)
        finally:
            self._forget()
        return failed

    def close(self) -> None:
        """Forget what was noted, and close what is open."""
        self._forget()
        while self._systems:
            self._systems.popitem()[1].close()

    def _system(self, directory: Descriptor) -> tuple[int, int]:
        """Note the file system of `directory`; give the numbers that tell the directory from others."""
        status = os.fstat(directory.fd)
        if status.st_dev not in self._systems:
            self._systems[status.st_dev] = copied(directory)
        self._touched.add(status.st_dev)
        return status.st_dev, status.st_ino

    def _sync_each(self, failed: dict[str, OSError]) -> None:
        for stream, file in self._files:
            try:
                fsync(file)
            except OSError as error:
                failed[stream] = error.with_traceback(None)  # which holds the callers' frames, and what they hold
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
                if number in _UNSUPPORTED:  # a sandbox's word: then everything, which tells of no error
                    os.sync()
                else:
                    failed.update((stream, OSError(number, os.strerror(number))) for stream in self._streams)

    def _forget(self) -> None:
        while self._files or self._directories:
            with contextlib.suppress(OSError):  # a close may say once more what the sync has told
                (self._files.pop()[1] if self._files else self._directories.popitem()[1]).close()
        self._streams.clear()
        self._touched.clear()


def copied(descriptor: Descriptor) -> Descriptor:
    """Give another descriptor of the same open file."""
    return Descriptor(os.dup(descriptor.fd))


def fsync(descriptor: Descriptor) -> None:
    """Wait until a file or directory is on the disk, as far as its file system can say."""
    try:
        os.fsync(descriptor.fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def make_durably(path: Path) -> None:
    """Make a directory unless it is there; then its name is on the disk, too."""
    if path.is_dir():
        return
    path.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # a parent that we may write to and not read
        parent = Descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            fsync(parent)
        finally:
            parent.close()
