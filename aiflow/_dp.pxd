# Data plane: the burst loop and what its two users (_dp_tx, _dp_rx) share.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from aiflow._core cimport AF_NB_FAULTS, af_agent, af_agent_port, af_fault_line, af_sampler, af_span
from aiflow._dp_driver cimport LoopDriver
from aiflow._eal cimport Mempool, Port, af_intr_gate
from aiflow.librte.rte_mbuf cimport rte_mbuf, rte_mbuf_ext_shared_info
from aiflow.librte.rte_mempool cimport rte_mempool


cdef enum:
    BURST = 32
    PORTS = 32
    OUT = 0
    IN = 1


# dataplane: rw; the control plane touches it only while the loop is parked
cdef struct loop_port:
    bint attached
    bint gated
    uint16_t port_id
    uint16_t head              # of the staged frames, the first that is not sent yet
    uint16_t count             # staged frames from head on
    rte_mempool *pool          # frames to send
    rte_mempool *rx_pool       # of the mbufs that the driver receives into
    rte_mempool *adopt         # received mbufs are another's: what is kept moves into one of these; else NULL
    rte_mbuf *spare            # allocated, and nothing to put in it yet
    rte_mbuf *staged[BURST]
    af_fault_line *lines[2]          # faults on the way OUT and IN; NULL unless asked for
    uint64_t rx_nombuf         # no mbuf to move a received frame into
    uint64_t tx_nombuf         # the pool had no mbuf for a frame that we wanted to send


cdef class Loop(LoopDriver):
    cdef af_agent agent
    cdef list faults                   # rules of `_faults.parse_faults`
    cdef uint64_t fault_sums[AF_NB_FAULTS]  # of lines that are no more
    cdef af_intr_gate *gate
    cdef loop_port ports[PORTS]
    cdef uint32_t nb_ports
    cdef uint32_t nb_gated
    cdef uint64_t unseen[2]    # frames that never reach the agent: chains too long for an mbuf, VLAN tags
    cdef readonly list attached_ports
    cdef readonly list port_names      # (name, driver) of the port that is, or was last, at each index
    cdef object tx_pool
    cdef Mempool references             # mbufs that refer to an agent's bytes, where ports send by reference
    cdef rte_mbuf_ext_shared_info lent  # common to all those bytes: nobody waits for them, the agent keeps them

    cdef int poll(self, uint32_t index, uint64_t now) noexcept nogil
    cdef int receive(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil
    cdef void last_look(self, uint32_t index) noexcept nogil
    cdef void stage(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil
    cdef void refer(self, rte_mbuf *m, const af_span *tail) noexcept nogil
    cdef void make_own(self, loop_port *port) noexcept nogil
    cdef void collect(self, uint64_t now) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef int place_port(self, Port port, uint32_t peer, af_agent_port *out) except -1
    cdef set_faults(self, faults)


cdef char *name_bytes(object name, char *out) except NULL
cdef sample_rows(af_sampler *sampler, uint32_t nb_ports)
