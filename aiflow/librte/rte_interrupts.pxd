# rte_interrupts.h: callbacks of the EAL interrupt thread. The instance calls are experimental before 23.11: a module
# that cimports this defines ALLOW_EXPERIMENTAL_API.
cdef extern from "rte_interrupts.h" nogil:
    ctypedef enum rte_intr_handle_type:
        RTE_INTR_HANDLE_EXT

    int RTE_INTR_INSTANCE_F_PRIVATE

    struct rte_intr_handle:
        pass

    ctypedef void (*rte_intr_callback_fn)(void *cb_arg) noexcept

    rte_intr_handle *rte_intr_instance_alloc(int flags) noexcept
    void rte_intr_instance_free(rte_intr_handle *intr_handle) noexcept
    int rte_intr_fd_set(rte_intr_handle *intr_handle, int fd) noexcept
    int rte_intr_type_set(rte_intr_handle *intr_handle, rte_intr_handle_type type) noexcept
    int rte_intr_callback_register(
        const rte_intr_handle *intr_handle, rte_intr_callback_fn cb, void *cb_arg) noexcept
