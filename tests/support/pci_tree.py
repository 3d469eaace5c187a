"""A made-up sysfs with PCI cards: plain files and links, which change as the kernel would change them on a write."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from aiflow._ports.interface_use import Network, Route
from aiflow._ports.pci_binding import PciBinding
from aiflow._ports.pci_device import Sysfs


class PciTree(Sysfs):
    """A sysfs below a directory. `write` also does what the kernel does on such a write (drivers/base/bus.c).

    Attributes
    ----------
    written : list of str
        Each write, as "path text", with the path below the bus.
    refusing : set of str
        Drivers whose probe fails.
    before_write : callable
        Called before each write with its number, from 1 on.
    """

    def __init__(self, directory: Path, *drivers: str) -> None:
        super().__init__(directory / "sys", directory / "proc", directory / "dev")
        self.written: list[str] = []
        self.nb_writes = 0  # attempts
        self.refusing: set[str] = set()
        self.native: dict[str, str] = {}
        self.names: dict[str, list[str]] = {}
        self.numbers: dict[str, int] = {}
        self.before_write: Callable[[int], None] = lambda _: None
        (self.bus / "devices").mkdir(parents=True)
        (self.bus / "drivers_probe").touch()
        self.proc.mkdir()
        for driver in drivers:
            self.load(driver)

    def load(self, driver: str) -> None:
        """Load a driver's module."""
        self.driver(driver).mkdir(parents=True)
        for name in ("bind", "unbind"):
            (self.driver(driver) / name).touch()

    def add(
        self, address: str, driver: str = "", *interfaces: str, group: str = "", pci_class: str = "0x020000"
    ) -> Path:
        """Add a device that `driver` takes by itself, with interfaces that are down."""
        path = self.bus / "devices" / address
        path.mkdir()
        (path / "class").write_text(f"{pci_class}\n")
        (path / "vendor").write_text("0x8086\n")
        (path / "device").write_text("0x10c9\n")
        (path / "driver_override").write_text("(null)\n")
        (path / "config").write_bytes(bytes(64))
        self.native[address], self.names[address] = driver, list(interfaces)
        if group:
            members = self.root / "kernel/iommu_groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(path)
            (path / "iommu_group").symlink_to(members.parent)
        if driver:
            self._take(address, driver)
        return path

    def interface(self, name: str, *upper: str, number: int = 0, up: bool = False) -> int:
        """Add an interface, below others; returns its number."""
        path = self.root / "class/net" / name
        path.mkdir(parents=True, exist_ok=True)
        self.numbers[name] = number or self.numbers.get(name) or len(self.numbers) + 101
        (path / "ifindex").write_text(f"{self.numbers[name]}\n")
        (path / "flags").write_text("0x1003\n" if up else "0x1002\n")
        for other in upper:
            (path / f"upper_{other}").mkdir()
        return self.numbers[name]

    def hold(self, pid: int, comm: str, file: str) -> None:
        """Add a process that has a file open; without a slash at its begin, one below /dev."""
        (self.proc / str(pid) / "fd").mkdir(parents=True)
        (self.proc / str(pid) / "comm").write_text(f"{comm}\n")
        (self.proc / str(pid) / "fd/3").symlink_to(self.dev / file if not file.startswith("/") else file)

    def network(self, *routes: tuple[str, str], **addresses: str) -> Network:
        """The network with routes, as (interface, text), and an address for interfaces."""
        return Network(
            dict(self.numbers),
            {self.numbers[name]: [text] for name, text in addresses.items()},
            [Route(self.numbers[name], text) for name, text in routes],
        )

    def write(self, path: Path, text: str) -> None:
        """Write, and change the tree."""
        self.nb_writes += 1
        self.before_write(self.nb_writes)
        self.written.append(f"{path.relative_to(self.bus)} {text.strip()}".strip())
        super().write(path, text)
        if path.name == "driver_override":
            path.write_text(text if text.strip() else "(null)\n")
            return
        device = self.device(text)
        if not device.exists:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if path.name == "unbind":
            if device.driver != path.parent.name:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            self.vacate(text)
        elif path.name == "drivers_probe":
            driver = device.override or self.native[text]
            if not device.driver and self.driver(driver).is_dir() and driver not in self.refusing:
                self._take(text, driver)
        elif path.name == "bind":
            driver = path.parent.name
            if device.driver or driver in self.refusing or driver != (device.override or self.native[text]):
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            self._take(text, driver)

    def vacate(self, address: str) -> None:
        """Unbind a device: its interfaces go."""
        device = self.device(address)
        for name in device.interfaces:
            shutil.rmtree(self.root / "class/net" / name)
        shutil.rmtree(device.path / "net", ignore_errors=True)
        (device.path / "driver").unlink()

    def _take(self, address: str, driver: str) -> None:
        path = self.device(address).path
        (path / "driver").symlink_to(self.driver(driver))
        if driver == self.native[address]:
            for name in self.names[address]:
                (path / "net" / name).mkdir(parents=True)
                self.interface(name)


CARD = "0000:3b:00.0"


class World:
    """A tree with a card, igb's, with an interface eth1, that is free to be bound."""

    def __init__(self, directory: Path) -> None:
        self.tree = PciTree(directory, "igb", "vfio-pci", "uio_pci_generic")
        self.tree.add(CARD, "igb", "eth1", group="12")
        self.routes: list[tuple[str, str]] = []
        self.addresses: dict[str, str] = {}
        self.records = directory / "run/aiflow-pci"
        self.binding = PciBinding(self.tree, self.records, lambda: self.tree.network(*self.routes, **self.addresses))

    def bind(self, *addresses: str, driver: str = "") -> list[str]:
        """Bind cards, by default the one; returns their drivers."""
        return [self.binding.carry_out(change) for change in self.binding.plan_bind(addresses or (CARD,), driver)]

    def unbind(self, *addresses: str) -> list[str]:
        """Give cards back; returns their drivers."""
        return [self.binding.carry_out(change) for change in self.binding.plan_unbind(addresses or (CARD,))]

    def driver(self, address: str = CARD) -> str:
        """The driver of a card."""
        return self.tree.device(address).driver

    def override(self, address: str = CARD) -> str:
        """The driver_override of a card."""
        return self.tree.device(address).override
