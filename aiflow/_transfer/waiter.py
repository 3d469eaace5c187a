"""Waits for a data-plane loop: in a thread, or in an event loop (by an eventfd, without a polling thread)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
        self._readers: dict[asyncio.AbstractEventLoop, set[asyncio.Future[None]]] = {}

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
            loop.wait(generation, left)

    async def until_async(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """`until` for an event loop; may be cancelled."""
        import asyncio  # 30 ms of imports that threads never need

        aio = asyncio.get_running_loop()
        deadline = None if timeout is None else aio.time() + timeout
        self._agent.loop.arm()
        while not condition():
            left = AGAIN_S if deadline is None else min(AGAIN_S, deadline - aio.time())
            if left <= 0:
                return False
            future = aio.create_future()
            self._listen(aio, future)
            try:
                if condition():
                    return True
                await asyncio.wait_for(future, left)
            except TimeoutError:
                continue
            finally:
                self._ignore(aio, future)
        return True

    def _listen(self, aio: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        if aio not in self._readers:
            aio.add_reader(self._agent.loop.event_fd, self._on_event)
            self._readers[aio] = set()
        self._readers[aio].add(future)

    def _ignore(self, aio: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        futures = self._readers.get(aio, set())
        futures.discard(future)
        if not futures and aio in self._readers:
            aio.remove_reader(self._agent.loop.event_fd)
            del self._readers[aio]

    def _on_event(self) -> None:
        self._agent.loop.drain()
        for aio, futures in list(self._readers.items()):  # one descriptor, possibly several event loops
            if aio.is_closed():
                del self._readers[aio]
                continue
            for future in list(futures):
                aio.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
