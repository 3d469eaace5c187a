"""An agent: the state machines of one Sender or Receiver, on the ports of a loop.

An agent numbers its own ports from 0: in the order in which the user lists them, other ports in the order in which they
come up. The loop has numbers of its own, because its ports may serve other agents, too.
"""

import os

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid
from aiflow._core cimport (
    AF_CHRONO_STATES, AF_MOST_AGENTS, AF_NAME_BYTES, AF_NB_DROPS, af_agent_port, af_chrono, af_chrono_read,
    af_demux_add, af_demux_plug, af_demux_remove, af_demux_unplug, af_handoff_post, af_handoff_wake, af_now_ns,
    af_numbers, af_numbers_init, af_sample, af_sampler, af_sampler_read, af_shared,
)
from aiflow._dp cimport Loop
from aiflow._dp_frame cimport CHAINED, TAGGED
from aiflow._dp_port cimport PORTS
from aiflow._eal cimport Port
from aiflow._eal_sharing cimport Sharing
from aiflow._dp_counters import PortCounters
from aiflow._wire import DROPS
from aiflow.errors import ConfigError, PortError


cdef af_numbers process_numbers
cdef uint64_t[2] numbers_seed = [int.from_bytes(os.urandom(8), "big"), int.from_bytes(os.urandom(8), "big")]
af_numbers_init(&process_numbers, numbers_seed)


cdef af_numbers *session_numbers() noexcept:
    """The numbers of all sessions of this process."""
    return &process_numbers


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


cdef sample_rows(af_sampler *sampler, uint32_t nb_ports):
    """The two newest samples, each as (ns, a dict for each port); None before there are two."""
    cdef af_sample older, newer
    if not af_sampler_read(sampler, &older, &newer):
        return None
    return ((older.ns, [older.ports[i] for i in range(nb_ports)]),
            (newer.ns, [newer.ports[i] for i in range(nb_ports)]))


cdef list chrono_ns(af_chrono *chrono):
    """Nanoseconds in each state of a chronograph until now."""
    cdef uint64_t ns[AF_CHRONO_STATES]
    af_chrono_read(chrono, af_now_ns(), ns)
    return [ns[i] for i in range(<uint32_t>AF_CHRONO_STATES)]


cdef class Agent:
    """A Sender's or Receiver's state machines. Subclasses make them, and define posts and events."""

    def __cinit__(self):
        self.attached_ports = [None] * PORTS
        self.places = {}
        self.port_names = [("", "")] * PORTS

    # ---- on and off a loop ----

    def join(self, Loop loop):
        """Be driven by this loop from now on. Its ports come by `attach`."""
        self.loop = loop
        loop.between(self._join)

    def _join(self):
        cdef uint32_t i
        if self.loop.demux.nb + self.nb_machines > <uint32_t>AF_MOST_AGENTS:
            raise ConfigError(f"{AF_MOST_AGENTS} senders and receivers share these ports already, where each receiver "
                              "that a Sender names counts: close one, or open other ports")
        for i in range(self.nb_machines):
            af_demux_add(&self.loop.demux, &self.machines[i])
        self.loop.users[self.loop.nb_users] = &self.user
        self.loop.nb_users += 1
        self.loop.agents.append(self)
        self.joined = True

    def leave(self):
        """Be driven no more: the state machines are at rest when it returns. Idempotent."""
        if self.loop is not None and self.joined:
            self.loop.between(self._leave)

    def _leave(self):
        cdef uint32_t i, k
        if not self.joined:
            return
        for port in self.attached_ports:
            if port is not None:
                self._detach_port(port)  # the machines keep their paths: a slice's end is the caller's
        for i in range(self.nb_machines):
            af_demux_remove(&self.loop.demux, &self.machines[i])
        for i in range(self.loop.nb_users):
            if self.loop.users[i] == &self.user:
                self.loop.nb_users -= 1
                for k in range(i, self.loop.nb_users):
                    self.loop.users[k] = self.loop.users[k + 1]
                break
        self.loop.agents.remove(self)
        self.joined = False

    # ---- its ports. Between two iterations ----

    cdef int place(self, Port port, bint shares, af_agent_port *out) except -1:
        """Give an open port of the loop a place here; returns its index. `plug` lets frames in.

        shares: this agent's memory was passed to the peer, if it is on this host.
        """
        cdef uint32_t index = self.places.get(port.name.partition("@")[0], 0)  # after "@": which of several peers
        cdef bytes mac = port.mac
        cdef int line = self.loop.index_of(port)
        if line < 0:
            raise PortError(f"{port.name} was closed a moment ago")
        if self.attached_ports[index] is not None:
            if None not in self.attached_ports:
                raise PortError(f"{port.name} would be port {PORTS + 1} of one endpoint: {PORTS} is the most")
            index = self.attached_ports.index(None)
        self.line_of[index] = line
        self.attached_ports[index] = port
        self.port_names[index] = (port.name, port.driver)
        if index >= self.nb_ports:
            self.nb_ports = index + 1
        memset(out, 0, sizeof(af_agent_port))
        memcpy(out.mac, <const char *>mac, 6)
        out.frame_size = <uint16_t>min(port.frame_size, 65000)
        out.rx_ring = port.rx_ring
        out.tx_window = port.tx_window
        out.kick = port.kick
        out.point_to_point = port.point_to_point
        if port.sharing is not None:
            out.shared = <af_shared *>&(<Sharing?>port.sharing).shared
            if shares:
                out.writer = (<Sharing>port.sharing).writer
        out.attached = True
        return <int>index

    cdef void plug(self, int index, void *adopt) noexcept:
        """Frames of the port at `index` come from now on; they move into the pool `adopt` unless it is NULL."""
        cdef uint32_t i
        cdef int line = self.line_of[index]
        for i in range(self.nb_machines):
            af_demux_plug(&self.loop.demux, line, &self.machines[i], index, adopt)
        self.loop.ports[line].nb_adopting = self.loop.demux.lines[line].nb_adopting

    def index_of(self, Port port):
        """Its own index of a port, or -1."""
        for index in range(<uint32_t>PORTS):
            if self.attached_ports[index] is port:
                return index
        return -1

    @property
    def role(self):
        """Which end of the flow it is: "sender" or "receiver"."""
        return ""

    @property
    def memory(self):
        """Fields of the `aiflow._ports.memories.Memory` that it shares with senders on this host, or None."""

    def prepare(self, Port port):
        """Make what `attach` needs. In any thread, before it."""

    def attach(self, Port port, uint32_t peer):
        """Use an open port of the loop from now on. Between two iterations."""

    def detach(self, ports):
        """Use these ports no more. Between two iterations."""

    def _detach_port(self, Port port):
        """Use a port no more; returns its index, or -1. Between two iterations."""
        cdef uint32_t i
        cdef int index = self.index_of(port)
        if index < 0:
            return -1
        for i in range(self.nb_machines):
            af_demux_unplug(&self.loop.demux, self.line_of[index], &self.machines[i])
        self.loop.ports[self.line_of[index]].nb_adopting = self.loop.demux.lines[self.line_of[index]].nb_adopting
        self.attached_ports[index] = None
        return index

    # ---- its loop ----

    @property
    def stopped(self):
        """Is it on no loop that runs?"""
        return not self.joined or self.loop.stopped

    @property
    def generation(self):
        """Number of events of the loop so far."""
        return self.loop.handoff.generation

    def wait(self, uint64_t seen, double seconds):
        """Wait for an event of the loop: see `LoopDriver.wait`."""
        self.loop.wait(seen, seconds)

    def tell(self):
        """Wake all callers that wait for the loop."""
        self.loop.tell()

    def check_process(self):
        """Raise when this is a forked child."""
        if getpid() != self.loop.pid:
            self.loop.check_process()

    def pid_is_ours(self):
        """False in a forked child."""
        return getpid() == self.loop.pid

    def nudge(self):
        """Wake the loop to look at what was posted."""
        af_handoff_post(&self.loop.handoff)
        af_handoff_wake(&self.loop.handoff)

    # ---- counters ----

    cdef object count_port(self, uint32_t index, agent_counts *out):
        """Write what the agent counts of a port, and return the address that its path leads to, or None."""

    def port_counters(self):
        """Counters of every attached port: a list of `PortCounters`, for the monitor and the port table."""
        cdef agent_counts counts
        cdef uint32_t index
        rows = []
        for index in range(<uint32_t>PORTS):
            port = self.attached_ports[index]
            if port is not None:
                memset(&counts, 0, sizeof(counts))
                dest_mac = self.count_port(index, &counts)
                rows.append(PortCounters(number=index, port_id=port.port_id, name=port.name, driver=port.driver,
                                         dest_mac=dest_mac, rx_nombuf=self.loop.ports[self.line_of[index]].rx_nombuf,
                                         by_reference=self.loop.ports[self.line_of[index]].by_reference,
                                         tx_nombuf=self.loop.ports[self.line_of[index]].tx_nombuf, **<dict>counts))
        return rows

    cdef dict not_taken(self, const uint64_t *drops):
        """Frames not taken, by reason: `drops` are the agent's, and the loop's never reach an agent."""
        cdef uint32_t i
        counts = {DROPS[i]: drops[i] for i in range(1, <uint32_t>AF_NB_DROPS)}
        counts["segments"] += self.loop.unseen[CHAINED]
        counts["vlan"] += self.loop.unseen[TAGGED]
        counts["rx_nombuf"] = self.loop.rx_nombuf + sum([self.loop.ports[i].rx_nombuf for i in range(<uint32_t>PORTS)])
        counts["tx_nombuf"] = self.loop.tx_nombuf + sum([self.loop.ports[i].tx_nombuf for i in range(<uint32_t>PORTS)])
        return counts
