"""Child processes that a program starts and talks to through pipes: those of the cluster, the benchmarks, the tests.

A child is a fresh interpreter. It dies with its parent, even by ``kill -9``. Messages are pickled objects. The message
``("failed", summary, traceback)`` reports an exception of the child; the parent then raises.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aiflow._terminal.interrupts import interrupts_blocked
from aiflow.lab.entering import die_with_parent, enter
from aiflow.lab.laberror import LabError

if TYPE_CHECKING:
    from aiflow.lab.cluster import Cluster

__all__ = ["Child", "NodeChild", "hear_all", "report_failure"]

_FAREWELL_S = 10.0


class Child:
    """A process that runs ``body(pipe, *arguments)``. A context manager: ended on exit.

    Parameters
    ----------
    body : callable
        A function of a module.
    *arguments
        They must be picklable.
    name : str, optional
        For error messages; default the name of `body`.
    first : callable, optional
        Called in the child before `body`.

    Attributes
    ----------
    context : multiprocessing context
    error : type of Exception
        Raised when the child fails, dies, or stays silent.
    detailed : bool
        Whether the error of a failed child contains its traceback.
    interruptible : bool
        Whether the child receives SIGINT and SIGHUP. Otherwise these signals are for the parent only.
    dies_with_parent : bool
        Whether it is killed when the thread that started it ends. Not with a fork server, which is the real parent.
    farewell : tuple
        Message that asks the child to end.
    process : multiprocessing.Process
    pipe : Connection
    """

    context: ClassVar[Any] = multiprocessing.get_context("spawn")
    error: ClassVar[type[Exception]] = LabError
    detailed: ClassVar[bool] = False
    interruptible: ClassVar[bool] = False
    dies_with_parent: ClassVar[bool] = True
    farewell: ClassVar[tuple[Any, ...]] = ()

    def __init__(
        self, body: Callable[..., None], *arguments: Any, name: str = "", first: Callable[[], None] | None = None
    ) -> None:
        self.name = name or body.__name__
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(
            target=_live,
            args=(os.getpid() if self.dies_with_parent else 0, first, theirs, body, arguments),
            name=self.name,
            daemon=True,
        )
        with contextlib.nullcontext() if self.interruptible else interrupts_blocked():
            self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return int(self.process.pid or 0)

    def tell(self, *message: Any) -> None:
        """Send a message. If the child is gone, raise its error."""
        try:
            self.pipe.send(message)
        except OSError:
            self.hear(0.5)

    def hear(self, timeout: float) -> Any:
        """Return the next message.

        Raises
        ------
        Exception
            `error`, if the child failed, died, or sent nothing for `timeout` seconds.
        """
        try:
            if not self.pipe.poll(timeout):
                raise self.error(f"{self.name}: no message within {timeout:.0f} s")
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_FAREWELL_S)
            raise self.error(f"{self.name} ended with exit code {self.process.exitcode}") from None
        if isinstance(message, tuple) and message and isinstance(message[0], str) and message[0] == "failed":
            summary, details = message[1:]
            raise self.error(f"{self.name} failed: {details if self.detailed else summary}")
        return message

    def ask_to_end(self) -> None:
        """Send the farewell. `close` does so, too; this lets several children end at the same time."""
        with contextlib.suppress(OSError):
            self.pipe.send(self.farewell)

    def close(self, *, at_once: bool = False) -> None:
        """Ask the child to end, unless `at_once`. Kill it if it does not."""
        if not at_once:
            self.ask_to_end()
            self.process.join(_FAREWELL_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_FAREWELL_S)
        self.pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.close(at_once=kind is not None)


class NodeChild(Child):
    """A child in a node of a cluster: its first action is to enter the namespace of the node."""

    def __init__(self, cluster: Cluster, node: int, body: Callable[..., None], *arguments: Any) -> None:
        namespace = cluster.node(node)
        first = functools.partial(_enter_node, str(namespace.path), str(cluster.runtime_directory))
        super().__init__(body, *arguments, name=f"{body.__name__} in {namespace.name}", first=first)


def hear_all(children: list[NodeChild], timeout: float) -> list[tuple[Any, ...]]:
    """Return the next message of every child, in their order. The first failure ends the wait."""
    deadline = time.monotonic() + timeout
    heard: dict[int, tuple[Any, ...]] = {}
    while len(heard) < len(children):
        waiting = {child.pipe: i for i, child in enumerate(children) if i not in heard}
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            names = ", ".join(children[i].name for i in waiting.values())
            raise LabError(f"no message from {names} within {timeout:.0f} s; repeat the experiment")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            heard[waiting[pipe]] = children[waiting[pipe]].hear(1.0)
    return [heard[i] for i in range(len(children))]


def report_failure(pipe: Connection, error: BaseException) -> None:
    """Tell the parent of an exception in this child, from its handler."""
    with contextlib.suppress(OSError):
        pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))


def _enter_node(namespace: str, runtime: str) -> None:
    enter(namespace)
    os.environ["AIFLOW_RUNTIME_DIR"] = runtime


def _live(
    parent: int,
    first: Callable[[], None] | None,
    pipe: Connection,
    body: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    if parent:
        die_with_parent(parent)
    try:
        if first is not None:
            first()
        body(pipe, *arguments)
    except (EOFError, KeyboardInterrupt):
        pass  # the parent has ended the conversation
    except BaseException as error:
        report_failure(pipe, error)
        raise  # printed by multiprocessing
