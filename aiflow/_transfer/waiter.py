"""Waits for a data-plane loop: in a thread, or in an event loop (by an eventfd, without a polling thread)."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from aiflow._system import threads

if TYPE_CHECKING:
    import asyncio

__all__ = ["Waiter"]

SIGNALS_S = 0.25
"""A waiting thread looks for signals this often, so that Ctrl-C works. A signal that ends its sleep is seen at once.

While it is awake, or another thread drives, `wait` returns after 50 ms."""

AGAIN_S = 0.5
"""A waiting coroutine looks this often for changes without an event, such as time that passes."""


class Waiter:
    """Sleeps until a condition holds.

    Parameters
    ----------
    agent : aiflow._dp_agent.Agent
        It is on a loop before anything waits. With every event the loop's generation grows and its eventfd becomes
        readable.
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._since: dict[int, int] = {}  # calls that wait, by a number of their own, and since when
        self._waited_ns: dict[int, int] = {}  # by thread: each adds to its own, so that no update is lost
        self._told_ns = 0
        self._telling = threads.unpatched("threading").Lock()

    def waited(self) -> tuple[int, int]:
        """How many calls wait now, and for how many ns all calls have waited, those included. The ns never fall.

        A wait that ends while they are added up may be missing from both sums.
        """
        with self._telling:
            now, waiting = time.monotonic_ns(), list(self._since.values())
            waited = sum(list(self._waited_ns.values())) + sum(now - since for since in waiting)
            self._told_ns = max(self._told_ns, waited)
            return len(waiting), self._told_ns

    def callers(self) -> set[int]:
        """Identifiers of the threads that have waited here or do now; others may have one of an ended thread."""
        return {*list(self._waited_ns), *list(self._since)}

    def _ended(self, call: int) -> None:
        since = self._since.pop(call, None)
        if since is not None:
            took, me = time.monotonic_ns() - since, get_ident()
            self._waited_ns[me] = self._waited_ns.get(me, 0) + took

    def until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Block until `condition()`, at most `timeout` seconds (None: without end). Returns its last value."""
        deadline = None if timeout is None else time.monotonic() + timeout
        loop = self._agent.loop
        while True:
            generation = loop.generation
            if condition():
                return True
            left = SIGNALS_S if deadline is None else min(SIGNALS_S, deadline - time.monotonic())
            if left <= 0:
                return False
            me = get_ident()  # after an interrupt at a bad moment, this thread's next wait mends the account
            self._since[me] = time.monotonic_ns()
            try:
                loop.wait(generation, left)
            finally:
                self._ended(me)

    async def until_async(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """`until` for an event loop; may be cancelled."""
        import asyncio  # 30 ms of imports that threads never need

        aio = asyncio.get_running_loop()
        deadline = None if timeout is None else aio.time() + timeout
        loop = self._agent.loop
        loop.arm()
        sleepers = _sleepers.setdefault(loop, _Sleepers())
        while not condition():
            left = AGAIN_S if deadline is None else min(AGAIN_S, deadline - aio.time())
            if left <= 0:
                return False
            future = aio.create_future()
            sleepers.listen(loop, aio, future)
            try:
                if condition():
                    return True
                self._since[id(future)] = time.monotonic_ns()
                await asyncio.wait_for(future, left)
            except TimeoutError:
                continue
            finally:
                sleepers.ignore(loop, aio, future)
                self._ended(id(future))
        return True


class _Sleepers:
    """Coroutines that wait for one data-plane loop, of all its agents: an event loop has one reader a descriptor."""

    def __init__(self) -> None:
        self._futures: dict[asyncio.AbstractEventLoop, set[asyncio.Future[None]]] = {}

    def listen(self, loop: Any, aio: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Let the loop's next event end `future`."""
        if aio not in self._futures:
            aio.add_reader(loop.event_fd, self._on_event, loop)
            self._futures[aio] = set()
        self._futures[aio].add(future)

    def ignore(self, loop: Any, aio: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Forget `future`."""
        futures = self._futures.get(aio, set())
        futures.discard(future)
        if not futures and aio in self._futures:
            aio.remove_reader(loop.event_fd)
            del self._futures[aio]

    def _on_event(self, loop: Any) -> None:
        loop.drain()
        for aio, futures in list(self._futures.items()):  # one descriptor, possibly several event loops
            if aio.is_closed():
                del self._futures[aio]
                continue
            for future in list(futures):
                aio.call_soon_threadsafe(_resolve, future)


_sleepers: weakref.WeakKeyDictionary[Any, _Sleepers] = weakref.WeakKeyDictionary()  # by data-plane loop


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
