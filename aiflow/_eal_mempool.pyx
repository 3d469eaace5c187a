# cython: language_level=3
"""Mempools: packet buffers (mbufs) in the EAL's heap or on a mapping of our own."""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint16_t, uint64_t, uintptr_t
from libc.string cimport memset
from aiflow._eal_init cimport log_mark, ours
from aiflow.librte.rte_eal cimport rte_errno, rte_strerror
from aiflow.librte.rte_mbuf cimport (
    RTE_PKTMBUF_HEADROOM, rte_mbuf, rte_pktmbuf_init, rte_pktmbuf_pool_create, rte_pktmbuf_pool_init,
    rte_pktmbuf_pool_private,
)
from aiflow.librte.rte_mempool cimport (
    RTE_BAD_IOVA, RTE_MEMPOOL_F_NO_IOVA_CONTIG, rte_mempool, rte_mempool_create_empty, rte_mempool_free,
    rte_mempool_in_use_count, rte_mempool_memhdr, rte_mempool_obj_iter, rte_mempool_populate_iova,
    rte_mempool_set_ops_byname,
)

import itertools
import weakref
from aiflow import _eal_args
from aiflow._eal_init import logged, memory_mode, start
from aiflow.errors import ConfigError, PoolExhausted


cdef extern from * nogil:
    """
    #include <rte_errno.h>
    static void aiflow_set_rte_errno(int number) { rte_errno = number; }
    """
    void set_rte_errno "aiflow_set_rte_errno"(int number) noexcept


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_HUGEPAGE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)


MAX_DATA_ROOM = 65535 - RTE_PKTMBUF_HEADROOM  # largest data room of an mbuf, in bytes
_mempools = weakref.WeakSet()
_in_use_pools = []  # addresses of pools whose owner is gone while mbufs are in use
_serial = itertools.count()


cdef void _unmap(rte_mempool_memhdr *chunk, void *length) noexcept nogil:
    munmap(chunk.addr, <size_t><uintptr_t>length)


cdef _free_pool(rte_mempool *pool):
    """Free `pool`, or keep it for later if a ring or a view still uses mbufs of it."""
    if rte_mempool_in_use_count(pool) == 0:
        rte_mempool_free(pool)
    else:
        _in_use_pools.append(<uintptr_t>pool)


cdef free_returned_pools():
    """Free the pools without an owner whose last mbuf has been returned."""
    addresses = _in_use_pools[:]
    del _in_use_pools[:]
    for address in addresses:
        _free_pool(<rte_mempool *><uintptr_t>address)


cdef class Mempool:
    """A pool of packet buffers (mbufs).

    Parameters
    ----------
    name : str
        For reports; need not be unique.
    nb_mbufs : int
        Mbufs in the pool.
    data_room : int
        Largest frame in an mbuf, in bytes, at most 65407; DPDK's headroom is extra.
    socket_id : int, optional
        NUMA node; -1 for any.
    own_memory : bool, optional
        Put the mbufs on a mapping of our own instead of the EAL's heap. Without hugepages that heap is small, and its
        size is fixed. For drivers that copy (memif, af_packet, net_ring); vhost and network cards need EAL memory.

    Raises
    ------
    EalError
        If DPDK cannot start.
    PoolExhausted
        If there is not enough memory; the message says how to get more.
    """

    def __cinit__(self):
        self.ptr = NULL

    def __init__(self, str name, unsigned int nb_mbufs, unsigned int data_room, int socket_id=-1,
                 bint own_memory=False):
        if self.ptr != NULL:
            raise RuntimeError("a Mempool is initialised once")
        if nb_mbufs == 0 or not 64 <= data_room <= MAX_DATA_ROOM:
            raise ConfigError(
                f"mempool {name}: {nb_mbufs} mbufs of {data_room} bytes; give at least one mbuf, "
                f"of 64 to {MAX_DATA_ROOM} bytes"
            )
        start()
        free_returned_pools()
        self.name = name
        self.nb_mbufs = nb_mbufs
        self.data_room = data_room
        self.socket_id = socket_id
        self.own_memory = own_memory
        # a thread's cache may keep 1.5 times its size from other threads
        cdef unsigned int cache_size = 256 if nb_mbufs >= 4096 else nb_mbufs // 16
        cdef bytes unique = f"aiflow{next(_serial)}".encode()
        cdef uint16_t room = data_room + RTE_PKTMBUF_HEADROOM
        cdef const char *unique_c = unique
        cdef rte_mempool *pool = NULL
        cdef bint no_mapping = False
        mark = log_mark()
        if own_memory:
            pool = _pool_on_own_memory(unique_c, nb_mbufs, cache_size, room, socket_id, &no_mapping)
        else:
            with nogil:
                pool = rte_pktmbuf_pool_create(unique_c, nb_mbufs, cache_size, 0, room, socket_id)
        if pool == NULL:
            size = <uint64_t>nb_mbufs * (room + 192) >> 20
            # a pool on our own mapping still needs a few KiB of the EAL's heap: its ring, its header
            where = "this machine's memory" if no_mapping else f"DPDK's {memory_mode()} memory"
            advice = "" if no_mapping else f", or {_eal_args.advice(memory_mode())}"
            raise PoolExhausted(
                f"mempool {name}: {nb_mbufs} mbufs of {data_room} bytes ({size} MiB) do not fit in {where}: "
                f"{rte_strerror(rte_errno).decode()}; use fewer or smaller frames{advice}{logged(mark)}"
            )
        self.ptr = pool
        _mempools.add(self)

    def __dealloc__(self):
        if self.ptr != NULL and ours():
            _free_pool(self.ptr)
        self.ptr = NULL

    @property
    def in_use(self):
        """Mbufs in use: in rings, in views, in flight."""
        return rte_mempool_in_use_count(self.ptr) if self.ptr != NULL and ours() else 0

    def __repr__(self):
        return f"<Mempool {self.name}: {self.nb_mbufs} mbufs of {self.data_room} bytes, {self.in_use} in use>"


cdef rte_mempool *_pool_on_own_memory(
        const char *name, unsigned int nb_mbufs, unsigned int cache_size, uint16_t room, int socket_id,
        bint *no_mapping) noexcept nogil:
    """rte_pktmbuf_pool_create on one mapping of ours; NULL with rte_errno set on failure.

    `no_mapping` is set if the machine has no memory for the mapping; otherwise the EAL's heap is exhausted.
    """
    cdef rte_pktmbuf_pool_private private
    cdef rte_mempool *pool
    cdef void *base
    cdef size_t length
    cdef size_t huge = 2 << 20
    cdef int rc

    memset(&private, 0, sizeof(private))
    private.mbuf_data_room_size = room
    pool = rte_mempool_create_empty(
        name, nb_mbufs, sizeof(rte_mbuf) + room, cache_size, sizeof(private), socket_id, RTE_MEMPOOL_F_NO_IOVA_CONTIG)
    if pool == NULL:
        return NULL
    rc = rte_mempool_set_ops_byname(pool, "ring_mp_mc", NULL)
    if rc == 0:
        rte_pktmbuf_pool_init(pool, &private)
        length = <size_t>nb_mbufs * (pool.header_size + pool.elt_size + pool.trailer_size) + 4096
        length = (length + huge - 1) // huge * huge
        base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if base == MAP_FAILED:
            no_mapping[0] = True
            rc = -ENOMEM
        else:
            madvise(base, length, MADV_HUGEPAGE)
            rc = rte_mempool_populate_iova(pool, <char *>base, RTE_BAD_IOVA, length, _unmap, <void *><uintptr_t>length)
            if rc <= 0:
                munmap(base, length)
                rc = rc if rc < 0 else -ENOMEM
            elif pool.populated_size < nb_mbufs:
                rc = -ENOMEM
    if rc < 0:
        rte_mempool_free(pool)
        set_rte_errno(-rc)
        return NULL
    rte_mempool_obj_iter(pool, rte_pktmbuf_init, NULL)
    return pool


def mempools():
    """Live mempools of this process."""
    return sorted(_mempools, key=lambda pool: pool.name)
