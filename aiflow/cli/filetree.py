"""The files below a directory, read into slices of bounded size.

Files are read, not mapped: a mapped file that somebody truncates kills the process that touches it. What is sent is
what was read, and a file that changed while it was being read is noticed and read again.
"""

# os.path on plain strings: a tree may hold a million files, and Path costs ten times as much.

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aiflow.cli.names import Part, part_name

_ATTEMPTS = 3
_CHANGED = "it changed while it was being read; send it again when it is quiet"
_READ_BYTES = 16 << 20  # bytes asked of the kernel at once, so that Ctrl-C is heard


@dataclass(frozen=True)
class Found:
    """A regular file: its path below the directory, and the bytes it had when it was found."""

    path: str
    nbytes: int


@dataclass
class FileTree:
    """What a walk found.

    Attributes
    ----------
    root : Path
    files : list of Found
        Regular files, sorted by path. A symbolic link to a file counts as the file.
    left_out : list of str
        What is no file: sockets, pipes, devices, links to directories and to nothing.
    unreadable : dict of str to str
        Paths that can't be sent, and why.
    """

    root: Path
    files: list[Found] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes in all files as found."""
        return sum(file.nbytes for file in self.files)


def walk(root: Path) -> FileTree:
    """Find every file below `root`. Links to directories are not entered, so there is no endless loop."""
    tree = FileTree(root)

    def unlisted(error: OSError) -> None:
        tree.unreadable[_shown(os.path.relpath(error.filename, root))] = error.strerror or str(error)

    for directory, below, names in os.walk(root, onerror=unlisted):
        below.sort()
        above = os.path.relpath(directory, root)
        prefix = "" if above == "." else f"{above}/"
        tree.left_out += (_shown(prefix + name) for name in below if os.path.islink(os.path.join(directory, name)))
        for name in names:
            _note(tree, prefix + name, os.path.join(directory, name))
    tree.files.sort(key=lambda file: file.path)
    return tree


def _note(tree: FileTree, relative: str, path: str) -> None:
    """Put one name of a directory where it belongs in `tree`."""
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            tree.left_out.append(_shown(relative))
        else:
            tree.unreadable[_shown(relative)] = error.strerror or str(error)
        return
    if not stat.S_ISREG(status.st_mode):
        tree.left_out.append(_shown(relative))
    elif _shown(relative) != relative:
        tree.unreadable[_shown(relative)] = "its name is not UTF-8; rename it to send it"
    else:
        tree.files.append(Found(relative, status.st_size))


def _shown(path: str) -> str:
    r"""Give a path as it can be printed: bytes that are not UTF-8 as ``\udcXX``."""
    return path.encode("utf-8", "backslashreplace").decode()


@dataclass
class FileSlice:
    """Elements for one ``send``, stream and bytes; `ending` are the files that are whole once it is delivered."""

    elements: list[tuple[str, npt.NDArray[np.uint8]]]
    ending: list[Found]

    @property
    def nbytes(self) -> int:
        """Bytes in all elements."""
        return sum(content.nbytes for _, content in self.elements)


class SliceReader:
    """Reads a tree's files into slices.

    Parameters
    ----------
    tree : FileTree
        Files that turn out to be unreadable, or won't stay as they are, are added to its ``unreadable``.
    slice_bytes : int
        The most bytes a slice has. A larger file is cut into parts, each a slice of its own.
    empty : callable
        ``empty(nbytes)`` gives a fresh uint8 array; ``aiflow.empty`` spares a copy.

    Notes
    -----
    A slice's elements lie in one block, which is used again two slices later: one slice can be sent while the next is
    read, and no more than two are held.
    """

    def __init__(
        self,
        tree: FileTree,
        slice_bytes: int,
        empty: Callable[[int], npt.NDArray[np.uint8]] = lambda nbytes: np.empty(nbytes, np.uint8),
    ) -> None:
        self._tree = tree
        self._block_bytes = min(slice_bytes, max(tree.nbytes, 1 << 20))  # no more than the files can fill
        self._empty = empty
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._nb_slices = 0

    def __iter__(self) -> Iterator[FileSlice]:
        collected, at = FileSlice([], []), 0
        for file in self._tree.files:
            for _ in range(_ATTEMPTS):
                try:
                    with _opened(self._tree.root / file.path) as (fd, before):
                        if collected.elements and at + before.st_size > self._block_bytes:
                            yield self._next(collected)
                            collected, at = FileSlice([], []), 0
                        if before.st_size > self._block_bytes:
                            yield from self._parts(file.path, fd, before)
                            break
                        place = self._block()[at : at + before.st_size]
                        if _fill(fd, place, 0) == len(place) and _same(before, os.fstat(fd)):
                            collected.elements.append((file.path, place))
                            collected.ending.append(Found(file.path, len(place)))
                            at += len(place)
                            break
                except OSError as error:
                    self._tree.unreadable[file.path] = error.strerror or str(error)
                    break
            else:
                self._tree.unreadable[file.path] = _CHANGED
        if collected.elements:
            yield self._next(collected)

    def _block(self) -> npt.NDArray[np.uint8]:
        """Where the slice being read goes."""
        turn = self._nb_slices % 2
        if turn == len(self._blocks):
            self._blocks.append(self._empty(self._block_bytes))
        return self._blocks[turn]

    def _next(self, file_slice: FileSlice) -> FileSlice:
        self._nb_slices += 1
        return file_slice

    def _parts(self, path: str, fd: int, before: os.stat_result) -> Iterator[FileSlice]:
        """Read a file larger than a slice. If it changes on the way, the rest is kept back: it can't be whole."""
        total = before.st_size
        for offset in range(0, total, self._block_bytes):
            place = self._block()[: total - offset]
            if _fill(fd, place, offset) < len(place) or not _same(before, os.fstat(fd)):
                self._tree.unreadable[path] = _CHANGED
                return
            ending = [Found(path, total)] if offset + len(place) == total else []
            yield self._next(FileSlice([(part_name(Part(path, offset, total)), place)], ending))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Give the file's descriptor and status. Opening never waits, though a pipe may have taken the file's place."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no longer a file")
        yield fd, status
    finally:
        os.close(fd)


def _fill(fd: int, into: npt.NDArray[np.uint8], offset: int) -> int:
    """Read into the whole of `into` from `offset`; fewer bytes when the file ends before."""
    view = into.data
    at = 0
    while at < len(view):
        nbytes = os.preadv(fd, [view[at : at + _READ_BYTES]], offset + at)
        if nbytes == 0:
            break
        at += nbytes
    return at


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
