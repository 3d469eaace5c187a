"""Network cards on the PCI bus: which there are, and whether DPDK may drive them."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from aiflow import _build, _eal, _eal_args
from aiflow._eal_cards import locked_memory_advice, narrow_iommu_advice, no_iommu_advice
from aiflow._ports.interface_use import read_network
from aiflow._ports.pci_device import DPDK_DRIVERS, SHARED_WITH_KERNEL, UIO_DRIVERS, PciDevice, Sysfs
from aiflow._ports.pci_use import why_group_is_shared, why_kept
from aiflow._system import limits, threads
from aiflow._system.cpus import numa_node
from aiflow._system.descriptors import Descriptor, keep
from aiflow.config import Endpoint
from aiflow.errors import AiflowError, PortError

__all__ = ["claim_uio", "driver_of_card", "inspect_pci", "memory_mode", "network_cards"]

SYSFS = Sysfs()

_FREE_WITHIN = 0.5  # seconds: a process that has just ended may still hold its card, and an inspection holds it briefly
_CAP_IPC_LOCK = 14


def network_cards() -> list[str]:
    """PCI addresses of the network cards."""
    return [card.address for card in SYSFS.network_cards()]


def driver_of_card(address: str) -> str:
    """The kernel's driver that a PCI device is bound to; "" for none."""
    return SYSFS.device(address).driver


def memory_mode() -> str:
    """The EAL's memory mode in this process, now or after its start. Raises ConfigError or EalError.

    Before the start this takes hugepages for a moment: not while another process starts with them.
    """
    if mode := _eal.memory_mode():
        return mode
    with _eal_args.one_at_a_time():
        return _eal_args.choose("")[0]


def inspect_pci(endpoint: Endpoint, mode: Callable[[], str] = memory_mode) -> int:
    """Check that DPDK could drive a PCI device in this process; returns its NUMA node, or -1.

    Parameters
    ----------
    endpoint : Endpoint
    mode : callable, optional
        Returns what `memory_mode` does; one that remembers it is faster for several cards.

    Raises
    ------
    PortError
        If it is missing, is no network card, is bound to a driver that keeps it, or may not be opened. The message
        tells how to rebind it, unless the machine would lose its network.
    """
    device = SYSFS.device(endpoint.target)
    if not device.exists:
        address = endpoint.target.partition(":")[2]
        alike = " or ".join(sorted(f"pci:{path.name}" for path in (SYSFS.bus / "devices").glob(f"*:{address}")))
        instead = f"is {alike} meant? " if alike else ""
        raise PortError(
            f"{endpoint}: no such PCI device {endpoint.target}; {instead}lspci -D, or "
            "`aiflow ports`, lists them with their domain"
        )
    if device.pci_class >= 0 and not device.is_network_card:
        raise PortError(
            f"{endpoint}: not a network card (PCI class 0x{device.pci_class:02x}); the command `aiflow ports` lists "
            "the cards"
        )
    driver = device.driver
    if driver in SHARED_WITH_KERNEL:
        _check_shared(endpoint, device, mode)
    elif driver not in DPDK_DRIVERS:
        raise PortError(_how_to_bind(endpoint, device))
    elif driver in UIO_DRIVERS:
        _try_uio(endpoint, device)
        _check_memory(endpoint, device, mode)
    else:
        _try_group(endpoint, device)
        _check_memory(endpoint, device, mode)
    return numa_node(device.path)


def _check_shared(endpoint: Endpoint, device: PciDevice, mode: Callable[[], str]) -> None:
    """Raise PortError if DPDK cannot use a card that the kernel keeps: it lacks the driver, a file or the memory."""
    if not _build.has_driver(SHARED_WITH_KERNEL[device.driver]):
        raise PortError(
            f"{endpoint}: the card is the kernel's {device.driver}'s, beside which DPDK's {device.driver[:4]} driver "
            f"would use it, and the DPDK of this aiflow lacks that: build aiflow from source, with rdma-core"
            f"{_as_it_is(device)}"
        )
    files = device.verbs_files()
    if not files:
        raise PortError(
            f"{endpoint}: the card has no file /dev/infiniband/uverbs*. As root: modprobe -a {device.driver[:4]}_ib "
            f"ib_uverbs{_as_it_is(device)}"
        )
    for file in files:
        if not file.exists():
            raise PortError(f"{endpoint}: {file} is missing. In a container, pass the device to it (--device {file})")
        if not os.access(file, os.R_OK | os.W_OK):
            raise PortError(f"{endpoint}: no permission for {file}. As root: chmod 666 {file}")
    _check_lockable(endpoint, _mode(endpoint, mode))


# --------------------------------------------------------------------------------------------------------- vfio and uio


def _try_group(endpoint: Endpoint, device: PciDevice) -> None:
    """Raise PortError if the card's IOMMU group cannot be opened: DPDK's log has the fault, and no remedy."""
    if why := why_group_is_shared(device, read_network):
        raise PortError(f"{endpoint}: {why}")
    parent = SYSFS.device(device.physical_function)
    if device.physical_function and parent.driver == "vfio-pci":
        raise PortError(
            f"{endpoint}: needs a VF token, which aiflow does not have: it is a virtual function of {parent.address}, "
            f"which vfio-pci has, too. As root: echo 0 > {parent.path}/sriov_numvfs; aiflow ports unbind "
            f"{parent.address}; then make the functions again, with the kernel's driver"
        )
    file = device.group_file
    if file is None:
        raise PortError(f"{endpoint}: the card is in no IOMMU group; bind it to vfio-pci again")
    _try_container(endpoint, file)
    fault = _fault_of_opening(file)
    if fault is not None and fault.errno == errno.EBUSY:
        if any(map(_is_own, device.holders())):  # for another card of the group: DPDK opens a group once
            return
        fault = _fault_of_opening(file, within=_FREE_WITHIN)
    if fault is not None and fault.errno == errno.EBUSY:
        holders = device.holders()
        if not any(map(_is_own, holders)):
            users = " and ".join(f"process {holder}" for holder in holders) or "another process"
            raise PortError(f"{endpoint}: busy, {users} has {file} open; end that one, or take another card")
    elif fault is not None and fault.errno in (errno.EACCES, errno.EPERM):
        if os.geteuid() == 0:
            more = "" if device.group else " --cap-add SYS_RAWIO"
            raise PortError(
                f"{endpoint}: no permission for {file}, though this is root. In a container, pass the device to it "
                f"(--device {file}{more}). A rootless one needs it to be its user's (chown, on the host)"
            )
        if not device.group:  # the kernel asks for CAP_SYS_RAWIO
            raise PortError(f"{endpoint}: no permission for {file}: vfio without an IOMMU needs root and hugepages")
        raise PortError(
            f"{endpoint}: no permission for {file}; run as root, or give it to your user (as root: chown "
            f"{os.geteuid()} {file}), and raise ulimit -l, since the card's memory is locked"
        )
    elif fault is not None:
        raise PortError(
            f"{endpoint}: {file}: {fault.strerror}. In a container, pass the device to it (--device {file}). Elsewhere "
            "bind the card to vfio-pci again"
        )


def _try_container(endpoint: Endpoint, group_file: Path) -> None:
    """Raise PortError if /dev/vfio/vfio, which every process of vfio opens, cannot be opened."""
    file = SYSFS.dev / "vfio" / "vfio"
    fault = _fault_of_opening(file)
    if fault is not None:
        raise PortError(
            f"{endpoint}: {file}: {fault.strerror}; as root: modprobe vfio-pci && chmod 666 {file}. In a container, "
            f"pass the devices to it (--device {file} --device {group_file})"
        )
    if _eal.started() and not _eal.vfio_is_ready():
        raise PortError(
            f"{endpoint}: vfio was not there yet when this process started DPDK (vfio-pci was not loaded, or {file} "
            "could not be opened): start the process again"
        )


def _fault_of_opening(file: Path, within: float = 0.0) -> OSError | None:
    """Open a file of vfio for a moment. A busy one is tried again for half a second."""
    deadline = time.monotonic() + within
    while True:
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
            return None
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() >= deadline:
                return exc
        threads.unpatched("time").sleep(0.02)


def _is_own(holder: str) -> bool:
    return holder.partition(" ")[0] == str(os.getpid())


def _try_uio(endpoint: Endpoint, device: PciDevice) -> None:
    """Raise PortError if a card of uio cannot be opened.

    Its file is not opened: closing it would take the bus from the card of another process (uio_pci_generic's release).
    """
    files = [Path(file) for file in device.device_files() if Path(file).name.startswith("uio")]
    for file in (*files, device.path / "config"):
        if os.access(file, os.R_OK | os.W_OK):
            continue
        if os.geteuid() == 0 or not file.exists():
            what = "cannot be written, though this is root" if file.exists() else "is missing"
            raise PortError(
                f"{endpoint}: {file} {what}: a container needs --privileged, and hugepages, for {device.driver}"
            )
        raise PortError(f"{endpoint}: no permission for {file}: {device.driver} needs root and hugepages")
    claim = claim_uio(endpoint)
    if claim is not None:
        claim.close()


def _check_memory(endpoint: Endpoint, device: PciDevice, mode_of_memory: Callable[[], str]) -> None:
    """Raise PortError if the kernel would not give the card this process's memory."""
    mode = _mode(endpoint, mode_of_memory)
    isolated = device.group and device.driver not in UIO_DRIVERS
    narrow = _eal_args.is_narrow(device.path / "iommu")
    # while that mode is on, DPDK asks for physical addresses for every card of vfio (pci_device_iova_mode)
    if not isolated or narrow or SYSFS.vfio_is_unsafe:
        at_start = _eal_args.uses_physical_addresses(mode)
        physical = _eal.uses_physical_addresses() if _eal.started() else at_start
        if not physical and at_start:
            raise PortError(
                f"{endpoint}: the card needs physical addresses, and DPDK started without them, mostly as the card was "
                "not bound yet: start the process again"
            )
        if not physical and isolated and not narrow:
            raise PortError(
                f"{endpoint}: vfio's unsafe no-IOMMU mode is on, and DPDK then takes the card for one without IOMMU, "
                f"which it has. As root, unless another card needs that mode: echo 0 > {SYSFS.unsafe_vfio}"
            )
        if not physical:
            raise PortError(f"{endpoint}: {narrow_iommu_advice() if isolated else no_iommu_advice()}")
    if isolated:
        _check_lockable(endpoint, mode)


def _mode(endpoint: Endpoint, mode: Callable[[], str]) -> str:
    try:
        return mode()
    except AiflowError as exc:
        raise PortError(f"{endpoint}: {exc}") from exc


def _check_lockable(endpoint: Endpoint, mode: str) -> None:
    """Raise PortError if this process may not lock DPDK's heap, as an IOMMU or RDMA does."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and limit < _eal_args.heap_bytes(mode) and not limits.may(_CAP_IPC_LOCK):
        raise PortError(f"{endpoint}: {locked_memory_advice(mode)}. It is {limit >> 10} KiB now")


def claim_uio(endpoint: Endpoint) -> Descriptor | None:
    """Lock a card that uio drives, until the Descriptor is closed: the kernel lets two processes open it at once.

    Returns
    -------
    Descriptor or None
        None for a card of another driver.

    Raises
    ------
    PortError
        If another process has it, or it cannot be locked.
    """
    device = SYSFS.device(endpoint.target)
    if device.driver not in UIO_DRIVERS:
        return None
    path = device.path / "config"
    try:
        claim = keep(lambda: Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
    except OSError as exc:
        raise PortError(f"{endpoint}: {path}: {exc.strerror}; bind the card again, or take another one") from exc
    deadline = time.monotonic() + _FREE_WITHIN
    try:
        while not _lock(endpoint, claim) or device.holders():
            if time.monotonic() > deadline:
                users = " and ".join(f"process {holder}" for holder in device.holders()) or "another aiflow process"
                raise PortError(f"{endpoint}: busy, {users} uses it; end that one, or take another card")
            threads.unpatched("time").sleep(0.05)
    except BaseException:
        claim.close()
        raise
    return claim


def _lock(endpoint: Endpoint, claim: Descriptor) -> bool:
    """Whether no other aiflow process has the card locked."""
    try:
        fcntl.flock(claim.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise PortError(f"{endpoint}: the card cannot be locked ({exc.strerror}); try again") from exc
    return True


def _how_to_bind(endpoint: Endpoint, device: PciDevice) -> str:
    """Why DPDK cannot drive the card now, and what to do."""
    driver = device.driver
    state = f"is bound to the kernel's {driver} driver" if driver else "is bound to no driver"
    if why := why_kept(device, read_network):
        return f"{endpoint}: the card {state}. DPDK would take it away, and {why}"
    module = device.driver_to_bind
    why = "" if device.group else ", as no IOMMU isolates it"
    return (
        f"{endpoint}: the card {state}, and DPDK needs it bound to {module}{why}. As root: modprobe {module} && "
        f"aiflow ports bind {endpoint.target} (the kernel loses the card until `aiflow ports unbind`)"
        f"{_as_it_is(device)}"
    )


def _as_it_is(device: PciDevice) -> str:
    """What else can be used of a card that the kernel has."""
    names = " or ".join(f"af_packet:{name}" for name in device.interfaces)
    return f", or use {names} as it is" if names else ""
