"""Ctrl-C, signal handlers and exceptions from other threads, anywhere in the Python API: nothing hangs or leaks.

A timer interrupts the code under test, at other places in every run. Each program runs in a process of its own.
"""

from __future__ import annotations

import pytest
from interrupted import run


@pytest.mark.parametrize("receivers", [1, 2])
@pytest.mark.parametrize(("copy", "slices"), [("copy", 5), ("in place", 5), ("copy", None)])
def test_put_under_interrupts_loses_nothing_and_holds_nothing(receivers, copy, slices) -> None:
    """Elements that put() took arrive once, an interrupted one at most once, and no memory stays held."""
    run(
        """
        nb, copy, slice_ms = int(sys.argv[1]), sys.argv[2] == "copy", eval(sys.argv[3])
        ends, endpoints, options = receivers(nb)
        joined = consume(ends)
        tx = aiflow.Sender(endpoints, slice_ms=slice_ms, put_memory="1MiB", **options)
        taken, count = set(), 0

        def put():
            global count
            count += 1
            key = count  # an interrupted put may have taken its element
            data = bytearray(content(key, 2000))
            if slice_ms is None and count % 7 == 0:
                tx.flush()
            tx.put("camera", data, copy=copy)
            if copy:
                data[:] = bytes(len(data))
            taken.add(key)

        storm(put)
        tx.flush(20)
        batcher = tx._batcher
        assert batcher._held == 0, batcher._held
        assert not batcher._open and not batcher._in_flight and not batcher._failed
        tx.close()
        seen = joined()
        assert taken <= set(seen), sorted(taken - set(seen))[:9]
        assert set(seen.values()) == {1}
        assert left() == [], left()
        """,
        receivers, copy, slices,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("way", "receivers"),
    [("send", 1), ("send", 2), ("send_batch", 1), ("send_batch", 2), ("ticket", 2), ("flush", 2)],
)
def test_send_under_interrupts_leaves_nothing_under_way(way, receivers) -> None:
    run(
        """
        way, nb = sys.argv[1], int(sys.argv[2])
        ends, endpoints, options = receivers(nb)
        joined = consume(ends)
        tx = aiflow.Sender(endpoints, **options)
        keys, sent = iter(range(1, 10**9)), set()

        def once():
            key = next(keys)
            data = bytearray(content(key, 8000))
            try:
                if way == "send":
                    tx.send([("a", data), ("b", content(key + 10**12, 5000))])
                elif way == "send_batch":
                    tx.send_batch("a", np.frombuffer(data, np.uint8).reshape(2, 4000))
                elif way == "ticket":
                    ticket = tx.send([data], wait=False)
                    ticket.result()
                else:
                    tx.send([data], wait=False)
                    tx.flush()
                sent.add(key)
            finally:
                if way in ("send", "send_batch"):  # nothing reads it any more
                    assert tx._agent.outstanding() == []
                    data[:] = bytes(len(data))

        storm(once)
        tx.flush(20)
        tx.close()
        seen = joined()
        assert sent <= set(seen), sorted(sent - set(seen))[:9]
        assert left() == [], left()
        """,
        way, receivers,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["send", "send_batch", "put"])
def test_a_slice_that_was_posted_in_part_counts_as_failed(way) -> None:
    run(
        """
        way = sys.argv[1]
        ends, endpoints, options = receivers(2)
        joined = consume(ends)
        tx = aiflow.Sender(endpoints, partition=lambda elements, names: [0, 1], **options)
        planner, rows = tx._poster.planner, np.frombuffer(content(1, 8) + content(2, 8), np.uint8).reshape(2, 8)
        make, planned = planner.plan, 0

        def plan(nbytes):
            global planned
            planned += 1
            if planned == 2:
                raise RuntimeError if way == "put" else KeyboardInterrupt
            return make(nbytes)

        def give():
            if way == "send":
                tx.send([bytes(row) for row in rows], timeout=20)
            elif way == "send_batch":
                tx.send_batch("a", rows, timeout=20)
            else:
                for row in rows:
                    tx.put("a", bytes(row))
                tx.flush(20)

        planner.plan = plan
        try:
            give()
        except (KeyboardInterrupt, AiflowError):
            pass
        in_flight, ended = tx._agent.ended()
        assert (in_flight, ended["slices"], ended["failed"]) == (0, 0, 1), (in_flight, ended)
        give()
        assert tx._agent.ended()[1]["slices"] == 1
        tx.close(abort=True)
        assert joined()[2] == 1
        """,
        way,
    )


@pytest.mark.parametrize("way", ["recv", "next", "for"])
def test_recv_under_interrupts_goes_on(way) -> None:
    """A slice that an interrupted call had taken comes with the next call."""
    run(
        """
        way = sys.argv[1]
        (rx,), endpoints, _ = receivers(1)
        stop = False
        sent = []

        def produce():
            with aiflow.Sender(endpoints) as tx:
                while not stop:
                    sent.append(len(sent) + 1)
                    tx.send([content(sent[-1], 100)])
                    time.sleep(0.0003)

        producer = threading.Thread(target=produce)
        producer.start()
        seen = []

        def once():
            if way == "recv":
                one = rx.recv(timeout=5)
            elif way == "next":
                one = next(rx)
            else:
                for one in rx:
                    break
            seen.append(int.from_bytes(one[0].tobytes()[:8], "big"))

        storm(once)
        stop = True
        for one in rx:
            seen.append(int.from_bytes(one[0].tobytes()[:8], "big"))
        producer.join(20)
        rx.close()
        assert seen == sorted(set(seen)), "out of order, or twice"
        lost = len(sent) - len(seen)
        assert lost <= struck // 4, (lost, struck)
        assert left() == [], left()
        """,
        way,
    )


@pytest.mark.parametrize(
    ("scheme", "what"),
    [
        *(("local", what) for what in ("sender", "receiver", "pair", "leaving with")),
        ("ring", "sender"),
        ("ring", "pair"),
    ],
)
def test_a_close_that_was_interrupted_is_finished_by_the_next(scheme, what) -> None:
    run(
        """
        scheme, what = sys.argv[1:]
        random.seed(7)
        signal.signal(signal.SIGALRM, interrupt)
        counts = []
        for turn in range(40):
            if struck >= 4:
                break
            endpoint = f"{scheme}:c{os.getpid()}"
            rx = aiflow.Receiver(endpoint, memory="16MiB")
            tx = aiflow.Sender(endpoint, peer_timeout=20, slice_ms=5)
            tx.put("a", b"x")
            tx.send([b"x"], timeout=20)
            both = aiflow.Pair(tx, rx)
            first, second = {"receiver": (rx, tx), "pair": (both, both)}.get(what, (tx, rx))
            if turn > 1:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + random.random() * 0.002, 0.0011)
            try:
                armed = True
                if what == "leaving with":
                    with first:
                        pass
                else:
                    first.close()
            except KeyboardInterrupt:
                pass
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            first.close()
            first.close()
            second.close()
            del first, second, tx, rx, both
            gc.collect()  # what the frames of an interrupt held
            until = time.monotonic() + 10
            while threading.active_count() > 1 and time.monotonic() < until:
                time.sleep(0.001)  # Python takes a join that was interrupted for done
            counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        assert counts[-1] == counts[1], counts
        assert struck, "no interrupt"
        """,
        scheme, what,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["send", "put", "recv"])
def test_exceptions_set_in_a_thread_end_its_call_only(way) -> None:
    """As debuggers and thread pools do it (PyThreadState_SetAsyncExc): others go on, and close ends."""
    run(
        """
        way = sys.argv[1]
        ends, endpoints, options = receivers(1)
        joined = (lambda: {}) if way == "recv" else consume(ends)
        tx = aiflow.Sender(endpoints, slice_ms=5)
        stop, hits = False, 0
        if way == "put":  # its thread runs: CPython 3.11 gives exceptions of a thread to the one that it starts
            tx.put("a", content(10**6, 2000))

        class Stop(BaseException):
            pass

        def work():
            global hits
            key = 10**6
            while not stop:
                try:
                    while not stop or not hits:
                        key += 1
                        if way == "send":
                            tx.send([content(key, 2000)])
                        elif way == "put":
                            tx.put("a", content(key, 2000))
                        else:
                            ends[0].recv(timeout=20).release()
                except Stop:
                    hits += 1

        def other():
            key = 0
            while not stop or key < 10:
                key += 1
                tx.send([content(key, 2000)], timeout=20)

        worker, sender = threading.Thread(target=work), threading.Thread(target=other)
        worker.start()
        sender.start()
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Stop))
            time.sleep(0.002)
        stop = True
        sender.join(20)
        if way == "recv":
            tx.send([content(1, 8)], wait=False)
        worker.join(20)
        assert not worker.is_alive() and not sender.is_alive()
        tx.close()
        joined()
        for rx in ends:
            rx.close()
        assert hits > 10, hits
        assert left() == [], left()
        """,
        way,
    )


def test_interrupts_while_dpdk_starts_neither_fail_nor_start_it_twice() -> None:
    run(
        """
        from aiflow import Receiver  # which imports what it needs
        opened = []
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        until = time.monotonic() + 0.08
        while not opened:
            try:
                armed = time.monotonic() < until
                opened.append(Receiver(f"ring:i{os.getpid()}", memory="16MiB"))
                armed = False
            except KeyboardInterrupt:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert struck, struck
        opened[0].close()
        assert left() == [], left()
        """
    )


def test_a_join_that_was_interrupted_can_be_repeated() -> None:
    run(
        """
        from aiflow._system import threads
        go, ended = threading.Event(), []

        def work():
            go.wait()
            time.sleep(0.1)
            ended.append(True)

        thread = threads.start(work, "aiflow-work")
        storm(thread.join, 0.1)
        assert thread.is_alive()
        go.set()
        thread.join()
        assert ended and not thread.is_alive()
        """
    )
