"""Data plane of a Receiver: the loop receives slices, and whole ones are handed over."""

import os
import time

from cpython.weakref cimport PyWeakref_NewRef
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from aiflow._core cimport (
    AF_NB_RX_WAITS, AF_RECEIVES, af_agent_port, af_chrono, af_chrono_note, af_handoff, af_now_ns, af_rx,
    af_rx_detach, af_rx_due, af_rx_fail_pending, af_rx_free, af_rx_hear_verdicts, af_rx_init, af_rx_next_frame,
    af_rx_offer, af_rx_on_frame, af_rx_owes, af_rx_owes_bye, af_rx_owns, af_rx_part, af_rx_port, af_rx_slice,
    af_rx_tick, af_rx_wait_name, af_rx_writer_gone,
)
from aiflow._core_memory cimport af_into, af_offer_withdraw
from aiflow._dp_agent cimport Agent, agent_counts, chrono_ns, name_bytes, sample_rows, session_numbers
from aiflow._dp_driver cimport aiflow_lock, aiflow_unlock
from aiflow._dp_incoming cimport Incoming, Store, release_mbuf
from aiflow._dp_into cimport Offer
from aiflow._eal cimport Mempool, Port

WAITS = tuple([af_rx_wait_name(wait).decode() for wait in range(AF_NB_RX_WAITS)])  # of the C table
LAST_WORDS_S = 0.1  # the longest wait for due feedback frames to leave, when a Receiver closes


# What the loop shares with the callers that take slices.
cdef struct receiver_side:
    af_rx *rx
    af_rx_slice *ready         # whole slices that no caller has taken; the handoff's lock guards them
    af_rx_slice **ready_tail
    af_chrono behind           # in state 1, slices are ready; likewise guarded


cdef af_rx_slice **takeable(receiver_side *side, af_into *own) noexcept nogil:
    """The first whole slice that a call may take; at the end of the list: none. Under the handoff's lock.

    With `own`, a call's arrays that have a slice: that one alone. Else any but those that other calls wait for.
    """
    cdef af_rx_slice **link = &side.ready
    while link[0] != NULL:
        if own != NULL:
            if link[0].into == own:
                break
        elif link[0].into == NULL or not link[0].into.wanted:
            break
        link = &link[0].next
    return link


cdef void collect(void *side, uint64_t now) noexcept nogil:
    """Nothing: the state machine takes verdicts in its tick."""


cdef void publish(void *side) noexcept nogil:
    cdef receiver_side *receiver = <receiver_side *>side
    if receiver.rx.ready != NULL:
        receiver.ready_tail[0] = receiver.rx.ready
        receiver.ready_tail = receiver.rx.ready_tail
        receiver.rx.ready = NULL
        receiver.rx.ready_tail = &receiver.rx.ready
        af_chrono_note(&receiver.behind, 1, af_now_ns())


cdef bint unfinished(void *side) noexcept nogil:
    cdef af_rx *rx = (<receiver_side *>side).rx
    return rx.flowing or rx.waiting != NULL or af_rx_owes(rx)


cdef class RxAgent(Agent):
    """A Receiver's agent.

    Parameters
    ----------
    name : str
        The Receiver's own name.
    store : Store
        Element memory.
    keeps_mbufs : bool
        Leave payloads in their mbufs (`assemble=False`).
    peer_timeout : float
        Seconds of silence after which a sender's unfinished slices are freed.
    interval : float
        Seconds between two samples for the monitor; 0: none.
    confirms : bool
        A slice is delivered when its user confirms it, not when it is whole.
    borrows : bool
        It takes loans.
    """

    cdef receiver_side side
    cdef af_rx *rx
    cdef readonly Store store
    cdef public object pools  # keeps_mbufs: `aiflow._engine.ReceiverPools`, until it is closed
    cdef dict pool_of         # keeps_mbufs: port → Mempool that its payloads stay in
    cdef public object on_end  # called with each Incoming that a caller takes; None: nothing is
    cdef readonly list offers  # `Offer`s that the loop knows
    cdef list held   # weak references to every Incoming that a user may still hold
    cdef Py_ssize_t most_held

    def __cinit__(self):
        self.side.rx = self.rx = <af_rx *>calloc(1, sizeof(af_rx))
        if self.rx == NULL:
            raise MemoryError("no memory for a receiver's state")
        af_rx_init(self.rx)
        self.side.ready_tail = &self.side.ready
        self.held = []
        self.offers = []
        self.pool_of = {}
        self.most_held = 64
        self.user.side = &self.side
        self.user.collect = collect
        self.user.publish = publish
        self.user.unfinished = unfinished

    def __init__(self, name, Store store, keeps_mbufs, peer_timeout, interval=0.1, confirms=False,
                 borrows=False):
        self.rx.sampler.interval_ns = int(interval * 1e9)
        name_bytes(name, self.rx.name)
        self.store = store
        self.rx.arena = &store.arena
        self.rx.keeps_mbufs = keeps_mbufs
        self.rx.confirms = confirms
        self.rx.borrows = borrows and not keeps_mbufs
        self.rx.checks_places = os.environ.get("AIFLOW_CHECK_PLACES") == "1"
        self.rx.verdicts = &store.verdicts
        self.rx.release = release_mbuf
        self.rx.epoch = int.from_bytes(os.urandom(8), "big") | 1
        self.rx.numbers = session_numbers()
        self.rx.peer_timeout_ns = int(peer_timeout * 1e9)
        self.rx.clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self.machines[0].state = self.rx
        self.machines[0].role = AF_RECEIVES
        self.machines[0].on_frame = af_rx_on_frame
        self.machines[0].next_frame = af_rx_next_frame
        self.machines[0].tick = af_rx_tick
        self.machines[0].due = af_rx_due
        self.machines[0].owns = af_rx_owns
        self.nb_machines = 1

    def __dealloc__(self):
        free(self.rx)

    # ---- control plane ----

    @property
    def role(self):
        """Which end of the flow it is."""
        return "receiver"

    def prepare(self, Port port):
        """Make what `attach` needs. In any thread, before it."""
        if self.rx.keeps_mbufs:
            self.pool_of[port] = self.pools.of_port(port)

    def attach(self, Port port, uint32_t peer):
        cdef af_agent_port place
        cdef int index = self.place(port, self.store.shared is not None, &place)
        cdef af_rx_port *slot = &self.rx.ports[index]
        cdef void *adopt = NULL
        memset(slot, 0, sizeof(af_rx_port))
        slot.p = place
        if <uint32_t>index >= self.rx.nb_ports:
            self.rx.nb_ports = index + 1
        if self.rx.keeps_mbufs:
            # Slices hold mbufs of a pool of ours. net_ring hands over the sender's mbufs, whose pool would run empty.
            pool = self.pool_of.pop(port)
            if pool not in self.store.pools:
                self.store.pools.append(pool)
            if port.driver == "net_ring" or pool is not port.mempool:
                adopt = (<Mempool>pool).ptr
        self.plug(index, adopt)

    def detach(self, ports):
        """Use these ports no more. Between two iterations."""
        for port in ports:
            index = self._detach_port(port)
            if index >= 0:
                af_rx_detach(self.rx, index)

    @property
    def memory(self):
        shared = self.store.shared
        return (self.rx.epoch, *shared, self.store.warm, bool(self.rx.borrows)) if shared is not None else None

    def writer_gone(self, uint32_t writer):
        """The peer of this connection writes to our memory no more. Between two iterations."""
        af_rx_writer_gone(self.rx, writer)

    @property
    def mbuf_bytes(self):
        """Bytes of memory that one kept mbuf occupies."""
        return self.rx.mbuf_bytes

    @mbuf_bytes.setter
    def mbuf_bytes(self, uint64_t nbytes):
        self.rx.mbuf_bytes = nbytes

    def _fail_pending(self, bytes reason):
        af_rx_hear_verdicts(self.rx)
        af_rx_fail_pending(self.rx, reason, <uint32_t>len(reason))

    def _wait_for(self, condition):
        """Wait until a condition of the loop holds, for at most LAST_WORDS_S."""
        until = time.monotonic() + LAST_WORDS_S
        while not self.stopped and not self.loop.between(condition) and time.monotonic() < until:
            self.wait(self.generation, 0.0005)

    def _part(self):
        if self.joined:
            af_rx_part(self.rx)

    def _has_parted(self):
        """Has every goodbye left?"""
        return not af_rx_owes_bye(self.rx) and self.loop.settled()

    def _said_all(self):
        """Has every due feedback frame left?"""
        return not af_rx_owes(self.rx) and self.loop.settled()

    def offer(self, Offer offer):
        """Offer arrays to the loop for the next slice that it grants, unless another call does so or a slice has them.
        """
        if offer not in self.offers:
            self.offers.append(offer)
        offer.into.wanted = True
        if not offer.bound:
            af_rx_offer(self.rx, &offer.into)

    def withdraw(self, Offer offer):
        """Take arrays back. False: a slice has them. They are its own until it is taken, refused or silent."""
        cdef bint unbound = af_offer_withdraw(&self.rx.offer, &offer.into)
        if unbound and offer in self.offers:
            self.offers.remove(offer)
        return unbound

    def abandon(self, Offer offer):
        """Wait for these arrays no more: if a slice has them, any call may take it."""
        offer.into.wanted = False
        if not self.withdraw(offer) and offer in self.offers:
            self.tell()

    cdef _sweep(self):
        """Forget arrays whose call has ended by an interrupt, and those whose slice is gone."""
        for offer in list(self.offers):
            if offer.wanted and offer.caller() is None:
                self.abandon(offer)
            elif not offer.wanted and not offer.bound:
                self.withdraw(offer)

    def pop(self, list found=None, Offer offer=None):
        """The next whole slice, or None; appended to `found` before an interrupt can strike.

        With an offer whose arrays a slice has: that slice alone. Otherwise the offer ends with any slice that is there.
        """
        cdef af_rx_slice *s
        cdef af_rx_slice **link
        cdef af_into *own = &offer.into if offer is not None else NULL
        cdef Incoming incoming
        cdef af_handoff *handoff = &self.loop.handoff
        self.check_process()
        if self.offers:
            self._sweep()
        aiflow_lock(handoff)
        link = takeable(&self.side, own if own != NULL and own.bound and not own.freed else NULL)
        if link[0] != NULL and own != NULL and not af_offer_withdraw(&self.rx.offer, own):
            link = takeable(&self.side, own)
        s = link[0]
        if s != NULL:
            link[0] = s.next
            self.rx.taken += 1
            if link[0] == NULL:
                self.side.ready_tail = link
            if self.side.ready == NULL:
                af_chrono_note(&self.side.behind, 0, af_now_ns())
        aiflow_unlock(handoff)
        if s == NULL:
            return None
        incoming = Incoming.__new__(Incoming)
        incoming.s = s
        incoming.store = self.store
        incoming.confirms = incoming.awaited = self.rx.confirms
        incoming.loop = PyWeakref_NewRef(self, None)
        if len(self.held) >= self.most_held:
            self.held = [one for one in self.held if one() is not None]
            self.most_held = max(64, 2 * len(self.held))
        self.held.append(PyWeakref_NewRef(incoming, None))
        if s.into != NULL and s.into == own:
            incoming.offer = offer
            incoming.arrays = offer.kept[0]
        if s.into != NULL:
            for one in self.offers:
                if &(<Offer>one).into == s.into:
                    incoming.offer = one
                    incoming.arrays = (<Offer>one).kept[0]
                    self.offers.remove(one)
                    break
        if found is not None:
            found.append(incoming)
        if self.on_end is not None:
            self.on_end(incoming)
        return incoming

    @property
    def slices(self):
        """Every slice that was handed over and is still held."""
        return [incoming for incoming in [one() for one in self.held] if incoming is not None]

    def close(self, bytes reason=b"the receiver closed before it confirmed the slice"):
        """Send the feedback that is due, leave the loop, and free the slices that were not taken.

        A slice that waits for its user's confirmation fails, for that reason.
        """
        if not self.loop.pid_is_ours():
            return
        self.on_end = None
        if self.rx.confirms:
            self.loop.between(lambda: self._fail_pending(reason))
        self._wait_for(self._said_all)
        self.loop.between(self._part)
        self._wait_for(self._has_parted)
        self.leave()
        for offer in list(self.offers):
            self.abandon(offer)
        while self.pop() is not None:
            pass
        af_rx_free(self.rx)
        self.offers.clear()
        self.store.trim()

    # ---- state and counters ----

    @property
    def finished(self):
        """Has every sender that was heard said BYE, or fallen silent?"""
        # In this order: the loop publishes the last slice of a sender after it has ended the sender.
        return (self.rx.nb_seen > 0 and self.rx.nb_closed >= self.rx.nb_seen and self.rx.ready == NULL
                and self.side.ready == NULL)

    @property
    def starving(self):
        """Bytes of the request that waits for memory, and the seconds it has waited; (0, 0.0) for none."""
        cdef uint64_t since = self.rx.starving_ns
        # The loop sees released memory in its next iteration only.
        if not since or self.store.arena.releases != self.rx.releases:
            return 0, 0.0
        return self.rx.starving_bytes, (af_now_ns() - since) / 1e9

    @property
    def progress(self):
        """Bytes so far, and in all, of the slice that arrives now."""
        return self.rx.progress_bytes, self.rx.progress_total

    @property
    def nb_sessions(self):
        """Senders with a session."""
        return self.rx.nb_sessions

    def drops(self):
        """Frames not taken, by reason; and `tx_nombuf`: times that the pool had no mbuf for a frame to send."""
        return self.not_taken(self.rx.drops)

    def counters(self):
        """Slices, elements and bytes handed over; bytes that senders placed; senders that left without a BYE."""
        return {"slices": self.rx.slices, "elements": self.rx.elements, "bytes": self.rx.bytes,
                "placed_bytes": self.rx.placed_bytes, "senders_gone": self.rx.nb_gone}

    def waits(self):
        """ns by what arrives: `WAITS`."""
        return dict(zip(WAITS, chrono_ns(&self.rx.waits)))

    @property
    def behind_ns(self):
        """Time in which a whole slice waited for a caller to take it."""
        return chrono_ns(&self.side.behind)[1]

    cdef object count_port(self, uint32_t index, agent_counts *out):
        cdef af_rx_port *slot = &self.rx.ports[index]
        out.receives = out.usable = True
        out.tx_frames = slot.count.tx_frames
        out.tx_bytes = slot.count.tx_bytes
        out.rx_frames = slot.count.rx_frames
        out.rx_bytes = slot.count.rx_bytes
        out.window = slot.p.rx_ring
        out.sent = slot.sent
        out.arrived = slot.arrived
        return None

    def samples(self):
        """The two newest samples for the monitor, (ns, a dict for each port); None before there are two."""
        return sample_rows(&self.rx.sampler, self.nb_ports)
