"""Fixtures of all tests, and the check that a test returns its mbufs and threads.

Property tests draw the same examples in every run, without a deadline, since a busy machine is no finding.
``--hypothesis-profile=default`` draws new ones.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from mbufs import mbufs_out
from programs import programs
from wait import settle

settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell starts background jobs like this, and tests interrupt programs
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup the programs that we start would ignore it, too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("AIFLOW_CHECK_PLACES", "1")  # receivers sum what senders wrote into their memory

_serial = count()


def why_not_root() -> str | None:
    """The reason why tests that need root cannot run. Not every root may make network namespaces."""
    if os.geteuid() != 0:
        return "needs root: network namespaces, raw sockets, other users' processes"
    if shutil.which("unshare") and subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "needs a root that may make network namespaces: CAP_SYS_ADMIN, which this container does not give"
    return None


def knows_xdp() -> bool:
    """Does this kernel have AF_XDP sockets?"""
    try:
        socket.socket(44, socket.SOCK_RAW).close()  # AF_XDP, which Python has no name for
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need root or AF_XDP where there is none, with the reason."""
    why = why_not_root()
    xdp = knows_xdp()
    for item in items:
        if why is not None and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=why))
        elif not xdp and item.get_closest_marker("root") and "xdp" in item.name:
            item.add_marker(pytest.mark.skip(reason="needs a kernel with AF_XDP sockets (CONFIG_XDP_SOCKETS)"))


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


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
    """Network namespaces, removed when the test ends."""
    if (why := why_not_root()) is not None:
        pytest.skip(why)
    from netns import Net

    with Net() as network:
        yield network


@pytest.fixture
def own_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Programs of the user outside the test are not seen. The name is short, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp") as name:
        monkeypatch.setenv("AIFLOW_RUNTIME_DIR", name)
        yield Path(name)


@pytest.fixture
def aiflow() -> Iterator[Any]:
    """Start `aiflow …`; its processes end with the test."""
    with programs() as start:
        yield start
