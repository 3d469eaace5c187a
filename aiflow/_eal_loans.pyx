# cython: language_level=3
"""Loans: arrays in memory that a Sender shares, and that receivers on its host read where they lie.

See include/aiflow/rt/ledger.h. A `Pool` is a Sender's memory, a `Loan` a block of it, and a `Lender` the ledger of one
connection. A block is free again when its Loan is gone and no process holds a lease on it. A forked child has the
parent's memory, and gives nothing back.
"""
import fcntl
import os

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_Check
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, strcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport getpid
from aiflow._core_loans cimport (
    AF_LEDGER_BYTES, af_lender, af_lender_forget, af_lender_init, af_lender_sweep, af_loan, af_loan_drop,
)
from aiflow._core_memory cimport AF_ROOM_GROUPS, AF_ROOM_PATH, af_arena_trim, af_memory_room
from aiflow._system import limits
from aiflow.errors import PoolExhausted

LEDGER_BYTES = AF_LEDGER_BYTES


cdef int freeze(object buffer) except -1:
    """Make the arrays read-only through which a loan is reached: its bytes are the receiver's, too, from now on."""
    while buffer is not None and type(buffer) is not Loan:
        if PyMemoryView_Check(buffer):
            buffer = buffer.obj
            continue
        flags = getattr(buffer, "flags", None)
        if hasattr(flags, "writeable"):
            flags.writeable = False
        buffer = getattr(buffer, "base", None)
    return 0


@cython.no_gc_clear  # its memory goes after its lenders
cdef class Pool:
    """The memory of a Sender's loans.

    Parameters
    ----------
    limit : int
        Bytes of all loans together.

    Attributes
    ----------
    number : int
        By which its ledgers and manifests name it.
    closed : bool
        No loan is made any more.

    Raises
    ------
    PoolExhausted
        No memory can be shared, or there are no addresses for it.
    """

    def __cinit__(self, uint64_t limit):
        self.lenders = []
        self.pid = getpid()
        self.number = int.from_bytes(os.urandom(8), "big") | 1
        self.memory = af_loan_pool_new(limit, af_memory_room)
        if self.memory == NULL:
            raise PoolExhausted(f"no memory for loans of {limit} bytes can be shared with other processes: pass a "
                                "smaller loan_memory=, or raise ulimit -v and ulimit -f")
        for group in [str(group).encode() for group in limits.cgroups("memory")][:AF_ROOM_GROUPS]:
            if len(group) < AF_ROOM_PATH:
                strcpy(self.memory.groups.paths[self.memory.groups.nb], group)
                self.memory.groups.nb += 1

    def __dealloc__(self):
        free(self.loans)
        if self.memory != NULL and getpid() == self.pid:
            af_loan_pool_drop(self.memory)

    @property
    def fd(self):
        """Descriptor of the memory."""
        return self.memory.arena.fd

    @property
    def nbytes(self):
        """Bytes to map of it."""
        return self.memory.arena.address_space

    @property
    def limit(self):
        """Bytes of all loans together."""
        return self.memory.arena.limit

    @property
    def used(self):
        """Bytes of loans that this process, or a receiver, holds."""
        return self.memory.arena.used

    def take(self, uint64_t nbytes):
        """A new Loan of `nbytes` bytes, at least 1, which are not zeroed.

        Raises
        ------
        PoolExhausted
            The memory is in use, or the system has too little.
        """
        cdef Loan made = Loan.__new__(Loan)
        cdef af_loan **more
        cdef af_loan_found found
        cdef size_t at
        self.sweep()
        if self.nb_loans == self.room:
            more = <af_loan **>realloc(self.loans, (2 * self.room + 64) * sizeof(af_loan *))
            if more == NULL:
                raise MemoryError(f"no memory to note a loan of {nbytes} bytes")
            self.loans = more
            self.room = 2 * self.room + 64
        with nogil:
            found = af_loan_pool_take(self.memory, nbytes, &made.loan)
        if found != AF_LOAN_MADE:
            raise self._exhausted(nbytes, found == AF_LOAN_FULL)
        made.pool = self
        at = self.place_of(made.loan.base)
        memmove(&self.loans[at + 1], &self.loans[at], (self.nb_loans - at) * sizeof(af_loan *))
        self.loans[at] = made.loan
        self.nb_loans += 1
        return made

    def _exhausted(self, uint64_t nbytes, bint full):
        cdef uint64_t ours = 0
        cdef size_t i
        if not full:
            return PoolExhausted(f"the system has no memory for a loan of {nbytes} bytes now: drop arrays, or make the "
                                 "loan smaller")
        for i in range(self.nb_loans):
            ours += self.loans[i].nbytes
        return PoolExhausted(
            f"no room for a loan of {nbytes} bytes: of the Sender's loan_memory of {self.limit} bytes, arrays of this "
            f"process hold {ours} bytes, and receivers have {self.lent} slices of loans that they have not released. "
            "Drop loans after send(), release slices over there, or pass a larger loan_memory=")

    @property
    def lent(self):
        """Leases that are not over, as of the last look."""
        return sum([(<Lender>lender).lender.nb_open for lender in self.lenders])

    def sweep(self):
        """Take back what receivers have released."""
        cdef Lender lender
        for lender in list(self.lenders):
            if af_lender_sweep(lender.lender) == 0 and lender.ended:
                self.lenders.remove(lender)

    def close(self):
        """Make no loans any more. Memory that receivers read goes on for them; the rest goes back to the system."""
        if self.closed or getpid() != self.pid:
            return
        self.closed = True
        self.sweep()
        with nogil:
            af_arena_trim(&self.memory.arena)
        for lender in self.lenders:
            lender.forget(True)
        self.lenders.clear()

    cdef size_t place_of(self, const uint8_t *address) noexcept:
        """Index of the first loan that begins after `address`."""
        cdef size_t low = 0, high = self.nb_loans, middle
        while low < high:
            middle = low + (high - low) // 2
            if self.loans[middle].base > address:
                high = middle
            else:
                low = middle + 1
        return low

    cdef af_loan *find(self, const void *ptr, size_t nbytes) noexcept:
        """The loan that has all of these bytes, or NULL."""
        cdef const uint8_t *start = <const uint8_t *>ptr
        cdef size_t at = self.place_of(start)
        cdef af_loan *loan
        if at == 0:
            return NULL
        loan = self.loans[at - 1]
        return loan if start + nbytes <= loan.base + loan.nbytes else NULL


@cython.no_gc_clear
cdef class Loan:
    """The memory of one loan. It exports a buffer. Made by `Pool.take`."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.loan == NULL:
            raise BufferError("no loan is behind it")
        PyBuffer_FillInfo(view, self, self.loan.base, self.loan.nbytes, 0, flags)

    def __dealloc__(self):
        cdef size_t at
        cdef af_loan *loan = self.loan
        if loan == NULL or self.pool is None:
            return
        at = self.pool.place_of(loan.base) - 1
        self.pool.nb_loans -= 1
        memmove(&self.pool.loans[at], &self.pool.loans[at + 1], (self.pool.nb_loans - at) * sizeof(af_loan *))
        self.loan = NULL
        if getpid() == self.pool.pid:
            with nogil:
                af_loan_drop(loan)


cdef class Lender:
    """The ledger of a pool, for one connection.

    Parameters
    ----------
    pool : Pool

    Raises
    ------
    OSError
        It cannot be made.
    """

    def __cinit__(self, Pool pool):
        self.pid = getpid()
        self.fd = -1
        self.fd = os.memfd_create("aiflow-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, AF_LEDGER_BYTES)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.lender = <af_lender *>calloc(1, sizeof(af_lender))
        if self.lender == NULL:
            raise MemoryError("no memory for a ledger of loans")
        self.words = <uint64_t *>mmap(NULL, AF_LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if <void *>self.words == MAP_FAILED:
            self.words = NULL
            raise MemoryError("no memory for a ledger of loans")
        af_lender_init(self.lender, pool.number, self.words)
        pool.lenders.append(self)

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)
        if getpid() != self.pid:
            return
        if self.lender != NULL and self.words != NULL:
            af_lender_forget(self.lender, True)
        if self.words != NULL:
            munmap(self.words, AF_LEDGER_BYTES)
        free(self.lender)

    def pass_on(self):
        """Return the ledger's descriptor, once: it is the caller's from then on."""
        fd, self.fd = self.fd, -1
        return fd

    def forget(self, bint stay):
        """End all leases. stay: readers live, and nothing will tell when they are done."""
        if getpid() == self.pid:
            with nogil:
                af_lender_forget(self.lender, stay)
