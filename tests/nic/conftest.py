"""What the tests in the guest share: the machine, its cards, and two processes with ports of their own."""

from __future__ import annotations

from collections.abc import Iterator

import machine
import pytest
from consoles import Console


@pytest.fixture(scope="session")
def monitor() -> machine.Monitor:
    """QEMU's monitor."""
    return machine.Monitor()


@pytest.fixture(scope="session")
def cards() -> list[str]:
    """Addresses of nic0 to nic3, all of them bound to vfio-pci."""
    found = machine.cards()
    assert len(found) == 4
    for address in found:
        machine.bind(address, "vfio-pci")
    return found


@pytest.fixture
def card(cards: list[str]) -> Iterator[str]:
    """nic3, which the kernel drives as after a start of the machine; vfio-pci has it again after the test."""
    address = cards[3]
    machine.bind(address, "igb")
    (machine.DEVICES / address / "driver_override").write_text("\n")
    yield address
    machine.bind(address, "vfio-pci")


@pytest.fixture(scope="session")
def ports(cards: list[str]) -> list[str]:
    """Endpoints of nic0 to nic3. nic0 and nic1 share a wire, nic2 and nic3 another one."""
    return [f"pci:{address}" for address in cards]


@pytest.fixture(scope="session")
def processes() -> Iterator[list[Console]]:
    """The two of `long_lived`; none before the first test, and after a failure."""
    consoles: list[Console] = []
    yield consoles
    for console in consoles:
        console.close()


@pytest.fixture
def long_lived(processes: list[Console]) -> tuple[Console, Console]:
    """Two processes for all tests: a start takes seconds here."""
    while len(processes) < 2:
        processes.append(Console())
    return processes[0], processes[1]


@pytest.fixture
def pair(long_lived: tuple[Console, Console], processes: list[Console]) -> Iterator[tuple[Console, Console]]:
    """The sender's process and the receiver's. After the test no port of theirs is open, and every mbuf is back.

    If not, they end. They may still run statements, and the next test would take the answers for its own.
    """
    yield long_lived
    try:
        for console in long_lived:
            left = console.run(LEFT)
            assert left == {"ports": [], "mbufs": {}}
    except BaseException:
        while processes:
            processes.pop().close()
        raise


LEFT = """
for name in [name for name in ("tx", "rx", "ticket", "report", "time_slice", "got") if name in globals()]:
    side = globals().pop(name)
    if hasattr(side, "close"):
        side.close()
    del side
from aiflow import _eal
import gc
gc.collect()
answer = {"ports": [port.name for port in open_ports()],
          "mbufs": {pool.name: pool.in_use for pool in _eal.mempools() if pool.in_use}}
"""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure at once: a machine that hangs later has no summary."""
    if report.failed:
        print(f"\n{report.nodeid} ({report.when}), {report.duration:.0f} s:\n{report.longreprtext}", flush=True)
