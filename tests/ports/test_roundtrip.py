"""Every buffer, dtype and shape arrives as it was sent, by every way to send, wait and read."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from stalls import Stalls

import aiflow
from aiflow.errors import ConfigError, SliceTimeout

ROOT = Path(__file__).resolve().parents[2]
rng = np.random.default_rng(7)

DTYPES = ["?", "i1", "u1", "<i2", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", ">i4", ">f8", "S7", "U5"]
DTYPES += ["V9", "<M8[ns]", "<m8[us]"]
SHAPES = [(), (1,), (7,), (3, 5), (480, 640, 3), (0,), (4, 0, 2), (1, 1, 1, 9)]
STRUCT = np.dtype([("x", "<f4"), ("n", "<i8"), ("tag", "S3"), ("box", "<u2", (2, 2))])


def filled(shape, dtype) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind == "U":
        return np.full(shape, "añ☃", dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = rng.integers(0, 2 if dtype.kind == "?" else 256, count, dtype=np.uint8)
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape) if count else np.empty(shape, dtype)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def pair():
    with aiflow.pair() as both:
        yield both


def exchanged(pair, elements):
    """Send, receive, and return the slice."""
    tx, rx = pair
    ticket = tx.send(elements, wait=False)
    time_slice = rx.recv(timeout=20)
    report = ticket.result(timeout=20)
    assert report.elements == len(time_slice)
    assert report.nbytes == time_slice.nbytes
    return time_slice


def test_every_dtype_and_shape_arrives_as_it_was_sent(pair) -> None:
    arrays = {f"{dtype}/{shape}": filled(shape, dtype) for dtype in [*DTYPES, STRUCT] for shape in SHAPES}
    with exchanged(pair, arrays) as time_slice:
        assert time_slice.streams == list(arrays)
        for element in time_slice:
            assert same(element.array, arrays[element.stream]), element
            assert (element.dtype, element.shape) == (element.array.dtype, element.array.shape)
            assert element.nbytes == element.array.nbytes


def test_fortran_order_arrives_in_fortran_order(pair) -> None:
    array = np.asfortranarray(filled((5, 7, 11), "<f8"))
    with exchanged(pair, {"f": array}) as time_slice:
        assert time_slice["f"].array.flags.f_contiguous
        assert np.array_equal(time_slice["f"].array, array)


def test_fault_57_arrays_of_every_kind(pair) -> None:
    """Non-contiguous is copied; zero-size and read-only arrive as sent; object dtype is a TypeError."""
    base = filled((40, 50, 3), "<i4")
    frozen = base.copy()
    frozen.flags.writeable = False
    arrays = {
        "rows": base[::2],
        "columns": base[:, 3:40:5],
        "reversed": base[::-1, :, ::-1],
        "transposed": base.transpose(2, 0, 1),
        "broadcast": np.broadcast_to(base[0, 0], (6, 3)),
        "read-only": frozen,
        "empty": base[:0],
        "scalar": np.array(3.5),
    }
    with exchanged(pair, arrays) as time_slice:
        for stream, array in arrays.items():
            received = time_slice[stream].array
            assert received.dtype == array.dtype
            assert np.array_equal(received, array)
            assert received.flags.writeable
    for bad in (np.array([object()]), np.array([{}, 1], dtype=object), np.zeros(2, [("o", "O")])):
        with pytest.raises(TypeError, match="object"):
            pair.sender.send([bad])
    with exchanged(pair, [b"still works"]) as time_slice:
        assert time_slice[0].tobytes() == b"still works"


def test_buffers_that_are_not_numpy(pair) -> None:
    import array

    elements = {
        "bytes": b"\0\1\2",
        "bytearray": bytearray(range(256)) * 300,
        "memoryview": memoryview(b"abcdef")[1:4],
        "strided": memoryview(b"abcdef")[::2],
        "array": array.array("d", [1.5, 2.5]),
        "nothing": b"",
        "scalar": np.float32(2.5),
    }
    with exchanged(pair, elements) as time_slice:
        assert time_slice["bytes"].tobytes() == b"\0\1\2"
        assert time_slice["bytearray"].tobytes() == elements["bytearray"]
        assert time_slice["memoryview"].tobytes() == b"bcd"
        assert time_slice["strided"].tobytes() == b"ace"
        assert time_slice["array"].array.tolist() == [1.5, 2.5]
        assert time_slice["nothing"].nbytes == 0
        assert time_slice["scalar"].array == np.float32(2.5)


class Tensor:
    """Has DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_goes_in_and_comes_out(pair) -> None:
    array = filled((3, 4, 5), "<f4")
    with exchanged(pair, {"t": Tensor(array.copy())}) as time_slice:
        assert same(time_slice["t"].array, array)
        assert same(np.from_dlpack(time_slice["t"]), array)


def test_torch_tensors(pair) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    with exchanged(pair, {"t": tensor}) as time_slice:
        assert torch.equal(torch.from_dlpack(time_slice["t"]), tensor)


def test_what_cannot_be_sent_is_a_type_error(pair) -> None:
    tx = pair.sender
    for bare in (b"bytes", bytearray(b"x"), memoryview(b"x"), np.zeros(3), "text", Tensor(np.zeros(2)), 7, None):
        with pytest.raises(TypeError):
            tx.send(bare)
    for element in ("text", 3, None, object(), [1, 2]):
        with pytest.raises(TypeError):
            tx.send({"x": element})
    with pytest.raises(TypeError):
        tx.send({1: b"streams have names"})


def test_streams_may_repeat_and_need_no_names(pair) -> None:
    with exchanged(pair, [("cam", b"one"), ("cam", b"two"), ("lidar", b"three")]) as time_slice:
        assert [e.tobytes() for e in time_slice.stream("cam")] == [b"one", b"two"]
        assert time_slice["lidar"].number == 2
        assert "cam" in time_slice
        assert "radar" not in time_slice
        with pytest.raises(KeyError, match="several"):
            time_slice["cam"]
        with pytest.raises(KeyError):
            time_slice["radar"]
        assert time_slice[-1].stream == "lidar"
        with pytest.raises(IndexError):
            time_slice[3]
    with exchanged(pair, (bytes([i]) for i in range(12))) as time_slice:
        assert [e.stream for e in time_slice] == [str(i) for i in range(12)]
        assert time_slice["11"].tobytes() == b"\x0b"
    odd = {"": b"1", "ü/☃": b"2", "a\nb": b"3", "../../etc": b"4"}
    with exchanged(pair, odd) as time_slice:
        assert {e.stream: e.tobytes() for e in time_slice} == odd


def test_a_slice_without_elements(pair) -> None:
    with exchanged(pair, {}) as time_slice:
        assert len(time_slice) == time_slice.nbytes == 0
        assert list(time_slice) == []
        assert time_slice.as_arrays() == {}
        assert [list(shard) for shard in time_slice.shards(3)] == [[], [], []]


def test_a_batch_goes_as_one_array_and_comes_as_one(pair) -> None:
    tx, rx = pair
    batch = filled((1000, 8, 9), "<u2")
    ticket = tx.send_batch("patches", batch, wait=False)
    with rx.recv(timeout=20) as time_slice:
        assert ticket.result(20).elements == len(time_slice) == 1000
        arrays = time_slice.as_arrays()
        assert list(arrays) == ["patches"]
        assert same(arrays["patches"], batch)
        assert not arrays["patches"].flags.owndata
        assert same(time_slice[17].array, batch[17])
        assert time_slice[17].shape == (8, 9)
    for odd in (np.zeros((0, 4)), np.zeros((5, 0)), batch[::3], np.asfortranarray(batch[:, :, 0])):
        ticket = tx.send_batch("odd", odd, wait=False)
        with rx.recv(timeout=20) as time_slice:
            ticket.result(20)
            assert len(time_slice) == len(odd)
            if len(odd):
                assert np.array_equal(time_slice.as_arrays()["odd"], odd)
    with pytest.raises(ConfigError, match="axis"):
        tx.send_batch("none", np.array(1.0))


def test_streams_of_like_elements_become_arrays(pair) -> None:
    images = filled((6, 10, 12), "u1")
    elements = [("a", images[0]), ("b", images[1]), ("a", images[2]), ("b", images[3]), ("a", images[4])]
    with exchanged(pair, elements) as time_slice:
        arrays = time_slice.as_arrays()
        assert same(arrays["a"], images[[0, 2, 4]])
        assert same(arrays["b"], images[[1, 3]])
    time_slice = exchanged(pair, [("a", images[0]), ("a", images[0, 0])])
    with pytest.raises(ConfigError, match="several dtypes or shapes"):
        time_slice.as_arrays()


def test_fault_58_a_million_elements_of_64_bytes(pair) -> None:
    tx, rx = pair
    batch = rng.integers(0, 256, (1_000_000, 64), dtype=np.uint8)
    ticket = tx.send_batch("tiny", batch, wait=False)
    with rx.recv(timeout=60) as time_slice:
        report = ticket.result(60)
        assert len(time_slice) == 1_000_000
        assert np.array_equal(time_slice.as_arrays()["tiny"], batch)
        assert report.frames_sent < 100_000  # packed: not a frame each
        assert same(time_slice[999_999].array, batch[-1])


def test_an_element_has_the_buffer_protocol_and_array_interface(pair) -> None:
    array = filled((4, 5), "<i4")
    with exchanged(pair, {"a": array}) as time_slice:
        element = time_slice["a"]
        view = memoryview(element)
        assert view.tobytes() == array.tobytes()
        assert np.array_equal(np.asarray(element), array)
        assert np.asarray(element, dtype="f8").dtype == np.float64
        element.array[0, 0] = 77  # the user's to write
        assert element.array[0, 0] == 77
        assert element.latency_ns > 0
        del view


def test_one_thread_can_send_and_receive(pair) -> None:
    tx, rx = pair
    tickets = [tx.send([bytes([i]) * 50_000], wait=False) for i in range(20)]
    for i in range(20):
        with rx.recv(timeout=20) as time_slice:
            assert time_slice[0].tobytes() == bytes([i]) * 50_000
            assert time_slice.slice_id == i + 1
    assert all(ticket.result(20).elements == 1 for ticket in tickets)
    assert all(ticket.done() for ticket in tickets)


def test_an_event_loop_waits_without_a_thread(pair) -> None:
    tx, rx = pair
    threads = threading.active_count()

    async def receive() -> list[bytes]:
        got = []
        async for time_slice in rx:
            got.append(time_slice[0].tobytes())
            if len(got) == 5:
                return got
        return got

    async def main() -> None:
        receiving = asyncio.create_task(receive())
        for i in range(5):
            report = await tx.send([bytes([i]) * 5000], wait=False)
            assert report.elements == 1
        assert await asyncio.wait_for(receiving, 20) == [bytes([i]) * 5000 for i in range(5)]
        with pytest.raises(SliceTimeout):
            await rx.arecv(timeout=0.05)
        ticket = tx.send([b"more"], wait=False)
        assert (await rx.arecv(timeout=20))[0].tobytes() == b"more"
        await ticket
        assert threading.active_count() == threads

    asyncio.run(asyncio.wait_for(main(), 40))


def test_recv_times_out_and_goes_on(pair) -> None:
    start = time.monotonic()
    with Stalls() as stalls:
        with pytest.raises(SliceTimeout, match=r"0\.2 s"):
            pair.receiver.recv(timeout=0.2)
        assert 0.2 <= time.monotonic() - start < 2 + stalls.allowance
    with exchanged(pair, [b"x"]) as time_slice:
        assert time_slice[0].tobytes() == b"x"


def test_a_report_counts_what_was_sent(pair) -> None:
    tx, rx = pair
    ticket = tx.send([bytes(100_000)], wait=False)
    with rx.recv(timeout=20):
        report = ticket.result(20)
    assert (report.elements, report.nbytes) == (1, 100_000)
    assert report.seconds > 0
    assert report.goodput_bps == pytest.approx(800_000 / report.seconds)
    assert report.frames_sent == sum(port.frames for port in report.ports) > 0
    assert [receiver.delivered for receiver in report.receivers] == [True]
    assert "100,000 bytes" in str(report)
    assert len(tx.port_table) == len(rx.port_table) == 1


def test_several_ports_share_a_slice(name) -> None:
    with aiflow.pair(4) as both, exchanged(both, [bytes(20_000_000)]) as time_slice:
        assert time_slice[0].tobytes() == bytes(20_000_000)
        rows = list(both.sender.port_table)
        assert len(rows) == 4
        assert all(row.frames > 10 for row in rows)
