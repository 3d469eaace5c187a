"""Small files that arrive whole, written with few system calls each. A directory of pictures may have a million.

It does what `aiflow.cli.outdir` does for every file, for the usual case: a plain name in a directory that keeps its
name, and no file there that has it. Anything else is refused, and left to `OutDirectory`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from aiflow._system.descriptors import Descriptor
from aiflow._transfer.filemarks import FileMark
from aiflow.cli.durable import Unsynced
from aiflow.cli.outfile import HOLE_BYTES, NO_UNNAMED, UNNAMED
from aiflow.cli.outnames import OutNames
from aiflow.cli.safe_paths import safe_path

_MOST_OPEN = 128  # directories
_USUAL_LENGTH = 200  # of a name, in bytes; longer ones may have to be shortened
_USUAL_PATH = 1000

Descend = Callable[[tuple[str, ...], bool], tuple[Descriptor, tuple[str, ...]]]


@dataclass
class _Place:
    """An open directory.

    Attributes
    ----------
    directory : Descriptor
    path : tuple of str
    device_inode : (int, int)
    is_usual : bool
        Files can be written here in the usual way.
    """

    directory: Descriptor
    path: tuple[str, ...]
    device_inode: tuple[int, int]
    is_usual: bool


class WholeFiles:
    """Writes small files.

    Parameters
    ----------
    names : OutNames
        The names that are taken, shared with the output directory.
    unsynced : Unsynced
        Records what was written.
    descend : callable
        ``descend(path, private)`` opens a directory, created if missing. It returns the path, which may differ.
    """

    def __init__(self, names: OutNames, unsynced: Unsynced, descend: Descend) -> None:
        self._names = names
        self._unsynced = unsynced
        self._descend = descend
        self._places: dict[str, _Place] = {}
        # A path of one component below it is found sooner than a whole one.
        self._own = Descriptor(os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def write(self, stream: str, view: memoryview, mark: FileMark, owner: int) -> tuple[str, ...] | None:
        """Write one file, but for its time. Return its path, or None: then nothing was written.

        Parameters
        ----------
        stream, mark, owner
            As for `OutDirectory.write`; `owner` as for `OutNames.take`.
        view : memoryview
            Its bytes.
        """
        if mark.mode is None or len(view) > HOLE_BYTES or self._names.folds or len(stream) > _USUAL_PATH:
            return None
        above, slash, name = stream.rpartition("/")
        if not _is_usual(name) or (slash and not above):  # "/a" is written to "a", which is to be said
            return None
        place = self._places.get(above) or self._enter(above)
        if not place.is_usual:
            return None
        path = (*place.path, name)
        if self._names.is_taken(path):
            return None
        try:  # no Descriptor: its destructor, run for each file, could swallow an interrupt
            fd = os.open(".", UNNAMED, 0o600, dir_fd=place.directory.fd)
        except OSError as error:
            if error.errno not in NO_UNNAMED:
                raise
            place.is_usual = False
            return None
        try:
            at = 0
            while at < len(view):
                at += os.write(fd, view[at:])
            try:
                os.fchmod(fd, mark.mode & 0o777)
            except OSError:
                return None  # `OutDirectory` notes that a mode was not kept
            os.close(os.dup(fd))  # some file systems report a full disk at close: check it before linking
            os.link(str(fd), name, src_dir_fd=self._own.fd, dst_dir_fd=place.directory.fd, follow_symlinks=True)
            self._names.take(path, owner)
            self._unsynced.file(stream, fd, place.directory, place.device_inode)
            self._unsynced.directory(place.directory, device_inode=place.device_inode)
        except FileExistsError:
            place.is_usual = False  # there may be more of an earlier run
            return None
        finally:
            os.close(fd)
        return path

    def forget(self) -> None:
        """Close the directories: other processes may move them. Call it after each slice."""
        while self._places:
            self._places.popitem()[1].directory.close()

    def close(self) -> None:
        """Close all descriptors."""
        self.forget()
        self._own.close()

    def _enter(self, above: str) -> _Place:
        if len(self._places) >= _MOST_OPEN:
            self.forget()
        wanted = tuple(above.split("/")) if above else ()
        if safe_path(f"{above}/x")[:-1] != wanted:
            return _Place(Descriptor(-1), wanted, (0, 0), False)
        directory, path = self._descend(wanted, True)
        status = os.fstat(directory.fd)
        place = self._places[above] = _Place(directory, path, (status.st_dev, status.st_ino), path == wanted)
        return place


def _is_usual(name: str) -> bool:
    """Return whether a name is its own safe name, at a glance."""
    return name.isascii() and 0 < len(name) <= _USUAL_LENGTH and "\0" not in name and not name.startswith(".")
