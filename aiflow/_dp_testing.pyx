"""For tests and diagnosis: raw frames at a port that no loop polls, and counters that nothing else needs."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from aiflow._core cimport AF_HEADER
from aiflow._dp_port cimport BURST
from aiflow._dp_driver cimport LoopDriver
from aiflow._dp_incoming cimport Incoming
from aiflow._eal cimport Mempool, Port, af_intr_gate_enter, af_intr_gate_leave, gate
from aiflow.librte.rte_ethdev cimport rte_eth_rx_burst, rte_eth_tx_burst
from aiflow.librte.rte_mbuf cimport (
    RTE_MBUF_F_RX_VLAN, RTE_MBUF_F_RX_VLAN_STRIPPED, rte_mbuf, rte_pktmbuf_alloc, rte_pktmbuf_free,
    rte_pktmbuf_free_bulk, rte_pktmbuf_mtod,
)
from aiflow.errors import ConfigError


def inject(Port port, frames, int nb_segs=1, *, cuts=None, vlan_tci=None):
    """Send raw frames out of a port that no loop polls, and return how many the driver took.

    For tests and diagnosis: the frames (bytes) go out as they are, whatever is in them, each in an mbuf of the port's
    own pool, or in a chain of mbufs.

    Parameters
    ----------
    port : Port
    frames : iterable of bytes
    nb_segs : int
        Mbufs of one size that a frame is cut into.
    cuts : iterable of int, optional
        Offsets that a frame is cut at instead; those beyond its end make empty mbufs.
    vlan_tci : int, optional
        Mark the frames as if the driver had stripped a tag with this content. Only net_ring passes that on.
    """
    cdef rte_mbuf *m
    cdef bytes frame
    cdef int sent = 0
    cdef bint gated = port.gated
    if nb_segs < 1:
        raise ConfigError(f"nb_segs={nb_segs}: a frame goes out in one mbuf at least")
    for frame in frames:
        step = max(1, (len(frame) + nb_segs - 1) // nb_segs)
        m = wrapped(port, frame, sorted(cuts) if cuts is not None else range(step, len(frame), step))
        if m == NULL:
            break
        if vlan_tci is not None:
            m.ol_flags |= RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED
            m.vlan_tci = vlan_tci
        if gated:
            af_intr_gate_enter(gate())
        if rte_eth_tx_burst(port.port_id, 0, &m, 1) == 1:
            sent += 1
        else:
            rte_pktmbuf_free(m)
        if gated:
            af_intr_gate_leave(gate())
    return sent


cdef rte_mbuf *wrapped(Port port, bytes frame, cuts) except? NULL:
    """A frame in mbufs chained at these offsets; NULL when the pool is empty."""
    cdef rte_mbuf *first = NULL
    cdef rte_mbuf *last = NULL
    cdef rte_mbuf *m
    cdef bytes piece
    edges = [0, *cuts, len(frame)]
    pieces = [frame[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
    if max(map(len, pieces)) > port.mempool.data_room:
        raise ConfigError(f"a frame of {len(frame)} bytes is more than the port's mbufs hold: send smaller ones")
    for piece in pieces:
        m = rte_pktmbuf_alloc(port.mempool.ptr)
        if m == NULL:
            rte_pktmbuf_free(first)
            return NULL
        memcpy(rte_pktmbuf_mtod(m), <const char *>piece, len(piece))
        m.data_len = <uint16_t>len(piece)
        if last == NULL:
            first = m
            first.pkt_len = <uint32_t>len(frame)
        else:
            last.next = m
            first.nb_segs += 1
        last = m
    return first


def drain(Port port):
    """Receive what waits at a port that no loop polls: a list of frames (bytes). For tests and diagnosis."""
    cdef rte_mbuf *pkts[BURST]
    cdef rte_mbuf *m
    cdef uint16_t nb_rx, i
    cdef bint gated = port.gated
    cdef list frames = []
    if gated:
        af_intr_gate_enter(gate())
    nb_rx = rte_eth_rx_burst(port.port_id, 0, pkts, BURST)
    if gated:
        af_intr_gate_leave(gate())
    for i in range(nb_rx):
        frame = b""
        m = pkts[i]
        while m != NULL:
            frame += (<char *>rte_pktmbuf_mtod(m))[:m.data_len]
            m = m.next
        frames.append(frame)
    if nb_rx:
        rte_pktmbuf_free_bulk(pkts, nb_rx)
    return frames


def mbuf_payloads(Incoming incoming, uint32_t index):
    """For each segment of an element of a kept slice: the address of the payload, by its mbuf."""
    cdef uint64_t nbytes = incoming.s.elements[index].nbytes
    cdef uint32_t chunk = incoming.s.elements[index].first_chunk
    addresses = []
    while nbytes:
        addresses.append(<uintptr_t>rte_pktmbuf_mtod(<rte_mbuf *>incoming.s.kept[chunk].handle) + AF_HEADER)
        nbytes -= min(nbytes, incoming.s.kept[chunk].nbytes)
        chunk += 1
    return addresses


def driven(LoopDriver loop):
    """Times that a waiting caller has driven the loop."""
    return loop.handoff.driven


def rests(LoopDriver loop):
    """Times that the loop has paused to stay within `max_cores`."""
    return loop.cpu_budget.rests


def thread_id(LoopDriver loop):
    """The kernel's number of the worker thread."""
    return loop.thread.native_id


def gate_turns():
    """Turns that the interrupt thread has taken through the gate."""
    return gate().turns


cdef class Held:
    """Context manager: mbufs taken out of a pool, as many as it has, at most `count`."""

    cdef Mempool pool
    cdef list mbufs   # their addresses

    def __init__(self, Mempool pool, uint32_t count):
        cdef rte_mbuf *m
        self.pool = pool
        self.mbufs = []
        while len(self.mbufs) < count:
            m = rte_pktmbuf_alloc(pool.ptr)
            if m == NULL:
                break
            self.mbufs.append(<uintptr_t>m)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        while self.mbufs:
            rte_pktmbuf_free(<rte_mbuf *><uintptr_t>self.mbufs.pop())

    def __len__(self):
        return len(self.mbufs)
