# Fault lines between a loop and its ports (include/aiflow/rt/fault_line.h).

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from aiflow._core cimport af_fault_line
from aiflow._dp_port cimport loop_port
from aiflow.librte.rte_mbuf cimport rte_mbuf


cdef open_lines(loop_port *port, list faults, uint32_t index)
cdef close_lines(loop_port *port, uint64_t *sums)
cdef void impair(af_fault_line *line, rte_mbuf *m, uint64_t now) noexcept nogil
cdef int impaired(loop_port *port, rte_mbuf **pkts, uint16_t nb_rx, uint64_t now, uint64_t *unseen) noexcept nogil
