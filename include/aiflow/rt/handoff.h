/* Between a burst loop and the threads that talk to it: a flag each way, a place to sleep, and whose turn it is to
 * drive.
 *
 * The loop reads one flag an iteration. Threads that wait for it sleep on a condition, or on an eventfd when they live
 * in an event loop. Locks are taken per slice, never per frame.
 *
 * One thread at a time drives a loop: its worker, or a caller that would only wait for what the loop does, and saves
 * two hand-overs between threads by polling itself. Whoever drives has the turn.
 *
 *   caller   takes the turn when it is free; else says that it wants it, and sleeps until the worker has nothing to do
 *   worker   keeps out of the way while callers drive: it comes back at once when one leaves work behind, else after a
 *            pause that grows from AF_PARK_FIRST_NS to AF_PARK_MOST_NS while callers come and go
 */
#ifndef AIFLOW_MAIL_H
#define AIFLOW_MAIL_H

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
	_Atomic int posted;    /* control: sets; loop: clears: there is something in its inbox */
	_Atomic int owned;      /* somebody drives the loop */
	_Atomic int
		driver_requested; /* callers: set; who leaves the turn and rings clears: another caller would drive */
	_Atomic int work_left; /* callers: set; worker: clears: one that drove has left work behind */
	_Atomic uint64_t driven; /* callers: rw, with the turn; worker: ro: how often a caller has driven */
	_Atomic int asleep; /* threads that sleep on `wake`: whoever drives, and the worker when it doesn't */
	_Atomic uint64_t generation; /* loop: rw; goes up with every event that a waiter should see */
	_Atomic int armed; /* somebody listens on event_fd */
	int event_fd;
	pthread_mutex_t lock;
	pthread_cond_t wake, changed;
};

static inline uint64_t
af_clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Every timer runs on this clock: a step of the wall clock moves nothing. */
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

/* Control plane: the loop has something to look at. */
static inline void
af_handoff_wake(struct af_handoff *handoff)
{
	if (atomic_load(&handoff->asleep)) {
		pthread_mutex_lock(&handoff->lock);
		pthread_cond_broadcast(&handoff->wake);
		pthread_mutex_unlock(&handoff->lock);
	}
}

/* Loop: sleep for at most `ns`, less when woken. */
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

/* Worker: the same, unless a caller has left something to it meanwhile, or waits for the turn. */
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

/* Loop: sleep for `ns`, whatever was posted; the control plane alone ends it. */
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

/* Take the turn to drive the loop, if it is free. */
static inline bool
af_handoff_try_acquire(struct af_handoff *handoff)
{
	return !atomic_load_explicit(&handoff->owned, memory_order_relaxed) &&
	       !atomic_exchange_explicit(&handoff->owned, 1, memory_order_acquire);
}

/* A full barrier: what was streamed around the caches is in memory before another thread goes on (crc32c.h). */
static inline void
af_handoff_release(struct af_handoff *handoff)
{
	atomic_store(&handoff->owned, 0);
}

/* Is there something for the worker, whoever drove last? */
static inline bool
af_handoff_worker_has_work(struct af_handoff *handoff)
{
	return atomic_load(&handoff->attention) || atomic_load(&handoff->posted) || atomic_load(&handoff->work_left);
}

#define AF_PARK_FIRST_NS 50000ull
#define AF_PARK_MOST_NS 1000000ull /* while callers come and go; one that has driven for longer wakes the worker */
#define AF_PARK_LONG_NS 50000000ull /* while one of them drives on and on */

/* Worker: a caller drives, or has just done so. Sleep, longer each time; who leaves work behind wakes it. */
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

/* Loop: tell everybody who waits. The caller holds the lock. */
static inline void
af_handoff_notify(struct af_handoff *handoff)
{
	uint64_t one = 1;

	atomic_fetch_add(&handoff->generation, 1);
	pthread_cond_broadcast(&handoff->changed);
	if (atomic_load(&handoff->armed) && write(handoff->event_fd, &one, sizeof one) < 0)
		return; /* full: it is readable, which is all that is wanted */
}

/* A waiting thread: until the generation moves on from `seen`, or `ns` have passed. */
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
