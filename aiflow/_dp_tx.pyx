"""Data plane of a Sender: slices are posted, the loop sends them, and the caller that posted one waits for its end."""

import os
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from aiflow._core cimport (
    AF_MULTI_MOST, AF_TAIL_LEAST, af_agent_port, af_handoff_wake, af_multi, af_multi_next_frame, af_multi_on_frame,
    af_multi_tick, af_now_ns, af_pace_reset, af_tx, af_tx_detach, af_tx_enqueue, af_tx_fail_all, af_tx_init,
    af_tx_is_pressed, af_tx_next_frame, af_tx_on_frame, af_tx_port, af_tx_slice, af_tx_tick,
)
from aiflow._dp cimport Loop, name_bytes, sample_rows
from aiflow._dp_driver cimport aiflow_lock, aiflow_set, aiflow_unlock
from aiflow._dp_frame cimport CHAINED, TAGGED
from aiflow._dp_outgoing cimport Outgoing, of_buffers, of_rows
from aiflow._eal cimport Mempool, Port
from aiflow._dp import DROPS
from aiflow._dp_outgoing import CANCELLED
from aiflow.errors import ConfigError

MOST_RECEIVERS = AF_MULTI_MOST


def _added(one, other):
    """Two receivers' samples as one: they are taken in the same tick."""
    return tuple((ns, [{key: port[key] + theirs[key] for key in port} for port, theirs in zip(ports, others)])
                 for (ns, ports), (_, others) in zip(one, other))


cdef class TxLoop(Loop):
    """The loop of a Sender.

    Parameters
    ----------
    name : str
        Ours.
    to : list of str
        The receivers that we want; [""] for the only one that answers.
    nb_expected : int
        Ports that were asked for: discovery waits for all of them where it can.
    peer_timeout : float
        Seconds without a sign of life from the receiver.
    fixed_frame_size : bool
        A path with smaller frames than ours is an error instead of the measure.
    faults : dict, list of dict, or None
        For tests.
    pace_of : callable, optional
        (index, port) → `aiflow._policy.flow_control.Pace`: the law of a port's gaps. None: credit.
    interval : float
        Seconds between two samples for the monitor; 0: none.
    """

    cdef af_multi multi   # a state machine for each receiver …
    cdef af_tx *tx    # … and the first of them, which runs by itself when there is no other
    cdef af_tx_slice *inbox
    cdef af_tx_slice **inbox_tail
    cdef set flying
    cdef object pace_of
    cdef bint death   # see `note_death`

    def __cinit__(self):
        self.inbox_tail = &self.inbox
        self.flying = set()

    def __init__(self, name, list to, nb_expected, peer_timeout, fixed_frame_size=False, faults=None, pace_of=None,
                 interval=0.1):
        cdef af_tx *tx
        if not 1 <= len(to) <= MOST_RECEIVERS:
            raise ConfigError(f"{len(to)} receivers: a Sender has 1 to {MOST_RECEIVERS}")
        for receiver in to:
            tx = <af_tx *>calloc(1, sizeof(af_tx))
            if tx == NULL or af_tx_init(tx):
                free(tx)
                raise MemoryError("no memory for a sender's state")
            self.multi.tx[self.multi.nb] = tx
            self.multi.nb += 1
            name_bytes(name, tx.name)
            name_bytes(receiver, tx.to)
            tx.instance = int.from_bytes(os.urandom(6), "big") << 16
            tx.peer_timeout_ns = int(peer_timeout * 1e9)
            tx.clock_offset_ns = time.time_ns() - time.monotonic_ns()
            tx.nb_expected = nb_expected
            tx.fixed_frame_size = fixed_frame_size
            tx.sampler.interval_ns = int(interval * 1e9)
        self.pace_of = pace_of
        self.tx = self.multi.tx[0]
        if self.multi.nb == 1:
            self.agent.state = self.tx
            self.agent.tail = &self.tx.tail
            self.agent.on_frame = af_tx_on_frame
            self.agent.next_frame = af_tx_next_frame
            self.agent.tick = af_tx_tick
        else:
            self.agent.state = &self.multi
            self.agent.tail = &self.multi.tail
            self.agent.on_frame = af_multi_on_frame
            self.agent.next_frame = af_multi_next_frame
            self.agent.tick = af_multi_tick
        self.set_faults(faults)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.multi.nb):
            free(self.multi.tx[i].retransmit)
            free(self.multi.tx[i])

    # ---- control plane ----

    def attach(self, Port port, uint32_t peer):
        """Poll this port from now on."""
        if self.by_reference(port) and self.references is None:
            self.references = Mempool("references", 255, 64, -1, True)  # a burst at once; the rest sits in caches
        self.between(lambda: self._attach(port, peer))

    def set_joining(self, bint joining):
        """While a receiver is at work on our ports, its silence does not count."""
        cdef uint32_t i
        for i in range(self.multi.nb):
            aiflow_set(self.multi.tx[i].joining, joining)

    def note_death(self):
        """The ports that are detached next lead to a receiver that has died: the next `send` says so, if none is there.

        A slice under way fails because of it; what is posted a moment later must not depend on that moment.
        """
        self.death = True

    def by_reference(self, Port port):
        """Whether the driver takes large payloads from where they lie: it copies, and from more than one place."""
        return port.copies and port.multi_segs and port.frame_size > 2 * <int>AF_TAIL_LEAST and not self.faults

    def _attach(self, Port port, peer):
        cdef af_agent_port place
        cdef int index = self.place_port(port, peer, &place)
        place.by_reference = self.by_reference(port)
        cdef af_tx_port *slot
        cdef uint32_t i
        for i in range(self.multi.nb):
            slot = &self.multi.tx[i].ports[index]
            memset(slot, 0, sizeof(af_tx_port))
            slot.p = place
            slot.path_size = place.frame_size
            slot.attached_ns = af_now_ns()
            self.multi.tx[i].death_unreported = False
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
            if <uint32_t>index >= self.multi.tx[i].nb_ports:
                self.multi.tx[i].nb_ports = index + 1

    def detach(self, ports, peer=0):
        """Poll these ports no more: when it returns, no burst touches them."""
        self.between(lambda: self._detach(ports))

    def _detach(self, ports):
        cdef uint32_t i
        cdef af_tx *tx
        for i in range(self.multi.nb):
            tx = self.multi.tx[i]
            tx.death_unreported = self.death and tx.open and tx.first_id == tx.next_id
        for port in ports:
            index = self.index_of(port)
            if index >= 0:
                self.last_look(index)  # its last report may say that all has arrived
                self._remove_port(port)
                for i in range(self.multi.nb):
                    af_tx_detach(self.multi.tx[i], index, af_now_ns())
        for i in range(self.multi.nb):
            self.multi.tx[i].death_unreported &= not self.multi.tx[i].open
        self.death = False
        self.tell()

    def post(self, list buffers, bytes manifest, plan, uint32_t receiver=0, bint wait=False, list into=None):
        """Send a slice of which each buffer is an element.

        Parameters
        ----------
        buffers : list
            C-contiguous buffers, in the manifest's order.
        manifest : bytes
            See include/aiflow/wire/manifest.h.
        plan : aiflow.scheduler.Plan
            What each port may take of it.
        receiver : int
            Which of `to` it is for.
        wait : bool
            The caller is about to wait for it, and will drive the loop: the worker need not be woken.
        into : list, optional
            Of the parts of a slice that are posted, in the receivers' order: this one is appended before an interrupt
            can strike. When it is there already, nothing is posted.

        Returns
        -------
        Outgoing
        """
        if into is not None and len(into) > <Py_ssize_t>receiver:
            return into[receiver]
        return self._post(of_buffers(buffers, manifest), plan, receiver, wait, into)

    def post_rows(self, buffer, Py_ssize_t nb_rows, bytes manifest, plan, uint32_t receiver=0, bint wait=False,
                  list into=None):
        """Send a slice whose elements are the `nb_rows` equal rows of one C-contiguous buffer."""
        if into is not None and len(into) > <Py_ssize_t>receiver:
            return into[receiver]
        return self._post(of_rows(buffer, nb_rows, manifest), plan, receiver, wait, into)

    cdef _post(self, Outgoing out, plan, uint32_t receiver, bint wait, list into):
        if receiver >= self.multi.nb:
            raise ConfigError(f"receiver {receiver} of {self.multi.nb}")
        out.loop = self
        out.tx = self.multi.tx[receiver]
        out.s.receiver = receiver
        out.s.dispatch.ports = plan.port_mask
        out.s.dispatch.elements = plan.place == "elements"
        out.s.dispatch.shortest = plan.shortest
        out.s.dispatch.by_share = bool(plan.quotas)
        for index, quota in plan.quotas.items():
            out.s.dispatch.share_bytes[index] = quota
        out.s.posted_ns = af_now_ns()
        out.posted_at = time.monotonic()
        if self.flying:
            for done in [other for other in list(self.flying) if other.done]:
                done.finish()
        self.flying.add(out)
        if into is not None:
            into.append(out)
        aiflow_lock(&self.handoff)
        out.s.next = NULL
        self.inbox_tail[0] = &out.s
        self.inbox_tail = &out.s.next
        aiflow_unlock(&self.handoff)
        aiflow_set(self.handoff.posted, 1)
        if self.stopped:
            self._fail_all()
        elif not wait:
            with nogil:
                self.push()
        return out

    def nudge(self):
        """Make the loop look at its inbox now."""
        aiflow_set(self.handoff.posted, 1)
        af_handoff_wake(&self.handoff)
        if self.stopped:
            self._fail_all()

    def forget(self, out):
        """The slice has ended: hold it no more."""
        self.flying.discard(out)

    def close(self, double timeout):
        """Say goodbye to the receiver (waits for its answer, at most `timeout` seconds), then stop."""
        if os.getpid() != self.pid:
            return
        cdef uint32_t i
        until = time.monotonic() + timeout
        for i in range(self.multi.nb):
            self.multi.tx[i].closing = True
        while self._unparted() and not self.stopped and time.monotonic() < until:
            self.wait(self.generation, 0.002)
        self.stop()
        self._fail_all()

    def _unparted(self):
        """Is there a receiver that has not answered our goodbye?"""
        return any(self.multi.tx[i].open and not self.multi.tx[i].bye_heard for i in range(self.multi.nb))

    def _fail_all(self):
        """The loop has ended: so does every slice that it still had."""
        cdef uint32_t i
        with self.guard:
            self.collect(af_now_ns())
            for i in range(self.multi.nb):
                af_tx_fail_all(self.multi.tx[i], CANCELLED, af_now_ns())
            self.ring()

    # ---- what is to be seen ----

    def begin_slice(self):
        """Note what every port has sent; which are attached, and which of them usable, as bits."""
        cdef af_tx_port *slot
        cdef uint32_t i, k, attached = 0, usable = 0
        for i in range(self.nb_ports):
            if self.ports[i].attached:
                attached |= 1u << i
                for k in range(self.multi.nb):
                    slot = &self.multi.tx[k].ports[i]
                    slot.began[0] = slot.pn.seen
                    slot.began[1] = slot.arrived
                    usable |= <uint32_t>(slot.open and not slot.suspended) << i
        return attached, usable

    @property
    def receivers(self):
        """Names of the receivers that we are joined to."""
        return [self.last_receiver(i) for i in range(self.multi.nb) if self.multi.tx[i].open]

    def others(self, uint32_t receiver=0):
        """Names of receivers that answered, though another was asked for."""
        names = [(<const char *>self.multi.tx[receiver].others[i]).decode("utf-8", "replace") for i in range(4)]
        return [name for name in names if name]

    def rivals(self, uint32_t receiver=0):
        """(name, MAC) of receivers that answer beside each other, or beside ours under its name."""
        cdef af_tx *tx = self.multi.tx[receiver]
        return [((<const char *>tx.rivals[i].name).decode("utf-8", "replace"), bytes(tx.rivals[i].mac[:6]).hex(":"))
                for i in range(2) if tx.rivals[i].epoch]

    def dropped(self, uint32_t receiver=0):
        """Why the receiver has dropped most frames, as it says, and how many; ("ok", 0) when it has not."""
        return DROPS[self.multi.tx[receiver].drop], self.multi.tx[receiver].nb_dropped

    def last_receiver(self, uint32_t receiver=0):
        """Name of the receiver that we were joined to last at this place, "" before the first."""
        return (<const char *>self.multi.tx[receiver].receiver).decode("utf-8", "replace")

    @property
    def payload_bytes(self):
        """Bytes of an element that one frame carries; 0 before the first receiver answered."""
        return self.tx.payload_bytes

    @property
    def busy(self):
        """Slices under way or queued."""
        return any(not out.done for out in list(self.flying))

    def outstanding(self):
        """Slices that have not ended."""
        return [out for out in list(self.flying) if not out.done]

    def drops(self):
        """Frames not taken, by reason."""
        counts = {DROPS[i]: sum(self.multi.tx[k].drops[i] for k in range(self.multi.nb)) for i in range(1, len(DROPS))}
        counts["segments"] += self.unseen[CHAINED]
        counts["vlan"] += self.unseen[TAGGED]
        return counts

    def counters(self):
        """Reports heard, probes sent, and losses that were none."""
        cdef af_tx *tx
        cdef uint32_t i, p
        counts = {"reports": 0, "probes": 0, "spurious": 0}
        for i in range(self.multi.nb):
            tx = self.multi.tx[i]
            counts["reports"] += tx.feedbacks
            counts["probes"] += tx.probes
            counts["spurious"] += sum(tx.ports[p].w.spurious for p in range(tx.nb_ports))
        return counts

    def port_rows(self):
        """Counters of every attached port, those of all receivers together, for the port table."""
        cdef af_tx_port *slot
        cdef uint32_t i
        rows = []
        for index, port in enumerate(self.attached_ports):
            if port is None:
                continue
            row = dict.fromkeys(("frames", "bytes", "rx_frames", "rx_bytes", "again", "lost", "flying", "window",
                                 "rtt_ns", "gap_ns", "signals", "sent", "arrived", "sent_before", "arrived_before"), 0)
            row |= {"index": index, "port": port, "dst": None, "usable": False}
            for i in range(self.multi.nb):
                slot = &self.multi.tx[i].ports[index]
                row["frames"] += slot.count.tx_frames
                row["bytes"] += slot.count.tx_bytes
                row["rx_frames"] += slot.count.rx_frames
                row["rx_bytes"] += slot.count.rx_bytes
                row["again"] += slot.count.retransmits
                row["lost"] += slot.count.lost
                row["flying"] += slot.pn.in_flight
                row["window"] = max(row["window"], slot.pn.limit)
                row["rtt_ns"] = max(row["rtt_ns"], slot.pn.rtt_ns)
                row["gap_ns"] = max(row["gap_ns"], slot.pace.gap_ns)
                row["signals"] += slot.pace.signals
                row["sent"] += slot.pn.seen
                row["arrived"] += slot.arrived
                row["sent_before"] += slot.began[0]
                row["arrived_before"] += slot.began[1]
                row["usable"] |= slot.open and not slot.suspended
                if slot.open and row["dst"] is None:
                    row["dst"] = bytes(slot.dst[:6])
            rows.append(row)
        return rows

    def samples(self):
        """The two newest of the monitor's samples, (ns, a dict for each port), or None before there are two."""
        cdef uint32_t i
        total = None
        for i in range(self.multi.nb):
            pair = sample_rows(&self.multi.tx[i].sampler, self.nb_ports)
            if pair is None:
                return None
            total = pair if total is None else _added(total, pair)
        return total

    def answers(self):
        """For each attached port, the ports of receivers that answered it: (epoch, index)."""
        cdef af_tx_port *slot
        cdef uint32_t k
        found = {}
        for index, port in enumerate(self.attached_ports):
            if port is not None:
                found[index] = []
                for k in range(self.multi.nb):
                    slot = &self.multi.tx[k].ports[index]
                    found[index] += [(slot.candidates[i].epoch, slot.candidates[i].port)
                                     for i in range(slot.nb_candidates)]
        return found

    # ---- the loop ----

    cdef bint unfinished(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.multi.nb):
            if af_tx_is_pressed(self.multi.tx[i]):
                return True
        return Loop.unfinished(self)

    cdef void collect(self, uint64_t now) noexcept nogil:
        cdef af_tx_slice *s
        cdef af_tx_slice *following
        aiflow_lock(&self.handoff)
        s = self.inbox
        self.inbox = NULL
        self.inbox_tail = &self.inbox
        aiflow_unlock(&self.handoff)
        while s != NULL:
            following = s.next
            af_tx_enqueue(self.multi.tx[s.receiver], s)
            s = following
