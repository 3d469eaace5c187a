# A slice that came whole, and the memory that it lies in.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from aiflow._core cimport af_rx_slice, af_verdicts
from aiflow._core_memory cimport af_arena, af_memory_groups


cdef void release_mbuf(void *handle) noexcept nogil


cdef class Store:
    cdef af_arena arena
    cdef af_memory_groups groups  # whose limits the arena looks at before it takes fresh pages
    cdef af_verdicts verdicts  # here, since a slice may outlive its Receiver
    cdef bint ready
    cdef readonly list pools   # of the mbufs that slices keep
    cdef readonly uint64_t warm  # bytes that had their pages from the start
    cdef int pid


cdef class Incoming:
    cdef af_rx_slice *s
    cdef readonly Store store
    cdef readonly bint confirms  # its user confirms it, or fails it …
    cdef readonly bint awaited   # … and has done neither yet
    cdef public object offer     # what keeps the arrays that the loop wrote to; None: there are none
    cdef public object key       # `Into`'s, of the arrays that elements were moved to
    cdef public list arrays      # that elements lie in outside of element memory
    cdef readonly uint64_t copied  # bytes that were moved into arrays
    cdef uint32_t nb_moved
    cdef object loop             # a weak reference to the RxLoop
    cdef object __weakref__

    cdef bint _is_inside(self, const uint8_t *at)
    cdef int _judge(self, bint failed, bytes text) except -1
    cdef _nudge(self)
    cdef View _segment(self, uint32_t chunk, uint64_t offset, uint64_t nbytes)


cdef class View:
    cdef readonly Incoming owner
    cdef uint8_t *ptr
    cdef readonly uint64_t nbytes
    cdef bint writable
