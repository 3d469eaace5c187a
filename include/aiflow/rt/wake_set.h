/* The descriptors that wake a loop: its own eventfd, the doorbells of local peers, packet sockets, PCI interrupts.
 *
 * Two threads may sleep on one set: a driver, and a worker that has not noticed yet that a caller drives. Each has its
 * own array for poll. Only the driver drains descriptors, or it would take another sleeper's wake-up. A packet socket
 * is not drained: it is readable until its ring is read.
 *
 * A descriptor with an error would end every sleep at once. The error of a socket is read, which clears it. Any other
 * such descriptor is muted: it wakes no thread, and the set is not complete.
 */
#ifndef AIFLOW_WAKE_SET_H
#define AIFLOW_WAKE_SET_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "aiflow/rt/handoff.h"

#define AF_WAKE_MOST 64u /* descriptors of ports, and the loop's own */

/* The thread that sleeps. */
enum af_sleeper { AF_SLEEPER_WORKER, AF_SLEEPER_CALLER, AF_NB_SLEEPERS };

struct af_wake_set {
	uint32_t nb;                 /* control plane: w between two iterations */
	bool drains[AF_WAKE_MOST];   /* likewise: no socket, so it is read */
	uint32_t muted[AF_NB_SLEEPERS]; /* each as a driver: rw */
	struct pollfd fds[AF_NB_SLEEPERS][AF_WAKE_MOST]; /* the sleeper: rw. Entry 0: the loop's own eventfd */
};

static inline void
af_wake_init(struct af_wake_set *set, int wake_fd)
{
	*set = (struct af_wake_set){.nb = 1, .drains = {true}};
	for (int who = 0; who < AF_NB_SLEEPERS; who++)
		set->fds[who][0] = (struct pollfd){.fd = wake_fd, .events = POLLIN};
}

/* Between two iterations. False: there is no room. */
static inline bool
af_wake_add(struct af_wake_set *set, int fd)
{
	struct stat st;

	if (set->nb == AF_WAKE_MOST)
		return false;
	set->drains[set->nb] = fstat(fd, &st) == 0 && !S_ISSOCK(st.st_mode);
	for (int who = 0; who < AF_NB_SLEEPERS; who++)
		set->fds[who][set->nb] = (struct pollfd){.fd = fd, .events = POLLIN};
	set->nb++;
	return true;
}

/* Between two iterations. False: it is not in the set. */
static inline bool
af_wake_remove(struct af_wake_set *set, int fd)
{
	for (uint32_t i = 1; i < set->nb; i++) {
		int listed = set->fds[AF_SLEEPER_WORKER][i].fd;

		if (listed != fd && listed != ~fd)
			continue;
		set->nb--;
		set->drains[i] = set->drains[set->nb];
		for (int who = 0; who < AF_NB_SLEEPERS; who++) {
			set->muted[who] -= set->fds[who][i].fd < 0;
			set->fds[who][i] = set->fds[who][set->nb];
		}
		return true;
	}
	return false;
}

/* Does every descriptor wake us? */
static inline bool
af_wake_is_complete(const struct af_wake_set *set)
{
	return !set->muted[AF_SLEEPER_WORKER] && !set->muted[AF_SLEEPER_CALLER];
}

/* Sleep for `ns`, or until a descriptor is readable. `alone`: only the loop's own wakes. False: a signal ended it, and
 * the thread may have a handler to run. */
static inline bool
af_wake_wait(struct af_wake_set *set, enum af_sleeper who, bool alone, uint64_t ns)
{
	for (uint32_t i = 0; i < set->nb; i++)
		set->fds[who][i].revents = 0;
	return af_poll(set->fds[who], alone ? 1 : set->nb, ns) >= 0;
}

/* Read the error of a socket, which clears it. False: it is no socket, or there is none to read. */
static inline bool
af_wake_clear_error(int fd)
{
	int error = 0;
	socklen_t size = sizeof error;

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error;
}

/* Driver, after its sleep: drain what woke it. True: a port's descriptor did. */
static inline bool
af_wake_drain(struct af_wake_set *set, enum af_sleeper who)
{
	bool by_port = false;

	for (uint32_t i = 0; i < set->nb; i++) {
		struct pollfd *fd = &set->fds[who][i];
		short seen = fd->revents;

		fd->revents = 0;
		if (!seen || fd->fd < 0)
			continue;
		by_port |= i > 0;
		if (seen & (POLLERR | POLLHUP | POLLNVAL) && !af_wake_clear_error(fd->fd)) {
			fd->fd = ~fd->fd; /* the other sleeper finds out by itself */
			set->muted[who]++;
		} else if (set->drains[i]) {
			af_handoff_drain_fd(fd->fd);
		}
	}
	return by_port;
}

#endif
