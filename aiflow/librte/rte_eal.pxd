# rte_eal.h, rte_lcore.h, rte_errno.h, rte_log.h, rte_dev.h, rte_bus_vdev.h, rte_version.h: DPDK's environment
from libc.stdint cimport uint64_t
from libc.stdio cimport FILE


cdef extern from "rte_eal.h" nogil:
    int rte_eal_init(int argc, char **argv) noexcept
    int rte_eal_has_hugepages() noexcept

    enum rte_iova_mode:
        RTE_IOVA_VA
    rte_iova_mode rte_eal_iova_mode() noexcept


cdef extern from "rte_errno.h" nogil:
    int rte_errno  # per lcore or thread
    const char *rte_strerror(int errnum) noexcept


cdef extern from "rte_log.h" nogil:
    int rte_openlog_stream(FILE *f) noexcept
    void rte_log_set_global_level(unsigned int level) noexcept
    int rte_log_set_level_pattern(const char *pattern, unsigned int level) noexcept


cdef extern from "rte_lcore.h" nogil:
    unsigned int LCORE_ID_ANY
    unsigned int rte_lcore_id() noexcept
    int rte_thread_register() noexcept
    void rte_thread_unregister() noexcept
    unsigned int rte_socket_id() noexcept


cdef extern from "rte_dev.h" nogil:
    int rte_eal_hotplug_add(const char *busname, const char *devname, const char *drvargs) noexcept
    int rte_eal_hotplug_remove(const char *busname, const char *devname) noexcept

    enum rte_dev_event_type:
        RTE_DEV_EVENT_ADD
        RTE_DEV_EVENT_REMOVE

    ctypedef void (*rte_dev_event_cb_fn)(
        const char *device_name, rte_dev_event_type event, void *cb_arg) noexcept
    int rte_dev_event_callback_register(
        const char *device_name, rte_dev_event_cb_fn cb_fn, void *cb_arg) noexcept
    int rte_dev_event_callback_unregister(
        const char *device_name, rte_dev_event_cb_fn cb_fn, void *cb_arg) noexcept


cdef extern from "rte_bus_vdev.h" nogil:
    int rte_vdev_init(const char *name, const char *args) noexcept


cdef extern from "rte_memory.h" nogil:
    int SOCKET_ID_ANY


cdef extern from "rte_vfio.h" nogil:
    int RTE_VFIO_DEFAULT_CONTAINER_FD
    int rte_vfio_is_enabled(const char *modname) noexcept
    int rte_vfio_container_dma_map(int container_fd, uint64_t vaddr, uint64_t iova, uint64_t len) noexcept
    int rte_vfio_container_dma_unmap(int container_fd, uint64_t vaddr, uint64_t iova, uint64_t len) noexcept


cdef extern from "rte_version.h" nogil:
    const char *rte_version() noexcept
    int RTE_VER_YEAR
    int RTE_VER_MONTH
