"""Snapshots of the processes of this user, taken from outside, and what changed between two of them."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiflow._observe.catalogue import of_level
from aiflow._observe.server import PATTERN
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._system.descriptors import own_socket

__all__ = ["Connection", "changes", "gather", "per_second"]

_PATIENCE = 2.0  # seconds for an answer


class Connection:
    """A connection to one process. Raises OSError.

    Parameters
    ----------
    path : Path
        Of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._sock = own_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(_PATIENCE)
            self._sock.connect(str(path))
        except BaseException:
            self._sock.close()
            raise

    def snapshot(self) -> dict[str, Any]:
        """The process's figures now: see `aiflow._observe.snapshot.snapshot`. Raises OSError."""
        self._sock.sendall(b"snapshot\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            got = self._sock.recv(1 << 16)
            if not got:
                raise ConnectionResetError("the process ended")
            answer += got
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def gather(root: Path | None = None) -> list[dict[str, Any]]:
    """A snapshot of each process that has a Sender or Receiver open, by process id.

    Sockets of processes that have ended are removed.

    Parameters
    ----------
    root : Path, optional
        Default: the runtime directory.

    Raises
    ------
    PortError
        The runtime directory cannot be used.
    """
    found = []
    for path in sorted((root or runtime_directory()).glob(PATTERN)):
        try:
            with Connection(path) as connection:
                found.append(connection.snapshot())
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, ValueError):
            continue  # it ends at this moment, or is stopped
    return sorted(found, key=lambda document: document["pid"])


def changes(older: dict[str, Any], newer: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], float]]:
    """Pairs of the same Sender or Receiver in two snapshots of a process, and the seconds between them."""
    seconds = (newer["monotonic_ns"] - older["monotonic_ns"]) / 1e9
    before = {(side["role"], side["name"]): side for side in older["sides"]}
    for side in newer["sides"]:
        then = before.get((side["role"], side["name"]))
        if then is not None and seconds > 0:
            yield then, side, seconds


def per_second(older: dict[str, Any], newer: dict[str, Any], level: str, role: str, seconds: float) -> dict[str, Any]:
    """Rates of the counters of one view, by name; of those with labels, a mapping.

    Parameters
    ----------
    older, newer : dict
        ``figures`` of the two snapshots.
    level, role : str
        As in `aiflow._observe.catalogue.Figure`.
    seconds : float
        Between them.
    """
    rates: dict[str, Any] = {}
    for figure in of_level(level, role):
        if figure.kind != "counter" or figure.name not in newer:
            continue
        now, then = newer[figure.name], older.get(figure.name)
        if figure.label:
            then = then or {}
            rates[figure.name] = {key: max(now[key] - then.get(key, 0), 0) / seconds for key in now}
        else:
            rates[figure.name] = max(now - (then or 0), 0) / seconds
    return rates
