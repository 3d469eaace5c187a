"""Memory of `aiflow.empty` where no card is: its life is that of its arrays. For cards see tests/nic/."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import aiflow
from aiflow import _eal_regions


def arrays() -> int:
    gc.collect()
    return _eal_regions.counts()["arrays"]


@pytest.mark.parametrize("nbytes", [1, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1])
def test_memory_ends_with_its_last_view(nbytes: int) -> None:
    before = arrays()
    array = aiflow.empty(nbytes)
    array[:] = 7
    assert array.ctypes.data % (2 << 20 if nbytes >= 2 << 20 else 4096) == 0
    view = array[nbytes // 2 :]
    del array
    assert arrays() == before + 1
    assert (view == 7).all()
    del view
    assert arrays() == before


def test_many_arrays_end_in_any_order() -> None:
    before = arrays()
    held = [aiflow.empty(5000) for _ in range(300)]
    for number in np.random.default_rng(1).permutation(300):
        held[number][:] = number % 251
    assert all((array == number % 251).all() for number, array in enumerate(held))
    del held[::2]
    assert arrays() == before + 150
    del held
    assert arrays() == before


@pytest.mark.parametrize("nbytes", [2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_memory_that_no_machine_has(nbytes: int) -> None:
    before = arrays()
    with pytest.raises(MemoryError, match=f"array of {nbytes} bytes"):
        _eal_regions.Memory(nbytes)
    assert arrays() == before


def test_memory_is_made_once_of_at_least_one_byte() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        _eal_regions.Memory(0)
    with pytest.raises(TypeError):
        _eal_regions.Memory.__new__(_eal_regions.Memory)  # type: ignore[call-arg]
    memory = _eal_regions.Memory(5)
    memory.__init__(7)  # type: ignore[misc]
    assert memoryview(memory).nbytes == 5


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_small_arrays_share_mappings_of_the_kernel() -> None:
    """A process has 65,530 by default; each array once took two."""
    before = mappings()
    held = [aiflow.empty(4096) for _ in range(2000)]
    for array in held:
        array[:] = 1
    assert mappings() < before + 100
    del held
    assert mappings() < before + 100


def test_other_ports_count_their_references() -> None:
    """memif copies in its burst: all memory goes by reference, and frees at once."""
    images = aiflow.empty((16, 100_000))
    images[:] = 5
    with aiflow.Receiver("memif:lending") as rx, aiflow.Sender("memif:lending") as tx:
        ticket = tx.send({str(number): image for number, image in enumerate(images)}, wait=False)
        with rx.recv(timeout=30) as got:
            assert all((element.array == 5).all() for element in got)
        ticket.result(timeout=30)
        assert tx.port_table[0].by_reference > 0
        assert rx.port_table[0].by_reference == 0
