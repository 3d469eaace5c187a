"""File locks that show which process owns something, and whether that process is still alive.

The kernel releases an flock when its process ends, however it ends. Process ids alone prove nothing: containers that
share a directory have equal ids, and a restarted container gets the same ids again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from aiflow._system.descriptors import Descriptor, keep

__all__ = ["Owner", "holder", "is_own_directory", "leads_to", "lock", "write_owner"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # another user's symbolic link may lead to our files


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, as it described itself in the locked file.

    Attributes
    ----------
    pid : int
        Process id in the owner's own container; 0 if unknown.
    text : str
        The owner for messages: its process id, and its container if that is another one.
    """

    pid: int
    text: str


def lock(path: Path) -> Descriptor | None:
    """Lock the file at `path` until the Descriptor is closed; create the file if it is missing.

    Returns
    -------
    Descriptor or None
        None: the file or its directory was removed before the lock was acquired. Try again.

    Raises
    ------
    BlockingIOError
        If another process holds the lock; its text names that process.
    """
    try:
        file = keep(lambda: Descriptor(os.open(path, _FLAGS, 0o600)))
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        owner = _read_owner(file.fd)
        file.close()
        raise BlockingIOError(exc.errno, owner.text) from None
    if leads_to(path, file.fd):
        return file
    file.close()
    return None


def holder(path: Path) -> Owner | None:
    """The owner of the lock at `path`; None if the lock is free or cannot be read."""
    try:
        file = keep(lambda: Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
    except OSError:
        return None
    try:
        fcntl.flock(file.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two readers do not block each other
    except BlockingIOError:
        return _read_owner(file.fd)
    except OSError:
        return None
    finally:
        file.close()
    return None


def leads_to(path: Path | str, fd: int, directory: int | None = None) -> bool:
    """Whether `path`, relative to an open directory if given, still names the open file `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, dir_fd=directory))
    except OSError:
        return False


def write_owner(fd: int) -> None:
    """Write this process as the owner into a locked file: process id, PID namespace and host name, a line each."""
    host = socket.gethostname().encode("ascii", "replace").decode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n{_pid_namespace()}\n{host}\n".encode(), 0)


def _read_owner(fd: int) -> Owner:
    lines = os.pread(fd, 512, 0).decode("ascii", "replace").splitlines()
    pid = lines[0].strip() if lines else ""
    if not pid.isdecimal():
        return Owner(0, "process unknown")
    if len(lines) >= 3 and lines[1] != _pid_namespace():
        host = "".join(filter(str.isprintable, lines[2]))
        return Owner(int(pid), f"process {pid} of another container, {host}")
    return Owner(int(pid), f"process {pid}")


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_own_directory(path: Path) -> bool:
    """Whether `path` is a directory of this user, not a symbolic link to one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
