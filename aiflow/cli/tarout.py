"""``aiflow recv -``: what arrives goes to stdout, as the bytes of a stream or as a tar archive.

A stream that `aiflow send -` read is written as it is. Files, directories and a program's elements become members of a
tar archive (POSIX.1-2001, pax), which ``tar x`` unpacks. Memory use is limited by the slices that are held.
"""

from __future__ import annotations

import os
import select
import tarfile
import time
from typing import TYPE_CHECKING

from aiflow._terminal.text import printable
from aiflow.cli.safe_paths import numbered, safe_path
from aiflow.cli.write_errors import MOST_BYTES, NotWritten, WriteError, unfit

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from aiflow._transfer.filemarks import FileMark

_WRITE_BYTES = 1 << 20  # limit of one write: signals such as Ctrl-C are handled between writes
_BLOCK = 512  # of a tar archive


class TarOut:
    """A stream or an archive, written to a descriptor. It has the methods of `OutDirectory`.

    Parameters
    ----------
    fd : int
        The descriptor, which stays open.

    Attributes
    ----------
    renamed : list of (str, str)
        Elements written under another name, and that name.
    unkept : dict of str to str
        Always empty: an archive keeps modes and times.
    nb_files, nbytes, nb_kept : int
        Completed files, their bytes, and files that were there before: none.
    """

    def __init__(self, fd: int) -> None:
        self.renamed: list[tuple[str, str]] = []
        self.unkept: dict[str, str] = {}
        self.nb_files = 0
        self.nbytes = 0
        self.nb_kept = 0
        self._fd = fd
        self._sender: int | None = None  # the only one: two streams cannot share a descriptor
        self._broken = ""  # why nothing can be written any more
        self._part: tuple[str, int] | None = None  # unfinished: stream, bytes written
        self._told: tuple[int | None, int | None] = None, None  # its size, if it is known, and time
        self._is_archive = False
        self._taken: dict[str, int] = {}  # path of an element → number of elements with it
        self._files: dict[str, str] = {}  # stream of a file → its path: a file that is sent once more keeps it

    def write(self, stream: str, content: Buffer, mark: FileMark | None = None, sender: int = 0) -> str | None:
        """Write one element; the parameters are those of `OutDirectory.write`.

        Raises
        ------
        WriteError
            The reader of stdout is gone, a part is missing, or another sender writes here.
        """
        view = memoryview(content)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if self._sender is None:
            self._sender = sender
        if sender != self._sender:
            raise unfit(stream, "stdout takes what one sender sends; start another `aiflow recv` for this one")
        if self._broken:
            raise unfit(stream, self._broken)
        if mark is not None and mark.kind == "question":
            raise NotWritten  # stdout has no files of earlier runs
        try:
            if mark is not None and mark.kind == "part":
                return self._write_part(stream, view, mark)
            if self._part is not None:
                raise unfit(stream, f"{printable(self._part[0])} is not complete")
            return self._member(stream, view, mark, len(view))
        except OSError as error:
            self._broken = f"the receiver's stdout cannot be written: {error.strerror or error}"
            raise unfit(stream, self._broken) from None
        except WriteError as error:
            self._broken = error.reason
            raise

    def sync(self) -> dict[str, WriteError]:
        """Return at once: every write has returned, and a pipe cannot be synced."""
        return {}

    def unfinished(self) -> list[str]:
        """Return the stream whose end is missing."""
        return [] if self._part is None else [self._part[0]]

    def finish(self) -> None:
        """Write the end of the archive, if all of it is there."""
        if self._is_archive and self._part is None and not self._broken:
            self._put(memoryview(bytes(2 * _BLOCK)))

    def close(self) -> None:
        """Do nothing: the descriptor belongs to the caller."""

    def __enter__(self) -> TarOut:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_part(self, stream: str, view: memoryview, mark: FileMark) -> str | None:
        """Write a part of a file, whose header comes first, or of a stream of unknown size, which has none."""
        if max(mark.offset + len(view) + mark.hole, mark.size or 0) > MOST_BYTES:
            raise unfit(stream, "it is larger than any file may be; repeat the transfer")
        if mark.offset == 0 and self._part is None:
            self._part = stream, 0
            self._told = mark.size, mark.mtime_ns
            if mark.size is not None:
                self._header(stream, mark, mark.size)
        name, nbytes = self._part or ("", 0)
        size, mtime_ns = self._told
        if name == stream and nbytes and not mark.offset:
            raise unfit(stream, "its sender begins anew, and what was written stays written; repeat the transfer")
        if name != stream or nbytes != mark.offset:
            raise unfit(stream, f"its part at byte {mark.offset} arrived without those before it; repeat the transfer")
        nbytes += len(view) + mark.hole
        changed = size is not None and (size, mtime_ns) != (mark.size, mark.mtime_ns)
        if changed or (mark.size is not None and nbytes > mark.size):
            raise unfit(stream, "its parts do not agree on its size and time; repeat the transfer")
        self._put(view)
        self._zeros(mark.hole)
        self._part = stream, nbytes
        if nbytes != mark.size:
            return None
        if size is not None:
            self._pad(nbytes)
        self._part = None
        return self._complete(stream, nbytes)

    def _member(self, stream: str, view: memoryview, mark: FileMark | None, size: int) -> str:
        self._header(stream, mark, size)
        self._put(view)
        self._pad(size)
        if mark is not None and mark.kind == "directory":
            return stream
        return self._complete(stream, size)

    def _complete(self, stream: str, nbytes: int) -> str:
        self.nb_files += 1
        self.nbytes += nbytes
        return "/".join(safe_path(stream))

    def _header(self, stream: str, mark: FileMark | None, size: int) -> None:
        """Write the header of a member."""
        is_directory = mark is not None and mark.kind == "directory"
        is_file = mark is not None and not is_directory
        member = tarfile.TarInfo((is_file and self._files.get(stream)) or self._name(stream, is_directory))
        if is_file:
            self._files[stream] = member.name  # of two members of a name, the later one replaces the other
        member.type = tarfile.DIRTYPE if is_directory else tarfile.REGTYPE
        member.size = size
        member.mode = (0o755 if is_directory else 0o644) if mark is None or mark.mode is None else mark.mode & 0o777
        mtime_ns = time.time_ns() if mark is None or mark.mtime_ns is None else mark.mtime_ns
        member.mtime = max(mtime_ns // 10**9, 0)
        if mtime_ns % 10**9 or mtime_ns < 0:
            sign, mtime_ns = ("-", -mtime_ns) if mtime_ns < 0 else ("", mtime_ns)
            member.pax_headers = {"mtime": f"{sign}{mtime_ns // 10**9}.{mtime_ns % 10**9:09}"}
        self._put(memoryview(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")))
        self._is_archive = True

    def _name(self, stream: str, is_directory: bool) -> str:
        """Return a name for a member: a safe path, with a number if an element before had it."""
        *above, name = safe_path(stream)
        path = "/".join([*above, name])
        if not is_directory:
            number = self._taken[path] = self._taken.get(path, 0) + 1
            while number > 1:
                path = "/".join([*above, numbered(name, number)])
                if path not in self._taken:
                    self._taken[path] = 1
                    break
                number += 1
        if path != stream and (stream, path) not in self.renamed[-1:]:
            self.renamed.append((stream, path))
        return path

    def _zeros(self, nbytes: int) -> None:
        zeros = memoryview(bytes(min(nbytes, _WRITE_BYTES)))
        while nbytes:
            self._put(zeros[:nbytes])
            nbytes -= min(nbytes, _WRITE_BYTES)

    def _pad(self, size: int) -> None:
        self._put(memoryview(bytes(-size % _BLOCK)))

    def _put(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            try:
                at += os.write(self._fd, view[at : at + _WRITE_BYTES])
            except BlockingIOError:  # stdout may have O_NONBLOCK: a flag that processes share
                room = select.poll()
                room.register(self._fd, select.POLLOUT)
                room.poll()
