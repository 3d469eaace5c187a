# Data plane: the burst loop, and what the agents on it share (_dp_agent, _dp_tx, _dp_rx).

from libc.stdint cimport uint32_t, uint64_t

from aiflow._core cimport AF_MOST_AGENTS, AF_NB_FAULTS, af_demux, af_span
from aiflow._dp_driver cimport LoopDriver
from aiflow._dp_port cimport PORTS, loop_port
from aiflow._eal_doorbell cimport Doorbell, af_doorbell
from aiflow._eal cimport Mempool, Port, af_intr_gate
from aiflow.librte.rte_mbuf cimport rte_mbuf, rte_mbuf_ext_shared_info


# What a loop calls of a Sender or Receiver beside its state machines. `side` is the callee's.
cdef struct loop_user:
    void *side
    void (*collect)(void *side, uint64_t now) noexcept nogil  # take what was posted
    void (*publish)(void *side) noexcept nogil  # hand over what is finished; the loop holds the handoff's lock
    bint (*unfinished)(void *side) noexcept nogil  # is there work that cannot wait?


cdef class Loop(LoopDriver):
    cdef af_demux demux
    cdef const loop_user *users[AF_MOST_AGENTS]
    cdef uint32_t nb_users
    cdef readonly list agents          # of these; the loop keeps them
    cdef list faults                   # rules of `_faults.parse_faults`
    cdef uint64_t fault_sums[AF_NB_FAULTS]  # counts of lines that are closed
    cdef af_intr_gate *gate
    cdef loop_port ports[PORTS]
    cdef uint32_t nb_ports
    cdef uint32_t nb_gated
    cdef af_doorbell *bells[PORTS]     # of connections; NULL where there is none. Their ports keep them
    cdef int bell_uses[PORTS]          # ports that share each
    cdef bint to_ring[PORTS]           # its peer has got frames in this iteration
    cdef int nb_bells                  # the highest index in use, and 1
    cdef uint64_t unseen[2]    # frames that never reach an agent: chains longer than an mbuf, VLAN tags
    cdef uint64_t rx_nombuf    # of ports that are closed
    cdef uint64_t tx_nombuf    # likewise
    cdef readonly list open_ports      # by index; None where there is none
    cdef public object tx_pool         # of frames to send; None: each port's own
    cdef list tx_pools                 # that ports have, or had
    cdef Mempool references             # mbufs that refer to an agent's bytes, where ports send by reference
    cdef rte_mbuf_ext_shared_info lent  # for all of them: nothing is freed, the agent owns the bytes

    cdef int _share_bell(self, Doorbell bell)
    cdef int _bell_uses(self, int bell)
    cdef bint _add_wake_fds(self, list fds)
    cdef _no_wakes(self, loop_port *port, list fds)
    cdef void ring_peers(self) noexcept nogil
    cdef int poll(self, uint32_t index, uint64_t now) noexcept nogil
    cdef int receive(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil
    cdef void last_look(self, uint32_t index) noexcept nogil
    cdef void stage(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil
    cdef void refer(self, loop_port *port, rte_mbuf *m, const af_span *tail) noexcept nogil
    cdef void make_own(self, loop_port *port) noexcept nogil
