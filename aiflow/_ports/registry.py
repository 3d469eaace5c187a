"""Names of shared-memory endpoints on this host: where their sockets lie, and which receiver owns which.

A receiver owns NAME by a flock'ed file, which the kernel releases however its process ends. Process ids say nothing
here: containers that share a directory have equal ones, and a container that restarts has the same again. What a killed
receiver left beside its file is removed by the next one.

Cleaners of temporary files may remove all of it. An flock on a directory keeps systemd-tmpfiles away from its contents,
others go by the time of the last change. What is removed even so, the owner makes anew (`Claim.renew`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiflow._system import threads
from aiflow._system.descriptors import Descriptor, keep, own_socket
from aiflow._system.filelock import holder, is_own_directory, leads_to, lock, write_owner
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = [
    "SCHEMES", "Claim", "Listener", "Live", "elsewhere", "live", "live_names", "place", "runtime_directory",
    "why",
]  # fmt: skip

SCHEMES = ("local", "memif", "vhost")
"""Schemes of endpoints that have names here."""

_TEARDOWN = 0.5  # seconds a name is waited for: a killed owner may still be on its way out
_MOST_BYTES = 40  # of the directory's path: that of a socket below it has 107
_MOST_BYTES_OF_BASE = 32  # … of a directory whose subdirectory it is
_READ_BY_DPDK = ",="  # a path with one of these is cut there: it becomes part of a device's arguments
_SOCKET_LOCK = re.compile(r"sock-[0-9a-f]{8}\.lock")  # beside a socket of memif's server
_NO_DESCRIPTOR = 0.02  # seconds to wait for one
_TOUCHED = 3600.0  # seconds after which our files show that they are in use
_OTHER = "set AIFLOW_RUNTIME_DIR to another directory, the same on both sides"
_FRESH = 10.0  # seconds within which a lock of a socket gets its socket


# --------------------------------------------------------------------------------------------------- runtime directory


def _unusable(path: Path, most_bytes: int) -> str:
    """Why sockets cannot lie in a directory of this name; "" if they can."""
    found = [character for character in _READ_BY_DPDK if character in str(path)]
    if found:
        return f"DPDK cannot use a path with {' or '.join(map(repr, found))}"
    if not str(path).isprintable():  # control characters, and bytes that are no text
        return "DPDK cannot use a path with characters that cannot be printed"
    if len(os.fsencode(path)) > most_bytes:
        return f"too long for a socket's path ({most_bytes} bytes)"
    return ""


def _candidates() -> list[Path]:
    """Where this user's names may lie without AIFLOW_RUNTIME_DIR, the best place first."""
    uid = os.getuid()
    bases = [Path(text) for text in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}") if text]
    usable = [
        base / "aiflow"
        for base in dict.fromkeys(bases)
        if base.is_absolute() and is_own_directory(base) and not _unusable(base, _MOST_BYTES_OF_BASE)
    ]
    return [*usable, Path(f"/tmp/aiflow-{uid}")]


def runtime_directory() -> Path:
    """Directory of this user's names and sockets, mode 0700, made on demand.

    AIFLOW_RUNTIME_DIR, else ``aiflow`` in XDG_RUNTIME_DIR or /run/user/UID, else ``/tmp/aiflow-UID``.

    Raises
    ------
    PortError
        If it belongs to somebody else, others can enter it, or its path cannot be used.
    """
    override = os.environ.get("AIFLOW_RUNTIME_DIR")
    candidates = [Path(override).absolute()] if override else _candidates()
    why = _unusable(candidates[0], _MOST_BYTES)
    if why:
        raise PortError(f"{str(candidates[0])!r}: {why}; {_OTHER}")
    for directory in candidates:
        try:
            directory.mkdir(mode=0o700, exist_ok=True, parents=bool(override))
            break
        except OSError as exc:
            failure = f"{directory}: {exc.strerror}; set AIFLOW_RUNTIME_DIR to a directory of yours"
    else:
        raise PortError(failure)
    if not is_own_directory(directory) or directory.stat().st_mode & 0o077:
        raise PortError(
            f"{directory} must be a directory of yours that nobody else can enter: remove it, or chmod 700 it, "
            "or set AIFLOW_RUNTIME_DIR to another"
        )
    return directory


def place(endpoint: Endpoint, root: Path | None = None) -> Path:
    """Directory of an endpoint's sockets, in `root` or the runtime directory; there while a receiver is."""
    return (root or runtime_directory()) / f"{endpoint.scheme}-{endpoint.target}"


def why(exc: OSError) -> str:
    """The reason why something cannot be made in the runtime directory, and what to do."""
    few = exc.errno in (errno.EMFILE, errno.ENFILE)
    return f"{exc.strerror or exc}; {'close some files, or raise ulimit -n' if few else _OTHER}"


# ------------------------------------------------------------------------------------------------------------ claiming


def _open_folder(path: Path) -> Descriptor:
    """A directory, shared-locked: cleaners skip it. An exclusive lock of theirs is not waited for."""
    folder = keep(lambda: Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
    with contextlib.suppress(OSError):
        fcntl.flock(folder.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return folder


def _unlink_socket(name: str | Path, folder: int | None = None) -> None:
    """Nothing else: a directory that the user chose may have files of others in it."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)


def _remove_sockets(folder: int) -> None:
    """Those in an open directory, whatever its path leads to by now."""
    for name in os.listdir(folder):
        _unlink_socket(name, folder)


def _sweep(root: Path, keep_: Path) -> None:
    """Remove what processes that are gone have left here: names, and sockets with a lock beside them."""
    places = [path for scheme in SCHEMES for path in root.glob(f"{scheme}-*/") if path != keep_]
    for path in (*(path / "lock" for path in places), *root.glob("sock-*.lock")):
        try:
            if path.parent == root:
                _sweep_socket(path)
            elif path.exists():
                _sweep_place(path)
        except OSError:
            continue  # it lives
    for path in places:
        with contextlib.suppress(OSError):
            path.rmdir()  # without a lock: its owner is just making or removing it, and stands this


def _sweep_socket(path: Path) -> None:
    """Raises OSError if the lock at `path` is held."""
    if not _SOCKET_LOCK.fullmatch(path.name):
        return
    if not path.with_suffix("").exists() and time.time() - path.stat().st_mtime < _FRESH:
        return  # its owner may be about to lock it
    held = lock(path)
    if held is not None:
        _unlink_socket(path.with_suffix(""))
        path.unlink(missing_ok=True)
        held.close()


def _sweep_place(path: Path) -> None:
    """Raises OSError if the lock at `path` is held."""
    held = lock(path)
    if held is None:
        return
    folder = _open_folder(path.parent)
    if leads_to("lock", held.fd, folder.fd):  # else the directory is another one by now
        _remove_sockets(folder.fd)
        if os.listdir(folder.fd) == ["lock"]:  # else it may be another's, too
            os.unlink("lock", dir_fd=folder.fd)
    folder.close()
    held.close()


class Claim:
    """A receiver's claim to an endpoint's name: a locked file, and the directory of its sockets.

    Parameters
    ----------
    endpoint : Endpoint
    root : Path, optional
        Default: the runtime directory.

    Raises
    ------
    PortError
        If another receiver has the name, or nothing can be written there.
    """

    def __init__(self, endpoint: Endpoint, root: Path | None = None) -> None:
        self._endpoint = endpoint
        self.directory = place(endpoint, root)
        try:
            self._take()
        except BlockingIOError as exc:
            raise PortError(
                f"{endpoint}: another receiver has this name ({exc.strerror}); close that one, or choose another name"
            ) from None
        except OSError as exc:
            raise PortError(f"{endpoint}: {self.directory}: {why(exc)}") from exc
        _sweep(self.directory.parent, self.directory)

    def _take(self) -> None:
        """Raises BlockingIOError if another receiver has it, and goes on having it for a while."""
        deadline = time.monotonic() + _TEARDOWN
        while True:
            try:
                if self._try():
                    return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                threads.unpatched("time").sleep(0.01)

    def _try(self) -> bool:
        """One attempt; False if files or directories came and went meanwhile."""
        root = self.directory.parent
        root.mkdir(mode=0o700, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        held = lock(self.directory / "lock")
        if held is None:
            return False
        try:
            folders = _open_folder(self.directory), _open_folder(root)
        except FileNotFoundError:
            return False
        if not leads_to("lock", held.fd, folders[0].fd):
            return False
        self._lock, self._folder, self._root = held, *folders
        _remove_sockets(self._folder.fd)  # left by a process that was killed
        write_owner(held.fd)
        self._touched = time.monotonic()
        return True

    def renew(self) -> None:
        """Make anew what a cleaner has removed: the lock, and the directory. Call it every few seconds.

        Raises
        ------
        PortError
            If another receiver has taken the name meanwhile.
        """
        if leads_to(self.directory / "lock", self._lock.fd):
            if time.monotonic() - self._touched > _TOUCHED:
                self._touch()
            return
        try:
            self._take()
        except BlockingIOError as exc:
            raise PortError(
                f"{self._endpoint}: the name was taken over by another receiver ({exc.strerror}): our lock in "
                f"{self.directory} was removed. Keep cleaners of temporary files away from there, or {_OTHER} that "
                "nothing cleans; then open this Receiver again"
            ) from None
        except OSError:
            pass  # no directory can be made there now, so that nobody takes the name either: try again later

    def _touch(self) -> None:
        self._touched = time.monotonic()
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder.fd):
                os.utime(name, dir_fd=self._folder.fd)
            os.utime(self._folder.fd)
            os.utime(self._root.fd)

    def close(self) -> None:
        """Give the name back, and remove what is still ours of its directory."""
        if leads_to("lock", self._lock.fd, self._folder.fd):
            _remove_sockets(self._folder.fd)
            with contextlib.suppress(OSError):
                os.unlink("lock", dir_fd=self._folder.fd)
            with contextlib.suppress(OSError):
                self.directory.rmdir()  # not if it is another's by now: that one has a lock in it
        for opened in (self._folder, self._root, self._lock):  # the lock last
            opened.close()


class Listener:
    """A SEQPACKET socket that listens at a path in a claimed directory.

    Parameters
    ----------
    path : Path

    Raises
    ------
    PortError
        If no socket can be made there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock, self._found = _listening(path)

    def renew(self) -> bool:
        """Listen anew if the path does not lead here any more; returns whether that was so."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self._found, self.path.stat()):
                return False
        with contextlib.suppress(OSError):
            self.path.unlink()
        before = self.sock
        self.sock, self._found = _listening(self.path)
        before.close()
        return True

    def fileno(self) -> int:
        """Of the socket."""
        return self.sock.fileno()

    def accept(self) -> socket.socket:
        """The next connection, non-blocking. Raises OSError when there is none."""
        try:
            accepted = keep(lambda: self.sock.accept()[0])
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                threads.unpatched("time").sleep(_NO_DESCRIPTOR)  # who waits here stays readable
            raise
        accepted.setblocking(False)
        return accepted

    def close(self) -> None:
        """Stop listening. The path goes with the claim."""
        self.sock.close()


def _listening(path: Path) -> tuple[socket.socket, os.stat_result]:
    try:
        sock = own_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise PortError(f"{path}: {why(exc)}") from exc
    try:
        sock.bind(str(path))
        sock.listen(64)
        return sock, path.stat()
    except OSError as exc:
        sock.close()
        raise PortError(f"no socket can be made at {path}: {why(exc)}") from exc


# ------------------------------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Live:
    """A name that a receiver has now.

    Attributes
    ----------
    endpoint : str
        Without a number of ports.
    pid : int
        As the receiver's own container counts.
    owner : str
        The same for messages, with the container where that is another.
    """

    endpoint: str
    pid: int
    owner: str


def live(root: Path | None = None) -> list[Live]:
    """Names with a receiver, of this user, in a directory (default: the runtime directory)."""
    found = []
    for path in sorted((root or runtime_directory()).glob("*-*/lock")):
        scheme, _, target = path.parent.name.partition("-")
        owner = holder(path) if scheme in SCHEMES else None
        if owner is not None:
            found.append(Live(f"{scheme}:{target}", owner.pid, owner.text))
    return found


def live_names() -> Iterator[tuple[str, int]]:
    """Names with a receiver on this host, of this user: (endpoint, process id)."""
    for name in live():
        yield name.endpoint, name.pid


def elsewhere(endpoint: Endpoint, root: Path) -> list[str]:
    """Where a receiver has this endpoint's name so that a sender, which looks into `root`, never meets it.

    Returns
    -------
    list of str
        A sentence each, with what to do.
    """
    said = []
    others = [path for path in _candidates() if path != root and is_own_directory(path)]
    for directory in (root, *others):
        for scheme in SCHEMES:
            if (directory, scheme) == (root, endpoint.scheme):
                continue
            owner = holder(directory / f"{scheme}-{endpoint.target}" / "lock")
            if owner is None:
                continue
            other = f"{scheme}:{endpoint.target}"
            text = f"{endpoint}: a receiver has this name as {other} ({owner.text}); use {other} on both sides"
            if directory != root:
                text = (
                    f"{endpoint}: a receiver is {other} in {directory} ({owner.text}); "
                    "set AIFLOW_RUNTIME_DIR alike on both sides"
                )
            said.append(text)
    return said
