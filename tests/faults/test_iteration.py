"""Threads and tasks that iterate over one Receiver: each slice comes to one of them, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peer import name as local_name

import aiflow
from aiflow.errors import ConfigError

PATIENCE_S = 20.0
NB_SLICES = 120


def _by_next(rx: aiflow.Receiver) -> Iterator[aiflow.TimeSlice]:
    with contextlib.suppress(StopIteration):
        while True:
            time_slice = next(rx)
            yield time_slice


async def _by_anext(rx: aiflow.Receiver) -> Any:
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield await asyncio.wait_for(anext(rx), PATIENCE_S)


def _threads(loop: Callable[[aiflow.Receiver], Any], rx: aiflow.Receiver, work: Callable[[Any], None]) -> None:
    def run() -> None:
        for time_slice in loop(rx):
            time.sleep(0.001)
            work(time_slice)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)


def _tasks(loop: Callable[[aiflow.Receiver], Any], rx: aiflow.Receiver, work: Callable[[Any], None]) -> None:
    async def run() -> None:
        async for time_slice in loop(rx):
            await asyncio.sleep(0.001)
            work(time_slice)

    async def all_of_them() -> None:
        await asyncio.gather(*(run() for _ in range(3)))

    asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("workers", "loop"),
    [(_threads, iter), (_threads, lambda rx: rx), (_threads, _by_next), (_tasks, aiter), (_tasks, _by_anext)],
    ids=["threads, iter", "threads, for", "threads, next", "tasks, async for", "tasks, anext"],
)
def test_several_workers_iterate_and_none_loses_its_slice(workers, loop) -> None:
    endpoint = f"ring:{local_name()}"
    done: list[int] = []
    with (
        aiflow.Receiver(endpoint, memory="16MiB", until="bye", timeout=PATIENCE_S) as rx,
        aiflow.Sender(endpoint) as tx,
    ):

        def work(time_slice: aiflow.TimeSlice) -> None:
            done.append(int.from_bytes(time_slice[0].tobytes(), "big"))

        consumers = threading.Thread(target=workers, args=(loop, rx, work))
        consumers.start()
        for number in range(NB_SLICES):
            tx.send([number.to_bytes(2, "big")], timeout=PATIENCE_S)
        tx.close()
        consumers.join(PATIENCE_S)
    assert sorted(done) == list(range(NB_SLICES))


def test_advancing_releases_the_slice_before_and_leaving_a_loop_does_not(pair) -> None:
    tx, rx = pair
    loop = iter(rx)
    for step in (lambda: next(rx), lambda: next(loop)):
        for _ in range(3):
            tx.send([b"x"], wait=False)
        first, second = step(), step()
        with pytest.raises(ConfigError, match="released"):
            first[0].array  # noqa: B018
        assert second[0].tobytes() == b"x"
        third = next(iter(rx))  # another loop: the second is not its own
        assert (second[0].tobytes(), third[0].tobytes()) == (b"x", b"x")
