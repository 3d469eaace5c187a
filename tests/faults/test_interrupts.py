"""Ctrl-C, signal handlers and exceptions set from other threads, anywhere in the Python face: nothing hangs or leaks.

The interrupts come from a timer while the code under test runs, so they strike at other places in every run. Each
program runs in a process of its own: what it leaves locked hangs that one only, and its stacks are in the failure.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import ctypes, faulthandler, gc, os, random, signal, sys, threading, time
import numpy as np, aiflow
from aiflow.errors import AiflowError

faulthandler.dump_traceback_later(SECONDS, exit=True)

def failed(*error):
    sys.__excepthook__(*error)
    sys.stderr.flush()
    os._exit(1)  # its other threads would go on

sys.excepthook = failed
threading.excepthook = lambda args: failed(args.exc_type, args.exc_value, args.exc_traceback)
armed = False
struck = 0

def interrupt(*_):
    global armed, struck
    if armed:
        armed = False
        struck += 1
        raise KeyboardInterrupt

def storm(call, seconds=0.7, pause=0.0006):
    '''Call again and again while interrupts strike; how many did.'''
    global armed
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, pause, pause * 1.1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            armed = True
            call()
            armed = False
        except KeyboardInterrupt:
            pass
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert struck > 10, struck

def receivers(nb, **options):
    names = [f"i{os.getpid()}-{k}" for k in range(nb)]
    ends = [aiflow.Receiver(f"ring:{name}", name=name, memory="64MiB", until="bye", **options) for name in names]
    return ends, [f"ring:{name}" for name in names], ({"to": names} if nb > 1 else {})

def consume(ends):
    '''Number of times that each element has come, by its 8 first bytes.'''
    seen, guard = {}, threading.Lock()
    def run(rx):
        for time_slice in rx:
            for element in time_slice:
                key = int.from_bytes(element.tobytes()[:8], "big")
                assert element.tobytes() == content(key, element.nbytes), key
                with guard:
                    seen[key] = seen.get(key, 0) + 1
    threads = [threading.Thread(target=run, args=(rx,)) for rx in ends]
    for thread in threads:
        thread.start()
    def joined():
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        for rx in ends:
            rx.close()
        return seen
    return joined

def content(key, nbytes):
    return (key.to_bytes(8, "big") * (nbytes // 8 + 1))[:nbytes]

def left():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("aiflow"))
"""


def run(program: str, *arguments: object, seconds: int = 25) -> str:
    """Run a program with what is above in front of it; its output."""
    source = PRELUDE.replace("SECONDS", str(seconds)) + textwrap.dedent(program)
    command = [sys.executable, "-W", "ignore", "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("receivers", [1, 2])
@pytest.mark.parametrize(("copy", "slices"), [("copy", 5), ("in place", 5), ("copy", None)])
def test_put_under_interrupts_loses_nothing_and_holds_nothing(receivers, copy, slices) -> None:
    """What put() took arrives once; what it was interrupted in arrives once or not at all; nothing stays held."""
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
        streaming = tx._streaming
        assert streaming._held == 0, streaming._held
        assert not streaming._open and not streaming._flying and not streaming._failed
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
                    assert tx._loop.outstanding() == []
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


@pytest.mark.parametrize(
    ("main", "handler", "receivers"),
    [
        *(("send", handler, 2) for handler in ("send", "send_batch", "put", "flush")),
        *(("put", handler, 2) for handler in ("send", "put", "flush")),
        *(("put", handler, 1) for handler in ("send", "put", "flush")),
        ("send", "send", 1),
    ],
)
def test_a_signal_handler_may_send(main, handler, receivers) -> None:
    """While the program is in send or put itself; every receiver sees all slices in one order."""
    run(
        """
        main, handler, nb = sys.argv[1], sys.argv[2], int(sys.argv[3])
        ends, endpoints, options = receivers(nb)
        joined = consume(ends)
        tx = aiflow.Sender(endpoints, slice_ms=5 if nb == 2 else None, put_memory="8MiB", **options)
        keys, sent, handled, busy = iter(range(1, 10**9)), set(), 0, False

        def give(way):
            key = next(keys)
            if way == "send":
                tx.send([("a", content(key, 3000))], timeout=20)
            elif way == "send_batch":
                tx.send_batch("a", np.frombuffer(content(key, 3000), np.uint8)[None], timeout=20)
            else:
                tx.put("a", bytearray(content(key, 3000)))
                if way == "flush" or key % 100 == 0:
                    tx.flush(20)
            sent.add(key)

        def handle(*_):
            global handled, busy
            if not busy:  # one at a time
                busy = True
                give(handler)
                handled += 1
                busy = False

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            give(main)
        signal.setitimer(signal.ITIMER_REAL, 0)
        tx.flush(20)
        assert tx._streaming._held == 0
        tx.close()
        seen = joined()
        assert set(seen) == sent
        assert set(seen.values()) == {1}
        assert handled > 10, handled
        """,
        main, handler, receivers,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["send", "put", "flush", "send_batch"])
def test_a_partition_function_may_send(way) -> None:
    run(
        """
        way = sys.argv[1]
        ends, endpoints, options = receivers(2)
        joined = consume(ends)
        inside, sent = False, []

        def choose(elements, names):
            global inside
            if not inside and elements[0][0] != "b":
                inside = True
                sent.append(1)
                if way == "send":
                    tx.send([content(len(sent), 100)], timeout=20)
                elif way == "send_batch":
                    tx.send_batch("b", np.frombuffer(content(len(sent), 100), np.uint8)[None], timeout=20)
                else:
                    tx.put("b", content(len(sent), 100))
                    if way == "flush":
                        tx.flush(20)
                inside = False
            return [k % 2 for k in range(len(elements))]

        tx = aiflow.Sender(endpoints, partition=choose, slice_ms=5, **options)
        for _ in range(20):
            sent.append(0)
            tx.send([content(len(sent), 100)], timeout=20)
        tx.close()
        assert len(joined()) == len(sent)
        """,
        way,
    )


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
