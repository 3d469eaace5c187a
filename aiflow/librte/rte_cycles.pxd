# rte_cycles.h: the time stamp counter
from libc.stdint cimport uint64_t


cdef extern from "rte_cycles.h" nogil:
    uint64_t rte_rdtsc() noexcept
    uint64_t rte_get_tsc_hz() noexcept
    void rte_pause() noexcept
