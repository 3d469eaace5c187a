# Control plane, C-level face for _dp.

from libc.stdint cimport uint16_t

from aiflow._eal_device cimport Removal
from aiflow._eal_init cimport (
    af_intr_gate, af_intr_gate_enter, af_intr_gate_leave, gate, register_thread, unregister_thread,
)
from aiflow._eal_mempool cimport Mempool


cdef class Port:
    cdef readonly uint16_t port_id
    cdef readonly bytes mac           # 6 bytes
    cdef readonly str name            # for tables and errors: "local:demo#0"
    cdef readonly str driver          # "net_memif"
    cdef readonly int socket_id
    cdef public int frame_size        # bytes of the largest frame, with Ethernet header, without FCS
    cdef readonly int rx_ring         # frames that the receive side can hold
    cdef public int tx_window         # frames that may be in flight from this port
    cdef readonly bint gated          # bursts must be inside the gate
    cdef readonly bint kick           # frames may stay in the driver until a later tx_burst
    cdef readonly bint point_to_point  # exactly one peer is at the other end
    cdef readonly bint copies         # tx_burst copies the frame
    cdef readonly bint multi_segs     # tx_burst takes chained mbufs
    cdef readonly bint lends          # a card that reads the arrays of `aiflow.empty` where they lie
    cdef readonly bint needs_eal_memory  # a card, or a peer process, reads frames where they lie: in DPDK's own memory
    cdef readonly bint is_open
    cdef bint is_plugged              # the device is on its bus
    cdef readonly Mempool mempool     # pool of received frames; the port keeps it alive
    cdef str bus
    cdef str device
    cdef object ring_pair             # net_ring: the RingPair that both ports own
    cdef public object doorbell       # Doorbell to ring after a burst, and to tell before a sleep; or None
    cdef public object sharing        # Sharing of its connection; or None
    cdef public list wake_fds         # descriptors that are readable when a frame has arrived; none: it must be polled
    cdef bint rx_interrupts           # to be enabled before a sleep, and disabled after it
    cdef list held                    # closed after the port
    cdef int side                     # net_ring: index of this port in its pair
    cdef object link_lock             # DPDK's control calls for a port are not for two threads at once
    cdef Removal removal              # of a card: whether the kernel wants it back

    cdef _configure(self, Mempool mempool, frame_size, int nb_rxd, int nb_txd, rx_ring, tx_window, mark)
    cdef _start(self, mark)
    cdef _find_interrupt(self)
