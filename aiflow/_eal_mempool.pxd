# Mempools, C-level face.

from aiflow.librte.rte_mempool cimport rte_mempool


cdef class Mempool:
    cdef rte_mempool *ptr             # valid while the object lives
    cdef readonly str name
    cdef readonly unsigned int nb_mbufs
    cdef readonly unsigned int data_room   # bytes for a frame; the headroom is extra
    cdef readonly int socket_id
    cdef readonly bint own_memory     # on a mapping of ours, not in the EAL's heap
    cdef object __weakref__


cdef free_returned_pools()
