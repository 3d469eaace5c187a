"""Doorbells of a connection between local peers: the receiver makes the descriptors, and passes the sender's on.

The page is a memfd whose size is sealed: a page that a peer can truncate would end the other process with SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
import socket
from functools import partial

from aiflow._eal_doorbell import DOORBELL_BYTES, Doorbell
from aiflow._system import threads
from aiflow._system.descriptors import Descriptor, keep

__all__ = ["CAPABILITY", "NAMES", "make", "take"]

CAPABILITY = "doorbell"
"""What a side that can use doorbells says of itself."""

NAMES = ("page", "bell")
"""Names of the descriptors that the receiver passes, in their order."""

_RECEIVER, _SENDER = 0, 1


def make() -> tuple[Doorbell, list[Descriptor]]:
    """The receiver's side, and the descriptors to pass to the sender, which are to be closed then.

    Raises
    ------
    OSError
        If no descriptor or memory is left.
    """
    page = keep(lambda: Descriptor(os.memfd_create("aiflow-doorbell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)))
    os.ftruncate(page.fd, DOORBELL_BYTES)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(page.fd, fcntl.F_ADD_SEALS, seals)
    ends = keep(_Pair)
    return Doorbell(page, ends.ours, _RECEIVER), [page, ends.theirs]


def take(page: Descriptor, bell: Descriptor) -> Doorbell:
    """The sender's side, from the descriptors that a receiver passed; it owns `bell` from now on.

    Raises
    ------
    ValueError
        If the memory may shrink under us, or is none.
    """
    try:
        seals = fcntl.fcntl(page.fd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise ValueError("the page of a doorbell is no memfd") from exc
    size, block = os.fstat(page.fd).st_size, os.fstatvfs(page.fd).f_bsize
    if not seals & fcntl.F_SEAL_SHRINK or size < DOORBELL_BYTES or block != os.sysconf("SC_PAGESIZE"):
        raise ValueError(f"the page of a doorbell has {size} bytes in blocks of {block}, and seals {seals}")
    return Doorbell(page, bell, _SENDER)


class _Pair:
    """Two connected sockets, one for each process."""

    def __init__(self) -> None:
        family, kind = socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        ends = threads.unpatched("socket").socketpair(family, kind)
        self.ours, self.theirs = (keep(partial(Descriptor, end.detach())) for end in ends)

    def close(self) -> None:
        """Close both."""
        self.ours.close()
        self.theirs.close()
