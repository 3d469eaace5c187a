"""Signal handlers and partition functions that send while their thread is in a send itself."""

from __future__ import annotations

import pytest
from interrupted import run


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
        assert tx._batcher._held == 0
        tx.close()
        seen = joined()
        assert set(seen) == sent
        assert set(seen.values()) == {1}
        assert handled > 10, handled
        """,
        main, handler, receivers,
    )  # fmt: skip


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_is_posted_once_though_a_signal_handler_sends(part) -> None:
    """The signal comes while the part is posted, when the buffers of a slice that has ended are given back."""
    run(
        """
        part = int(sys.argv[1])
        ends, endpoints, options = receivers(2)
        joined = consume(ends)
        tx = aiflow.Sender(endpoints, partition=lambda elements, names: [0, 1], **options)
        agent, make, sent, planned = tx._agent, tx._poster.planner.plan, 0, 0

        def give(wait):
            global sent
            sent += 2
            return tx.send([content(sent - 1, 3000), content(sent, 3000)], wait=wait)

        def strike(outgoing):
            agent.on_end = None
            signal.raise_signal(signal.SIGUSR1)

        def plan(nbytes):
            global planned
            if planned == part:
                while agent.busy:  # then the post finds one that has ended
                    time.sleep(0.001)
                agent.on_end = strike
            planned += 1
            return make(nbytes)

        signal.signal(signal.SIGUSR1, lambda *_: give(True))
        give(False)
        tx._poster.planner.plan = plan
        give(True)
        tx.flush(20)
        in_flight, ended = agent.ended()
        assert (in_flight, ended["slices"], ended["failed"]) == (0, 3, 0), (in_flight, ended)
        tx.close()
        assert joined() == dict.fromkeys(range(1, 7), 1)
        """,
        part,
    )


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
