"""The directory that holds the names and sockets of this user's shared-memory endpoints."""

from __future__ import annotations

import os
from pathlib import Path

from aiflow._system.descriptors import MORE_DESCRIPTORS, out_of_descriptors
from aiflow._system.filelock import is_own_directory
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["ANOTHER_DIRECTORY", "candidates", "endpoint_directory", "reason", "runtime_directory"]

ANOTHER_DIRECTORY = "set AIFLOW_RUNTIME_DIR to another directory, the same on both sides"
"""Advice for error messages."""

_MAX_PATH = 40  # bytes of the directory's path: a socket's whole path may have 107
_MAX_BASE_PATH = 32  # bytes of the path above it, where its own name is "aiflow"
_DEVARGS_SEPARATORS = ",="  # DPDK splits device arguments at these characters


def _unusable(path: Path, max_bytes: int) -> str:
    """Why a directory with this path cannot hold sockets; "" if it can."""
    found = [character for character in _DEVARGS_SEPARATORS if character in str(path)]
    if found:
        return f"DPDK cannot use a path with {' or '.join(map(repr, found))}"
    if not str(path).isprintable():  # control characters, and bytes that are not valid text
        return "DPDK cannot use a path with characters that cannot be printed"
    if len(os.fsencode(path)) > max_bytes:
        return f"too long for a socket's path ({max_bytes} bytes)"
    return ""


def candidates() -> list[Path]:
    """Directories to try without AIFLOW_RUNTIME_DIR, in order of preference."""
    uid = os.getuid()
    bases = [Path(text) for text in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}") if text]
    usable = [
        base / "aiflow"
        for base in dict.fromkeys(bases)
        if base.is_absolute() and is_own_directory(base) and not _unusable(base, _MAX_BASE_PATH)
    ]
    return [*usable, Path(f"/tmp/aiflow-{uid}")]


def runtime_directory() -> Path:
    """The directory of this user's names and sockets, mode 0700, created on demand.

    AIFLOW_RUNTIME_DIR, else ``aiflow`` in XDG_RUNTIME_DIR or /run/user/UID, else ``/tmp/aiflow-UID``.

    Raises
    ------
    PortError
        If another user owns it or can enter it, or its path cannot be used.
    """
    override = os.environ.get("AIFLOW_RUNTIME_DIR")
    choices = [Path(override).absolute()] if override else candidates()
    fault = _unusable(choices[0], _MAX_PATH)
    if fault:
        raise PortError(f"{str(choices[0])!r}: {fault}; {ANOTHER_DIRECTORY}")
    for directory in choices:
        try:
            directory.mkdir(mode=0o700, exist_ok=True, parents=bool(override))
            break
        except OSError as exc:
            failure = f"{directory}: {exc.strerror}; set AIFLOW_RUNTIME_DIR to a directory that you own"
    else:
        raise PortError(failure)
    if not is_own_directory(directory) or directory.stat().st_mode & 0o077:
        raise PortError(
            f"{directory} must be a directory that you own and no other user can enter: set AIFLOW_RUNTIME_DIR "
            "to another one. If aiflow alone uses it, you can remove it, or run chmod 700 on it"
        )
    return directory


def endpoint_directory(endpoint: Endpoint, root: Path | None = None) -> Path:
    """The directory of an endpoint's sockets, in `root` or the runtime directory; it exists while a receiver does."""
    return (root or runtime_directory()) / f"{endpoint.scheme}-{endpoint.target}"


def reason(exc: OSError) -> str:
    """Why a file or socket in the runtime directory failed, and what to do about it."""
    return f"{exc.strerror or exc}; {MORE_DESCRIPTORS if out_of_descriptors(exc) else ANOTHER_DIRECTORY}"
