# Control plane, C-level face: what _dp cimports.
from libc.stdint cimport uint16_t

from aiflow.librte.rte_mempool cimport rte_mempool
from aiflow.librte.rte_ring cimport rte_ring


cdef extern from "aiflow/gate.h" nogil:
    struct af_gate:
        pass

    # Around each iteration's bursts when a gated port is attached; without the GIL, and nothing that blocks between.
    void af_gate_enter(af_gate *gate) noexcept
    void af_gate_leave(af_gate *gate) noexcept


cdef af_gate *gate() noexcept nogil


cdef class Mempool:
    cdef rte_mempool *ptr             # valid while the object lives
    cdef readonly str name
    cdef readonly unsigned int nb_mbufs
    cdef readonly unsigned int data_room   # bytes a frame may have; the headroom is extra
    cdef readonly int socket_id
    cdef readonly bint own_memory
    cdef void *base                   # our mmap, or NULL
    cdef size_t length
    cdef int pid
    cdef object __weakref__


cdef class Port:
    cdef readonly uint16_t port_id
    cdef readonly bytes mac           # 6 bytes
    cdef readonly str name            # as shown: "local:demo#0"
    cdef readonly str driver          # "net_memif"
    cdef readonly int socket_id
    cdef readonly int frame_size      # largest Ethernet frame, header included, no FCS, it can send and receive
    cdef readonly int rx_ring         # frames its receive side can hold
    cdef readonly int tx_window       # frames that may be unacknowledged out of it
    cdef readonly bint gated          # bursts must be inside the gate
    cdef readonly bint kick           # frames handed over may linger until a later tx_burst
    cdef readonly bint point_to_point  # exactly one peer can be at the other end
    cdef readonly bint copies         # tx_burst copies the frame
    cdef readonly bint is_open
    cdef readonly Mempool mempool     # receives into this; kept alive by the port
    cdef str bus
    cdef str device
    cdef rte_ring *rings[2]           # net_ring only
    cdef object keep                  # what must outlive the port
    cdef int pid
    cdef object __weakref__


cpdef bint register_thread() except -1
cpdef void unregister_thread() noexcept
