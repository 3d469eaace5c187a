"""A slice in flight: its buffers, and what has become of it.

Memory: an `Outgoing` holds the buffer of every element, and the loop holds the Outgoing, until the state machine has
ended the slice. From then on nothing reads the buffers.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy
from aiflow._core cimport (
    AF_HEADER, AF_MAX_PORTS, AF_MBUF_OVERHEAD, AF_NB_TX_ERRORS, AF_TAIL_LEAST, AF_TX_ASKING, AF_TX_DONE, AF_TX_QUEUED,
    af_extent, af_manifest, af_manifest_measure, af_rx_need, af_span, af_tx_error_name, af_tx_give_up_rest,
    af_tx_loans, af_tx_whole,
)
from aiflow._core_loans cimport AF_LOAN_PIECES, af_loan, af_loan_bytes, af_loan_piece
from aiflow._dp_driver cimport aiflow_set
from aiflow._eal_loans cimport Pool, freeze
from aiflow._eal_regions cimport lend, sweep

cdef extern from *:
    """
    #include "aiflow/wire/loan.h"
    static inline void aiflow_put_piece(struct af_loan_piece *piece, uint64_t offset, uint32_t first)
    {
        *piece = (struct af_loan_piece){.offset = AF_BE64(offset), .first = AF_BE32(first)};
    }
    """
    void put_piece "aiflow_put_piece" (af_loan_piece *piece, uint64_t offset, uint32_t first) noexcept

# Names of the C table (include/aiflow/tx/tx_state.h).
ERRORS = tuple([af_tx_error_name(error).decode() for error in range(AF_NB_TX_ERRORS)])
CANCELLED = ERRORS.index("cancelled")
# After one of these the receiver may hold the slice all the same, provided that all of it was sent.
UNSURE = (0, CANCELLED, *map(ERRORS.index, ("silent", "restarted", "stalled")))


cdef class Outgoing:
    """One slice in flight. Made by `TxLoop.post`; `done` turns true once, and stays."""

    def __dealloc__(self):
        self._release()
        free(self.s.text)
        free(self.s.manifest)
        free(self.spans)
        free_loans(self.s.loans)

    cdef void _release(self):
        cdef Py_ssize_t i, n = self.nb_buffers
        cdef Py_buffer *buffers = self.buffers
        self.nb_buffers = 0  # first: code that a release runs may call this method again
        self.buffers = NULL
        for i in range(n):
            PyBuffer_Release(&buffers[i])
        free(buffers)
        sweep()

    cdef int _take(self, list buffers) except -1:
        """Hold every buffer. The caller has checked that they are C-contiguous."""
        cdef Py_ssize_t i, n = len(buffers)
        self.buffers = <Py_buffer *>calloc(max(n, 1), sizeof(Py_buffer))
        if self.buffers == NULL:
            raise MemoryError(f"no memory for {n} buffers")
        for i in range(n):
            PyObject_GetBuffer(buffers[i], &self.buffers[i], PyBUF_SIMPLE)
            self.nb_buffers += 1
        return 0

    cdef int _describe(self, bytes manifest, Py_ssize_t nb_elements) except -1:
        """Copy the manifest, and make room for `nb_elements` spans."""
        self.spans = <af_span *>malloc(max(nb_elements, 1) * sizeof(af_span))
        self.s.manifest = <uint8_t *>malloc(len(manifest))
        if self.spans == NULL or self.s.manifest == NULL:
            raise MemoryError(f"no memory to describe {nb_elements} elements")
        memcpy(self.s.manifest, <const char *>manifest, len(manifest))
        self.s.manifest_bytes = <uint32_t>len(manifest)
        self.s.elements = self.spans
        self.s.nb_elements = <uint32_t>nb_elements
        return 0

    cdef int _find_loans(self, Pool pool) except -1:
        """Note where a slice lies whose elements are all on loan; no others."""
        cdef af_tx_loans *loans
        cdef af_loan *loan = NULL
        cdef const uint8_t *end = NULL
        cdef const uint8_t *ptr
        cdef uint64_t nbytes
        cdef uint8_t *more
        cdef uint32_t i, nb = 0, most = 0
        if not self.s.nbytes:
            return 0
        loans = <af_tx_loans *>calloc(1, sizeof(af_tx_loans))
        self.s.loans = loans
        if loans == NULL:
            raise MemoryError("no memory to note loans")
        for i in range(self.s.nb_elements):
            ptr = self.spans[i].ptr
            nbytes = self.spans[i].nbytes
            if not nbytes:
                continue
            if loan == NULL or ptr < loan.base or ptr + nbytes > loan.base + loan.nbytes:
                loan = pool.find(ptr, nbytes)
                if loan == NULL or not grow_loans(loans, &most, nb):
                    free_loans(loans)
                    self.s.loans = NULL
                    return 0
                loans.held[loans.nb_held] = loan
                loans.nb_held += 1
            if ptr != end:
                if nb == AF_LOAN_PIECES or not grow_loans(loans, &most, nb):
                    free_loans(loans)
                    self.s.loans = NULL
                    return 0
                put_piece(&loans.pieces[nb], ptr - pool.memory.arena.base, i if nb else 0)
                nb += 1
            end = ptr + nbytes
        loans.nb_pieces = nb
        loans.pool = pool.number
        loans.manifest_bytes = self.s.manifest_bytes
        more = <uint8_t *>realloc(self.s.manifest, self.s.manifest_bytes + af_loan_bytes(nb))
        if more == NULL:
            raise MemoryError("no memory to describe loans")
        self.s.manifest = more
        return 0

    # ---- its state ----

    @property
    def done(self):
        """Has the slice ended, delivered or not? Then nothing reads its buffers any more."""
        return self.s.state >= AF_TX_DONE

    @property
    def delivered(self):
        """Does the receiver hold all of it: True, False, or None where that cannot be known."""
        if self.s.state == AF_TX_DONE:
            return True
        if self.s.error in UNSURE and self.s.all_sent:
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
    def text(self):
        """With "unknown" and "failed": the receiver's words."""
        return (self.s.text[:self.s.text_got] if self.s.text != NULL else b"").decode("utf-8", "replace")

    @property
    def held(self):
        """Has the receiver all of it, while its user has not confirmed it yet?"""
        return self.s.held and self.s.state < AF_TX_DONE

    @property
    def is_queued(self):
        """Does it wait for slices before it, or for a receiver?"""
        return self.s.state == AF_TX_QUEUED

    @property
    def has_receiver(self):
        """Has the receiver that it is for joined?"""
        return bool(self.tx.open)

    @property
    def waits_for_memory(self):
        """Has it asked the receiver for memory, and no grant yet?"""
        return self.s.state == AF_TX_ASKING

    # ---- what it is ----

    @property
    def parts(self):
        """A slice to several receivers has one for each (aiflow._transfer.fanout); this is one."""
        return [self]

    @property
    def receiver(self):
        """Index of its receiver among those of the loop."""
        return self.s.receiver

    @property
    def manifest(self):
        """The manifest, as it was sent."""
        cdef uint32_t nbytes = self.s.manifest_bytes if self.s.loans == NULL else self.s.loans.manifest_bytes
        return (<char *>self.s.manifest)[:nbytes]

    @property
    def needs(self):
        """Bytes that it takes of a receiver's memory, tables included. Known once the slice was segmented."""
        cdef af_manifest manifest
        cdef af_extent extent
        cdef uint64_t mbuf_bytes = AF_HEADER + self.s.payload_bytes + AF_MBUF_OVERHEAD if self.tx.keeps_mbufs else 0
        af_manifest_measure(self.s.manifest, self.s.manifest_bytes, &manifest, &extent)
        need = af_rx_need(&extent, self.s.manifest_bytes, self.s.nb_manifest + self.s.nb_data + 1, self.s.nb_data,
                          mbuf_bytes)
        # a manifest may take a quarter of the memory, and 64 KiB
        return max(int(need), 4 * (int(self.s.manifest_bytes) - 65536))

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

    # ---- its progress ----

    @property
    def acked_bytes(self):
        """Bytes that the receiver has acknowledged so far."""
        return min(self.s.acked_bytes, self.s.nbytes) if self.s.state != AF_TX_DONE else self.s.nbytes

    @property
    def seconds(self):
        """From the post to the end."""
        return (self.s.done_ns - self.s.posted_ns) / 1e9 if self.done else None

    @property
    def connecting(self):
        """Seconds from the post until a receiver was there for it; None while there is none."""
        return (self.s.joined_ns - self.s.posted_ns) / 1e9 if self.s.joined_ns else None

    @property
    def waited(self):
        """Seconds from the post to the grant; None when it needed none, or has none yet."""
        return (self.s.granted_ns - self.s.posted_ns) / 1e9 if self.s.granted_ns else None

    @property
    def frames(self):
        """Frames sent for this slice, and how many of them were retransmissions."""
        return self.s.frames, self.s.retransmits

    @property
    def placed_bytes(self):
        """Bytes that were written straight into the receiver's memory."""
        return self.s.placed_bytes

    @property
    def lent_bytes(self):
        """Bytes that the receiver reads where they lie in our loans."""
        return self.s.nbytes if self.s.lent else 0

    def port_frames(self):
        """Frames and bytes of this slice by index of the port."""
        cdef list rows = []
        cdef uint32_t index
        for index in range(<uint32_t>AF_MAX_PORTS):
            if self.s.port_frames[index]:
                rows.append((index, self.s.port_frames[index], self.s.port_bytes[index]))
        return rows

    @property
    def times(self):
        """ns on the monotonic clock: posted, a receiver was there, granted, ended; 0 for what did not come."""
        return self.s.posted_ns, self.s.joined_ns, self.s.granted_ns, self.s.done_ns

    # ---- its end ----

    def finish(self):
        """Give the buffers back. Only once it is done."""
        if self.s.state >= AF_TX_DONE:
            self._release()
            self.loop.forget(self)

    def cancel(self):
        """Give the slice up: returns once it has ended, delivered or not."""
        aiflow_set(self.s.cancel, 1)
        while self.s.state < AF_TX_DONE:
            generation = self.loop.generation
            self.loop.nudge()
            if self.s.state < AF_TX_DONE:
                self.loop.wait(generation, 0.01)
        self.finish()


def give_up(list posted, Py_ssize_t nb_parts):
    """End the parts of a slice that are in flight, and never post the others: nothing reads the buffers after this."""
    cdef af_tx_whole *whole
    cdef Outgoing part
    for part in posted:
        part.cancel()
    if 0 < len(posted) < nb_parts:  # the account waits for parts that do not come; the loop has left it
        whole = (<Outgoing>posted[0]).s.whole
        for part in posted:
            part.s.whole = NULL  # a second call finds none
        if whole != NULL:
            af_tx_give_up_rest((<Outgoing>posted[0]).tx.sends, whole)


cdef void *owner_of(Py_buffer *buffer, bint lends) noexcept:
    """What counts the frames that a card reads out of a buffer later; NULL where they are copied."""
    return <void *>lend(buffer.buf, buffer.len) if lends and buffer.len >= <Py_ssize_t>AF_TAIL_LEAST else NULL


cdef void free_loans(af_tx_loans *loans) noexcept:
    if loans != NULL:
        free(loans.held)
        free(loans.pieces)
        free(loans)


cdef bint grow_loans(af_tx_loans *loans, uint32_t *most, uint32_t nb_pieces) noexcept:
    """Make room for another block and another piece. False without memory."""
    cdef af_loan **held
    cdef af_loan_piece *pieces
    cdef uint32_t room = 2 * most[0] + 4
    if loans.nb_held < most[0] and nb_pieces < most[0]:
        return True
    held = <af_loan **>realloc(loans.held, room * sizeof(af_loan *))
    if held == NULL:
        return False
    loans.held = held
    pieces = <af_loan_piece *>realloc(loans.pieces, room * sizeof(af_loan_piece))
    if pieces == NULL:
        return False
    loans.pieces = pieces
    most[0] = room
    return True


cdef int take_loans(Outgoing out, list buffers, Pool pool) except -1:
    """The loans among the buffers become read-only. Where the whole slice lies in loans, it may be lent."""
    cdef Py_ssize_t i
    for i in range(out.nb_buffers):
        if out.buffers[i].len and pool.find(out.buffers[i].buf, out.buffers[i].len) != NULL:
            freeze(buffers[i])
    return out._find_loans(pool)


cdef Outgoing of_buffers(list buffers, bytes manifest, bint lends, Pool pool):
    """A slice of which each buffer is an element.

    lends: it may go over a card that reads memory where it lies. pool: of the Sender's loans, or None.
    """
    cdef Outgoing out = Outgoing.__new__(Outgoing)
    cdef Py_ssize_t i
    out._take(buffers)
    out._describe(manifest, out.nb_buffers)
    for i in range(out.nb_buffers):
        out.spans[i].ptr = <const uint8_t *>out.buffers[i].buf
        out.spans[i].nbytes = out.buffers[i].len
        out.spans[i].owner = owner_of(&out.buffers[i], lends)
        out.s.nbytes += out.buffers[i].len
    if pool is not None:
        take_loans(out, buffers, pool)
    return out


cdef Outgoing of_rows(object buffer, Py_ssize_t nb_rows, bytes manifest, bint lends, Pool pool):
    """A slice whose elements are the equal rows of one buffer."""
    cdef Outgoing out = Outgoing.__new__(Outgoing)
    cdef Py_ssize_t i, row_bytes
    cdef void *owner
    out._take([buffer])
    owner = owner_of(&out.buffers[0], lends)
    out._describe(manifest, nb_rows)
    row_bytes = out.buffers[0].len // nb_rows if nb_rows else 0
    for i in range(nb_rows):
        out.spans[i].ptr = <const uint8_t *>out.buffers[0].buf + i * row_bytes
        out.spans[i].nbytes = row_bytes
        out.spans[i].owner = owner
    out.s.nbytes = nb_rows * row_bytes
    if pool is not None:
        take_loans(out, [buffer], pool)
    return out
