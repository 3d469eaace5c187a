"""One PCI device as sysfs shows it: class, driver, IOMMU group, interfaces, and the processes that hold it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BESIDE_VFIO", "DPDK_DRIVERS", "DPDK_DRIVER_OF", "SHARED_WITH_KERNEL", "UIO_DRIVERS", "PciDevice", "Sysfs"]

UIO_DRIVERS = ("uio_pci_generic", "igb_uio")
"""Kernel drivers that hand a device to DPDK without an IOMMU."""

DPDK_DRIVERS = ("vfio-pci", *UIO_DRIVERS)
"""Kernel drivers that hand a device to DPDK."""

SHARED_WITH_KERNEL = {"mlx5_core": "net_mlx5", "mlx4_core": "net_mlx4"}
"""Kernel drivers beside which DPDK drives a card, and DPDK's driver for it."""

DPDK_DRIVER_OF = {
    "e1000": "net_e1000_em", "e1000e": "net_e1000_em", "igb": "net_e1000_igb", "igbvf": "net_e1000_igb_vf",
    "igc": "net_igc", "ixgbe": "net_ixgbe", "ixgbevf": "net_ixgbe_vf", "i40e": "net_i40e", "iavf": "net_iavf",
    "ice": "net_ice", "fm10k": "net_fm10k", "ngbe": "net_ngbe", "txgbe": "net_txgbe", "hinic": "net_hinic",
    "bnxt_en": "net_bnxt", "bnx2x": "net_bnx2x", "ena": "net_ena", "gve": "net_gve", "vmxnet3": "net_vmxnet3",
    "virtio-pci": "net_virtio", "sfc": "net_sfc_efx", "cxgb4": "net_cxgbe", "cxgb4vf": "net_cxgbevf",
    "qede": "net_qede", "enic": "net_enic", "hns3": "net_hns3", "atlantic": "net_atlantic", "nfp": "net_nfp_pf",
    "amd-xgbe": "net_axgbe",
}  # fmt: skip
"""DPDK's driver for the cards of a kernel driver, once they are bound. Wi-Fi, for one, is missing: DPDK has none."""

BESIDE_VFIO = ("vfio-pci", "pci-stub")
"""Drivers that leave the IOMMU group of their device to vfio: they do no DMA (``driver_managed_dma`` in Linux)."""

_NETWORK_CLASS = 0x02
_PCI_BRIDGES = (0x0604, 0x0609)


class Sysfs:
    """The kernel's file systems.

    Parameters
    ----------
    root : Path, optional
        Where sysfs is. Default: ``/sys``.
    proc : Path, optional
        Where procfs is. Default: ``/proc``.
    dev : Path, optional
        Where the device files are. Default: ``/dev``.
    """

    def __init__(self, root: Path = Path("/sys"), proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> None:
        self.root = root
        self.proc = proc
        self.dev = dev

    @property
    def bus(self) -> Path:
        """The PCI bus."""
        return self.root / "bus/pci"

    @property
    def unsafe_vfio(self) -> Path:
        """The parameter of vfio's unsafe no-IOMMU mode."""
        return self.root / "module/vfio/parameters/enable_unsafe_noiommu_mode"

    @property
    def vfio_is_unsafe(self) -> bool:
        """Whether vfio takes cards that no IOMMU isolates."""
        return self.read(self.unsafe_vfio) == "Y"

    def device(self, address: str) -> PciDevice:
        """The device with an address, whether it exists or not."""
        return PciDevice(self, address)

    def network_cards(self) -> list[PciDevice]:
        """Every network card on the bus."""
        found = (self.device(path.name) for path in sorted((self.bus / "devices").glob("*")))
        return [device for device in found if device.is_network_card]

    def driver(self, name: str) -> Path:
        """The directory of a PCI driver; it exists while the driver is loaded."""
        return self.bus / "drivers" / name

    def read(self, path: Path) -> str:
        """Text of a file, without white space at its ends; "" if it cannot be read."""
        with contextlib.suppress(OSError):
            return path.read_text(errors="replace").strip()
        return ""

    def write(self, path: Path, text: str) -> None:
        """Write to a file that exists. Raises OSError."""
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


class PciDevice:
    """A device on the PCI bus. Every attribute is read anew: another process may change it.

    Parameters
    ----------
    sysfs : Sysfs
    address : str
        Domain, bus, device and function, such as ``0000:3b:00.0``.
    """

    def __init__(self, sysfs: Sysfs, address: str) -> None:
        self.sysfs = sysfs
        self.address = address
        self.path = sysfs.bus / "devices" / address

    @property
    def exists(self) -> bool:
        """Whether the device is there."""
        return self.path.is_dir()

    @property
    def pci_class(self) -> int:
        """Base class of the device (PCI Code and ID Assignment); -1 if it cannot be read."""
        return self._class(16)

    def _class(self, shift: int) -> int:
        try:
            return int(self.sysfs.read(self.path / "class"), 16) >> shift
        except ValueError:
            return -1

    @property
    def is_network_card(self) -> bool:
        """Whether it is a network controller."""
        return self.pci_class == _NETWORK_CLASS

    @property
    def is_bridge(self) -> bool:
        """Whether it leads to another PCI bus. The kernel's driver of such a bridge does no DMA for itself."""
        return self._class(8) in _PCI_BRIDGES

    @property
    def identity(self) -> str:
        """Vendor and device, such as ``8086:10c9``."""
        return ":".join(self.sysfs.read(self.path / name).removeprefix("0x") for name in ("vendor", "device"))

    @property
    def driver(self) -> str:
        """The driver that it is bound to; "" if it is bound to none."""
        return self._link("driver")

    @property
    def override(self) -> str:
        """The only driver that may take it, if one is set; else ""."""
        text = self.sysfs.read(self.path / "driver_override")
        return "" if text == "(null)" else text

    @property
    def interfaces(self) -> list[str]:
        """Its interfaces in the network namespace of sysfs."""
        return sorted(path.name for pattern in ("net/*", "virtio*/net/*") for path in self.path.glob(pattern))

    @property
    def group(self) -> str:
        """Number of its IOMMU group; "" if no IOMMU isolates it."""
        return "" if self.sysfs.read(self.path / "iommu_group/name") == "vfio-noiommu" else self._link("iommu_group")

    @property
    def group_file(self) -> Path | None:
        """The file that a process opens to use the IOMMU group; None if it is in no group."""
        number = self._link("iommu_group")
        return self.sysfs.dev / "vfio" / (number if self.group else f"noiommu-{number}") if number else None

    @property
    def driver_to_bind(self) -> str:
        """The driver to bind it to for DPDK."""
        return "vfio-pci" if self.group or self.sysfs.vfio_is_unsafe else "uio_pci_generic"

    @property
    def physical_function(self) -> str:
        """Address of the card that this virtual function belongs to; "" if it is none."""
        return self._link("physfn")

    @property
    def virtual_functions(self) -> list[str]:
        """Addresses of its virtual functions."""
        found = (os.readlink(path) for path in self.path.glob("virtfn*") if path.is_symlink())
        return sorted(os.path.basename(target) for target in found)

    def neighbours(self) -> list[PciDevice]:
        """The other devices of its IOMMU group, which it can reach without the IOMMU. Bridges are left out."""
        found = (self.sysfs.device(path.name) for path in sorted(self.path.glob("iommu_group/devices/*")))
        return [device for device in found if device.address != self.address and not device.is_bridge]

    def device_files(self) -> list[str]:
        """Device files through which a process holds the device."""
        files = [f"{self.sysfs.dev}/{path.name}" for path in self.path.glob("uio/uio*")]
        files += [f"{self.sysfs.dev}/vfio/devices/{path.name}" for path in self.path.glob("vfio-dev/vfio*")]
        if file := self.group_file:
            files.append(str(file))
        return files

    def verbs_files(self) -> list[Path]:
        """Device files of RDMA through which a process uses a card that its kernel driver keeps."""
        return [
            self.sysfs.dev / "infiniband" / path.name for path in sorted(self.path.glob("infiniband_verbs/uverbs*"))
        ]

    def holders(self) -> list[str]:
        """Processes that have one of its files open, such as ``4711 (python3)``. Without root only the user's own."""
        files, found = set(self.device_files()), []
        for process in sorted(self.sysfs.proc.glob("[0-9]*")):
            if files & set(_open_files(process)):
                name = self.sysfs.read(process / "comm")
                found.append(f"{process.name} ({name})" if name.isprintable() and name else process.name)
        return found

    def _link(self, name: str) -> str:
        """Last part of a link's target; "" if there is none."""
        with contextlib.suppress(OSError):
            return os.path.basename(os.readlink(self.path / name))
        return ""


def _open_files(process: Path) -> Iterator[str]:
    """Targets of a process's descriptors."""
    with contextlib.suppress(OSError):  # another user's process, or one that has ended
        for descriptor in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.readlink(descriptor)
