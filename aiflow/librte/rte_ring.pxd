# rte_ring.h: lock-free rings
cdef extern from "rte_ring.h" nogil:
    unsigned int RING_F_SP_ENQ
    unsigned int RING_F_SC_DEQ

    struct rte_ring:
        pass

    rte_ring *rte_ring_create(const char *name, unsigned int count, int socket_id, unsigned int flags) noexcept
    void rte_ring_free(rte_ring *r) noexcept
    unsigned int rte_ring_dequeue_burst(rte_ring *r, void **objs, unsigned int n, unsigned int *available) noexcept
    unsigned int rte_ring_count(const rte_ring *r) noexcept
    unsigned int rte_ring_free_count(const rte_ring *r) noexcept
