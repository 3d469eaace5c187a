"""Why a network card must stay with its driver, and why vfio does not open its IOMMU group. For binding and opening."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiflow._ports.interface_use import Network, why_in_use
from aiflow._ports.pci_device import BESIDE_VFIO, DPDK_DRIVERS, SHARED_WITH_KERNEL, PciDevice
from aiflow.errors import PortError

__all__ = ["why_group_is_shared", "why_kept"]

_STORAGE_CLASS = 0x01


def why_kept(device: PciDevice, network: Callable[[], Network]) -> str:
    """Why the host or a process needs a card as it is, and what the user can do; "" if neither does.

    Parameters
    ----------
    device : PciDevice
    network : callable
        Returns a snapshot of the network namespace.

    Raises
    ------
    PortError
        If the network cannot be read.
    """
    driver, interfaces = device.driver, device.interfaces
    if driver in DPDK_DRIVERS and (holders := device.holders()):
        return f"busy, in use by process {', '.join(holders)}. Close its ports first"
    if functions := device.virtual_functions:
        instead = "Remove them first" if driver in DPDK_DRIVERS else "Bind one of these, or remove them"
        return (
            f"{driver or 'the kernel'} has made virtual functions on it ({', '.join(functions)}), which would vanish. "
            f"{instead}: echo 0 > {device.path}/sriov_numvfs"
        )
    if driver in DPDK_DRIVERS:
        return ""
    if driver and driver not in BESIDE_VFIO and not interfaces:
        return (
            f"the kernel's {driver} drives it without an interface here. It may be in another network namespace, whose "
            "routes cannot be seen. Move it back: ip netns exec NAMESPACE ip link set dev IFNAME netns 1"
        )
    if not interfaces:
        return ""
    try:
        seen = network()
    except OSError as exc:
        raise PortError(
            f"{device.address}: the host's routes cannot be read ({exc.strerror}), and one may go over it; try again"
        ) from exc
    every = (why_in_use(name, device.sysfs.root / "class/net", seen) for name in interfaces)
    return next((why for why in every if why), "")


def why_group_is_shared(
    device: PciDevice, network: Callable[[], Network], planned: Mapping[str, str | None] | None = None
) -> str:
    """Why vfio would refuse the card's IOMMU group, and what the user can do; "" if it would not.

    Parameters
    ----------
    device : PciDevice
    network : callable
        As for `why_kept`.
    planned : mapping of str to str, optional
        Drivers that devices are about to get, by address.

    Raises
    ------
    PortError
        If the network cannot be read.
    """
    planned = planned or {}
    drivers = {other: planned.get(other.address) or other.driver for other in device.neighbours()}
    taken = [other for other, driver in drivers.items() if driver and driver not in BESIDE_VFIO]
    if not taken:
        return ""
    shared = (
        f"shares IOMMU group {device.group} with "
        f"{', '.join(f'{other.address} ({drivers[other]})' for other in taken)}, and vfio-pci needs the whole group. "
    )
    if stay := [f"{other.address}: {why}" for other in taken if (why := _why_neighbour_stays(other, network))]:
        return f"{shared}Put the card into another slot. {'. '.join(stay)}"
    cards = [other.address for other in taken if other.is_network_card]
    others = [other for other in taken if not other.is_network_card]  # which aiflow does not bind
    choice = "--driver vfio-pci " if any(drivers[other] in DPDK_DRIVERS for other in taken) else ""
    commands = [f"echo {other.address} > {device.sysfs.driver(other.driver)}/unbind" for other in others]
    if cards or planned:
        commands.append(f"aiflow ports bind {choice}{' '.join([device.address, *cards])}")
    if not others:
        return f"{shared}As root: {'; '.join(commands)}. Or put the card into another slot"
    return (
        f"{shared}Put the card into another slot. Or, only if the machine can do without "
        f"{' and '.join(other.address for other in others)} (USB may have the keyboard), as root: {'; '.join(commands)}"
    )


def _why_neighbour_stays(other: PciDevice, network: Callable[[], Network]) -> str:
    """Why a device of the same IOMMU group cannot be given away; "" if it can."""
    if other.pci_class == _STORAGE_CLASS:
        return "disks are behind it, and with its driver their file systems would go"
    if not other.is_network_card:
        return ""
    if other.driver in SHARED_WITH_KERNEL:
        return f"a card stays with {other.driver}, also while DPDK uses it"
    return why_kept(other, network)
