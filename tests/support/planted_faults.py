"""Faults to plant on a made-up host, each with the check of ``aiflow doctor`` that names it."""

from __future__ import annotations

from collections.abc import Callable

from host_tree import CARD, HostTree


def bind_again(tree: HostTree) -> None:
    tree.pci.write(tree.pci.device(CARD).path / "driver_override", "igb")
    tree.pci.write(tree.pci.driver("vfio-pci") / "unbind", CARD)
    tree.pci.write(tree.pci.bus / "drivers_probe", CARD)
    tree.interface("eth1")


def no_iommu(tree: HostTree) -> None:
    for path in (tree.root / "sys/kernel/iommu_groups").iterdir():
        path.rename(tree.root / f"gone-{path.name}")


def no_vfio(tree: HostTree) -> None:
    bind_again(tree)
    for path in tree.pci.driver("vfio-pci").iterdir():
        path.unlink()
    tree.pci.driver("vfio-pci").rmdir()


def second_link(tree: HostTree) -> None:
    tree.interface("eth2", mtu=9000)
    tree.interface("eth3")


def left_record(tree: HostTree) -> None:
    tree.write("/run/aiflow-pci/0000:5e:00.0.json", "{}")


Plant = Callable[[HostTree], object]

# fault → how it is planted, the check that names it, its state, words of the finding, whether the command mends it
PLANTED: dict[str, tuple[Plant, str, str, str]] = {
    "an old kernel": (
        lambda t: t.write("/proc/sys/kernel/osrelease", "4.19.0-27-amd64"),
        "kernel", "could be better", "Linux 4.19.0-27-amd64 is older",
    ),
    "a DPDK without memif": (
        lambda t: t.build.update(drivers=["net_ring", "net_af_packet"]), "DPDK", "broken", "has no driver net_memif",
    ),
    "a DPDK that is too new": (lambda t: t.build.update(dpdk="31.11.0"), "DPDK", "could be better", "tested with"),
    "no hugepages": (lambda t: t.hugepages(0, 0), "hugepages", "could be better", "none is reserved"),
    "hugepages in use": (lambda t: t.hugepages(64, 3), "hugepages", "could be better", "64 reserved, 6 MiB of them"),
    "hugepages asked for": (
        lambda t: (t.hugepages(0, 0), t.environ.update(AIFLOW_MEMORY="hugepages")), "hugepages", "broken", "needs 64",
    ),
    "hugepages denied by a cgroup": (
        lambda t: t.write("/sys/fs/cgroup/user.slice/job/hugetlb.2MB.max", "0"),
        "hugepages", "could be better", "cgroup grants 0 MiB",
    ),
    "locked memory": (
        lambda t: t.limits.update({"Max locked memory": "65536"}), "memlock", "broken", "ulimit -l is 64 KiB",
    ),
    "address space": (lambda t: t.limits.update({"Max address space": "1000"}), "limits", "broken", "ulimit -v"),
    "open files": (lambda t: t.limits.update({"Max open files": "128"}), "limits", "could be better", "128 open files"),
    "file size": (lambda t: t.limits.update({"Max file size": "1024"}), "limits", "broken", "ulimit -f is 1 KiB"),
    "a small container": (
        lambda t: t.write("/sys/fs/cgroup/user.slice/job/memory.max", str(100 << 20)),
        "cgroup memory", "broken", "grants 100 MiB",
    ),
    "a limit above the container's": (
        lambda t: t.write("/sys/fs/cgroup/user.slice/memory.max", str(700 << 20)),
        "cgroup memory", "could be better", "grants 700 MiB",
    ),
    "no rights": (
        lambda t: t.status(capabilities=0, cpus="0-7"), "rights", "could be better", "no CAP_NET_RAW",
    ),
    "no IOMMU": (no_iommu, "IOMMU", "could be better", "Turn on VT-d"),
    "the unsafe mode": (
        lambda t: t.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y"),
        "IOMMU", "could be better", "unsafe",
    ),
    "vfio not loaded": (no_vfio, "IOMMU", "could be better", "vfio-pci is not loaded"),
    "a card that is not bound": (bind_again, "NIC binding", "could be better", f"{CARD} (eth1, igb) is not bound"),
    "a vfio group of root's": (
        lambda t: t.write("/dev/vfio/12", "", mode=0),
        "NIC binding", "broken", "may not open /dev/vfio/12",
    ),
    "a record of a card that is gone": (left_record, "NIC binding", "could be better", "is not on the bus"),
    "a link that is down": (lambda t: t.interface("eth2", flags="0x1002"), "links", "could be better", "eth2 is down"),
    "no carrier": (lambda t: t.interface("eth2", carrier=0), "links", "could be better", "no carrier"),
    "a slow link": (lambda t: t.interface("eth2", speed=10), "links", "could be better", "10 Mbit/s"),
    "half duplex": (lambda t: t.interface("eth2", duplex="half"), "links", "could be better", "half duplex"),
    "a tiny MTU": (lambda t: t.interface("eth2", mtu=300), "links", "broken", "MTU of 300 is too small"),
    "a small MTU": (lambda t: t.interface("eth2", mtu=1400), "links", "could be better", "the MTU is 1400"),
    "small frames on a fast link": (
        lambda t: t.interface("eth2", speed=25000), "links", "could be better", "25 Gbit/s with an MTU of 1500",
    ),
    "two MTUs": (second_link, "links", "could be better", "MTUs differ (eth0 1500, eth2 9000, eth3 1500)"),
    "a far NUMA node": (
        lambda t: t.status(capabilities=0x7000003000, cpus="0-3"),
        "NUMA", "could be better", f"pci:{CARD} is on node 1",
    ),
    "no isolated core": (
        lambda t: t.write("/sys/devices/system/cpu/isolated", ""), "isolated cores", "could be better", "none",
    ),
    "a slow governor": (
        lambda t: t.write("/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave"),
        "governor", "could be better", "CPUs 2 run with powersave",
    ),
    "a CPU quota": (
        lambda t: t.write("/sys/fs/cgroup/user.slice/job/cpu.max", "25000 100000"),
        "cgroup CPU", "could be better", "grants 0.25 cores",
    ),
}  # fmt: skip
