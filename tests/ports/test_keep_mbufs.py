"""assemble=False: the segments of an element ARE the payloads of the mbufs that the driver filled."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
from mbufs import mbufs_out
from subprocesses import run
from wait import settle

import aiflow
from aiflow import _eal
from aiflow._dp_testing import Held, mbuf_payloads
from aiflow.errors import SliceTimeout

rng = np.random.default_rng(11)
# net_ring hands over the sender's own mbufs, so that the count is one over all pools.
MEMORY = "64MiB"
SCHEMES = pytest.mark.parametrize("scheme", ["ring", "local"])


def kept_pool() -> _eal.Mempool:
    (pool,) = [pool for pool in _eal.mempools() if pool.name.startswith("kept-")]
    return pool


def nb_mbufs_out() -> int:
    return sum(mbufs_out().values())


def at_rest() -> int:
    """Mbufs in use while no slice is in flight: the least of several looks, since a report may be in flight at each."""
    looks = []
    for _ in range(20):
        looks.append(nb_mbufs_out())
        time.sleep(0.005)
    return min(looks)


@SCHEMES
def test_segments_are_the_payloads_of_the_received_mbufs(scheme, name) -> None:
    data = rng.integers(0, 256, 1_000_000, dtype=np.uint8)
    gc.collect()
    port = f"{scheme}:{name}"
    with aiflow.Receiver(port, assemble=False, memory=MEMORY) as rx, aiflow.Sender(port) as tx:
        ticket = tx.send({"a": data, "b": data[:500_000], "c": b"small", "d": b"too"}, wait=False)
        time_slice = rx.recv(timeout=20)
        ticket.result(20)
        incoming = time_slice._incoming
        elements = {"a": data, "b": data[:500_000]}
        nb_segments = 0
        for stream, sent in elements.items():
            element = time_slice[stream]
            segments = element.segments
            addresses = [segment.__array_interface__["data"][0] for segment in segments]
            assert addresses == mbuf_payloads(incoming, element.number)
            assert len(set(addresses)) == len(addresses)
            assert sum(segment.nbytes for segment in segments) == sent.nbytes
            assert b"".join(segment.tobytes() for segment in segments) == sent.tobytes()  # in order
            assert all(not segment.flags.owndata and not segment.flags.writeable for segment in segments)
            assert np.array_equal(element.array, sent)
            nb_segments += len(segments)
        # Elements that fit one frame together share its mbuf; their only segment is their own part.
        (c,), (d,) = time_slice["c"].segments, time_slice["d"].segments
        assert (c.tobytes(), d.tobytes()) == (b"small", b"too")
        assert d.__array_interface__["data"][0] == c.__array_interface__["data"][0] + 5
        assert nb_segments > 50
        del segments, c, d
        held = nb_segments + 1  # the pack
        assert settle(lambda: nb_mbufs_out() >= held)
        time_slice.release()
        del element, incoming, time_slice
        gc.collect()
        assert settle(lambda: nb_mbufs_out() < held)


def test_a_frame_is_kept_only_where_it_fits() -> None:
    """The Sender's first frames are as large as its own port takes, and the Receiver's mbufs are smaller."""
    out = run("""
        import aiflow
        with aiflow.Sender("ring:x") as tx, aiflow.Receiver("ring:x", assemble=False, frame_size=1514) as rx:
            ticket = tx.send([bytes(range(256)) * 40], wait=False)
            time_slice = rx.recv(timeout=20)
            ticket.result(20)
            print(rx.counters["mtu"] > 0, time_slice[0].tobytes() == bytes(range(256)) * 40)
    """)
    assert out == "True True\n"


def test_a_receiver_without_a_free_mbuf_says_so(name) -> None:
    """Frames that find the pool empty are counted, named with a remedy, and retransmitted."""
    with aiflow.Receiver(f"ring:{name}", assemble=False, memory=MEMORY) as rx, aiflow.Sender(f"ring:{name}") as tx:
        tx.send([b"first"], wait=False)
        rx.recv(timeout=20).release()
        with rx._agent.loop.between(lambda: Held(kept_pool(), 1 << 20)):  # there, for the loop's own cache of mbufs
            ticket = tx.send([bytes(200_000)], wait=False)
            assert settle(lambda: rx.counters["rx_nombuf"] > 0)
            with pytest.raises(SliceTimeout, match=r"found no free mbuf in the pool; .*a bigger memory="):
                rx.recv(timeout=0.1)
            assert 0 < rx.port_table[0].rx_nombuf <= rx.counters["rx_nombuf"]
            assert tx.counters["rx_nombuf"] == 0
        assert rx.recv(timeout=20)[0].tobytes() == bytes(200_000)
        ticket.result(20)


def test_a_sender_without_a_free_mbuf_says_so(name) -> None:
    with aiflow.Receiver(f"ring:{name}") as rx, aiflow.Sender(f"ring:{name}") as tx:
        tx.send([b"first"], wait=False)
        rx.recv(timeout=20).release()
        with tx._agent.loop.between(lambda: Held(tx._agent.attached_ports[0].mempool, 1 << 20)):
            with pytest.raises(SliceTimeout, match="frames to send have waited for a free mbuf"):
                tx.send([bytes(200_000)], timeout=0.5)
            assert 0 < tx.port_table[0].tx_nombuf <= tx.counters["tx_nombuf"]
            assert rx.counters["tx_nombuf"] == 0
        tx.send([b"second"], wait=False)
        assert rx.recv(timeout=20)[0].tobytes() == b"second"


def test_kept_mbufs_outlive_the_receiver(name) -> None:
    with aiflow.Receiver(f"local:{name}", assemble=False, memory=MEMORY) as rx, aiflow.Sender(f"local:{name}") as tx:
        ticket = tx.send([bytes(200_000)], wait=False)
        segments = rx.recv(timeout=20)[0].segments
        ticket.result(20)
    del rx, tx, ticket
    gc.collect()
    assert kept_pool().in_use >= len(segments)
    assert b"".join(segment.tobytes() for segment in segments) == bytes(200_000)
    del segments
    gc.collect()
    assert settle(lambda: not nb_mbufs_out())


def test_the_pool_gives_out_just_the_segments_that_are_held(name) -> None:
    """The count rises by the frames of a slice, slice by slice, and falls by as many."""
    with aiflow.Receiver(f"ring:{name}", assemble=False, memory=MEMORY) as rx, aiflow.Sender(f"ring:{name}") as tx:
        held, counts = [], []
        for _ in range(4):
            ticket = tx.send([bytes(200_000)], wait=False)
            held.append(rx.recv(timeout=20))
            ticket.result(20)
            nb_segments = len(held[-1][0].segments)
            counts.append(at_rest())
        rises = np.diff(counts)
        # A few reports may be in flight at any moment.
        assert all(abs(rise - nb_segments) <= 8 for rise in rises), (counts, nb_segments)
        held.clear()
        gc.collect()
        assert settle(lambda: nb_mbufs_out() < counts[0])


def test_frames_stay_small_on_a_packet_port(net) -> None:
    """Over af_packet a segment is what one 1500-byte frame carries: 1460 bytes."""
    host = net.namespace("host")
    net.veth(host, "a", host, "b")
    code = """
        import numpy as np, aiflow
        data = np.arange(60_000, dtype=np.uint16).view(np.uint8)
        with aiflow.Receiver("af_packet:b", assemble=False, memory="64MiB") as rx, aiflow.Sender("af_packet:a") as tx:
            ticket = tx.send([data], wait=False)
            with rx.recv(timeout=20) as time_slice:
                ticket.result(20)
                segments = time_slice[0].segments
                assert [s.nbytes for s in segments] == [1460] * 82 + [120_000 - 82 * 1460], [s.nbytes for s in segments]
                assert b"".join(s.tobytes() for s in segments) == data.tobytes()
                del segments
    """
    run(code, prefix=host.prefix)


def test_segments_need_a_receiver_that_keeps_them() -> None:
    with aiflow.pair() as pair:
        ticket = pair.sender.send([b"x"], wait=False)
        with pair.receiver.recv(timeout=20) as time_slice:
            ticket.result(20)
            with pytest.raises(aiflow.ConfigError, match="assemble=False"):
                time_slice[0].segments  # noqa: B018
