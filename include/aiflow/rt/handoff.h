/* Handoff between a burst loop and the threads that use it: flags each way, a place to sleep, and the right to drive.
 *
 * The loop reads one flag per iteration. Threads that wait for it sleep on a condition variable, or on an eventfd when
 * they run an event loop. Locks are taken per slice, never per frame.
 *
 * One thread at a time owns the loop and drives it: its worker, or a caller that waits for a result. Such a caller
 * saves two wake-ups of threads, because it polls by itself.
 *
 *   caller   acquires the loop when it is free; else it requests it, and sleeps until the worker has nothing to do
 *   worker   stays away while callers drive. It returns at once when a caller leaves work behind, else after a pause.
 *            The pause grows from AF_PARK_FIRST_NS to AF_PARK_LONG_NS while callers drive
 */
#ifndef AIFLOW_HANDOFF_H
#define AIFLOW_HANDOFF_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct af_handoff {
	_Atomic int attention; /* control: rw; loop: ro, returns to Python when set */
	_Atomic int posted;    /* control: sets; loop: clears. Its inbox is not empty */
	_Atomic int owned;      /* 1: a thread drives the loop */
	_Atomic int driver_requested; /* set by a caller that waits to drive; cleared on release, with a signal */
	_Atomic int work_left; /* set by a caller that left work behind; cleared by the worker */
	_Atomic uint64_t driven; /* owning caller: rw; worker: ro. How often a caller drove */
	_Atomic int asleep; /* threads that sleep on `wake`: the owner, and a parked worker */
	_Atomic uint64_t generation; /* loop: rw; incremented with every event that a waiter should see */
	_Atomic int armed; /* a thread listens on event_fd */
	int event_fd;           /* readable after an event, when `armed` */
	pthread_mutex_t lock;   /* guards the two conditions */
	pthread_cond_t wake;    /* for the owner and the worker */
	pthread_cond_t changed; /* for threads that wait for an event */
};

static inline uint64_t
af_clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* The clock of every timer. Steps of the wall clock do not move it. */
static inline uint64_t
af_now_ns(void)
{
	return af_clock_ns(CLOCK_MONOTONIC);
}

static inline int
af_handoff_init(struct af_handoff *handoff)
{
	pthread_condattr_t attr;

	handoff->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (handoff->event_fd < 0)
		return errno;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&handoff->lock, NULL);
	pthread_cond_init(&handoff->wake, &attr);
	pthread_cond_init(&handoff->changed, &attr);
	return 0;
}

static inline void
af_handoff_free(struct af_handoff *handoff)
{
	close(handoff->event_fd);
	pthread_cond_destroy(&handoff->wake);
	pthread_cond_destroy(&handoff->changed);
	pthread_mutex_destroy(&handoff->lock);
}

static inline int
af_handoff_timed_wait(struct af_handoff *handoff, pthread_cond_t *cond, uint64_t ns)
{
	uint64_t until = af_now_ns() + ns;
	struct timespec t = {.tv_sec = (time_t)(until / 1000000000ull), .tv_nsec = (long)(until % 1000000000ull)};

	return pthread_cond_timedwait(cond, &handoff->lock, &t);
}

/* Control plane: wake the loop if it sleeps. */
static inline void
af_handoff_wake(struct af_handoff *handoff)
{
	if (atomic_load(&handoff->asleep)) {
		pthread_mutex_lock(&handoff->lock);
		pthread_cond_broadcast(&handoff->wake);
		pthread_mutex_unlock(&handoff->lock);
	}
}

/* Loop: sleep for `ns`, or until it is woken. */
static inline void
af_handoff_sleep(struct af_handoff *handoff, uint64_t ns)
{
	pthread_mutex_lock(&handoff->lock);
	atomic_fetch_add(&handoff->asleep, 1);
	if (!atomic_load(&handoff->attention) && !atomic_load(&handoff->posted))
		af_handoff_timed_wait(handoff, &handoff->wake, ns);
	atomic_fetch_sub(&handoff->asleep, 1);
	pthread_mutex_unlock(&handoff->lock);
}

/* Worker: the same, but not when a caller left work behind or waits to drive. */
static inline void
af_handoff_doze(struct af_handoff *handoff, uint64_t ns)
{
	pthread_mutex_lock(&handoff->lock);
	atomic_fetch_add(&handoff->asleep, 1);
	if (!atomic_load(&handoff->attention) && !atomic_load(&handoff->posted) && !atomic_load(&handoff->work_left) &&
	    !atomic_load(&handoff->driver_requested))
		af_handoff_timed_wait(handoff, &handoff->wake, ns);
	atomic_fetch_sub(&handoff->asleep, 1);
	pthread_mutex_unlock(&handoff->lock);
}

/* Loop: sleep for `ns` even if work was posted. Only the control plane ends it. */
static inline void
af_handoff_rest(struct af_handoff *handoff, uint64_t ns)
{
	uint64_t until = af_now_ns() + ns, now;

	pthread_mutex_lock(&handoff->lock);
	atomic_fetch_add(&handoff->asleep, 1);
	while (!atomic_load(&handoff->attention) && (now = af_now_ns()) < until)
		af_handoff_timed_wait(handoff, &handoff->wake, until - now);
	atomic_fetch_sub(&handoff->asleep, 1);
	pthread_mutex_unlock(&handoff->lock);
}

/* Acquire the loop, if it is free. */
static inline bool
af_handoff_try_acquire(struct af_handoff *handoff)
{
	return !atomic_load_explicit(&handoff->owned, memory_order_relaxed) &&
	       !atomic_exchange_explicit(&handoff->owned, 1, memory_order_acquire);
}

/* Release the loop. A full barrier: streamed stores are in memory before another thread drives (crc32c.h). */
static inline void
af_handoff_release(struct af_handoff *handoff)
{
	atomic_store(&handoff->owned, 0);
}

/* Is there work for the worker? */
static inline bool
af_handoff_worker_has_work(struct af_handoff *handoff)
{
	return atomic_load(&handoff->attention) || atomic_load(&handoff->posted) || atomic_load(&handoff->work_left);
}

#define AF_PARK_FIRST_NS 50000ull /* first pause of a worker that stays away */
#define AF_PARK_MOST_NS 1000000ull /* a caller that drove for longer wakes the worker */
#define AF_PARK_LONG_NS 50000000ull /* longest pause, while one caller keeps driving */

/* Worker: a caller drives, or did so just now. Sleep, each time longer. A caller that leaves work behind wakes it. */
static inline void
af_handoff_park(struct af_handoff *handoff, uint64_t *ns)
{
	pthread_mutex_lock(&handoff->lock);
	atomic_fetch_add(&handoff->asleep, 1);
	if (atomic_load(&handoff->owned) || !af_handoff_worker_has_work(handoff))
		af_handoff_timed_wait(handoff, &handoff->wake, *ns);
	atomic_fetch_sub(&handoff->asleep, 1);
	pthread_mutex_unlock(&handoff->lock);
	*ns = *ns * 2 < AF_PARK_LONG_NS ? *ns * 2 : AF_PARK_LONG_NS;
}

/* Loop: tell every waiting thread. The caller holds the lock. */
static inline void
af_handoff_notify(struct af_handoff *handoff)
{
	uint64_t one = 1;

	atomic_fetch_add(&handoff->generation, 1);
	pthread_cond_broadcast(&handoff->changed);
	if (atomic_load(&handoff->armed) && write(handoff->event_fd, &one, sizeof one) < 0)
		return; /* its counter is full, so it is readable */
}

/* A waiting thread: sleep until the generation differs from `seen`, or for `ns`. */
static inline void
af_handoff_wait(struct af_handoff *handoff, uint64_t seen, uint64_t ns)
{
	pthread_mutex_lock(&handoff->lock);
	if (atomic_load(&handoff->generation) == seen)
		af_handoff_timed_wait(handoff, &handoff->changed, ns);
	pthread_mutex_unlock(&handoff->lock);
}

static inline void
af_handoff_drain(struct af_handoff *handoff)
{
	uint64_t count;

	if (read(handoff->event_fd, &count, sizeof count) < 0)
		return; /* it was empty */
}

#endif
