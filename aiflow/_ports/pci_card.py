"""Network cards on the PCI bus: which there are, and whether DPDK may drive them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from aiflow._ports.interface_use import Network, read_network, why_in_use
from aiflow._system import threads
from aiflow._system.cpus import numa_node
from aiflow._system.descriptors import Descriptor, keep
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["claim_uio", "driver_of_card", "inspect_pci", "network_cards"]

PCI_DEVICES = Path("/sys/bus/pci/devices")
INTERFACES = Path("/sys/class/net")
VFIO = Path("/dev/vfio")

_NETWORK_CLASS = 0x02
_UIO_DRIVERS = ("uio_pci_generic", "igb_uio")
_DPDK_KERNEL_DRIVERS = ("vfio-pci", *_UIO_DRIVERS, "mlx5_core", "mlx4_core")
_BESIDE_VFIO = ("vfio-pci", "pci-stub", "pcieport", "")  # drivers of other devices in a group that vfio may open
_FREE_WITHIN = 0.5  # seconds: a process that has just ended may still hold its card


def network_cards() -> list[str]:
    """PCI addresses of the network cards."""
    found = []
    for device in sorted(PCI_DEVICES.glob("*")):
        try:
            if _pci_class(device) == _NETWORK_CLASS:
                found.append(device.name)
        except (OSError, ValueError):
            continue
    return found


def _pci_class(device: Path) -> int:
    """Raises OSError or ValueError if it cannot be read."""
    return int((device / "class").read_text(), 16) >> 16


def driver_of_card(address: str) -> str:
    """The kernel's driver that a PCI device is bound to; "" for none."""
    link = PCI_DEVICES / address / "driver"
    return link.resolve().name if link.exists() else ""


def inspect_pci(endpoint: Endpoint) -> int:
    """Check that DPDK could drive a PCI device; returns its NUMA node, or -1.

    Raises
    ------
    PortError
        If it is missing, is no network card, is bound to a driver that keeps it, or may not be opened. The message
        tells how to rebind it, unless the machine would lose its network.
    """
    device = PCI_DEVICES / endpoint.target
    if not device.is_dir():
        address = endpoint.target.partition(":")[2]
        alike = " or ".join(sorted(f"pci:{path.name}" for path in PCI_DEVICES.glob(f"*:{address}")))
        instead = f"is {alike} meant? " if alike else ""
        raise PortError(
            f"{endpoint}: no such PCI device {endpoint.target}; {instead}lspci -D, or "
            "`aiflow ports`, lists them with their domain"
        )
    try:
        pci_class = _pci_class(device)
    except (OSError, ValueError):
        pci_class = _NETWORK_CLASS
    if pci_class != _NETWORK_CLASS:
        raise PortError(
            f"{endpoint}: not a network card (PCI class 0x{pci_class:02x}); the command `aiflow ports` lists the cards"
        )
    driver = driver_of_card(device.name)
    if driver not in _DPDK_KERNEL_DRIVERS:
        raise PortError(_how_to_bind(endpoint, device, driver))
    if driver == "vfio-pci":
        _try_group(endpoint, device)
    return numa_node(device)


def _try_group(endpoint: Endpoint, device: Path) -> None:
    """Raise PortError if the card's IOMMU group cannot be opened: DPDK's log has the fault, and no remedy."""
    group = (device / "iommu_group").resolve()
    for other in sorted(path.name for path in (group / "devices").glob("*") if path.name != device.name):
        if (driver := driver_of_card(other)) not in _BESIDE_VFIO:
            raise PortError(
                f"{endpoint}: {other} is in the same IOMMU group, and the kernel's {driver} driver has it: a group has "
                f"one user. As root: aiflow ports bind {other}, or put the card into another slot"
            )
    file = VFIO / group.name
    if not file.exists():
        file = VFIO / f"noiommu-{group.name}"
    deadline = time.monotonic() + _FREE_WITHIN
    while True:
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
            return
        except OSError as exc:
            fault = exc
        if fault.errno != errno.EBUSY or time.monotonic() > deadline:
            break
        threads.unpatched("time").sleep(0.02)
    if fault.errno == errno.EBUSY:
        if os.getpid() in (pids := _users(file)):  # for another card of the group: DPDK opens a group once
            return
        users = " and ".join(f"process {pid}" for pid in pids) or "another process"
        raise PortError(f"{endpoint}: busy, {users} has {file} open; end that one, or take another card")
    if fault.errno in (errno.EACCES, errno.EPERM):
        raise PortError(
            f"{endpoint}: no permission for {file}; run as root, or give it to your user (as root: chown "
            f"{os.geteuid()} {file}), and raise ulimit -l, since the card's memory is locked"
        )
    raise PortError(f"{endpoint}: {file}: {fault.strerror}; bind the card to vfio-pci again")


def _users(file: Path) -> list[int]:
    """Processes that have a file open, as far as this one may look."""
    found = []
    for directory in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(entry.path) == str(file) for entry in os.scandir(directory)):
                found.append(int(directory.parent.name))
    return sorted(found)


def claim_uio(endpoint: Endpoint) -> Descriptor | None:
    """Lock a card that uio drives, until the Descriptor is closed: the kernel lets two processes open it at once.

    Returns
    -------
    Descriptor or None
        None for a card of another driver.

    Raises
    ------
    PortError
        If another aiflow process has it.
    """
    if driver_of_card(endpoint.target) not in _UIO_DRIVERS:
        return None
    path = PCI_DEVICES / endpoint.target / "config"
    file = keep(lambda: Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise PortError(
            f"{endpoint}: busy, another aiflow process uses it; end that one, or take another card"
        ) from None
    return file


def _how_to_bind(endpoint: Endpoint, device: Path, driver: str) -> str:
    """Why DPDK cannot drive the card now, and what to do."""
    state = f"is bound to the kernel's {driver} driver" if driver else "is bound to no driver"
    interfaces = sorted(path.name for pattern in ("net/*", "virtio*/net/*") for path in device.glob(pattern))
    network = Network()
    with contextlib.suppress(OSError):
        network = read_network() if interfaces else network
    for name in (name for name in interfaces if name in network.numbers):
        if why := why_in_use(name, INTERFACES, network):
            return f"{endpoint}: the card {state}. DPDK would take it away, and {why}"
    instead = f", or use {' or '.join(f'af_packet:{name}' for name in interfaces)} as it is" if interfaces else ""
    return (
        f"{endpoint}: the card {state}, and DPDK needs it bound to vfio-pci. As root: modprobe vfio-pci && "
        f"aiflow ports bind {endpoint.target} (the kernel loses the card until `aiflow ports unbind`){instead}"
    )
