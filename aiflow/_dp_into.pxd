# Arrays that slices are received into.

from libc.stdint cimport uint8_t, uint64_t
from aiflow._core_memory cimport af_block, af_into
from aiflow._dp_incoming cimport Store


cdef class Offer:
    cdef af_into into
    cdef Store store
    cdef readonly list kept   # the arrays; then what else `into` points to
    cdef public object key    # of the arrays: the same for the same ones
    cdef public object caller  # a weak reference to what the waiting call holds
    cdef object __weakref__


cdef class Block:
    cdef Store store
    cdef af_block *block
    cdef uint64_t nbytes
