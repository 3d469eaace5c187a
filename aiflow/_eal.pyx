# cython: language_level=3
"""Control plane: mempools and Ethernet ports. No frame passes through this module.

The EAL starts with the first `Mempool` or `Port`. The functions of `_eal_init` are re-exported here.
"""
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from aiflow._eal_device cimport Removal, RingPair, plug_device, unplug, unplug_port
from aiflow._eal_init cimport gate, log_mark, ours
from aiflow._eal_mempool cimport Mempool
from aiflow._eal_regions cimport card_opened
from aiflow.librte.rte_eal cimport SOCKET_ID_ANY
from aiflow.librte.rte_ethdev cimport (
    RTE_ETH_LINK_UP, RTE_ETH_SPEED_NUM_NONE, RTE_ETH_SPEED_NUM_UNKNOWN, RTE_ETH_TX_OFFLOAD_MULTI_SEGS,
    RTE_MAX_ETHPORTS, rte_eth_conf, rte_eth_dev_adjust_nb_rx_tx_desc, rte_eth_dev_configure, rte_eth_dev_count_avail,
    rte_eth_dev_default_mac_addr_set, rte_eth_dev_get_mtu, rte_eth_dev_get_port_by_name, rte_eth_dev_info,
    rte_eth_dev_info_get, rte_eth_dev_rx_intr_ctl_q_get_fd, rte_eth_dev_rx_intr_disable, rte_eth_dev_rx_intr_enable,
    rte_eth_dev_socket_id, rte_eth_dev_start, rte_eth_dev_stop, rte_eth_link,
    rte_eth_link_get_nowait, rte_eth_macaddr_get, rte_eth_rx_queue_setup, rte_eth_stats, rte_eth_stats_get,
    rte_eth_tx_queue_setup, rte_eth_xstat, rte_eth_xstat_name, rte_eth_xstats_get, rte_eth_xstats_get_names,
    rte_ether_addr,
)
from aiflow.librte.rte_mempool cimport rte_mempool

import itertools
import os
from aiflow import _eal_args, _eal_mempool
from aiflow._system import threads
from aiflow._eal_init import (
    compiled, connecting, dpdk_version, error, forward_log, log_tail, logged, memory_mode, register_thread, start,
    started, unregister_thread, uses_physical_addresses, vfio_is_ready,
)
from aiflow._eal_cards import card_advice
from aiflow._eal_traits import OF_A_CARD, TRAITS, may_lend
from aiflow._eal_mempool import MAX_DATA_ROOM
from aiflow.errors import ConfigError, EalError, PortError

__all__ = [
    "MAX_DATA_ROOM", "Mempool", "Port", "compiled", "connecting", "dpdk_version", "forward_log", "log_tail",
    "memory_mode", "mempools", "nb_ports", "next_serial", "register_thread", "start", "started", "unpark",
    "unregister_thread", "uses_physical_addresses", "vfio_is_ready",
]


cdef extern from "aiflow/rt/intr_gate.h" nogil:
    void af_intr_gate_hold(af_intr_gate *gate) noexcept
    void af_intr_gate_release(af_intr_gate *gate, int ports) noexcept


globals()["Mempool"] = _eal_mempool.Mempool  # cimport alone does not make the class an attribute of this module

_plug_lock = threads.unpatched("threading").RLock()  # held while ports are opened and closed
_serial = itertools.count()
_parked = []  # at most one stopped port, which `Port.park` keeps plugged
_resting = set()  # open ports that nothing uses: see `Port.rest`


def _forked():
    """Runs in every forked child: a lock that another thread of the parent held would stay locked."""
    global _plug_lock
    _plug_lock = threads.unpatched("threading").RLock()


os.register_at_fork(after_in_child=_forked)


# --------------------------------------------------------------------------------------------------------------- ports

def nb_ports():
    """Number of open ports in this process, of other code too; parked and resting ones do not count."""
    return rte_eth_dev_count_avail() - len(_parked) - len(_resting) if ours() else 0


def mempools():
    """Live mempools of this process, without those of resting ports."""
    resting = {port.mempool for port in _resting}
    return [pool for pool in _eal_mempool.mempools() if pool not in resting]


def unpark():
    """Remove the parked port, if there is one."""
    while _parked:
        _parked.pop().unplug()


cdef _make_room(str name, unsigned int wanted):
    if rte_eth_dev_count_avail() + wanted > RTE_MAX_ETHPORTS:
        unpark()
    while _resting and rte_eth_dev_count_avail() + wanted > RTE_MAX_ETHPORTS:
        _resting.pop().close()  # its next user cannot have it: room is worth more
    if rte_eth_dev_count_avail() + wanted > RTE_MAX_ETHPORTS:
        raise PortError(f"{name}: DPDK has {RTE_MAX_ETHPORTS} ports at most in a process; close some first")


def next_serial():
    """A number for a device's name that no other device of this process has."""
    return next(_serial)


cdef class Port:
    """An Ethernet port of DPDK with one receive and one transmit queue, from `Port.open` or `Port.open_ring_pair`."""

    def __cinit__(self):
        self.is_open = False
        self.is_plugged = False
        self.held = []
        self.wake_fds = []
        self.removal = Removal()
        self.link_lock = threads.unpatched("threading").RLock()  # a signal handler may come back to it

    @staticmethod
    def open(str name, str device, str devargs, Mempool mempool, *, str bus="vdev", frame_size=None,
             int nb_rxd=1024, int nb_txd=1024, rx_ring=None, tx_window=None, bint rx_interrupts=False):
        """Hot-plug a device and start it.

        Parameters
        ----------
        name : str
            For tables and errors.
        device : str
            Device on the bus: ``"net_memif0"``, ``"0000:3b:00.0"``.
        devargs : str
            The driver's arguments, ``"role=server,id=0"``.
        mempool : Mempool
            The pool for received frames.
        bus : {"vdev", "pci"}
        frame_size : int, optional
            Largest frame, in bytes with the Ethernet header. Default: what the port's MTU allows.
        nb_rxd, nb_txd : int
            Descriptors of the queues, adjusted to what the driver allows.
        rx_ring, tx_window : int, optional
            Frames that the receive side can hold, and frames that may be in flight from the port. Give them if the
            driver's numbers of descriptors say something else.
        rx_interrupts : bool
            Ask the driver for receive interrupts. If it has them, `wake_fds` has their eventfd.

        Returns
        -------
        Port

        Raises
        ------
        PortError
            If a step fails, with DPDK's log; nothing is left open.
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
        with _plug_lock, _eal_args.without_realtime():
            _make_room(name, 1)
            mark = log_mark()
            with nogil:
                if gated:
                    af_intr_gate_hold(gate())
                rc = plug_device(bus_c, device_c, devargs_c)
            try:
                if rc < 0 and bus == "pci" and (advice := card_advice(log_tail(mark), memory_mode())):
                    raise PortError(f"{name}: the card does not open: {advice}{logged(mark)}")
                if rc < 0:
                    raise error(PortError, rc, f"{name}: driver {device.split(',')[0]} does not open", mark)
                port.name = name
                port.bus = bus
                port.device = device
                rc = rte_eth_dev_get_port_by_name(device_c, &port.port_id)
                if rc < 0:
                    unplug(bus_b, device_b)
                    raise error(PortError, rc, f"{name}: {device} is not an Ethernet port", mark)
                port.is_plugged = True
                port.rx_interrupts = rx_interrupts
                if bus == "pci":
                    port.removal.begin(device_b)
                    port.lends = card_opened()
                try:
                    port._configure(mempool, frame_size, nb_rxd, nb_txd, rx_ring, tx_window, mark)
                except BaseException:
                    port.is_plugged = False
                    port.removal.end()
                    unplug_port(bus_b, device_b, port.port_id)
                    raise
            finally:
                if gated:
                    with nogil:
                        af_intr_gate_release(gate(), port.is_plugged)
            port._start(mark)
            port._find_interrupt()
        return port

    @staticmethod
    def open_ring_pair(str name, Mempool mempool, Mempool other=None, *, int nb_rxd=1024):
        """Two ports over two rings: each receives the very mbufs that the other one sends.

        Parameters
        ----------
        name : str
            For tables and errors; the ports are called ``name/0`` and ``name/1``.
        mempool, other : Mempool
            Pools of the first and the second port. Default: `mempool` for both.
        nb_rxd : int
            Ring size, a power of two; a ring holds one frame less.

        Returns
        -------
        tuple of Port
        """
        cdef RingPair pair = RingPair()
        cdef Port port
        cdef int side, port_id
        start()
        serial = next(_serial)
        mark = log_mark()
        ports = []
        with _plug_lock:
            _make_room(name, 2)
            pair.create(name, serial, nb_rxd)
            try:
                for side in range(2):
                    port = Port.__new__(Port)
                    port.name = f"{name}/{side}"
                    port.bus = "vdev"
                    port.device = f"net_ring_aiflow{serial}_{side}"
                    port.ring_pair = pair
                    port.side = side
                    port_id = pair.plug(side, f"aiflow{serial}_{side}".encode())
                    if port_id < 0:
                        raise error(PortError, -1, f"{port.name}: net_ring does not open", mark)
                    port.port_id = port_id
                    try:
                        port._configure(
                            mempool if side == 0 or other is None else other, None, nb_rxd, nb_rxd, nb_rxd - 1,
                            nb_rxd - 1, mark)
                        port._start(mark)
                    except BaseException:
                        unplug(b"vdev", port.device.encode())
                        raise
                    ports.append(port)
            except BaseException:
                for port in ports:
                    port.close()
                raise
        return tuple(ports)

    cdef _configure(self, Mempool mempool, frame_size, int nb_rxd, int nb_txd, rx_ring, tx_window, mark):
        """Configure the device, set up a queue in each direction, and read the port's capabilities."""
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
        self.gated, self.kick, self.point_to_point, self.copies, self.multi_segs = TRAITS.get(self.driver, OF_A_CARD)
        self.needs_eal_memory = not self.copies and self.driver != "net_ring"
        if self.gated and not self.device.startswith("net_memif"):
            raise PortError(f"{self.name}: the name of a memif device must start with net_memif")
        socket_id = rte_eth_dev_socket_id(port_id)
        self.socket_id = socket_id if 0 <= socket_id < 64 else -1
        socket = self.socket_id if self.socket_id >= 0 else <unsigned int>SOCKET_ID_ANY
        memset(&conf, 0, sizeof(conf))
        conf.intr_conf.rxq = self.rx_interrupts
        if self.driver not in TRAITS and frame_size is not None and frame_size - 14 > 1500:
            if frame_size - 14 > dev_info.max_mtu:
                raise ConfigError(f"{self.name}: frame_size={frame_size} is more than the {dev_info.max_mtu + 14} "
                                  "bytes this card can send; use that size or less")
            conf.rxmode.mtu = frame_size - 14
        # Only where payloads go out by reference: many cards send faster without it.
        if self.driver in TRAITS or self.lends and may_lend(self.driver, frame_size):
            conf.txmode.offloads = dev_info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS
        self.multi_segs |= conf.txmode.offloads != 0
        self.lends &= self.multi_segs
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
            rte_eth_dev_default_mac_addr_set(port_id, &mac)  # if the driver cannot, frames still carry ours
        self.mac = (<unsigned char *>mac.addr_bytes)[:6]
        if frame_size is None:
            if rte_eth_dev_get_mtu(port_id, &mtu) < 0 or mtu == 0:
                mtu = 1500
            frame_size = mempool.data_room if self.driver == "net_ring" else mtu + 14
        self.frame_size = min(frame_size, mempool.data_room)
        self.rx_ring = rx_ring if rx_ring is not None else rx_descriptors
        self.tx_window = tx_window if tx_window is not None else tx_descriptors
        self.mempool = mempool

    cdef _start(self, mark):
        """Start the device. Do not hold the gate: a memif client waits here for the server's interrupt thread."""
        cdef uint16_t port_id = self.port_id
        cdef int rc
        with nogil:
            rc = rte_eth_dev_start(port_id)
        self.is_plugged = self.is_open = True
        if rc < 0:
            failure = error(PortError, rc, f"{self.name}: {self.driver} does not start", mark)
            self.close()
            raise failure

    cdef _find_interrupt(self):
        """Keep the eventfd of the receive interrupts. A driver may offer other descriptors, which are not understood.

        mlx5 does: its events must be taken in pairs with the calls that turn interrupts on and off.
        """
        cdef int fd
        if not self.rx_interrupts:
            return
        self.rx_interrupts = False
        fd = rte_eth_dev_rx_intr_ctl_q_get_fd(self.port_id, 0)
        if fd < 0 or not os.path.realpath(f"/proc/self/fd/{fd}").endswith("anon_inode:[eventfd]"):
            return
        if rte_eth_dev_rx_intr_enable(self.port_id, 0) == 0 and rte_eth_dev_rx_intr_disable(self.port_id, 0) == 0:
            self.rx_interrupts = True
            self.wake_fds = [fd]

    @property
    def is_wanted_back(self):
        """Whether the kernel waits for this card: it is being pulled, or its driver unbound. Close the port then."""
        return self.removal.is_wanted()

    def close(self):
        """Stop and remove the port. The data plane must no longer use it. Does nothing if it is closed already."""
        self.stop()
        self.unplug()

    def stop(self):
        """The first half of `close`: no more frames pass. The device stays plugged until `unplug`."""
        cdef uint16_t port_id = self.port_id
        cdef int gated = self.gated
        if not self.is_open:
            return
        _resting.discard(self)
        self.is_open = False
        self.is_plugged = ours()
        if self.gated:
            self.mempool = None  # memif holds no mbufs while it is stopped
        if self.is_plugged:
            with _plug_lock, self.link_lock, nogil:
                af_intr_gate_hold(gate())  # no callback of this port is running, and none starts
                rte_eth_dev_stop(port_id)
                af_intr_gate_release(gate(), -gated)

    def park(self):
        """Stop, and keep the device plugged until the next memif server port is open.

        memif never closes a listening socket (22.11 to 26.07: memif_socket_remove_device frees the interrupt handle,
        but neither unregisters it nor closes the descriptor). So the last device on a socket stays until the next one.
        """
        with _plug_lock:
            unpark()
            self.stop()
            if self.is_plugged:
                _parked.append(self)

    def rest(self):
        """Stay open without a user: a device that cannot be opened again waits for the next one."""
        if self.is_open and ours():
            _resting.add(self)

    def resume(self):
        """Be used again."""
        _resting.discard(self)

    def unplug(self):
        """The second half of `close`."""
        if not self.is_plugged or self.is_open:
            return
        self.is_plugged = False
        if ours():
            with _plug_lock:
                self.removal.end()
                with nogil:
                    af_intr_gate_hold(gate())
                try:
                    unplug_port(self.bus.encode(), self.device.encode(), self.port_id)
                finally:
                    with nogil:
                        af_intr_gate_release(gate(), 0)
        self.mempool = None
        self.ring_pair = None
        while self.held:
            self.held.pop().close()

    @property
    def wakes(self):
        """Whether a frame that arrives wakes a loop that sleeps: by `wake_fds`, and by `doorbell` at the peer's side.

        The creator of the port sets both before the port is attached.
        """
        return bool(self.wake_fds)

    def hold(self, closable):
        """Close `closable` after the port: what it needs, or claims, while it is open."""
        self.held.append(closable)

    def __dealloc__(self):
        if (self.is_open or self.is_plugged) and ours():
            self.close()

    def adopt(self, Mempool mempool):
        """Set the port's pool; for net_ring, whose driver has none."""
        self._check_open()
        if self.driver != "net_ring":
            raise PortError(f"{self.name}: {self.driver} receives into the pool it was opened with")
        self.mempool = mempool
        self.frame_size = min(self.frame_size, <int>mempool.data_room)

    def drain(self):
        """Drop the frames in a net_ring port's receive ring. No data plane may poll the port."""
        if self.is_open and self.ring_pair is not None and ours():
            (<RingPair>self.ring_pair).drain(self.side)

    def link(self):
        """Whether the link is up, and its speed in bit/s (None if the driver reports only a nominal speed)."""
        cdef rte_eth_link link
        cdef uint16_t port_id = self.port_id
        cdef int rc = 0
        memset(&link, 0, sizeof(link))
        with self.link_lock:
            self._check_open()
            with nogil:
                rc = rte_eth_link_get_nowait(port_id, &link)
        if rc < 0:
            return False, None
        nominal = self.driver in TRAITS or link.link_speed in (RTE_ETH_SPEED_NUM_NONE, RTE_ETH_SPEED_NUM_UNKNOWN)
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
