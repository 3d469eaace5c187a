# What Senders and Receivers have in common on a loop.

from libc.stdint cimport uint32_t, uint64_t

from aiflow._core cimport af_agent, af_agent_port, af_chrono, af_numbers, af_sampler
from aiflow._dp cimport Loop, loop_user
from aiflow._dp_port cimport PORTS
from aiflow._eal cimport Port


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
    uint64_t busy_ns


cdef enum:
    MOST_MACHINES = 16         # state machines of an agent: a Sender has one for each receiver


cdef class Agent:
    cdef readonly Loop loop            # None before `join`; kept after `leave`, for its counters
    cdef readonly bint joined          # is it on the loop?
    cdef loop_user user
    cdef af_agent machines[MOST_MACHINES]
    cdef uint32_t nb_machines
    cdef uint32_t nb_ports             # the highest index of an attached port, plus one
    cdef int line_of[PORTS]            # the loop's index of each of its ports
    cdef readonly list attached_ports  # by its own index
    cdef public dict places            # port name → index, for ports that the user has listed
    cdef public object pool            # `aiflow._eal_loans.Pool` of a Sender with loans; None: there are none
    cdef object __weakref__
    cdef readonly list port_names      # (name, driver) of the port at each index, or of the last one there

    cdef int place(self, Port port, bint shares, af_agent_port *out) except -1
    cdef void plug(self, int index, void *adopt) noexcept
    cdef object count_port(self, uint32_t index, agent_counts *out)
    cdef dict not_taken(self, const uint64_t *drops)


cdef af_numbers *session_numbers() noexcept
cdef char *name_bytes(object name, char *out) except NULL
cdef list chrono_ns(af_chrono *chrono)
cdef sample_rows(af_sampler *sampler, uint32_t nb_ports)
