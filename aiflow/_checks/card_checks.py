"""Network cards: the IOMMU and vfio, the driver each card is bound to, and the right to use it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from aiflow._checks.boot_option import boot_option
from aiflow._checks.finding import Finding, better, broken, ok
from aiflow._checks.host import CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, Host, started_with
from aiflow._ports.pci_device import DPDK_DRIVER_OF, DPDK_DRIVERS, PciDevice
from aiflow.errors import PortError

__all__ = ["cards", "iommu", "rights"]

_WITH_RIGHTS = (
    'sudo setpriv --reuid "$(id -u)" --regid "$(id -g)" --init-groups '
    "--inh-caps=+net_raw,+net_admin --ambient-caps=+net_raw,+net_admin bash"
)
_FOR_INTERFACES = {"NET_RAW": CAP_NET_RAW, "NET_ADMIN": CAP_NET_ADMIN}
_MODULES = "/lib/modules"
_CAN_BE_MENDED = ("modprobe", "IOMMU group", "virtual functions")
"""Words of the reasons for which an idle card cannot be bound now."""

_NOIOMMU = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def rights(host: Host) -> Iterator[Finding]:
    """The capabilities of this process; local endpoints need none."""
    denied = [name for name, capability in _FOR_INTERFACES.items() if host.is_denied(capability)]
    if denied:
        text = f"this container has no {' and no '.join(f'CAP_{name}' for name in denied)}, which af_packet: uses; "
        text += "local: needs no right"
        options = " ".join(["--user 0", *(f"--cap-add {name}" for name in denied)])
        yield better(f"{text}{started_with(options, 'runAsUser: 0 and these capabilities in its securityContext')}")
    elif not host.may(CAP_NET_RAW):
        text = "no CAP_NET_RAW, which af_packet: needs; local: needs no right. The command starts a shell that has it"
        yield better(text, _WITH_RIGHTS)
    elif not host.may(CAP_NET_ADMIN):
        text = "CAP_NET_RAW, but no CAP_NET_ADMIN: buffers of af_packet: stay below net.core.wmem_max"
        yield better(text, _WITH_RIGHTS)
    elif "net_af_xdp" not in host.build["drivers"]:
        yield ok("local: and af_packet: can be used. af_xdp: needs a build from source: this DPDK lacks its driver")
    elif not (host.may(CAP_BPF) or host.may(CAP_SYS_ADMIN)):
        yield ok("CAP_NET_RAW and CAP_NET_ADMIN: local: and af_packet: can be used. af_xdp: needs root")
    else:
        yield ok("local:, af_packet: and af_xdp: can be used")


def iommu(host: Host) -> Iterator[Finding]:
    """The IOMMU, which isolates a card of this user, and the kernel's vfio-pci."""
    if not host.cards_for_vfio():
        yield ok("not needed: no network card on the PCI bus that this DPDK is known to drive")
        return
    if not host.sysfs.driver("vfio-pci").is_dir():
        command = _load_vfio(host)
        where = "" if command else f". {_MODULES} has none of this kernel: load it on the host, outside the container"
        text = f"the kernel's vfio-pci is not loaded: no card can be bound to it{where}"
        yield better(text, command, as_root=bool(command))
    groups = host.path("/sys/kernel/iommu_groups")
    isolated = groups.is_dir() and any(groups.iterdir())
    unsafe = host.read(_NOIOMMU) == "Y"
    if not isolated:
        # AMD's is on by default, so the firmware is the first place to look; Intel's often waits for the option
        vendor = "intel_iommu=on " if "GenuineIntel" in host.read("/proc/cpuinfo") else ""
        first = f"{'VT-d' if vendor else 'AMD-Vi or SMMU'} in the firmware"
        if host.is_virtual:
            first = "a virtual IOMMU of this machine on its host, if it offers one"
        option = "" if vendor and vendor.strip() in host.read("/proc/cmdline") else vendor
        command, how = boot_option(host, f"{option}iommu=pt") if option else ("", "")
        text = f"none is on: pci: needs root and hugepages, and a card can write to all memory. Turn on {first}"
        yield better(f"{text}. {how}" if how else text, command, as_root=bool(command))
    elif unsafe:
        text, command = "vfio runs in its unsafe no-IOMMU mode, although there is one", f"echo 0 > {_NOIOMMU}"
        if host.is_kept(_NOIOMMU):
            yield better(f"{text}. On the container's host, as root: {command}")
        else:
            yield better(text, command, as_root=True)
    elif host.sysfs.driver("vfio-pci").is_dir():
        yield ok(f"{len(list(groups.iterdir()))} groups, and vfio-pci is loaded")


def cards(host: Host) -> Iterator[Finding]:
    """The driver of each network card, and whether this user may open it."""
    found = host.cards()
    if not found:
        text = "no network card on the PCI bus: there is nothing to bind. Endpoints are local: and the interfaces below"
        yield better(text, "aiflow ports")
    for card in found:
        yield _bound(host, card) if card.driver in DPDK_DRIVERS else _kernel_s(host, card)
    yield from _left_records(host)


def _bound(host: Host, card: PciDevice) -> Finding:
    """A card that is bound for DPDK."""
    name = f"pci:{card.address}"
    if holders := card.holders():
        return ok(f"{name} is in use by process {', '.join(holders)}")
    if card.driver != "vfio-pci":
        if host.uid:
            again = f"aiflow ports unbind {card.address} && aiflow ports bind --driver vfio-pci {card.address}"
            return broken(f"{name} is bound to {card.driver}: only root can use it", again, as_root=True)
        return ok(f"{name} is bound to {card.driver}; it needs root and hugepages")
    file = next((file for file in card.device_files() if "devices" not in file), "")
    if not file or not host.path(file).exists():
        text = f"{name} is bound to vfio-pci, but {file or '/dev/vfio'} is missing"
        if host.in_container:  # sysfs shows each card of its host
            option = f"--device /dev/vfio/vfio --device {file or '/dev/vfio/GROUP'}"
            return ok(f"{text}: another program's card, or one that needs {option} of the container's engine")
        return broken(text, "modprobe vfio-pci", as_root=True)
    if not host.may_use(file):
        text = f"{name} is bound to vfio-pci, but this user may not open {file}"
        return broken(text, f"chown {host.uid} {file}", as_root=True)
    return ok(f"{name} is bound to vfio-pci, and this user may open {file}")


def _kernel_s(host: Host, card: PciDevice) -> Finding:
    """A card of the kernel's."""
    who = f"{card.address} ({', '.join(card.interfaces) or 'no interface'}, {card.driver or 'no driver'})"
    driver = DPDK_DRIVER_OF.get(card.driver)
    try:
        (change,) = host.binding.plan_bind([card.address])
    except (PortError, OSError) as exc:
        why = str(exc).removeprefix(f"{card.address}: ")
        if driver not in host.build["drivers"] and any(words in why for words in _CAN_BE_MENDED):
            return _not_driven(who, driver)
        if "modprobe" in why:
            command = _load_vfio(host)
            text = f"{who} is not bound for DPDK: {why.partition('. As root')[0]}"
            return better(text, command, as_root=bool(command))
        if any(words in why for words in _CAN_BE_MENDED):
            return better(f"{who} cannot be bound for DPDK: {why}")
        return ok(f"{who} stays with the kernel: {why}", "aiflow ports")
    if not change.writes:
        return ok(f"{who}: {'; '.join(change.notes)}")
    if driver not in host.build["drivers"]:
        return _not_driven(who, driver)
    if host.in_container and (not card.interfaces or host.is_kept("/sys/bus/pci/drivers_probe")):
        # sysfs shows each card of the container's host, but neither its interface nor its routes
        return ok(f"{who} is not bound for DPDK. Look at it on the container's host: aiflow doctor")
    text = f"{who} is not bound for DPDK, and the host does not use it: as pci:{card.address} it is faster"
    return better(text, f"aiflow ports bind {card.address}", as_root=True)


def _not_driven(who: str, driver: str | None) -> Finding:
    """A card that the host does not use, and that this DPDK may not drive."""
    if driver is not None:
        return ok(f"{who} stays with the kernel: this DPDK lacks its driver {driver}")
    return ok(f"{who} is not used by the host. It can be bound for DPDK if DPDK has a driver for it")


def _left_records(host: Host) -> Iterator[Finding]:
    """Records of `aiflow ports bind` whose card is gone, or is the kernel's again."""
    for path in sorted(host.binding.records.glob("*.json")):
        card = host.sysfs.device(path.stem)
        if card.driver in DPDK_DRIVERS:
            continue
        state = "is bound for DPDK no more" if card.exists else "is not on the bus"
        text = f"{host.shown(path)} remembers a card that {state}"
        if card.exists and card.override in DPDK_DRIVERS:
            yield better(f"{text}, and that no other driver may take", f"aiflow ports unbind {path.stem}", as_root=True)
        else:
            with contextlib.suppress(OSError):
                os.stat(path)
                yield better(text, f"rm {host.shown(path)}", as_root=True)


def _load_vfio(host: Host) -> str:
    """The command that loads vfio-pci; "" where the kernel's modules are not, as in a container."""
    release = host.read("/proc/sys/kernel/osrelease")
    return "modprobe vfio-pci" if release and host.path(f"{_MODULES}/{release}").is_dir() else ""
