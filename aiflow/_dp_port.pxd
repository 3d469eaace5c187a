# A port's place in a loop, which all parts of the data plane share. Declarations only.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from aiflow._core cimport AF_MAX_PORTS, af_fault_line
from aiflow.librte.rte_mbuf cimport rte_mbuf
from aiflow.librte.rte_mempool cimport rte_mempool


cdef enum:
    BURST = 32
    PORTS = AF_MAX_PORTS
    OUT = 0
    IN = 1


# dataplane: rw; the control plane touches it only while the loop is parked
cdef struct loop_port:
    bint attached
    bint gated
    bint wakes                 # the loop's wake descriptors have the port's: an arrival ends a sleep
    bint rx_interrupts         # its receive interrupts are on while the loop sleeps
    int bell                   # index of its peer's doorbell in the loop; -1: none
    uint16_t port_id
    uint16_t head              # index of the first staged frame that is not sent
    uint16_t count             # staged frames from head on
    rte_mempool *pool          # frames to send
    rte_mempool *rx_pool       # of the mbufs that the driver receives into
    uint32_t nb_adopting       # agents whose frames move into a pool of their own
    rte_mbuf *spare            # allocated for the next frame; NULL when used
    rte_mbuf *staged[BURST]
    af_fault_line *lines[2]    # faults on the way OUT and IN; NULL unless asked for
    uint64_t rx_nombuf         # frames dropped: the pool had no mbuf to move them into
    bint lends                 # its card reads payloads where they lie, after the burst
    uint64_t by_reference      # frames whose payload was not copied
    uint64_t tx_nombuf         # times that the pool had no mbuf for a frame to send
