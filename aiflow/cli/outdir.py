"""Files that arrive, written under one directory and never outside it.

Every step is taken relative to an open directory (openat), and no symbolic link is followed: not one that lay there
before, and not one that somebody puts there while we write. A file is written under a temporary name beside its place
and renamed when it is whole, so that a reader never sees half a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiflow.cli.names import Part, numbered, parse_part, safe_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE_BYTES = 16 << 20  # bytes handed to the kernel at once, so that Ctrl-C is heard


class WriteError(Exception):
    """A file could not be written. The message says which, why, and what to do."""


@dataclass
class Unfinished:
    """A file that arrives in parts: where it is being written, and how much of it is there."""

    directory_fd: int
    temporary: str
    file_fd: int
    path: tuple[str, ...]
    nbytes: int
    total: int


class OutDirectory:
    """The directory that ``aiflow recv`` writes to.

    Parameters
    ----------
    path : Path
        An existing directory. It may itself be reached through a symbolic link: that one is the user's own choice.

    Attributes
    ----------
    renamed : dict of str to str
        Streams written under another name than their own, and that name.
    nb_files, nbytes : int
        Files that are whole and in place, and the bytes in them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.renamed: dict[str, str] = {}
        self.nb_files = 0
        self.nbytes = 0
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._written: set[tuple[str, ...]] = set()
        self._unfinished: dict[tuple[str, str], Unfinished] = {}

    def write(self, stream: str, content: Buffer, sender: str = "") -> Path | None:
        """Write one element.

        Parameters
        ----------
        stream : str
            Its name, any string. A name already written in this run gets a number (``a.jpg`` → ``a~2.jpg``), as does
            one that a directory or a symbolic link stands in the way of. A file there from before is replaced.
        content : buffer
            Its bytes, contiguous; read before this returns, not kept.
        sender : str
            Who sent it; parts of a file are put together for each sender.

        Returns
        -------
        Path or None
            The file, relative to the directory; None for a part that does not end its file.

        Raises
        ------
        WriteError
            The disk is full, or whatever the system said. Nothing of this file is left behind.
        """
        view = memoryview(content)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # cast refuses a zero in the shape
        part = parse_part(stream)
        if part is not None and part.offset + len(view) <= part.total:
            return self._write_part(part, view, sender)
        return self._write_whole(stream, view)

    def unfinished(self) -> list[str]:
        """Paths of files of which parts are missing."""
        return ["/".join(file.path) for file in self._unfinished.values()]

    def close(self) -> None:
        """Remove what is unfinished, and close. More calls do nothing."""
        for key in list(self._unfinished):
            self._drop(self._unfinished.pop(key))
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def __enter__(self) -> OutDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_whole(self, stream: str, view: memoryview) -> Path:
        file = self._begin(stream, len(view))
        try:
            self._append(file, view)
            return self._finish(stream, file)
        except BaseException as error:
            self._drop(file)
            raise self._explained(error, stream, len(view)) from error

    def _write_part(self, part: Part, view: memoryview, sender: str) -> Path | None:
        """Parts of one file come in order, as slices do; one that does not follow the last begins the file anew."""
        key = (sender, part.path)
        file = self._unfinished.pop(key, None)
        if file is not None and (file.nbytes, file.total) != (part.offset, part.total):
            self._drop(file)
            file = None
        if file is None:
            if part.offset != 0:
                raise WriteError(
                    f"{part.path}: the part at byte {part.offset} arrived without those before it; "
                    "send the directory again, with the receiver started first"
                )
            file = self._begin(part.path, part.total)
        try:
            self._append(file, view)
            if file.nbytes == file.total:
                return self._finish(part.path, file)
        except BaseException as error:
            self._drop(file)
            raise self._explained(error, part.path, part.total) from error
        self._unfinished[key] = file
        return None

    def _begin(self, stream: str, total: int) -> Unfinished:
        directory_fd = -1
        try:
            directory_fd, path = self._place(safe_path(stream))
            temporary = f".aiflow-{os.getpid()}-{secrets.token_hex(6)}.part"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file_fd = os.open(temporary, flags, 0o666, dir_fd=directory_fd)
        except OSError as error:
            if directory_fd >= 0:
                os.close(directory_fd)
            raise self._explained(error, stream, total) from error
        return Unfinished(directory_fd, temporary, file_fd, path, 0, total)

    @staticmethod
    def _append(file: Unfinished, view: memoryview) -> None:
        at = 0
        while at < len(view):
            at += os.write(file.file_fd, view[at : at + _WRITE_BYTES])
        file.nbytes += at

    def _finish(self, stream: str, file: Unfinished) -> Path:
        os.close(file.file_fd)  # some file systems only say here that the disk is full
        file.file_fd = -1
        os.rename(file.temporary, file.path[-1], src_dir_fd=file.directory_fd, dst_dir_fd=file.directory_fd)
        file.temporary = ""
        self._drop(file)
        self._written.add(file.path)
        self.nb_files += 1
        self.nbytes += file.nbytes
        path = "/".join(file.path)
        if path != stream:
            self.renamed[stream] = path
        return Path(path)

    @staticmethod
    def _drop(file: Unfinished) -> None:
        """Close what is open and remove what is temporary."""
        if file.file_fd >= 0:
            os.close(file.file_fd)
        if file.temporary:
            with contextlib.suppress(OSError):
                os.unlink(file.temporary, dir_fd=file.directory_fd)
        if file.directory_fd >= 0:
            os.close(file.directory_fd)
        file.file_fd = file.directory_fd = -1
        file.temporary = ""

    def _place(self, wanted: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        """Open the directory that shall hold the file, made if need be, and choose the file's name in it."""
        fd = os.dup(self._root)
        try:
            path: tuple[str, ...] = ()
            for component in wanted[:-1]:
                below, name = self._enter(fd, component)
                os.close(fd)
                fd, path = below, (*path, name)
            return fd, (*path, self._vacant(fd, path, wanted[-1]))
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def _enter(fd: int, component: str) -> tuple[int, str]:
        """Open a directory in `fd`, made if need be; a number is added when something else has the name."""
        number, name = 1, component
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
            try:
                return os.open(name, _DIRECTORY, dir_fd=fd), name
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
            number += 1
            name = numbered(component, number)

    def _vacant(self, fd: int, above: tuple[str, ...], component: str) -> str:
        """Choose a name in `fd` that a file may take: nothing there, or a plain file of an earlier run."""
        number, name = 1, component
        while True:
            if (*above, name) not in self._written:
                try:
                    if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        return name
                except FileNotFoundError:
                    return name
            number += 1
            name = numbered(component, number)

    def _explained(self, error: BaseException, stream: str, nbytes: int) -> BaseException:
        """Turn what the system said into what the user should do; an `error` of another kind comes back as it is."""
        if not isinstance(error, OSError):
            return error
        name = "/".join(safe_path(stream))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = os.fstatvfs(self._root)
            return WriteError(
                f"disk full: {name} ({nbytes} bytes) does not fit in {self.path}, where "
                f"{free.f_bavail * free.f_frsize} bytes are free; the {self.nb_files} files before it are whole. "
                "Free some space or take another directory, and send again"
            )
        if error.errno == errno.EFBIG:
            return WriteError(
                f"{name} ({nbytes} bytes) is larger than a file may be here (ulimit -f, or the file system)"
            )
        return WriteError(f"{name}: {error.strerror or error}; check who may write to {self.path}")
