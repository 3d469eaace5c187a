"""Received frames that must be made plain before the agent reads them: chains of mbufs, and priority tags.

A driver may deliver a frame in several mbufs: DPDK 24.11's memif passes the sender's segments on, and NICs split frames
that are longer than their buffers. A switch may tag frames with VLAN 0: a priority without a VLAN (IEEE 802.1Q, 6.9).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from aiflow._core cimport AF_MIN_FRAME
from aiflow._dp_port cimport loop_port
from aiflow.librte.rte_mbuf cimport (
    RTE_MBUF_DIRECT, RTE_MBUF_F_RX_QINQ, RTE_MBUF_F_RX_QINQ_STRIPPED, RTE_MBUF_F_RX_VLAN, RTE_MBUF_F_RX_VLAN_STRIPPED,
    RTE_PKTMBUF_HEADROOM, rte_mbuf, rte_mbuf_refcnt_read, rte_mempool, rte_pktmbuf_adj, rte_pktmbuf_alloc,
    rte_pktmbuf_append, rte_pktmbuf_data_room_size, rte_pktmbuf_free, rte_pktmbuf_headroom, rte_pktmbuf_mtod,
    rte_pktmbuf_prepend, rte_pktmbuf_tailroom,
)

cdef enum:
    TAG = 4              # bytes of an 802.1Q tag
    VLAN_ID = 0x0fff     # bits of it
    CUSTOMER = 0x8100    # EtherTypes: 802.1Q,
    SERVICE = 0x88A8     # and 802.1ad


cdef rte_mbuf *plain(loop_port *port, rte_mbuf *m, uint64_t *unseen) noexcept nogil:
    """The frame in one mbuf, without a priority tag. NULL when it was dropped and counted."""
    if m.nb_segs != 1:
        m = joined(port, m, unseen)
        if m == NULL:
            return NULL
    if not untagged(m):
        # Count only our frames: a trunk has other traffic. The tag is in the frame, or the driver stripped it.
        unseen[TAGGED] += AF_ETHERTYPE in (ethertype(m, 12), ethertype(m, 12 + TAG))
        rte_pktmbuf_free(m)
        return NULL
    return m


cdef rte_mbuf *joined(loop_port *port, rte_mbuf *m, uint64_t *unseen) noexcept nogil:
    """One mbuf with the bytes of a chain."""
    cdef rte_mbuf *whole = m.next
    cdef rte_mempool *pool = port.rx_pool
    if m.nb_segs == 2 and port.nb_adopting == 0 and moves_in_front(m, whole):
        # Usually the first mbuf has only the headers: the payload stays where it is.
        memcpy(rte_pktmbuf_prepend(whole, m.data_len), rte_pktmbuf_mtod(m), m.data_len)
        m.next = NULL
        m.nb_segs = 1
    elif chain_bytes(m) + RTE_PKTMBUF_HEADROOM > rte_pktmbuf_data_room_size(pool):
        unseen[CHAINED] += 1
        whole = NULL
    else:
        whole = rte_pktmbuf_alloc(pool)
        if whole == NULL:
            port.rx_nombuf += 1
        else:
            copy_chain(whole, m)
    if whole != NULL:
        whole.pkt_len = whole.data_len
        whole.ol_flags = m.ol_flags
        whole.vlan_tci = m.vlan_tci
    rte_pktmbuf_free(m)
    return whole


cdef bint moves_in_front(const rte_mbuf *m, const rte_mbuf *second) noexcept nogil:
    """Has the second segment enough headroom, and no other reference?"""
    return (second != NULL and RTE_MBUF_DIRECT(second) and rte_mbuf_refcnt_read(second) == 1
            and m.data_len <= rte_pktmbuf_headroom(second))


cdef uint32_t chain_bytes(const rte_mbuf *m) noexcept nogil:
    """Bytes of all segments, by their own lengths: `pkt_len` of the first one may differ."""
    cdef uint32_t total = 0
    while m != NULL:
        total += m.data_len
        m = m.next
    return total


cdef void copy_chain(rte_mbuf *whole, const rte_mbuf *m) noexcept nogil:
    """Append all segments; the caller has checked that they fit."""
    while m != NULL:
        memcpy(rte_pktmbuf_append(whole, m.data_len), rte_pktmbuf_mtod(m), m.data_len)
        m = m.next


cdef bint untagged(rte_mbuf *m) noexcept nogil:
    """Remove one priority tag. False where the driver stripped another tag; one left in the frame is refused later."""
    cdef uint8_t *frame = rte_pktmbuf_mtod(m)
    cdef uint16_t nbytes
    if m.ol_flags & (RTE_MBUF_F_RX_QINQ | RTE_MBUF_F_RX_QINQ_STRIPPED):
        return False
    if m.ol_flags & RTE_MBUF_F_RX_VLAN and m.vlan_tci & VLAN_ID:
        return False
    if not m.ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED:
        if (m.data_len < AF_MIN_FRAME or ethertype(m, 12) not in (CUSTOMER, SERVICE)
                or ethertype(m, 14) & VLAN_ID):
            return True
        memmove(frame + TAG, frame, 12)
        frame = <uint8_t *>rte_pktmbuf_adj(m, TAG)
    # A switch may remove as much padding as a tag adds.
    if AF_MIN_FRAME - TAG <= m.data_len < AF_MIN_FRAME and rte_pktmbuf_tailroom(m) >= TAG:
        nbytes = AF_MIN_FRAME - m.data_len
        memset(rte_pktmbuf_append(m, nbytes), 0, nbytes)
    return True
