# rte_mempool.h: fixed-size object pools
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t


cdef extern from "rte_mempool.h" nogil:
    int RTE_MEMPOOL_CACHE_MAX_SIZE
    size_t RTE_BAD_IOVA
    unsigned int RTE_MEMPOOL_F_NO_IOVA_CONTIG  # elements need not be contiguous in bus addresses

    struct rte_mempool:
        char *name
        void *pool_config
        unsigned int flags
        uint32_t size            # elements asked for
        uint32_t cache_size
        uint32_t elt_size
        uint32_t header_size
        uint32_t trailer_size
        uint32_t populated_size  # elements in place

    struct rte_mempool_memhdr:
        void *addr

    ctypedef void rte_mempool_memchunk_free_cb_t(rte_mempool_memhdr *memhdr, void *opaque) noexcept nogil

    unsigned int rte_mempool_in_use_count(const rte_mempool *mp) noexcept
    unsigned int rte_mempool_avail_count(const rte_mempool *mp) noexcept
    void rte_mempool_free(rte_mempool *mp) noexcept
    rte_mempool *rte_mempool_lookup(const char *name) noexcept
    rte_mempool *rte_mempool_create_empty(
        const char *name, unsigned int n, unsigned int elt_size, unsigned int cache_size,
        unsigned int private_data_size, int socket_id, unsigned int flags) noexcept
    int rte_mempool_set_ops_byname(rte_mempool *mp, const char *name, void *pool_config) noexcept
    int rte_mempool_populate_iova(
        rte_mempool *mp, char *vaddr, size_t iova, size_t len,
        rte_mempool_memchunk_free_cb_t *free_cb, void *opaque) noexcept
    int rte_mempool_populate_virt(
        rte_mempool *mp, char *addr, size_t len, size_t pg_sz,
        rte_mempool_memchunk_free_cb_t *free_cb, void *opaque) noexcept
    ctypedef void rte_mempool_obj_cb_t(rte_mempool *mp, void *opaque, void *obj, unsigned int obj_idx) noexcept
    uint32_t rte_mempool_obj_iter(rte_mempool *mp, rte_mempool_obj_cb_t *obj_cb, void *obj_cb_arg) noexcept
