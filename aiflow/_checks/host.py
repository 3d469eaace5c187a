"""The host as the checks see it: the kernel's files below a root, this process's limits and its environment."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from aiflow._ports.interface_use import Network, read_network
from aiflow._ports.pci_binding import RECORDS, PciBinding
from aiflow._ports.pci_device import DPDK_DRIVER_OF, DPDK_DRIVERS, PciDevice, Sysfs
from aiflow._system.cpus import cpu_list
from aiflow._system.limits import cgroups

__all__ = ["CAP_BPF", "CAP_IPC_LOCK", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "Host", "started_with"]

CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_BPF = 12, 13, 14, 21, 39
CAP_SYS_RESOURCE = 24

_ETHERNET = "1"  # ARPHRD_ETHER
_ENGINE_ROOT = r"^\S+ \S+ \S+ / / .* - overlay .*/(docker|containerd|containers)/"  # a line of mountinfo
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_UNLIMITED = 1 << 60  # cgroup v1 writes the largest number of pages


def started_with(option: str, of_pod: str = "") -> str:
    """The advice where only the engine of a container can change something."""
    pod = f"; in Kubernetes, set {of_pod}" if of_pod else ""
    return f". Only the container's engine can change it: start the container with {option}{pod}"


class Host:
    """What the checks look at. Tests give it another root, with files of their own.

    Parameters
    ----------
    root : Path, optional
        Where ``/proc``, ``/sys``, ``/dev`` and ``/run`` are.
    environ : mapping of str to str, optional
        Default: the environment of this process.
    uid : int, optional
        The user. Default: that of this process.
    network : callable, optional
        Returns a snapshot of routes and addresses.
    build : mapping, optional
        What `aiflow.build_info` returns. Default: that of this aiflow.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        environ: Mapping[str, str] | None = None,
        uid: int | None = None,
        network: Callable[[], Network] = read_network,
        build: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = root
        self.environ = os.environ if environ is None else environ
        self.uid = os.getuid() if uid is None else uid
        self.network = network
        self._build = build
        self.sysfs = Sysfs(root / "sys", root / "proc")
        self.binding = PciBinding(self.sysfs, self.path(str(RECORDS)), network)

    @cached_property
    def build(self) -> Mapping[str, Any]:
        """What this aiflow is built from."""
        if self._build is not None:
            return self._build
        from aiflow import build_info

        return build_info()

    # ---------------------------------------------------------------------------------------------------------- files

    def path(self, text: str) -> Path:
        """Where a file of the host is, by its absolute path."""
        return self.root / text.lstrip("/")

    def shown(self, path: Path) -> str:
        """The absolute path of a file on the host."""
        return f"/{path.relative_to(self.root)}"

    def read(self, text: str) -> str:
        """Text of a file, without white space at its ends; "" if it cannot be read."""
        return self.sysfs.read(self.path(text))

    def number(self, text: str) -> int | None:
        """The number in a file; None if there is none."""
        with contextlib.suppress(ValueError):
            return int(self.read(text))
        return None

    def may_use(self, text: str) -> bool:
        """Whether the user may read and write a file."""
        path = self.path(text)
        if self.uid == os.getuid():
            return os.access(path, os.R_OK | os.W_OK)
        with contextlib.suppress(OSError):
            found = path.stat()
            bits = found.st_mode >> 6 if found.st_uid == self.uid else found.st_mode
            return bits & 0o6 == 0o6
        return False

    # ---------------------------------------------------------------------------------------------- containers and VMs

    @property
    def in_container(self) -> bool:
        """Whether an engine of containers started this process."""
        if "KUBERNETES_SERVICE_HOST" in self.environ:
            return True
        if not any(self.path(mark).exists() for mark in _CONTAINER_MARKS):
            return False
        # A virtual machine made of an image has its mark, too; but there the kernel's threads are to be seen. A
        # container with --pid=host sees them, too; but its root is made of the engine's layers.
        is_layered = re.search(_ENGINE_ROOT, self.read("/proc/self/mountinfo"), re.MULTILINE) is not None
        return is_layered or self.read("/proc/2/comm") != "kthreadd"

    @property
    def is_virtual(self) -> bool:
        """Whether this is a virtual machine, whose firmware has no settings of devices."""
        return re.search(r"^flags\s.*\bhypervisor\b", self.read("/proc/cpuinfo"), re.MULTILINE) is not None

    def is_kept(self, path: Path | str) -> bool:
        """Whether a container may not write a file of its host."""
        return self.in_container and not self.may_use(str(path) if isinstance(path, str) else self.shown(path))

    def is_denied(self, capability: int) -> bool:
        """Whether a container's processes cannot get a capability: images rarely have sudo, and root has a bound."""
        bound = int(self.status("CapBnd") or "0", 16) >> capability & 1
        return self.in_container and not self.may(capability) and (self.uid != 0 or not bound)

    def is_bound(self, limit: str, wanted: int | None = None) -> bool:
        """Whether a container cannot raise a limit to a number, or to none."""
        found = re.search(rf"^{re.escape(limit)}\s+\S+\s+(\S+)", self.read("/proc/self/limits"), re.MULTILINE)
        hard = found[1] if found else "unlimited"
        enough = hard == "unlimited" or (wanted is not None and int(hard) >= wanted)
        return self.in_container and not enough and not self.may(CAP_SYS_RESOURCE)

    # -------------------------------------------------------------------------------------------------------- process

    def limit(self, name: str) -> int | None:
        """A soft limit of this process, as /proc/self/limits names it; None without limit."""
        found = re.search(rf"^{re.escape(name)}\s+(\S+)", self.read("/proc/self/limits"), re.MULTILINE)
        return None if found is None or found[1] == "unlimited" else int(found[1])

    def status(self, field: str) -> str:
        """A field of /proc/self/status; "" if it is missing."""
        found = re.search(rf"^{field}:\s*(.*)$", self.read("/proc/self/status"), re.MULTILINE)
        return found[1].strip() if found else ""

    def may(self, capability: int) -> bool:
        """Whether this process has a capability (capabilities(7))."""
        return bool(int(self.status("CapEff") or "0", 16) >> capability & 1)

    @property
    def cpus(self) -> set[int]:
        """CPUs that this process may use."""
        return cpu_list(self.status("Cpus_allowed_list"))

    def cgroup_limit(self, controller: str, *names: str) -> tuple[int, Path] | None:
        """The smallest limit of this process's cgroups, and the file that has it; None without limit."""
        found = []
        for directory in cgroups(controller, self.root):
            for name in names:
                with contextlib.suppress(ValueError):
                    found.append((int(self.sysfs.read(directory / name)), directory / name))
        return min((each for each in found if each[0] < _UNLIMITED), default=None)

    def cpu_quota(self) -> tuple[float, Path] | None:
        """The smallest share of processor time that a cgroup grants, in cores, and the file; None without limit."""
        found = []
        for directory in cgroups("cpu", self.root):
            with contextlib.suppress(ValueError, ZeroDivisionError):
                quota, _, period = self.sysfs.read(directory / "cpu.max").partition(" ")
                found.append((int(quota) / int(period), directory / "cpu.max"))
            with contextlib.suppress(ValueError, ZeroDivisionError):
                path = directory / "cpu.cfs_quota_us"
                quota = self.sysfs.read(path)
                if int(quota) > 0:
                    found.append((int(quota) / int(self.sysfs.read(directory / "cpu.cfs_period_us")), path))
        return min(found, default=None)

    def memory(self) -> dict[str, int]:
        """/proc/meminfo: KiB, or numbers of hugepages."""
        rows = (line.split() for line in self.read("/proc/meminfo").splitlines())
        return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}

    # -------------------------------------------------------------------------------------------------------- network

    def cards(self) -> list[PciDevice]:
        """The network cards on the PCI bus."""
        return self.sysfs.network_cards()

    def dpdk_cards(self) -> list[PciDevice]:
        """The cards that are bound for DPDK."""
        return [card for card in self.cards() if card.driver in DPDK_DRIVERS]

    def cards_for_vfio(self) -> list[PciDevice]:
        """The cards that are bound for DPDK, or that this DPDK is known to drive once they are."""
        drivers = self.build["drivers"]
        return [
            card for card in self.cards() if card.driver in DPDK_DRIVERS or DPDK_DRIVER_OF.get(card.driver) in drivers
        ]

    def has_file_of(self, card: PciDevice) -> bool:
        """Whether a card that is bound to vfio-pci has its file here; in a container, it may not."""
        return not self.in_container or any(
            self.path(file).exists() for file in card.device_files() if "devices" not in file
        )

    def interfaces(self) -> list[str]:
        """Ethernet interfaces that can be endpoints: no bridges, and no members of a bridge or bond."""
        names = sorted(path.name for path in self.path("/sys/class/net").glob("*"))
        return [name for name in names if self._can_be_endpoint(self.path(f"/sys/class/net/{name}"))]

    def _can_be_endpoint(self, path: Path) -> bool:
        built = any((path / name).exists() for name in ("bridge", "bonding", "master"))
        ifb = not (path / "device").exists() and path.name.startswith(("ifb", "dummy"))
        return self.sysfs.read(path / "type") == _ETHERNET and not built and not ifb
