# Memory of receivers that local peers share, C-level face for _dp_agent.

from libc.stdint cimport uint32_t
from aiflow._core cimport af_shared


cdef class Sharing:
    cdef public uint32_t writer
    cdef af_shared shared
    cdef int pid
