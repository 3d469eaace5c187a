"""Network cards on the PCI bus: which there are, and whether DPDK may drive them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from aiflow._system.cpus import numa_node
from aiflow.config import Endpoint
from aiflow.errors import PortError

__all__ = ["inspect_pci", "network_cards"]

PCI_DEVICES = Path("/sys/bus/pci/devices")
ROUTES = Path("/proc/net/route")

_NETWORK_CLASS = 0x02
_DPDK_KERNEL_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio", "mlx5_core", "mlx4_core")


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


def inspect_pci(endpoint: Endpoint) -> int:
    """Check that DPDK could drive a PCI device; returns its NUMA node, or -1.

    Raises
    ------
    PortError
        If it is missing, is no network card, or is bound to a driver that keeps it. The message tells how to rebind
        it, unless the machine would lose its network.
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
    link = device / "driver"
    driver = link.resolve().name if link.exists() else ""
    if driver not in _DPDK_KERNEL_DRIVERS:
        raise PortError(_how_to_bind(endpoint, device, driver))
    if driver == "vfio-pci" and not os.access("/dev/vfio/vfio", os.R_OK | os.W_OK):
        raise PortError(
            f"{endpoint}: no permission for /dev/vfio; run as root, or chown the card's /dev/vfio/GROUP to your user"
        )
    return numa_node(device)


def _how_to_bind(endpoint: Endpoint, device: Path, driver: str) -> str:
    """Why DPDK cannot drive the card now, and what to do."""
    state = f"is bound to the kernel's {driver} driver" if driver else "is bound to no driver"
    interfaces = sorted(path.name for pattern in ("net/*", "virtio*/net/*") for path in device.glob(pattern))
    as_it_is = " or ".join(f"af_packet:{name}" for name in interfaces)
    if routed := [name for name in interfaces if _is_routed(name)]:
        return (
            f"{endpoint}: the card {state}, and the machine's network goes through it ({', '.join(routed)} is up and "
            f"has a route): DPDK would take it away. Use {as_it_is}, or another card"
        )
    instead = f", or use {as_it_is} as it is" if interfaces else ""
    return (
        f"{endpoint}: the card {state}, and DPDK needs it bound to vfio-pci. As root: modprobe vfio-pci && "
        f"aiflow ports bind {endpoint.target} (the kernel loses the card until `aiflow ports unbind`){instead}"
    )


def _is_routed(name: str) -> bool:
    """Whether a route uses the interface, or a bridge, bond or VLAN on top of it."""
    above = {name, *(path.name.removeprefix("upper_") for path in Path(f"/sys/class/net/{name}").glob("upper_*"))}
    with contextlib.suppress(OSError):
        return any(line.split()[0] in above for line in ROUTES.read_text().splitlines()[1:] if line.strip())
    return False
