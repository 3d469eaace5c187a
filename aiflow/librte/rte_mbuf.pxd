# rte_mbuf.h: packet buffers
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from aiflow.librte.rte_mempool cimport rte_mempool


cdef extern from "rte_mbuf.h" nogil:
    int RTE_PKTMBUF_HEADROOM       # bytes kept free before the frame (128)
    int RTE_MBUF_DEFAULT_BUF_SIZE
    uint64_t RTE_MBUF_F_RX_VLAN             # vlan_tci is valid
    uint64_t RTE_MBUF_F_RX_VLAN_STRIPPED    # … and the tag was taken out of the frame
    uint64_t RTE_MBUF_F_RX_QINQ             # the same for a frame with two tags
    uint64_t RTE_MBUF_F_RX_QINQ_STRIPPED

    struct rte_mbuf:
        void *buf_addr
        uint16_t data_off
        uint16_t refcnt
        uint16_t nb_segs
        uint16_t port              # received on this port
        uint64_t ol_flags
        uint32_t pkt_len           # whole frame
        uint16_t data_len          # this segment
        uint16_t vlan_tci          # priority and VLAN of the tag, host order
        uint16_t buf_len
        rte_mempool *pool
        rte_mbuf *next

    struct rte_pktmbuf_pool_private:
        uint16_t mbuf_data_room_size
        uint16_t mbuf_priv_size
        uint32_t flags

    ctypedef void (*rte_mbuf_extbuf_free_callback_t)(void *addr, void *opaque) noexcept

    struct rte_mbuf_ext_shared_info:
        rte_mbuf_extbuf_free_callback_t free_cb
        void *fcb_opaque
        uint16_t refcnt

    rte_mempool *rte_pktmbuf_pool_create(
        const char *name, unsigned int n, unsigned int cache_size, uint16_t priv_size,
        uint16_t data_room_size, int socket_id) noexcept
    void rte_pktmbuf_pool_init(rte_mempool *mp, void *opaque_arg) noexcept
    void rte_pktmbuf_init(rte_mempool *mp, void *opaque_arg, void *m, unsigned int i) noexcept
    uint16_t rte_pktmbuf_data_room_size(rte_mempool *mp) noexcept

    rte_mbuf *rte_pktmbuf_alloc(rte_mempool *mp) noexcept
    int rte_pktmbuf_alloc_bulk(rte_mempool *pool, rte_mbuf **mbufs, unsigned int count) noexcept
    rte_mbuf *rte_pktmbuf_copy(const rte_mbuf *m, rte_mempool *mp, uint32_t offset, uint32_t length) noexcept
    void rte_pktmbuf_free(rte_mbuf *m) noexcept
    void rte_pktmbuf_free_bulk(rte_mbuf **mbufs, unsigned int count) noexcept
    void rte_pktmbuf_reset(rte_mbuf *m) noexcept
    bint RTE_MBUF_DIRECT(const rte_mbuf *m) noexcept  # its bytes are its own: neither a clone nor a reference
    char *rte_pktmbuf_adj(rte_mbuf *m, uint16_t length) noexcept
    char *rte_pktmbuf_append(rte_mbuf *m, uint16_t length) noexcept
    char *rte_pktmbuf_prepend(rte_mbuf *m, uint16_t length) noexcept
    uint16_t rte_pktmbuf_headroom(const rte_mbuf *m) noexcept
    uint16_t rte_pktmbuf_tailroom(const rte_mbuf *m) noexcept
    uint16_t rte_pktmbuf_data_len(const rte_mbuf *m) noexcept
    uint32_t rte_pktmbuf_pkt_len(const rte_mbuf *m) noexcept
    uint16_t rte_mbuf_refcnt_read(const rte_mbuf *m) noexcept
    uint16_t rte_mbuf_refcnt_update(rte_mbuf *m, int value) noexcept
    void rte_mbuf_prefetch_part1(rte_mbuf *m) noexcept

    void rte_mbuf_ext_refcnt_set(rte_mbuf_ext_shared_info *shinfo, uint16_t new_value) noexcept
    uint16_t rte_mbuf_ext_refcnt_read(const rte_mbuf_ext_shared_info *shinfo) noexcept
    uint16_t rte_mbuf_ext_refcnt_update(rte_mbuf_ext_shared_info *shinfo, int value) noexcept
    void rte_pktmbuf_attach_extbuf(
        rte_mbuf *m, void *buf_addr, uint64_t buf_iova, uint16_t buf_len,
        rte_mbuf_ext_shared_info *shinfo) noexcept


cdef extern from *:
    """
    #include <stdint.h>
    #include <rte_mbuf.h>
    static inline uint8_t *aiflow_mtod(const struct rte_mbuf *m) { return rte_pktmbuf_mtod(m, uint8_t *); }
    """
    # first byte of the frame: rte_pktmbuf_mtod as a function, since that is a macro taking a type
    uint8_t *rte_pktmbuf_mtod "aiflow_mtod"(const rte_mbuf *m) noexcept nogil
