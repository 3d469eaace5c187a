# The driver of a loop: its worker thread, or a caller that waits.

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
    cdef bint has_handoff
    cdef af_idle idle          # owner of the loop: rw
    cdef af_cpu_budget cpu_budget        # likewise
    cdef bint saw_nothing      # likewise: the last caller that drove saw no event
    cdef uint64_t now          # likewise: the time of this iteration
    cdef unsigned int lcore    # DPDK's number of the worker, for its mempool caches; a driving caller borrows it
    cdef int last_cpu          # the CPU that the loop was driven on last; -1: none
    cdef public bint spins     # a waiting caller polls without a pause
    cdef readonly bint stopped
    cdef object thread
    cdef object requests
    cdef object guard
    cdef object allowed_cpus   # of the thread that started the loop
    cdef int pid
    cdef object __weakref__

    cdef bint acquire(self) noexcept nogil
    cdef void run(self) noexcept nogil
    cdef void ring(self) noexcept nogil
    cdef void push(self) noexcept nogil
    cdef bint drive(self, uint64_t seen, uint64_t until) noexcept nogil
    cdef int iterate(self) noexcept nogil
    cdef bint unfinished(self) noexcept nogil
