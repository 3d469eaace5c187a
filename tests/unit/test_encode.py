"""The compiled encoder says what the plain one in tests/support/manifest_oracle.py says, by each of its three ways."""

from __future__ import annotations

from types import MappingProxyType

import manifest_oracle
import numpy as np
import pytest

from aiflow import _encode
from aiflow._transfer import manifest
from aiflow._transfer.filemarks import FileMark, Marked
from aiflow._transfer.form import Form
from aiflow.errors import ConfigError

pytestmark = pytest.mark.unit

GRID = np.arange(24, dtype=np.float32).reshape(4, 6)


class Pair(tuple):
    """A tuple of two that is not exactly a tuple."""


CASES = {
    "nothing": [],
    "one array": [GRID],
    "bytes of one size": [b"abc", b"def", b""],
    "bytes of several": [b"abc", b"de", b"fg", b"hij"],
    "bytes and arrays alike": [b"abc", np.zeros(3, np.uint8), bytearray(b"xyz"), memoryview(b"uvw")],
    "arrays of one form": [GRID, GRID + 1, GRID.copy()],
    "shapes": [GRID, GRID.reshape(6, 4), GRID.reshape(24), GRID[0]],
    "dtypes": [GRID, GRID.view(np.int32), GRID.astype(">f4"), GRID.astype(np.float16), GRID > 3, GRID * 1j],
    "orders": [GRID.T, np.asfortranarray(GRID), GRID[::2], GRID[:, ::2]],
    "no plain dtype": [GRID.astype("M8[s]"), np.array(["a", "bc"]), np.zeros(2, "u1,f4"), np.array([b"x"])],
    "no axes, and none of them": [np.array(3.5), np.float32(2), np.zeros((0, 3)), np.zeros((3, 0), np.int8)],
    "a mapping": {"left": GRID, "right": GRID, "größe": b"abc", "": b""},
    "a mapping of like elements": {str(i): GRID for i in range(5)},
    "pairs": [("a", GRID), ("a", GRID), ("b", GRID), ["c", "d"][0:0] or GRID, ("a", b"1")],
    "pairs of a kind": [Pair(("a", GRID)), Pair(("a", GRID))],
    "a tuple": (GRID, ("x", GRID), GRID),
    "surrogates": {"\udcff": b"x"},
}


def by_the_oracle(elements: object) -> tuple[bytes, list[bytes]]:
    encoded, buffers = manifest_oracle.encode(manifest.described(elements))
    return encoded, [bytes(buffer) for buffer in buffers]


def contents_of(buffers: list[object]) -> list[bytes]:
    return [bytes(memoryview(buffer).cast("B") if memoryview(buffer).nbytes else b"") for buffer in buffers]


@pytest.mark.parametrize("elements", CASES.values(), ids=CASES.keys())
def test_same_manifest_and_same_bytes(elements: object) -> None:
    expected, contents = by_the_oracle(elements)
    encoded, buffers, nbytes = _encode.encode(elements)
    assert encoded == expected
    assert contents_of(buffers) == contents
    assert nbytes == sum(map(len, contents))


@pytest.mark.parametrize("elements", CASES.values(), ids=CASES.keys())
def test_described_elements_have_the_same_manifest(elements: object) -> None:
    expected, contents = by_the_oracle(elements)
    encoded, buffers, nbytes = _encode.encode_pieces(manifest.described(elements))
    assert encoded == expected
    assert contents_of(buffers) == contents
    assert nbytes == sum(map(len, contents))


@pytest.mark.parametrize("numbers", [[], [0], [1, 2, 3], [0, 2, 3, 7], [5, 4, 3]])
def test_a_part_of_numbered_elements_keeps_its_numbers(numbers: list[int]) -> None:
    pieces = list(manifest.described([GRID, b"ab", GRID, GRID, b"ab", b"cd", GRID, GRID]))
    part = [pieces[number] for number in numbers]
    assert _encode.encode_pieces(part)[:2] == manifest_oracle.encode(part)


def test_files_have_the_same_manifest_either_way() -> None:
    files = [
        Marked("a", b"one", FileMark("file", 0o644, 1)),
        Marked("b", GRID, FileMark("part", 0o644, 1, 10, 99)),
        Marked("c", b"", FileMark("part", 0o644, 1, 10, 99, hole=89)),
        Marked("d", b"", FileMark("directory")),
        Marked("e", b"", FileMark("question", 0o644, 1, size=99)),
        GRID,
    ]
    assert _encode.encode(files)[0] == by_the_oracle(files)[0]
    assert _encode.encode_pieces(manifest.described(files))[0] == by_the_oracle(files)[0]


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (700, 2, 2), (5,), (4, 0)])
def test_rows_have_the_same_manifest(shape: tuple[int, ...]) -> None:
    row = Form(np.dtype(np.float32), shape[1:])
    assert _encode.encode_rows("größe", row, shape[0]) == manifest_oracle.encode_rows("größe", row, shape[0])


@pytest.mark.parametrize(("stream", "count"), [("x" * 4097, 1), ("a", 2**32), (7, 1), ("\ud800", 1)])
def test_rows_that_cannot_be_sent_are_refused_alike(stream: object, count: int) -> None:
    row = Form(np.dtype(np.uint8), (3,))
    with pytest.raises((TypeError, ConfigError)) as expected:
        manifest_oracle.encode_rows(stream, row, count)  # type: ignore[arg-type]
    with pytest.raises(expected.type) as got:
        _encode.encode_rows(stream, row, count)  # type: ignore[arg-type]
    assert str(got.value) == str(expected.value)


def test_iterators_and_other_mappings() -> None:
    makers = (
        lambda: iter([GRID, ("a", GRID)]),
        lambda: (x for x in [b"1", b"2"]),
        lambda: {1: b"x", 2: b"y"}.values(),
        lambda: MappingProxyType({"a": GRID, "b": GRID}),
    )
    for make in makers:
        assert _encode.encode(make())[0] == by_the_oracle(make())[0]


@pytest.mark.parametrize(
    "elements", [GRID, b"abc", "abc", 3, ["abc"], [None], [np.array([None])], {1: b"x"}, [(1, b"x")], {"\ud800": b"x"},
                 [np.ma.masked_array([1, 2], [True, False])]],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_alike(elements: object) -> None:
    with pytest.raises(TypeError) as expected:
        by_the_oracle(elements)
    with pytest.raises(TypeError) as got:
        _encode.encode(elements)
    assert str(got.value) == str(expected.value)


def test_a_long_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long"):
        _encode.encode({"x" * 4097: b""})
