"""Data plane: the only code that calls rte_eth_rx_burst and rte_eth_tx_burst.

A `Loop` polls the ports of one Sender or Receiver. It feeds what arrives to the state machine (`agent`), sends what the
state machine has to say, and sleeps when neither happens. One thread at a time drives it: its worker, or a caller that
waits for what the loop does (include/aiflow/mail.h says who when). The worker leaves nogil only when the control plane
wants something done between two iterations: a port attached or removed, or the end.
"""

import atexit
import os
import threading
import weakref

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from aiflow._core cimport (
    AF_MIN_PATH_FRAME, AF_NAME_BYTES, AF_NB_FAULTS, AF_PARK_FIRST_NS, AF_PARK_MOST_NS, af_agent_port, af_idle_begin,
    af_idle_exact_timers, af_idle_spin, af_idle_timers_as, af_idle_turn, af_idle_worked, af_line_leave, af_mail_drain,
    af_mail_free, af_mail_init, af_mail_is_wanted, af_mail_leave_turn, af_mail_notify, af_mail_park, af_mail_rest,
    af_mail_sleep, af_mail_take_turn, af_mail_wait, af_mail_wake, af_monitor, af_monitor_read, af_now_ns,
    af_quota_begin, af_quota_rest, af_sample, af_span,
)
from aiflow._dp_faults cimport close_lines, impair, impaired, open_lines
from aiflow._eal cimport Mempool, Port, af_gate_enter, af_gate_leave, gate, register_thread, unregister_thread
from aiflow.librte.rte_ethdev cimport rte_eth_rx_burst, rte_eth_tx_burst
from aiflow.librte.rte_mbuf cimport (
    rte_mbuf, rte_mbuf_ext_refcnt_set, rte_mbuf_ext_refcnt_update, rte_pktmbuf_alloc, rte_pktmbuf_attach_extbuf,
    rte_pktmbuf_free, rte_pktmbuf_free_bulk, rte_pktmbuf_mtod,
)
from aiflow._eal import start as start_eal
from aiflow.config import parse_faults
from aiflow.errors import ConfigError, EalError, PortError
from aiflow.numa import settle

cdef extern from "rte_mbuf.h" nogil:
    uint64_t RTE_MBUF_F_RX_VLAN
    uint64_t RTE_BAD_IOVA

cdef extern from *:
    """
    #include "aiflow/mail.h"
    #include <rte_lcore.h>
    #include <sched.h>
    #define aiflow_attention(mail) atomic_load_explicit(&(mail)->attention, memory_order_relaxed)
    #define aiflow_posted(mail) atomic_load_explicit(&(mail)->posted, memory_order_relaxed)
    #define aiflow_wanted(mail) atomic_load_explicit(&(mail)->wanted, memory_order_relaxed)
    #define aiflow_generation(mail) atomic_load_explicit(&(mail)->generation, memory_order_relaxed)
    #define aiflow_set(field, value) atomic_store(&(field), (value))
    #define aiflow_lock(mail) pthread_mutex_lock(&(mail)->lock)
    #define aiflow_unlock(mail) pthread_mutex_unlock(&(mail)->lock)
    #define aiflow_prefetch(p) __builtin_prefetch(p)
    static inline unsigned int aiflow_as_lcore(unsigned int lcore)
    {
        unsigned int was = RTE_PER_LCORE(_lcore_id);

        RTE_PER_LCORE(_lcore_id) = lcore;
        return was;
    }
    """
    int aiflow_attention(af_mail *mail) noexcept nogil
    int aiflow_posted(af_mail *mail) noexcept nogil
    int aiflow_wanted(af_mail *mail) noexcept nogil
    uint64_t aiflow_generation(af_mail *mail) noexcept nogil
    void aiflow_set(int field, int value) noexcept nogil
    void aiflow_lock(af_mail *mail) noexcept nogil
    void aiflow_unlock(af_mail *mail) noexcept nogil
    void aiflow_prefetch(const void *p) noexcept nogil
    unsigned int aiflow_as_lcore(unsigned int lcore) noexcept nogil
    unsigned int rte_lcore_id() noexcept nogil
    int sched_getcpu() noexcept nogil

DROPS = ("ok", "runt", "length", "mtu", "header", "foreign", "vlan", "kind", "dst_mac", "broadcast", "segments", "crc",
         "session", "src_mac", "path", "number", "replay", "duplicate", "not_granted", "element", "seq", "end", "size",
         "conflict", "manifest", "hello", "report", "busy")

FAULT_COUNTS = ("dropped", "burst", "down", "corrupted", "truncated", "repeated", "reordered", "delayed", "stalls",
                "overflow")

_loops = weakref.WeakSet()


cdef char *name_bytes(object name, char *out) except NULL:
    """Write a name as the wire carries it, NUL-terminated, into `out` (AF_NAME_BYTES bytes)."""
    cdef bytes encoded
    if not isinstance(name, str):
        raise ConfigError(f"a name is a str, not {type(name).__name__}: {name!r}")
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) >= AF_NAME_BYTES:
        raise ConfigError(f"the name {name!r} is longer than {AF_NAME_BYTES - 1} bytes: choose a shorter one")
    if b"\0" in encoded:
        raise ConfigError(f"the name {name!r} contains a NUL character: choose another")
    memset(out, 0, AF_NAME_BYTES)
    memcpy(out, <const char *>encoded, len(encoded))
    return out


cdef sample_rows(af_monitor *monitor, uint32_t nb_ports):
    """The two newest samples, each as (ns, a dict for each port); None before there are two."""
    cdef af_sample older, newer
    if not af_monitor_read(monitor, &older, &newer):
        return None
    return ((older.ns, [older.ports[i] for i in range(nb_ports)]),
            (newer.ns, [newer.ports[i] for i in range(nb_ports)]))


cdef void given_back(void *addr, void *opaque) noexcept nogil:
    """An agent's bytes are the agent's: nothing is to be freed."""


cdef rte_mbuf *adopted(rte_mbuf *m, rte_mempool *pool) noexcept nogil:
    """Move a frame of one segment into an mbuf of `pool`; NULL (and the frame is gone) when that is empty."""
    cdef rte_mbuf *copy = rte_pktmbuf_alloc(pool)
    if copy != NULL and m.nb_segs == 1:
        memcpy(rte_pktmbuf_mtod(copy), rte_pktmbuf_mtod(m), m.data_len)
        copy.data_len = m.data_len
        copy.pkt_len = m.data_len
        copy.ol_flags = m.ol_flags
    elif copy != NULL:
        rte_pktmbuf_free(copy)
        copy = NULL
    rte_pktmbuf_free(m)
    return copy


cdef class Loop:
    """Polls ports for one agent. Subclasses set `agent` and say what a post and an event are."""

    def __cinit__(self):
        cdef int rc = af_mail_init(&self.mail)
        if rc:
            raise PortError(f"no event descriptor to be had ({os.strerror(rc)}): close some files, or raise ulimit -n")
        self.has_mail = True
        self.last_cpu = -1
        self.lcore = -1
        self.lent.free_cb = given_back
        rte_mbuf_ext_refcnt_set(&self.lent, 1)  # ours: it never falls to 0
        self.requests = []
        self.faults = []
        self.guard = threading.Lock()
        self.attached_ports = [None] * PORTS
        self.port_names = [("", "")] * PORTS
        self.pid = os.getpid()
        self.stopped = True

    def __dealloc__(self):
        if self.has_mail:
            af_mail_free(&self.mail)

    # ---- control plane ----

    def start(self, name):
        """Begin to poll, in a daemon thread called `name`."""
        start_eal()  # in a forked child this raises, here rather than in the thread
        self.gate = gate()
        self.allowed_cpus = os.sched_getaffinity(0)
        self.stopped = False
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()
        _loops.add(self)

    def _main(self):
        try:
            register_thread()
            self.lcore = rte_lcore_id()
            af_idle_exact_timers()
            while not self.stopped:
                with nogil:
                    self.run()
                self._serve()
                af_mail_leave_turn(&self.mail)
        finally:
            self.stopped = True
            self._serve()
            unregister_thread()

    def _serve(self):
        """What the control plane asked for, between two iterations."""
        with self.guard:
            aiflow_set(self.mail.attention, 0)
            requests, self.requests = self.requests, []
        for call, result, done in requests:
            try:
                result.append((call(), None))
            except BaseException as error:
                result.append((None, error))
            done.set()

    def between(self, call):
        """Run `call` while no burst is under way, and return what it returns."""
        cdef list result = []
        if self.stopped or self.thread is None or os.getpid() != self.pid or threading.current_thread() is self.thread:
            return call()
        done = threading.Event()
        with self.guard:
            self.requests.append((call, result, done))
            aiflow_set(self.mail.attention, 1)
        af_mail_wake(&self.mail)
        while not done.wait(0.05):
            if not self.thread.is_alive():
                self._serve()
        value, error = result[0]
        if error is not None:
            raise error
        return value

    def stop(self):
        """End the thread; frames that were not sent yet are freed. Idempotent."""
        if os.getpid() != self.pid:
            return
        if self.thread is not None and not self.stopped:
            self.between(self._end)
            self.thread.join()
        _loops.discard(self)

    def settled(self):
        """Whether all that the agent had to say has been handed to the drivers. Between two iterations."""
        cdef uint32_t index
        cdef loop_port *port
        for index in range(self.nb_ports):
            port = &self.ports[index]
            if port.attached and (port.count or (port.lines[OUT] != NULL and port.lines[OUT].nb_held)):
                return False
        return True

    def _end(self):
        self.stopped = True
        for index in range(PORTS):
            self._free_staged(index)

    def pid_is_ours(self):
        """False in a forked child."""
        return os.getpid() == self.pid

    def tell(self):
        """Wake everybody who waits, as after an event."""
        self.ring()

    cdef void ring(self) noexcept nogil:
        aiflow_lock(&self.mail)
        af_mail_notify(&self.mail)
        aiflow_unlock(&self.mail)

    def check_process(self):
        """Raise when this is a forked child: the thread and the ports are the parent's."""
        if os.getpid() != self.pid:
            raise EalError("a forked child cannot use its parent's ports: start the child with multiprocessing's "
                           "'spawn' method and open a Sender or Receiver there")

    cdef int place_port(self, Port port, uint32_t peer, af_agent_port *out) except -1:
        """Give a port a place in the loop. Between two iterations."""
        cdef uint32_t index = 0
        cdef loop_port *slot
        cdef Mempool pool = self.tx_pool if self.tx_pool is not None else port.mempool
        cdef bytes mac = port.mac
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
        slot.pool = pool.ptr
        open_lines(slot, self.faults, index)
        slot.attached = True
        self.attached_ports[index] = port
        self.port_names[index] = (port.name, port.driver)
        self.nb_gated += port.gated
        if index >= self.nb_ports:
            self.nb_ports = index + 1
        memset(out, 0, sizeof(af_agent_port))
        memcpy(out.mac, <const char *>mac, 6)
        out.frame_size = <uint16_t>min(port.frame_size, 65000)
        out.rx_ring = port.rx_ring
        out.tx_window = port.tx_window
        out.kick = port.kick
        out.point_to_point = port.point_to_point
        out.peer = peer
        out.attached = True
        self._settle()
        return <int>index

    cdef void last_look(self, uint32_t index) noexcept nogil:
        """Take what a port has received already. Between two iterations, before it goes."""
        cdef loop_port *port = &self.ports[index]
        cdef int bursts = 0
        if port.gated:
            af_gate_enter(self.gate)
        while bursts < 64 and self.receive(port, index, af_now_ns()):
            bursts += 1
        if port.gated:
            af_gate_leave(self.gate)

    def index_of(self, Port port):
        """Where a port is in the loop, or -1."""
        for index in range(PORTS):
            if self.attached_ports[index] is port:
                return index
        return -1

    def _remove_port(self, Port port):
        """Forget a port; its index, or -1. Between two iterations."""
        index = self.index_of(port)
        if index >= 0:
            self._free_staged(index)
            self.nb_gated -= self.ports[index].gated
            self.ports[index].attached = False
            self.attached_ports[index] = None
            self._settle()
        return index

    def _settle(self):
        """Poll from the ports' own NUMA node."""
        if threading.current_thread() is self.thread:
            settle([port.socket_id for port in self.attached_ports if port is not None], self.allowed_cpus)

    def _free_staged(self, int index):
        cdef loop_port *port = &self.ports[index]
        if port.attached:
            if port.count:
                rte_pktmbuf_free_bulk(&port.staged[port.head], port.count)
            port.head = port.count = 0
            rte_pktmbuf_free(port.spare)
            port.spare = NULL
            close_lines(port, self.fault_sums)

    cdef set_faults(self, faults):
        """`faults=` of a Sender or Receiver, before any port is attached: see `aiflow.config.FAULTS`."""
        self.faults = parse_faults(faults)

    def fault_counts(self):
        """How many frames the fault shim has dropped, corrupted, …: a dict."""
        cdef uint64_t sums[AF_NB_FAULTS]
        memcpy(sums, self.fault_sums, sizeof(sums))
        for index in range(PORTS):
            for way in range(2):
                if self.ports[index].lines[way] != NULL:
                    for kind in range(AF_NB_FAULTS):
                        sums[kind] += self.ports[index].lines[way].counts[kind]
        counts = dict(zip(FAULT_COUNTS, sums, strict=True))
        counts["dropped"] += sum(counts[kind] for kind in ("burst", "down", "overflow"))
        return counts

    def cpu(self):
        """The CPU that the loop ran on last, or None."""
        return self.last_cpu if self.last_cpu >= 0 else None

    def busy_iterations(self):
        """Iterations of the loop so far: for tests of its idle cost."""
        return self.iterations

    @property
    def thread_id(self):
        """The worker's, as the kernel numbers it."""
        return self.thread.native_id

    @property
    def driven(self):
        """How often a thread that waited has driven the loop by itself."""
        return self.mail.driven

    @property
    def max_cores(self):
        """The most processor time that it takes, in cores; None: no limit. To be set before `start`."""
        return self.quota.cores or None

    @max_cores.setter
    def max_cores(self, cores):
        self.quota.cores = 0.0 if cores is None else cores

    @property
    def rests(self):
        """How often it has paused for the sake of `max_cores`."""
        return self.quota.rests

    # ---- waiting threads ----

    @property
    def generation(self):
        """Goes up with every event that somebody may be waiting for."""
        return self.mail.generation

    @property
    def event_fd(self):
        """Readable after an event, once `arm` was called: for event loops."""
        return self.mail.event_fd

    def arm(self):
        """Make events readable on `event_fd` from now on."""
        aiflow_set(self.mail.armed, 1)

    def drain(self):
        """Empty `event_fd`."""
        af_mail_drain(&self.mail)

    def wait(self, uint64_t seen, double seconds):
        """Until the generation is not `seen` any more, or for `seconds`. Releases the GIL; no signal ends it.

        The calling thread drives the loop itself where it can: nobody has to be woken then, at either end.
        """
        cdef uint64_t ns = <uint64_t>(max(seconds, 0.0) * 1e9)
        cdef uint64_t begin
        with nogil:
            # The control plane's turn is the worker's: to ask for it again and again would keep it away.
            if not self.stopped and not aiflow_attention(&self.mail) and af_mail_take_turn(&self.mail):
                begin = af_now_ns()
                if self.drive(seen, begin + ns):
                    aiflow_set(self.mail.left, 1)
                af_mail_leave_turn(&self.mail)
                if af_mail_is_wanted(&self.mail) or self.now - begin > <uint64_t>AF_PARK_MOST_NS:
                    af_mail_wake(&self.mail)
            else:
                aiflow_set(self.mail.wanted, 1)
                if aiflow_posted(&self.mail):
                    af_mail_wake(&self.mail)
                af_mail_wait(&self.mail, seen, ns)

    # ---- the loop ----

    cdef void collect(self, uint64_t now) noexcept nogil:
        """Take what was posted. Loop thread."""

    cdef void publish(self) noexcept nogil:
        """Hand over what the agent has finished. Loop thread, the mail's lock held."""

    cdef bint unfinished(self) noexcept nogil:
        """Is there work that will not wait? With the turn."""
        return False

    cdef bint busy_ports(self) noexcept nogil:
        """Do frames wait for a driver to take them? With the turn."""
        cdef uint32_t i
        for i in range(self.nb_ports):
            if self.ports[i].attached and self.ports[i].count:
                return True
        return False

    cdef void run(self) noexcept nogil:
        """Drive the loop until the control plane wants attention; returns with the turn. The worker."""
        cdef uint64_t driven = self.mail.driven, park_ns = AF_PARK_FIRST_NS, sleep_ns
        self.now = af_now_ns()
        while True:
            if driven != self.mail.driven and not af_mail_is_wanted(&self.mail):
                driven = self.mail.driven
                if park_ns > 2 * <uint64_t>AF_PARK_MOST_NS:
                    park_ns = AF_PARK_FIRST_NS  # it had driven on and on, and now has gone
                park_ns = min(park_ns, <uint64_t>AF_PARK_MOST_NS)
                af_mail_park(&self.mail, &park_ns)
                continue
            if not af_mail_take_turn(&self.mail):
                if aiflow_attention(&self.mail):
                    park_ns = AF_PARK_FIRST_NS
                af_mail_park(&self.mail, &park_ns)
                continue
            if aiflow_attention(&self.mail):
                return
            if driven != self.mail.driven:
                af_idle_begin(&self.idle, af_now_ns())
                driven = self.mail.driven
            aiflow_set(self.mail.left, 0)
            park_ns = AF_PARK_FIRST_NS
            self.last_cpu = sched_getcpu()
            af_quota_begin(&self.quota)
            sleep_ns = 0
            while sleep_ns == 0 and not aiflow_attention(&self.mail):
                if self.iterate():
                    continue
                if aiflow_wanted(&self.mail):
                    break
                sleep_ns = af_idle_turn(&self.idle, self.now)
                self.now = af_now_ns()
            if aiflow_attention(&self.mail):
                return
            af_mail_leave_turn(&self.mail)
            if sleep_ns:
                af_mail_sleep(&self.mail, sleep_ns)
            else:
                aiflow_set(self.mail.wanted, 0)
                self.ring()
                af_mail_park(&self.mail, &park_ns)
            self.now = af_now_ns()

    cdef bint drive(self, uint64_t seen, uint64_t until) noexcept nogil:
        """Drive the loop until the generation is not `seen` any more; is there more to do? A caller with the turn."""
        cdef unsigned int lcore = aiflow_as_lcore(self.lcore)
        cdef unsigned long slack_ns = 0
        cdef uint64_t sleep_ns
        self.last_cpu = sched_getcpu()
        af_quota_begin(&self.quota)
        self.now = af_now_ns()
        if aiflow_posted(&self.mail) or not self.in_vain:
            af_idle_begin(&self.idle, self.now)  # not when it goes on waiting
        while aiflow_generation(&self.mail) == seen and not self.stopped and not aiflow_attention(&self.mail):
            if self.iterate():
                continue
            if self.now >= until:
                break
            if self.spins:
                af_idle_spin()
            else:
                sleep_ns = af_idle_turn(&self.idle, self.now)
                if sleep_ns:
                    if slack_ns == 0:
                        slack_ns = af_idle_exact_timers()
                    af_mail_sleep(&self.mail, min(sleep_ns, until - self.now))
            self.now = af_now_ns()
        if slack_ns:
            af_idle_timers_as(slack_ns)
        self.in_vain = aiflow_generation(&self.mail) == seen
        self.mail.driven += 1
        aiflow_as_lcore(lcore)
        return self.unfinished() or self.busy_ports()

    cdef void push(self) noexcept nogil:
        """Let what was posted begin its way now, and no sooner wake the worker than there is something left for it."""
        cdef unsigned int lcore
        if self.stopped or aiflow_attention(&self.mail) or not af_mail_take_turn(&self.mail):
            af_mail_wake(&self.mail)
            return
        lcore = aiflow_as_lcore(self.lcore)
        af_quota_begin(&self.quota)
        self.now = af_now_ns()
        self.iterate()  # it is taken in …
        self.iterate()  # … and its first frames go out
        self.mail.driven += 1
        aiflow_as_lcore(lcore)
        if self.unfinished() or self.busy_ports() or self.mail.armed:
            aiflow_set(self.mail.left, 1)
        af_mail_leave_turn(&self.mail)
        if af_mail_is_wanted(&self.mail):
            af_mail_wake(&self.mail)

    cdef int iterate(self) noexcept nogil:
        """One iteration: a burst in and a burst out of every port. Returns what was done; with the turn."""
        cdef uint32_t i
        cdef uint64_t rest_ns
        cdef int work = 0
        if self.quota.cores > 0:
            rest_ns = af_quota_rest(&self.quota, self.now)
            if rest_ns:
                af_mail_rest(&self.mail, rest_ns)
                self.now = af_now_ns()
        self.iterations += 1
        if aiflow_posted(&self.mail):
            aiflow_set(self.mail.posted, 0)
            self.collect(self.now)
            work = BURST
        if self.nb_gated:
            af_gate_enter(self.gate)
        for i in range(self.nb_ports):
            if self.ports[i].attached:
                work += self.poll(i, self.now)
        if self.nb_gated:
            af_gate_leave(self.gate)
        self.now = af_now_ns()
        if self.agent.tick(self.agent.state, self.now):
            aiflow_lock(&self.mail)
            self.publish()
            af_mail_notify(&self.mail)
            aiflow_unlock(&self.mail)
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
            # A short burst is normal: the rest keeps its place in the line.
            nb_tx = rte_eth_tx_burst(port.port_id, 0, &port.staged[port.head], port.count)
            port.head += nb_tx
            port.count -= nb_tx
            if port.count and self.agent.tail != NULL:
                self.make_own(port)
        return nb_rx + nb_tx

    cdef int receive(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil:
        """One burst in."""
        cdef rte_mbuf *pkts[BURST]
        cdef rte_mbuf *m
        cdef uint16_t nb_rx = rte_eth_rx_burst(port.port_id, 0, pkts, BURST)
        cdef uint16_t i, nb_free = 0
        if port.lines[IN] != NULL:
            nb_rx = impaired(port, pkts, nb_rx, now)
        for i in range(nb_rx):
            m = pkts[i]
            if i + 1 < nb_rx:
                aiflow_prefetch(rte_pktmbuf_mtod(pkts[i + 1]))
            if port.adopt != NULL:
                m = adopted(m, port.adopt)
                if m == NULL:
                    port.rx_nombuf += 1
                    continue
            if m.nb_segs != 1:
                self.unseen[0] += 1
            elif m.ol_flags & RTE_MBUF_F_RX_VLAN:
                self.unseen[1] += 1
            elif self.agent.on_frame(self.agent.state, index, now, rte_pktmbuf_mtod(m), m.data_len, m):
                continue
            pkts[nb_free] = m
            nb_free += 1
        if nb_free:
            rte_pktmbuf_free_bulk(pkts, nb_free)
        return nb_rx

    cdef void stage(self, loop_port *port, uint32_t index, uint64_t now) noexcept nogil:
        """Fill the port's staging ring with what the agent has to send."""
        cdef rte_mbuf *m
        cdef uint32_t size
        cdef uint16_t i
        if port.head and port.count:
            for i in range(port.count):
                port.staged[i] = port.staged[port.head + i]
        port.head = 0
        while port.count < BURST:
            if port.lines[OUT] != NULL:
                m = <rte_mbuf *>af_line_leave(port.lines[OUT], now)
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
            size = self.agent.next_frame(self.agent.state, index, now, rte_pktmbuf_mtod(m))
            if size == 0:
                return
            m.data_len = <uint16_t>size
            m.pkt_len = size
            port.spare = NULL
            if port.lines[OUT] != NULL:
                impair(port.lines[OUT], m, now)
                continue
            if self.agent.tail != NULL and self.agent.tail.nbytes:
                self.refer(m, self.agent.tail)
            port.staged[port.count] = m
            port.count += 1

    cdef void refer(self, rte_mbuf *m, const af_span *tail) noexcept nogil:
        """Let the end of a frame be bytes of the agent's: the driver's copy of them is the only one."""
        cdef rte_mbuf *reference = rte_pktmbuf_alloc(self.references.ptr)
        cdef uint16_t nbytes = <uint16_t>tail.nbytes
        m.data_len -= nbytes
        if reference == NULL:
            memcpy(rte_pktmbuf_mtod(m) + m.data_len, tail.ptr, nbytes)
            m.data_len += nbytes
            return
        rte_mbuf_ext_refcnt_update(&self.lent, 1)
        rte_pktmbuf_attach_extbuf(reference, <void *>tail.ptr, RTE_BAD_IOVA, nbytes, &self.lent)
        reference.data_len = nbytes
        m.next = reference
        m.nb_segs = 2

    cdef void make_own(self, loop_port *port) noexcept nogil:
        """Copy what the driver did not take: the agent's bytes may be gone before its next burst."""
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
                rte_pktmbuf_free(reference)


@atexit.register
def _stop_all():
    """No loop may poll while the interpreter takes itself apart."""
    for loop in list(_loops):
        loop.stop()
