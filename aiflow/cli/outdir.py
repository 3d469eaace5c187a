"""The output directory of ``aiflow recv``: received files are written below it and never outside it.

Every system call is relative to an open directory (openat), and no symbolic link is followed, whether it existed before
or appears during the run. A file has no name until it is complete (O_TMPFILE). A reader never sees an incomplete file,
and the kernel removes the files of a killed run. On file systems without O_TMPFILE, files are written under a temporary
name and renamed.

A file gets the sender's modification time after its content is on the disk. A file with this time, size and mode is
thus whole, even after a power failure: `aiflow send --resume` relies on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aiflow._system.descriptors import Descriptor
from aiflow._terminal.text import shown_path
from aiflow.cli.durable import Unsynced, copied, fsync
from aiflow.cli.outfile import OutFile, can_link_unnamed, on_disk, open_directory, sweep
from aiflow.cli.outnames import OutNames
from aiflow.cli.safe_paths import safe_path
from aiflow.cli.wholefiles import WholeFiles
from aiflow.cli.write_errors import MOST_BYTES, NotWritten, WriteError, explained, unfit

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from aiflow._transfer.filemarks import FileMark

__all__ = ["NotWritten", "OutDirectory", "WriteError"]

_COARSEST_NS = 2 * 10**9  # coarsest resolution of times in file systems (FAT)
_USUAL_NS = range(315532800 * 10**9, 2**31 * 10**9)  # times that every file system has: from 1980 to 2038
_OUT_OF_RANGE = "its time is outside the range of the file system"


class OutDirectory:
    """The directory that ``aiflow recv`` writes to.

    Parameters
    ----------
    path : Path
        An existing directory. Unlike the paths below it, it may be a symbolic link.

    Attributes
    ----------
    renamed : list of (str, str)
        Streams written under another name, and that name, in the order of arrival.
    unkept : dict of str to str
        Files and directories whose mode or time differs from the sender's, and the reason.
    nb_files, nbytes : int
        Completed files, and their bytes.
    nb_kept : int
        Files of earlier runs that a sender has asked for, and that are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.renamed: list[tuple[str, str]] = []
        self.unkept: dict[str, str] = {}
        self.nb_files = 0
        self.nbytes = 0
        self.nb_kept = 0
        self._names = OutNames()
        # Directories made in this run, and the sender that set the mode; keys of OutNames, as in _swept and _told.
        self._made: dict[tuple[str, ...], int | None] = {}
        self._unfinished: dict[tuple[int, str], OutFile] = {}
        # Arguments of the WriteError of files in parts that failed: more parts may arrive. The error object itself
        # would keep its stack frames alive, and with them the bytes of a slice.
        self._failed: dict[tuple[int, str], tuple[str, str]] = {}
        self._resuming: set[int] = set()  # senders that have asked for files of an earlier run
        self._unsynced = Unsynced()
        self._fresh: list[tuple[str, int]] = []  # streams completed since the last sync, and their bytes
        self._undated: list[tuple[str, tuple[str, ...], int]] = []  # stream, path and time of files since the last sync
        self._grown: set[tuple[int, str]] = set()  # incomplete files that got a part since the last sync
        self._root = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._swept: set[tuple[str, ...]] = set()  # directories of earlier runs that were entered
        self._listed: dict[tuple[str, ...], set[bytes]] = {}  # names in directories, where a directory folds case
        self._told: set[tuple[tuple[str, ...], str]] = set()  # directories listed in `renamed`, and their streams
        self._look_at((), self._root)
        self._unnamed = self._can_link_unnamed()
        self._whole = WholeFiles(self._names, self._unsynced, self._descend) if self._unnamed else None

    def write(self, stream: str, content: Buffer, mark: FileMark | None = None, sender: int = 0) -> str | None:
        """Write one element.

        Parameters
        ----------
        stream : str
            Its name, any string. It gets a number (``a.jpg`` → ``a~2.jpg``) if a file of this run, a directory or a
            symbolic link has the name. A file of an earlier run is replaced, and one that the same sender sent before.
        content : buffer
            Its bytes, contiguous. Not referenced after the call.
        mark : FileMark, optional
            The sender's description: mode and time of a file, part of a file, or directory.
        sender : int
            The sender's instance. Parts of files are joined per sender.

        Returns
        -------
        str or None
            The path of the file or directory, relative to the output directory; None for a part before the last one.

        Raises
        ------
        WriteError
            The disk is full, or another system error occurred. The incomplete file is removed.
        NotWritten
            The element asks for a file of an earlier run (`aiflow.cli.resume`), and there is none.
        """
        view = memoryview(content)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # cast rejects a zero in the shape
        if mark is not None and mark.kind == "part":
            return self._write_part(stream, view, mark, sender)
        if mark is not None and (self._unfinished or self._failed):
            self._forget_parts(sender, stream)  # they never continue: the sender begins anew
        if mark is not None and mark.kind == "question":
            return self._find(stream, mark, sender)
        try:
            if mark is not None and mark.kind == "directory":
                return self._set_directory(stream, mark, sender)
            if self._whole is not None and mark is not None:
                path = self._whole.write(stream, view, mark, hash((sender, stream)) if sender else 0)
                if path is not None:
                    self._note(stream, path, len(view), mark)
                    return stream
            file = self._begin(stream, len(view), mark, sender)
            try:
                file.append(view)
                return self._finish(stream, file, mark)
            except BaseException:
                self._drop(file)
                raise
        except OSError as error:
            raise self._explained(error, stream, len(view)) from error

    def sync(self) -> dict[str, WriteError]:
        """Wait until everything written since the last call is on the disk.

        Returns
        -------
        dict of str to WriteError
            Streams that may not be on the disk, and the reason. Their files may exist, and are not counted. A file
            that lost a part is never completed.
        """
        unsynced = self._unsynced.sync(self._date)
        failed = {stream: self._explained(error, stream, 0) for stream, error in unsynced.items()}
        for key in self._grown:
            error = failed.get(key[1])
            if error is not None and key in self._unfinished:
                self._drop(self._unfinished.pop(key))
                self._failed[key] = str(error), error.reason
        self._grown.clear()
        if self._whole is not None:
            self._whole.forget()
        lost = [nbytes for stream, nbytes in self._fresh if stream in failed]
        self.nb_files -= len(lost)
        self.nbytes -= sum(lost)
        self._fresh.clear()
        return failed

    def unfinished(self) -> list[str]:
        """Return the paths of files with missing parts."""
        return ["/".join(file.path) for file in self._unfinished.values()]

    def close(self) -> None:
        """Remove incomplete files, and close. Further calls do nothing."""
        while self._unfinished:
            self._drop(self._unfinished.popitem()[1])
        self._unsynced.close()
        if self._whole is not None:
            self._whole.close()
        self._root.close()

    def __enter__(self) -> OutDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- a file ----

    def _write_part(self, stream: str, view: memoryview, mark: FileMark, sender: int) -> str | None:
        """Write one part. Parts arrive in order, as slices do; the first one starts the file anew.

        Every part says where it begins and how long the hole behind it is. A part that is missing is thus always
        noticed, and never taken for a hole.
        """
        key = sender, stream
        total = -1 if mark.size is None else mark.size
        if mark.offset == 0:
            self._forget_parts(sender, stream)
        file = self._unfinished.pop(key, None)
        end = mark.offset + len(view) + mark.hole
        try:
            if max(end, total) > MOST_BYTES:
                raise unfit(stream, "it is larger than any file may be; repeat the transfer")
            if mark.offset == 0:
                file = self._begin(stream, total, mark, sender)
            elif key in self._failed:
                raise WriteError(*self._failed[key])
            if file is None or file.nbytes != mark.offset:
                raise unfit(
                    stream,
                    f"its part at byte {mark.offset} arrived without those before it; repeat the transfer, "
                    "with the receiver started first",
                )
            if file.total < 0:  # a stream, whose size comes with its end
                file.total = total
            if (file.total, file.mtime_ns) != (total, mark.mtime_ns) or end > (total if total >= 0 else MOST_BYTES):
                raise unfit(stream, "its parts do not agree on its size and time; repeat the transfer")
            file.append(view)
            if mark.hole:
                file.skip_to(end)
            if file.nbytes == total:
                return self._finish(stream, file, mark)
            self._unsynced.file(stream, file.file.fd, file.directory)
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

    def _begin(self, stream: str, total: int, mark: FileMark | None, sender: int) -> OutFile:
        """Reserve a name and open a file. A file with a mode is private until it is complete."""
        owner = hash((sender, stream)) if mark is not None and sender else 0
        *above, name = safe_path(stream)
        directory, parent = self._descend(tuple(above), mark is not None)
        file = OutFile(directory, (), total, mtime_ns=None if mark is None else mark.mtime_ns)
        try:
            path = (*parent, self._names.vacant(directory, parent, name, owner))
            file.is_newer = self._names.is_taken(path)
            file.path = path
            self._names.take(path, owner)
            file.open(0o666 if mark is None or mark.mode is None else 0o600, self._unnamed)
        except BaseException:
            self._drop(file)
            raise
        return file

    def _finish(self, stream: str, file: OutFile, mark: FileMark | None) -> str:
        path = "/".join(file.path)
        if mark is not None:
            self._keep(file.file, path, None, mark.mode)
        self._unsynced.file(stream, file.file.fd, file.directory)
        self._unsynced.directory(file.directory)
        copied(file.file).close()  # some file systems report a full disk at close: check it before linking
        if not file.temporary:
            file.link()
        if file.temporary:
            if file.replaces():
                fsync(file.file)  # the old file stays until the new one is on the disk
            file.rename()
        file.directory.close()
        file.file.close()
        self._note(stream, file.path, file.nbytes, mark)
        if path != stream:
            self.renamed.append((stream, path))
        return path

    def _note(self, stream: str, path: tuple[str, ...], nbytes: int, mark: FileMark | None) -> None:
        """Note a file that is complete, but for its time."""
        if mark is not None and mark.mtime_ns is not None:
            self._undated.append((stream, path, mark.mtime_ns))
        self.nb_files += 1
        self.nbytes += nbytes
        self._fresh.append((stream, nbytes))

    def _forget_parts(self, sender: int, stream: str) -> None:
        """Remove what has arrived of a file in parts."""
        self._failed.pop((sender, stream), None)
        file = self._unfinished.pop((sender, stream), None)
        if file is not None:
            self._drop(file)

    def _drop(self, file: OutFile) -> None:
        """Remove an incomplete file, and free its name, unless a file before it has the name."""
        file.discard()
        if not file.is_newer:
            self._names.release(file.path)

    def _keep(self, descriptor: Descriptor, path: str, mtime_ns: int | None, mode: int | None) -> None:
        """Set the permission bits (never more) and the modification time.

        A directory below one with the setgid bit has inherited that, and keeps it: its files get the same group.
        """
        try:
            if mode is not None:
                before = os.fstat(descriptor.fd).st_mode
                os.fchmod(descriptor.fd, (mode & 0o777) | (before & stat.S_ISGID if stat.S_ISDIR(before) else 0))
            if mtime_ns is not None:
                os.utime(descriptor.fd, ns=(time.time_ns(), mtime_ns))
                if abs(os.fstat(descriptor.fd).st_mtime_ns - mtime_ns) > _COARSEST_NS:
                    self.unkept[path] = _OUT_OF_RANGE
        except (OSError, OverflowError) as error:
            self._note_unkept(path, error)

    def _note_unkept(self, path: str, error: OSError | OverflowError) -> None:
        """Note a mode or a time that cannot be set."""
        self.unkept[path] = error.strerror if isinstance(error, OSError) and error.strerror else str(error)

    def _date(self, failed: Mapping[str, OSError]) -> bool:
        """Set the times of files whose content is on the disk. Return whether there was one."""
        undated, self._undated = self._undated, []
        now, above, directory = time.time_ns(), None, copied(self._root)
        try:
            for stream, path, mtime_ns in undated:
                if stream in failed:
                    continue
                try:
                    if path[:-1] != above:
                        directory.close()
                        above, directory = path[:-1], self._reopened(path[:-1])
                    name = on_disk(path[-1])
                    os.utime(name, ns=(now, mtime_ns), dir_fd=directory.fd, follow_symlinks=False)
                    if mtime_ns not in _USUAL_NS:
                        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                        if abs(status.st_mtime_ns - mtime_ns) > _COARSEST_NS:
                            self.unkept["/".join(path)] = _OUT_OF_RANGE
                except (OSError, OverflowError) as error:
                    self._note_unkept("/".join(path), error)
        finally:
            directory.close()
        return bool(undated)

    def _find(self, stream: str, mark: FileMark, sender: int) -> str:
        """Find the file that was written for a stream before: of its path, size, mode and time.

        It may be of this run: its sender has died, and the one that resumes is another instance.

        Raises
        ------
        NotWritten
            There is none, or it is another one.
        """
        path = safe_path(stream)
        self._resuming.add(sender)
        if mark.size is None:
            raise NotWritten  # the question that must be refused
        try:
            directory = self._reopened(path[:-1])
            try:
                key = self._names.key(path[:-1])
                if key not in self._made and key not in self._swept:
                    self._look_at(key, directory)
                status = os.stat(on_disk(path[-1]), dir_fd=directory.fd, follow_symlinks=False)
            finally:
                directory.close()
            is_named = not self._names.folds or self._is_named(path)
        except OSError:
            raise NotWritten from None
        found = status.st_size, status.st_mtime_ns, status.st_mode & 0o7777
        if not is_named or not stat.S_ISREG(status.st_mode) or found != (mark.size, mark.mtime_ns, mark.mode):
            raise NotWritten
        self._names.take(path, hash((sender, stream)) if sender else 0)
        self.nb_kept += 1
        return "/".join(path)

    def _is_named(self, path: tuple[str, ...]) -> bool:
        """Whether each name of a path is there as it is written: where case is folded, it also finds another one."""
        for end in range(len(path)):
            above, name = path[:end], on_disk(path[end])
            if name not in self._listed.get(above, ()):
                with contextlib.closing(self._reopened(above)) as directory:
                    self._listed[above] = {os.fsencode(each) for each in os.listdir(directory.fd)}
                if name not in self._listed[above]:
                    return False
        return True

    # ---- directories ----

    def _set_directory(self, stream: str, mark: FileMark, sender: int) -> str:
        """Create a directory and set its mode and time. A directory of an earlier run keeps both."""
        directory, path = self._descend(safe_path(stream), True)
        key, shown = self._names.key(path), "/".join(path)
        try:
            now = stat.S_IMODE(os.fstat(directory.fd).st_mode) & 0o777
            mode = mark.mode
            if key not in self._made:
                self.unkept.pop(shown, None)  # set by an earlier mark of this sender
                if sender in self._resuming:  # an interrupted copy left it writable, with the time of its last file
                    was_left = mode is not None and now == mode | 0o700
                    self._keep(directory, shown, mark.mtime_ns, mode if was_left else None)
                    now = stat.S_IMODE(os.fstat(directory.fd).st_mode) & 0o777
                if mode is not None and mode & 0o777 != now:
                    self.unkept[shown] = f"the directory existed before, and keeps its mode {now:03o}"
            else:
                first = self._made[key]
                if first is None:  # no sender has set it: private, or as the umask says
                    self._made[key] = sender
                elif mode is not None:  # bits that both allow; the owner keeps access
                    mode = now & (mode if first == sender else mode | 0o700)
                self._keep(directory, shown, mark.mtime_ns, mode)
            self._unsynced.directory(directory, stream)
        finally:
            directory.close()
        if shown != stream and (key, stream) not in self._told:
            self._told.add((key, stream))  # it arrives with the first and with the last slice
            self.renamed.append((stream, shown))
        return shown

    def _descend(self, wanted: tuple[str, ...], private: bool) -> tuple[Descriptor, tuple[str, ...]]:
        """Open the directory `wanted`, created if missing. Return it and its path, which may differ.

        A directory that is created `private` is accessible to its owner only, until its own element sets the mode.
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

    def _reopened(self, path: tuple[str, ...]) -> Descriptor:
        """Open a directory below the output directory that is there; OSError if it is not."""
        directory = copied(self._root)
        for name in path:
            try:
                below = open_directory(directory, name)
            finally:
                directory.close()
            if below is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            directory = below
        return directory

    def _enter(
        self, directory: Descriptor, above: tuple[str, ...], component: str, private: bool
    ) -> tuple[Descriptor, str]:
        """Open a subdirectory, created if missing. It gets a number if something else has the name."""
        for name in self._names.candidates(above, component, directory=True):
            path = (*above, name)
            if self._names.is_taken(path):
                continue
            key = self._names.key(path)
            try:
                below = open_directory(directory, name)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(on_disk(name), 0o700 if private else 0o777, dir_fd=directory.fd)
                    self._made[key] = None
                    self._names.inherit_folding(above, path)
                    self._unsynced.directory(directory)
                below = open_directory(directory, name)
            if below is not None:
                if key not in self._made and key not in self._swept:
                    self._look_at(key, below)
                return below, name
        raise AssertionError("names never run out")

    def _look_at(self, key: tuple[str, ...], directory: Descriptor) -> None:
        """Enter a directory of an earlier run: remove the files of killed runs, and note how it treats case."""
        self._swept.add(key)
        sweep(directory)
        self._names.look_at(key, directory)

    def _can_link_unnamed(self) -> bool:
        return can_link_unnamed(self._root)

    def _explained(self, error: OSError, stream: str, nbytes: int) -> WriteError:
        return explained(error, stream, nbytes, shown_path(self.path), self._free_bytes, self.nb_files)

    def _free_bytes(self) -> int:
        """Free space of the file system; OSError when that itself is broken."""
        free = os.fstatvfs(self._root.fd)
        return free.f_bavail * free.f_frsize
