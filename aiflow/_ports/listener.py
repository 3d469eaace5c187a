"""A listening Unix socket that survives the removal of its path."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from aiflow._ports.runtime_dir import reason
from aiflow._system.descriptors import accepted, own_socket
from aiflow.errors import PortError

__all__ = ["Listener"]


class Listener:
    """A SEQPACKET socket that listens at a path in a claimed directory.

    Parameters
    ----------
    path : Path

    Raises
    ------
    PortError
        If the socket cannot be created there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock, self._found = _listening(path)

    def renew(self) -> bool:
        """Listen on a new socket if the path no longer leads to this one; returns whether it did."""
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
        """The socket's descriptor."""
        return self.sock.fileno()

    def accept(self) -> socket.socket:
        """The next connection, non-blocking. Raises OSError if there is none."""
        return accepted(self.sock)

    def close(self) -> None:
        """Stop listening. The claim removes the path."""
        self.sock.close()


def _listening(path: Path) -> tuple[socket.socket, os.stat_result]:
    try:
        sock = own_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise PortError(f"{path}: {reason(exc)}") from exc
    try:
        sock.bind(str(path))
        sock.listen(64)
        return sock, path.stat()
    except OSError as exc:
        sock.close()
        raise PortError(f"no socket can be created at {path}: {reason(exc)}") from exc
