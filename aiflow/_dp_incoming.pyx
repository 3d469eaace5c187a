"""A slice that came whole: its elements as views of the memory that they lie in.

Ownership: View → Incoming (a slice) → Store (element memory, or the pools of the mbufs that it kept). Each holds the
next, so every view keeps its memory, whatever is dropped first and in whatever thread. The last view gives it back.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.stdint cimport intptr_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memmove, strcpy
from posix.unistd cimport getpid
from aiflow._core cimport (
    AF_MBUF_OVERHEAD, af_rx_element_at, af_rx_give_back, af_rx_is_one_piece, af_rx_slice_free, af_verdicts_free,
    af_verdicts_push,
)
from aiflow._core_memory cimport (
    AF_ARENA_NONE, AF_ARENA_PRIVATE, AF_ARENA_SHARED, AF_ROOM_GROUPS, AF_ROOM_PATH, af_arena_block_at, af_arena_free,
    af_arena_init, af_arena_kind, af_arena_shrink, af_arena_trim, af_arena_warm, af_block, af_memory_room,
)
from aiflow.librte.rte_mbuf cimport rte_mbuf, rte_pktmbuf_free
from aiflow._system import limits
from aiflow.errors import PoolExhausted

MBUF_OVERHEAD = AF_MBUF_OVERHEAD
cdef bytes DROPPED = b"the receiver dropped it without confirm() or release()"


cdef void release_mbuf(void *handle) noexcept nogil:
    rte_pktmbuf_free(<rte_mbuf *>handle)


cdef class Store:
    """Element memory of one Receiver; lives until the last slice out of it is gone."""

    def __init__(self, uint64_t limit, bint with_memory, bint shared=False):
        cdef af_arena_kind kind = AF_ARENA_PRIVATE if with_memory else AF_ARENA_NONE
        if with_memory and shared:
            kind = AF_ARENA_SHARED
        if af_arena_init(&self.arena, limit, kind):
            raise PoolExhausted(f"no address space for {limit} bytes of element memory: pass a smaller memory="
                                f"{limits.address_space_words()}")
        for group in [str(group).encode() for group in limits.cgroups("memory")][:AF_ROOM_GROUPS]:
            if len(group) < AF_ROOM_PATH:
                strcpy(self.groups.paths[self.groups.nb], group)
                self.groups.nb += 1
        self.arena.groups = &self.groups
        self.arena.room = af_memory_room
        self.ready = True
        self.pools = []
        self.pid = os.getpid()

    def __dealloc__(self):
        af_verdicts_free(&self.verdicts)
        if self.ready:
            af_arena_free(&self.arena, getpid() == self.pid)

    def prefault(self):
        """Give all memory its pages now. Raises PoolExhausted when there are too few."""
        self.warm = self.arena.limit
        cdef bint done
        with nogil:
            done = af_arena_warm(&self.arena)
        if not done and self.arena.base != NULL:
            raise PoolExhausted(f"prefault=True: the system has no {self.arena.limit} bytes for this Receiver now: "
                                "pass a smaller memory=, or leave prefault out")

    @property
    def shared(self):
        """Descriptor of the memory and its size, for senders on this host; None: it is private."""
        return (self.arena.fd, self.arena.address_space) if self.arena.fd >= 0 else None

    @property
    def fenced(self):
        """Blocks that a silent sender may still write to, and that no slice gets meanwhile."""
        return self.arena.fenced

    def fenced_at(self, uintptr_t address):
        """Does an address lie in a block that a silent sender may still write to?"""
        cdef af_block *block = af_arena_block_at(&self.arena, <const void *>address)
        return block != NULL and block.fenced

    def trim(self):
        """Give free memory back to the system, now and later. The Receiver takes no more slices."""
        if self.ready and self.pid == os.getpid():
            with nogil:
                af_arena_trim(&self.arena)

    @property
    def used(self):
        """Bytes that slices hold now, granted ones included."""
        return self.arena.used

    @property
    def limit(self):
        """The most they may hold."""
        return self.arena.limit


@cython.no_gc_clear  # else the collector of a cycle clears the Store first, and the memory is never given back
cdef class Incoming:
    """A whole slice. Its memory goes back when this object and every View of it are gone."""

    def __dealloc__(self):
        # A forked child has the parent's addresses, not its pools.
        if self.s != NULL and getpid() == self.store.pid:
            if self.awaited:
                self._judge(True, DROPPED)
            with nogil:
                af_rx_slice_free(self.s, release_mbuf)

    cdef int _judge(self, bint failed, bytes text) except -1:
        if not af_verdicts_push(&self.store.verdicts, self.s.session_id, self.s.id, failed, text, <uint32_t>len(text)):
            raise MemoryError("no memory for the outcome of a slice")
        self.awaited = False
        return 0

    @property
    def pid(self):
        """The process whose Receiver it came from."""
        return self.store.pid

    @property
    def is_heard(self):
        """Does its Receiver still run, so that a confirmation reaches the sender?"""
        loop = self.loop()
        return loop is not None and not loop.stopped

    def confirm(self):
        """Tell the sender that the slice is delivered. Once; more calls do nothing."""
        if self.awaited:
            self._judge(False, b"")
            self._nudge()

    def fail(self, bytes text):
        """Tell the sender that the slice is not delivered, and why (see `aiflow._transfer.verdicts`)."""
        if self.awaited:
            self._judge(True, text)
            self._nudge()

    cdef _nudge(self):
        loop = self.loop()
        if loop is not None:
            loop.nudge()

    @property
    def slice_id(self):
        """Number within its sender's session."""
        return self.s.id

    @property
    def sender(self):
        """The sender's name."""
        return (<const char *>self.s.sender).decode("utf-8", "replace")

    @property
    def instance(self):
        """The sender's instance: 48 random bits, the same through all its sessions."""
        return self.s.instance

    @property
    def nbytes(self):
        """Bytes of all elements."""
        return self.s.nbytes

    @property
    def nb_elements(self):
        """Number of elements."""
        return self.s.nb_elements

    @property
    def charged(self):
        """Bytes that it holds of the Receiver's memory."""
        return self.s.block.charged

    @property
    def frames(self):
        """Data frames that brought it."""
        return self.s.frames

    @property
    def seconds(self):
        """From its first frame to its last."""
        return (self.s.whole_ns - self.s.first_ns) / 1e9

    @property
    def times(self):
        """ns on the monotonic clock: its first frame arrived, and its last."""
        return self.s.first_ns, self.s.whole_ns

    @property
    def manifest(self):
        """The manifest, as it was sent, without extensions: they differ for each loan, and the runs are remembered."""
        return (<char *>self.s.manifest)[:self.s.runs_bytes]

    @property
    def assembled(self):
        """Are the elements contiguous in memory (True), or in the mbufs that brought them?"""
        return self.s.kept == NULL

    def element_bytes(self, uint32_t index):
        """Size of an element."""
        return self.s.elements[index].nbytes

    def latency_ns(self, uint32_t index):
        """From sending to arrival of an element's slowest frame; 0 where the clocks disagree."""
        return self.s.elements[index].latency_ns

    def view(self, uint32_t index, uint32_t count=1):
        """The memory of `count` consecutive elements that are one piece, no copy. Assembled slices only.

        It is writable, but for loans.
        """
        cdef View view = View.__new__(View)
        cdef uint64_t last = <uint64_t>index + count - 1
        if <uint64_t>index + count > self.s.nb_elements:
            raise IndexError(f"elements {index} to {last} of {self.s.nb_elements}")
        view.owner = self
        if count:
            view.ptr = af_rx_element_at(self.s, &self.s.elements[index])
            view.nbytes = self.s.elements[last].offset + self.s.elements[last].nbytes - self.s.elements[index].offset
        view.writable = self.s.borrowed == NULL
        return view

    def address(self, uint32_t index):
        """Where an element lies. Assembled slices only."""
        return <uintptr_t>af_rx_element_at(self.s, &self.s.elements[index])

    def move(self, uint32_t index, uint32_t count, uintptr_t to):
        """Copy `count` consecutive elements of one run to this address, where they lie from now on.

        The caller keeps that memory in `arrays`. The element memory goes back when no element lies in it any more.
        """
        cdef View source = self.view(index, 1 if self.s.borrowed != NULL else count)
        cdef uint64_t shift = to - <uintptr_t>source.ptr
        cdef uint32_t i
        if self.s.borrowed != NULL and count > 1:  # its elements may lie in several loans
            for i in range(index, index + count):
                self.move(i, 1, to)
                to += self.s.elements[i].nbytes
            return
        if to != <uintptr_t>source.ptr:
            with nogil:
                memmove(<void *>to, source.ptr, source.nbytes)
            for i in range(index, index + count):
                self.s.elements[i].offset += shift
            self.copied += source.nbytes
            if self._is_inside(source.ptr):
                self.nb_moved += count  # not those that have left the block before
        if self.s.borrowed != NULL:
            if self.nb_moved == self.s.nb_elements:
                af_rx_give_back(self.s)
        elif self.nb_moved == self.s.nb_elements and self.s.into == NULL:
            af_arena_shrink(self.s.arena, self.s.block, self.s.charge_bytes - self.s.nbytes)

    cdef bint _is_inside(self, const uint8_t *at):
        """Does an element there lie in the slice's own memory, or in that of its sender?"""
        if self.s.borrowed != NULL:
            return self.s.borrowed.base <= at < self.s.borrowed.base + self.s.borrowed.nbytes
        return 0 <= <intptr_t>at - <intptr_t>self.s.arena.base - <intptr_t>self.s.block.offset < \
            <intptr_t>self.s.block.size

    def is_one_piece(self, uint32_t index, uint32_t count):
        """Do `count` consecutive elements of one run follow each other in memory, without a gap?"""
        return self.assembled and bool(af_rx_is_one_piece(self.s, index, count))

    def segments(self, uint32_t index):
        """The payloads that an element came in, in order: read-only Views of the mbufs. Kept slices only.

        A small element shares its mbuf with its neighbours; its only segment is its own part.
        """
        cdef list views = []
        cdef uint64_t nbytes = self.s.elements[index].nbytes, offset = 0
        cdef uint32_t chunk = self.s.elements[index].first_chunk, first = index
        if nbytes <= self.s.payload_bytes:
            while first and self.s.elements[first - 1].first_chunk == chunk:
                first -= 1
                offset += self.s.elements[first].nbytes
            views.append(self._segment(chunk, offset, nbytes))
            return views if nbytes else []
        while nbytes:
            views.append(self._segment(chunk, 0, self.s.kept[chunk].nbytes))
            nbytes -= self.s.kept[chunk].nbytes
            chunk += 1
        return views

    cdef View _segment(self, uint32_t chunk, uint64_t offset, uint64_t nbytes):
        cdef View view = View.__new__(View)
        view.owner = self
        view.ptr = <uint8_t *>self.s.kept[chunk].payload + offset
        view.nbytes = nbytes
        view.writable = False
        return view


cdef class View:
    """A piece of a slice's memory with the buffer protocol; keeps the slice alive."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("what lies in loans or in received mbufs is read-only: copy what you want to change")
        PyBuffer_FillInfo(buffer, self, self.ptr, self.nbytes, not self.writable, flags)

    def __len__(self):
        return self.nbytes
