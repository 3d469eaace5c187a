"""Arrays that slices are received into: what a call offers to the loop, and arrays in the Receiver's own memory."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from cpython.exc cimport PyErr_CheckSignals
from posix.unistd cimport getpid, usleep
from aiflow._core_memory cimport (
    AF_FILL_DONE, AF_FILL_MORE, AF_INTO_STREAMS, af_arena_block_at, af_arena_fill, af_arena_give, af_arena_take,
    af_fill,
)
from aiflow.errors import PoolExhausted

cdef uint64_t STEP = 4 << 20  # bytes of fresh pages between two looks for signals: the loop needs the arena's lock, too
MOST_STREAMS = AF_INTO_STREAMS


cdef class Offer:
    """Arrays for the next slice that is granted. The agent keeps it while the loop may write to them.

    Parameters
    ----------
    store : Store
        Of the Receiver.
    streams : list of tuple
        Of at most `MOST_STREAMS` streams: name, form of a row, form of the whole array, rows, bytes, address; the first
        three as in a manifest.
    arrays : list of ndarray
    """

    def __init__(self, Store store, list streams, arrays):
        cdef uint32_t i = 0
        cdef bytes name, rows, alone
        cdef uint64_t nb_rows, nbytes = 0
        cdef uintptr_t to = 0
        if len(streams) > <int>AF_INTO_STREAMS:
            raise IndexError(f"{len(streams)} streams in one offer")
        self.store = store
        self.kept = [arrays]
        for name, rows, alone, nb_rows, nbytes, to in streams:
            self.kept += [name, rows, alone]
            self.into.streams[i].stream = <const uint8_t *><char *>name
            self.into.streams[i].rows = <const uint8_t *><char *>rows
            self.into.streams[i].alone = <const uint8_t *><char *>alone
            self.into.streams[i].stream_len = <uint32_t>len(name)
            self.into.streams[i].rows_len = <uint32_t>len(rows)
            self.into.streams[i].alone_len = <uint32_t>len(alone)
            self.into.streams[i].nb_rows = <uint32_t>nb_rows
            self.into.streams[i].nbytes = nbytes
            self.into.streams[i].to = <uint8_t *>to
            i += 1
        self.into.nb_streams = i
        if i == 1 and nbytes:  # a sender knows one address a slice
            self.into.block = af_arena_block_at(&store.arena, <const void *>to)

    @property
    def wanted(self):
        """Does a call wait for it? No other call gets its slice then."""
        return self.into.wanted

    @wanted.setter
    def wanted(self, bint wanted):
        self.into.wanted = wanted

    @property
    def bound(self):
        """Has a slice these arrays?"""
        return self.into.bound and not self.into.freed


cdef class Block:
    """Bytes of a Receiver's element memory, charged to its limit until the last view of them is gone.

    Parameters
    ----------
    store : Store
    nbytes : int
    """

    def __init__(self, Store store, uint64_t nbytes):
        cdef af_fill fill = AF_FILL_MORE
        if self.block != NULL:
            raise TypeError("a Block is made once")
        self.store = store
        self.block = af_arena_take(&store.arena, nbytes, nbytes)
        if self.block == NULL:
            raise PoolExhausted(f"there are no {nbytes} bytes left of the Receiver's memory={store.arena.limit} bytes, "
                                f"of which slices and arrays hold {store.arena.used}: release some, or give the "
                                "Receiver more")
        self.nbytes = nbytes
        while fill == AF_FILL_MORE:
            with nogil:
                fill = af_arena_fill(&store.arena, self.block, STEP)
                usleep(20)
            PyErr_CheckSignals()
        if fill != AF_FILL_DONE:
            raise PoolExhausted(f"the system has no {nbytes} bytes of memory for this array now")

    def __dealloc__(self):
        if self.block != NULL and getpid() == self.store.pid:
            af_arena_give(&self.store.arena, self.block)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.store.arena.base + self.block.offset, self.nbytes, False, flags)

    def __len__(self):
        return self.nbytes
