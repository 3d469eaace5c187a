"""Names of shared-memory endpoints on this host: where their sockets lie, and which receiver owns which.

A receiver owns NAME by a flock'ed file, which the kernel releases however its process ends. What a killed receiver left
beside that file is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .config import Endpoint
from .errors import PortError

__all__ = ["Claim", "live_names", "place", "runtime_directory"]

_TEARDOWN = 0.5  # seconds a name is waited for: a killed owner may still be on its way out


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return path.is_dir() and not path.is_symlink() and found.st_uid == os.getuid()


def runtime_directory() -> Path:
    """Directory of this user's names and sockets, mode 0700, made on demand.

    AIFLOW_RUNTIME_DIR, else ``aiflow`` in XDG_RUNTIME_DIR or /run/user/UID, else ``/tmp/aiflow-UID``.

    Raises
    ------
    PortError
        If it belongs to somebody else or others can enter it.
    """
    uid = os.getuid()
    override = os.environ.get("AIFLOW_RUNTIME_DIR")
    if override:
        directory = Path(override)
    else:
        candidates = [Path(text) for text in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}") if text]
        base = next((path for path in candidates if _is_ours(path) and len(str(path)) <= 32), None)
        directory = base / "aiflow" if base is not None else Path(f"/tmp/aiflow-{uid}")
    try:
        directory.mkdir(mode=0o700, exist_ok=True, parents=bool(override))
    except OSError as exc:
        raise PortError(f"{directory}: {exc.strerror}; set AIFLOW_RUNTIME_DIR to a directory of yours") from exc
    if not _is_ours(directory) or directory.stat().st_mode & 0o077:
        raise PortError(
            f"{directory} must be a directory of yours that nobody else can enter: remove it, or chmod 700 it, "
            "or set AIFLOW_RUNTIME_DIR to another"
        )
    if len(str(directory)) > 40:
        raise PortError(f"{directory}: too long for a socket's path (40 characters); set AIFLOW_RUNTIME_DIR to another")
    return directory


def place(endpoint: Endpoint) -> Path:
    """Directory of an endpoint's sockets; there while a receiver is."""
    return runtime_directory() / f"{endpoint.scheme}-{endpoint.target}"


def _sweep(root: Path, keep: Path) -> None:
    """Remove the directories of names whose receiver is gone."""
    for directory in root.iterdir():
        if directory == keep or not directory.is_dir():
            continue
        try:
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            with contextlib.suppress(OSError):
                directory.rmdir()  # its owner is just making or removing it, and stands this
            continue
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        os.close(fd)


class Claim:
    """A receiver's claim to an endpoint's name: a locked file, and the directory of its sockets.

    Raises
    ------
    PortError
        If another receiver has the name.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.directory = place(endpoint)
        path = self.directory / "lock"
        deadline = time.monotonic() + _TEARDOWN
        while True:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            try:
                self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # its last owner was just removing the directory
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                owner = os.read(self.fd, 32).decode("ascii", "replace").strip()
                os.close(self.fd)
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                raise PortError(
                    f"{endpoint}: another receiver has this name (process {owner or 'unknown'}); "
                    "close that one, or choose another name"
                ) from None
            try:
                if os.path.samestat(os.fstat(self.fd), os.stat(path)):
                    break
            except FileNotFoundError:
                pass
            os.close(self.fd)  # it was unlinked between our open and our lock
        # the name is ours: what else lies here was left by a process that was killed
        for left in self.directory.iterdir():
            if left != path:
                left.unlink(missing_ok=True)
        _sweep(self.directory.parent, keep=self.directory)
        for left in self.directory.parent.glob("sock-*-*"):
            if not Path(f"/proc/{left.name.split('-')[1]}").exists():
                left.unlink(missing_ok=True)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give the name back."""
        shutil.rmtree(self.directory, ignore_errors=True)  # while the lock is held
        os.close(self.fd)


def live_names() -> Iterator[tuple[str, int]]:
    """Names with a receiver on this host, of this user: (endpoint, process id)."""
    for lock in sorted(runtime_directory().glob("*/lock")):
        with contextlib.suppress(OSError, ValueError):
            pid = int(lock.read_text())
            if Path(f"/proc/{pid}").exists():
                scheme, _, target = lock.parent.name.partition("-")
                yield f"{scheme}:{target}", pid
