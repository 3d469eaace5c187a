# Data plane: the burst loop and what its two users (_dp_tx, _dp_rx) share.

from libc.stdint cimport uint32_t, uint64_t

from aiflow._core cimport AF_NB_FAULTS, af_agent, af_agent_port, af_sampler, af_span
from aiflow._dp_driver cimport LoopDriver
from aiflow._dp_port cimport PORTS, loop_port
from aiflow._eal cimport Mempool, Port, af_intr_gate
from aiflow.librte.rte_mbuf cimport rte_mbuf, rte_mbuf_ext_shared_info


# An agent's counters of a port: PortCounters in _dp_counters.py explains each field.
cdef struct agent_counts:
    bint receives
    bint usable
    uint64_t tx_frames
    uint64_t tx_bytes
    uint64_t rx_frames
    uint64_t rx_bytes
    uint64_t retransmits
    uint64_t lost
    uint64_t in_flight
    uint64_t window
    uint64_t rtt_ns
    double gap_ns
    uint64_t signals
    uint64_t sent
    uint64_t arrived
    uint64_t sent_before
    uint64_t arrived_before


cdef class Loop(LoopDriver):
    cdef af_agent agent
    cdef list faults                   # rules of `_faults.parse_faults`
    cdef uint64_t fault_sums[AF_NB_FAULTS]  # counts of lines that are closed
    cdef af_intr_gate *gate
    cdef loop_port ports[PORTS]
    cdef uint32_t nb_ports
    cdef uint32_t nb_gated
    cdef uint64_t unseen[2]    # frames that never reach the agent: chains longer than an mbuf, VLAN tags
    cdef uint64_t rx_nombuf    # of ports that are detached
    cdef uint64_t tx_nombuf    # likewise
    cdef readonly list attached_ports
    cdef readonly list port_names      # (name, driver) of the port at each index, or of the last one there
    cdef object tx_pool
    cdef Mempool references             # mbufs that refer to the agent's bytes, where ports send by reference
    cdef rte_mbuf_ext_shared_info lent  # for all of them: nothing is freed, the agent owns the bytes

    cdef int poll(self, uint32_t index, uint64_t now) noexcept nogil
    cdef int receive(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil
    cdef void last_look(self, uint32_t index) noexcept nogil
    cdef void stage(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil
    cdef void refer(self, rte_mbuf *m, const af_span *tail) noexcept nogil
    cdef void make_own(self, loop_port *port) noexcept nogil
    cdef void collect(self, uint64_t now) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef int place_port(self, Port port, uint32_t peer, af_agent_port *out) except -1
    cdef object count_port(self, uint32_t index, agent_counts *out)
    cdef dict not_taken(self, const uint64_t *drops)
    cdef set_faults(self, faults)


cdef char *name_bytes(object name, char *out) except NULL
cdef sample_rows(af_sampler *sampler, uint32_t nb_ports)
