# rte_eth_ring.h: a port over two rings (-lrte_net_ring)
from libc.stdint cimport uint16_t

from aiflow.librte.rte_ring cimport rte_ring


cdef extern from "rte_eth_ring.h" nogil:
    # returns the port id, or -1 with rte_errno
    int rte_eth_from_rings(
        const char *name, rte_ring **rx_queues, unsigned int nb_rx_queues, rte_ring **tx_queues,
        unsigned int nb_tx_queues, unsigned int numa_node) noexcept
