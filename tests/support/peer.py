"""Senders and receivers in processes of their own, which a test starts, talks to, and kills.

A peer runs a function of the test's module in a spawned process and sends messages through a pipe. It dies with the
test.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from mbufs import everything_returned
from wait import PATIENCE_S, Deadline

import aiflow
from aiflow.errors import SliceTimeout
from aiflow.lab.children import Child

SPAWN = multiprocessing.get_context("spawn")
MiB = 1 << 20
BIG = 128 * MiB
SLOWLY = {"copies": 16, "delay": 0.004}
"""Every frame late, and sixteen times: a slice of `BIG` takes long enough to be interrupted in its middle."""

_serial = itertools.count()


def name() -> str:
    """A local name that no other test uses."""
    return f"test-{os.getpid()}-{next(_serial)}"


def _run(pipe: Connection, work: Callable[..., None], *arguments: Any) -> None:
    try:
        work(pipe, *arguments)
    except (EOFError, KeyboardInterrupt) as error:
        raise AssertionError("not expected in a test") from error  # `Child` ignores both
    pipe.send(("ended", None))


class Peer(Child):
    """A process that runs ``work(pipe, *arguments)``."""

    error = AssertionError
    detailed = True
    interruptible = True

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        super().__init__(_run, work, *arguments, name=work.__name__)

    def hear(self, timeout: float = PATIENCE_S, survivor: Peer | None = None) -> Any:
        """Its next message; fails when it failed, died or sent none, or when `survivor` has died."""
        if survivor is None:
            return super().hear(timeout)
        ready = wait([self.pipe, survivor.process.sentinel], timeout)
        if ready and self.pipe not in ready:
            survivor.hear()  # says why
        return super().hear(0)

    def tell(self, what: Any) -> None:
        self.pipe.send(what)

    def ends(self, timeout: float = PATIENCE_S) -> None:
        """Wait until it ends by itself, without an error."""
        assert self.hear(timeout) == ("ended", None)
        self.process.join(timeout)
        assert self.process.exitcode == 0, self.process

    def killed(self, timeout: float = PATIENCE_S) -> bool:
        """Wait until it is gone; was it by SIGKILL?"""
        self.process.join(timeout)
        return self.process.exitcode == -9

    def __exit__(self, *exc: object) -> None:
        self.close(at_once=True)


class QuickPeer(Peer):
    """The same, forked from a process that has imported aiflow and started nothing: for hundreds of them.

    It has that process's environment, not the test's of today.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aiflow.sender", "aiflow.receiver"])
    dies_with_parent = False  # but with the fork server, which dies with the test


def content(seed: int, nbytes: int) -> np.ndarray[Any, Any]:
    """Bytes that look random, the same for the same seed; made at memory speed."""
    block = np.random.default_rng(seed).integers(0, 256, min(nbytes, 1 << 20), np.uint8)
    return np.resize(block, nbytes)


def resident_bytes(kind: str = "VmRSS") -> int:
    """Resident memory of this process: all of it, or one of RssAnon, RssFile, RssShmem."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind + ":"))


class Resident:
    """The least and the most resident memory, after `warm_up` looks."""

    def __init__(self, warm_up: int, kind: str = "VmRSS") -> None:
        self.before = warm_up
        self.kind = kind
        self.span = 1 << 62, 0

    def look(self) -> None:
        self.before -= 1
        if self.before < 0:
            now, (least, most) = resident_bytes(self.kind), self.span
            self.span = min(least, now), max(most, now)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Within, this process can open `count` more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(1))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def in_the_middle(progress: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Wait until some of a slice has passed, but not half of it."""
    deadline = Deadline()
    while True:
        done, total = progress()
        if total // 64 < done < total // 2:  # more than its manifest
            return done, total
        deadline.check(f"no slice was met in its middle: {done} of {total} bytes")
        time.sleep(0)


def no_slice(rx: aiflow.Receiver, seconds: float) -> bool:
    try:
        rx.recv(timeout=seconds)
    except SliceTimeout:
        return True
    return False


def send_once(pipe: Connection, endpoint: str, seed: int, nbytes: int, options: dict[str, Any] | None = None) -> None:
    with everything_returned(), aiflow.Sender(endpoint, **{"peer_timeout": PATIENCE_S, **(options or {})}) as tx:
        pipe.send(tx.send({"x": content(seed, nbytes)}, timeout=PATIENCE_S).nbytes)


def receive_once(pipe: Connection, endpoint: str, seed: int, nbytes: int) -> None:
    with everything_returned(), aiflow.Receiver(endpoint) as rx:
        pipe.send("open")
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(seed, nbytes)))
        pipe.recv()
