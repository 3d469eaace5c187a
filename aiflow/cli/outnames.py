"""Names in the output directory: the names used in this run, and free names for new files."""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from itertools import count

from aiflow._system.descriptors import Descriptor
from aiflow.cli.outfile import on_disk, open_temporary
from aiflow.cli.safe_paths import numbered

Components = tuple[str, ...]  # of a path relative to the output directory


class OutNames:
    """Names of the files and directories of one run."""

    def __init__(self) -> None:
        self._folding: set[Components] = set()  # keys of directories in which "A" and "a" are the same name
        self._taken: dict[Components, int] = {}  # keys of files begun or completed in this run, and their owners
        self._numbers: dict[Components, int] = {}  # last number tried for a name that was taken

    @property
    def folds(self) -> bool:
        """Whether names that differ in case are the same in one of the directories."""
        return bool(self._folding)

    def key(self, path: Components) -> Components:
        """Return one key for all paths that the file system treats as the same."""
        if not self._folding:
            return path
        key: Components = ()
        for component in path:
            if key in self._folding:  # may fold too much: then a file gets a number that it does not need
                component = unicodedata.normalize("NFC", component).casefold().rstrip(". ")
            key = *key, component
        return key

    def is_taken(self, path: Components) -> bool:
        """Return whether a file of this run has the name."""
        return self.key(path) in self._taken

    def take(self, path: Components, owner: int = 0) -> None:
        """Reserve a name for a file of this run. Its `owner`, unless 0, may replace it."""
        self._taken[self.key(path)] = owner

    def release(self, path: Components) -> None:
        """Free a reserved name."""
        self._taken.pop(self.key(path), None)

    def inherit_folding(self, above: Components, path: Components) -> None:
        """Note a new directory: it treats case as its parent does."""
        if self.key(above) in self._folding:
            self._folding.add(self.key(path))

    def look_at(self, key: Components, directory: Descriptor) -> None:
        """Note how an existing directory treats case."""
        if _folds(directory):
            self._folding.add(key)

    def candidates(self, above: Components, component: str, *, directory: bool = False) -> Iterator[str]:
        """Yield the requested name, then numbered ones. The search resumes at the last number that was tried."""
        key = self.key((*above, component))
        if directory:  # counted separately from files of that name
            key = *key, ""
        for number in count(self._numbers.get(key, 1)):
            if number > 1:
                self._numbers[key] = number
            yield component if number == 1 else numbered(component, number)

    def vacant(self, directory: Descriptor, above: Components, component: str, owner: int = 0) -> str:
        """Choose a name for a file in `directory`: a free one, or that of a regular file of an earlier run.

        A file of this run is replaced by its `owner` only: a sender that sends a file once more.
        """
        if owner and self._taken.get(self.key((*above, component))) == owner:
            return component
        for name in self.candidates(above, component):
            if not self.is_taken((*above, name)):
                try:
                    status = os.stat(on_disk(name), dir_fd=directory.fd, follow_symlinks=False)
                except FileNotFoundError:
                    return name
                if stat.S_ISREG(status.st_mode):
                    return name
        raise AssertionError("names never run out")


def _folds(directory: Descriptor) -> bool:
    """Test whether a directory treats names that differ in case as the same: vfat, exFAT, ext4 with casefold."""
    before = os.fstat(directory.fd)
    try:
        name, file = open_temporary(directory, 0o600)
    except OSError:  # then no file can be written there either
        return False
    try:
        os.stat(name.upper(), dir_fd=directory.fd, follow_symlinks=False)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory.fd)
            os.utime(directory.fd, ns=(before.st_atime_ns, before.st_mtime_ns))  # this run may change nothing there
        file.close()
