# The EAL, C-level face; _eal.pxd cimports the parts for other modules.

cdef extern from *:
    """
    /* rte_interrupts.h: the instance calls are experimental before 23.11; rte_compat.h reads this, so it comes first */
    #define ALLOW_EXPERIMENTAL_API
    """

from libc.stdint cimport uint64_t


cdef extern from "aiflow/rt/intr_gate.h" nogil:
    struct af_intr_gate:
        uint64_t turns  # passes of the interrupt thread

    # Around each iteration's bursts if a gated port is attached; without the GIL, and without blocking in between.
    void af_intr_gate_enter(af_intr_gate *gate) noexcept
    void af_intr_gate_leave(af_intr_gate *gate) noexcept


cdef af_intr_gate *gate() noexcept nogil
cdef bint ours() noexcept nogil
cdef uint64_t log_mark() noexcept
cpdef bint register_thread() except -1
cpdef void unregister_thread() noexcept
