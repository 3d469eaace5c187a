"""Network cards without a card: what is said when one cannot be opened, and what every card's port needs.

`make nic-test` opens cards.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from mbufs import everything_returned

import aiflow
from aiflow import _eal_args
from aiflow._eal_cards import card_advice
from aiflow._ports import pci_card
from aiflow._system import descriptors
from aiflow.config import parse_endpoint
from aiflow.errors import PortError

unit = pytest.mark.unit
CARD = parse_endpoint("pci:3b:00.0")


@unit
@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("EAL: 0000:3b:00.0 DMA remapping failed, error 28 (No space left on device)", "dma_entry_limit"),
        ("EAL: 0000:3b:00.0 DMA remapping failed, error 12 (Cannot allocate memory)", "ulimit -l"),
        ("EAL:   Expecting 'PA' IOVA mode but current mode is 'VA', not initializing", "needs hugepages"),
        ("EAL: Cannot open /dev/vfio/7: Device or resource busy", "another process"),
        ("EAL: 0000:3b:00.0 VFIO group is not viable! Not all devices in IOMMU group bound to VFIO", "IOMMU group"),
        ("EAL: something else", ""),
    ],
)
def test_what_dpdk_logs_of_a_card_becomes_advice(log: str, words: str) -> None:
    said = card_advice(log, "no-huge")
    assert words in said
    assert bool(words) == bool(said)


@unit
def test_the_default_heap_can_be_mapped_for_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIFLOW_EAL_MEMORY", raising=False)
    pages = _eal_args.memory_mib() * 256
    assert pages < 65535  # the default of vfio_iommu_type1's dma_entry_limit


@unit
@pytest.mark.parametrize(("cap", "narrow"), [("d2008c40660462", True), ("8d2078c106f0466", False)])
def test_an_iommu_of_39_bits_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str, narrow: bool
) -> None:
    (tmp_path / "dmar0" / "intel-iommu").mkdir(parents=True)
    (tmp_path / "dmar0" / "intel-iommu" / "cap").write_text(f"{cap}\n")
    monkeypatch.setattr(_eal_args, "_IOMMUS", tmp_path)
    assert _eal_args.narrow_iommu() is narrow


def a_card(devices: Path, address: str, driver: str, group: Path) -> Path:
    """A network card in a copy of sysfs."""
    device = devices / address
    device.mkdir(parents=True)
    (device / "class").write_text("0x020000\n")
    (device / "config").write_bytes(bytes(64))
    (devices / driver).mkdir(exist_ok=True)
    (device / "driver").symlink_to(devices / driver)
    (group / "devices").mkdir(parents=True, exist_ok=True)
    (group / "devices" / address).mkdir()
    (device / "iommu_group").symlink_to(group)
    return device


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of sysfs, and of /dev/vfio beside it."""
    monkeypatch.setattr(pci_card, "PCI_DEVICES", tmp_path / "devices")
    monkeypatch.setattr(pci_card, "VFIO", tmp_path / "vfio")
    (tmp_path / "vfio").mkdir()
    return tmp_path


@unit
def test_a_card_whose_group_can_be_opened_is_taken(bus: Path) -> None:
    a_card(bus / "devices", "0000:3b:00.0", "vfio-pci", bus / "7")
    a_card(bus / "devices", "0000:3b:00.1", "vfio-pci", bus / "7")
    (bus / "vfio" / "7").touch()
    assert pci_card.inspect_pci(CARD) == -1


@unit
def test_a_card_that_shares_its_group_with_a_card_of_the_kernel_is_refused(bus: Path) -> None:
    a_card(bus / "devices", "0000:3b:00.0", "vfio-pci", bus / "7")
    a_card(bus / "devices", "0000:3b:00.1", "igb", bus / "7")
    (bus / "vfio" / "7").touch()
    told = r"0000:3b:00\.1 is in the same IOMMU group.*igb driver has it.*aiflow ports bind 0000:3b:00\.1"
    with pytest.raises(PortError, match=told):
        pci_card.inspect_pci(CARD)


@unit
def test_a_group_without_a_file_is_refused(bus: Path) -> None:
    a_card(bus / "devices", "0000:3b:00.0", "vfio-pci", bus / "7")
    with pytest.raises(PortError, match=r"No such file.*bind the card to vfio-pci again"):
        pci_card.inspect_pci(CARD)


@unit
def test_a_card_of_uio_has_one_process(bus: Path) -> None:
    a_card(bus / "devices", "0000:3b:00.0", "uio_pci_generic", bus / "7")
    first = pci_card.claim_uio(CARD)
    assert first is not None
    with pytest.raises(PortError, match="busy, another aiflow process"):
        pci_card.claim_uio(CARD)
    first.close()
    again = pci_card.claim_uio(CARD)
    assert again is not None
    again.close()


@unit
def test_a_forked_child_closes_the_devices_that_a_library_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_DEVICES", ("anon_inode:[eventpoll]",))
    with descriptors.kept_devices():
        polled = select.epoll()
    other = select.epoll()
    with polled, other:
        child = os.fork()
        if child == 0:
            kept = [os.path.exists(f"/proc/self/fd/{fd.fileno()}") for fd in (polled, other)]
            os._exit(kept != [False, True])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not os.get_inheritable(polled.fileno())


@unit
def test_a_number_that_now_is_another_file_stays_open_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_DEVICES", ("anon_inode:[eventpoll]",))
    with descriptors.kept_devices():
        polled = select.epoll()
    number = polled.fileno()
    polled.close()
    assert os.eventfd(0) == number  # an anonymous inode, too; the lowest free number
    child = os.fork()
    if child == 0:
        os._exit(not os.path.exists(f"/proc/self/fd/{number}"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(number)


def test_frames_to_send_lie_in_memory_that_a_card_can_read() -> None:
    with everything_returned(), aiflow.Receiver("vdev:net_null_cards,copy=1", assemble=False, memory="16MiB") as rx:
        loop = rx._engine.agent.loop
        assert loop.open_ports[0].needs_eal_memory
        assert not loop.tx_pool.own_memory
