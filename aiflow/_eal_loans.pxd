# Loans: memory of a Sender that receivers on its host read where it lies.

from libc.stdint cimport uint8_t, uint64_t
from aiflow._core_memory cimport af_arena, af_memory_groups
from aiflow._core_loans cimport af_lender, af_loan


cdef extern from "aiflow/loan/loan_pool.h" nogil:
    struct af_loan_pool:
        af_arena arena
        af_memory_groups groups

    enum af_loan_found:
        AF_LOAN_MADE
        AF_LOAN_FULL
        AF_LOAN_NO_PAGES

    af_loan_pool *af_loan_pool_new(uint64_t limit,
                                   uint64_t (*room)(const af_memory_groups *groups) noexcept nogil) noexcept
    void af_loan_pool_drop(af_loan_pool *pool) noexcept
    af_loan_found af_loan_pool_take(af_loan_pool *pool, uint64_t nbytes, af_loan **made) noexcept


cdef class Pool:
    cdef af_loan_pool *memory
    cdef readonly uint64_t number  # random, not 0
    cdef readonly bint closed
    cdef af_loan **loans           # that have a Loan, the lowest address first
    cdef size_t nb_loans
    cdef size_t room               # of `loans`
    cdef list lenders
    cdef int pid

    cdef size_t place_of(self, const uint8_t *address) noexcept
    cdef af_loan *find(self, const void *ptr, size_t nbytes) noexcept


cdef class Loan:
    cdef Pool pool
    cdef af_loan *loan


cdef class Lender:
    cdef af_lender *lender
    cdef uint64_t *words
    cdef int fd      # of the ledger, until `close`
    cdef int pid
    cdef bint ended  # its connection has ended, and so has the watch on its peer


cdef int freeze(object buffer) except -1
