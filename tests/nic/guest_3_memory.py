"""The same with ordinary memory, of which DPDK maps each page for the card."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from consoles import Console
from guest_2_reference import check_both_ways_of_memory

import aiflow


@pytest.fixture(scope="module")
def no_huge() -> Iterator[tuple[Console, Console]]:
    """Two processes that use no hugepages: one with DPDK's default heap, one with a small one, which starts faster."""
    with Console(AIFLOW_MEMORY="no-huge") as a, Console(AIFLOW_MEMORY="no-huge", AIFLOW_EAL_MEMORY="64MiB") as b:
        yield a, b


def test_the_other_tests_use_hugepages(pair: tuple[Console, Console], ports: list[str]) -> None:
    mode = "from aiflow import _eal; _eal.start(); answer = _eal.memory_mode()"
    assert [console.run(mode) for console in pair] == ["hugepages"] * 2


@pytest.mark.parametrize("frame_size", ["None", "9014"])
def test_a_slice_without_hugepages(no_huge: tuple[Console, Console], ports: list[str], frame_size: str) -> None:
    a, b = no_huge
    b.run(f"rx = aiflow.Receiver({ports[1]!r}, frame_size={frame_size})")
    a.run(f"tx = aiflow.Sender({ports[0]!r}, frame_size={frame_size})")
    b.start("with rx.recv(timeout=60) as got: answer = same(got, images)")
    facts = a.run("answer = facts(tx.send(images, timeout=60))")
    assert b.finish()
    assert set(facts["ports"]) == {ports[0]}
    a.run("from aiflow import _eal; answer = tx.close()")
    assert a.run("answer = _eal.memory_mode()") == "no-huge"
    b.run("rx.close()")


def test_slices_by_reference_without_hugepages(no_huge: tuple[Console, Console], ports: list[str]) -> None:
    check_both_ways_of_memory(no_huge, ports)
    no_huge[1].run("rx.close()")


def test_a_heap_of_too_many_pages_is_refused_with_its_limit(ports: list[str]) -> None:
    with Console(AIFLOW_MEMORY="no-huge", AIFLOW_EAL_MEMORY="288MiB") as console:
        if str(aiflow.build_info()["dpdk"]).startswith("22."):  # it maps adjoining pages as one
            console.run(f"aiflow.Sender({ports[0]!r}).close()")
            return
        said = console.error(f"aiflow.Sender({ports[0]!r})")
        assert "dma_entry_limit" in said
        assert "AIFLOW_EAL_MEMORY" in said


def test_uio_without_hugepages_is_refused(cards: list[str], ports: list[str]) -> None:
    import machine

    machine.bind(cards[0], "uio_pci_generic")
    try:
        with Console(AIFLOW_MEMORY="no-huge") as console:
            said = console.error(f"aiflow.Sender({ports[0]!r})")
            assert "needs hugepages" in said
    finally:
        machine.bind(cards[0], "vfio-pci")
