/* Mutual exclusion of DPDK's interrupt thread and the polling threads.
 *
 * The EAL interrupt thread handles memif's control messages. It unmaps a dead peer's rings, which a worker may be
 * reading. So a callback of ours holds that thread. It leaves for one short turn at a time, after every worker has left
 * the gate. A worker that finds the gate closed sleeps on a futex. It never spins, because the interrupt thread may be
 * descheduled on an oversubscribed core.
 *
 *   worker            enter: one atomic add, and a test of the value it returned        leave: one atomic subtract
 *   interrupt thread  close, wait for the last worker, take its turn, open
 *
 * `word` holds the number of workers inside, and AF_INTR_GATE_CLOSED. One cache line, written by all.
 *
 * A turn needs a reason. Inside the callback the thread polls the epoll set of the interrupt thread: it is readable
 * when a source has an event (a message or the death of a memif peer, an alarm, a link change). So the thread rests
 * while nothing happens. Turns keep a distance, whatever the sources do: a short one while a connection is made.
 *
 * The control plane plugs and removes ports while it *holds* the interrupt thread inside the callback, so no callback
 * of a removed port is running. The callback belongs to an eventfd, which is readable when the thread leaves for a
 * turn. So the next round of the thread's epoll loop enters it, and one turn serves all that is pending. The control
 * plane writes the same eventfd to end the poll. Without gated ports it is drained, and the thread runs free.
 */
#ifndef AIFLOW_INTR_GATE_H
#define AIFLOW_INTR_GATE_H

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define AF_INTR_GATE_CLOSED 0x80000000u

struct af_intr_gate {
	_Atomic uint32_t word;   /* workers: rw, interrupt thread: rw */
	_Atomic uint64_t turns;  /* turns the interrupt thread took; interrupt thread: rw, others: ro */

    /* read and written under `lock`, by the control plane and the interrupt thread */
	pthread_mutex_t lock __attribute__((aligned(64)));
	pthread_cond_t changed;
	int wake_fd;     /* eventfd: readable to call the interrupt thread into the callback, or out of its poll */
	int armed;       /* wake_fd is readable */
	int gated;       /* open ports that need the gate */
	int connecting;  /* connections that are being made: turns may follow each other closely */
	int holds;       /* control planes at work: the interrupt thread stays inside */
	int inside;      /* the interrupt thread is in the callback */
	int epoll_fd;    /* its epoll set, which has wake_fd; -1: not found. Interrupt thread: rw */
} __attribute__((aligned(64)));

#define AF_INTR_GATE_IDLE_NS 20000000      /* least time between turns when nothing is expected */
#define AF_INTR_GATE_CONNECTING_NS 100000  /* during a memif handshake, which takes about twelve turns per port */

static inline void
af_futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
	syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static inline void
af_futex_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Slow path of af_intr_gate_enter: step back out, sleep until the gate opens, try again. */
static void __attribute__((noinline, unused))
af_intr_gate_wait(struct af_intr_gate *gate)
{
	for (;;) {
		uint32_t seen = atomic_fetch_sub_explicit(&gate->word, 1, memory_order_release) - 1;

		if (seen == AF_INTR_GATE_CLOSED)
			af_futex_wake(&gate->word);
		while (seen & AF_INTR_GATE_CLOSED) {
			af_futex_wait(&gate->word, seen);
			seen = atomic_load_explicit(&gate->word, memory_order_relaxed);
		}
		if (!(atomic_fetch_add_explicit(&gate->word, 1, memory_order_acquire) & AF_INTR_GATE_CLOSED))
			return;
	}
}

/* Before an iteration's bursts on gated ports. Never while holding the GIL; nothing that blocks before the leave. */
static inline void
af_intr_gate_enter(struct af_intr_gate *gate)
{
	if (__builtin_expect(atomic_fetch_add_explicit(&gate->word, 1, memory_order_acquire) & AF_INTR_GATE_CLOSED, 0))
		af_intr_gate_wait(gate);
}

/* After them. Received mbufs may be kept, because a memif port copies into them. */
static inline void
af_intr_gate_leave(struct af_intr_gate *gate)
{
	if (__builtin_expect(atomic_fetch_sub_explicit(&gate->word, 1, memory_order_release) - 1 == AF_INTR_GATE_CLOSED,
			     0))
		af_futex_wake(&gate->word);
}

/* Interrupt thread: returns once no worker is inside. Workers that arrive meanwhile sleep. */
static inline void
af_intr_gate_close(struct af_intr_gate *gate)
{
	uint32_t seen =
		atomic_fetch_or_explicit(&gate->word, AF_INTR_GATE_CLOSED, memory_order_acq_rel) | AF_INTR_GATE_CLOSED;

	while (seen != AF_INTR_GATE_CLOSED) {
		af_futex_wait(&gate->word, seen);
		seen = atomic_load_explicit(&gate->word, memory_order_acquire);
	}
}

static inline void
af_intr_gate_open(struct af_intr_gate *gate)
{
	atomic_fetch_and_explicit(&gate->word, ~AF_INTR_GATE_CLOSED, memory_order_release);
	atomic_fetch_add_explicit(&gate->turns, 1, memory_order_relaxed);
	af_futex_wake(&gate->word);
}

/* wake_fd: an eventfd, non-blocking. Returns 0 or an errno. */
static inline int
af_intr_gate_init(struct af_intr_gate *gate, int wake_fd)
{
	pthread_condattr_t attr;
	int rc = pthread_mutex_init(&gate->lock, NULL);

	if (rc == 0)
		rc = pthread_condattr_init(&attr);
	if (rc == 0)
		rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (rc == 0)
		rc = pthread_cond_init(&gate->changed, &attr);
	gate->wake_fd = wake_fd;
	gate->epoll_fd = -1;
	return rc;
}

/* Does the epoll set `fd` have the gate's eventfd? Adding it without events tells, and changes no other set. */
static inline bool
af_intr_gate_is_in(struct af_intr_gate *gate, int fd)
{
	struct epoll_event none = {0};

	if (epoll_ctl(fd, EPOLL_CTL_ADD, gate->wake_fd, &none) == 0) {
		epoll_ctl(fd, EPOLL_CTL_DEL, gate->wake_fd, NULL);
		return false;
	}
	return errno == EEXIST;
}

/* Interrupt thread: find its epoll set. DPDK does not tell it, and makes a new one when its sources change. */
static void __attribute__((noinline, unused))
af_intr_gate_find(struct af_intr_gate *gate)
{
	struct dirent *entry;
	DIR *descriptors;

	if (gate->epoll_fd >= 0 && af_intr_gate_is_in(gate, gate->epoll_fd))
		return;
	gate->epoll_fd = -1;
	descriptors = opendir("/proc/self/fd");
	while (descriptors && gate->epoll_fd < 0 && (entry = readdir(descriptors))) {
		char *end;
		long fd = strtol(entry->d_name, &end, 10);

		if (*end == '\0' && af_intr_gate_is_in(gate, (int)fd))
			gate->epoll_fd = (int)fd;
	}
	if (descriptors)
		closedir(descriptors);
}

static inline void
af_intr_gate_arm(struct af_intr_gate *gate)
{
	static const uint64_t one = 1;

	if (!gate->armed && write(gate->wake_fd, &one, sizeof one) == sizeof one)
		gate->armed = 1;
}

static inline void
af_intr_gate_drain(struct af_intr_gate *gate)
{
	uint64_t ignored;

	gate->armed = 0;
	if (read(gate->wake_fd, &ignored, sizeof ignored) < 0)
		return; /* it was drained already */
}

/* The time before which no turn may follow the one that ended at `start`. */
static inline struct timespec
af_intr_gate_due(const struct af_intr_gate *gate, struct timespec start)
{
	start.tv_nsec += gate->connecting ? AF_INTR_GATE_CONNECTING_NS : AF_INTR_GATE_IDLE_NS;
	if (start.tv_nsec >= 1000000000) {
		start.tv_nsec -= 1000000000;
		start.tv_sec++;
	}
	return start;
}

static inline bool
af_intr_gate_past(struct timespec due)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > due.tv_sec || (now.tv_sec == due.tv_sec && now.tv_nsec >= due.tv_nsec);
}

/* Interrupt thread, with the lock: wait until a source has an event. Without an epoll set each one counts. */
static inline bool
af_intr_gate_event(struct af_intr_gate *gate)
{
	struct pollfd set = {.fd = gate->epoll_fd, .events = POLLIN};
	int nb_ready = 1;

	if (set.fd >= 0) {
		pthread_mutex_unlock(&gate->lock);
		nb_ready = poll(&set, 1, -1);
		pthread_mutex_lock(&gate->lock);
	}
	return nb_ready > 0 && !gate->armed && !gate->holds; /* else the control plane ended the poll, or a signal */
}

/* The interrupt thread's callback: stay until a turn is due, has a reason, and the control plane does not hold the
 * thread. Then close the gate, and return to serve what is pending. */
static void __attribute__((unused))
af_intr_gate_callback(void *arg)
{
	struct af_intr_gate *gate = arg;
	struct timespec start, due;
	int closing;

	pthread_mutex_lock(&gate->lock);
	gate->inside = 1;
	af_intr_gate_open(gate);
	pthread_cond_broadcast(&gate->changed);
	clock_gettime(CLOCK_MONOTONIC, &start);
	if (gate->gated || gate->holds)
		af_intr_gate_find(gate);
	for (;;) {
		af_intr_gate_drain(gate);
		due = af_intr_gate_due(gate, start);
		if (gate->holds)
			pthread_cond_wait(&gate->changed, &gate->lock);
		else if (!gate->gated)
			break;
		else if (!af_intr_gate_past(due))
			pthread_cond_timedwait(&gate->changed, &gate->lock, &due);
		else if (af_intr_gate_event(gate))
			break;
	}
	closing = gate->gated;
	if (closing)
		af_intr_gate_arm(gate);
	gate->inside = 0;
	pthread_mutex_unlock(&gate->lock);
	if (closing)
		af_intr_gate_close(gate);
}

/* Keep the interrupt thread inside its callback until af_intr_gate_release. Blocks for at most one turn. */
static inline void
af_intr_gate_hold(struct af_intr_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->holds++;
	af_intr_gate_arm(gate);
	pthread_cond_broadcast(&gate->changed);
	while (!gate->inside)
		pthread_cond_wait(&gate->changed, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

/* ports: change in the number of ports that need the gate. */
static inline void
af_intr_gate_release(struct af_intr_gate *gate, int ports)
{
	pthread_mutex_lock(&gate->lock);
	gate->holds--;
	gate->gated += ports;
	pthread_cond_broadcast(&gate->changed);
	pthread_mutex_unlock(&gate->lock);
}

/* step: +1 when a connection begins, -1 when it is complete or given up. */
static inline void
af_intr_gate_connecting(struct af_intr_gate *gate, int step)
{
	pthread_mutex_lock(&gate->lock);
	gate->connecting += step;
	pthread_cond_broadcast(&gate->changed);
	pthread_mutex_unlock(&gate->lock);
}

#endif
