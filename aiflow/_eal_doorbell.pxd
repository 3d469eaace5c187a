# Doorbells of local peers, C-level face for _dp.

from libc.stdint cimport uint64_t


cdef extern from "aiflow/rt/doorbell.h" nogil:
    size_t AF_DOORBELL_BYTES

    struct af_doorbell:
        int fd            # our socket
        uint64_t rung

    void af_doorbell_init(af_doorbell *bell, void *page, int side, int fd) noexcept
    void af_doorbell_sleep(af_doorbell *bell) noexcept
    void af_doorbell_awake(af_doorbell *bell) noexcept
    void af_doorbell_ring(af_doorbell *bell) noexcept


cdef class Doorbell:
    cdef af_doorbell bell
    cdef void *page            # mapped; the peer has it, too
    cdef object sock
