"""Snapshots of the processes of this user, taken from outside, and what changed between two of them."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aiflow._observe.catalogue import of_level
from aiflow._observe.server import PATTERN
from aiflow._observe.snapshot import FORMAT
from aiflow._ports import registry
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._system.descriptors import own_socket

__all__ = ["Connection", "Seen", "changes", "gather", "look", "per_second"]

_PATIENCE = 2.0  # seconds for an answer
_CREDENTIALS = "3i"  # struct ucred: pid, uid, gid


class Connection:
    """A connection to one process. Raises OSError.

    Parameters
    ----------
    path : Path
        Of its socket.

    Attributes
    ----------
    pid : int
        Its process id for this reader; 0 if the reader's namespace of processes does not hold it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answer = bytearray()
        self._sock = own_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.setblocking(False)
            self._sock.connect(str(path))  # EAGAIN if many readers wait there
            there = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
            self.pid: int = struct.unpack(_CREDENTIALS, there)[0]
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._sock.fileno()

    def ask(self) -> None:
        """Ask for a snapshot: `take` until it returns one. Raises OSError."""
        self._answer.clear()
        self._sock.sendall(b"snapshot\n")

    def take(self) -> dict[str, Any] | None:
        """Read what has come, without waiting; the whole answer, or None. Raises OSError, ValueError."""
        with contextlib.suppress(BlockingIOError):
            while got := self._sock.recv(1 << 16):
                self._answer += got
                if got.endswith(b"\n"):
                    return self._document()
            raise ConnectionResetError("the process ended")
        return None

    def _document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._answer)
        inner = found.get("pid")
        if self.pid != inner:  # it is in a namespace of its own, as in a container
            found |= {"inner_pid": inner, "pid": self.pid or f"{inner}@{found.get('namespace')}"}
        return found

    def snapshot(self) -> dict[str, Any]:
        """The process's figures now: see `aiflow._observe.snapshot.snapshot`. Raises OSError, ValueError."""
        self.ask()
        until = time.monotonic() + _PATIENCE
        while (found := self.take()) is None:
            if not _ready({self.fileno(): self}, until):
                raise TimeoutError("the process does not answer")
        return found

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Seen(NamedTuple):
    """What `look` finds.

    Attributes
    ----------
    documents : list of dict
        A snapshot of each process, by process id. ``pid`` is a number for this reader. A process that its namespace
        does not hold has the text ``PID@NAMESPACE`` there. ``inner_pid`` is the process's own number, where it is
        another.
    silent : list of str
        Of each other process why there is none, for people.
    """

    documents: list[dict[str, Any]]
    silent: list[str]


def look(root: Path | None = None, patience: float = _PATIENCE) -> Seen:
    """Ask each process that has a Sender or Receiver open, all at the same time.

    Sockets of processes that have ended are removed.

    Parameters
    ----------
    root : Path, optional
        Default: the runtime directory.
    patience : float
        Seconds for all answers.

    Raises
    ------
    PortError
        The runtime directory cannot be used.
    """
    directory = root or runtime_directory()
    found: list[dict[str, Any]] = []
    silent = []
    asked: dict[int, Connection] = {}
    with contextlib.ExitStack() as life:
        for path in sorted(directory.glob(PATTERN)):
            try:
                connection = life.enter_context(Connection(path))
                connection.ask()
                asked[connection.fileno()] = connection
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    path.unlink()
            except BlockingIOError:
                silent.append(_unheard(path.name.split("-")[1]))
            except OSError:
                continue  # it ends at this moment
        until = time.monotonic() + patience
        while asked and (ready := _ready(asked, until)):
            for connection in ready:
                try:
                    document = connection.take()
                except (OSError, ValueError):
                    del asked[connection.fileno()]
                    continue
                if document is not None:
                    del asked[connection.fileno()]
                    if document.get("format") == FORMAT:
                        found.append(document)
                        silent += _unread(document)
                    else:
                        silent.append(
                            f"process {document.get('pid')} has another version of aiflow: look with that one"
                        )
        silent += [_unheard(each.pid or each.path.name.split("-")[1]) for each in asked.values()]
    registry.sweep_observed(directory)
    return Seen(sorted(found, key=lambda document: str(document["pid"]).zfill(20)), silent)


def _ready(connections: dict[int, Connection], until: float) -> list[Connection]:
    """Those with something to read; [] when the time is over."""
    poll = select.poll()
    for descriptor in connections:
        poll.register(descriptor, select.POLLIN)
    left = max(until - time.monotonic(), 0)
    return [connections[descriptor] for descriptor, _ in poll.poll(left * 1000)]


def _unheard(pid: int | str) -> str:
    return f"process {pid} does not answer: it is stopped or hangs (ps -o stat,wchan {pid})"


def _unread(document: dict[str, Any]) -> list[str]:
    count = document["unread"]
    return [f"process {document['pid']} closes {count} Sender or Receiver: no figures of it"] if count else []


def gather(root: Path | None = None) -> list[dict[str, Any]]:
    """The snapshots of `look`.

    Parameters
    ----------
    root : Path, optional
        Default: the runtime directory.
    """
    return look(root).documents


def changes(older: dict[str, Any], newer: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], float]]:
    """Pairs of the same Sender or Receiver in two snapshots of a process, and the seconds between them."""
    before = {side["serial"]: side for side in older["sides"]}
    for side in newer["sides"]:
        then = before.get(side["serial"])
        seconds = (side["monotonic_ns"] - then["monotonic_ns"]) / 1e9 if then is not None else 0.0
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
