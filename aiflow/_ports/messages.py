"""Messages of a rendezvous: one JSON object per packet, with descriptors beside it where the message names them.

A peer's message is checked before it is used or shown. Descriptors that are not wanted are closed.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from functools import partial
from typing import Any

from aiflow._system.descriptors import Descriptor, keep
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = [
    "VERSION",
    "allowed",
    "capabilities",
    "checked_int",
    "checked_sockets",
    "peer_of",
    "read",
    "shown",
    "version_error",
    "write",
]

VERSION = 3
"""Version of these messages, and of the frames that follow."""

_MAX_MESSAGE = 16384
_MAX_SHOWN = 600
_MAX_DESCRIPTORS = 4
_NAME = re.compile(r"[a-z0-9-]{1,24}")


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process id and user id of the peer. The process id is 0 if the peer's container hides its processes from us."""
    size = struct.calcsize("3i")
    pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def allowed(sock: socket.socket) -> bool:
    """Whether the peer may use our endpoints: a process of the same user, or of root."""
    return peer_of(sock)[1] in (os.getuid(), 0)


def write(sock: socket.socket, message: dict[str, Any], descriptors: list[Descriptor] | None = None) -> bool:
    """Send, with copies of `descriptors`; False if the peer is gone, which the next read notices, too."""
    passed = [descriptor.fd for descriptor in descriptors or ()]
    try:
        socket.send_fds(sock, [json.dumps(message).encode()], passed, socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def read(sock: socket.socket, descriptors: list[Descriptor] | None = None) -> dict[str, Any] | None:
    """The next message; {} if there is none yet; None if the peer hung up or sent anything else.

    The descriptors that came with it are appended to `descriptors`.
    """
    packet = _Packet()
    try:
        keep(partial(packet.receive, sock))
        message = json.loads(packet.text) if packet.text else None
    except BlockingIOError:
        return {}
    except (OSError, ValueError, RecursionError):
        message = None
    if descriptors is None:
        packet.close()
    else:
        descriptors += packet.descriptors
    return message if message and isinstance(message, dict) else None


class _Packet:
    """A message as it was received."""

    def __init__(self) -> None:
        self.text = b""
        self.descriptors: list[Descriptor] = []

    def receive(self, sock: socket.socket) -> _Packet:
        """Read it. Raises OSError."""
        flags = socket.MSG_CMSG_CLOEXEC
        self.text, passed, _, _ = socket.recv_fds(sock, _MAX_MESSAGE, _MAX_DESCRIPTORS, flags)
        self.descriptors = [keep(partial(Descriptor, fd)) for fd in passed]
        return self

    def close(self) -> None:
        """Close its descriptors."""
        for descriptor in self.descriptors:
            descriptor.close()


def capabilities(message: dict[str, Any]) -> set[str]:
    """What the peer can do beyond the version's least. Unknown ones are ignored, so later ones can be added.

    Raises TypeError.
    """
    return {name for name in message.get("capabilities", ()) if isinstance(name, str)}


def shown(value: Any) -> str:
    """A peer's text for a message to the user: shortened, without control characters."""
    text = str(value)
    text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} …"
    return "".join(character if character.isprintable() else "?" for character in text)


def checked_int(value: Any, what: str, least: int, most: int) -> int:
    """An integer from a peer, within bounds. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{what} is {shown(value)}")
    return value


def checked_sockets(sockets: Any) -> list[tuple[str, int]]:
    """Names and numbers of sockets in the endpoint's directory, safe as a driver's arguments.

    Raises ValueError or TypeError.
    """
    for name, number in sockets:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"a socket is {shown(name)}")
        checked_int(number, "its number", 0, (1 << 32) - 1)
    return [(name, number) for name, number in sockets]


def version_error(endpoint: Endpoint, receiver: Any, sender: Any) -> PortError:
    """The error of peers with different versions."""
    return PortError(
        f"{endpoint}: the receiver's aiflow speaks version {shown(receiver)} of the rendezvous, the sender's "
        f"version {shown(sender)}: install the same aiflow on both sides"
    )
