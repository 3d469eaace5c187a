# What a worker's thread and callers that wait drive in turn.

from libc.stdint cimport uint64_t

from aiflow._core cimport af_idle, af_mail, af_quota

cdef extern from *:
    """
    #include "aiflow/rt/handoff.h"
    #define aiflow_attention(mail) atomic_load_explicit(&(mail)->attention, memory_order_relaxed)
    #define aiflow_posted(mail) atomic_load_explicit(&(mail)->posted, memory_order_relaxed)
    #define aiflow_wanted(mail) atomic_load_explicit(&(mail)->wanted, memory_order_relaxed)
    #define aiflow_generation(mail) atomic_load_explicit(&(mail)->generation, memory_order_relaxed)
    #define aiflow_set(field, value) atomic_store(&(field), (value))
    #define aiflow_lock(mail) pthread_mutex_lock(&(mail)->lock)
    #define aiflow_unlock(mail) pthread_mutex_unlock(&(mail)->lock)
    """
    int aiflow_attention(af_mail *mail) noexcept nogil
    int aiflow_posted(af_mail *mail) noexcept nogil
    int aiflow_wanted(af_mail *mail) noexcept nogil
    uint64_t aiflow_generation(af_mail *mail) noexcept nogil
    void aiflow_set(int field, int value) noexcept nogil
    void aiflow_lock(af_mail *mail) noexcept nogil
    void aiflow_unlock(af_mail *mail) noexcept nogil


cdef class LoopDriver:
    cdef af_mail mail
    cdef bint has_mail
    cdef af_idle idle          # whoever has the turn
    cdef af_quota quota        # likewise
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
