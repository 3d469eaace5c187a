# The driver of a loop: its worker thread, or a caller that waits.

from libc.stdint cimport uint64_t

from aiflow._core cimport af_cpu_budget, af_handoff, af_idle, af_nap, af_wake_set

cdef extern from *:
    """
    #include "aiflow/rt/handoff.h"
    #define aiflow_generation(handoff) atomic_load(&(handoff)->generation)
    #define aiflow_set(field, value) atomic_store(&(field), (value))
    #define aiflow_lock(handoff) pthread_mutex_lock(&(handoff)->lock)
    #define aiflow_unlock(handoff) pthread_mutex_unlock(&(handoff)->lock)
    """
    uint64_t aiflow_generation(af_handoff *handoff) noexcept nogil
    void aiflow_set(int field, int value) noexcept nogil
    void aiflow_lock(af_handoff *handoff) noexcept nogil
    void aiflow_unlock(af_handoff *handoff) noexcept nogil


cdef class LoopDriver:
    cdef af_handoff handoff
    cdef bint has_handoff
    cdef af_wake_set wakes     # descriptors that end a sleep; changed between two iterations
    cdef af_idle idle          # the driver: rw
    cdef af_cpu_budget cpu_budget  # likewise
    cdef bint saw_nothing      # likewise: the last caller that drove saw no event
    cdef bint slept            # likewise: peers were told that this loop sleeps, and not yet that it is awake
    cdef uint64_t dozes_until  # likewise: the end of that sleep
    cdef bint dozes_alone      # the worker: rw. It sleeps without listening to the ports
    cdef uint64_t now          # likewise: the time of this iteration
    cdef unsigned int lcore    # DPDK's number of the worker, for its mempool caches; a driving caller borrows it
    cdef readonly uint64_t busy_ns    # likewise: time of iterations that moved frames
    cdef readonly uint64_t rested_ns  # likewise: time of rests of the CPU budget
    cdef int last_cpu          # the CPU that the loop was driven on last; -1: none
    cdef public bint spins     # a waiting caller polls without a pause
    cdef readonly bint stopped
    cdef object thread
    cdef object requests
    cdef object guard
    cdef object allowed_cpus   # of the thread that started the loop
    cdef int pid
    cdef object __weakref__

    cdef bint add_wake_fd(self, int fd)
    cdef void remove_wake_fd(self, int fd)
    cdef bint acquire(self) noexcept nogil
    cdef void release(self, bint work_left) noexcept nogil
    cdef bint leaves_asleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
    cdef void run(self) noexcept nogil
    cdef uint64_t drive_until_asleep(self) noexcept nogil
    cdef uint64_t pause(self) noexcept nogil
    cdef bint sleep(self, uint64_t seen, uint64_t ns) noexcept nogil
    cdef void ring(self) noexcept nogil
    cdef void push(self) noexcept nogil
    cdef bint drive(self, uint64_t seen, uint64_t until) noexcept nogil
    cdef int iterate(self) noexcept nogil
    cdef bint unfinished(self) noexcept nogil
    cdef uint64_t due(self, uint64_t now) noexcept nogil
    cdef bint before_sleep(self) noexcept nogil
    cdef void after_sleep(self) noexcept nogil
