# Control plane, C-level face: what _dp cimports.

from libc.stdint cimport uint16_t

from aiflow._eal_init cimport (
    af_intr_gate, af_intr_gate_enter, af_intr_gate_leave, gate, register_thread, unregister_thread,
)
from aiflow._eal_mempool cimport Mempool


cdef class Port:
    cdef readonly uint16_t port_id
    cdef readonly bytes mac           # 6 bytes
    cdef readonly str name            # as shown: "local:demo#0"
    cdef readonly str driver          # "net_memif"
    cdef readonly int socket_id
    cdef readonly int frame_size      # largest Ethernet frame, header included, no FCS, it can send and receive
    cdef readonly int rx_ring         # frames its receive side can hold
    cdef public int tx_window         # frames that may be unacknowledged out of it
    cdef readonly bint gated          # bursts must be inside the gate
    cdef readonly bint kick           # frames handed over may linger until a later tx_burst
    cdef readonly bint point_to_point  # exactly one peer can be at the other end
    cdef readonly bint copies         # tx_burst copies the frame
    cdef readonly bint multi_segs     # tx_burst takes chained mbufs
    cdef readonly bint is_open
    cdef bint is_plugged              # the device is on its bus
    cdef readonly Mempool mempool     # receives into this; kept alive by the port
    cdef str bus
    cdef str device
    cdef object rings                 # net_ring: the rings both ports of a pair own
    cdef int side                     # which of the two this one is

    cdef _configure(self, Mempool mempool, frame_size, int nb_rxd, int nb_txd, rx_ring, tx_window, mark)
    cdef _start(self, mark)
