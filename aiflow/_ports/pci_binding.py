"""Bind network cards to a driver of DPDK, and give them back to the kernel.

The kernel's interface is described in its Documentation/ABI/testing/sysfs-bus-pci: ``driver_override`` names the only
driver that may take a device, and a write to ``drivers_probe`` offers the device to it. Both survive this process, and
end with a restart of the machine. So does the record of the former driver, in /run.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiflow._ports.interface_use import Network, read_network
from aiflow._ports.pci_device import DPDK_DRIVERS, SHARED_WITH_KERNEL, PciDevice, Sysfs
from aiflow._ports.pci_use import why_group_is_shared, why_kept
from aiflow._system.descriptors import Descriptor
from aiflow._system.filelock import lock, write_owner
from aiflow.config import parse_endpoint
from aiflow.errors import ConfigError, PortError

__all__ = ["BINDABLE", "RECORDS", "Change", "PciBinding", "Write"]

BINDABLE = ("vfio-pci", "uio_pci_generic")
"""Drivers that a card can be bound to."""

RECORDS = Path("/run/aiflow-pci")
"""Directory with a file for each bound card: the driver it had before."""

_LOOK = "dmesg | tail shows the kernel's reason"


@dataclass(frozen=True)
class Write:
    """One write to a file of the kernel.

    Attributes
    ----------
    path : Path
    text : str
        A line feed clears a ``driver_override``.
    """

    path: Path
    text: str

    def __str__(self) -> str:
        """As a shell's command."""
        return f"{f'echo {self.text}'.strip()} > {shlex.quote(str(self.path))}"


@dataclass(frozen=True)
class Change:
    """A planned change of one card's driver.

    Attributes
    ----------
    address : str
    before : str
        The driver now; "" if there is none.
    after : str or None
        The driver that it will have. None: one that the kernel chooses.
    writes : tuple of Write
        In this order. Empty: nothing is to be done, but a record that was left over is removed.
    notes : tuple of str
        Facts that the user should know.
    former : str or None
        The kernel's driver that `PciBinding.unbind` restores; "": none, None: unknown.
    former_override : str
        The ``driver_override`` that it restores.
    binds : bool
        Whether the card is bound for DPDK, or given back.
    """

    address: str
    before: str
    after: str | None
    writes: tuple[Write, ...] = ()
    notes: tuple[str, ...] = ()
    former: str | None = None
    former_override: str = ""
    binds: bool = True


class PciBinding:
    """Plans changes of drivers, and carries them out.

    Parameters
    ----------
    sysfs : Sysfs, optional
    records : Path, optional
        Directory of the records; created on demand.
    network : callable, optional
        Returns a snapshot of the network, for the routes over a card.
    """

    def __init__(
        self, sysfs: Sysfs | None = None, records: Path = RECORDS, network: Callable[[], Network] = read_network
    ) -> None:
        self.sysfs = sysfs or Sysfs()
        self.records = records
        self.network = network

    # ---------------------------------------------------------------------------------------------------------- plans

    def plan_bind(self, addresses: Sequence[str], driver: str = "") -> list[Change]:
        """Plan to bind cards for DPDK. Nothing is written.

        Parameters
        ----------
        addresses : sequence of str
            PCI addresses; the domain 0000 may be left out.
        driver : str, optional
            One of `BINDABLE`. Default: vfio-pci, or uio_pci_generic for a card without an IOMMU.

        Raises
        ------
        ConfigError
            If an address has another form.
        PortError
            If a card must not, or cannot, be bound. The message says why and what to do.
        """
        devices = self._devices(addresses)
        changes = [self._plan_bind(device, driver) for device in devices]
        planned = {change.address: change.after for change in changes}
        for device, change in zip(devices, changes, strict=True):
            to_vfio = change.writes and change.after == "vfio-pci"
            if to_vfio and (why := why_group_is_shared(device, self.network, planned)):
                raise PortError(f"{device.address}: {why}")
        return changes

    def plan_unbind(self, addresses: Sequence[str]) -> list[Change]:
        """Plan to give cards back to the kernel. Nothing is written. See `plan_bind`."""
        return [self._plan_unbind(device) for device in self._devices(addresses)]

    def _devices(self, addresses: Sequence[str]) -> list[PciDevice]:
        return [self._device(address) for address in dict.fromkeys(map(self._normal, addresses))]

    def _normal(self, address: str) -> str:
        for card in self.sysfs.network_cards():
            if address in card.interfaces:
                raise ConfigError(f"{address} is the interface of the card {card.address}: give that address")
        try:
            return parse_endpoint(f"pci:{address.removeprefix('pci:')}").target
        except ConfigError:
            raise ConfigError(f"{address!r} is no PCI address such as 0000:3b:00.0. {self._known(address)}") from None

    def _device(self, address: str) -> PciDevice:
        device = self.sysfs.device(address)
        if not device.exists:
            raise PortError(f"{address}: no such PCI device. {self._known(address)}")
        if not device.is_network_card:
            what = f"PCI class 0x{device.pci_class:02x}" if device.pci_class >= 0 else "its class cannot be read"
            raise PortError(f"{address}: no network card ({what}). {self._known(address)}")
        return device

    def _known(self, address: str) -> str:
        """Cards with a similar address, or all."""
        cards = [card.address for card in self.sysfs.network_cards()]
        same_slot = [card for card in cards if card.partition(":")[2] == address.partition(":")[2]]
        near = same_slot or difflib.get_close_matches(address, cards, cutoff=0.7)
        if near:
            return f"Similar addresses of network cards: {', '.join(near)}"
        return f"The network cards are {', '.join(cards)}" if cards else "There is no network card on the PCI bus"

    def _plan_bind(self, device: PciDevice, asked: str) -> Change:
        address, before = device.address, device.driver
        if before in DPDK_DRIVERS and asked in ("", before):
            return Change(address, before, before, notes=(f"it is bound to {before} already",))
        if before in SHARED_WITH_KERNEL:
            if asked:
                raise PortError(
                    f"{address}: DPDK drives this card together with the kernel's {before}, not over {asked}. "
                    f"Leave it as it is, and use pci:{address}"
                )
            return Change(
                address, before, before, notes=(f"DPDK shares it with the kernel's {before}: no need to bind",)
            )
        self._check_free(device)
        driver, notes = self._choose(device, asked)
        self._check_loaded(address, driver)
        if device.physical_function:
            notes.append(f"it is a virtual function of {device.physical_function}")
        # a card without a driver may be one that a bind or unbind left half-way: its record still holds
        record = self._recall(device) if not before or before in DPDK_DRIVERS else None
        former = record["driver"] if record else None if before in DPDK_DRIVERS else before
        former_override = record["override"] if record else "" if device.override in DPDK_DRIVERS else device.override
        writes = [Write(device.path / "driver_override", driver)]
        if before:
            writes.append(self._unbind_write(device))
        writes.append(Write(self.sysfs.bus / "drivers_probe", address))
        return Change(address, before, driver, tuple(writes), tuple(notes), former, former_override)

    def _choose(self, device: PciDevice, asked: str) -> tuple[str, list[str]]:
        """A driver, and what the user should know of it."""
        address = device.address
        if device.group:
            if asked == "uio_pci_generic":
                note = "it has an IOMMU: vfio-pci would isolate it; uio_pci_generic needs root, hugepages and iommu=pt"
                return asked, [note]
            return "vfio-pci", []
        without = "no IOMMU isolates it"
        if asked == "vfio-pci" and not self.sysfs.vfio_is_unsafe:
            raise PortError(
                f"{address}: {without}, so vfio-pci cannot take it. Turn the IOMMU on (VT-d or AMD-Vi in the firmware, "
                "intel_iommu=on on the kernel's command line), or use --driver uio_pci_generic, or, as root: "
                f"echo 1 > {self.sysfs.unsafe_vfio}"
            )
        if (asked or device.driver_to_bind) == "vfio-pci":
            return "vfio-pci", [f"{without}: vfio-pci runs in its unsafe no-IOMMU mode, for root with hugepages"]
        return "uio_pci_generic", [f"{without}: uio_pci_generic instead of vfio-pci, for root with hugepages"]

    def _check_loaded(self, address: str, driver: str) -> None:
        if not self.sysfs.driver(driver).is_dir():
            raise PortError(f"{address}: the kernel's driver {driver} is not loaded. As root: modprobe {driver}")

    def _check_free(self, device: PciDevice) -> None:
        """Raises PortError while the host or a process uses the card."""
        if why := why_kept(device, self.network):
            raise PortError(f"{device.address}: {why}")

    def _plan_unbind(self, device: PciDevice) -> Change:
        address, before, override = device.address, device.driver, device.override
        clear = Write(device.path / "driver_override", "\n")
        if before and before not in DPDK_DRIVERS:
            left_over = (clear,) if override in DPDK_DRIVERS else ()
            return Change(address, before, before, left_over, (f"it is bound to {before}, not for DPDK",), binds=False)
        record = self._recall(device)
        former: str | None = record["driver"] if record else None
        restored = record["override"] if record else "" if override in DPDK_DRIVERS else override
        writes = []
        if override != restored:
            writes.append(Write(clear.path, restored) if restored else clear)
        self._check_free(device)
        if before:
            writes.append(self._unbind_write(device))
        if former:
            if not self.sysfs.driver(former).is_dir():
                raise PortError(f"{address}: its former driver {former} is not loaded. As root: modprobe {former}")
            writes.append(Write(self.sysfs.driver(former) / "bind", address))
        elif former is None:
            writes.append(Write(self.sysfs.bus / "drivers_probe", address))
        notes = ("its former driver is not known: the kernel chooses one",) if former is None else ()
        return Change(address, before, former, tuple(writes), notes, former, restored, binds=False)

    def _unbind_write(self, device: PciDevice) -> Write:
        return Write(self.sysfs.driver(device.driver) / "unbind", device.address)

    # -------------------------------------------------------------------------------------------------------- changes

    def carry_out(self, change: Change) -> str:
        """Carry a plan out; a bind that fails or is interrupted is undone.

        Returns
        -------
        str
            The driver that the card has now; "" if none.

        Raises
        ------
        PortError
            If this process may not do it, the card has changed meanwhile, or a driver does not take it.
        """
        device = self.sysfs.device(change.address)
        if change.writes:
            self._check_rights()
        elif change.binds or not os.access(self._record(change.address), os.W_OK):
            return change.before
        with self._locked():
            if device.driver != change.before:
                raise PortError(
                    f"{change.address}: its driver was {change.before or 'none'} and is {device.driver or 'none'} now. "
                    "Another program changes it; repeat the command"
                )
            if change.after != change.before:
                self._check_free(device)  # again: a route may have come
            if change.binds:
                self._bind(device, change)
            else:
                self._unbind(device, change)
        return device.driver

    def _bind(self, device: PciDevice, change: Change) -> None:
        self._remember(device, change)
        try:
            self._write_all(device, change)
        except BaseException as exc:
            with _interrupts_dropped():
                undone = self._undo(device, change)
            raise _with_end(exc, undone) from exc.__cause__

    def _unbind(self, device: PciDevice, change: Change) -> None:
        try:
            self._write_all(device, change)
        except BaseException as exc:
            if change.before and device.exists and not device.driver:
                repeat = f"aiflow ports unbind {change.address}"
                raise _with_end(exc, f"The card has no driver now; repeat the command: {repeat}") from exc.__cause__
            raise
        if not device.driver and change.after is None:  # the kernel reports no error if it knows no driver
            probe = Write(self.sysfs.bus / "drivers_probe", change.address)
            raise PortError(f"{change.address}: no driver took the card: modprobe its driver, then {probe}")
        if change.after is None and (took := device.driver) in DPDK_DRIVERS:  # by its parameter ids=, or its new_id
            unbind = Write(self.sysfs.driver(took) / "unbind", change.address)
            raise PortError(
                f"{change.address}: {took} took the card again, as it is told to take such cards (by its parameter "
                f"ids=). Take that out, or, as root: {unbind}; echo {change.address} > "
                f"{self.sysfs.bus}/drivers/DRIVER/bind, with its former DRIVER"
            )
        self._record(device.address).unlink(missing_ok=True)

    def _write_all(self, device: PciDevice, change: Change) -> None:
        for write in change.writes:
            try:
                self.sysfs.write(write.path, write.text)
            except OSError as exc:
                self._check_there(device)
                raise PortError(f"{change.address}: `{write}` failed ({exc.strerror}); {_LOOK}") from exc
        self._check_there(device)
        if change.after is not None and device.driver != change.after:
            raise PortError(f"{change.address}: {change.after or 'no driver'} did not take the card; {_LOOK}")

    def _check_there(self, device: PciDevice) -> None:
        if not device.exists:
            raise PortError(f"{device.address}: the card has disappeared from the PCI bus; {_LOOK}")

    def _undo(self, device: PciDevice, change: Change) -> str:
        """Restore the driver from before a bind that failed; returns a sentence on the result."""
        if not device.exists:
            self._record(device.address).unlink(missing_ok=True)
            return "There is nothing to restore"
        writes = [Write(device.path / "driver_override", change.former_override or "\n")]
        if change.before in DPDK_DRIVERS:
            writes = [Write(device.path / "driver_override", change.before)]
        if device.driver != change.before:
            if device.driver:
                writes.append(self._unbind_write(device))
            if change.before:
                writes.append(Write(self.sysfs.driver(change.before) / "bind", change.address))
        failed = []
        for write in writes:
            try:
                self.sysfs.write(write.path, write.text)
            except OSError as exc:
                failed.append(f"`{write}` ({exc.strerror})")
        if failed or device.driver != change.before:
            how = " and ".join(failed) or "without an error of the kernel"
            return f"It could not be restored: {how}. As root: {'; '.join(map(str, writes))}"
        if change.former == change.before:  # otherwise `unbind` still needs the record
            self._record(device.address).unlink(missing_ok=True)
        return f"It is bound to {change.before} again" if change.before else "It is bound to no driver, as before"

    def _check_rights(self) -> None:
        if os.access(self.sysfs.bus / "drivers_probe", os.W_OK):
            return
        if os.geteuid() != 0:
            raise PortError(
                "only root may change the driver of a card: sudo $(command -v aiflow) ports …; --dry-run shows what it "
                "would write"
            )
        raise PortError(
            f"{self.sysfs.root} is mounted read-only here, as in containers: run the command on the host, or in a "
            "container with --privileged"
        )

    # -------------------------------------------------------------------------------------------------------- records

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time."""
        held: Descriptor | None = None
        try:
            while held is None:
                self.records.mkdir(parents=True, exist_ok=True)
                held = lock(self.records / "lock")
            write_owner(held.fd)
        except BlockingIOError as exc:
            raise PortError(f"another command changes drivers now ({exc.strerror}); repeat this one") from exc
        except OSError as exc:
            raise PortError(
                f"{self.records}: {exc.strerror}; the former driver is noted there before a change"
            ) from exc
        try:
            yield
        finally:
            held.close()

    def _record(self, address: str) -> Path:
        return self.records / f"{address}.json"

    def _remember(self, device: PciDevice, change: Change) -> None:
        """Note the former driver, before the first write: the note must survive whatever comes."""
        note = {"identity": device.identity, "driver": change.former, "override": change.former_override}
        path = self._record(device.address)
        whole = path.with_suffix(".new")
        try:
            whole.write_text(json.dumps(note) + "\n")
            whole.replace(path)
        except OSError as exc:
            raise PortError(f"{path}: {exc.strerror}; the former driver must be noted before a change") from exc

    def _recall(self, device: PciDevice) -> dict[str, Any] | None:
        """What was noted of this card; None if nothing, or if another card had its address."""
        try:
            note = json.loads(self._record(device.address).read_text())
            known = isinstance(note["driver"], str | None) and isinstance(note["override"], str)
            return note if known and note["identity"] == device.identity else None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            if isinstance(exc, OSError) and exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise PortError(
                    f"{self._record(device.address)}: {exc.strerror}; the former driver is noted there"
                ) from exc
            return None


def _with_end(exc: BaseException, state: str) -> BaseException:
    """The fault that stopped a change, with the state of the card, a sentence: for an interrupt, as a note."""
    if isinstance(exc, PortError):
        return PortError(f"{exc}. {state}")
    exc.add_note(state)
    return exc


@contextlib.contextmanager
def _interrupts_dropped() -> Iterator[None]:
    """Ignore Ctrl-C and its like in the body: the command ends afterwards anyway."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # in which Python raises KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
