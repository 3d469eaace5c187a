"""What goes in comes out: every buffer, dtype and shape; every way to send, wait and look."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from peer import Peer, content, name, send_once
from stalls import Stalls
from subprocesses import environment, run
from wait import PATIENCE_S

import aiflow
from aiflow._eal_args import hugepages_usable
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


# ---- between processes ----

SEND = """
    import sys, hashlib
    import numpy as np
    import aiflow
    rng = np.random.default_rng(int(sys.argv[2]))
    with aiflow.Sender(sys.argv[1], name=sys.argv[3] if len(sys.argv) > 3 else None) as tx:
        for i in range(3):
            elements = {f"e{k}": rng.integers(0, 256, int(rng.integers(0, 300_000)), dtype=np.uint8) for k in range(8)}
            report = tx.send(elements, timeout=40)
            print(hashlib.sha256(b"".join(e.tobytes() for e in elements.values())).hexdigest(), flush=True)
"""


def digest(time_slice) -> str:
    import hashlib

    return hashlib.sha256(b"".join(element.tobytes() for element in time_slice)).hexdigest()


@pytest.mark.parametrize("scheme", ["local", "memif", "vhost"])
@pytest.mark.parametrize("nb_ports", [1, 4])
def test_between_two_processes(name, scheme, nb_ports) -> None:
    with aiflow.Receiver(f"{scheme}:{name}*{nb_ports}", until="bye") as rx:
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.extend(digest(time_slice) for time_slice in rx))
        thread.start()
        sent = run(SEND, f"{scheme}:{name}*{nb_ports}", "5").split()
        thread.join(30)
        assert not thread.is_alive()
    assert got == sent
    assert len(sent) == 3


def test_several_senders_feed_one_receiver(name) -> None:
    with aiflow.Receiver(f"local:{name}") as rx:
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import textwrap,sys; exec(textwrap.dedent(sys.argv.pop(1)))",
                    SEND,
                    f"local:{name}",
                    str(seed),
                    f"sender-{seed}",
                ],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(3)
        ]
        got: dict[str, list[str]] = {}
        for _ in range(9):
            with rx.recv(timeout=60) as time_slice:
                got.setdefault(time_slice.sender, []).append(digest(time_slice))
        for seed, process in enumerate(processes):
            out, _ = process.communicate(timeout=30)
            assert process.returncode == 0
            assert got[f"sender-{seed}"] == out.split()  # each sender's slices in its order


def test_a_sender_may_come_first(endpoint) -> None:
    code = "import textwrap,sys; exec(textwrap.dedent(sys.argv.pop(1)))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, SEND, endpoint, "3"], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        time.sleep(0.5)  # not for a condition: the point is that nobody is there yet
        with aiflow.Receiver(endpoint) as rx:
            got = [digest(rx.recv(timeout=40)) for _ in range(3)]
            out, _ = process.communicate(timeout=30)
        assert got == out.split()
    finally:
        process.kill()
        process.wait()


# env stands behind setpriv, which still has root's capabilities when it looks its command up.
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
AS_NOBODY.append("env")


def reachable_python() -> str | None:
    """An interpreter that nobody can run, and that can import what we import."""
    for python in dict.fromkeys([sys.executable, "/usr/bin/python3"]):
        trial = [*AS_NOBODY, python, "-c", "import numpy, aiflow._dp_tx"]
        ran = subprocess.run(trial, env=environment(), capture_output=True, timeout=60)
        if ran.returncode == 0:
            return python
    return None


@pytest.mark.root
def test_an_unprivileged_user_can_do_all_this(tmp_path, name) -> None:
    """Receiver and sender as nobody, without any capability; without hugepages, unless this machine has some."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv (util-linux) here")
    python = reachable_python()
    if python is None:
        pytest.skip(f"{sys.executable} and {ROOT} cannot be read by other users")
    code = """
        import os, subprocess, sys
        assert os.geteuid() == 65534
        assert open("/proc/self/status").read().split("CapEff:")[1].split()[0] == "0" * 16
        import aiflow
        with aiflow.Receiver(sys.argv[1]) as rx:
            sender = subprocess.Popen([sys.argv[3], "-c", sys.argv[2], sys.argv[1], "11"])
            total = 0
            for _ in range(3):
                with rx.recv(timeout=40) as time_slice:
                    total += sum(element.array.nbytes for element in time_slice)
            assert sender.wait(30) == 0
        print(total, rx.describe()[0]["memory"])
    """
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(directory.stat().st_mode | 0o011)
    own = {name: value for name, value in environment().items() if name != "AIFLOW_RUNTIME_DIR"}  # not root's
    usable = hugepages_usable(64 << 20)
    ran = subprocess.run(
        [*AS_NOBODY, python, "-c", textwrap.dedent(code), f"local:{name}", textwrap.dedent(SEND), python],
        env={**own, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "TMPDIR": "/tmp"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    nbytes, memory = ran.stdout.splitlines()[-1].split()
    assert int(nbytes) > 0
    assert memory == ("hugepages" if usable else "no-huge")


def receive_in_frames(pipe, endpoint: str, frame_size: int, nbytes: int) -> None:
    with aiflow.Receiver(endpoint, frame_size=frame_size) as rx:
        pipe.send("open")
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            frames = sum(row.frames for row in rx.port_table)
            pipe.send((np.array_equal(time_slice["x"].array, content(3, nbytes)), frames))
        pipe.recv()


@pytest.mark.parametrize("scheme", ["local", "vhost"])
@pytest.mark.parametrize("frame_size", [1514, 30000])
def test_frames_of_any_size_that_was_asked_for(scheme: str, frame_size: int) -> None:
    endpoint, nbytes = f"{scheme}:{name()}", 1_000_000
    with Peer(receive_in_frames, endpoint, frame_size, nbytes) as receiver:
        assert receiver.hear() == "open"
        with Peer(send_once, endpoint, 3, nbytes) as sender:
            intact, frames = receiver.hear()
            assert intact
            assert frames >= nbytes / frame_size  # and no larger ones
            assert sender.hear() == nbytes
            sender.ends()
        receiver.tell("close")
        receiver.ends()
