"""Data plane of a Sender: slices are posted, the loop sends them, whoever posted waits for the end.

Memory: an `Outgoing` holds the buffer of every element, and the loop holds the Outgoing, until the state machine has
ended the slice. From then on nothing reads the buffers.
"""

import os
import time

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from aiflow._core cimport (
    AF_TAIL_LEAST, AF_TX_DONE, af_agent_port, af_now_ns, af_mail_notify, af_mail_wake, af_pace_reset, af_span, af_tx,
    af_tx_detach, af_tx_enqueue, af_tx_fail_all, af_tx_init, af_tx_next_frame, af_tx_on_frame, af_tx_port, af_tx_slice,
    af_tx_tick,
)
from aiflow._dp cimport Loop, PORTS, name_bytes, sample_rows
from aiflow._eal cimport Mempool, Port
from aiflow._dp import DROPS

cdef extern from *:
    """
    #include "aiflow/mail.h"
    #define aiflow_tx_set(field, value) atomic_store(&(field), (value))
    #define aiflow_tx_lock(mail) pthread_mutex_lock(&(mail)->lock)
    #define aiflow_tx_unlock(mail) pthread_mutex_unlock(&(mail)->lock)
    """
    void aiflow_tx_set(int field, int value) noexcept nogil
    void aiflow_tx_lock(void *mail) noexcept nogil
    void aiflow_tx_unlock(void *mail) noexcept nogil

# In the order of enum af_tx_error.
ERRORS = ("ok", "no_peer", "silent", "restarted", "too_large", "integrity", "refused", "cancelled", "ambiguous", "mtu",
          "no_memory")
CANCELLED = ERRORS.index("cancelled")


cdef class Outgoing:
    """One slice on its way. Made by `TxLoop.post`; `done` turns true once, and stays."""

    cdef af_tx_slice s
    cdef af_span *spans
    cdef Py_buffer *buffers
    cdef Py_ssize_t nb_buffers
    cdef readonly double posted_at
    cdef TxLoop loop

    def __dealloc__(self):
        self._release()
        free(self.s.manifest)
        free(self.spans)

    cdef void _release(self):
        cdef Py_ssize_t i
        for i in range(self.nb_buffers):
            PyBuffer_Release(&self.buffers[i])
        self.nb_buffers = 0
        free(self.buffers)
        self.buffers = NULL

    cdef int _take(self, list buffers) except -1:
        """Hold every buffer. C-contiguous ones only: the caller has seen to it."""
        cdef Py_ssize_t i, n = len(buffers)
        self.buffers = <Py_buffer *>calloc(max(n, 1), sizeof(Py_buffer))
        if self.buffers == NULL:
            raise MemoryError(f"no memory for {n} buffers")
        for i in range(n):
            PyObject_GetBuffer(buffers[i], &self.buffers[i], PyBUF_SIMPLE)
            self.nb_buffers += 1
        return 0

    cdef int _describe(self, bytes manifest, Py_ssize_t nb_elements) except -1:
        self.spans = <af_span *>malloc(max(nb_elements, 1) * sizeof(af_span))
        self.s.manifest = <uint8_t *>malloc(len(manifest))
        if self.spans == NULL or self.s.manifest == NULL:
            raise MemoryError(f"no memory to describe {nb_elements} elements")
        memcpy(self.s.manifest, <const char *>manifest, len(manifest))
        self.s.manifest_bytes = <uint32_t>len(manifest)
        self.s.elements = self.spans
        self.s.nb_elements = <uint32_t>nb_elements
        return 0

    @property
    def done(self):
        """Has the slice ended, one way or the other? Then nothing reads its buffers any more."""
        return self.s.state >= AF_TX_DONE

    @property
    def delivered(self):
        """Does the receiver hold all of it: True, False, or None where it cannot be known."""
        if self.s.state == AF_TX_DONE:
            return True
        if self.s.error in (0, CANCELLED, ERRORS.index("silent"), ERRORS.index("restarted")) and self.s.all_sent:
            return None
        return False

    @property
    def error(self):
        """Why it failed: one of `ERRORS`, "ok" when it did not."""
        return ERRORS[self.s.error]

    @property
    def detail(self):
        """With "too_large": the receiver's memory in bytes."""
        return self.s.detail

    @property
    def slice_id(self):
        """Number of the slice within its session."""
        return self.s.id

    @property
    def nb_elements(self):
        """Elements of the slice."""
        return self.s.nb_elements

    @property
    def nbytes(self):
        """Bytes of all its elements."""
        return self.s.nbytes

    @property
    def acked_bytes(self):
        """Bytes that the receiver has acknowledged so far."""
        return min(self.s.acked_bytes, self.s.nbytes) if self.s.state != AF_TX_DONE else self.s.nbytes

    @property
    def seconds(self):
        """From the post to the end."""
        return (self.s.done_ns - self.s.posted_ns) / 1e9 if self.done else None

    @property
    def waited(self):
        """Seconds from the post to the grant; None when it needed none, or has none yet."""
        return (self.s.granted_ns - self.s.posted_ns) / 1e9 if self.s.granted_ns else None

    @property
    def frames(self):
        """Frames sent for this slice, and how many of them again."""
        return self.s.frames, self.s.again

    def port_frames(self):
        """Frames and bytes of this slice by index of the port."""
        return [(index, self.s.port_frames[index], self.s.port_bytes[index]) for index in range(PORTS)
                if self.s.port_frames[index]]

    def finish(self):
        """Give the buffers back. Only once it is done."""
        if self.s.state >= AF_TX_DONE:
            self._release()
            self.loop.forget(self)

    def cancel(self):
        """Give the slice up: returns once it has ended, delivered or not."""
        aiflow_tx_set(self.s.cancel, 1)
        while self.s.state < AF_TX_DONE:
            generation = self.loop.generation
            self.loop.nudge()
            if self.s.state < AF_TX_DONE:
                self.loop.wait(generation, 0.01)
        self.finish()


cdef class TxLoop(Loop):
    """The loop of a Sender.

    Parameters
    ----------
    name, to : str
        Our name, and the receiver's that we want ("" for the only one that answers).
    nb_expected : int
        Ports that were asked for: discovery waits for all of them where it can.
    peer_timeout : float
        Seconds without a sign of life from the receiver.
    fixed_frame_size : bool
        A path with smaller frames than ours is an error instead of the measure.
    faults : dict or None
        For tests.
    pace_of : callable, optional
        (index, port) → `aiflow.flow.Pace`: the law of a port's gaps. None: credit.
    interval : float
        Seconds between two samples for the monitor; 0: none.
    """

    cdef af_tx *tx
    cdef af_tx_slice *inbox
    cdef af_tx_slice **inbox_tail
    cdef set flying
    cdef object pace_of

    def __cinit__(self):
        self.tx = <af_tx *>calloc(1, sizeof(af_tx))
        if self.tx == NULL or af_tx_init(self.tx):
            raise MemoryError("no memory for a sender's state")
        self.inbox_tail = &self.inbox
        self.flying = set()

    def __init__(self, name, to, nb_expected, peer_timeout, fixed_frame_size=False, faults=None, pace_of=None,
                 interval=0.1):
        name_bytes(name, self.tx.name)
        name_bytes(to, self.tx.to)
        self.tx.instance = int.from_bytes(os.urandom(6), "big") << 16
        self.tx.peer_timeout_ns = int(peer_timeout * 1e9)
        self.tx.clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self.tx.nb_expected = nb_expected
        self.tx.fixed_frame_size = fixed_frame_size
        self.tx.monitor.interval_ns = int(interval * 1e9)
        self.pace_of = pace_of
        self.agent.state = self.tx
        self.agent.tail = &self.tx.tail
        self.agent.on_frame = af_tx_on_frame
        self.agent.next_frame = af_tx_next_frame
        self.agent.tick = af_tx_tick
        self.set_faults(faults)

    def __dealloc__(self):
        if self.tx != NULL:
            free(self.tx.again)
            free(self.tx)

    # ---- control plane ----

    def attach(self, Port port, uint32_t peer):
        """Poll this port from now on."""
        if self.by_reference(port) and self.references is None:
            self.references = Mempool("references", 255, 64, -1, True)  # a burst at once; the rest sits in caches
        self.between(lambda: self._attach(port, peer))

    def by_reference(self, Port port):
        """Whether the driver takes large payloads from where they lie: it copies, and from more than one place."""
        return port.copies and port.multi_segs and port.frame_size > 2 * <int>AF_TAIL_LEAST and not self.faults.on

    def _attach(self, Port port, peer):
        cdef af_agent_port place
        cdef int index = self.place_port(port, peer, &place)
        place.by_reference = self.by_reference(port)
        cdef af_tx_port *slot = &self.tx.ports[index]
        memset(slot, 0, sizeof(af_tx_port))
        slot.p = place
        slot.path_size = place.frame_size
        slot.attached_ns = af_now_ns()
        if self.pace_of is not None:
            pace = self.pace_of(index, port)
            slot.pace.rate_based = pace.rate_based
            slot.pace.frame_ns = pace.frame_ns
            slot.pace.byte_ns = pace.byte_ns
            slot.pace.slack_ns = pace.burst_ns
            slot.pace.gain = pace.gain
            slot.pace.threshold = pace.threshold
            af_pace_reset(&slot.pace)
        if <uint32_t>index >= self.tx.nb_ports:
            self.tx.nb_ports = index + 1

    def detach(self, ports, peer=0):
        """Poll these ports no more: when it returns, no burst touches them."""
        self.between(lambda: self._detach(ports))

    def _detach(self, ports):
        for port in ports:
            index = self.index_of(port)
            if index >= 0:
                self.last_look(index)  # its last report may say that all has arrived
                self._remove_port(port)
                af_tx_detach(self.tx, index, af_now_ns())
        self.tell()

    def post(self, list buffers, bytes manifest, plan):
        """Send a slice of which each buffer is an element.

        Parameters
        ----------
        buffers : list
            C-contiguous buffers, in the manifest's order.
        manifest : bytes
            See include/aiflow/layout.h.
        plan : aiflow.scheduler.Plan
            What each port may take of it.

        Returns
        -------
        Outgoing
        """
        cdef Outgoing out = Outgoing.__new__(Outgoing)
        cdef Py_ssize_t i
        out._take(buffers)
        out._describe(manifest, out.nb_buffers)
        for i in range(out.nb_buffers):
            out.spans[i].ptr = <const uint8_t *>out.buffers[i].buf
            out.spans[i].nbytes = out.buffers[i].len
            out.s.nbytes += out.buffers[i].len
        return self._post(out, plan)

    def post_rows(self, buffer, Py_ssize_t nb_rows, bytes manifest, plan):
        """Send a slice whose elements are the `nb_rows` equal rows of one C-contiguous buffer."""
        cdef Outgoing out = Outgoing.__new__(Outgoing)
        cdef Py_ssize_t i, row_bytes
        out._take([buffer])
        out._describe(manifest, nb_rows)
        row_bytes = out.buffers[0].len // nb_rows if nb_rows else 0
        for i in range(nb_rows):
            out.spans[i].ptr = <const uint8_t *>out.buffers[0].buf + i * row_bytes
            out.spans[i].nbytes = row_bytes
        out.s.nbytes = nb_rows * row_bytes
        return self._post(out, plan)

    cdef _post(self, Outgoing out, plan):
        out.loop = self
        out.s.plan.ports = plan.port_mask
        out.s.plan.elements = plan.place == "elements"
        out.s.plan.shortest = plan.shortest
        out.s.plan.quotas = bool(plan.quotas)
        for index, quota in plan.quotas.items():
            out.s.plan.quota[index] = quota
        out.s.posted_ns = af_now_ns()
        out.posted_at = time.monotonic()
        for done in [other for other in self.flying if other.done]:
            done.finish()
        self.flying.add(out)
        aiflow_tx_lock(&self.mail)
        out.s.next = NULL
        self.inbox_tail[0] = &out.s
        self.inbox_tail = &out.s.next
        aiflow_tx_unlock(&self.mail)
        self.nudge()
        if self.stopped:
            self._fail_all()
        return out

    def nudge(self):
        """Make the loop look at its inbox now."""
        aiflow_tx_set(self.mail.posted, 1)
        af_mail_wake(&self.mail)
        if self.stopped:
            self._fail_all()

    def forget(self, out):
        """The slice has ended: hold it no more."""
        self.flying.discard(out)

    def close(self, double timeout):
        """Say goodbye to the receiver (waits for its answer, at most `timeout` seconds), then stop."""
        if os.getpid() != self.pid:
            return
        until = time.monotonic() + timeout
        self.tx.closing = True
        while self.tx.open and not self.tx.bye_heard and not self.stopped and time.monotonic() < until:
            self.wait(self.generation, 0.002)
        self.stop()
        self._fail_all()

    def _fail_all(self):
        """The loop has ended: so does every slice that it still had."""
        with self.guard:
            self.collect(af_now_ns())
            af_tx_fail_all(self.tx, CANCELLED, af_now_ns())
            aiflow_tx_lock(&self.mail)
            af_mail_notify(&self.mail)
            aiflow_tx_unlock(&self.mail)

    # ---- what is to be seen ----

    @property
    def receiver(self):
        """Name of the receiver that we are joined to, or None."""
        return self.last_receiver if self.tx.open else None

    @property
    def last_receiver(self):
        """Name of the receiver that we were joined to last, "" before the first."""
        return bytes(self.tx.receiver).split(b"\0")[0].decode(errors="replace")

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
        counts = {DROPS[i]: self.tx.drops[i] for i in range(1, len(DROPS))}
        counts["segments"] += self.unseen[0]
        counts["vlan"] += self.unseen[1]
        return counts

    def counters(self):
        """Reports heard, probes sent, and losses that were none."""
        return {"reports": self.tx.reports, "probes": self.tx.probes,
                "spurious": sum(self.tx.ports[i].w.spurious for i in range(self.tx.nb_ports))}

    def port_rows(self):
        """Counters of every attached port, for the port table."""
        cdef af_tx_port *slot
        rows = []
        for index, port in enumerate(self.attached_ports):
            if port is None:
                continue
            slot = &self.tx.ports[index]
            rows.append({"index": index, "port": port, "dst": bytes(slot.dst[:6]) if slot.open else None,
                         "frames": slot.count.tx_frames, "bytes": slot.count.tx_bytes,
                         "rx_frames": slot.count.rx_frames, "rx_bytes": slot.count.rx_bytes,
                         "again": slot.count.again, "lost": slot.count.lost, "flying": slot.w.flying,
                         "window": slot.w.limit, "rtt_ns": slot.w.rtt_ns, "usable": slot.open and not slot.aside,
                         "gap_ns": slot.pace.gap_ns, "signals": slot.pace.signals,
                         "sent": slot.w.seen, "arrived": slot.arrived})
        return rows

    def samples(self):
        """The two newest of the monitor's samples, (ns, a dict for each port), or None before there are two."""
        return sample_rows(&self.tx.monitor)

    def answers(self):
        """For each attached port, the ports of receivers that answered it: (epoch, index)."""
        cdef af_tx_port *slot
        found = {}
        for index, port in enumerate(self.attached_ports):
            if port is not None:
                slot = &self.tx.ports[index]
                found[index] = [(slot.candidates[i].epoch, slot.candidates[i].port)
                                for i in range(slot.nb_candidates)]
        return found

    # ---- the loop ----

    cdef void collect(self, uint64_t now) noexcept nogil:
        cdef af_tx_slice *s
        cdef af_tx_slice *following
        aiflow_tx_lock(&self.mail)
        s = self.inbox
        self.inbox = NULL
        self.inbox_tail = &self.inbox
        aiflow_tx_unlock(&self.mail)
        while s != NULL:
            following = s.next
            af_tx_enqueue(self.tx, s)
            s = following
