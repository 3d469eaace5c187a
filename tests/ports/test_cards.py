"""Network cards without a card: what is said when one cannot be opened, and what every card's port needs.

`make nic-test` opens cards.
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

import pytest
from mbufs import everything_returned

import aiflow
from aiflow import _eal_args
from aiflow._eal_cards import card_advice
from aiflow._ports.card_watch import WatchedCard
from aiflow._system import descriptors, limits
from aiflow.config import parse_endpoint

unit = pytest.mark.unit
ADDRESS = "0000:3b:00.0"
CARD = parse_endpoint(f"pci:{ADDRESS}")


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


@unit
@pytest.mark.parametrize("kind", ["", "an IOMMU", "uio", "no-IOMMU mode", "a card in unsafe mode", "no card in it"])
def test_dpdk_starts_with_physical_addresses_where_a_card_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    groups, drivers = tmp_path / "iommu_groups", tmp_path / "drivers"
    if kind:
        (groups / "7").mkdir(parents=True)
    (drivers / "uio_pci_generic").mkdir(parents=True)
    (drivers / "uio_pci_generic" / "bind").touch()
    if kind == "uio":
        (drivers / "uio_pci_generic" / ADDRESS).touch()
    if kind == "no-IOMMU mode":
        (groups / "7" / "name").write_text("vfio-noiommu\n")
    (drivers / "vfio-pci").mkdir()
    if kind != "no card in it":
        (drivers / "vfio-pci" / ADDRESS).touch()
    (tmp_path / "unsafe").write_text("Y\n" if kind in ("a card in unsafe mode", "no card in it") else "N\n")
    monkeypatch.setattr(_eal_args, "_UNSAFE_VFIO", tmp_path / "unsafe")
    monkeypatch.setattr(_eal_args, "_IOMMUS", tmp_path / "none")
    monkeypatch.setattr(_eal_args, "_IOMMU_GROUPS", groups)
    monkeypatch.setattr(_eal_args, "_PCI_DRIVERS", drivers)
    monkeypatch.setattr(_eal_args, "_sees_physical_addresses", lambda: True)
    monkeypatch.setattr(_eal_args, "hugepages_usable", lambda nbytes, touch=False: True)
    monkeypatch.setattr(limits, "hugepage_limit", lambda: None)
    monkeypatch.setattr(limits, "file_limit", lambda: None)
    monkeypatch.setattr(limits, "address_space_left", lambda: None)
    monkeypatch.delenv("AIFLOW_MEMORY", raising=False)
    mode, arguments = _eal_args.choose("x")
    assert mode == "hugepages"
    assert ("--iova-mode" in arguments) is (kind in ("uio", "no-IOMMU mode", "a card in unsafe mode"))
    assert _eal_args.uses_physical_addresses(mode) is (kind not in ("an IOMMU", "no card in it"))
    assert not _eal_args.uses_physical_addresses("no-huge")


@unit
def test_an_open_card_of_uio_or_vfio_is_closed_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = tuple(name.replace("/dev/", f"{tmp_path}/") for name in descriptors._DEVICES)
    monkeypatch.setattr(descriptors, "_DEVICES", made_up)
    (tmp_path / "vfio").mkdir()
    names = ("uio0", "vfio/7", "vfio/vfio", "null")
    with contextlib.ExitStack() as opened:
        with descriptors.kept_devices():
            files = [opened.enter_context(open(tmp_path / name, "w")) for name in names]
        child = os.fork()
        if child == 0:
            os._exit(
                [os.path.exists(f"/proc/self/fd/{file.fileno()}") for file in files] != [False, False, False, True]
            )
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@unit
def test_the_state_of_a_card_can_be_asked_for_while_it_goes() -> None:
    watched = WatchedCard(CARD)  # whose port another thread has just taken away
    watched.refresh()
    assert watched.state == "up"  # as last seen


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
