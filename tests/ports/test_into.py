"""recv(into=…): elements lie in the arrays that the user gave, whichever way they came there."""

from __future__ import annotations

import array
import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from into_arrays import IMAGES, LABELS, Call, address, joined, of_both
from wait import PATIENCE_S

from aiflow.errors import ConfigError

rng = np.random.default_rng(17)
SCHEMES = pytest.mark.parametrize("scheme", ["ring", "local"])


# ---- the two ways into an array ----


@SCHEMES
def test_a_slice_comes_straight_into_the_arrays_of_a_call_that_waits(scheme: str, name: str) -> None:
    batch = np.zeros_like(IMAGES)
    with joined(scheme, name) as (tx, rx):
        call = Call(rx, PATIENCE_S, into={"image": batch})
        tx.send(of_both())
        with call.ended() as time_slice:
            assert time_slice.copied == 0
            assert rx.memory_used < IMAGES[0].nbytes  # tables, and the labels
            assert np.array_equal(batch, IMAGES)
            assert np.array_equal(time_slice["label"].array, LABELS)
            rows = time_slice.as_arrays()["image"]
            assert address(rows) == address(batch)
            for element, row in zip(time_slice.stream("image"), batch, strict=True):
                assert address(element.array) == address(row)
            rows[3] = 7
            assert (batch[3] == 7).all()


@SCHEMES
def test_a_slice_that_is_whole_already_is_copied_and_its_memory_comes_back(scheme: str, name: str) -> None:
    batch, labels = np.zeros_like(IMAGES), np.zeros_like(LABELS)
    with joined(scheme, name) as (tx, rx):
        tx.send(of_both())
        assert rx.memory_used > IMAGES.nbytes
        time_slice = rx.recv(PATIENCE_S, into={"label": labels, "image": batch})
        assert time_slice.copied == IMAGES.nbytes + LABELS.nbytes
        assert np.array_equal(batch, IMAGES)
        assert np.array_equal(labels, LABELS)
        assert address(time_slice["label"].array) == address(labels)
        assert address(time_slice[0].array) == address(batch)
        assert rx.memory_used < 10_000
        time_slice.release()
        del time_slice
        assert rx.memory_used == 0


def test_streams_that_are_not_named_keep_their_memory_beside_copied_ones(name: str) -> None:
    labels = np.zeros_like(LABELS)
    with joined("ring", name) as (tx, rx):
        tx.send(of_both())
        with rx.recv(PATIENCE_S, into={"label": labels}) as time_slice:
            assert time_slice.copied == LABELS.nbytes
            assert np.array_equal(time_slice.as_arrays()["image"], IMAGES)


@SCHEMES
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("nbytes", [0, 1, 700, 100_000])
def test_one_element_takes_its_shape_or_a_batch_of_one(scheme: str, name: str, waits: bool, nbytes: int) -> None:
    sent = rng.integers(0, 256, nbytes, np.uint8)  # small ones travel inside the manifest's frame
    with joined(scheme, name) as (tx, rx):
        for shape in [(nbytes,), (1, nbytes)]:
            target = np.zeros(shape, np.uint8)
            if waits:
                call = Call(rx, PATIENCE_S, into={"x": target})
                tx.send({"x": sent})
                time_slice = call.ended()
                assert time_slice.copied == 0
            else:
                tx.send({"x": sent})
                time_slice = rx.recv(PATIENCE_S, into={"x": target})
                assert time_slice.copied == nbytes
            assert np.array_equal(target.ravel(), sent)
            assert np.array_equal(time_slice["x"].array, sent)
            assert nbytes == 0 or np.shares_memory(time_slice["x"].array, target)


@pytest.mark.parametrize("dtype", ["?", "<f4", ">i4", "<c16", "S7", "<M8[ns]", "V9"])
def test_every_dtype_comes_into_arrays(name: str, dtype: str) -> None:
    sent = np.frombuffer(rng.integers(0, 2, 5 * np.dtype(dtype).itemsize, np.uint8).tobytes(), dtype)
    with joined("ring", name) as (tx, rx):
        for waits in (True, False):
            target = np.zeros_like(sent)
            if waits:
                call = Call(rx, PATIENCE_S, into={"x": target})
                tx.send({"x": sent})
                time_slice = call.ended()
                assert time_slice.copied == 0
            else:
                tx.send({"x": sent})
                time_slice = rx.recv(PATIENCE_S, into={"x": target})
            assert target.tobytes() == sent.tobytes() == time_slice["x"].tobytes()
            assert time_slice["x"].dtype == sent.dtype


def test_elements_of_a_stream_that_lie_apart_in_the_slice_are_joined(name: str) -> None:
    batch = np.zeros_like(IMAGES)
    mixed = [(stream, piece) for image in IMAGES for stream, piece in (("image", image), ("label", LABELS))]
    with joined("ring", name) as (tx, rx):
        call = Call(rx, PATIENCE_S, into={"image": batch})
        tx.send(mixed)
        time_slice = call.ended()
        assert time_slice.copied == IMAGES.nbytes
        assert np.array_equal(batch, IMAGES)
        assert [address(element.array) for element in time_slice.stream("image")] == [address(row) for row in batch]


def test_more_arrays_than_the_loop_looks_at_are_filled_too(name: str) -> None:
    arrays = {f"s{number}": np.zeros(10, np.uint8) for number in range(200)}
    with joined("ring", name) as (tx, rx):
        tx.send({stream: np.full(10, number, np.uint8) for number, stream in enumerate(arrays)})
        assert rx.recv(PATIENCE_S, into=arrays).copied == 2000
        assert all((array == number).all() for number, array in enumerate(arrays.values()))


@SCHEMES
def test_lost_and_damaged_frames_leave_no_trace_in_the_arrays(scheme: str, name: str) -> None:
    sent = rng.integers(0, 256, (40, 50_000), np.uint8)
    with joined(scheme, name, faults={"drop": 0.05, "corrupt": 0.05, "seed": 3}) as (tx, rx):
        for _ in range(3):
            batch = np.zeros_like(sent)
            call = Call(rx, PATIENCE_S, into={"x": batch})
            tx.send_batch("x", sent)
            call.ended().release()
            assert np.array_equal(batch, sent)


def test_a_buffer_and_what_numpy_makes_an_array_of_are_arrays_too(name: str) -> None:
    class Tensor:
        def __init__(self) -> None:
            self.inner = np.zeros(4, "<i8")

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            return self.inner

    tensor = Tensor()
    targets = [bytearray(32), memoryview(bytearray(32)).cast("q"), array.array("q", [0] * 4), tensor]
    with joined("ring", name) as (tx, rx):
        for target in targets:
            dtype = np.uint8 if isinstance(target, bytearray) else "<i8"
            sent = np.arange(32 if dtype == np.uint8 else 4).astype(dtype)
            tx.send({"x": sent})
            rx.recv(PATIENCE_S, into={"x": target}).release()
            assert np.array_equal(np.asarray(target), sent)


def test_arecv_takes_arrays(name: str) -> None:
    async def both(tx: Any, rx: Any) -> None:
        batch = np.zeros_like(IMAGES)
        call = asyncio.ensure_future(rx.arecv(PATIENCE_S, into={"x": batch}))
        await asyncio.sleep(0)
        await tx.send_batch("x", IMAGES, wait=False)
        assert (await call).copied == 0
        assert np.array_equal(batch, IMAGES)
        call = asyncio.ensure_future(rx.arecv(PATIENCE_S, into={"x": batch}))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert rx._agent.offers == []

    with joined("ring", name) as (tx, rx):
        asyncio.run(both(tx, rx))


# ---- what does not fit ----

MISFITS: list[tuple[str, Callable[[], Any], str]] = [
    ("dtype", lambda: {"image": np.zeros(IMAGES.shape, np.int8)}, r"'image' .* needs an array of uint8"),
    ("rows", lambda: {"image": np.zeros((9, 60, 80, 3), np.uint8)}, r"shape \(8, 60, 80, 3\), not uint8 and \(9, 60"),
    ("shape", lambda: {"image": np.zeros((8, 80, 60, 3), np.uint8)}, r"shape \(8, 60, 80, 3\), not"),
    ("one row", lambda: {"image": np.zeros((60, 80, 3), np.uint8)}, r"shape \(8, 60, 80, 3\), not"),
    ("stream", lambda: {"image": np.zeros_like(IMAGES), "depth": np.zeros(3)}, "has no stream 'depth'"),
]


@SCHEMES
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(("arrays", "why"), [each[1:] for each in MISFITS], ids=[each[0] for each in MISFITS])
def test_a_slice_that_does_not_fit_stays(scheme: str, name: str, waits: bool, arrays: Any, why: str) -> None:
    given, batch = arrays(), np.zeros_like(IMAGES)
    with joined(scheme, name) as (tx, rx):
        if waits:
            call = Call(rx, PATIENCE_S, into=given)
            tx.send(of_both())
            with pytest.raises(ConfigError, match=why):
                call.ended()
        else:
            tx.send(of_both())
            with pytest.raises(ConfigError, match=why):
                rx.recv(PATIENCE_S, into=given)
        assert not any(array.any() for array in given.values())  # nothing of it was written
        tx.send({"image": LABELS}, wait=False)
        with pytest.raises(ConfigError, match=why):
            rx.recv(PATIENCE_S, into=given)
        with rx.recv(PATIENCE_S, into={"image": batch}) as time_slice:
            assert time_slice.slice_id == 1
            assert np.array_equal(batch, IMAGES)
        assert rx.recv(PATIENCE_S).slice_id == 2


def test_several_forms_and_fortran_order_do_not_fit(name: str) -> None:
    with joined("ring", name) as (tx, rx):
        for elements in ([("x", np.zeros(3)), ("x", np.zeros(4))], [("x", np.zeros((3, 4), order="F"))]):
            tx.send(elements)
            with pytest.raises(ConfigError, match="several dtypes or shapes, or in Fortran order"):
                rx.recv(PATIENCE_S, into={"x": np.zeros((3, 4))})
            assert len(rx.recv(PATIENCE_S)) == len(elements)


def test_arrays_that_cannot_be_written_to_are_refused_before_anything_is_received(name: str) -> None:
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    whole = np.zeros(100, np.uint8)
    wrong: list[tuple[Any, str]] = [
        ({"x": read_only}, "read-only or not C-contiguous"),
        ({"x": np.zeros((4, 4)).T}, "read-only or not C-contiguous"),
        ({"x": bytes(3)}, "read-only or not C-contiguous"),
        ({"x": np.zeros(3, object)}, "holds Python objects"),
        ({"x": [1, 2]}, "list for stream 'x' is no array"),
        ({"x": 7}, "int for stream 'x' is no array"),
        ([("x", whole)], "takes a mapping"),
        ({"x": whole, "y": whole}, "arrays of .* overlap"),
        ({"x": whole[:60], "e": whole[55:55], "y": whole[59:]}, "the arrays of 'x' and 'y' overlap"),
    ]
    with joined("ring", name) as (tx, rx):
        tx.send({"x": whole})
        for given, why in wrong:
            with pytest.raises(ConfigError, match=why):
                rx.recv(PATIENCE_S, into=given)
        assert rx.recv(PATIENCE_S, into={"x": whole[:50].copy().repeat(2)}).copied == 100
    why = r"into=.* needs a Receiver with assemble=True"
    with joined("ring", f"{name}-kept", assemble=False) as (_, rx), pytest.raises(ConfigError, match=why):
        rx.recv(0, into={"x": whole})


# ---- arrays that lie apart, and arrays out of slices ----


@SCHEMES
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0)])
def test_small_elements_of_one_frame_come_into_arrays_in_any_order(scheme: str, name: str, order: Any) -> None:
    base = np.zeros((4, 1000), np.uint8)
    sent = {stream: np.full(1000, 11 * (k + 1), np.uint8) for k, stream in enumerate("abcd")}
    with joined(scheme, name) as (tx, rx):
        call = Call(rx, PATIENCE_S, into={stream: base[row] for stream, row in zip("abcd", order, strict=True)})
        tx.send({**sent, "large": bytes(300_000)})
        with call.ended() as time_slice:
            for stream, row in zip("abcd", order, strict=True):
                assert np.array_equal(base[row], sent[stream])
                assert np.array_equal(time_slice[stream].array, sent[stream])


@SCHEMES
def test_nothing_is_written_between_the_arrays_of_a_frame(scheme: str, name: str) -> None:
    base = np.full((3, 1000), 77, np.uint8)
    with joined(scheme, name) as (tx, rx):
        call = Call(rx, PATIENCE_S, into={"a": base[0], "c": base[2]})
        tx.send({stream: np.full(1000, k + 1, np.uint8) for k, stream in enumerate("abc")} | {"d": bytes(300_000)})
        with call.ended() as time_slice:
            assert (time_slice["b"].array == 2).all()
        assert [np.unique(row).tolist() for row in base] == [[1], [77], [3]]


def test_the_array_of_the_last_slice_holds_no_chain_of_slices(name: str) -> None:
    frame = np.zeros(100_000, np.uint8)
    with joined("local", name, memory="8MiB") as (tx, rx):
        for number in range(200):
            tx.send({"img": np.full(100_000, number % 256, np.uint8)})
            with rx.recv(PATIENCE_S, into={"img": frame}) as time_slice:
                frame = time_slice["img"].array
            del time_slice
            assert (frame == number % 256).all()
            assert len(rx._agent.slices) <= 2


def test_a_slice_keeps_its_memory_until_each_element_has_left_it(name: str) -> None:
    one, other = np.zeros(100_000, np.uint8), np.zeros(100_000, np.uint8)
    with joined("local", name, memory="8MiB") as (tx, rx):
        tx.send({"a": np.full(100_000, 5, np.uint8), "b": np.full(100_000, 6, np.uint8)})
        time_slice = rx.recv(PATIENCE_S, into={"a": one})
        rx._back.append(time_slice._incoming)  # as after an interrupt
        time_slice._incoming = None
        time_slice = rx.recv(PATIENCE_S, into={"a": other})
        for number in range(20):
            tx.send({"x": np.full(300_000, 100 + number, np.uint8)})
            rx.recv(PATIENCE_S).release()
        assert (time_slice["b"].array == 6).all()
        time_slice.release()
