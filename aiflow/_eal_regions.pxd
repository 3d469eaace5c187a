# Memory of `aiflow.empty`, which network cards may read where it lies.

from aiflow.librte.rte_mbuf cimport rte_mbuf_ext_shared_info

cdef rte_mbuf_ext_shared_info *lend(const void *ptr, size_t nbytes) noexcept
cdef bint card_opened() noexcept
cdef void card_closed() noexcept
cdef void sweep() noexcept
