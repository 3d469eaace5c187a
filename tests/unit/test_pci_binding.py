"""Binding of network cards, in a made-up sysfs. The guest with emulated cards runs the same commands on a kernel."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from pci_tree import CARD, World

from aiflow._ports.interface_use import read_network
from aiflow._ports.pci_binding import PciBinding
from aiflow._ports.pci_device import Sysfs
from aiflow.errors import ConfigError, PortError

pytestmark = pytest.mark.unit

OTHER = "0000:3b:00.1"
BIND = [
    f"devices/{CARD}/driver_override vfio-pci",
    f"drivers/igb/unbind {CARD}",
    f"drivers_probe {CARD}",
]
GIVE_BACK = [f"devices/{CARD}/driver_override", f"drivers/vfio-pci/unbind {CARD}", f"drivers/igb/bind {CARD}"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def refused(world: World, pattern: str, *addresses: str, driver: str = "") -> str:
    """A bind that is refused before anything is written; returns the message."""
    with pytest.raises((PortError, ConfigError), match=pattern) as caught:
        world.bind(*addresses, driver=driver)
    assert world.tree.written == []
    assert not world.records.exists()
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- there and back again


def test_a_card_goes_to_vfio_and_back_to_its_driver(world: World) -> None:
    assert world.bind() == ["vfio-pci"]
    assert world.tree.written == BIND
    assert (world.driver(), world.override()) == ("vfio-pci", "vfio-pci")
    world.tree.written.clear()
    world.binding = PciBinding(world.tree, world.records, world.binding.network)  # another process
    assert world.unbind() == ["igb"]
    assert world.tree.written == GIVE_BACK
    assert (world.driver(), world.override()) == ("igb", "")
    assert world.tree.device(CARD).interfaces == ["eth1"]
    assert not list(world.records.glob("*.json"))


def test_a_card_without_a_driver_gets_none_back(world: World) -> None:
    world.tree.vacate(CARD)
    world.bind()
    assert world.tree.written == [BIND[0], BIND[2]]
    assert world.unbind() == [""]
    assert (world.driver(), world.override()) == ("", "")


def test_an_override_of_the_users_is_restored(world: World) -> None:
    (world.tree.device(CARD).path / "driver_override").write_text("igb\n")
    world.bind()
    world.unbind()
    assert (world.driver(), world.override()) == ("igb", "igb")


def test_commands_that_find_their_work_done_write_nothing(world: World) -> None:
    (change,) = world.binding.plan_unbind([CARD])
    assert (change.writes, change.notes) == ((), ("it is bound to igb, not for DPDK",))
    assert world.unbind() == ["igb"]
    world.bind()
    world.tree.written.clear()
    (change,) = world.binding.plan_bind([CARD])
    assert (change.writes, change.notes) == ((), ("it is bound to vfio-pci already",))
    assert world.bind() == ["vfio-pci"]
    assert world.tree.written == []


def test_a_card_that_another_program_bound_goes_to_the_driver_of_the_kernels_choice(world: World) -> None:
    world.bind()
    shutil.rmtree(world.records)
    (change,) = world.binding.plan_unbind([CARD])
    assert (change.after, change.notes) == (None, ("its former driver is not known: the kernel chooses one",))
    assert world.unbind() == ["igb"]
    assert world.override() == ""


def test_a_card_that_no_driver_takes_back_is_an_error(world: World) -> None:
    world.bind()
    shutil.rmtree(world.records)
    shutil.rmtree(world.tree.driver("igb"))
    pattern = rf"^{CARD}: no driver took the card: modprobe its driver, then echo {CARD} > .*/drivers_probe$"
    for _ in range(2):
        with pytest.raises(PortError, match=pattern):
            world.unbind()
        assert (world.driver(), world.override()) == ("", "")
    world.tree.load("igb")
    assert world.unbind() == ["igb"]


def test_a_card_that_vfio_takes_again_was_not_given_back(world: World) -> None:
    world.bind()
    shutil.rmtree(world.records)
    world.tree.native[CARD] = "vfio-pci"  # as with its parameter ids=
    with pytest.raises(PortError, match=r"^0000:3b:00\.0: vfio-pci took the card again.*ids=") as caught:
        world.unbind()
    assert f"echo {CARD} > {world.tree.driver('vfio-pci')}/unbind; echo {CARD} > " in str(caught.value)
    assert "/drivers/DRIVER/bind" in str(caught.value)
    assert world.driver() == "vfio-pci"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"driver": 3}', '{"driver": "igb", "override": ""}'])
def test_a_damaged_record_is_no_record(world: World, text: str) -> None:
    world.bind()
    (world.records / f"{CARD}.json").write_text(text)
    assert world.binding.plan_unbind([CARD])[0].after is None
    assert world.unbind() == ["igb"]


def test_the_record_of_a_card_that_was_replaced_is_not_used(world: World) -> None:
    world.bind()
    (world.tree.device(CARD).path / "device").write_text("0x1572\n")
    assert world.binding.plan_unbind([CARD])[0].after is None


def test_from_uio_to_vfio_the_driver_of_the_kernel_stays_remembered(world: World) -> None:
    world.bind(driver="uio_pci_generic")
    world.bind(driver="vfio-pci")
    assert world.driver() == "vfio-pci"
    assert json.loads((world.records / f"{CARD}.json").read_text())["driver"] == "igb"
    assert world.unbind() == ["igb"]


def test_an_override_left_over_is_cleared_and_one_of_the_users_stays(world: World) -> None:
    override = world.tree.device(CARD).path / "driver_override"
    world.routes = [("eth1", "default via 10.0.0.1")]  # no change of the driver: no danger
    override.write_text("vfio-pci\n")
    assert world.unbind() == ["igb"]
    assert world.tree.written == [GIVE_BACK[0]]
    override.write_text("igb\n")
    assert world.binding.plan_unbind([CARD])[0].writes == ()


@pytest.mark.parametrize("override", ["", "vfio-pci"])
def test_unbind_drops_the_record_of_a_card_that_another_program_gave_back(world: World, override: str) -> None:
    world.bind()
    world.tree.write(world.tree.device(CARD).path / "driver_override", override or "\n")
    world.tree.write(world.tree.driver("vfio-pci") / "unbind", CARD)
    (world.tree.device(CARD).path / "driver").symlink_to(world.tree.driver("igb"))
    assert world.unbind() == ["igb"]
    assert not list(world.records.glob("*.json"))


@pytest.mark.parametrize("text", [CARD, "3b:00.0", "pci:0000:3B:00.0", "3b:0.0"])
def test_every_form_of_an_address(world: World, text: str) -> None:
    assert [change.address for change in world.binding.plan_bind([text, CARD])] == [CARD]


def test_the_interface_of_a_virtio_card_is_found_below_its_virtio_device(world: World) -> None:
    path = world.tree.add(OTHER)
    (path / "virtio0/net/eth5").mkdir(parents=True)
    assert world.tree.device(OTHER).interfaces == ["eth5"]


# --------------------------------------------------------------------------------------------------- choice of a driver


def test_without_an_iommu_it_is_uio(world: World) -> None:
    world.tree.add(OTHER, "igb", "eth2")
    (change,) = world.binding.plan_bind([OTHER])
    assert change.after == "uio_pci_generic"
    assert "no IOMMU isolates it" in change.notes[0]
    assert world.bind(OTHER) == ["uio_pci_generic"]
    assert world.unbind(OTHER) == ["igb"]


def test_vfio_without_an_iommu_is_refused_and_the_unsafe_mode_is_used_where_it_is_on(world: World) -> None:
    world.tree.add(OTHER, "igb", "eth2")
    assert "enable_unsafe_noiommu_mode" in refused(world, "no IOMMU isolates it", OTHER, driver="vfio-pci")
    parameter = world.tree.root / "module/vfio/parameters/enable_unsafe_noiommu_mode"
    parameter.parent.mkdir(parents=True)
    parameter.write_text("N\n")
    assert world.binding.plan_bind([OTHER])[0].after == "uio_pci_generic"
    parameter.write_text("Y\n")
    (change,) = world.binding.plan_bind([OTHER])
    assert change.after == "vfio-pci"
    assert "unsafe" in change.notes[0]


def test_uio_on_a_card_with_an_iommu_is_said_to_be_the_lesser_choice(world: World) -> None:
    (change,) = world.binding.plan_bind([CARD], "uio_pci_generic")
    assert "vfio-pci would isolate it" in change.notes[0]


def test_a_card_that_dpdk_shares_with_the_kernel_needs_no_binding(world: World) -> None:
    world.tree.load("mlx5_core")
    world.tree.add(OTHER, "mlx5_core", "eth2")
    assert world.binding.plan_bind([OTHER])[0].writes == ()
    refused(world, "together with the kernel's mlx5_core", OTHER, driver="vfio-pci")


# ------------------------------------------------------------------------------------------------------------- refusals


def test_the_card_of_the_default_route_is_refused(world: World) -> None:
    world.routes = [("eth1", "10.0.0.0/24"), ("eth1", "default via 10.0.0.1")]
    said = refused(world, r"eth1 carries the host's default route \(default via 10\.0\.0\.1\)")
    assert "af_packet:eth1" in said
    assert "link set" not in said  # no advice that cuts the host off


def test_the_card_of_any_route_is_refused(world: World) -> None:
    world.routes = [("eth1", f"10.{n}.0.0/16") for n in range(5)]
    said = refused(world, r"eth1 carries the host's routes 10\.0\.0\.0/16, 10\.1\.0\.0/16, 10\.2\.0\.0/16 and 2 more")
    assert "ip link set dev eth1 down" in said


def test_a_card_that_is_up_with_addresses_is_refused_and_one_that_is_down_is_not(world: World) -> None:
    world.addresses = {"eth1": "fe80::1/64"}
    world.tree.interface("eth1", up=True)
    refused(world, r"eth1 is up with address fe80::1/64")
    world.tree.interface("eth1", up=False)
    assert world.bind() == ["vfio-pci"]


def test_a_card_below_a_bridge_over_a_bond_is_refused(world: World) -> None:
    shutil.rmtree(world.tree.root / "class/net/eth1")
    world.tree.interface("eth1", "bond0")
    world.tree.interface("bond0", "br0")
    world.tree.interface("br0")
    refused(world, r"bond0 is built on eth1.*ip link set dev eth1 nomaster")
    world.routes = [("br0", "default via 10.0.0.1")]
    refused(world, r"br0, which is built on eth1, carries the host's default route")
    world.routes = []
    world.addresses = {"br0": "10.0.0.2/24"}
    world.tree.interface("br0", up=True)
    refused(world, r"br0, which is built on eth1, is up with address 10\.0\.0\.2/24")


def test_a_card_whose_interface_is_elsewhere_is_refused(world: World) -> None:
    world.tree.add(OTHER, "igb")  # its interface is in a container
    refused(world, "another network namespace", OTHER)
    del world.tree.numbers["eth1"]  # sysfs is of another namespace than this process
    refused(world, "another network namespace")


def test_a_card_with_virtual_functions_is_refused_and_a_virtual_function_is_not(world: World) -> None:
    function = world.tree.add("0000:3b:10.0", "igb", "eth3", group="13")
    (world.tree.device(CARD).path / "virtfn0").symlink_to("../0000:3b:10.0")
    (function / "physfn").symlink_to(f"../{CARD}")
    refused(world, r"virtual functions on it \(0000:3b:10\.0\).*sriov_numvfs")
    (change,) = world.binding.plan_bind(["3b:10.0"])
    assert f"it is a virtual function of {CARD}" in change.notes
    assert world.bind("3b:10.0") == ["vfio-pci"]


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic"])
def test_a_card_of_dpdk_with_virtual_functions_is_not_given_back(world: World, driver: str) -> None:
    world.bind(driver=driver)
    function = world.tree.device(CARD).path / "virtfn0"
    function.symlink_to("../0000:3b:10.0")
    with pytest.raises(
        PortError, match=rf"{driver} has made virtual functions on it \(0000:3b:10\.0\).* Remove them first"
    ):
        world.unbind()
    assert world.driver() == driver
    function.unlink()
    assert world.unbind() == ["igb"]


def test_other_devices_of_the_iommu_group_must_go_along(world: World) -> None:
    world.tree.add(OTHER, "igb", "eth2", group="12")
    world.tree.load("pcieport")
    world.tree.add("0000:3a:00.0", "pcieport", group="12", pci_class="0x060400")
    world.tree.add("0000:3b:00.2", group="12")  # bound to no driver
    said = refused(world, rf"shares IOMMU group 12 with {OTHER} \(igb\), and vfio-pci needs the whole group")
    assert f"As root: aiflow ports bind {CARD} {OTHER}. Or put" in said
    assert world.bind(CARD, OTHER) == ["vfio-pci", "vfio-pci"]


def test_a_neighbour_that_goes_along_must_get_vfio_too(world: World) -> None:
    world.tree.add(OTHER, "igb", "eth2", group="12")
    world.bind(OTHER, driver="uio_pci_generic")
    world.tree.written.clear()
    for addresses in ((CARD,), (CARD, OTHER)):
        with pytest.raises(PortError, match=rf"shares IOMMU group 12 with {OTHER} \(uio_pci_generic\)") as caught:
            world.bind(*addresses)
        assert f"aiflow ports bind --driver vfio-pci {CARD} {OTHER}. Or put" in str(caught.value)
    assert world.tree.written == []
    assert world.bind(CARD, OTHER, driver="vfio-pci") == ["vfio-pci", "vfio-pci"]


@pytest.mark.parametrize("pci_class", ["0x040300", "0x060100"])
def test_a_neighbour_that_is_no_network_card_is_taken_from_its_driver_by_hand(world: World, pci_class: str) -> None:
    world.tree.load("snd_hda_intel")
    sound = "0000:3b:00.3"
    world.tree.add(sound, "snd_hda_intel", group="12", pci_class=pci_class)
    command = f"echo {sound} > {world.tree.driver('snd_hda_intel')}/unbind"
    said = refused(world, rf"{sound} \(snd_hda_intel\).* Put the card into another slot\. Or, only if the machine")
    assert f"can do without {sound} (USB may have the keyboard), as root: {command}; aiflow ports bind {CARD}" in said
    world.tree.write(world.tree.driver("snd_hda_intel") / "unbind", sound)
    assert world.bind() == ["vfio-pci"]


@pytest.mark.parametrize(
    ("driver", "pci_class", "why"),
    [
        ("nvme", "0x010802", "disks are behind it"),
        ("ahci", "0x010601", "disks are behind it"),
        ("mlx5_core", "0x020000", "a card stays with mlx5_core"),
        ("e1000e", "0x020000", "eth2 carries the host's default route"),
    ],
)
def test_a_neighbour_that_must_stay_is_not_offered_to_be_taken(
    world: World, driver: str, pci_class: str, why: str
) -> None:
    for name in (driver, "xhci_hcd"):
        world.tree.load(name)
    world.tree.add(OTHER, driver, *["eth2"] * (pci_class == "0x020000"), group="12", pci_class=pci_class)
    world.tree.add("0000:3b:00.2", "xhci_hcd", group="12", pci_class="0x0c0330")
    if driver == "e1000e":
        world.routes = [("eth2", "default via 10.0.0.1")]
    for addresses in [(CARD,), (CARD, OTHER)][: 1 + (driver == "mlx5_core")]:
        said = refused(world, f"Put the card into another slot. {OTHER}: {why}", *addresses)
        assert "echo" not in said
        assert "ports bind" not in said


def test_if_one_of_several_is_refused_none_is_changed(world: World) -> None:
    world.tree.add(OTHER, "igb", "eth2", group="13")
    world.routes = [("eth2", "default")]
    refused(world, f"^{OTHER}: eth2 carries", CARD, OTHER)
    assert world.driver() == "igb"


@pytest.mark.parametrize(
    ("address", "pattern"),
    [
        ("0000:3b:00.7", rf"no such PCI device\. Similar addresses of network cards: {CARD}"),
        ("0001:3b:00.0", rf"no such PCI device\. Similar addresses of network cards: {CARD}"),
        ("0000:ff:1f.7", rf"no such PCI device\. The network cards are {CARD}"),
        ("0000:00:02.0", rf"no network card \(PCI class 0x03\)\..*{CARD}"),
        ("eth1", rf"eth1 is the interface of the card {CARD}"),
        ("eth9", rf"'eth9' is no PCI address such as 0000:3b:00\.0\. The network cards are {CARD}"),
        ("../../x", "is no PCI address"),
        ("", "is no PCI address"),
    ],
)
def test_addresses_of_no_network_card(world: World, address: str, pattern: str) -> None:
    world.tree.add("0000:00:02.0", pci_class="0x030000")
    refused(world, pattern, address)


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic"])
def test_a_driver_that_is_not_loaded_is_named_with_modprobe(world: World, driver: str) -> None:
    shutil.rmtree(world.tree.driver(driver))
    refused(world, f"modprobe {driver}$", driver=driver)


def test_a_former_driver_that_is_not_loaded_is_named_with_modprobe(world: World) -> None:
    world.bind()
    shutil.rmtree(world.tree.driver("igb"))
    world.tree.written.clear()
    with pytest.raises(PortError, match=r"modprobe igb$"):
        world.unbind()
    assert world.tree.written == []
    assert world.driver() == "vfio-pci"


@pytest.mark.parametrize("file", ["vfio/12", "vfio/devices/vfio0", "uio3"])
def test_a_card_that_a_process_holds_is_not_taken_away(world: World, file: str) -> None:
    world.bind(driver="uio_pci_generic" if "uio" in file else "vfio-pci")
    (world.tree.device(CARD).path / "uio/uio3").mkdir(parents=True)
    (world.tree.device(CARD).path / "vfio-dev/vfio0").mkdir(parents=True)
    world.tree.hold(4711, "python3", file)
    world.tree.hold(4712, "sh", "/dev/null")
    with pytest.raises(PortError, match=r"busy, in use by process 4711 \(python3\)\. Close"):
        world.unbind()
    shutil.rmtree(world.tree.proc / "4711")
    assert world.unbind() == ["igb"]


def test_a_process_that_holds_a_device_is_found_in_the_real_proc(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = world.tree.device(CARD)
    world.tree.proc = Path("/proc")
    file = tmp_path / "a file of the card"
    monkeypatch.setattr(device, "device_files", lambda: [str(file)])
    with open(file, "w"):
        (holder,) = device.holders()
        assert re.fullmatch(rf"{os.getpid()} \(.+\)", holder)
    assert device.holders() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_users_without_rights_are_told_so(world: World) -> None:
    (world.tree.bus / "drivers_probe").chmod(0o444)
    refused(world, "only root may change the driver of a card: sudo")


def test_a_second_command_at_the_same_time_is_refused(world: World) -> None:
    world.records.mkdir(parents=True)
    with open(world.records / "lock", "w") as held:
        held.write(f"{os.getpid()}\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PortError, match=f"another command changes drivers now \\(process {os.getpid()}\\)"):
            world.bind()
    assert world.tree.written == []
    assert world.bind() == ["vfio-pci"]


# ----------------------------------------------------------------------------------------------------- the real machine


def test_the_cards_of_this_machine_can_be_read() -> None:
    """Reads only. Every card has an address, and those with a driver have its name."""
    for card in Sysfs().network_cards():
        assert re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", card.address)
        assert card.identity.count(":") == 1
        assert "/" not in card.driver


def test_the_card_of_this_machines_default_route_is_refused(tmp_path: Path) -> None:
    """A plan only: nothing is written."""
    network = read_network()
    routed = {route.interface for route in network.routes if route.is_default}
    names = {name for name, number in network.numbers.items() if number in routed}
    cards = [card for card in Sysfs().network_cards() if names & set(card.interfaces)]
    if not cards:
        pytest.skip("no card of this network namespace carries a default route")
    with pytest.raises(PortError, match="carries the host's default route"):
        PciBinding(records=tmp_path).plan_bind([cards[0].address])
