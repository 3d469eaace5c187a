# Makes a received frame plain: one segment, no priority tag.

from libc.stdint cimport uint16_t, uint64_t

from aiflow._core cimport AF_ETHERTYPE, AF_MIN_FRAME
from aiflow._dp_port cimport loop_port
from aiflow.librte.rte_mbuf cimport RTE_MBUF_F_RX_QINQ, RTE_MBUF_F_RX_VLAN, rte_mbuf, rte_pktmbuf_mtod


# of `Loop.unseen`
cdef enum:
    CHAINED
    TAGGED


cdef inline uint16_t ethertype(const rte_mbuf *m, int offset) noexcept nogil:
    """The two bytes at `offset`."""
    return <uint16_t>(rte_pktmbuf_mtod(m)[offset] << 8 | rte_pktmbuf_mtod(m)[offset + 1])


cdef inline bint unusual(const rte_mbuf *m) noexcept nogil:
    """Must `plain` look at it? Not at our frames in one segment without a tag."""
    return (m.nb_segs != 1 or m.ol_flags & (RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_QINQ)
            or (m.data_len >= AF_MIN_FRAME and ethertype(m, 12) != AF_ETHERTYPE))


cdef rte_mbuf *plain(loop_port *port, rte_mbuf *m, uint64_t *unseen) noexcept nogil
