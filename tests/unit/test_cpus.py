"""Workers stay on their ports' own NUMA node."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiflow._system.cpus import cpus_near

pytestmark = pytest.mark.unit


def _nodes(tmp_path: Path, *lists: str) -> Path:
    for number, cpus in enumerate(lists):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(cpus + "\n")
    return tmp_path


def test_ports_of_one_node_have_its_cpus(tmp_path: Path) -> None:
    nodes = _nodes(tmp_path, "0-3,8-11", "4-7,12-15")
    assert cpus_near([1, 1, -1], nodes) == {4, 5, 6, 7, 12, 13, 14, 15}
    assert cpus_near([0], nodes) == {0, 1, 2, 3, 8, 9, 10, 11}


@pytest.mark.parametrize("sockets", [[], [-1], [0, 1]])
def test_ports_of_no_node_or_several_leave_the_choice_to_the_kernel(tmp_path: Path, sockets: list[int]) -> None:
    assert cpus_near(sockets, _nodes(tmp_path, "0-3", "4-7")) is None


def test_a_machine_of_one_node_has_no_choice(tmp_path: Path) -> None:
    assert cpus_near([0], _nodes(tmp_path, "0-1")) is None
