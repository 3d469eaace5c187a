"""Memory that receivers and senders share over a connection on this host: see include/aiflow/tx/placing.h.

A side that has a Receiver passes its memory before its ports come up, or whenever a Receiver joins them::

    either      → {"memory": 3623878656, "epoch": 7, "warm": 0, "loans": false, "descriptors": ["memory"]}
    either      → {"unmapped": true}     no loop of ours writes to your memory any more

A side that has a Sender with loans passes its pool, and a ledger that both sides write (include/aiflow/rt/ledger.h)::

    either      → {"pool": 1879048192, "number": 9, "descriptors": ["pool", "ledger"]}
    the other   → {"mapped": 9}          loans from it may come now

With the capability ``places`` each side passes a pidfd of itself ("process"): a process that was killed, or whose child
keeps the socket, is dead when that says so. Connections with one random name ("process_name") are of one process. The
memory is a memfd whose size is sealed.
"""

from __future__ import annotations

import fcntl
import os
import select
from functools import partial
from typing import Any, NamedTuple

from aiflow._eal_loans import LEDGER_BYTES, Pool
from aiflow._eal_sharing import Sharing, new_writer
from aiflow._ports.local_drivers import driver_of
from aiflow._ports.messages import checked_int
from aiflow._system import threads
from aiflow._system.descriptors import Descriptor, keep, unforked
from aiflow.config import Endpoint

__all__ = [
    "CAPABILITY",
    "PROCESS",
    "Memory",
    "Writers",
    "able",
    "borrow",
    "has_died",
    "memory_message",
    "own_process",
    "pool_message",
    "process_name",
    "take",
]

CAPABILITY = "places"
"""What a side that can place payloads, and be told of places, says of itself."""

PROCESS = "process"
"""Name of the descriptor by which a side sees whether the other one lives."""

_MOST = 1 << 48


class Memory(NamedTuple):
    """Memory that a Receiver of this process shares.

    Attributes
    ----------
    epoch : int
        The Receiver's instance.
    fd : int
    nbytes : int
    warm : int
        Bytes at its beginning that have their pages already.
    loans : bool
        The Receiver takes loans.
    """

    epoch: int
    fd: int
    nbytes: int
    warm: int
    loans: bool = False


def able(endpoint: Endpoint) -> bool:
    """Whether the peers of an endpoint can share memory: processes of one host, that may see each other die."""
    if endpoint.scheme != "local" or driver_of(endpoint.scheme).name != "memif":
        return False
    try:
        own_process().close()
    except OSError:  # a sandbox without pidfd
        return False
    return True


def own_process() -> Descriptor:
    """A descriptor of this process, to be passed and closed. Raises OSError."""
    return keep(lambda: Descriptor(os.pidfd_open(os.getpid())))


_names: dict[int, str] = {}


def process_name() -> str:
    """A random name of this process, another one in a forked child."""
    return _names.setdefault(os.getpid(), os.urandom(8).hex())


class Writers:
    """The processes that may write to our memory, over one or several connections each."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}  # name → number, connections

    def enter(self, name: str) -> int:
        """Another connection of the process of this name; returns its number."""
        found = self._found.setdefault(name, [new_writer(), 0])
        found[1] += 1
        return found[0]

    def leave(self, number: int) -> bool:
        """A connection of this process has ended; whether it was the last one."""
        for name, found in list(self._found.items()):
            if found[0] == number:
                found[1] -= 1
                if not found[1]:
                    del self._found[name]
                    return True
        return False


def has_died(process: Descriptor) -> bool:
    """Whether the process behind a passed descriptor has ended."""
    poll = threads.unpatched("select").poll()
    poll.register(process.fd, select.POLLIN)
    return bool(poll.poll(0))


def memory_message(memory: Memory) -> tuple[dict[str, Any], list[Descriptor]]:
    """The message that passes a memory on, and its descriptors, to be closed then. Raises OSError."""
    message = {"memory": memory.nbytes, "epoch": memory.epoch, "warm": memory.warm, "loans": memory.loans}
    message["descriptors"] = ["memory"]  # type: ignore[assignment]
    return message, [keep(partial(_copy, memory.fd))]


def _copy(fd: int) -> Descriptor:
    return Descriptor(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))


def take(sharing: Sharing, message: dict[str, Any], passed: list[Descriptor]) -> None:
    """Map the memory that a peer passed. Without room for it, chunks are carried.

    Raises
    ------
    ValueError
        If the memory may shrink under us, or is none.
    """
    nbytes = checked_int(message["memory"], "memory", 1, _MOST)
    epoch = checked_int(message["epoch"], "epoch", 1, (1 << 64) - 1)
    warm = checked_int(message.get("warm", 0), "warm", 0, nbytes)
    if len(passed) != 1:
        raise ValueError(f"a memory came with {len(passed)} descriptors")
    _check_size(passed[0].fd, nbytes)
    with unforked():  # a child must not get the mapping before it is marked
        sharing.take(passed[0].fd, epoch, nbytes, warm, message.get("loans") is True)


def _check_size(fd: int, nbytes: int) -> None:
    """Raise ValueError for memory that has fewer bytes, or may shrink: a mapping of it may end in SIGBUS."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise ValueError("shared memory is no memfd") from exc
    if not seals & fcntl.F_SEAL_SHRINK or os.fstat(fd).st_size < nbytes:
        raise ValueError(f"shared memory has {os.fstat(fd).st_size} of {nbytes} bytes, and seals {seals}")


def pool_message(sharing: Sharing, pool: Pool) -> tuple[dict[str, Any], list[Descriptor]] | None:
    """The message that passes a pool on, and its descriptors, to be closed then; None if the peer has it already.

    Raises OSError.
    """
    ledger = sharing.lend(pool)
    if ledger is None:
        return None
    message = {"pool": pool.nbytes, "number": pool.number, "descriptors": ["pool", "ledger"]}
    return message, [keep(partial(_copy, pool.fd)), keep(partial(Descriptor, ledger))]


def borrow(sharing: Sharing, message: dict[str, Any], passed: list[Descriptor]) -> int | None:
    """Map the pool that a peer passed, and return its number. None without room for it: then the peer copies.

    Raises
    ------
    ValueError
        If it may shrink under us, or is none.
    """
    nbytes = checked_int(message["pool"], "pool", 1, _MOST)
    number = checked_int(message["number"], "number", 1, (1 << 64) - 1)
    if len(passed) != 2:
        raise ValueError(f"a pool came with {len(passed)} descriptors")
    pool, ledger = passed
    _check_size(pool.fd, nbytes)
    _check_size(ledger.fd, LEDGER_BYTES)
    return number if sharing.borrow(number, pool.fd, nbytes, ledger.fd) else None
