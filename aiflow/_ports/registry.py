"""The registry: names of shared-memory endpoints on this host, and the receiver that owns each.

A receiver owns a name through a locked file in the endpoint's directory. The kernel releases the lock when the process
ends, so that liveness does not depend on files. The next receiver removes what a killed one left behind.

Programs that clean up temporary files may delete any of this. systemd-tmpfiles skips a directory that is locked with
flock; other cleaners look at modification times. The owner restores what was removed anyway (`Claim.renew`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiflow._ports.runtime_dir import ANOTHER_DIRECTORY, candidates, endpoint_directory, reason, runtime_directory
from aiflow._system import threads
from aiflow._system.descriptors import Descriptor, keep, own_socket
from aiflow._system.filelock import holder, is_own_directory, leads_to, lock, write_owner
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["SCHEMES", "Claim", "Live", "elsewhere", "live", "owner_of", "stale", "sweep", "sweep_observed"]

SCHEMES = ("local", "memif", "vhost")
"""Schemes of endpoints that have names here."""

_TEARDOWN = 0.5  # seconds to wait for a name: a killed owner may not have ended yet
_SOCKET_LOCK = re.compile(r"sock-[0-9a-f]{8}\.lock")  # beside a socket of memif's server
_TOUCH_INTERVAL = 3600.0  # seconds between updates of our files' modification times
_FRESH = 10.0  # a socket's lock younger than this (seconds) may not have its socket yet


# ------------------------------------------------------------------------------------------------------------ clean-up


def _open_directory(path: Path) -> Descriptor:
    """Open a directory under a shared lock, so that cleaners skip it. Does not wait for a cleaner's exclusive lock."""
    directory = keep(lambda: Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
    with contextlib.suppress(OSError):
        fcntl.flock(directory.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return directory


def _unlink_socket(name: str | Path, directory: int | None = None) -> None:
    """Remove a socket and nothing else: the user's directory may hold other files."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)


def _remove_sockets(directory: int) -> None:
    """Remove the sockets of an open directory, even if its path now leads elsewhere."""
    for name in os.listdir(directory):
        _unlink_socket(name, directory)


def _sweep(root: Path, keep_: Path) -> None:
    """Remove what dead processes left in `root`: names, and sockets with a lock beside them."""
    directories = [path for scheme in SCHEMES for path in root.glob(f"{scheme}-*/") if path != keep_]
    for path in (*(path / "lock" for path in directories), *root.glob("sock-*.lock")):
        try:
            if path.parent == root:
                _sweep_socket(path)
            elif path.exists():
                _sweep_directory(path)
        except OSError:
            continue  # its owner is alive
    for path in directories:
        with contextlib.suppress(OSError):
            path.rmdir()  # no lock is needed: an owner that is creating or deleting it tolerates ENOENT
    sweep_observed(root)


def _observed(root: Path, every: bool) -> Iterator[Path]:
    """Sockets of `aiflow._observe` whose processes have ended. Not `every`: without those whose number is in use here.

    Asking costs the process that answers a wake-up, so that each new process does not ask all others.
    """
    for path in root.glob("observe-*.new"):  # it is renamed when it listens
        if _is_old(path):
            yield path
    for path in root.glob("observe-*.sock"):
        if (every or not os.path.exists(f"/proc/{path.name.split('-')[1]}")) and _is_dead(path):
            yield path


def _is_dead(path: Path) -> bool:
    """Whether no process listens at a socket."""
    probe = own_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # it has gone, or many readers wait there
    finally:
        probe.close()
    return False


def sweep_observed(root: Path, every: bool = False) -> None:
    """Remove sockets of `aiflow._observe` that dead processes left in `root`.

    Parameters
    ----------
    root : Path
    every : bool
        Also those whose process id another process has now.
    """
    for path in _observed(root, every):
        with contextlib.suppress(OSError):
            path.unlink()


def stale(root: Path) -> list[Path]:
    """What `sweep` would remove from a runtime directory, `root`."""
    names = [path for scheme in SCHEMES for path in root.glob(f"{scheme}-*/") if holder(path / "lock") is None]
    locks = (path for path in root.glob("sock-*.lock") if _SOCKET_LOCK.fullmatch(path.name) and holder(path) is None)
    locks = (path for path in locks if path.with_suffix("").exists() or _is_old(path))
    return sorted([*names, *locks, *_observed(root, True)])


def sweep(root: Path) -> list[Path]:
    """Remove what dead processes left in a runtime directory, `root`; returns what is gone."""
    before = stale(root)
    _sweep(root, root)
    sweep_observed(root, True)
    return [path for path in before if not path.exists()]


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime >= _FRESH
    return False


def _sweep_socket(path: Path) -> None:
    """Remove a server's socket and its lock at `path`. Raises OSError if the lock is held."""
    if not _SOCKET_LOCK.fullmatch(path.name):
        return
    if not path.with_suffix("").exists() and not _is_old(path):
        return  # its owner may be about to lock it
    held = lock(path)
    if held is not None:
        _unlink_socket(path.with_suffix(""))
        path.unlink(missing_ok=True)
        held.close()


def _sweep_directory(path: Path) -> None:
    """Empty the endpoint's directory that the lock at `path` belongs to. Raises OSError if the lock is held."""
    held = lock(path)
    if held is None:
        return
    directory = _open_directory(path.parent)
    if leads_to("lock", held.fd, directory.fd):  # else a new directory has taken its place
        _remove_sockets(directory.fd)
        if os.listdir(directory.fd) == ["lock"]:  # else other programs may use the file, too
            os.unlink("lock", dir_fd=directory.fd)
    directory.close()
    held.close()


# ------------------------------------------------------------------------------------------------------------ claiming


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
        If another receiver has the name, or the directory cannot be written.
    """

    def __init__(self, endpoint: Endpoint, root: Path | None = None) -> None:
        self._endpoint = endpoint
        self.directory = endpoint_directory(endpoint, root)
        try:
            self._take()
        except BlockingIOError as exc:
            raise PortError(
                f"{endpoint}: another receiver has this name ({exc.strerror}); close that one, or choose another name"
            ) from None
        except OSError as exc:
            raise PortError(f"{endpoint}: {self.directory}: {reason(exc)}") from exc
        _sweep(self.directory.parent, self.directory)

    def _take(self) -> None:
        """Take the name. Raises BlockingIOError if another receiver still has it after a short wait."""
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
        """One attempt; False if files or directories were created or removed during it."""
        root = self.directory.parent
        root.mkdir(mode=0o700, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        held = lock(self.directory / "lock")
        if held is None:
            return False
        try:
            opened = _open_directory(self.directory), _open_directory(root)
        except FileNotFoundError:
            return False
        if not leads_to("lock", held.fd, opened[0].fd):
            return False
        self._lock, self._opened, self._root = held, *opened
        _remove_sockets(self._opened.fd)  # left by a killed process
        write_owner(held.fd)
        self._touched = time.monotonic()
        return True

    def renew(self) -> None:
        """Restore the lock and the directory if a cleaner removed them. Call it every few seconds.

        Raises
        ------
        PortError
            If another receiver has taken the name in the meantime.
        """
        if leads_to(self.directory / "lock", self._lock.fd):
            if time.monotonic() - self._touched > _TOUCH_INTERVAL:
                self._touch()
            return
        try:
            self._take()
        except BlockingIOError as exc:
            raise PortError(
                f"{self._endpoint}: another receiver has taken over the name ({exc.strerror}), because our lock in "
                f"{self.directory} was removed. Exclude that directory from the clean-up of temporary files, or "
                f"{ANOTHER_DIRECTORY}; then open this Receiver again"
            ) from None
        except OSError:
            pass  # the directory cannot be created now, so that no other receiver can take the name: try again later

    def _touch(self) -> None:
        self._touched = time.monotonic()
        with contextlib.suppress(OSError):
            for name in os.listdir(self._opened.fd):
                os.utime(name, dir_fd=self._opened.fd)
            os.utime(self._opened.fd)
            os.utime(self._root.fd)

    def close(self) -> None:
        """Release the name, and remove what still belongs to us in its directory."""
        if leads_to("lock", self._lock.fd, self._opened.fd):
            _remove_sockets(self._opened.fd)
            with contextlib.suppress(OSError):
                os.unlink("lock", dir_fd=self._opened.fd)
            with contextlib.suppress(OSError):
                self.directory.rmdir()  # fails if it belongs to another receiver by now: that one has a lock in it
        for opened in (self._opened, self._root, self._lock):  # the lock last
            opened.close()


# ------------------------------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Live:
    """A name that a receiver has now.

    Attributes
    ----------
    endpoint : str
        Without a number of ports.
    pid : int
        Process id in the receiver's own container.
    owner : str
        The same for messages, with the container if that is another one.
    """

    endpoint: str
    pid: int
    owner: str


def live(root: Path | None = None) -> list[Live]:
    """Names of this user that have a receiver, in `root` or the runtime directory."""
    found = []
    for path in sorted((root or runtime_directory()).glob("*-*/lock")):
        scheme, _, target = path.parent.name.partition("-")
        owner = holder(path) if scheme in SCHEMES else None
        if owner is not None:
            found.append(Live(f"{scheme}:{target}", owner.pid, owner.text))
    return found


def owner_of(endpoint: Endpoint, root: Path) -> str | None:
    """The receiver that has this endpoint's name in `root`, for messages; None if none has."""
    owner = holder(root / f"{endpoint.scheme}-{endpoint.target}" / "lock")
    return None if owner is None else owner.text


def elsewhere(endpoint: Endpoint, root: Path) -> list[str]:
    """Receivers that have this endpoint's name under another scheme, or in another directory than the sender's `root`.

    Returns
    -------
    list of str
        One sentence for each, with what to do.
    """
    hints = []
    others = [path for path in candidates() if path != root and is_own_directory(path)]
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
                    f"{endpoint}: a receiver has {other} in {directory} ({owner.text}); "
                    "set the same AIFLOW_RUNTIME_DIR on both sides"
                )
            hints.append(text)
    return hints
