# cython: language_level=3
"""Control plane: mempools and Ethernet ports. Nothing here is on a frame's way.

The environment starts with the first `Mempool` or `Port`; its functions are re-exported here.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from aiflow._env cimport gate, log_mark, ours
from aiflow.librte.rte_eal cimport SOCKET_ID_ANY, rte_eal_hotplug_add, rte_eal_hotplug_remove, rte_errno, rte_strerror
from aiflow.librte.rte_eth_ring cimport rte_eth_from_rings
from aiflow.librte.rte_ethdev cimport (
    RTE_ETH_LINK_UP, RTE_ETH_SPEED_NUM_NONE, RTE_ETH_SPEED_NUM_UNKNOWN, RTE_ETH_TX_OFFLOAD_MULTI_SEGS,
    RTE_MAX_ETHPORTS, rte_eth_conf, rte_eth_dev_adjust_nb_rx_tx_desc, rte_eth_dev_configure, rte_eth_dev_count_avail,
    rte_eth_dev_default_mac_addr_set, rte_eth_dev_get_mtu, rte_eth_dev_get_port_by_name, rte_eth_dev_info,
    rte_eth_dev_info_get, rte_eth_dev_socket_id, rte_eth_dev_start, rte_eth_dev_stop, rte_eth_link,
    rte_eth_link_get_nowait, rte_eth_macaddr_get, rte_eth_rx_queue_setup, rte_eth_stats, rte_eth_stats_get,
    rte_eth_tx_queue_setup, rte_eth_xstat, rte_eth_xstat_name, rte_eth_xstats_get, rte_eth_xstats_get_names,
    rte_ether_addr,
)
from aiflow.librte.rte_mbuf cimport (
    RTE_PKTMBUF_HEADROOM, rte_mbuf, rte_pktmbuf_free, rte_pktmbuf_init, rte_pktmbuf_pool_create, rte_pktmbuf_pool_init,
    rte_pktmbuf_pool_private,
)
from aiflow.librte.rte_mempool cimport (
    RTE_BAD_IOVA, RTE_MEMPOOL_F_NO_IOVA_CONTIG, rte_mempool, rte_mempool_create_empty, rte_mempool_free,
    rte_mempool_in_use_count, rte_mempool_memhdr, rte_mempool_obj_iter, rte_mempool_populate_iova,
    rte_mempool_set_ops_byname,
)
from aiflow.librte.rte_ring cimport (
    RING_F_SC_DEQ, RING_F_SP_ENQ, rte_ring, rte_ring_create, rte_ring_dequeue_burst, rte_ring_free,
)

import itertools
import os
import threading
import weakref

from . import eal_arguments
from ._env import (
    connecting, dpdk_version, error, gate_turns, log_tail, logged, memory_mode, register_thread, start, started,
    unregister_thread,
)
from .errors import ConfigError, EalError, PoolExhausted, PortError

__all__ = [
    "Mempool", "Port", "connecting", "dpdk_version", "gate_turns", "log_tail", "memory_mode", "mempools", "nb_ports",
    "next_serial", "register_thread", "start", "started", "unregister_thread",
]


cdef extern from "aiflow/gate.h" nogil:
    void af_gate_hold(af_gate *gate) noexcept
    void af_gate_release(af_gate *gate, int ports) noexcept


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


_plug_lock = threading.RLock()  # opening and closing ports
_mempools = weakref.WeakSet()
_in_use_pools = []  # addresses of pools that lost their owner while mbufs were out
_serial = itertools.count()


def _forked():
    """Runs in every forked child: a lock that another thread of the parent held would stay locked."""
    global _plug_lock
    _plug_lock = threading.RLock()


os.register_at_fork(after_in_child=_forked)


# ------------------------------------------------------------------------------------------------------------ mempools

cdef void _unmap(rte_mempool_memhdr *chunk, void *length) noexcept nogil:
    munmap(chunk.addr, <size_t><uintptr_t>length)


cdef _free_pool(rte_mempool *pool):
    """Free `pool`, or keep it for later if mbufs of it are still out (in a ring, in a view): never under a reader."""
    if rte_mempool_in_use_count(pool) == 0:
        rte_mempool_free(pool)
    else:
        _in_use_pools.append(<uintptr_t>pool)


cdef _free_returned_pools():
    addresses = _in_use_pools[:]
    del _in_use_pools[:]
    for address in addresses:
        _free_pool(<rte_mempool *><uintptr_t>address)


cdef class Mempool:
    """A pool of packet buffers (mbufs).

    Parameters
    ----------
    name : str
        Shown in reports; need not be unique.
    nb_mbufs : int
        Mbufs in the pool.
    data_room : int
        Bytes a frame may have, at most 65407; DPDK's headroom comes on top.
    socket_id : int, optional
        NUMA node; -1 for any.
    own_memory : bool, optional
        Put the mbufs on a mapping of our own instead of the EAL's heap, which is small and fixed without hugepages.
        For drivers that copy (memif, af_packet, net_ring); vhost and network cards need EAL memory.

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
        if nb_mbufs == 0 or not 64 <= data_room <= 65535 - RTE_PKTMBUF_HEADROOM:
            raise ConfigError(
                f"mempool {name}: {nb_mbufs} mbufs of {data_room} bytes; there must be some, "
                f"of 64 to {65535 - RTE_PKTMBUF_HEADROOM} bytes"
            )
        start()
        _free_returned_pools()
        self.name = name
        self.nb_mbufs = nb_mbufs
        self.data_room = data_room
        self.socket_id = socket_id
        self.own_memory = own_memory
        # a cache may hold 1.5 times its size out of everyone else's reach
        cdef unsigned int cache_size = 256 if nb_mbufs >= 4096 else nb_mbufs // 16
        cdef bytes unique = f"aiflow{next(_serial)}".encode()
        cdef uint16_t room = data_room + RTE_PKTMBUF_HEADROOM
        cdef const char *unique_c = unique
        cdef rte_mempool *pool = NULL
        mark = log_mark()
        if own_memory:
            pool = _pool_on_own_memory(unique_c, nb_mbufs, cache_size, room, socket_id)
        else:
            with nogil:
                pool = rte_pktmbuf_pool_create(unique_c, nb_mbufs, cache_size, 0, room, socket_id)
        if pool == NULL:
            size = <uint64_t>nb_mbufs * (room + 192) >> 20
            where = "this machine's memory" if own_memory else f"DPDK's {memory_mode()} memory"
            raise PoolExhausted(
                f"mempool {name}: {nb_mbufs} mbufs of {data_room} bytes ({size} MiB) do not fit in {where}: "
                f"{rte_strerror(rte_errno).decode()}; use fewer or smaller frames, or set AIFLOW_EAL_MEMORY "
                f"(now {eal_arguments.memory_mib()}MiB) higher{logged(mark)}"
            )
        self.ptr = pool
        _mempools.add(self)

    def __dealloc__(self):
        if self.ptr != NULL and ours():
            _free_pool(self.ptr)
        self.ptr = NULL

    @property
    def in_use(self):
        """Mbufs that are out of the pool: in rings, in views, on their way."""
        return rte_mempool_in_use_count(self.ptr) if self.ptr != NULL and ours() else 0

    def __repr__(self):
        return f"<Mempool {self.name}: {self.nb_mbufs} mbufs of {self.data_room} bytes, {self.in_use} in use>"


cdef rte_mempool *_pool_on_own_memory(
        const char *name, unsigned int nb_mbufs, unsigned int cache_size, uint16_t room, int socket_id) noexcept nogil:
    """What rte_pktmbuf_pool_create does, on one mapping of ours; NULL with rte_errno set on failure."""
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
    """Live mempools of this process; a test ends with each one's `in_use` back at 0."""
    return sorted(_mempools, key=lambda pool: pool.name)


# --------------------------------------------------------------------------------------------------------------- ports

# driver -> gated, kick, point_to_point, copies, multi_segs
_TRAITS = {
    "net_memif": (True, False, True, True, True),
    "net_ring": (False, False, True, False, True),
    "net_vhost": (False, False, True, True, True),
    "net_virtio_user": (False, False, True, False, True),
    "net_af_packet": (False, True, False, True, True),
    "net_af_xdp": (False, True, False, True, False),
}


def nb_ports():
    """Ports that are open in this process, whoever opened them."""
    return rte_eth_dev_count_avail() if ours() else 0


def next_serial():
    """A number no other device of this process has in its name."""
    return next(_serial)


cdef class _RingPair:
    """Two rte_rings that the two ports of a pair hold jointly: port i receives from ring i."""
    cdef rte_ring *ring[2]

    cdef drain(self, int side):
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
        _free_returned_pools()


cdef class Port:
    """One Ethernet port of DPDK with one receive and one transmit queue; made by `Port.open` or `open_ring_pair`."""

    def __cinit__(self):
        self.is_open = False

    @staticmethod
    def open(str name, str device, str devargs, Mempool mempool, *, str bus="vdev", frame_size=None,
             int nb_rxd=1024, int nb_txd=1024, rx_ring=None, tx_window=None):
        """Hot-plug a device and start it.

        Parameters
        ----------
        name : str
            As shown in tables and errors.
        device : str
            Device on the bus: ``"net_memif0"``, ``"0000:3b:00.0"``.
        devargs : str
            The driver's arguments, ``"role=server,id=0"``.
        mempool : Mempool
            Received frames are mbufs of this pool.
        bus : {"vdev", "pci"}
        frame_size : int, optional
            Largest frame, in bytes with the Ethernet header. Default: what the port's MTU allows.
        nb_rxd, nb_txd : int
            Descriptors of the queues, adjusted to what the driver allows.
        rx_ring, tx_window : int, optional
            Frames the receive side can hold, and that may be unacknowledged out of it, where the driver's descriptors
            do not say.

        Returns
        -------
        Port

        Raises
        ------
        PortError
            If a step fails, with what DPDK logged; nothing is left open.
        """
        cdef Port port = Port.__new__(Port)
        cdef bytes bus_b = bus.encode()
        cdef bytes device_b = device.encode()
        cdef bytes devargs_b = devargs.encode()
        cdef const char *bus_c = bus_b
        cdef const char *device_c = device_b
        cdef const char *devargs_c = devargs_b
        cdef bint gated = device.startswith("net_memif")
        cdef int rc
        start()
        with _plug_lock:
            if rte_eth_dev_count_avail() >= RTE_MAX_ETHPORTS:
                raise PortError(f"{name}: DPDK has {RTE_MAX_ETHPORTS} ports at most in a process; close some first")
            mark = log_mark()
            with nogil:
                if gated:
                    af_gate_hold(gate())
                rc = rte_eal_hotplug_add(bus_c, device_c, devargs_c)
            try:
                if rc < 0:
                    raise error(PortError, rc, f"{name}: driver {device.split(',')[0]} does not open", mark)
                port.name = name
                port.bus = bus
                port.device = device
                rc = rte_eth_dev_get_port_by_name(device_c, &port.port_id)
                if rc < 0:
                    _unplug(bus_b, device_b)
                    raise error(PortError, rc, f"{name}: {device} is not an Ethernet port", mark)
                try:
                    port._configure(mempool, frame_size, nb_rxd, nb_txd, rx_ring, tx_window, mark)
                except BaseException:
                    _unplug(bus_b, device_b)
                    raise
            finally:
                if gated:
                    with nogil:
                        af_gate_release(gate(), port.is_open)
        return port

    @staticmethod
    def open_ring_pair(str name, Mempool mempool, Mempool other=None, *, int nb_rxd=1024):
        """Two ports over two rings: what one sends the other receives, the very same mbufs.

        Parameters
        ----------
        name : str
            As shown; the ports are called ``name/0`` and ``name/1``.
        mempool, other : Mempool
            Pools of the first and the second port (`mempool` for both by default).
        nb_rxd : int
            Ring size, a power of two; one less frame fits.

        Returns
        -------
        tuple of Port
        """
        cdef _RingPair pair = _RingPair()
        cdef Port port
        cdef rte_ring *rx
        cdef rte_ring *tx
        cdef int side, port_id
        start()
        serial = next(_serial)
        mark = log_mark()
        ports = []
        with _plug_lock:
            if rte_eth_dev_count_avail() + 2 > RTE_MAX_ETHPORTS:
                raise PortError(f"{name}: DPDK has {RTE_MAX_ETHPORTS} ports at most in a process; close some first")
            for side in range(2):
                pair.ring[side] = rte_ring_create(
                    f"aiflow{serial}_{side}".encode(), nb_rxd, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ)
                if pair.ring[side] == NULL:
                    raise error(PortError, -1, f"{name}: no ring of {nb_rxd} frames", mark)
            try:
                for side in range(2):
                    port = Port.__new__(Port)
                    port.name = f"{name}/{side}"
                    port.bus = "vdev"
                    port.device = f"net_ring_aiflow{serial}_{side}"
                    port.rings = pair
                    port.side = side
                    rx = pair.ring[side]
                    tx = pair.ring[1 - side]
                    device = f"aiflow{serial}_{side}".encode()
                    port_id = rte_eth_from_rings(device, &rx, 1, &tx, 1, 0)
                    if port_id < 0:
                        raise error(PortError, -1, f"{port.name}: net_ring does not open", mark)
                    port.port_id = port_id
                    try:
                        port._configure(
                            mempool if side == 0 or other is None else other, None, nb_rxd, nb_rxd, nb_rxd - 1,
                            nb_rxd - 1, mark)
                    except BaseException:
                        _unplug(b"vdev", port.device.encode())
                        raise
                    ports.append(port)
            except BaseException:
                for port in ports:
                    port.close()
                raise
        return tuple(ports)

    cdef _configure(self, Mempool mempool, frame_size, int nb_rxd, int nb_txd, rx_ring, tx_window, mark):
        """Configure, set up one queue each way, start, and learn what the port can do."""
        cdef rte_eth_dev_info dev_info
        cdef rte_eth_conf conf
        cdef rte_ether_addr mac
        cdef uint16_t rx_descriptors = nb_rxd
        cdef uint16_t tx_descriptors = nb_txd
        cdef uint16_t mtu = 0
        cdef uint16_t port_id = self.port_id
        cdef unsigned int socket
        cdef rte_mempool *pool = mempool.ptr
        cdef int rc
        cdef bytes random_mac

        if pool == NULL:
            raise PortError(f"{self.name}: its mempool is not initialised")
        rc = rte_eth_dev_info_get(port_id, &dev_info)
        if rc < 0:
            raise error(PortError, rc, f"{self.name}: no device information", mark)
        self.driver = dev_info.driver_name.decode()
        traits = _TRAITS.get(self.driver, (False, False, False, False, False))
        self.gated, self.kick, self.point_to_point, self.copies, self.multi_segs = traits
        if self.gated and not self.device.startswith("net_memif"):
            raise PortError(f"{self.name}: give a memif device a name that starts with net_memif")
        socket_id = rte_eth_dev_socket_id(port_id)
        self.socket_id = socket_id if 0 <= socket_id < 64 else -1
        socket = self.socket_id if self.socket_id >= 0 else <unsigned int>SOCKET_ID_ANY
        memset(&conf, 0, sizeof(conf))
        if dev_info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS:
            conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_MULTI_SEGS
            self.multi_segs = True
        if self.driver not in _TRAITS and frame_size is not None and frame_size - 14 > 1500:
            if frame_size - 14 > dev_info.max_mtu:
                raise ConfigError(
                    f"{self.name}: frame_size={frame_size} is more than the {dev_info.max_mtu + 14} bytes this card "
                    f"can send; ask for at most that"
                )
            conf.rxmode.mtu = frame_size - 14
        with nogil:
            rc = rte_eth_dev_configure(port_id, 1, 1, &conf)
            if rc == 0:
                rc = rte_eth_dev_adjust_nb_rx_tx_desc(port_id, &rx_descriptors, &tx_descriptors)
            if rc == 0:
                rc = rte_eth_rx_queue_setup(port_id, 0, rx_descriptors, socket, NULL, pool)
            if rc == 0:
                rc = rte_eth_tx_queue_setup(port_id, 0, tx_descriptors, socket, NULL)
        if rc < 0:
            raise error(PortError, rc, f"{self.name}: {self.driver} cannot be configured", mark)
        rc = rte_eth_macaddr_get(port_id, &mac)
        if rc == 0 and mac.addr_bytes[:6] == bytes(6):
            random_mac = bytes([0x02]) + os.urandom(5)
            memcpy(mac.addr_bytes, <const char *>random_mac, 6)
            rte_eth_dev_default_mac_addr_set(port_id, &mac)  # a driver that cannot still sends ours
        self.mac = (<unsigned char *>mac.addr_bytes)[:6]
        with nogil:
            rc = rte_eth_dev_start(port_id)
        if rc < 0:
            raise error(PortError, rc, f"{self.name}: {self.driver} does not start", mark)
        if frame_size is None:
            if rte_eth_dev_get_mtu(port_id, &mtu) < 0 or mtu == 0:
                mtu = 1500
            frame_size = mempool.data_room if self.driver == "net_ring" else mtu + 14
        self.frame_size = min(frame_size, mempool.data_room)
        self.rx_ring = rx_ring if rx_ring is not None else rx_descriptors
        self.tx_window = tx_window if tx_window is not None else tx_descriptors
        self.mempool = mempool
        self.is_open = True

    def close(self):
        """Stop and remove the port. The data plane must have let go of it. Does nothing when closed already."""
        cdef uint16_t port_id = self.port_id
        cdef int gated = self.gated
        if not self.is_open:
            return
        self.is_open = False
        if not ours():
            return
        with _plug_lock:
            bus_b = self.bus.encode()
            device_b = self.device.encode()
            with nogil:
                af_gate_hold(gate())  # no callback of this port is under way, and none starts
                rte_eth_dev_stop(port_id)
            try:
                _unplug(bus_b, device_b)
            finally:
                with nogil:
                    af_gate_release(gate(), -gated)
        self.rings = None

    def __dealloc__(self):
        if self.is_open:
            self.close()

    def adopt(self, Mempool mempool):
        """Call `mempool` the port's own; for net_ring, which receives into no pool."""
        self._check_open()
        if self.driver != "net_ring":
            raise PortError(f"{self.name}: {self.driver} receives into the pool it was opened with")
        self.mempool = mempool
        self.frame_size = min(self.frame_size, <int>mempool.data_room)

    def drain(self):
        """Drop what waits in a net_ring port's receive ring. No data plane may poll it."""
        if self.is_open and self.rings is not None and ours():
            (<_RingPair>self.rings).drain(self.side)

    def link(self):
        """Whether the link is up, and its speed in bit/s (None where the driver only has a nominal one)."""
        cdef rte_eth_link link
        self._check_open()
        memset(&link, 0, sizeof(link))
        if rte_eth_link_get_nowait(self.port_id, &link) < 0:
            return False, None
        nominal = self.driver in _TRAITS or link.link_speed in (RTE_ETH_SPEED_NUM_NONE, RTE_ETH_SPEED_NUM_UNKNOWN)
        return link.link_status == RTE_ETH_LINK_UP, None if nominal else link.link_speed * 1_000_000

    def stats(self):
        """The driver's counters: a dict of the fields of rte_eth_stats."""
        cdef rte_eth_stats stats
        self._check_open()
        memset(&stats, 0, sizeof(stats))
        rte_eth_stats_get(self.port_id, &stats)
        return {
            "ipackets": stats.ipackets, "opackets": stats.opackets, "ibytes": stats.ibytes, "obytes": stats.obytes,
            "imissed": stats.imissed, "ierrors": stats.ierrors, "oerrors": stats.oerrors,
            "rx_nombuf": stats.rx_nombuf,
        }

    def xstats(self):
        """The driver's extended statistics: a dict, name -> value."""
        cdef int n, i
        cdef rte_eth_xstat *values
        cdef rte_eth_xstat_name *names
        self._check_open()
        n = rte_eth_xstats_get_names(self.port_id, NULL, 0)
        if n <= 0:
            return {}
        values = <rte_eth_xstat *>malloc(n * sizeof(rte_eth_xstat))
        names = <rte_eth_xstat_name *>malloc(n * sizeof(rte_eth_xstat_name))
        try:
            if values == NULL or names == NULL:
                raise MemoryError
            n = min(rte_eth_xstats_get_names(self.port_id, names, n), rte_eth_xstats_get(self.port_id, values, n))
            return {names[i].name.decode(): values[i].value for i in range(n)}
        finally:
            free(values)
            free(names)

    def _check_open(self):
        if not self.is_open:
            raise PortError(f"port {self.name} is closed; open a new one")
        if not ours():
            raise EalError("a forked child cannot use the parent's DPDK ports; use multiprocessing's 'spawn'")

    def __repr__(self):
        state = f"{self.frame_size}-byte frames" if self.is_open else "closed"
        return f"<Port {self.name}: {self.driver}, {state}>"


cdef _unplug(bytes bus, bytes device):
    """Remove a device. A failure leaves it to DPDK: there is nothing the caller could do about it."""
    cdef const char *bus_c = bus
    cdef const char *device_c = device
    with nogil:
        rte_eal_hotplug_remove(bus_c, device_c)
