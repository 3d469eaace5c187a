# rte_ethdev.h: Ethernet ports
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from aiflow.librte.rte_mbuf cimport rte_mbuf
from aiflow.librte.rte_mempool cimport rte_mempool


cdef extern from "rte_ether.h" nogil:
    int RTE_ETHER_MIN_MTU
    int RTE_ETHER_HDR_LEN
    int RTE_ETHER_CRC_LEN

    struct rte_ether_addr:
        uint8_t addr_bytes[6]


cdef extern from "rte_ethdev.h" nogil:
    int RTE_MAX_ETHPORTS
    uint32_t RTE_ETH_LINK_UP
    uint64_t RTE_ETH_TX_OFFLOAD_MULTI_SEGS
    uint32_t RTE_ETH_SPEED_NUM_NONE
    uint32_t RTE_ETH_SPEED_NUM_UNKNOWN

    struct rte_eth_rxmode:
        uint32_t mtu
        uint64_t offloads

    struct rte_eth_txmode:
        uint64_t offloads

    struct rte_eth_intr_conf:
        uint32_t rxq  # a bit field

    struct rte_eth_conf:
        uint32_t link_speeds
        rte_eth_intr_conf intr_conf
        rte_eth_rxmode rxmode
        rte_eth_txmode txmode

    struct rte_eth_desc_lim:
        uint16_t nb_max
        uint16_t nb_min
        uint16_t nb_align

    struct rte_eth_dev_info:
        const char *driver_name
        uint16_t min_mtu
        uint16_t max_mtu
        uint32_t min_rx_bufsize
        uint32_t max_rx_pktlen
        uint32_t max_mac_addrs
        uint64_t rx_offload_capa
        uint64_t tx_offload_capa
        rte_eth_desc_lim rx_desc_lim
        rte_eth_desc_lim tx_desc_lim

    struct rte_eth_link:
        uint32_t link_speed      # Mbit/s
        uint16_t link_duplex
        uint16_t link_autoneg
        uint16_t link_status

    struct rte_eth_stats:
        uint64_t ipackets
        uint64_t opackets
        uint64_t ibytes
        uint64_t obytes
        uint64_t imissed
        uint64_t ierrors
        uint64_t oerrors
        uint64_t rx_nombuf

    struct rte_eth_xstat:
        uint64_t id
        uint64_t value

    struct rte_eth_xstat_name:
        char name[64]

    struct rte_eth_rxconf:
        pass

    struct rte_eth_txconf:
        pass

    # data plane: only _dp calls these two
    uint16_t rte_eth_rx_burst(uint16_t port_id, uint16_t queue_id, rte_mbuf **rx_pkts, uint16_t nb_pkts) noexcept
    uint16_t rte_eth_tx_burst(uint16_t port_id, uint16_t queue_id, rte_mbuf **tx_pkts, uint16_t nb_pkts) noexcept

    # control plane
    uint16_t rte_eth_dev_count_avail() noexcept
    bint rte_eth_dev_is_valid_port(uint16_t port_id) noexcept
    int rte_eth_dev_get_port_by_name(const char *name, uint16_t *port_id) noexcept
    int rte_eth_dev_info_get(uint16_t port_id, rte_eth_dev_info *dev_info) noexcept
    int rte_eth_dev_configure(
        uint16_t port_id, uint16_t nb_rx_queue, uint16_t nb_tx_queue, const rte_eth_conf *eth_conf) noexcept
    int rte_eth_dev_adjust_nb_rx_tx_desc(uint16_t port_id, uint16_t *nb_rx_desc, uint16_t *nb_tx_desc) noexcept
    int rte_eth_rx_queue_setup(
        uint16_t port_id, uint16_t rx_queue_id, uint16_t nb_rx_desc, unsigned int socket_id,
        const rte_eth_rxconf *rx_conf, rte_mempool *mb_pool) noexcept
    int rte_eth_tx_queue_setup(
        uint16_t port_id, uint16_t tx_queue_id, uint16_t nb_tx_desc, unsigned int socket_id,
        const rte_eth_txconf *tx_conf) noexcept
    int rte_eth_dev_rx_intr_ctl_q_get_fd(uint16_t port_id, uint16_t queue_id) noexcept
    int rte_eth_dev_rx_intr_enable(uint16_t port_id, uint16_t queue_id) noexcept
    int rte_eth_dev_rx_intr_disable(uint16_t port_id, uint16_t queue_id) noexcept
    int rte_eth_dev_start(uint16_t port_id) noexcept
    int rte_eth_dev_stop(uint16_t port_id) noexcept
    int rte_eth_dev_close(uint16_t port_id) noexcept
    int rte_eth_dev_socket_id(uint16_t port_id) noexcept
    int rte_eth_dev_set_mtu(uint16_t port_id, uint16_t mtu) noexcept
    int rte_eth_dev_get_mtu(uint16_t port_id, uint16_t *mtu) noexcept
    int rte_eth_macaddr_get(uint16_t port_id, rte_ether_addr *mac_addr) noexcept
    int rte_eth_dev_default_mac_addr_set(uint16_t port_id, rte_ether_addr *mac_addr) noexcept
    int rte_eth_promiscuous_enable(uint16_t port_id) noexcept
    int rte_eth_promiscuous_disable(uint16_t port_id) noexcept
    int rte_eth_link_get_nowait(uint16_t port_id, rte_eth_link *link) noexcept
    int rte_eth_stats_get(uint16_t port_id, rte_eth_stats *stats) noexcept
    int rte_eth_stats_reset(uint16_t port_id) noexcept
    int rte_eth_xstats_get(uint16_t port_id, rte_eth_xstat *xstats, unsigned int n) noexcept
    int rte_eth_xstats_get_names(uint16_t port_id, rte_eth_xstat_name *xstats_names, unsigned int size) noexcept
