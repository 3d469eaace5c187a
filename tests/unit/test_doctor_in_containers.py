"""``aiflow doctor`` on made-up containers and virtual machines: it names no command that cannot work there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from host_tree import CARD, CPUS, KERNEL_S, HostTree
from planted_faults import PLANTED, Plant, bind_again, no_iommu

pytestmark = pytest.mark.unit


@pytest.fixture
def tree(tmp_path: Path) -> HostTree:
    return HostTree(tmp_path)


def hard_limit(tree: HostTree, name: str, value: int) -> None:
    tree.limits[name] = str(value)
    tree.status(capabilities=0x3000, cpus=f"0-{CPUS - 1}")


# fault in a container → how it is planted, the check, words of the finding, and the way out that it names
IN_CONTAINER: dict[str, tuple[Plant, str, str, str]] = {
    **{
        fault: (PLANTED[fault][0], PLANTED[fault][1], PLANTED[fault][3], way)
        for fault, way in {
            "an old kernel": "Update the kernel of the container's host",
            "no hugepages": "On the container's host, as root: echo 512 > /proc/sys/vm/nr_hugepages",
            "hugepages denied by a cgroup": "set resources.limits.hugepages-2Mi",
            "a small container": "start the container with --memory=2g; in Kubernetes, set resources.limits.memory",
            "a limit above the container's": "start the container with --memory=2g",
            "no rights": "start the container with --user 0 --cap-add NET_RAW --cap-add NET_ADMIN; in Kubernetes, set",
            "the unsafe mode": "On the container's host, as root: echo 0 >",
            "a far NUMA node": "start the container with --cpuset-cpus=0-7",
            "a slow governor": "On the container's host, as root: echo performance",
            "a CPU quota": "start the container with --cpus=2; in Kubernetes, set resources.limits.cpu",
        }.items()
    },
    "locked memory": (
        lambda t: hard_limit(t, "Max locked memory", 65536),
        "memlock", "ulimit -l is 64 KiB", "start the container with --ulimit memlock=-1; in Kubernetes, set runAsUser",
    ),
    "open files": (
        lambda t: hard_limit(t, "Max open files", 128),
        "limits", "128 open files", "start the container with --ulimit nofile=4096",
    ),
    "file size": (
        lambda t: hard_limit(t, "Max file size", 1024),
        "limits", "ulimit -f is 1 KiB", "start the container with --ulimit fsize=-1",
    ),
    "a link that is down": (
        lambda t: (t.interface("eth2", flags="0x1002"), t.status(capabilities=0, cpus="0-7")),
        "links", "eth2 is down", "start the container with --user 0 --cap-add NET_ADMIN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mark", ["/.dockerenv", "/run/.containerenv", "KUBERNETES_SERVICE_HOST"])
@pytest.mark.parametrize("fault", IN_CONTAINER)
def test_in_a_container_the_option_of_its_engine_is_named(tree: HostTree, fault: str, mark: str) -> None:
    """A command would fail there: sysctls and cgroups are read-only, no sudo, no right to raise a limit."""
    plant, check, words, way = IN_CONTAINER[fault]
    plant(tree)
    if mark.startswith("/"):
        tree.write(mark, "")
    else:
        tree.environ[mark] = "10.0.0.1"
    (finding,) = (each for each in tree.faults()[check] if words in each.text or check == "rights")
    assert way in finding.text
    assert (finding.command, finding.as_root) == ("", False)


def test_a_container_s_root_is_denied_what_its_bound_lacks(tree: HostTree) -> None:
    """docker's default: NET_RAW, but not NET_ADMIN."""
    tree.write("/.dockerenv", "")
    tree.uid = 0
    tree.status(capabilities=0x2000, cpus="0-7", bound=0x2000)
    (finding,) = tree.faults()["rights"]
    assert finding.command == ""
    assert "no CAP_NET_ADMIN" in finding.text
    assert "--cap-add NET_ADMIN" in finding.text
    assert "NET_RAW" not in finding.text
    tree.status(capabilities=0x2000, cpus="0-7")  # it has dropped it, and may take it again
    (finding,) = tree.faults()["rights"]
    assert finding.command.startswith("sudo setpriv")


def test_a_virtual_machine_made_of_an_image_is_no_container(tree: HostTree) -> None:
    tree.write("/.dockerenv", "")
    tree.write("/proc/2/comm", "kthreadd")
    tree.status(capabilities=0, cpus="0-7")
    (finding,) = tree.faults()["rights"]
    assert finding.command.startswith("sudo setpriv")


@pytest.mark.parametrize(
    "layers",
    [
        "/var/lib/docker/overlay2/0123abcd",
        "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/12",
        "/home/user/.local/share/containers/storage/overlay/0123abcd",
    ],
)
def test_a_container_that_sees_the_processes_of_its_host_is_one(tree: HostTree, layers: str) -> None:
    """One with --pid=host."""
    tree.write("/.dockerenv", "")
    tree.write("/proc/2/comm", "kthreadd")
    options = f"rw,lowerdir={layers}/lower,upperdir={layers}/diff,workdir={layers}/work"
    tree.write("/proc/self/mountinfo", f"812 623 0:57 / / rw,relatime master:3 - overlay overlay {options}")
    tree.status(capabilities=0, cpus="0-7")
    (finding,) = tree.faults()["rights"]
    assert finding.command == ""


def test_a_container_that_may_write_the_file_gets_the_command(tree: HostTree) -> None:
    """One with --privileged."""
    tree.write("/.dockerenv", "")
    tree.write("/sys/fs/cgroup/user.slice/job/cpu.max", "25000 100000", mode=0o666)
    (finding,) = tree.faults()["cgroup CPU"]
    tree.obey(finding.command)
    assert tree.faults() == {}


def test_in_a_container_cards_of_the_host_are_not_to_be_bound(tree: HostTree) -> None:
    """sysfs shows them, but not the routes over their interfaces: one may be the host's uplink."""
    tree.write("/.dockerenv", "")
    bind_again(tree)
    tree.pci.interface("eth1")
    (finding,) = (each for each in tree.findings()["NIC binding"] if CARD in each.text)
    assert (finding.state, finding.command) == ("ok", "")
    assert "on the container's host" in finding.text


def test_in_a_container_a_card_without_its_file_may_be_another_program_s(tree: HostTree) -> None:
    tree.write("/.dockerenv", "")
    (tree.root / "dev/vfio/12").unlink()
    hard_limit(tree, "Max locked memory", 65536)
    (finding,) = (each for each in tree.findings()["NIC binding"] if CARD in each.text)
    assert (finding.state, finding.command) == ("ok", "")
    assert "--device /dev/vfio/vfio --device /dev/vfio/12" in finding.text
    assert [each.state for each in tree.findings()["memlock"]] == ["could be better"]


def test_a_virtual_machine_has_no_firmware_to_set(tree: HostTree) -> None:
    no_iommu(tree)
    (finding,) = tree.faults()["IOMMU"]
    assert "VT-d in the firmware" in finding.text
    tree.write("/proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags\t\t: fpu vme hypervisor lahf_lm")
    (finding,) = tree.faults()["IOMMU"]
    assert "firmware" not in finding.text
    assert "a virtual IOMMU of this machine on its host" in finding.text


def test_without_grub_the_boot_option_is_said(tree: HostTree) -> None:
    tree.write("/sys/devices/system/cpu/isolated", "")
    (finding,) = tree.faults()["isolated cores"]
    assert "/etc/default/grub" in finding.command
    (tree.root / "etc/default/grub").unlink()
    (finding,) = tree.faults()["isolated cores"]
    assert finding.command == ""
    assert "Add isolcpus=7 nohz_full=7 rcu_nocbs=7 to the kernel's command line, and restart it" in finding.text
    tree.write("/run/.containerenv", "")
    (finding,) = tree.faults()["isolated cores"]
    assert "command line of the container's host" in finding.text


def test_memlock_does_not_matter_without_a_card(tree: HostTree) -> None:
    hard_limit(tree, "Max locked memory", 65536)
    for card in (CARD, KERNEL_S):
        shutil.rmtree(tree.pci.device(card).path)
    (finding,) = tree.findings()["memlock"]
    assert (finding.state, finding.command) == ("ok", "")
    assert "Only cards behind vfio-pci need more" in finding.text
