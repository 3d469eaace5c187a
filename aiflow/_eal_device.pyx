# cython: language_level=3
"""Devices on DPDK's buses: plugging, unplugging, and the rings that a pair of net_ring devices shares."""
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport strcmp, strlen
from aiflow._eal_init cimport log_mark, ours
from aiflow._eal_mempool cimport free_returned_pools
from aiflow._eal_regions cimport card_closed, sweep
from aiflow.librte.rte_eal cimport (
    RTE_DEV_EVENT_REMOVE, SOCKET_ID_ANY, rte_dev_event_callback_register, rte_dev_event_callback_unregister,
    rte_dev_event_type, rte_eal_hotplug_add, rte_eal_hotplug_remove, rte_vdev_init,
)
from aiflow.librte.rte_ethdev cimport rte_eth_dev_close
from aiflow.librte.rte_eth_ring cimport rte_eth_from_rings
from aiflow.librte.rte_mbuf cimport rte_mbuf, rte_pktmbuf_free
from aiflow.librte.rte_ring cimport (
    RING_F_SC_DEQ, RING_F_SP_ENQ, rte_ring, rte_ring_create, rte_ring_dequeue_burst, rte_ring_free,
)

from aiflow._eal_init import error
from aiflow.errors import PortError

cdef enum:
    MAX_HOTPLUG = 127  # bytes of "bus:device,devargs" for rte_eal_hotplug_add since 24.11; a path may exceed them


cdef int plug_device(const char *bus, const char *device, const char *devargs) noexcept nogil:
    """Add a device to a bus."""
    if strcmp(bus, b"vdev") == 0 and strlen(bus) + strlen(device) + strlen(devargs) + 2 > MAX_HOTPLUG:
        return rte_vdev_init(device, devargs)
    return rte_eal_hotplug_add(bus, device, devargs)


cdef unplug(bytes bus, bytes device):
    """Remove a device from its bus. A failure is ignored: the caller could not do anything about it."""
    cdef const char *bus_c = bus
    cdef const char *device_c = device
    with nogil:
        rte_eal_hotplug_remove(bus_c, device_c)


cdef unplug_port(bytes bus, bytes device, uint16_t port_id):
    """Remove the device of a stopped port from its bus.

    Some drivers read frames until they are closed. So lent memory is unmapped after that, and given back at the end.
    """
    if bus == b"pci":
        with nogil:
            rte_eth_dev_close(port_id)
        card_closed()
    unplug(bus, device)
    sweep()


cdef void note_event(const char *device, rte_dev_event_type event, void *wanted) noexcept nogil:
    """Runs in DPDK's interrupt thread."""
    if event == RTE_DEV_EVENT_REMOVE:
        (<int *>wanted)[0] = 1


cdef class Removal:
    """Whether the kernel wants a device back: its driver is being unbound, or it is being pulled.

    vfio asks the process, and waits until the device is closed.
    """

    cdef begin(self, bytes device):
        """Take note from now on. Nothing is noted when there is no memory for it."""
        self.device = device
        self.wanted = <int *>calloc(1, sizeof(int))
        if self.wanted != NULL and rte_dev_event_callback_register(device, note_event, self.wanted) < 0:
            free(self.wanted)
            self.wanted = NULL

    cdef bint is_wanted(self) noexcept:
        return self.wanted != NULL and self.wanted[0] != 0

    cdef end(self):
        """Take note no more, before the device is removed. A callback that runs now keeps its memory."""
        cdef int *wanted = self.wanted
        self.wanted = NULL
        if wanted != NULL and rte_dev_event_callback_unregister(self.device, note_event, wanted) > 0:
            free(wanted)


cdef class RingPair:
    """Two rte_rings that the two ports of a pair own jointly: port i receives from ring i."""

    cdef create(self, str name, unsigned int serial, unsigned int nb_frames):
        """Create both rings; `name` is for errors, `serial` makes DPDK's names unique. Raises PortError."""
        cdef int side
        mark = log_mark()
        for side in range(2):
            self.ring[side] = rte_ring_create(
                f"aiflow{serial}_{side}".encode(), nb_frames, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ)
            if self.ring[side] == NULL:
                raise error(PortError, -1, f"{name}: no ring of {nb_frames} frames", mark)

    cdef int plug(self, int side, const char *device) noexcept:
        """Create the net_ring device of one side; returns its port id, or -1 with rte_errno set."""
        cdef rte_ring *rx = self.ring[side]
        cdef rte_ring *tx = self.ring[1 - side]
        return rte_eth_from_rings(device, &rx, 1, &tx, 1, 0)

    cdef drain(self, int side):
        """Free the frames that wait in the receive ring of one side."""
        cdef void *objects[32]
        cdef unsigned int i, n = 1
        while n:
            n = rte_ring_dequeue_burst(self.ring[side], objects, 32, NULL)
            for i in range(n):
                rte_pktmbuf_free(<rte_mbuf *>objects[i])

    def __dealloc__(self):
        cdef int side
        if not ours():
            return
        for side in range(2):
            if self.ring[side] != NULL:
                self.drain(side)
                rte_ring_free(self.ring[side])
        free_returned_pools()
