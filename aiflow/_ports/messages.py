"""Messages of a rendezvous: one JSON object a packet. What a peer says is checked before it is used or shown."""

from __future__ import annotations

import json
import re
import socket
import struct
from typing import Any

from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["VERSION", "names_and_numbers", "other_versions", "peer_of", "read", "shown", "whole", "write"]

VERSION = 2
"""Of the messages, and of the frames that follow."""

_MAX_MESSAGE = 16384
_MOST_SHOWN = 600
_NAME = re.compile(r"[a-z0-9-]{1,24}")


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process id, 0 in a container whose processes we don't see, and user id of who is at the other end."""
    size = struct.calcsize("3i")
    pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def write(sock: socket.socket, message: dict[str, Any]) -> bool:
    """Send; False if the peer is gone, which the next read notices, too."""
    try:
        sock.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def read(sock: socket.socket) -> dict[str, Any] | None:
    """The next message; {} if there is none yet; None at hang-up, or if it is not one of ours."""
    try:
        packet = sock.recv(_MAX_MESSAGE)
        message = json.loads(packet) if packet else None
    except BlockingIOError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return message if message and isinstance(message, dict) else None


def shown(value: Any) -> str:
    """What a peer said, for a message to the user: short, and without what a terminal obeys."""
    text = str(value)
    text = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} …"
    return "".join(character if character.isprintable() else "?" for character in text)


def whole(value: Any, what: str, least: int, most: int) -> int:
    """A whole number that a peer said. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{what} is {shown(value)}")
    return value


def names_and_numbers(sockets: Any) -> list[tuple[str, int]]:
    """Sockets in the endpoint's directory, which become arguments of a driver. Raises ValueError or TypeError."""
    for name, number in sockets:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"a socket is {shown(name)}")
        whole(number, "its number", 0, (1 << 32) - 1)
    return [(name, number) for name, number in sockets]


def other_versions(endpoint: Endpoint, receiver: Any, sender: Any) -> PortError:
    """The error of peers that do not understand each other."""
    return PortError(
        f"{endpoint}: the receiver's aiflow speaks version {shown(receiver)} of the rendezvous, the sender's "
        f"version {shown(sender)}: install the same aiflow on both sides"
    )
