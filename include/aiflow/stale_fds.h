/* Keeps DPDK's interrupt thread alive when a memif peer dies between connect and accept.
 *
 * memif's listener (22.11 to 26.07: memif_listener_handler) registers an accepted connection with the interrupt thread and
 * then sends its first message. When that fails it closes the descriptor without unregistering it, and the thread
 * panics when it next rebuilds its epoll set, for all registered descriptors must be open. So a descriptor that never
 * becomes readable is put in the place of such a one, before that rebuild: the gate's eventfd stays readable, which
 * puts our callback in front of the pipe that asks for the rebuild. (Two peers of one process that die like this within
 * one turn of the thread, a few milliseconds, are one too many.)
 */
#ifndef AIFLOW_STALE_FDS_H
#define AIFLOW_STALE_FDS_H

#include <fcntl.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <rte_interrupts.h>

#include "gate.h"
#include "log_tail.h"

#define AF_STALE_FDS 4096 /* descriptors that are looked at */

struct af_warden {
    struct af_gate *gate;
    struct af_log *log;
    uint64_t seen;                  /* bytes logged as of the last look: the failure logs an error first */
    struct rte_intr_handle *handle; /* to ask with */
    int null_fd;                    /* never readable */
    uint64_t mended;
};

static inline int af_warden_init(struct af_warden *warden, struct af_gate *gate, struct af_log *log)
{
    *warden = (struct af_warden){.gate = gate, .log = log};
    warden->handle = rte_intr_instance_alloc(RTE_INTR_INSTANCE_F_PRIVATE);
    warden->null_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return warden->handle == NULL || warden->null_fd < 0 ? -1 : 0;
}

static void af_warden_asks(void *arg)
{
    (void)arg; /* registered nowhere: unregistering it says whether a descriptor is known, and changes nothing */
}

static inline void af_warden_look(struct af_warden *warden)
{
    for (int fd = 3; fd < AF_STALE_FDS; fd++) {
        int filler;

        if (fcntl(fd, F_GETFD) >= 0 || rte_intr_fd_set(warden->handle, fd) != 0 ||
            rte_intr_callback_unregister(warden->handle, af_warden_asks, NULL) < 0)
            continue;
        filler = fcntl(warden->null_fd, F_DUPFD_CLOEXEC, fd);
        if (filler != fd && filler >= 0)
            close(filler); /* somebody else has just opened that one */
        warden->mended++;
    }
}

/* The interrupt thread's callback. */
static void __attribute__((unused)) af_warden_callback(void *arg)
{
    struct af_warden *warden = arg;
    uint64_t written = __atomic_load_n(&warden->log->written, __ATOMIC_RELAXED);

    if (written != warden->seen) {
        warden->seen = written;
        af_warden_look(warden);
    }
    af_gate_callback(warden->gate);
}

#endif
