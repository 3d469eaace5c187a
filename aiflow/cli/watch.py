"""``aiflow send --watch``: send new files as they appear, until Ctrl-C.

The directory is looked at again and again: this works on every file system, misses no file when events overflow, and
sees a file that was renamed into place like one that was written there.

A file is whole, and sent, when no process has it open for writing and it has rested for ``--settle`` seconds. The
kernel says whether a file is open: it refuses a read lease on it (fcntl(2), F_SETLEASE). Where the kernel cannot say,
on network file systems and for files of other users, a file must rest for `UNSURE_SECONDS`.

A batch may take long, so that a file can change between the look and its turn. It is thus compared with what the look
saw when it is opened and after it is read, and the kernel is asked once more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from aiflow._terminal.outcome import Outcome
from aiflow._terminal.text import printable
from aiflow.cli.figures import bytes_text, count
from aiflow.cli.filetree import CHANGED, FileTree, Found, walk
from aiflow.cli.resume import leave_out
from aiflow.cli.sending import Sending, say_left_out, send_slices
from aiflow.errors import PeerLost

UNSURE_SECONDS = 5.0
"""Time that a file must rest where the kernel cannot say whether it is open."""

_INTERVAL_SECONDS = 0.2  # between two looks, at least
_END_SECONDS = 2.0  # after an interrupt, for what is in transit
_NOT_SENT = "not sent"
_NOT_WHOLE = "a file that was not whole yet"
_TOO_LATE = "new or changed since the last look"
_SHARE = 0.05  # of the time may be spent on looking

# On these, i_writecount of the kernel counts the writers of all processes that have the file system mounted.
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}


def send_new_files(
    outcome: Outcome,
    sending: Sending,
    directory: Path,
    undelivered: dict[str, str],
    slice_bytes: int,
    settle: float,
    resume: bool,
) -> None:
    """Send the files of a directory, then those that appear or change, until Ctrl-C or SIGTERM.

    An interrupt is the ordinary end, and not an error, if what is in transit arrives within a moment.

    Parameters
    ----------
    outcome, sending
        The run.
    directory : Path
    undelivered : dict of str to str
        Gets the files that could not be read, or written by the receiver.
    slice_bytes, settle, resume
        See ``aiflow send --help``.
    """
    new = NewFiles(directory, settle)
    lease_breaks_ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)  # its default ends the process
    outcome.terminal.say(f"watching {printable(str(directory))}; Ctrl-C ends")
    try:
        while True:
            tree = new.look()
            say_left_out(outcome, tree)
            outcome.document["left_out"] = new.left_out
            _note_unreadable(outcome, tree, undelivered)
            tree.unreadable.clear()
            if tree.files or tree.directories:
                _send_batch(outcome, sending, new, tree, undelivered, slice_bytes, resume)
            time.sleep(new.interval)
    except KeyboardInterrupt:
        _look_once_more(outcome, new, undelivered)
        if _NOT_SENT in undelivered.values():
            raise
    finally:
        signal.signal(signal.SIGIO, lease_breaks_ignored)


def _note_unreadable(outcome: Outcome, tree: FileTree, undelivered: dict[str, str]) -> None:
    """Say and note what a look cannot read."""
    for path, reason in tree.unreadable.items():
        undelivered[path] = reason
        outcome.terminal.say(f"aiflow: {printable(path)} cannot be sent: {reason}", style="red")


def _look_once_more(outcome: Outcome, new: NewFiles, undelivered: dict[str, str]) -> None:
    """List what is not sent at the end."""
    tree = new.look()
    late = dict.fromkeys(new.pending, _NOT_WHOLE)
    late.update(dict.fromkeys([*(file.path for file in tree.files), *tree.empty], _TOO_LATE))
    tree.left_out.update((path, what) for path, what in late.items() if path not in undelivered)
    _note_unreadable(outcome, tree, undelivered)
    say_left_out(outcome, tree)
    outcome.document["left_out"] = {**new.left_out, **tree.left_out}


def _send_batch(
    outcome: Outcome,
    sending: Sending,
    new: NewFiles,
    tree: FileTree,
    undelivered: dict[str, str],
    slice_bytes: int,
    resume: bool,
) -> None:
    """Send new files. If the receiver goes away, wait for the next one, which is asked for what it has."""
    files = list(tree.files)
    kept: set[str] = set()
    undelivered.update((file.path, _NOT_SENT) for file in files)
    undelivered.update((directory, _NOT_SENT) for directory in tree.empty)
    try:
        while True:
            try:
                if resume:
                    kept.update(file.path for file in leave_out(outcome, sending, tree, undelivered))
                send_slices(sending, tree, slice_bytes)
                break
            except PeerLost as lost:
                outcome.terminal.say(f"aiflow: {lost}. Waiting for a receiver; Ctrl-C ends", style="yellow")
                sending.expect_receiver()
                tree.files[:] = [file for file in tree.files if file.path in undelivered]
                tree.unreadable.clear()
                resume = True
    except KeyboardInterrupt:
        sending.finish_within(_END_SECONDS)
        raise
    finally:
        _note_ends(new, tree, files, undelivered)
    for path in [file.path for file in files if file.path in undelivered]:
        outcome.terminal.say(f"aiflow: {printable(path)} was not delivered: {undelivered[path]}", style="red")
    without = {*undelivered, *tree.unreadable, *kept}
    sent = [file for file in files if file.path not in without]
    if sent and not outcome.terminal.as_json:
        others = f" and {count(len(sent) - 1, 'other file')}" if len(sent) > 1 else ""
        nbytes = sum(file.nbytes for file in sent)
        outcome.terminal.tell(f"sent {printable(sent[-1].path)}{others}, {bytes_text(nbytes)}")


def _note_ends(new: NewFiles, tree: FileTree, files: list[Found], undelivered: dict[str, str]) -> None:
    """Note which files of a batch are not new any more."""
    for file in files:
        reason = tree.unreadable.get(file.path)
        if reason is None:
            if undelivered.get(file.path) != _NOT_SENT:
                new.sent(file)
        elif reason == CHANGED or not os.path.lexists(os.path.join(os.fsencode(tree.root), file.path.encode())):
            undelivered.pop(file.path, None)  # it is looked at once more, or gone
        else:
            new.sent(file)
            undelivered[file.path] = reason


class NewFiles:
    """Finds files that appear or change below a directory, once each of them is whole.

    Parameters
    ----------
    root : Path
    settle : float
        Seconds for which a file must rest.
    clock, wall_clock : callable
        Seconds of a clock that never jumps, and of the one that files are dated by.

    Attributes
    ----------
    pending : dict of str to (tuple, float)
        Files that are not whole yet: their state, and since when they have it.
    left_out : dict of str to str
        Paths that are no files, and what they are.
    interval : float
        Seconds until the next look.
    """

    def __init__(
        self,
        root: Path,
        settle: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.pending: dict[str, tuple[tuple[int, int, int], float]] = {}
        self.left_out: dict[str, str] = {}
        self.interval = _INTERVAL_SECONDS
        self._root = root
        self._settle = settle
        self._clock = clock
        self._wall_clock = wall_clock
        self._sent: dict[str, tuple[int, int, int]] = {}  # path → state in which it was sent
        self._directories: set[str] = set()
        self._unreadable: dict[str, str] = {}
        self._local: dict[int, bool] = {}  # device → whether its file system is local: mounts may be below the root

    def sent(self, file: Found) -> None:
        """Note that a file was sent, or can never be: it is new again when it changes."""
        self._sent[file.path] = _state(file)

    def look(self) -> FileTree:
        """Return the whole new files, the new directories, and the directories above both."""
        began = self._clock()
        seen = walk(self._root)
        new = FileTree(self._root, is_whole=self._is_still_whole)
        self._local.clear()  # the device number of a mount may be given to another
        new.left_out = {path: what for path, what in seen.left_out.items() if path not in self.left_out}
        new.unreadable = {
            path: reason
            for path, reason in seen.unreadable.items()
            if path not in self._unreadable and reason != os.strerror(errno.ENOENT)  # it has just gone
        }
        sent: dict[str, tuple[int, int, int]] = {}
        pending: dict[str, tuple[tuple[int, int, int], float]] = {}
        for file in seen.files:
            state = _state(file)
            if self._sent.get(file.path) == state:
                sent[file.path] = state
                continue
            before, since = self.pending.get(file.path, (None, began))
            if before != state:
                since = began
            if self._is_whole(file, began - since):
                new.files.append(file)
            else:
                pending[file.path] = state, since
        above = {path for file in new.files for path in _above(file.path)}
        for directory in seen.directories:
            if directory.stream in above or directory.stream not in self._directories:
                new.directories.append(directory)
        directories = {directory.stream for directory in seen.directories}
        # At once, and last: after an interrupt of this look there is one more.
        self._sent, self.pending, self._directories = sent, pending, directories
        self.left_out, self._unreadable = seen.left_out, seen.unreadable
        self.interval = max(_INTERVAL_SECONDS, (self._clock() - began) * (1 - _SHARE) / _SHARE)
        return new

    def _is_whole(self, file: Found, rested: float) -> bool:
        """Return whether a file that was seen in one state for `rested` seconds is whole."""
        path = os.path.join(os.fsencode(self._root), file.path.encode())
        written = is_open_for_writing(path) if self._is_local(file.device, path) else None
        if written is None:
            return rested >= max(self._settle, UNSURE_SECONDS)
        age = self._wall_clock() - file.mtime_ns / 1e9  # of a file with a time in the future: nothing
        return not written and max(rested, age) >= self._settle

    def _is_still_whole(self, fd: int, file: Found) -> bool:
        """Return whether an open file that was whole is still as it was found."""
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns, status.st_ino) != _state(file):
            return False
        return not (self._is_local(status.st_dev, fd) and _has_writers(fd))

    def _is_local(self, device: int, file: bytes | int) -> bool:
        if device not in self._local:
            self._local[device] = file_system_of(file) in _LOCAL
        return self._local[device]


def _state(file: Found) -> tuple[int, int, int]:
    return file.nbytes, file.mtime_ns, file.inode


def _above(path: str) -> list[str]:
    """Return the directories above a path: ``a/b/c`` → ``a``, ``a/b``."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def is_open_for_writing(path: bytes) -> bool | None:
    """Return whether a process has a file open for writing; None where the kernel does not say."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _has_writers(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _has_writers(fd: int) -> bool | None:
    """Ask the kernel about a file that is open for reading."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def file_system_of(file: Path | bytes | int) -> str:
    """Return the type of the file system of a path or a descriptor: ``ext4``; "" if it is not known."""
    try:
        device = os.stat(file).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == number:
                return rest.split()[0]
    except (OSError, IndexError):
        pass
    return ""
