# A slice that a Sender's loop has in flight.

from libc.stdint cimport uint32_t
from aiflow._core cimport af_span, af_tx, af_tx_slice
from aiflow._eal_loans cimport Pool


cdef class Outgoing:
    cdef af_tx_slice s           # its buffers and what has become of it: the loop writes
    cdef af_span *spans          # s.elements: the memory of each element
    cdef Py_buffer *buffers      # held until the slice has ended
    cdef Py_ssize_t nb_buffers
    cdef readonly double posted_at  # time.monotonic()
    cdef public object numbers   # numbers of its elements in the slice that it is a part of; None: it is the whole
    cdef object loop             # the TxLoop; it owns `tx`
    cdef af_tx *tx               # state machine of the receiver that the slice is for

    cdef void _release(self)
    cdef int _take(self, list buffers) except -1
    cdef int _describe(self, bytes manifest, Py_ssize_t nb_elements) except -1
    cdef int _find_loans(self, Pool pool) except -1


cdef Outgoing of_buffers(list buffers, bytes manifest, bint lends, Pool pool)
cdef Outgoing of_rows(object buffer, Py_ssize_t nb_rows, bytes manifest, bint lends, Pool pool)
