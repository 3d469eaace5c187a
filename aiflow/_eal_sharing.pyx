# cython: language_level=3
"""Memory that the receivers at the other end of a connection share: mapped here, for senders to write to.

See include/aiflow/tx/placing.h. The mapping goes with the last port of the connection.
"""
import itertools

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport getpid

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

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(<uint32_t>AF_MOST_SHARED):
            if self.shared.memories[i].base != NULL and getpid() == self.pid:  # a forked child has no mapping of it
                munmap(self.shared.memories[i].base, self.shared.memories[i].nbytes)

    def take(self, int fd, uint64_t epoch, uint64_t nbytes, uint64_t warm):
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
            af_shared_add(&self.shared, base, nbytes, epoch)
        return True

    @property
    def epochs(self):
        """Instances of the receivers whose memory is mapped."""
        cdef uint32_t i
        return [self.shared.memories[i].epoch for i in range(<uint32_t>AF_MOST_SHARED)
                if self.shared.memories[i].base != NULL]
