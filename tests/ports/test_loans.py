"""Loans: arrays in a Sender's memory, which a `Receiver(loans=True)` on the host reads where they lie."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loans import filled, handed_over, lending, meet, used
from peer import MiB, content
from wait import PATIENCE_S, Deadline, wait_for

import aiflow
from aiflow.errors import ConfigError, EalError, PoolExhausted


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">i8", "<c16", "?", "<M8[ns]", [("x", "<f4"), ("n", "<i8")]])
@pytest.mark.parametrize("shape", [(), (7,), (480, 640, 3)])
def test_a_loan_arrives_without_a_copy(endpoint: str, dtype: Any, shape: Any) -> None:
    with lending(endpoint) as (tx, rx):
        loan = tx.loan(shape, dtype)
        loan.reshape(-1).view(np.uint8)[:] = 1
        time_slice, report = handed_over(tx, rx, {"x": loan})
        array = time_slice["x"].array
        assert array.dtype == np.dtype(dtype)
        assert array.shape == shape
        assert array.tobytes() == loan.tobytes()
        assert report.lent_bytes == report.nbytes == loan.nbytes
        assert "bytes on loan" in str(report)
        assert report.placed_bytes == 0
        assert report.frames_sent == 1
        assert time_slice._incoming.charged < 8192
        del array
        time_slice.release()


def test_arrays_of_a_loan_are_read_only_on_both_sides(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loan = filled(tx, (10, 10), np.float64)
        view = loan[:5]
        loan[0, 0] = 1.0
        with handed_over(tx, rx, [loan])[0] as time_slice:
            with pytest.raises(ValueError, match="read-only"):
                loan[0, 0] = 2.0
            view[0, 0] = 3.0  # a view from before shows that there is one copy
            assert time_slice[0].array[0, 0] == 3.0
            array = time_slice[0].array
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 2.0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
            with pytest.raises(TypeError, match="not writable"):
                (ctypes.c_char * 800).from_buffer(time_slice._incoming.view(0))
            rows = time_slice.as_arrays()["0"]
            assert not rows.flags.writeable
            assert rows.base is not None
            del array, rows


def test_a_batch_is_lent_and_its_rows_are_one_array(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loan = filled(tx, (1000, 50), np.int32)
        wanted = loan.copy()
        ticket = tx.send_batch("rows", loan, wait=False)
        with rx.recv(PATIENCE_S) as time_slice:
            report = ticket.result(PATIENCE_S)
            assert report.lent_bytes == loan.nbytes
            assert report.elements == 1000
            rows = time_slice.as_arrays()["rows"]
            assert np.array_equal(rows, wanted)
            assert np.array_equal(time_slice[999].array, wanted[999])
            parts = [shard.as_arrays()["rows"] for shard in time_slice.shards(3)]
            assert np.array_equal(np.concatenate(parts), wanted)
            del rows, parts


def test_parts_of_loans_are_loans(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        one, other = filled(tx, (100, 8), np.int16, 3), filled(tx, 5000, seed=4)
        parts = {
            "first": one[:10],
            "middle": one[20:30],
            "again": one[25:50],
            "rest": other[4096:],
            "none": one[:0],
            "bytes": memoryview(other)[1:4],
            "transposed": one.T,
        }
        wanted = {stream: np.asarray(part).copy() for stream, part in parts.items()}
        time_slice, report = handed_over(tx, rx, parts)
        assert report.lent_bytes == report.nbytes
        for stream, array in wanted.items():
            assert np.array_equal(time_slice[stream].array, array), stream
        time_slice.release()
        _, report = handed_over(tx, rx, {"x": one[:, ::2]})  # in no one piece: `send` copies it first
        assert report.lent_bytes == 0


def test_elements_of_a_run_may_lie_in_several_loans(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loans = [filled(tx, (3, 5), np.int64, seed) for seed in range(20)]
        time_slice, report = handed_over(tx, rx, [("x", loan) for loan in loans[::-1]])
        assert report.lent_bytes == report.nbytes
        assert np.array_equal(time_slice.as_arrays()["x"], np.array(loans[::-1]))
        (first, second) = (shard.as_arrays()["x"] for shard in time_slice.shards(2))
        assert np.array_equal(np.concatenate([first, second]), np.array(loans[::-1]))
        assert all(np.array_equal(element.array, loan) for element, loan in zip(time_slice, loans[::-1], strict=True))
        time_slice.release()


def test_more_pieces_than_a_manifest_takes_are_copied(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loan = filled(tx, 40_000)
        for count, lent in ((5459, True), (5460, False)):
            time_slice, report = handed_over(tx, rx, [loan[2 * i : 2 * i + 1] for i in range(count)])
            assert bool(report.lent_bytes) is lent
            assert np.array_equal(np.concatenate([element.array for element in time_slice]), loan[: 2 * count : 2])
            time_slice.release()


def test_a_loan_may_be_sent_twice_and_is_lent_twice(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loan = filled(tx, MiB)
        slices = [handed_over(tx, rx, {"x": loan}) for _ in range(5)]
        assert all(report.lent_bytes == MiB for _, report in slices)
        assert used(tx) == MiB
        wanted = loan.copy()
        del loan
        for time_slice, _ in slices:
            assert used(tx) == MiB
            assert np.array_equal(time_slice["x"].array, wanted)
            time_slice.release()
        wait_for(lambda: used(tx) == 0, "all have given it back")


def test_a_receiver_without_loans_gets_a_copy(endpoint: str) -> None:
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint) as tx:
        for _ in range(20):
            loan = filled(tx, MiB)
            time_slice, report = handed_over(tx, rx, {"x": loan})
            assert report.lent_bytes == 0
            assert "on loan" not in str(report)
            assert not loan.flags.writeable
            assert time_slice["x"].array.flags.writeable
            assert np.array_equal(time_slice["x"].array, loan)
            time_slice.release()
            del loan
            assert used(tx) == 0


@pytest.mark.parametrize("other", ["an array", "bytes", "a loan of another Sender", "aiflow.empty"])
def test_a_slice_with_anything_else_is_copied(endpoint: str, other: str) -> None:
    with lending(endpoint) as (tx, rx), aiflow.Sender(f"{endpoint}-2") as stranger:
        makers: dict[str, Callable[[], Any]] = {
            "an array": lambda: np.arange(1000),
            "bytes": lambda: b"123",
            "a loan of another Sender": lambda: filled(stranger, 1000),
            "aiflow.empty": lambda: aiflow.empty(100_000),
        }
        loan, added = filled(tx, MiB), makers[other]()
        time_slice, report = handed_over(tx, rx, {"x": loan, "y": added})
        assert report.lent_bytes == 0
        assert not loan.flags.writeable
        assert np.array_equal(time_slice["x"].array, loan)
        assert time_slice["y"].tobytes() == bytes(added)
        time_slice.release()


def test_other_ways_copy_a_loan(name: str) -> None:
    ring = f"ring:{name}"
    with aiflow.Receiver(ring, loans=True) as rx, aiflow.Sender(ring) as tx:
        loan = filled(tx, MiB)
        time_slice, report = handed_over(tx, rx, {"x": loan})
        assert report.lent_bytes == 0
        assert np.array_equal(time_slice["x"].array, loan)
        time_slice.release()


@pytest.mark.parametrize("ports", [1, 4])
def test_many_loans_over_several_ports(endpoint: str, ports: int) -> None:
    with lending(f"{endpoint}*{ports}") as (tx, rx):
        tickets = []
        for number in range(300):
            loan = tx.loan(8192, np.int64)
            loan[:] = number
            tickets.append(tx.send({"x": loan}, wait=False))
            del loan
            if number % 5 == 4:
                for seen in range(number - 4, number + 1):
                    with rx.recv(PATIENCE_S) as time_slice:
                        assert (time_slice["x"].array == seen).all()
        assert all(ticket.result(PATIENCE_S).lent_bytes == 65536 for ticket in tickets)
        assert used(tx) == 0


def test_loans_go_to_several_receivers(name: str) -> None:
    names = [f"local:{name}-{i}" for i in range(3)]
    with (
        aiflow.Receiver(names[0], loans=True) as one,
        aiflow.Receiver(names[1], loans=True) as other,
        aiflow.Receiver(names[2]) as copies,
        aiflow.Sender(names, to=[f"{name}-{i}" for i in range(3)], partition="by_stream") as tx,
    ):
        deadline = Deadline()
        while True:
            loans = {f"stream-{i}": filled(tx, MiB, seed=i) for i in range(3)}
            ticket = tx.send(loans, wait=False)
            slices = [rx.recv(PATIENCE_S) for rx in (one, other, copies)]
            report = ticket.result(PATIENCE_S)
            got = {element.stream: element.array for time_slice in slices for element in time_slice}
            assert all(np.array_equal(got[stream], loan) for stream, loan in loans.items())
            if report.lent_bytes == 2 * MiB:
                break
            deadline.check(f"{report.lent_bytes} bytes are lent")
            del loans, got
            for time_slice in slices:
                time_slice.release()
        del loans, got
        assert used(tx) == 2 * MiB
        slices[0].release()
        assert used(tx) == MiB
        slices[1].release()
        assert used(tx) == 0
        slices[2].release()


def test_a_pool_that_is_used_up_says_who_holds_it(endpoint: str) -> None:
    with lending(endpoint, {"loan_memory": 4 * MiB}) as (tx, rx):
        held = [tx.loan(MiB) for _ in range(4)]
        with pytest.raises(PoolExhausted, match=r"of 4194304 bytes, arrays of this process hold 4194304 bytes, and "):
            tx.loan(1)
        slices = []
        while held:
            slices.append(handed_over(tx, rx, {"x": held.pop()})[0])
        gc.collect()
        with pytest.raises(PoolExhausted, match=r"hold 0 bytes, and receivers have 4 slices .* not released\. Drop"):
            tx.loan(MiB)
        array = slices.pop()["x"].array
        gc.collect()
        with pytest.raises(PoolExhausted):
            tx.loan(MiB)  # the array of a slice that is gone
        del array
        assert tx.loan(MiB).nbytes == MiB
        for time_slice in slices:
            time_slice.release()
        held = [tx.loan(MiB) for _ in range(4)]
        with pytest.raises(PoolExhausted, match="no room for a loan of 5000000 bytes"):
            tx.loan(5_000_000)


def test_what_no_loan_can_be(endpoint: str) -> None:
    with aiflow.Sender(endpoint, loan_memory="1MiB") as tx:
        with pytest.raises(TypeError, match=r"loan\(\) makes arrays that can be sent: not of Python objects"):
            tx.loan(3, object)
        with pytest.raises(ValueError, match="negative axis"):
            tx.loan((3, -1))
        assert tx.loan((0, 3), "f4").shape == (0, 3)
        loan = tx.loan(5000)
        assert loan.ctypes.data % 4096 == 0
        assert loan.flags.c_contiguous
        assert loan.flags.writeable
        with pytest.raises(PoolExhausted):
            tx.loan(2**62)
    loan[:] = 7  # it outlives its Sender
    assert (loan == 7).all()
    with pytest.raises(ConfigError, match="closed"):
        tx.loan(3)
    with pytest.raises(ConfigError, match="loans=True with assemble=False"):
        aiflow.Receiver(endpoint, loans=True, assemble=False)


def test_a_view_keeps_the_memory_whatever_goes_first(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        time_slice, _ = handed_over(tx, rx, {"x": filled(tx, MiB, seed=8)})
        view = time_slice["x"].array[100:200]
        time_slice.release()
        del time_slice
        assert used(tx) == MiB
        other = filled(tx, MiB, seed=9)
        assert np.array_equal(view, content(8, MiB)[100:200])
        dropper = threading.Thread(target=[view].clear)
        del view
        dropper.start()
        dropper.join()
        del dropper
        assert used(tx) == MiB
        del other
        assert used(tx) == 0


def test_arrays_outlive_both_sides(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        time_slice, report = handed_over(tx, rx, {"x": filled(tx, MiB, seed=8)})
        array = time_slice["x"].array
        assert report.lent_bytes == MiB
    assert np.array_equal(array, content(8, MiB))
    del tx, rx
    gc.collect()
    assert np.array_equal(time_slice["x"].array, content(8, MiB))


def test_a_receiver_that_closed_keeps_what_it_reads(endpoint: str) -> None:
    with aiflow.Sender(endpoint, loan_memory=2 * MiB) as tx:
        with aiflow.Receiver(endpoint, loans=True) as rx:
            meet(tx, rx)
            array = handed_over(tx, rx, {"x": filled(tx, MiB, seed=8)})[0]["x"].array
        with aiflow.Receiver(endpoint, loans=True) as rx:
            meet(tx, rx)
            assert used(tx) == MiB
            with pytest.raises(PoolExhausted):
                tx.loan(2 * MiB)
            for seed in range(20):
                handed_over(tx, rx, {"x": filled(tx, MiB - 8192, seed=seed)})[0].release()
            assert np.array_equal(array, content(8, MiB))
            del array
            wait_for(lambda: used(tx) == 0, "it came back over no connection")
            assert tx.loan(2 * MiB).nbytes == 2 * MiB


@pytest.mark.parametrize(
    "faults",
    [
        {"drop": 0.2, "seed": 3},
        {"copies": 3},
        {"drop": 0.1, "repeat": 0.3, "reorder": 0.3, "reorder_for": 0.002, "seed": 5},
        {"corrupt": 0.2, "seed": 7},
    ],
    ids=lambda faults: "+".join(faults),
)
@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_each_loan_arrives_once_over_a_bad_path(endpoint: str, faults: dict[str, Any], side: str) -> None:
    bad = {"faults": {**faults, "kinds": ["MANIFEST", "FEEDBACK", "GRANT"]}}
    with lending(endpoint, bad if side == "sender" else None, bad if side == "receiver" else None) as (tx, rx):
        tickets, seen, again = [], [], 0
        for number in range(150):
            loan = tx.loan(1024, np.int64)
            loan[:] = number
            tickets.append(tx.send({"x": loan}, wait=False))
            del loan
            if number % 6 == 5:
                for _ in range(6):
                    with rx.recv(PATIENCE_S) as time_slice:
                        array = time_slice["x"].array
                        assert (array == array[0]).all()
                        seen.append(int(array[0]))
                        del array
        assert seen == list(range(150))
        reports = [ticket.result(PATIENCE_S) for ticket in tickets]
        again = sum(report.frames_retransmitted for report in reports)
        assert all(report.lent_bytes == 8192 for report in reports)
        assert again > 0 or side == "receiver" or "drop" not in faults
        tickets.clear()
        del reports
        wait_for(lambda: used(tx) == 0, "all came back")


def test_confirmation_is_waited_for(endpoint: str) -> None:
    with lending(endpoint, receiver={"confirm": "release"}) as (tx, rx):
        ticket = tx.send({"x": filled(tx, MiB)}, wait=False)
        time_slice = rx.recv(PATIENCE_S)
        assert not ticket.done()
        time_slice.fail("too dark")
        time_slice.release()
        del time_slice
        with pytest.raises(aiflow.DeliveryError, match="too dark"):
            ticket.result(PATIENCE_S)
        del ticket
        wait_for(lambda: used(tx) == 0, "it came back")


def test_a_forked_child_reads_and_gives_nothing_back(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loan = filled(tx, MiB, seed=8)
        time_slice, _ = handed_over(tx, rx, {"x": loan})
        array = time_slice["x"].array
        child = os.fork()
        if child == 0:
            try:
                good = np.array_equal(array, content(8, MiB)) and np.array_equal(loan, content(8, MiB))
                try:
                    tx.loan(5)
                    good = False
                except EalError:
                    pass
                del array, loan
                time_slice.release()
                del time_slice
                gc.collect()
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        del loan
        assert used(tx) == MiB
        assert np.array_equal(array, content(8, MiB))
        del array
        time_slice.release()
        del time_slice
        assert used(tx) == 0


def test_a_slice_larger_than_the_receivers_memory_may_be_lent(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loan = filled(tx, 64 * MiB)
        time_slice, report = handed_over(tx, rx, {"x": loan})
        assert report.lent_bytes == 64 * MiB > rx.memory
        assert np.array_equal(time_slice["x"].array, loan)
        time_slice.release()


def test_a_loan_is_copied_into_arrays_of_the_user(endpoint: str) -> None:
    with lending(endpoint) as (tx, rx):
        loans = [filled(tx, (3, 5), np.int64, seed) for seed in range(6)]
        wanted = np.array(loans)
        into = np.zeros_like(wanted)
        ticket = tx.send([("x", loan) for loan in loans[::-1]], wait=False)
        with rx.recv(PATIENCE_S, into={"x": into}) as time_slice:
            assert ticket.result(PATIENCE_S).lent_bytes == wanted.nbytes
            assert np.array_equal(into, wanted[::-1])
            assert np.shares_memory(time_slice.as_arrays()["x"], into)
            del loans
            assert used(tx) == 0  # it has no need of them any more
