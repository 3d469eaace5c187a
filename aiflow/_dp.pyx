"""Data plane: the only code that calls rte_eth_rx_burst and rte_eth_tx_burst.

A `Loop` polls ports for the Senders and Receivers on it. It passes received frames to their state machines, and sends
the frames that these write (include/aiflow/rt/demux.h). `_dp_driver.pyx` has the threads that drive it.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from aiflow._core cimport (
    AF_DUE_UNKNOWN, AF_MIN_PATH_FRAME, AF_NB_FAULTS, AF_TAIL_LEAST, af_cpu_budget_rest, af_demux_due, af_demux_find,
    af_demux_next_frame, af_demux_on_frame, af_demux_tick, af_fault_line_leave, af_fault_name, af_handoff_notify,
    af_handoff_rest, af_handoff_take_posted, af_idle_worked, af_now_ns, af_span,
)
from aiflow._dp_faults cimport close_lines, impair, impaired, open_lines
from aiflow._dp_driver cimport LoopDriver, aiflow_lock, aiflow_unlock
from aiflow._dp_port cimport BURST, IN, OUT
from aiflow._dp_frame cimport plain, unusual
from aiflow._eal cimport Mempool, Port, af_intr_gate_enter, af_intr_gate_leave, gate
from aiflow._eal_doorbell cimport Doorbell, af_doorbell_awake, af_doorbell_ring, af_doorbell_sleep
from aiflow.librte.rte_ethdev cimport (
    rte_eth_dev_rx_intr_disable, rte_eth_dev_rx_intr_enable, rte_eth_rx_burst, rte_eth_tx_burst,
)
from aiflow.librte.rte_mbuf cimport (
    RTE_PKTMBUF_HEADROOM, rte_mbuf, rte_mbuf_ext_refcnt_set, rte_mbuf_ext_refcnt_update, rte_mbuf_ext_shared_info,
    rte_pktmbuf_alloc, rte_pktmbuf_attach_extbuf, rte_pktmbuf_data_room_size, rte_pktmbuf_free, rte_pktmbuf_free_bulk,
    rte_pktmbuf_mtod,
)
from aiflow.librte.rte_mempool cimport rte_mempool
from aiflow._system import threads
from aiflow._faults import parse_faults
from aiflow.errors import PortError
from aiflow._system.cpus import settle

cdef extern from "rte_mbuf.h" nogil:
    uint64_t RTE_BAD_IOVA

cdef extern from *:
    """
    #define aiflow_prefetch(p) __builtin_prefetch(p)
    """
    void aiflow_prefetch(const void *p) noexcept nogil

MAX_PORTS = PORTS  # a test compares it with config's
# Names of the C table (include/aiflow/rt/fault_line.h).
FAULT_COUNTS = tuple([af_fault_name(fault).decode() for fault in range(AF_NB_FAULTS)])


cdef void given_back(void *addr, void *opaque) noexcept nogil:
    """Free nothing: the bytes are the agent's."""


cdef bint fits(rte_mbuf *m, rte_mempool *pool) noexcept nogil:
    """Does a frame of one segment fit into an mbuf of `pool`? A sender's first frames are as long as its port takes."""
    return m.data_len + RTE_PKTMBUF_HEADROOM <= rte_pktmbuf_data_room_size(pool)


cdef rte_mbuf *adopted(rte_mbuf *m, rte_mempool *pool) noexcept nogil:
    """Move a frame that fits into an mbuf of `pool`; NULL, and the frame is freed, when the pool is empty.

    No flag goes with it: tags are judged by then (`plain`), and others say how the first mbuf lies in memory.
    """
    cdef rte_mbuf *copy = rte_pktmbuf_alloc(pool)
    if copy != NULL:
        memcpy(rte_pktmbuf_mtod(copy), rte_pktmbuf_mtod(m), m.data_len)
        copy.data_len = m.data_len
        copy.pkt_len = m.data_len
    rte_pktmbuf_free(m)
    return copy


cdef class Loop(LoopDriver):
    """Polls ports for the agents on it.

    Parameters
    ----------
    faults : dict, list of dict, or None
        For tests: see `aiflow.config.FAULTS`.
    """

    def __cinit__(self):
        self.gate = gate()
        self.lent.free_cb = given_back
        rte_mbuf_ext_refcnt_set(&self.lent, 1)  # ours: it never falls to 0
        self.open_ports = [None] * PORTS
        self.agents = []
        self.tx_pools = []

    def __init__(self, faults=None):
        self.faults = parse_faults(faults)

    # ---- control plane ----

    def settled(self):
        """Have the drivers taken all frames that the agents wrote? Between two iterations."""
        cdef uint32_t index
        cdef loop_port *port
        for index in range(self.nb_ports):
            port = &self.ports[index]
            if port.attached and (port.count or (port.lines[OUT] != NULL and port.lines[OUT].nb_held)):
                return False
        return True

    def _end(self):
        LoopDriver._end(self)
        for index in range(<uint32_t>PORTS):
            self._free_staged(index)

    def by_reference(self, Port port):
        """Can the port send large payloads by reference? Its driver copies them, or the card reads lent memory."""
        return ((port.copies or port.lends) and port.multi_segs and port.frame_size > 2 * <int>AF_TAIL_LEAST
                and not self.faults)

    def prepare(self, Port port):
        """Make what `open_port` needs. In any thread, before it.

        A card reads only memory that DPDK has mapped for it. Frames on a mapping of our own would not leave.
        """
        pool = self.tx_pool
        if pool is not None and pool.own_memory and port.needs_eal_memory:
            self.tx_pool = Mempool(pool.name, pool.nb_mbufs, pool.data_room, -1, False)

    def open_port(self, Port port):
        """Poll this port from now on; returns its index. Between two iterations."""
        cdef uint32_t index = 0
        cdef loop_port *slot
        cdef Mempool pool = self.tx_pool if self.tx_pool is not None else port.mempool
        if port.frame_size < <int>AF_MIN_PATH_FRAME:
            raise PortError(f"{port.name} takes frames of {port.frame_size} bytes only, and {AF_MIN_PATH_FRAME} is the "
                            "least: raise the interface's MTU, or frame_size=")
        while index < PORTS and self.ports[index].attached:
            index += 1
        if index == PORTS:
            raise PortError(f"{port.name} would be port {PORTS + 1} of one endpoint: {PORTS} is the most")
        slot = &self.ports[index]
        memset(slot, 0, sizeof(loop_port))
        slot.port_id = port.port_id
        slot.gated = port.gated
        slot.lends = port.lends
        slot.pool = pool.ptr
        if pool is not port.mempool:
            self._keep(pool)
        slot.rx_pool = port.mempool.ptr
        open_lines(slot, self.faults, index)
        slot.bell = self._share_bell(port.doorbell) if port.doorbell is not None else -1
        slot.wakes = port.wakes and (self._bell_uses(slot.bell) > 1 or self._add_wake_fds(port.wake_fds))
        slot.rx_interrupts = port.rx_interrupts and slot.wakes
        slot.attached = True
        self.open_ports[index] = port
        self.nb_gated += port.gated
        if index >= self.nb_ports:
            self.nb_ports = index + 1
        self._settle()
        return index

    def send_from(self, uint32_t index):
        """An agent sends from this port: its frames need mbufs of the port's size. Between two iterations."""
        cdef loop_port *port = &self.ports[index]
        cdef Mempool pool = self.tx_pool
        if pool is not None and port.pool != pool.ptr:
            rte_pktmbuf_free(port.spare)
            port.spare = NULL
            port.pool = pool.ptr
            self._keep(pool)

    def _keep(self, pool):
        """Keep a pool of frames to send as long as the loop: another may take its place, but not on every port.

        Never a port's own: ports come and go for as long as the loop lives.
        """
        if pool not in self.tx_pools:
            self.tx_pools.append(pool)

    def close_port(self, Port port):
        """Stop polling this port, which no agent uses any more. Between two iterations."""
        index = self.index_of(port)
        if index >= 0:
            self._free_staged(index)
            self.rx_nombuf += self.ports[index].rx_nombuf
            self.tx_nombuf += self.ports[index].tx_nombuf
            self.ports[index].rx_nombuf = self.ports[index].tx_nombuf = 0
            self.nb_gated -= self.ports[index].gated
            self._no_wakes(&self.ports[index], port.wake_fds)
            self.ports[index].attached = False
            self.open_ports[index] = None
            self._settle()

    cdef int _share_bell(self, Doorbell bell):
        """Index of a doorbell in the loop: ports of one connection share it."""
        cdef int i, free = -1
        for i in range(PORTS):
            if self.bells[i] == &bell.bell:
                break
            if self.bells[i] == NULL and free < 0:
                free = i
        else:
            i = free
            self.bells[i] = &bell.bell
            self.nb_bells = max(self.nb_bells, i + 1)
        self.bell_uses[i] += 1
        return i

    cdef int _bell_uses(self, int bell):
        return self.bell_uses[bell] if bell >= 0 else 0

    cdef bint _add_wake_fds(self, list fds):
        """Let a port end the loop's sleeps; False: there are too many descriptors."""
        for number, fd in enumerate(fds):
            if not self.add_wake_fd(fd):
                for added in fds[:number]:
                    self.remove_wake_fd(added)
                return False
        return True

    cdef _no_wakes(self, loop_port *port, list fds):
        """Undo what `open_port` did with the port's doorbell and descriptors."""
        if port.bell >= 0:
            self.bell_uses[port.bell] -= 1
        if port.wakes and not self._bell_uses(port.bell):
            for fd in fds:
                self.remove_wake_fd(fd)
        if port.bell >= 0 and not self.bell_uses[port.bell]:
            self.bells[port.bell] = NULL
            self.to_ring[port.bell] = False

    cdef void last_look(self, uint32_t index) noexcept nogil:
        """Take the frames that a port has received, before it is closed. Between two iterations."""
        cdef loop_port *port = &self.ports[index]
        cdef int bursts = 0
        if port.gated:
            af_intr_gate_enter(self.gate)
        while bursts < 64 and self.receive(port, index, af_now_ns()):
            bursts += 1
        if port.gated:
            af_intr_gate_leave(self.gate)

    def index_of(self, Port port):
        """Index of a port in the loop, or -1."""
        for index in range(<uint32_t>PORTS):
            if self.open_ports[index] is port:
                return index
        return -1

    def _settle(self):
        """Poll from the ports' own NUMA node."""
        if self.thread is not None and threads.is_current(self.thread):
            settle([port.socket_id for port in self.open_ports if port is not None], self.allowed_cpus)

    def _free_staged(self, int index):
        cdef loop_port *port = &self.ports[index]
        if port.attached:
            if port.count:
                rte_pktmbuf_free_bulk(&port.staged[port.head], port.count)
            port.head = port.count = 0
            rte_pktmbuf_free(port.spare)
            port.spare = NULL
            close_lines(port, self.fault_sums)

    def fault_counts(self):
        """Frames that the fault lines have dropped, corrupted, …: a dict."""
        cdef uint64_t sums[AF_NB_FAULTS]
        memcpy(sums, self.fault_sums, sizeof(sums))
        for index in range(<uint32_t>PORTS):
            for way in range(2):
                if self.ports[index].lines[way] != NULL:
                    for kind in range(AF_NB_FAULTS):
                        sums[kind] += self.ports[index].lines[way].counts[kind]
        counts = dict(zip(FAULT_COUNTS, sums, strict=True))
        counts["dropped"] += sum(counts[kind] for kind in ("burst", "down", "overflow"))
        return counts

    # ---- the loop ----

    cdef bint unfinished(self) noexcept nogil:
        """Has an agent more to do, or are there frames that a driver has not taken yet?"""
        cdef uint32_t i
        for i in range(self.nb_users):
            if self.users[i].unfinished(self.users[i].side):
                return True
        for i in range(self.nb_ports):
            if self.ports[i].attached and self.ports[i].count:
                return True
        return False

    cdef uint64_t due(self, uint64_t now) noexcept nogil:
        """Unknown while a port cannot wake the loop, or frames wait for a driver or in a fault line."""
        cdef uint32_t i
        cdef loop_port *port
        for i in range(self.nb_ports):
            port = &self.ports[i]
            if port.attached and (not port.wakes or port.count or port.lines[OUT] != NULL or port.lines[IN] != NULL):
                return AF_DUE_UNKNOWN
        return af_demux_due(&self.demux, now)

    cdef bint before_sleep(self) noexcept nogil:
        cdef int i, nb = 0
        for i in range(self.nb_bells):
            if self.bells[i] != NULL:
                af_doorbell_sleep(self.bells[i])
                nb += 1
        for i in range(<int>self.nb_ports):
            if self.ports[i].attached and self.ports[i].rx_interrupts:
                rte_eth_dev_rx_intr_enable(self.ports[i].port_id, 0)
                nb += 1
        if nb and self.iterate():  # what a peer sent before it could see that we sleep
            self.after_sleep()
            return False
        return True

    cdef void after_sleep(self) noexcept nogil:
        cdef int i
        for i in range(self.nb_bells):
            if self.bells[i] != NULL:
                af_doorbell_awake(self.bells[i])
        for i in range(<int>self.nb_ports):
            if self.ports[i].attached and self.ports[i].rx_interrupts:
                rte_eth_dev_rx_intr_disable(self.ports[i].port_id, 0)

    cdef void ring_peers(self) noexcept nogil:
        """Wake the peers that sleep, and that have got frames in this iteration."""
        cdef int i
        for i in range(self.nb_bells):
            if self.to_ring[i]:
                self.to_ring[i] = False
                af_doorbell_ring(self.bells[i])

    cdef int iterate(self) noexcept nogil:
        """One iteration: a burst in and a burst out of every port. Returns the frames and events."""
        cdef uint32_t i
        cdef uint64_t rest_ns, begun
        cdef int work = 0
        if self.cpu_budget.cores > 0:
            rest_ns = af_cpu_budget_rest(&self.cpu_budget, self.now)
            if rest_ns:
                af_handoff_rest(&self.handoff, rest_ns)
                begun = self.now
                self.now = af_now_ns()
                self.rested_ns += self.now - begun
        begun = self.now
        if af_handoff_take_posted(&self.handoff):
            for i in range(self.nb_users):
                self.users[i].collect(self.users[i].side, self.now)
            work = 1
        if self.nb_gated:
            af_intr_gate_enter(self.gate)
        for i in range(self.nb_ports):
            if self.ports[i].attached:
                work += self.poll(i, self.now)
        if self.nb_gated:
            af_intr_gate_leave(self.gate)
        self.ring_peers()
        self.now = af_now_ns()
        if work:
            self.busy_ns += self.now - begun
        if af_demux_tick(&self.demux, self.now):
            aiflow_lock(&self.handoff)
            for i in range(self.nb_users):
                self.users[i].publish(self.users[i].side)
            af_handoff_notify(&self.handoff)
            aiflow_unlock(&self.handoff)
            work += 1
        if work:
            af_idle_worked(&self.idle, self.now, work)
        return work

    cdef int poll(self, uint32_t index, uint64_t now) noexcept nogil:
        """One burst in and one burst out of a port. Returns how many frames moved."""
        cdef loop_port *port = &self.ports[index]
        cdef int nb_rx = self.receive(port, index, now)
        cdef uint16_t nb_tx = 0
        self.stage(port, index, now)
        if port.count:
            # The driver may take fewer: the others stay staged, in order.
            nb_tx = rte_eth_tx_burst(port.port_id, 0, &port.staged[port.head], port.count)
            port.head += nb_tx
            port.count -= nb_tx
            if nb_tx and port.bell >= 0:
                self.to_ring[port.bell] = True
            if port.count and self.references is not None and not port.lends:
                self.make_own(port)
        return nb_rx + nb_tx

    cdef int receive(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil:
        """One burst in."""
        cdef rte_mbuf *pkts[BURST]
        cdef rte_mbuf *m
        cdef rte_mempool *adopt
        cdef uint16_t nb_rx = rte_eth_rx_burst(port.port_id, 0, pkts, BURST)
        cdef uint16_t i, nb_free = 0
        if port.lines[IN] != NULL:
            nb_rx = impaired(port, pkts, nb_rx, now, self.unseen)
        for i in range(nb_rx):
            m = pkts[i]
            if i + 1 < nb_rx:
                aiflow_prefetch(rte_pktmbuf_mtod(pkts[i + 1]))
            if unusual(m):
                m = plain(port, m, self.unseen)
                if m == NULL:
                    continue
            if port.nb_adopting:
                adopt = <rte_mempool *>af_demux_find(&self.demux.lines[index], rte_pktmbuf_mtod(m), m.data_len).adopt
                if adopt != NULL and m.pool != adopt and fits(m, adopt):  # a longer one is refused below
                    m = adopted(m, adopt)
                    if m == NULL:
                        port.rx_nombuf += 1
                        continue
            if af_demux_on_frame(&self.demux, index, now, rte_pktmbuf_mtod(m), m.data_len, m):
                continue
            pkts[nb_free] = m
            nb_free += 1
        if nb_free:
            rte_pktmbuf_free_bulk(pkts, nb_free)
        return nb_rx

    cdef void stage(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil:
        """Fill the port's staged frames with those that the agents have to send."""
        cdef rte_mbuf *m
        cdef const af_span *tail = NULL
        cdef uint32_t size
        cdef uint16_t i
        if port.head and port.count:
            for i in range(port.count):
                port.staged[i] = port.staged[port.head + i]
        port.head = 0
        while port.count < BURST:
            if port.lines[OUT] != NULL:
                m = <rte_mbuf *>af_fault_line_leave(port.lines[OUT], now)
                if m != NULL:
                    port.staged[port.count] = m
                    port.count += 1
                    continue
            if port.spare == NULL:
                port.spare = rte_pktmbuf_alloc(port.pool)
                if port.spare == NULL:
                    port.tx_nombuf += 1
                    return
            m = port.spare
            size = af_demux_next_frame(&self.demux, index, now, rte_pktmbuf_mtod(m), &tail)
            if size == 0:
                return
            m.data_len = <uint16_t>size
            m.pkt_len = size
            port.spare = NULL
            if port.lines[OUT] != NULL:
                impair(port.lines[OUT], m, now)
                continue
            if tail != NULL and tail.nbytes:
                self.refer(port, m, tail)
            port.staged[port.count] = m
            port.count += 1

    cdef void refer(self, loop_port *port, rte_mbuf *m, const af_span *tail) noexcept nogil:
        """Append the agent's bytes to a frame by reference: the driver makes the only copy, or the card reads them.

        A card may read them when the slice has ended, and its user has changed them. Then the checksum is wrong, or
        the frame is a duplicate, and the receiver drops it. Their owner keeps the memory until then.
        """
        cdef rte_mbuf_ext_shared_info *owner = &self.lent
        cdef uint64_t iova = RTE_BAD_IOVA
        cdef rte_mbuf *reference = rte_pktmbuf_alloc(self.references.ptr)
        cdef uint16_t nbytes = <uint16_t>tail.nbytes
        m.data_len -= nbytes
        if reference == NULL:
            memcpy(rte_pktmbuf_mtod(m) + m.data_len, tail.ptr, nbytes)
            m.data_len += nbytes
            return
        if port.lends:
            owner = <rte_mbuf_ext_shared_info *>tail.owner
            iova = <uintptr_t>tail.ptr  # the IOMMU knows it by this address
        port.by_reference += 1
        rte_mbuf_ext_refcnt_update(owner, 1)
        rte_pktmbuf_attach_extbuf(reference, <void *>tail.ptr, iova, nbytes, owner)
        reference.data_len = nbytes
        m.next = reference
        m.nb_segs = 2

    cdef void make_own(self, loop_port *port) noexcept nogil:
        """Copy the agent's bytes into frames that the driver left: the agent may free them before the next burst."""
        cdef rte_mbuf *m
        cdef rte_mbuf *reference
        cdef uint16_t i
        for i in range(port.head, port.head + port.count):
            m = port.staged[i]
            reference = m.next
            if reference != NULL:
                memcpy(rte_pktmbuf_mtod(m) + m.data_len, rte_pktmbuf_mtod(reference), reference.data_len)
                m.data_len += reference.data_len
                m.next = NULL
                m.nb_segs = 1
                port.by_reference -= 1
                rte_pktmbuf_free(reference)
