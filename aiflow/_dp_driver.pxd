# What a worker's thread and callers that wait drive in turn.

from libc.stdint cimport uint64_t

from aiflow._core cimport af_cpu_budget, af_handoff, af_idle

cdef extern from *:
    """
    #include "aiflow/rt/handoff.h"
    #define aiflow_attention(handoff) atomic_load_explicit(&(handoff)->attention, memory_order_relaxed)
    #define aiflow_posted(handoff) atomic_load_explicit(&(handoff)->posted, memory_order_relaxed)
    #define aiflow_driver_requested(handoff) atomic_load_explicit(&(handoff)->driver_requested, memory_order_relaxed)
    #define aiflow_generation(handoff) atomic_load_explicit(&(handoff)->generation, memory_order_relaxed)
    #define aiflow_set(field, value) atomic_store(&(field), (value))
    #define aiflow_lock(handoff) pthread_mutex_lock(&(handoff)->lock)
    #define aiflow_unlock(handoff) pthread_mutex_unlock(&(handoff)->lock)
    """
    int aiflow_attention(af_handoff *handoff) noexcept nogil
    int aiflow_posted(af_handoff *handoff) noexcept nogil
    int aiflow_driver_requested(af_handoff *handoff) noexcept nogil
    uint64_t aiflow_generation(af_handoff *handoff) noexcept nogil
    void aiflow_set(int field, int value) noexcept nogil
    void aiflow_lock(af_handoff *handoff) noexcept nogil
    void aiflow_unlock(af_handoff *handoff) noexcept nogil


cdef class LoopDriver:
    cdef af_handoff handoff
    cdef bint has_mail
    cdef af_idle idle          # whoever has the turn
    cdef af_cpu_budget cpu_budget        # likewise
    cdef bint in_vain          # likewise: the newest caller that drove has met nothing
    cdef uint64_t now          # likewise: the time of this iteration
    cdef unsigned int lcore    # DPDK's number of the worker, for its mempool caches; callers that drive borrow it
    cdef int last_cpu          # that it was driven on
    cdef public bint spins     # a caller that waits polls without a pause
    cdef readonly bint stopped
    cdef object thread
    cdef object requests
    cdef object guard
    cdef object allowed_cpus   # of the thread that made it
    cdef int pid
    cdef object __weakref__

    cdef bint take_turn(self) noexcept nogil
    cdef void run(self) noexcept nogil
    cdef void ring(self) noexcept nogil
    cdef void push(self) noexcept nogil
    cdef bint drive(self, uint64_t seen, uint64_t until) noexcept nogil
    cdef int iterate(self) noexcept nogil
    cdef bint unfinished(self) noexcept nogil
