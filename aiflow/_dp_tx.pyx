"""Data plane of a Sender: a caller posts slices, the loop sends them, and the caller waits for the end of each."""

import os
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from aiflow._core cimport (
    AF_NB_DROPS, AF_NB_TX_WAITS, AF_OTHERS, AF_REFER_ALL, AF_REFER_OWNED, AF_SENDS, af_agent_port, af_handoff,
    af_handoff_post, af_now_ns, af_pace_reset, af_tx, af_tx_begin, af_tx_detach, af_tx_due, af_tx_ended, af_tx_enqueue,
    af_tx_fail_all, af_tx_init, af_tx_is_pressed, af_tx_load, af_tx_next_frame, af_tx_on_frame, af_tx_owns, af_tx_port,
    af_tx_slice, af_tx_tick, af_tx_wait_name,
)
from aiflow._dp_agent cimport MOST_MACHINES, Agent, agent_counts, chrono_ns, name_bytes, sample_rows, session_numbers
from aiflow._dp_driver cimport aiflow_lock, aiflow_set, aiflow_unlock
from aiflow._dp cimport Loop
from aiflow._dp_outgoing cimport Outgoing, of_buffers, of_rows
from aiflow._eal cimport Mempool, Port
from aiflow._dp_counters import added
from aiflow._dp_outgoing import CANCELLED
from aiflow._system import threads
from aiflow._wire import DROPS
from aiflow.errors import ConfigError

MOST_RECEIVERS = MOST_MACHINES
WAITS = tuple([af_tx_wait_name(wait).decode() for wait in range(AF_NB_TX_WAITS)])  # of the C table


# What the loop shares with the callers that post.
cdef struct sender_side:
    af_tx *tx[MOST_MACHINES]   # a state machine for each receiver
    uint32_t nb
    af_handoff *handoff        # its lock guards the inbox
    af_tx_slice *inbox         # slices that were posted
    af_tx_slice **inbox_tail


cdef void collect(void *side, uint64_t now) noexcept nogil:
    cdef sender_side *sender = <sender_side *>side
    cdef af_tx_slice *s
    cdef af_tx_slice *following
    aiflow_lock(sender.handoff)
    s = sender.inbox
    sender.inbox = NULL
    sender.inbox_tail = &sender.inbox
    aiflow_unlock(sender.handoff)
    while s != NULL:
        following = s.next
        af_tx_enqueue(sender.tx[s.receiver], s)
        s = following


cdef void publish(void *side) noexcept nogil:
    """Nothing: callers read the state of a slice."""


cdef bint unfinished(void *side) noexcept nogil:
    cdef sender_side *sender = <sender_side *>side
    cdef uint32_t i
    for i in range(sender.nb):
        if af_tx_is_pressed(sender.tx[i]):
            return True
    return False


cdef class TxAgent(Agent):
    """A Sender's agent: a state machine for each receiver.

    Parameters
    ----------
    name : str
        The Sender's own name.
    to : list of str
        The wanted receivers; [""] for the only one that answers.
    nb_expected : int
        Ports that were asked for: discovery waits for all of them where it can.
    peer_timeout : float
        Seconds of silence after which a receiver is lost.
    fixed_frame_size : bool
        A path with smaller frames than the port's is an error; otherwise the slice is sent in smaller frames.
    pace_of : callable, optional
        (index, port) → `aiflow._policy.flow_control.Pace`, which configures the port's pacer. None: credit alone.
    interval : float
        Seconds between two samples for the monitor; 0: none.
    """

    cdef sender_side side
    cdef af_tx *tx      # the first state machine
    cdef af_tx_ended sends  # slices that have ended; the loop writes
    cdef set in_flight  # Outgoing objects that may not have ended
    cdef object pace_of
    cdef object guard   # `_fail_all` runs once at a time
    cdef public object on_end  # called with each Outgoing that has ended; None: nothing is
    cdef bint death     # set by `note_death`, until ports are detached or attached

    def __cinit__(self):
        self.side.inbox_tail = &self.side.inbox
        self.in_flight = set()
        self.guard = threads.unpatched("threading").Lock()
        self.user.side = &self.side
        self.user.collect = collect
        self.user.publish = publish
        self.user.unfinished = unfinished

    def __init__(self, name, list to, nb_expected, peer_timeout, fixed_frame_size=False, pace_of=None, interval=0.1):
        cdef af_tx *tx
        if not 1 <= len(to) <= MOST_RECEIVERS:
            raise ConfigError(f"{len(to)} receivers: a Sender has 1 to {MOST_RECEIVERS}")
        for receiver in to:
            tx = <af_tx *>calloc(1, sizeof(af_tx))
            if tx == NULL or af_tx_init(tx):
                free(tx)
                raise MemoryError("no memory for a sender's state")
            self.side.tx[self.side.nb] = tx
            self.side.nb += 1
            name_bytes(name, tx.name)
            name_bytes(receiver, tx.to)
            tx.instance = int.from_bytes(os.urandom(6), "big") << 16
            tx.numbers = session_numbers()
            tx.sends = &self.sends
            tx.peer_timeout_ns = int(peer_timeout * 1e9)
            tx.clock_offset_ns = time.time_ns() - time.monotonic_ns()
            tx.nb_expected = nb_expected
            tx.fixed_frame_size = fixed_frame_size
            tx.sampler.interval_ns = int(interval * 1e9)
            self._add_machine(self.side.nb - 1)
        self.pace_of = pace_of
        self.tx = self.side.tx[0]

    cdef void _add_machine(self, uint32_t i) noexcept:
        self.machines[i].state = self.side.tx[i]
        self.machines[i].role = AF_SENDS
        self.machines[i].instance = self.side.tx[i].instance
        self.machines[i].tail = &self.side.tx[i].tail
        self.machines[i].on_frame = af_tx_on_frame
        self.machines[i].next_frame = af_tx_next_frame
        self.machines[i].tick = af_tx_tick
        self.machines[i].due = af_tx_due
        self.machines[i].owns = af_tx_owns
        self.machines[i].load = af_tx_load
        self.nb_machines = i + 1

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.side.nb):
            free(self.side.tx[i].retransmit)
            free(self.side.tx[i])

    # ---- control plane ----

    @property
    def role(self):
        """Which end of the flow it is."""
        return "sender"

    def join(self, loop):
        self.side.handoff = &(<Loop?>loop).handoff
        Agent.join(self, loop)

    def prepare(self, Port port):
        """Make what `attach` needs. In any thread, before it."""
        cdef Loop loop = <Loop?>self.loop
        if loop.by_reference(port):
            # A burst, and the rest lies in caches. A card keeps them until it has sent.
            wanted = 4095 if port.lends else 255
            pool = loop.references
            if pool is None or pool.nb_mbufs < wanted:
                loop.references = Mempool("references", wanted, 64, -1, True)
            if pool is not None and pool is not loop.references:
                loop._keep(pool)  # frames of it are out
        pool = self.loop.tx_pool
        if pool is not None and pool.data_room < port.frame_size:  # it was made for feedback alone
            own = pool.own_memory and not port.needs_eal_memory
            self.loop.tx_pool = Mempool(f"tx-{port.frame_size}", 3071, port.frame_size, -1, own)

    def attach(self, Port port, uint32_t peer):
        cdef af_agent_port place
        cdef int index = self.place(port, False, &place)
        cdef af_tx_port *slot
        cdef uint32_t i
        if self.loop.by_reference(port):
            place.by_reference = AF_REFER_OWNED if port.lends else AF_REFER_ALL
        for i in range(self.side.nb):
            slot = &self.side.tx[i].ports[index]
            memset(slot, 0, sizeof(af_tx_port))
            slot.p = place
            slot.path_size = place.frame_size
            slot.attached_ns = af_now_ns()
            self.side.tx[i].death_unreported = False
            self.death = False
            if self.pace_of is not None:
                pace = self.pace_of(index, port)
                slot.pace.rate_based = pace.rate_based
                slot.pace.frame_ns = pace.frame_ns
                slot.pace.byte_ns = pace.byte_ns
                slot.pace.slack_ns = pace.burst_ns
                slot.pace.gain = pace.gain
                slot.pace.threshold = pace.threshold
                af_pace_reset(&slot.pace)
            if <uint32_t>index >= self.side.tx[i].nb_ports:
                self.side.tx[i].nb_ports = index + 1
        self.loop.send_from(self.line_of[index])
        self.plug(index, NULL)

    def set_joining(self, bint joining):
        """While a receiver opens ports for us, its silence does not count."""
        cdef uint32_t i
        for i in range(self.side.nb):
            aiflow_set(self.side.tx[i].joining, joining)

    def note_death(self):
        """The ports that are detached next lead to a receiver that has died.

        A slice in flight fails because of it. The next slice fails alike when no receiver is there, so that the result
        does not depend on the moment of the post.
        """
        self.death = True

    def detach(self, ports):
        """Use these ports no more. Between two iterations."""
        cdef uint32_t i
        cdef af_tx *tx
        for i in range(self.side.nb):
            tx = self.side.tx[i]
            tx.death_unreported = self.death and tx.open and tx.first_id == tx.next_id
        for port in ports:
            index = self.index_of(port)
            if index >= 0:
                self.loop.last_look(self.line_of[index])  # the last feedback may acknowledge everything
                self._detach_port(port)
                for i in range(self.side.nb):
                    af_tx_detach(self.side.tx[i], index, af_now_ns())
        for i in range(self.side.nb):
            self.side.tx[i].death_unreported &= not self.side.tx[i].open
        self.death = False
        self.tell()

    def post(self, list buffers, bytes manifest, plan, uint32_t receiver=0, bint wait=False, list into=None):
        """Send a slice of which each buffer is an element; returns its Outgoing.

        Parameters
        ----------
        buffers : list
            C-contiguous buffers, in the manifest's order.
        manifest : bytes
            See include/aiflow/wire/manifest.h.
        plan : aiflow.scheduler.Plan
            The share of each port.
        receiver : int
            Index of its receiver in `to`.
        wait : bool
            The caller waits for it next, and drives the loop: the worker need not be woken.
        into : list, optional
            The posted parts of a slice, in the receivers' order. The Outgoing is appended, unless it is there already.
        """
        if into is not None and len(into) > <Py_ssize_t>receiver:
            return into[receiver]
        return self._post(of_buffers(buffers, manifest, self._lends(), self.pool), plan, receiver, wait, into)

    def post_rows(self, buffer, Py_ssize_t nb_rows, bytes manifest, plan, uint32_t receiver=0, bint wait=False,
                  list into=None):
        """Send a slice whose elements are the `nb_rows` equal rows of one C-contiguous buffer."""
        if into is not None and len(into) > <Py_ssize_t>receiver:
            return into[receiver]
        return self._post(of_rows(buffer, nb_rows, manifest, self._lends(), self.pool), plan, receiver, wait, into)

    cdef bint _lends(self):
        """Does a card that we send over read the memory of `aiflow.empty` where it lies?"""
        cdef uint32_t i
        for i in range(self.tx.nb_ports):
            if self.tx.ports[i].p.attached and self.tx.ports[i].p.by_reference == AF_REFER_OWNED:
                return True
        return False

    cdef _post(self, Outgoing out, plan, uint32_t receiver, bint wait, list into):
        cdef Loop loop = self.loop
        if receiver >= self.side.nb:
            raise ConfigError(f"receiver {receiver} of {self.side.nb}")
        out.loop = self
        out.tx = self.side.tx[receiver]
        out.s.receiver = receiver
        out.s.dispatch.ports = plan.port_mask
        out.s.dispatch.elements = plan.place == "elements"
        out.s.dispatch.shortest = plan.shortest
        out.s.dispatch.by_share = bool(plan.quotas)
        for index, quota in plan.quotas.items():
            out.s.dispatch.share_bytes[index] = quota
        out.s.posted_ns = af_now_ns()
        out.posted_at = time.monotonic()
        self.finish_ended()  # the last Python code before the post: a signal handler may post this part there
        if into is not None:
            if len(into) > <Py_ssize_t>receiver:
                return into[receiver]
            if self.side.nb > 1:
                out.s.whole = (<Outgoing?>into[0]).s.whole if into else af_tx_begin(self.side.nb, out.s.posted_ns)
            into.append(out)
        self.in_flight.add(out)
        aiflow_lock(self.side.handoff)
        out.s.next = NULL
        self.side.inbox_tail[0] = &out.s
        self.side.inbox_tail = &out.s.next
        aiflow_unlock(self.side.handoff)
        af_handoff_post(self.side.handoff)
        if not self.joined or self.loop.stopped:
            self._fail_all()
        elif not wait:
            with nogil:
                loop.push()
        return out

    def finish_ended(self):
        """Give back the buffers of slices that have ended."""
        for out in [other for other in list(self.in_flight) if other.done]:
            out.finish()

    def nudge(self):
        """Wake the loop to look at the inbox."""
        Agent.nudge(self)
        if self.stopped:
            self._fail_all()

    def forget(self, out):
        """Drop the reference to a slice that has ended."""
        if self.on_end is not None and out in self.in_flight:
            self.on_end(out)
        self.in_flight.discard(out)

    def close(self, double timeout):
        """Send BYE to the receivers, wait for their answers for at most `timeout` seconds, then leave the loop."""
        cdef uint32_t i
        if not self.loop.pid_is_ours():
            return
        until = time.monotonic() + timeout
        for i in range(self.side.nb):
            self.side.tx[i].closing = True
        while not self.stopped and time.monotonic() < until:
            if not any(self.side.tx[i].open and not self.side.tx[i].bye_heard for i in range(self.side.nb)):
                break
            self.wait(self.generation, 0.002)
        self.leave()
        self._fail_all()

    def _fail_all(self):
        """Fail every slice that has not ended: no loop drives them any more."""
        cdef uint32_t i
        with self.guard:
            collect(&self.side, af_now_ns())
            for i in range(self.side.nb):
                af_tx_fail_all(self.side.tx[i], CANCELLED, af_now_ns())
            self.tell()

    # ---- state and counters ----

    def begin_slice(self):
        """Note the counters of every port, and return two bit masks: the attached ports, and the usable ones."""
        cdef af_tx_port *slot
        cdef uint32_t i, k, attached = 0, usable = 0
        for i in range(self.nb_ports):
            if self.attached_ports[i] is not None:
                attached |= 1u << i
                for k in range(self.side.nb):
                    slot = &self.side.tx[k].ports[i]
                    slot.began[0] = slot.pn.seen
                    slot.began[1] = slot.arrived
                    usable |= <uint32_t>(slot.open and not slot.suspended) << i
        return attached, usable

    @property
    def receivers(self):
        """Names of the receivers that have joined."""
        return [self.last_receiver(i) for i in range(self.side.nb) if self.side.tx[i].open]

    def others(self, uint32_t receiver=0):
        """Names of receivers that answered although another was asked for."""
        names = [(<const char *>self.side.tx[receiver].others[i]).decode("utf-8", "replace")
                 for i in range(AF_OTHERS)]
        return [name for name in names if name]

    def rivals(self, uint32_t receiver=0):
        """(name, MAC) of receivers that compete: all of them answer, or one answers under the name of ours."""
        cdef af_tx *tx = self.side.tx[receiver]
        return [((<const char *>tx.rivals[i].name).decode("utf-8", "replace"), bytes(tx.rivals[i].mac[:6]).hex(":"))
                for i in range(2) if tx.rivals[i].epoch]

    def dropped(self, uint32_t receiver=0):
        """The receiver's most frequent reason to drop frames, and how many it has dropped; ("ok", 0) for none."""
        return DROPS[self.side.tx[receiver].drop], self.side.tx[receiver].nb_dropped

    def peer_free_bytes(self, uint32_t receiver=0):
        """Bytes that are free of the receiver's memory, by its newest feedback."""
        return self.side.tx[receiver].peer_free_bytes

    def last_receiver(self, uint32_t receiver=0):
        """Name of the last receiver that joined at this index, "" before the first."""
        return (<const char *>self.side.tx[receiver].receiver).decode("utf-8", "replace")

    @property
    def payload_bytes(self):
        """Bytes of payload in a full frame; 0 before the first receiver answered."""
        return self.tx.payload_bytes

    @property
    def busy(self):
        """Are there slices in flight or queued?"""
        return any(not out.done for out in list(self.in_flight))

    def outstanding(self):
        """Slices that have not ended."""
        return [out for out in list(self.in_flight) if not out.done]

    def ended(self):
        """How many slices are in flight, and sums over those that have ended: the parts of one count once."""
        sends = self.sends  # first: a slice that ends now must not count twice
        return len({<size_t>(<Outgoing>out).s.whole or id(out) for out in self.outstanding()}), sends

    def drops(self):
        """Frames not taken, by reason; and `tx_nombuf`: times that the pool had no mbuf for a frame to send."""
        cdef uint64_t sums[AF_NB_DROPS]
        cdef uint32_t i, k
        memset(sums, 0, sizeof(sums))
        for k in range(self.side.nb):
            for i in range(<uint32_t>AF_NB_DROPS):
                sums[i] += self.side.tx[k].drops[i]
        return self.not_taken(sums)

    def counters(self):
        """Feedback frames received (`reports`), probes sent, and spurious losses."""
        cdef af_tx *tx
        cdef uint32_t i, p
        counts = {"reports": 0, "probes": 0, "spurious": 0}
        for i in range(self.side.nb):
            tx = self.side.tx[i]
            counts["reports"] += tx.feedbacks
            counts["probes"] += tx.probes
            for p in range(tx.nb_ports):
                counts["spurious"] += tx.ports[p].pn.spurious
        return counts

    def peers(self):
        """Of each receiver: name, joined, free_bytes of its memory, waits (ns by `WAITS`), ended (sums)."""
        return [self._peer(i) for i in range(self.side.nb)]

    def _peer(self, uint32_t i):
        cdef af_tx *tx = self.side.tx[i]
        return {"name": self.last_receiver(i) or (<const char *>tx.to).decode("utf-8", "replace"),
                "joined": bool(tx.open), "free_bytes": tx.peer_free_bytes,
                "waits": dict(zip(WAITS, chrono_ns(&tx.waits))), "ended": tx.ended}

    cdef object count_port(self, uint32_t index, agent_counts *out):
        """Of all receivers together."""
        cdef af_tx_port *slot
        cdef uint32_t i
        dest_mac = None
        for i in range(self.side.nb):
            slot = &self.side.tx[i].ports[index]
            out.tx_frames += slot.count.tx_frames
            out.tx_bytes += slot.count.tx_bytes
            out.rx_frames += slot.count.rx_frames
            out.rx_bytes += slot.count.rx_bytes
            out.retransmits += slot.count.retransmits
            out.lost += slot.count.lost
            out.in_flight += slot.pn.in_flight
            out.window = max(out.window, slot.pn.limit)
            out.rtt_ns = max(out.rtt_ns, slot.pn.rtt_ns)
            out.gap_ns = max(out.gap_ns, slot.pace.gap_ns)
            out.signals += slot.pace.signals
            out.sent += slot.pn.seen
            out.arrived += slot.arrived
            out.sent_before += slot.began[0]
            out.arrived_before += slot.began[1]
            out.busy_ns = max(out.busy_ns, chrono_ns(&slot.flight)[1])
            out.usable |= slot.open and not slot.suspended
            dest_mac = dest_mac or (bytes(slot.dst[:6]) if slot.open else None)
        return dest_mac

    def samples(self):
        """The two newest samples for the monitor, (ns, a dict for each port); None before there are two."""
        cdef uint32_t i
        total = None
        for i in range(self.side.nb):
            pair = sample_rows(&self.side.tx[i].sampler, self.nb_ports)
            if pair is None:
                return None
            total = pair if total is None else added(total, pair)
        return total

    def answers(self):
        """For each attached port, the ports of receivers that answered it: (epoch, index)."""
        cdef af_tx_port *slot
        cdef uint32_t k
        found = {}
        for index, port in enumerate(self.attached_ports):
            if port is not None:
                found[index] = []
                for k in range(self.side.nb):
                    slot = &self.side.tx[k].ports[index]
                    found[index] += [(slot.candidates[i].epoch, slot.candidates[i].port)
                                     for i in range(slot.nb_candidates)]
        return found
