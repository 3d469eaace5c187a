# Runs of like elements in a received slice.

from libc.stdint cimport uint32_t, uint64_t


cdef class Received:
    pass


cdef class Run:
    cdef readonly uint64_t start, nb_elements, nbytes
    cdef readonly uint32_t first
    cdef readonly object stream  # a str, or None where they are numbered
    cdef readonly object form
    cdef readonly object mark
    cdef object dtype, shape, order  # of the form

    cdef str name_of(self, uint64_t number)
