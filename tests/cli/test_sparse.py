"""Sparse files: their holes do not travel, and are holes at the receiver. No port is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from outfiles import A

from aiflow.cli.filetree import SliceReader, walk
from aiflow.cli.holes import data_ranges
from aiflow.cli.outdir import OutDirectory

pytestmark = pytest.mark.unit
MIB = 1 << 20


def sparse(path: Path, nbytes: int, data: list[tuple[int, int]]) -> None:
    """A file of `nbytes` bytes with data in these ranges."""
    with open(path, "wb") as file:
        file.truncate(nbytes)
        for begin, end in data:
            file.seek(begin)
            file.write(os.urandom(end - begin))
    if path.stat().st_blocks * 512 > sum(end - begin for begin, end in data) + MIB:
        pytest.skip("a file system without holes")


CASES = {
    "nothing but a hole": [],
    "data at the beginning": [(0, MIB)],
    "data at the end": [(1023 * MIB, 1024 * MIB)],
    "data between holes": [(100 * MIB, 103 * MIB), (500 * MIB, 501 * MIB)],
    "more than a slice": [(10 * MIB, 25 * MIB), (1000 * MIB, 1024 * MIB)],
    "many": [(begin * MIB, begin * MIB + 4096) for begin in range(0, 1000, 10)],
}


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
@pytest.mark.parametrize("slice_bytes", [4 * MIB, 1 << 28])
def test_only_data_travels_and_holes_stay_holes(tmp_path: Path, data: list[tuple[int, int]], slice_bytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    sparse(source / "file", 1024 * MIB, data)
    (source / "small").write_bytes(b"small")
    nbytes = 0
    with OutDirectory(target) as out:
        for file_slice in SliceReader(walk(source), slice_bytes):
            nbytes += file_slice.nbytes
            assert file_slice.nbytes <= slice_bytes
            for stream, content, mark in file_slice.elements:
                out.write(stream, content, mark, A)
            assert out.sync() == {}
        assert (out.unfinished(), out.nb_files) == ([], 2)
    assert nbytes <= sum(end - begin for begin, end in data) + len(data) * 65536 + 5
    copied = target / "file"
    assert copied.stat().st_size == 1024 * MIB
    assert copied.stat().st_mtime_ns == (source / "file").stat().st_mtime_ns
    assert copied.stat().st_blocks <= (source / "file").stat().st_blocks + 2048
    with open(source / "file", "rb") as original, open(copied, "rb") as copy:
        for begin, end in data:
            original.seek(begin)
            copy.seek(begin)
            assert original.read(end - begin) == copy.read(end - begin)
        reached = 0
        for begin, end in [*data_ranges(copy.fileno(), 1024 * MIB), (1024 * MIB, 1024 * MIB)]:
            assert not any(reached < at < begin for at, _ in data)
            reached = end


def test_zeros_of_a_file_in_parts_become_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(bytes(8 * MIB) + os.urandom(MIB) + bytes(8 * MIB))
    with OutDirectory(target) as out:
        for file_slice in SliceReader(walk(source), 2 * MIB):
            for stream, content, mark in file_slice.elements:
                out.write(stream, content, mark, A)
    assert (target / "file").read_bytes() == (source / "file").read_bytes()
    assert (target / "file").stat().st_blocks * 512 <= 2 * MIB


def test_a_slice_of_a_file_with_many_holes_has_few_elements(tmp_path: Path) -> None:
    sparse(tmp_path / "file", 5000 * 65536, [(begin * 65536, begin * 65536 + 4096) for begin in range(5000)])
    slices = list(SliceReader(walk(tmp_path), 256 * MIB))
    assert [len(file_slice.elements) for file_slice in slices] == [2048, 2048, 5000 - 2 * 2048 + 2]
    assert sum(file_slice.nbytes for file_slice in slices) == 5000 * 4096
