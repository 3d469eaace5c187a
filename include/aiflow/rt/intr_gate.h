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
 * The control plane plugs and removes ports while it *holds* the interrupt thread inside the callback, so no callback
 * of a removed port is running. The callback belongs to an eventfd that stays readable. So every round of the thread's
 * epoll loop enters it, and one turn serves all that is pending. Without gated ports the eventfd is drained, and the
 * thread runs free.
 */
#ifndef AIFLOW_INTR_GATE_H
#define AIFLOW_INTR_GATE_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
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
	int wake_fd;     /* eventfd, readable while a port needs the gate, or the control plane holds it */
	int armed;       /* wake_fd is readable */
	int gated;       /* open ports that need the gate */
	int connecting;  /* connections that are being made: turns are more frequent */
	int holds;       /* control planes at work: the interrupt thread stays inside */
	int inside;      /* the interrupt thread is in the callback */
} __attribute__((aligned(64)));

#define AF_INTR_GATE_IDLE_NS 20000000      /* between turns when nothing is expected */
#define AF_INTR_GATE_CONNECTING_NS 300000  /* during a memif handshake, which takes about twelve turns per port */

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
	return rc;
}

/* The interrupt thread's callback: stay until the next turn is due and the control plane does not hold it. Then close
 * the gate, and return to serve what is pending. */
static void __attribute__((unused))
af_intr_gate_callback(void *arg)
{
	struct af_intr_gate *gate = arg;
	struct timespec start, now, due;
	uint64_t ignored;
	int closing;

	pthread_mutex_lock(&gate->lock);
	gate->inside = 1;
	af_intr_gate_open(gate);
	pthread_cond_broadcast(&gate->changed);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (gate->holds || gate->gated) {
		due = start;
		due.tv_nsec += gate->connecting ? AF_INTR_GATE_CONNECTING_NS : AF_INTR_GATE_IDLE_NS;
		if (due.tv_nsec >= 1000000000) {
			due.tv_nsec -= 1000000000;
			due.tv_sec++;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (gate->holds)
			pthread_cond_wait(&gate->changed, &gate->lock);
		else if (now.tv_sec > due.tv_sec || (now.tv_sec == due.tv_sec && now.tv_nsec >= due.tv_nsec))
			break;
		else
			pthread_cond_timedwait(&gate->changed, &gate->lock, &due);
	}
	closing = gate->gated;
	if (!closing) {
		gate->armed = 0;
		if (read(gate->wake_fd, &ignored, sizeof ignored) < 0)
			gate->armed = 0; /* it was drained already */
	}
	gate->inside = 0;
	pthread_mutex_unlock(&gate->lock);
	if (closing)
		af_intr_gate_close(gate);
}

/* Keep the interrupt thread inside its callback until af_intr_gate_release. Blocks for at most one turn. */
static inline void
af_intr_gate_hold(struct af_intr_gate *gate)
{
	static const uint64_t one = 1;

	pthread_mutex_lock(&gate->lock);
	gate->holds++;
	if (!gate->armed && write(gate->wake_fd, &one, sizeof one) == sizeof one)
		gate->armed = 1;
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
