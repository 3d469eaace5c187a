"""The files below a directory, read into slices of bounded size.

Files are read, not mapped: access to a mapped file that another process truncates kills this process. A file that
changed during the read is detected and read once more. The size reported by the system only determines the buffer size:
files of procfs have more or fewer bytes than it says.
"""

# os.path on plain bytes: a tree may hold a million files, and Path is ten times slower. Bytes, because names on the
# disk need not be UTF-8, independent of the locale.

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aiflow._transfer.filemarks import FileMark, Marked
from aiflow.cli.holes import data_ranges, is_sparse

_ATTEMPTS = 3
CHANGED = "it changed while it was being read; repeat the transfer when it no longer changes"
MOST_IN_FLIGHT = 2  # slices: the receiver writes one to its disk, one is in transit
_MOST_ELEMENTS = 2048  # in a slice: the receiver writes some while the next ones are read
_FIRST_FILES = 256  # in the first slice: the receiver begins early
_READ_BYTES = 16 << 20  # limit of one read: signals such as Ctrl-C are handled between reads
_SMALL_BYTES = 1 << 20
_READ_ONLY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe that has replaced a file does not block


@dataclass(frozen=True)
class Found:
    """A regular file: its path below the directory, and its size, time, mode, inode and device when it was found."""

    path: str
    nbytes: int
    mtime_ns: int = field(default=0, compare=False)
    mode: int = field(default=0, compare=False)
    inode: int = field(default=0, compare=False)
    device: int = field(default=0, compare=False)


@dataclass
class FileTree:
    """The result of a walk.

    Attributes
    ----------
    root : Path
    files : list of Found
        Regular files, sorted by path. A symbolic link to a file counts as the file.
    directories : list of Marked
        Directories below the root, including empty ones, deepest first: a mode without write permission is set last.
    left_out : dict of str to str
        Skipped paths and their types: sockets, pipes, devices, links to directories, dangling links.
    unreadable : dict of str to str
        Paths that cannot be sent, and the reason.
    is_whole : callable
        ``is_whole(fd, file)`` returns whether an open file may be sent as it was found. It is asked before and after
        the file is read, and after each slice of it. By default every file may.
    """

    root: Path
    files: list[Found] = field(default_factory=list)
    directories: list[Marked] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    is_whole: Callable[[int, Found], bool] = lambda _fd, _file: True

    @property
    def nbytes(self) -> int:
        """Bytes of all files when they were found."""
        return sum(file.nbytes for file in self.files)

    @property
    def empty(self) -> list[str]:
        """Directories without anything to send."""
        paths = [file.path for file in self.files] + [directory.stream for directory in self.directories]
        holding = {path.rpartition("/")[0] for path in paths}
        return [directory.stream for directory in self.directories if directory.stream not in holding]


def walk(root: Path) -> FileTree:
    """Find every file below `root`. Links to directories are not followed: they could form a loop."""
    tree = FileTree(root)
    top = os.fsencode(root)
    waiting = [b""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(os.path.join(top, prefix)) as entries:
                waiting += [prefix + entry.name + b"/" for entry in entries if _note(tree, prefix + entry.name, entry)]
        except OSError as error:
            tree.unreadable[_shown(prefix[:-1] or b".")] = error.strerror or str(error)
    tree.files.sort(key=lambda file: file.path)
    tree.directories.sort(key=lambda directory: directory.stream, reverse=True)
    return tree


def _note(tree: FileTree, relative: bytes, entry: os.DirEntry[bytes]) -> bool:
    """Add one directory entry to `tree`. Return whether it is a directory to list."""
    shown = _shown(relative)
    linked = entry.is_symlink()
    try:
        status = entry.stat()
    except OSError as error:
        if linked:
            tree.left_out[shown] = "a link to nothing"
        else:
            tree.unreadable[shown] = error.strerror or str(error)
        return False
    is_directory = stat.S_ISDIR(status.st_mode)
    if is_directory and linked:
        tree.left_out[shown] = "a link to a directory"
    elif not is_directory and not stat.S_ISREG(status.st_mode):
        tree.left_out[shown] = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
    elif shown.encode() != relative:
        tree.unreadable[shown] = "its name is not UTF-8; rename it to send it"
    elif is_directory:
        mark = FileMark("directory", status.st_mode & 0o777, status.st_mtime_ns)
        tree.directories.append(Marked(shown, b"", mark))
    else:
        mode, inode, device = status.st_mode & 0o777, status.st_ino, status.st_dev
        tree.files.append(Found(shown, status.st_size, status.st_mtime_ns, mode, inode, device))
    return is_directory and not linked


_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def _shown(path: bytes) -> str:
    r"""Decode a path: bytes that are not UTF-8 become ``\udcXX``."""
    return path.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()


@dataclass
class FileSlice:
    """Elements for one ``send``. `ending` lists the files that are complete after its delivery."""

    elements: list[Marked] = field(default_factory=list)
    ending: list[Found] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return sum(len(element.buffer) for element in self.elements)


class SliceReader:
    """Reads a tree's files into slices.

    The last slice contains the directories, and sets their modes and times. If there are several slices, the first one
    contains them, too: after an interrupted copy they have these modes plus write permission for their owner.

    Parameters
    ----------
    tree : FileTree
        Files that cannot be read, or keep changing, are added to its ``unreadable``.
    slice_bytes : int
        Maximum size of a slice. A larger file is split into parts, each a slice of its own.
    empty : callable
        ``empty(nbytes)`` returns a new uint8 array; ``aiflow.empty`` saves a copy.

    Notes
    -----
    The elements of a slice are in one block, which is reused three slices later. The receiver can write one slice and
    the sender send another while the next one is read. At most three blocks exist.
    """

    def __init__(
        self,
        tree: FileTree,
        slice_bytes: int,
        empty: Callable[[int], npt.NDArray[np.uint8]] = lambda nbytes: np.empty(nbytes, np.uint8),
    ) -> None:
        self._tree = tree
        self._above = os.path.join(os.fsencode(tree.root), b"")
        self._slice_bytes = slice_bytes
        self._block_bytes = min(slice_bytes, max(tree.nbytes, 1 << 20))  # not larger than all files together
        self._empty = empty
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._nb_slices = 0
        self._begun = False  # a slice has been returned, or the only one is next
        self._collected = FileSlice()
        self._at = 0  # used bytes of the block
        self._abandoned: set[str] = set()

    def __iter__(self) -> Iterator[FileSlice]:
        for file in self._tree.files:
            try:
                if not self._read_small(file):
                    yield from self._file(file)
            except OSError as error:
                self._tree.unreadable[file.path] = error.strerror or str(error)
        self._collected.elements += self._tree.directories
        self._begun = True
        yield from self._flush()

    def abandon(self, path: str) -> None:
        """Skip the remaining parts of a file."""
        self._abandoned.add(path)

    def _block(self) -> npt.NDArray[np.uint8]:
        """Block of the current slice."""
        turn = self._nb_slices % (MOST_IN_FLIGHT + 1)
        while turn >= len(self._blocks):  # a slice of holes alone takes no block
            self._blocks.append(self._empty(self._block_bytes))
        return self._blocks[turn]

    def _next(self, file_slice: FileSlice) -> FileSlice:
        self._nb_slices += 1
        if not self._begun:
            self._begun = True
            file_slice.elements[:0] = map(_writable, reversed(self._tree.directories))
        return file_slice

    def _flush(self) -> Iterator[FileSlice]:
        """Return the collected slice."""
        if self._collected.elements:
            collected, self._collected, self._at = self._collected, FileSlice(), 0
            yield self._next(collected)

    def _widen(self) -> None:
        """Use blocks of the maximum size from now on: a file has more bytes than the reported sizes of all files."""
        self._block_bytes = self._slice_bytes
        self._blocks = []
        self._nb_slices = 0

    def _read_small(self, file: Found) -> bool:
        """Read a small file that is as the walk has found it, with few system calls. Return False for all others."""
        nbytes, begin = file.nbytes, self._at
        end = begin + nbytes
        if not 0 < nbytes <= _SMALL_BYTES or end >= self._block_bytes or self._is_full():
            return False
        block = self._block()
        fd = os.open(self._above + file.path.encode(), _READ_ONLY)
        try:
            whole = self._tree.is_whole(fd, file)
            nb_read = os.preadv(fd, [block.data[begin : end + 1]], 0)
            status = os.fstat(fd)
            whole = whole and self._tree.is_whole(fd, file)
        except OSError:  # `_file` says why
            return False
        finally:
            os.close(fd)
        found = status.st_size, status.st_mtime_ns, status.st_ino
        if nb_read != nbytes or found != (nbytes, file.mtime_ns, file.inode) or not stat.S_ISREG(status.st_mode):
            return False
        if not whole or is_sparse(status):
            return False
        mark = FileMark("file", status.st_mode & 0o777, status.st_mtime_ns)
        self._collected.elements.append(Marked(file.path, block[begin:end], mark))
        self._collected.ending.append(file)
        self._at = end
        return True

    def _is_full(self) -> bool:
        """Return whether the collected slice has as many files as a slice may have."""
        return len(self._collected.elements) >= (_MOST_ELEMENTS if self._begun else _FIRST_FILES)

    def _file(self, file: Found) -> Iterator[FileSlice]:
        """Read one file, repeatedly if it changes. If it does not fit, return the collected slice first."""
        attempts, path = 0, file.path
        while attempts < _ATTEMPTS:
            with self._opened(path) as (fd, before):
                if not self._tree.is_whole(fd, file):
                    break
                if self._at + before.st_size > self._block_bytes or self._is_full():
                    yield from self._flush()
                if before.st_size > self._block_bytes or is_sparse(before):
                    yield from self._flush()
                    yield from self._parts(file, fd, before)
                    return
                room = self._block()[self._at :]
                nbytes = os.preadv(fd, [room.data[: before.st_size + 1]], 0) if before.st_size < _READ_BYTES else 0
                if nbytes != before.st_size or not nbytes:  # not just its size: read until there is no more
                    nbytes += _fill(fd, room[nbytes:], nbytes)
                more = nbytes == len(room) and os.pread(fd, 1, nbytes)
                if not self._is_same(file, fd, before):
                    attempts += 1
                elif not more:
                    mark = FileMark("file", before.st_mode & 0o777, before.st_mtime_ns)
                    self._collected.elements.append(Marked(path, room[:nbytes], mark))
                    self._collected.ending.append(Found(path, nbytes))
                    self._at += nbytes
                    return
                elif self._at:
                    yield from self._flush()
                elif self._block_bytes < self._slice_bytes:
                    self._widen()
                else:
                    self._tree.unreadable[path] = _wrong_size(before.st_size, f"more than {nbytes}")
                    return
        self._tree.unreadable[path] = CHANGED

    def _is_same(self, file: Found, fd: int, before: os.stat_result) -> bool:
        """Return whether a file is as it was before it was read."""
        after = os.fstat(fd)
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        return same and self._tree.is_whole(fd, file)

    def _parts(self, file: Found, fd: int, before: os.stat_result) -> Iterator[FileSlice]:
        """Read a file that is larger than a slice, or sparse. If it changes meanwhile, skip the rest of it."""
        path, total = file.path, before.st_size
        collected, at, reached = FileSlice(), 0, 0

        def part(content: npt.NDArray[np.uint8] | bytes, offset: int) -> None:
            mark = FileMark("part", before.st_mode & 0o777, before.st_mtime_ns, offset, total)
            collected.elements.append(Marked(path, content, mark))

        def hole(nbytes: int) -> None:
            """Let a hole follow the last part, or an empty part at the beginning of a file or a slice."""
            if not collected.elements:
                part(b"", reached)
            *_, last = collected.elements
            collected.elements[-1] = last._replace(mark=last.mark._replace(hole=nbytes))

        for begin, end in [*(data_ranges(fd, total) if is_sparse(before) else [(0, total)]), (total, total)]:
            if begin > reached:
                hole(begin - reached)
            reached = begin
            while reached < end:
                place = self._block()[at : at + end - reached]
                nbytes = _fill(fd, place, reached)
                if nbytes < len(place):
                    changed = not self._is_same(file, fd, before)
                    self._tree.unreadable[path] = CHANGED if changed else _wrong_size(total, str(reached + nbytes))
                    return
                part(place, reached)
                at += nbytes
                reached += nbytes
                if (at == self._block_bytes or len(collected.elements) == _MOST_ELEMENTS) and reached < total:
                    if path in self._abandoned:
                        return
                    if not self._is_same(file, fd, before):
                        self._tree.unreadable[path] = CHANGED
                        return
                    yield self._next(collected)
                    collected, at = FileSlice(), 0
        if path in self._abandoned:
            return
        more = os.pread(fd, 1, total)
        changed = not self._is_same(file, fd, before)
        if more or changed:
            self._tree.unreadable[path] = CHANGED if changed else _wrong_size(total, f"more than {total}")
            return
        collected.ending.append(Found(path, total))
        yield self._next(collected)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, os.stat_result]]:
        """Return a file's descriptor and status."""
        fd = os.open(self._above + path.encode(), _READ_ONLY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is no longer a file")
            yield fd, status
        finally:
            os.close(fd)


def _writable(directory: Marked) -> Marked:
    """Return a directory's mark for the time while files are written to it."""
    mark = directory.mark
    return directory._replace(mark=mark._replace(mode=(mark.mode or 0) | 0o700))


def _wrong_size(told: int, found: str) -> str:
    return f"its size says {told} bytes, and it has {found}; copy it to a disk first, and send the copy"


def _fill(fd: int, into: npt.NDArray[np.uint8], offset: int) -> int:
    """Fill `into` from `offset`. Return fewer bytes if the file ends before."""
    view = into.data
    at = 0
    while at < len(view):
        nbytes = os.preadv(fd, [view[at : at + _READ_BYTES]], offset + at)
        if nbytes == 0:
            break
        at += nbytes
    return at
