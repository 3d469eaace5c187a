# Memory of receivers that local peers share, C-level face for _dp_agent.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from aiflow._core_loans cimport af_borrowed, af_lender


cdef extern from "aiflow/rt/agent.h" nogil:
    enum:
        AF_MOST_SHARED

    struct af_shared_memory:
        uint8_t *base
        uint64_t nbytes, epoch

    struct af_shared:
        af_shared_memory memories[AF_MOST_SHARED]
        af_lender *lenders[AF_MOST_SHARED]
        af_borrowed *borrowed[AF_MOST_SHARED]

    void af_shared_add(af_shared *shared, uint8_t *base, uint64_t nbytes, uint64_t epoch, bint borrows) noexcept


cdef class Sharing:
    cdef public uint32_t writer
    cdef af_shared shared
    cdef list lenders  # Lenders in `shared`
    cdef int pid
