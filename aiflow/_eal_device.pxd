# Devices on DPDK's buses, and the rings of net_ring, C-level face.

from libc.stdint cimport uint16_t
from aiflow._eal_init cimport ours  # first: it allows DPDK's experimental calls before any of its headers
from aiflow.librte.rte_ring cimport rte_ring


cdef int plug_device(const char *bus, const char *device, const char *devargs) noexcept nogil  # 0, or negative errno
cdef unplug(bytes bus, bytes device)
cdef unplug_port(bytes bus, bytes device, uint16_t port_id)


cdef class Removal:
    cdef bytes device
    cdef int *wanted                  # written by DPDK's interrupt thread; NULL: nothing is noted

    cdef begin(self, bytes device)
    cdef bint is_wanted(self) noexcept
    cdef end(self)


cdef class RingPair:
    cdef rte_ring *ring[2]            # port i receives from ring i; NULL until created

    cdef create(self, str name, unsigned int serial, unsigned int nb_frames)
    cdef int plug(self, int side, const char *device) noexcept
    cdef drain(self, int side)
