"""Raw frames in and out of a port that no loop polls: for tests and diagnosis."""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

from aiflow._dp cimport BURST
from aiflow._eal cimport Port, af_gate_enter, af_gate_leave, gate
from aiflow.librte.rte_ethdev cimport rte_eth_rx_burst, rte_eth_tx_burst
from aiflow.librte.rte_mbuf cimport (
    rte_mbuf, rte_pktmbuf_alloc, rte_pktmbuf_free, rte_pktmbuf_free_bulk, rte_pktmbuf_mtod,
)
from aiflow.errors import ConfigError


def inject(Port port, frames, int nb_segs=1):
    """Send raw frames out of a port that no loop polls, and return how many the driver took.

    For tests and diagnosis: the frames (bytes) go out as they are, whatever is in them, each in an mbuf of the port's
    own pool, or in a chain of two with ``nb_segs=2``.
    """
    cdef rte_mbuf *m
    cdef bytes frame
    cdef int sent = 0
    cdef bint gated = port.gated
    if nb_segs not in (1, 2):
        raise ConfigError(f"nb_segs={nb_segs}: a frame goes out in one mbuf or in two")
    for frame in frames:
        m = wrapped(port, frame, nb_segs)
        if m == NULL:
            break
        if gated:
            af_gate_enter(gate())
        if rte_eth_tx_burst(port.port_id, 0, &m, 1) == 1:
            sent += 1
        else:
            rte_pktmbuf_free(m)
        if gated:
            af_gate_leave(gate())
    return sent


cdef rte_mbuf *wrapped(Port port, bytes frame, int nb_segs) except? NULL:
    """A frame in `nb_segs` chained mbufs; NULL when the pool is empty."""
    cdef rte_mbuf *first = NULL
    cdef rte_mbuf *last = NULL
    cdef rte_mbuf *m
    cdef Py_ssize_t step = (len(frame) + nb_segs - 1) // nb_segs
    for at in range(0, len(frame), step):
        piece = frame[at:at + step]
        if len(piece) > port.mempool.data_room:
            rte_pktmbuf_free(first)
            raise ConfigError(f"a frame of {len(frame)} bytes is more than the port's mbufs hold: send smaller ones")
        m = rte_pktmbuf_alloc(port.mempool.ptr)
        if m == NULL:
            rte_pktmbuf_free(first)
            return NULL
        memcpy(rte_pktmbuf_mtod(m), <const char *><bytes>piece, len(piece))
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
    cdef uint16_t nb_rx, i
    cdef bint gated = port.gated
    cdef list frames = []
    if gated:
        af_gate_enter(gate())
    nb_rx = rte_eth_rx_burst(port.port_id, 0, pkts, BURST)
    if gated:
        af_gate_leave(gate())
    for i in range(nb_rx):
        frames.append((<char *>rte_pktmbuf_mtod(pkts[i]))[:pkts[i].data_len])
    if nb_rx:
        rte_pktmbuf_free_bulk(pkts, nb_rx)
    return frames
