"""What is said of a network card that cannot be opened, on a made-up bus."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest
from pci_tree import PciTree

from aiflow import _build, _eal, _eal_args
from aiflow._eal_cards import CARD_IS_BUSY
from aiflow._ports import pci_card, static_ports
from aiflow._ports.inventory import available
from aiflow._ports.pci_binding import PciBinding
from aiflow._system import limits
from aiflow.config import parse_endpoint
from aiflow.errors import PortError

pytestmark = pytest.mark.unit

ADDRESS = "0000:3b:00.0"
CARD = parse_endpoint(f"pci:{ADDRESS}")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PciTree:
    """A made-up bus with one card, in IOMMU group 7, and a process that has not started DPDK and may lock memory."""
    tree = PciTree(tmp_path, "igb", "snd_hda_intel", "vfio-pci", "uio_pci_generic", "mlx5_core")
    tree.add(ADDRESS, "vfio-pci", group="7")
    (tree.dev / "vfio").mkdir(parents=True)
    for name in ("vfio", "7"):
        (tree.dev / "vfio" / name).touch()
    monkeypatch.setattr(pci_card, "SYSFS", tree)
    monkeypatch.setattr(pci_card, "read_network", tree.network)
    monkeypatch.setattr(_eal, "started", lambda: False)
    monkeypatch.setattr(_eal, "memory_mode", lambda: None)
    monkeypatch.setenv("AIFLOW_MEMORY", "no-huge")
    monkeypatch.setattr(limits, "may", lambda capability: True)
    return tree


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy card does not become free."""
    monkeypatch.setattr(pci_card, "_FREE_WITHIN", 0.0)


def on_uio(tree: PciTree, monkeypatch: pytest.MonkeyPatch, *, physical: bool = True) -> Path:
    """Give the card to uio; returns its device file. `physical`: as in a process that knows physical addresses."""
    tree.write(tree.device(ADDRESS).path / "driver_override", "uio_pci_generic")
    tree.write(tree.driver("vfio-pci") / "unbind", ADDRESS)
    tree.write(tree.bus / "drivers_probe", ADDRESS)
    (tree.device(ADDRESS).path / "uio/uio3").mkdir(parents=True)
    (tree.dev / "uio3").touch()
    if physical:
        monkeypatch.setattr(_eal_args, "uses_physical_addresses", lambda mode: True)
    return tree.dev / "uio3"


def refused(pattern: str) -> str:
    """The card cannot be opened, and `aiflow ports` says the same; returns why."""
    with pytest.raises(PortError, match=pattern) as caught:
        pci_card.inspect_pci(CARD)
    ((endpoint, usable, note),) = [row for row in available() if row[0] == CARD.text]
    assert not usable
    assert f"{endpoint}: {note}" == str(caught.value)
    return note


def test_a_card_whose_group_can_be_opened_is_taken(tree: PciTree) -> None:
    tree.add("0000:3b:00.1", "vfio-pci", group="7")
    tree.add("0000:3a:00.0", "pcieport", group="7", pci_class="0x060400")
    assert pci_card.inspect_pci(CARD) == -1
    assert (CARD.text, True, "bound to vfio-pci") in available()


@pytest.mark.parametrize(
    ("driver", "pci_class", "command"),
    [
        ("igb", "0x020000", f"aiflow ports bind {ADDRESS} 0000:3b:00.1"),
        ("uio_pci_generic", "0x020000", f"aiflow ports bind --driver vfio-pci {ADDRESS} 0000:3b:00.1"),
        ("snd_hda_intel", "0x040300", "another slot. Or, only if the machine can do without 0000:3b:00.1"),
    ],
)
def test_a_card_that_shares_its_group_is_refused(tree: PciTree, driver: str, pci_class: str, command: str) -> None:
    tree.add("0000:3b:00.1", driver, *["eth2"] * (driver == "igb"), group="7", pci_class=pci_class)
    assert command in refused(rf"shares IOMMU group 7 with 0000:3b:00\.1 \({driver}\)")


@pytest.mark.parametrize(
    ("group", "unsafe", "module"),
    [("9", False, "vfio-pci"), ("", False, "uio_pci_generic"), ("", True, "vfio-pci")],
)
def test_the_module_that_a_bind_needs_is_named(tree: PciTree, group: str, unsafe: bool, module: str) -> None:
    tree.add("0000:3c:00.0", "igb", "eth2", group=group)
    if unsafe:
        tree.unsafe_vfio.parent.mkdir(parents=True)
        tree.unsafe_vfio.write_text("Y\n")
    (note,) = [note for endpoint, _, note in available() if endpoint == "pci:0000:3c:00.0"]
    assert f"As root: modprobe {module} && aiflow ports bind 0000:3c:00.0 (" in note
    shutil.rmtree(tree.driver(({"vfio-pci", "uio_pci_generic"} - {module}).pop()))
    (change,) = PciBinding(tree, tree.proc / "records", tree.network).plan_bind(["0000:3c:00.0"])
    assert change.after == module


def test_a_disk_in_the_group_is_not_offered_to_be_taken(tree: PciTree) -> None:
    tree.load("nvme")
    tree.add("0000:3b:00.1", "nvme", group="7", pci_class="0x010802")
    said = refused(r"shares IOMMU group 7 with 0000:3b:00\.1 \(nvme\).*Put the card into another.*disks are behind")
    assert "echo" not in said


@pytest.mark.parametrize(("driver", "usable"), [("vfio-pci", False), ("igb", True)])
def test_a_virtual_function_of_a_card_of_vfio_needs_a_token(tree: PciTree, driver: str, usable: bool) -> None:
    parent = tree.add("0000:3b:10.0", driver, *["eth2"] * (driver == "igb"), group="8")
    (tree.device(ADDRESS).path / "physfn").symlink_to(parent)
    if usable:
        pci_card.inspect_pci(CARD)
    else:
        refused(r"needs a VF token.*sriov_numvfs; aiflow ports unbind 0000:3b:10\.0;")


def test_a_group_without_a_file_is_refused(tree: PciTree) -> None:
    (tree.dev / "vfio/7").unlink()
    refused(rf"No such file.*In a container.*--device {tree.dev}/vfio/7\).*bind the card to vfio-pci again")


def test_a_container_of_vfio_that_cannot_be_opened_is_refused(tree: PciTree) -> None:
    (tree.dev / "vfio/vfio").unlink()
    refused(rf"vfio/vfio: No such file.*modprobe vfio-pci.*--device .*/vfio --device {tree.dev}/vfio/7\)")


@pytest.mark.parametrize(
    ("name", "user", "words"),
    [
        ("", 1000, "run as root, or give it to your user (as root: chown 1000"),
        ("vfio-noiommu", 1000, "needs root and hugepages"),
        ("", 0, "In a container, pass the device to it (--device FILE)"),
        ("vfio-noiommu", 0, "In a container, pass the device to it (--device FILE --cap-add SYS_RAWIO)"),
    ],
)
def test_what_a_user_without_rights_is_told(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, name: str, user: int, words: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    (tree.device(ADDRESS).path / "iommu_group/name").write_text(name)
    file = tree.dev / "vfio" / ("noiommu-7" if name else "7")
    file.touch()
    real = os.open

    def denied(path: str | os.PathLike[str], flags: int) -> int:
        if path == file:  # root may open everything
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(path, flags)

    monkeypatch.setattr(os, "open", denied)
    assert words in refused(f"no permission for {file}").replace(str(file), "FILE")


@pytest.mark.parametrize("own", [True, False])
def test_a_group_that_this_process_has_open_is_not_waited_for(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    real, tries = os.open, []

    def busy(path: str | os.PathLike[str], flags: int) -> int:
        if path == tree.dev / "vfio/7":
            tries.append(path)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return real(path, flags)

    monkeypatch.setattr(os, "open", busy)
    tree.hold(os.getpid() if own else 4711, "python3", "vfio/7")
    if own:
        pci_card.inspect_pci(CARD)
        assert len(tries) == 1
    else:
        refused(r"busy, process 4711 \(python3\) has")
        assert len(tries) > 4  # it may just have ended


def test_a_process_that_started_dpdk_before_vfio_is_told_to_start_again(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    _eal.start()
    monkeypatch.setattr(_eal, "started", lambda: True)
    if _eal.vfio_is_ready():
        pytest.skip("this machine has vfio")
    refused("vfio was not there yet when this process started DPDK .*: start the process again")


@pytest.mark.parametrize(("mib", "fits"), [(8, False), (300, True)])
def test_a_process_that_may_not_lock_its_heap_is_told(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, mib: int, fits: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (mib << 20, mib << 20))
    pci_card.inspect_pci(CARD)  # one with CAP_IPC_LOCK may
    monkeypatch.setattr(limits, "may", lambda capability: False)
    if fits:
        pci_card.inspect_pci(CARD)
    else:
        refused("heap of 248 MiB .* raise ulimit -l .*It is 8192 KiB now")


def test_hugepages_for_cards_are_tried_once_under_the_lock_of_a_start(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked = []

    def usable(nbytes: int, *, touch: bool = False) -> bool:
        other = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked.append(False)
        except BlockingIOError:
            locked.append(True)
        finally:
            os.close(other)
        return True

    (tmp_path / "hugepages-2048kB").mkdir()
    (tmp_path / "hugepages-2048kB/nr_hugepages").write_text("64\n")

    monkeypatch.setattr(_eal_args, "_HUGEPAGES", str(tmp_path))
    monkeypatch.setattr(_eal_args, "hugepages_usable", usable)
    monkeypatch.setenv("AIFLOW_MEMORY", "hugepages")
    tree.add("0000:3b:00.1", "vfio-pci", group="7")
    rows = [(endpoint, usable) for endpoint, usable, _ in available() if endpoint.startswith("pci:")]
    assert rows == [(CARD.text, True), ("pci:0000:3b:00.1", True)]
    assert locked == [True]
    pci_card.inspect_pci(CARD)
    assert locked == [True, True]


def test_a_narrow_iommu_needs_hugepages(tree: PciTree) -> None:
    cap = tree.device(ADDRESS).path / "iommu/intel-iommu/cap"
    cap.parent.mkdir(parents=True)
    cap.write_text("d2008c40660462\n")
    refused("fewer than 48 address bits, as many of Intel.s, so the card needs root and hugepages")


@pytest.mark.parametrize(("text", "physical", "usable"), [("Y", False, False), ("Y", True, True), ("N", False, True)])
def test_while_vfio_is_unsafe_a_card_behind_an_iommu_needs_physical_addresses(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, text: str, physical: bool, usable: bool
) -> None:
    monkeypatch.setattr(_eal_args, "uses_physical_addresses", lambda mode: physical)
    tree.unsafe_vfio.parent.mkdir(parents=True)
    tree.unsafe_vfio.write_text(f"{text}\n")
    if usable:
        pci_card.inspect_pci(CARD)
    else:
        refused(f"unsafe no-IOMMU mode is on.* echo 0 > {tree.unsafe_vfio}$")


@pytest.mark.parametrize("after", [True, False])
def test_a_process_that_started_dpdk_before_the_card_was_bound_is_told_to_start_again(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    on_uio(tree, monkeypatch, physical=False)
    monkeypatch.setattr(_eal, "started", lambda: True)
    monkeypatch.setattr(_eal, "memory_mode", lambda: "hugepages")
    monkeypatch.setattr(_eal, "uses_physical_addresses", lambda: False)
    monkeypatch.setattr(_eal_args, "uses_physical_addresses", lambda mode: after)
    refused("start the process again$" if after else "a card needs hugepages")


def test_a_card_of_uio_has_one_process(tree: PciTree, monkeypatch: pytest.MonkeyPatch, no_wait: None) -> None:
    on_uio(tree, monkeypatch)
    assert pci_card.inspect_pci(CARD) == -1
    first = pci_card.claim_uio(CARD)
    assert first is not None
    with pytest.raises(PortError, match="busy, another aiflow process"):
        pci_card.claim_uio(CARD)
    refused("busy, another aiflow process")
    first.close()
    assert pci_card.inspect_pci(CARD) == -1
    again = pci_card.claim_uio(CARD)
    assert again is not None
    again.close()


def test_a_card_of_uio_that_another_program_uses_is_busy(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, no_wait: None
) -> None:
    on_uio(tree, monkeypatch)
    tree.hold(4711, "testpmd", "uio3")
    refused(r"busy, process 4711 \(testpmd\) uses it")
    with pytest.raises(PortError, match="busy"):
        pci_card.claim_uio(CARD)


def test_a_card_of_uio_that_becomes_free_is_waited_for(tree: PciTree, monkeypatch: pytest.MonkeyPatch) -> None:
    on_uio(tree, monkeypatch)
    first = pci_card.claim_uio(CARD)
    assert first is not None
    threading.Timer(0.1, first.close).start()
    second = pci_card.claim_uio(CARD)
    assert second is not None
    second.close()


def test_a_card_of_uio_that_cannot_be_locked_is_a_port_error(tree: PciTree, monkeypatch: pytest.MonkeyPatch) -> None:
    on_uio(tree, monkeypatch)
    (tree.device(ADDRESS).path / "config").unlink()
    with pytest.raises(PortError, match="config: No such file"):
        pci_card.claim_uio(CARD)


def test_uio_needs_rights_and_physical_addresses(tree: PciTree, monkeypatch: pytest.MonkeyPatch) -> None:
    file = on_uio(tree, monkeypatch, physical=False)
    refused("a card needs hugepages")
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)
    refused(f"{file} cannot be written, though this is root: a container needs --privileged")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused(f"no permission for {file}: uio_pci_generic needs root and hugepages")
    file.unlink()
    refused(f"{file} is missing: a container needs --privileged")


def with_verbs(tree: PciTree, address: str) -> Path:
    """Give a card its file of RDMA; returns that."""
    (tree.device(address).path / "infiniband_verbs/uverbs0").mkdir(parents=True)
    (tree.dev / "infiniband").mkdir()
    (tree.dev / "infiniband/uverbs0").touch()
    return tree.dev / "infiniband/uverbs0"


def test_a_connectx_card_needs_its_file_of_rdma_and_lockable_memory(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.add("0000:5e:00.0", "mlx5_core", "eth5")
    monkeypatch.setattr(_build, "has_driver", lambda name: True)

    def said() -> str:
        with pytest.raises(PortError) as caught:
            pci_card.inspect_pci(parse_endpoint("pci:5e:00.0"))
        return str(caught.value)

    assert "modprobe -a mlx5_ib ib_uverbs, or use af_packet:eth5 as it is" in said()
    file = with_verbs(tree, "0000:5e:00.0")
    pci_card.inspect_pci(parse_endpoint("pci:5e:00.0"))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    monkeypatch.setattr(limits, "may", lambda capability: False)
    assert "raise ulimit -l" in said()
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)
    assert f"no permission for {file}. As root: chmod 666 {file}" in said()
    file.unlink()
    assert f"--device {file})" in said()


@pytest.mark.parametrize("inside", [True, False])
def test_a_connectx_card_needs_its_driver_in_dpdk(tree: PciTree, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    tree.add("0000:5e:00.0", "mlx5_core", "eth5")
    monkeypatch.setattr(_build, "has_driver", lambda name: inside and name == "net_mlx5")
    endpoint = parse_endpoint("pci:5e:00.0")
    with_verbs(tree, "0000:5e:00.0")
    if inside:
        assert pci_card.inspect_pci(endpoint) == -1
    else:
        with pytest.raises(PortError, match=r"lacks that: build aiflow from source.*or use af_packet:eth5 as it is"):
            pci_card.inspect_pci(endpoint)


def test_the_driver_of_connectx_is_found_in_dpdks_libraries() -> None:
    libraries = {path.name.partition(".")[0] for path in _build._libraries()}
    assert _build.has_driver("net_mlx5") is ("librte_net_mlx5" in libraries)
    assert _build.has_driver("net_mlx4") is ("librte_net_mlx4" in libraries)


@pytest.mark.parametrize("times", [1, 2])
def test_a_card_that_another_process_inspects_is_tried_once_more(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    busy = PortError(f"{CARD}: the card does not open: {CARD_IS_BUSY}")
    answers: list[object] = [busy] * times + ["a port"]

    def open_card(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, PortError):
            raise answer
        return answer

    monkeypatch.setattr(static_ports, "_open_card", open_card)
    if times == 1:
        assert static_ports.open_pci(CARD, None, lambda *_: None) == "a port"
    else:
        with pytest.raises(PortError, match="another process has the card open"):
            static_ports.open_pci(CARD, None, lambda *_: None)
