# The C core of loans: see include/aiflow/rt/ledger.h.

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "aiflow/wire/loan.h" nogil:
    enum:
        AF_LOAN_PIECES

    struct af_loan_piece:
        uint64_t offset
        uint32_t first

    uint32_t af_loan_bytes(uint32_t nb_pieces) noexcept


cdef extern from "aiflow/rt/ledger.h" nogil:
    enum:
        AF_LEASES
        AF_LEDGER_BYTES

    struct af_loan:
        uint8_t *base
        uint64_t nbytes

    struct af_lender:
        uint64_t pool
        bint mapped
        uint32_t nb_open

    struct af_borrowed:
        uint32_t holds
        uint64_t pool
        const uint8_t *base
        uint64_t nbytes
        void *words

    void af_loan_drop(af_loan *loan) noexcept
    void af_lender_init(af_lender *lender, uint64_t pool, void *words) noexcept
    uint32_t af_lender_sweep(af_lender *lender) noexcept
    void af_lender_forget(af_lender *lender, bint stay) noexcept
    void af_borrowed_drop(af_borrowed *borrowed) noexcept
