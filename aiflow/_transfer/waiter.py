"""Waits for a data-plane loop: in a thread, or in an event loop (by an eventfd, without a polling thread)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiflow._transfer._waits import Waits

if TYPE_CHECKING:
    import asyncio

__all__ = ["Waiter"]

AGAIN_S = 0.5
"""A waiting coroutine looks this often for changes without an event, such as time that passes."""


class Waiter(Waits):
    """Sleeps until a condition holds, in a thread or in an event loop."""

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
                self._begins(id(future))
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
