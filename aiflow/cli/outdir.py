"""Files that arrive, written under one directory and never outside it.

Every step is taken relative to an open directory (openat), and no symbolic link is followed: not one that lay there
before, and not one that somebody puts there while we write. A file has no name until it is whole (O_TMPFILE), so that a
reader never sees half a file, and the kernel removes what a killed run leaves. Where the file system lacks that, the
file is written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aiflow._system.descriptors import Descriptor
from aiflow._terminal.outcome import CommandError
from aiflow._terminal.text import printable, shown_path
from aiflow.cli.durable import Unsynced, copied, fsync
from aiflow.cli.safe_paths import is_temporary, numbered, safe_path, temporary_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from aiflow._transfer.filemarks import FileMark

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
_NAMED = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}  # what file systems without O_TMPFILE say
_ADVICE = {
    errno.EACCES: "check who may write to {where}",
    errno.EPERM: "check who may write to {where}",
    errno.EROFS: "{where} is mounted read-only: mount it for writing, or take another directory",
    errno.EMFILE: "let the receiver open more files (ulimit -n)",
    errno.ENFILE: "let all processes together open more files (sysctl fs.file-max)",
    errno.EIO: "check the disk that holds {where} (dmesg)",
    errno.ENAMETOOLONG: "take a directory with a shorter path, or rename the file",
    errno.EILSEQ: "rename the file: the file system has no such names",
    errno.EINVAL: "rename the file: the file system may have no such names",
    errno.ESTALE: "mount {where} anew",
    errno.ENOENT: "make {where} again: it was removed",
}
_COARSEST_NS = 2 * 10**9  # between two times that a file system can tell apart
_HOLE_BYTES = 64 << 10  # zeros that are worth a hole
_WRITE_BYTES = 16 << 20  # bytes handed to the kernel at once, so that Ctrl-C is heard


class WriteError(CommandError):
    """A file could not be written. The message says which, why, and what to do.

    Attributes
    ----------
    reason : str
        The same for its sender, who knows the name, and for whom many files may share one reason.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Unfinished:
    """A file that is being written.

    Attributes
    ----------
    directory, file : Descriptor
    path : tuple of str
        The name reserved for it.
    total : int
        Bytes that it will have.
    nbytes : int
        Bytes that are there.
    temporary : str
        Its name in `directory` until it is whole; "" while it has none.
    """

    directory: Descriptor
    path: tuple[str, ...]
    total: int
    nbytes: int = 0
    file: Descriptor = field(default_factory=lambda: Descriptor(-1))
    temporary: str = ""


class OutDirectory:
    """The directory that ``aiflow recv`` writes to.

    Parameters
    ----------
    path : Path
        An existing directory. It may itself be reached through a symbolic link: that one is the user's own choice.

    Attributes
    ----------
    renamed : list of (str, str)
        Streams written under another name than their own, and that name, in the order of their arrival.
    unkept : dict of str to str
        Files and directories whose mode or time is not the sender's, and why.
    nb_files, nbytes : int
        Files that are whole and in place, and the bytes in them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.renamed: list[tuple[str, str]] = []
        self.unkept: dict[str, str] = {}
        self.nb_files = 0
        self.nbytes = 0
        self._folding: set[tuple[str, ...]] = set()  # directories in which "A" and "a" are one name
        self._taken: set[tuple[str, ...]] = set()  # paths of files begun and done in this run; keys, as all below
        self._made: dict[tuple[str, ...], int | None] = {}  # made in this run, and which sender set the mode
        self._numbers: dict[tuple[str, ...], int] = {}  # of paths that were taken: where to look on for a free one
        self._unfinished: dict[tuple[int, str], Unfinished] = {}
        # Files in parts that failed, while more parts may come: what a WriteError is made of. The error itself would
        # hold the frames that it went through, and with them the bytes of a slice.
        self._failed: dict[tuple[int, str], tuple[str, str]] = {}
        self._unsynced = Unsynced()
        self._fresh: list[tuple[str, int]] = []  # streams of files finished since the last sync, and their bytes
        self._grown: set[tuple[int, str]] = set()  # unfinished files that got a part since the last sync
        self._root = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._swept: set[tuple[str, ...]] = set()  # directories of earlier runs that we have entered
        self._told: set[tuple[tuple[str, ...], str]] = set()  # directories in `renamed`, and their streams
        self._look_at((), self._root)
        self._unnamed = self._can_link_unnamed()

    def write(self, stream: str, content: Buffer, mark: FileMark | None = None, sender: int = 0) -> Path | None:
        """Write one element.

        Parameters
        ----------
        stream : str
            Its name, any string. A name already taken in this run gets a number (``a.jpg`` → ``a~2.jpg``), as does one
            that a directory or a symbolic link stands in the way of. A file there from before is replaced.
        content : buffer
            Its bytes, contiguous; read before this returns, not kept.
        mark : FileMark, optional
            What its sender says of it: a file's mode and time, a part of a file, a directory.
        sender : int
            The sender's instance; parts of a file are put together for each sender.

        Returns
        -------
        Path or None
            The file or directory, relative to ours; None for a part that does not end its file.

        Raises
        ------
        WriteError
            The disk is full, or whatever the system said. Nothing of this file is left behind.
        """
        view = memoryview(content)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # cast refuses a zero in the shape
        if mark is not None and mark.kind == "part":
            return self._write_part(stream, view, mark, sender)
        try:
            if mark is not None and mark.kind == "directory":
                return self._set_directory(stream, mark, sender)
            file = self._begin(stream, len(view), mark)
            try:
                self._append(file, view)
                return self._finish(stream, file, mark)
            except BaseException:
                self._drop(file)
                raise
        except OSError as error:
            raise self._explained(error, stream, len(view)) from error

    def sync(self) -> dict[str, WriteError]:
        """Wait until what was written since the last call is on the disk.

        Returns
        -------
        dict of str to WriteError
            Streams of which that cannot be said, and why. Their files may be there, and are not counted. A file of
            which a part is lost never becomes whole.
        """
        unsynced = self._unsynced.sync()
        failed = {stream: self._explained(error, stream, 0) for stream, error in unsynced.items()}
        for key in self._grown:
            error = failed.get(key[1])
            if error is not None and key in self._unfinished:
                self._drop(self._unfinished.pop(key))
                self._failed[key] = str(error), error.reason
        self._grown.clear()
        lost = [nbytes for stream, nbytes in self._fresh if stream in failed]
        self.nb_files -= len(lost)
        self.nbytes -= sum(lost)
        self._fresh.clear()
        return failed

    def unfinished(self) -> list[str]:
        """Paths of files of which parts are missing."""
        return ["/".join(file.path) for file in self._unfinished.values()]

    def close(self) -> None:
        """Remove what is unfinished, and close. More calls do nothing."""
        while self._unfinished:
            self._drop(self._unfinished.popitem()[1])
        self._unsynced.close()
        self._root.close()

    def __enter__(self) -> OutDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- a file ----

    def _write_part(self, stream: str, view: memoryview, mark: FileMark, sender: int) -> Path | None:
        """Parts of one file come in order, as slices do; the first one begins the file anew."""
        key = sender, stream
        file = self._unfinished.pop(key, None)
        total = -1 if mark.size is None else mark.size
        try:
            if mark.offset == 0:
                self._failed.pop(key, None)
                if file is not None:
                    self._drop(file)
                file = self._begin(stream, total, mark)
            elif key in self._failed:
                raise WriteError(*self._failed[key])
            if file is None or file.nbytes != mark.offset:
                raise _unfit(
                    stream,
                    f"its part at byte {mark.offset} arrived without those before it; send it again, with the receiver "
                    "started first",
                )
            if file.total != total or mark.offset + len(view) > total:
                raise _unfit(stream, "its parts do not agree on its size; send it again")
            self._append(file, view)
            if file.nbytes == total:
                return self._finish(stream, file, mark)
            self._unsynced.file(stream, file.file, file.directory)
        except BaseException as error:
            if file is not None:
                self._drop(file)
            if not isinstance(error, OSError | WriteError):
                raise
            if isinstance(error, OSError):
                error = self._explained(error, stream, total)
            self._failed[key] = str(error), error.reason
            raise WriteError(*self._failed[key]) from None
        self._unfinished[key] = file
        self._grown.add(key)
        return None

    def _begin(self, stream: str, total: int, mark: FileMark | None) -> Unfinished:
        """Reserve a name and open a file. Until it is whole nobody else may read what is not meant for all."""
        *above, name = safe_path(stream)
        directory, parent = self._descend(tuple(above), mark is not None)
        file = Unfinished(directory, (), total)
        try:
            file.path = (*parent, self._vacant(directory, parent, name))
            self._taken.add(self._key(file.path))
            self._open(file, 0o666 if mark is None or mark.mode is None else 0o600)
        except BaseException:
            self._drop(file)
            raise
        return file

    def _open(self, file: Unfinished, mode: int) -> None:
        if self._unnamed:
            try:
                file.file = Descriptor(os.open(".", _UNNAMED, mode, dir_fd=file.directory.fd))
                return
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
        file.temporary, file.file = _open_temporary(file.directory, mode)

    @staticmethod
    def _append(file: Unfinished, view: memoryview) -> None:
        """Write what comes next; of a file that comes whole, long runs of zeros become holes."""
        end = 0
        for begin, end in _runs(view) if len(view) == file.total else [(0, len(view))]:
            at = begin
            while at < end:
                at += os.pwrite(file.file.fd, view[at : min(at + _WRITE_BYTES, end)], file.nbytes + at)
        file.nbytes += len(view)
        if end < len(view):
            os.ftruncate(file.file.fd, file.nbytes)

    def _finish(self, stream: str, file: Unfinished, mark: FileMark | None) -> Path:
        path = "/".join(file.path)
        if mark is not None:
            self._keep(file.file, path, mark, mark.mode)
        self._unsynced.file(stream, file.file, file.directory)
        self._unsynced.directory(file.directory)
        copied(file.file).close()  # some file systems say at a close that the disk is full: before it has its name
        if not file.temporary:
            self._link(file)
        if file.temporary:
            if self._replaces(file):
                fsync(file.file)
            os.rename(
                file.temporary, _on_disk(file.path[-1]),
                src_dir_fd=file.directory.fd, dst_dir_fd=file.directory.fd,
            )  # fmt: skip
            file.temporary = ""
        file.directory.close()
        file.file.close()
        self.nb_files += 1
        self.nbytes += file.nbytes
        self._fresh.append((stream, file.nbytes))
        if path != stream:
            self.renamed.append((stream, path))
        return Path(path)

    @staticmethod
    def _replaces(file: Unfinished) -> bool:
        """Tell whether a file of an earlier run has the name: that one stays until the new one is on the disk."""
        try:
            os.stat(_on_disk(file.path[-1]), dir_fd=file.directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @staticmethod
    def _link(file: Unfinished) -> None:
        """Give a file without a name its own; where a file of an earlier run has that, a temporary one to rename."""
        unnamed = f"/proc/self/fd/{file.file.fd}"
        try:
            os.link(unnamed, _on_disk(file.path[-1]), dst_dir_fd=file.directory.fd, follow_symlinks=True)
        except FileExistsError:
            _lock(file.file)
            file.temporary = temporary_name()
            os.link(unnamed, file.temporary, dst_dir_fd=file.directory.fd, follow_symlinks=True)

    def _drop(self, file: Unfinished) -> None:
        """Close what is open, remove what is temporary, and give the name back."""
        with contextlib.suppress(OSError):
            file.file.close()
        if file.temporary:
            with contextlib.suppress(OSError):
                os.unlink(file.temporary, dir_fd=file.directory.fd)
        with contextlib.suppress(OSError):
            file.directory.close()
        self._taken.discard(self._key(file.path))

    def _keep(self, descriptor: Descriptor, path: str, mark: FileMark, mode: int | None) -> None:
        """Set what `mark` says: permission bits, never more, and the time of the last change."""
        try:
            if mode is not None:
                os.fchmod(descriptor.fd, mode & 0o777)
            if mark.mtime_ns is not None:
                os.utime(descriptor.fd, ns=(time.time_ns(), mark.mtime_ns))
                if abs(os.fstat(descriptor.fd).st_mtime_ns - mark.mtime_ns) > _COARSEST_NS:
                    self.unkept[path] = "its time is beyond what the file system can hold"
        except (OSError, OverflowError) as error:
            self.unkept[path] = error.strerror if isinstance(error, OSError) and error.strerror else str(error)

    # ---- directories ----

    def _set_directory(self, stream: str, mark: FileMark, sender: int) -> Path:
        """Make a directory and set its mode and time; one that was there before this run stays as it is."""
        directory, path = self._descend(safe_path(stream), True)
        key, shown = self._key(path), "/".join(path)
        try:
            now = stat.S_IMODE(os.fstat(directory.fd).st_mode) & 0o777
            mode = mark.mode
            if key not in self._made:
                self.unkept.pop(shown, None)  # what an earlier mark of this sender's said
                if mode is not None and mode & 0o777 != now:
                    self.unkept[shown] = f"the directory was there before, and keeps its mode {now:03o}"
            else:
                first = self._made[key]
                if first is None:  # nobody's yet: for us alone, or as the umask says
                    self._made[key] = sender
                elif mode is not None:  # what both allow; another sender does not lock the first one out
                    mode = now & (mode if first == sender else mode | 0o700)
                self._keep(directory, shown, mark, mode)
            self._unsynced.directory(directory, stream)
        finally:
            directory.close()
        if shown != stream and (key, stream) not in self._told:
            self._told.add((key, stream))  # it comes with the first slice, and with the last
            self.renamed.append((stream, shown))
        return Path(*path)

    def _descend(self, wanted: tuple[str, ...], private: bool) -> tuple[Descriptor, tuple[str, ...]]:
        """Open the directory `wanted`, made if need be; give its path, which may be another.

        A directory that is made `private` is for us alone until its own element says who may use it.
        """
        directory = copied(self._root)
        try:
            path: tuple[str, ...] = ()
            for component in wanted:
                below, name = self._enter(directory, path, component, private)
                directory.close()
                directory, path = below, (*path, name)
            return directory, path
        except BaseException:
            directory.close()
            raise

    def _enter(
        self, directory: Descriptor, above: tuple[str, ...], component: str, private: bool
    ) -> tuple[Descriptor, str]:
        """Open a directory in `directory`, made if need be; a number is added when something else has the name."""
        for name in self._names(above, component, directory=True):
            key = self._key((*above, name))
            if key in self._taken:
                continue
            try:
                below = _open_directory(directory, name)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_on_disk(name), 0o700 if private else 0o777, dir_fd=directory.fd)
                    self._made[key] = None
                    if self._key(above) in self._folding:
                        self._folding.add(key)
                    self._unsynced.directory(directory)
                below = _open_directory(directory, name)
            if below is not None:
                if key not in self._made and key not in self._swept:
                    self._look_at(key, below)
                return below, name
        raise AssertionError("names never run out")

    def _vacant(self, directory: Descriptor, above: tuple[str, ...], component: str) -> str:
        """Choose a name in `directory` that a file may take: nothing there, or a plain file of an earlier run."""
        for name in self._names(above, component):
            if self._key((*above, name)) not in self._taken:
                try:
                    status = os.stat(_on_disk(name), dir_fd=directory.fd, follow_symlinks=False)
                except FileNotFoundError:
                    return name
                if stat.S_ISREG(status.st_mode):
                    return name
        raise AssertionError("names never run out")

    def _look_at(self, key: tuple[str, ...], directory: Descriptor) -> None:
        """Enter a directory of an earlier run: remove what that left, and see what it takes for one name."""
        self._swept.add(key)
        _sweep(directory)
        if _folds(directory):
            self._folding.add(key)

    def _key(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Give one key to all paths that the file system takes for the same."""
        if not self._folding:
            return path
        key: tuple[str, ...] = ()
        for component in path:
            if key in self._folding:  # two names more or less alike: then one gets a number that it does not need
                component = unicodedata.normalize("NFC", component).casefold().rstrip(". ")
            key = *key, component
        return key

    def _names(self, above: tuple[str, ...], component: str, *, directory: bool = False) -> Iterator[str]:
        """Give the name that was asked for, then numbered ones, from the last that was tried: the n-th is one step."""
        key = self._key((*above, component))
        if directory:  # counted apart from files of that name
            key = *key, ""
        for number in count(self._numbers.get(key, 1)):
            if number > 1:
                self._numbers[key] = number
            yield component if number == 1 else numbered(component, number)

    def _can_link_unnamed(self) -> bool:
        """Try whether a file without a name can get one here: it takes O_TMPFILE, /proc and the right to link."""
        name = temporary_name()
        try:
            file = Descriptor(os.open(".", _UNNAMED, 0o600, dir_fd=self._root.fd))
            try:
                os.link(f"/proc/self/fd/{file.fd}", name, dst_dir_fd=self._root.fd, follow_symlinks=True)
                os.unlink(name, dir_fd=self._root.fd)
            finally:
                file.close()
        except OSError:
            return False
        return True

    def _explained(self, error: OSError, stream: str, nbytes: int) -> WriteError:
        """Turn what the system said into what the user should do."""
        where = shown_path(self.path)
        name = printable("/".join(safe_path(stream)))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = os.fstatvfs(self._root.fd)
            return WriteError(
                f"disk full: {name} ({nbytes} bytes) does not fit in {where}, where "
                f"{free.f_bavail * free.f_frsize} bytes are free; the {self.nb_files} files before it are whole. "
                "Free some space or take another directory, and send again",
                f"disk full: it does not fit in the receiver's {where}; free some space there, and send it again",
            )
        if error.errno == errno.EFBIG:
            return WriteError(
                f"{name} ({nbytes} bytes) is larger than a file may be here (ulimit -f, or the file system)",
                f"it is larger than a file may be in the receiver's {where} (ulimit -f, or the file system)",
            )
        said = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0, "take another directory, and send again").format(where=where)
        return WriteError(f"{name}: {said}; {advice}", f"{said} in the receiver's {where}: {advice}")


def _unfit(stream: str, reason: str) -> WriteError:
    return WriteError(f"{printable(stream)}: {reason}", reason)


def _runs(view: memoryview) -> Iterator[tuple[int, int]]:
    """Give where the bytes of `view` begin and end that a file must hold: all but blocks of zeros."""
    begin: int | None = None
    for at in range(0, len(view), _HOLE_BYTES):
        block = view[at : at + _HOLE_BYTES]
        if len(block) < _HOLE_BYTES or np.frombuffer(block, np.uint8).any():
            begin = at if begin is None else begin
        elif begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(view)


def _open_directory(directory: Descriptor, name: str) -> Descriptor | None:
    """Open a directory in another one; None where something else has the name."""
    try:
        return Descriptor(os.open(_on_disk(name), _DIRECTORY, dir_fd=directory.fd))
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _on_disk(name: str) -> bytes:
    """Names are UTF-8 on the disk, whatever the locale says."""
    return name.encode()


def _lock(file: Descriptor) -> None:
    """Show a run that comes later that this file is being written; the lock goes with the process."""
    with contextlib.suppress(OSError):  # no locks on this file system: then no run takes one to remove it either
        fcntl.flock(file.fd, fcntl.LOCK_EX)


def _open_temporary(directory: Descriptor, mode: int) -> tuple[str, Descriptor]:
    """Make a file under a temporary name, locked so that it stays."""
    while True:
        name = temporary_name()
        file = Descriptor(os.open(name, _NAMED, mode, dir_fd=directory.fd))
        _lock(file)
        if os.fstat(file.fd).st_nlink:  # else another run swept it away before it was locked
            return name, file
        file.close()


def _folds(directory: Descriptor) -> bool:
    """Tell whether a directory takes two names that differ in case for one: vfat, exFAT, ext4 with casefold."""
    before = os.fstat(directory.fd)
    try:
        name, file = _open_temporary(directory, 0o600)
    except OSError:  # then no file of ours gets there either
        return False
    try:
        os.stat(name.upper(), dir_fd=directory.fd, follow_symlinks=False)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory.fd)
            os.utime(directory.fd, ns=(before.st_atime_ns, before.st_mtime_ns))  # there may be no change of ours
        file.close()


def _sweep(directory: Descriptor) -> None:
    """Remove what killed runs left in a directory: files under temporary names that nobody has locked."""
    for name in filter(is_temporary, os.listdir(directory.fd)):
        with contextlib.suppress(OSError):
            file = Descriptor(os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory.fd))
            try:
                fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory.fd)
            finally:
                file.close()
