"""A made-up host for the checks of ``aiflow doctor``, and a kernel that obeys the commands which they name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from pci_tree import PciTree

from aiflow._checks.checks import CHECKS
from aiflow._checks.finding import Finding
from aiflow._checks.host import Host

CARD, KERNEL_S = "0000:3b:00.0", "0000:00:03.0"
USER = 1000
CPUS = 8

_LIMITS = {
    "Max address space": "unlimited",
    "Max file size": "unlimited",
    "Max open files": "4096",
    "Max locked memory": "unlimited",
}
_BUILD = {
    "dpdk": "24.11.3",
    "dpdk_from": "system",
    "drivers": ["net_memif", "net_ring", "net_af_packet", "net_e1000_igb"],
}
_LEFT_TO_OTHERS = ("runtime directory", "peers", "stale files", "round trip")
"""Checks of this process itself, which no tree can change."""


class HostTree:
    """A host on which every check is ok: an Intel machine, a card bound to vfio-pci, and one that is the host's.

    Attributes
    ----------
    root : Path
    environ : dict
    build : dict
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ: dict[str, str] = {}
        self.build = dict(_BUILD)
        self.uid = USER
        self.limits = dict(_LIMITS)
        self.pci = PciTree(root, "igb", "vfio-pci", "uio_pci_generic")
        self.pci.add(CARD, "igb", "eth1", group="12")
        self.pci.add(KERNEL_S, "igb", "eth0", group="3")
        self.write("/proc/sys/kernel/osrelease", "6.1.0-18-amd64")
        (root / "lib/modules/6.1.0-18-amd64").mkdir(parents=True)
        self.write("/proc/cpuinfo", "vendor_id\t: GenuineIntel")
        self.write("/proc/cmdline", "root=/dev/sda1 intel_iommu=on")
        self.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
        self.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX="quiet"')
        self.hugepages(512, 512)
        self.write("/proc/sys/vm/nr_overcommit_hugepages", "0")
        self.status(capabilities=0x7000003000, cpus=f"0-{CPUS - 1}")
        self.write("/proc/self/mountinfo", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
        self.write("/proc/self/cgroup", "0::/user.slice/job")
        self.write("/sys/fs/cgroup/user.slice/job/memory.max", "max")
        self.write("/sys/fs/cgroup/user.slice/job/cpu.max", "max 100000")
        self.write("/sys/devices/system/node/online", "0-1")
        self.write("/sys/devices/system/node/node0/cpulist", "0-3")
        self.write("/sys/devices/system/node/node1/cpulist", "4-7")
        self.write("/sys/devices/system/cpu/online", f"0-{CPUS - 1}")
        self.write("/sys/devices/system/cpu/isolated", "7")
        for cpu in range(CPUS):
            self.write(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "performance")
        self.interface("eth0")
        self.pci.write(self.pci.device(CARD).path / "driver_override", "vfio-pci")
        self.pci.write(self.pci.driver("igb") / "unbind", CARD)
        self.pci.write(self.pci.bus / "drivers_probe", CARD)
        self.write("/dev/vfio/12", "", mode=0o666)
        for address, node in ((CARD, 1), (KERNEL_S, 0)):
            (self.pci.device(address).path / "numa_node").write_text(f"{node}\n")

    # ---------------------------------------------------------------------------------------------------------- files

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the host, by its absolute path."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        file.chmod(mode)

    def hugepages(self, total: int, free: int) -> None:
        """Reserve hugepages of 2 MiB."""
        self.write("/proc/meminfo", f"HugePages_Total: {total}\nHugePages_Free: {free}\nHugepagesize: 2048 kB")

    def status(self, *, capabilities: int, cpus: str, bound: int = (1 << 41) - 1) -> None:
        """Capabilities, their bound, and CPUs of this process."""
        sets = f"CapEff:\t{capabilities:016x}\nCapBnd:\t{bound:016x}"
        self.write("/proc/self/status", f"Name:\tpython3\n{sets}\nCpus_allowed_list:\t{cpus}")

    def interface(self, name: str, **attributes: object) -> None:
        """Set attributes of an interface; by default one that is up, with 1 Gbit/s."""
        path = f"/sys/class/net/{name}"
        if not (self.root / path.lstrip("/") / "mtu").exists():
            self.pci.interface(name, up=True)
            (self.root / path.lstrip("/") / "device").mkdir(exist_ok=True)
            attributes = {"type": 1, "carrier": 1, "speed": 1000, "mtu": 1500, "duplex": "full", **attributes}
        for attribute, value in attributes.items():
            self.write(f"{path}/{attribute}", str(value))

    # --------------------------------------------------------------------------------------------------------- checks

    def host(self) -> Host:
        """The host as the checks see it now."""
        rows = [f"{name:26}{soft:21}{soft:21}bytes" for name, soft in self.limits.items()]
        self.write("/proc/self/limits", "\n".join(["Limit                     Soft Limit           Hard Limit", *rows]))
        interfaces = (self.root / "sys/class/net").glob("*")
        routes = [("eth0", "default via 10.0.0.1")] if any(path.name == "eth0" for path in interfaces) else []
        return Host(self.root, self.environ, self.uid, lambda: self.pci.network(*routes), self.build)

    def findings(self) -> dict[str, list[Finding]]:
        """The findings of each check that looks at this tree."""
        host = self.host()
        return {check.name: list(check.findings(host)) for check in CHECKS if check.name not in _LEFT_TO_OTHERS}

    def faults(self) -> dict[str, list[Finding]]:
        """Those that are not ok."""
        found = {name: [each for each in findings if each.state != "ok"] for name, findings in self.findings().items()}
        return {name: findings for name, findings in found.items() if findings}

    # ------------------------------------------------------------------------------------------------------- commands

    def obey(self, command: str) -> None:
        """Run a command of a finding: files are written by a shell, below the root; the rest as the kernel would do it.

        Raises
        ------
        AssertionError
            If the command is none that is known here.
        """
        if match := re.fullmatch(r"echo (\d+) > /proc/sys/vm/nr_hugepages", command):
            self.hugepages(int(match[1]), int(match[1]))
        elif match := re.fullmatch(r"modprobe (\S+)", command):
            self.pci.load(match[1])
        elif match := re.fullmatch(r"aiflow ports bind (\S+)", command):
            binding = self.host().binding
            binding.sysfs = self.pci
            for change in binding.plan_bind([match[1]]):
                binding.carry_out(change)
        elif match := re.fullmatch(r"ip link set dev (\S+) mtu (\d+)", command):
            self.interface(match[1], mtu=match[2])
        elif match := re.fullmatch(r"ip link set dev (\S+) up", command):
            self.interface(match[1], flags="0x1003")
        elif match := re.fullmatch(r"ethtool -s (\S+) autoneg on", command):
            self.interface(match[1], speed=1000, duplex="full")
        elif match := re.fullmatch(r"prlimit --pid \$\$ --(\w+)=(\w+):\2", command):
            names = {"as": "Max address space", "fsize": "Max file size", "nofile": "Max open files"}
            self.limits[names.get(match[1], "Max locked memory")] = match[2]
        elif match := re.fullmatch(r"taskset -cp (\S+) \$\$", command):
            self.status(capabilities=0x7000003000, cpus=match[1])
        elif match := re.fullmatch(r"chown (\d+) (/dev/\S+)", command):
            (self.root / match[2].lstrip("/")).chmod(0o666)  # who owns it cannot be changed without root
        elif command.startswith("sudo setpriv") and "+net_raw,+net_admin" in command:
            self.status(capabilities=0x3000, cpus=f"0-{CPUS - 1}")
        else:
            assert re.match(r"echo |rm |sed ", command), command
            below = re.sub(r"(?<=\s)/(?=\w)", f"{self.root}/", command).replace("&& update-grub", "")
            subprocess.run(["sh", "-c", below], check=True, stdout=subprocess.DEVNULL)
