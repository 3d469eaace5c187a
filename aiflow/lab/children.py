"""Processes in the cluster's nodes, which an experiment starts and talks to through pipes.

A child is a fresh interpreter that enters its node before anything else and dies with us, by whatever. It says tuples
whose first item tells what they are; ``("failed", text)`` ends the experiment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from aiflow.lab.cluster import Cluster
from aiflow.lab.entering import die_with_parent, enter
from aiflow.lab.laberror import LabError

__all__ = ["Child", "hear_all"]

_SPAWN = multiprocessing.get_context("spawn")
_FAREWELL_S = 10.0


class Child:
    """A process in a node that runs ``body(pipe, *arguments)``. A context manager: ended on exit.

    Parameters
    ----------
    cluster : Cluster
    node : int
    body : callable
        A module's function.
    *arguments
        Whatever can be pickled.
    """

    def __init__(self, cluster: Cluster, node: int, body: Callable[..., None], *arguments: Any) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        namespace = cluster.node(node)
        self.name = f"{body.__name__} in {namespace.name}"
        self.process = _SPAWN.Process(
            target=_live,
            args=(os.getpid(), str(namespace.path), str(cluster.runtime_directory), theirs, body, arguments),
            name=self.name,
            daemon=True,
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})  # ours to hear, not theirs
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def tell(self, *message: Any) -> None:
        """Send it a message; an empty one asks it to end."""
        try:
            self.pipe.send(message)
        except OSError:
            if message:
                self.hear(0.5)  # says why it is gone

    def hear(self, timeout: float) -> tuple[Any, ...]:
        """Give its next message.

        Raises
        ------
        LabError
            When it failed, died, or said nothing for `timeout` seconds.
        """
        try:
            if not self.pipe.poll(timeout):
                raise LabError(f"{self.name}: nothing was heard for {timeout:.0f} s; run the experiment again")
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_FAREWELL_S)
            raise LabError(f"{self.name} ended with exit code {self.process.exitcode}") from None
        if message[0] == "failed":
            raise LabError(f"{self.name} failed: {message[1]}")
        return tuple(message)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is None:
            self.tell()
            self.process.join(_FAREWELL_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_FAREWELL_S)
        self.pipe.close()


def hear_all(children: list[Child], timeout: float) -> list[tuple[Any, ...]]:
    """The next message of every child, in the children's order; the first that fails ends the wait."""
    deadline = time.monotonic() + timeout
    heard: dict[int, tuple[Any, ...]] = {}
    while len(heard) < len(children):
        waiting = {child.pipe: i for i, child in enumerate(children) if i not in heard}
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            names = ", ".join(children[i].name for i in waiting.values())
            raise LabError(f"nothing was heard from {names} for {timeout:.0f} s; run the experiment again")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            heard[waiting[pipe]] = children[waiting[pipe]].hear(1.0)
    return [heard[i] for i in range(len(children))]


def _live(
    parent: int, namespace: str, runtime: str, pipe: Connection, body: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    die_with_parent(parent)
    enter(namespace)
    os.environ["AIFLOW_RUNTIME_DIR"] = runtime
    try:
        body(pipe, *arguments)
    except (EOFError, KeyboardInterrupt):
        pass  # the experiment has ended
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
