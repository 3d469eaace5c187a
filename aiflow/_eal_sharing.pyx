# cython: language_level=3
"""What the two processes of a connection share: the memory of receivers, and of senders that lend.

The memory of the peer's receivers is mapped here for senders to write to (include/aiflow/tx/placing.h), that of its
senders for receivers to read (include/aiflow/rt/ledger.h). A mapping goes with the last port of the connection, and
that of loans with the last slice in it.
"""
import itertools

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport getpid
from aiflow._core_loans cimport AF_LEDGER_BYTES, af_borrowed, af_borrowed_drop, af_lender_sweep
from aiflow._eal_loans cimport Lender, Pool

cdef extern from "<sys/mman.h>" nogil:
    int MADV_DONTFORK, MADV_HUGEPAGE, MAP_NORESERVE
    int madvise(void *addr, size_t length, int advice)

cdef extern from *:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    int MADV_POPULATE_WRITE

MOST_SHARED = AF_MOST_SHARED
_numbers = itertools.count(1)


def new_writer():
    """Number of a process that may write to our memory, unique in ours."""
    return next(_numbers)


cdef class Sharing:
    """What one connection shares.

    Attributes
    ----------
    writer : int
        Number of the process at its other end, from `new_writer`: it may write to the memory that we share. 0: none.
    """

    def __cinit__(self):
        self.pid = getpid()
        self.lenders = []

    def __dealloc__(self):
        cdef uint32_t i
        cdef Lender lender
        if getpid() != self.pid:  # a forked child has no mapping of memories, and reads loans like its parent
            return
        for lender in self.lenders:
            lender.ended = True
        for i in range(<uint32_t>AF_MOST_SHARED):
            if self.shared.memories[i].base != NULL:
                munmap(self.shared.memories[i].base, self.shared.memories[i].nbytes)
            if self.shared.borrowed[i] != NULL:
                af_borrowed_drop(self.shared.borrowed[i])

    def take(self, int fd, uint64_t epoch, uint64_t nbytes, uint64_t warm, bint borrows=False):
        """Map a receiver's memory, so that senders of this process write to it. In one thread at a time.

        Parameters
        ----------
        fd : int
            Descriptor of the memory, of at least `nbytes` bytes, that cannot shrink.
        epoch : int
            Instance of the receiver, not 0.
        nbytes : int
        warm : int
            Bytes at its beginning that have their pages, which are mapped now; 0: each is at its first use.
        borrows : bool
            The receiver takes loans.

        Returns
        -------
        bool
            False if it cannot be mapped, or too many are: chunks for that receiver are carried.
        """
        cdef uint8_t *base
        if epoch in self.epochs:
            return True
        if len(self.epochs) == <int>AF_MOST_SHARED:
            return False
        with nogil:
            base = <uint8_t *>mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        if <void *>base == MAP_FAILED:
            return False
        if madvise(base, nbytes, MADV_DONTFORK):  # a child could write where another slice lies by then
            munmap(base, nbytes)
            return False
        with nogil:
            madvise(base, nbytes, MADV_HUGEPAGE)
            if warm:
                madvise(base, min(warm, nbytes), MADV_POPULATE_WRITE)
            af_shared_add(&self.shared, base, nbytes, epoch, borrows)
        return True

    @property
    def epochs(self):
        """Instances of the receivers whose memory is mapped."""
        cdef uint32_t i
        return [self.shared.memories[i].epoch for i in range(<uint32_t>AF_MOST_SHARED)
                if self.shared.memories[i].base != NULL]

    # ---- loans ----

    def lend(self, Pool pool):
        """Lend to the peer out of a pool. In one thread at a time.

        Returns
        -------
        int or None
            Descriptor of the ledger, to be passed to the peer with the pool, and closed. None if the peer has it
            already, or has too many: what is on loan is copied for it.
        """
        cdef uint32_t i
        cdef Lender lender
        for i in range(<uint32_t>AF_MOST_SHARED):
            if self.shared.lenders[i] == NULL:
                break
            if self.shared.lenders[i].pool == pool.number:
                return None
        else:
            return None
        if pool.closed:
            return None
        lender = Lender(pool)
        self.lenders.append(lender)
        self.shared.lenders[i] = lender.lender
        return lender.pass_on()

    def note_mapped(self, uint64_t number):
        """The peer has mapped the pool of this number: slices may be lent from now on."""
        cdef uint32_t i
        for i in range(<uint32_t>AF_MOST_SHARED):
            if self.shared.lenders[i] != NULL and self.shared.lenders[i].pool == number:
                self.shared.lenders[i].mapped = True

    def borrow(self, uint64_t number, int fd, uint64_t nbytes, int ledger):
        """Map a sender's pool, to be read, and its ledger. In one thread at a time.

        Parameters
        ----------
        number : int
            Of the pool, not 0.
        fd, ledger : int
            Descriptors, of at least `nbytes` bytes and of a ledger's bytes, that cannot shrink.
        nbytes : int

        Returns
        -------
        bool
            False if it cannot be mapped, or too many are: that sender copies.
        """
        cdef uint32_t i
        cdef af_borrowed *borrowed
        for i in range(<uint32_t>AF_MOST_SHARED):
            if self.shared.borrowed[i] == NULL:
                break
            if self.shared.borrowed[i].pool == number:
                return True
        else:
            return False
        borrowed = <af_borrowed *>calloc(1, sizeof(af_borrowed))
        if borrowed == NULL:
            return False
        borrowed.holds = 1
        borrowed.pool = number
        borrowed.nbytes = nbytes
        with nogil:
            borrowed.base = <const uint8_t *>mmap(NULL, nbytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0)
        if <const void *>borrowed.base == MAP_FAILED:
            free(borrowed)
            return False
        madvise(<void *>borrowed.base, nbytes, MADV_HUGEPAGE)
        borrowed.words = mmap(NULL, AF_LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ledger, 0)
        if borrowed.words == MAP_FAILED:
            munmap(<void *>borrowed.base, nbytes)
            free(borrowed)
            return False
        self.shared.borrowed[i] = borrowed
        return True

    @property
    def lent(self):
        """Leases that the peer's process may hold."""
        return sum([af_lender_sweep((<Lender>lender).lender) for lender in self.lenders])

    def forget(self, bint stay):
        """End all leases. stay: the peer lives, and nothing will tell when it is done. Else its process has ended."""
        for lender in self.lenders:
            lender.forget(stay)
