"""What every test gets and must give back: mbufs, threads, descriptors."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

_serial = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so when there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces, raw sockets, other users' processes")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)


def mbufs_out() -> dict[str, int]:
    """Mbufs that somebody holds, by pool; {} before the first pool."""
    eal = sys.modules.get("aiflow._eal")
    return {pool.name: pool.in_use for pool in eal.mempools() if pool.in_use} if eal is not None else {}


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def settle(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """Wait for what ends by itself but not at once: a thread that is joined by nobody, a driver's last reference."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test every mbuf is back in its pool, and no thread of ours is left."""
    if request.node.get_closest_marker("unit"):
        yield
        return
    threads = set(threading.enumerate())
    yield
    gc.collect()

    def left_threads() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - threads if t.name.startswith("aiflow")]

    settle(lambda: not left_threads() and not mbufs_out())
    assert left_threads() == []
    assert mbufs_out() == {}


@pytest.fixture
def name() -> str:
    """A name that no other test, and no other run, uses."""
    return f"t{os.getpid()}-{next(_serial)}"


@pytest.fixture
def endpoint(name: str) -> str:
    """A local endpoint of this test's own."""
    return f"local:{name}"


@pytest.fixture
def net() -> Iterator[object]:
    """Network namespaces that go when the test ends, however it ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    from netns import Net

    with Net() as network:
        yield network
