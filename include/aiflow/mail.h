/* Between a burst loop and the threads that talk to it: a flag each way, and a place to sleep.
 *
 * The loop reads one flag an iteration. Threads that wait for it sleep on a condition, or on an eventfd when they live
 * in an event loop. Locks are taken per slice, never per frame.
 */
#ifndef AIFLOW_MAIL_H
#define AIFLOW_MAIL_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

struct af_mail {
	_Atomic int attention; /* control: rw; loop: ro, returns to Python when set */
	_Atomic int posted;    /* control: sets; loop: clears: there is something in its inbox */
	_Atomic int asleep;    /* loop: rw */
	_Atomic uint64_t generation; /* loop: rw; goes up with every event that a waiter should see */
	_Atomic int armed;           /* somebody listens on event_fd */
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
af_mail_init(struct af_mail *mail)
{
	pthread_condattr_t attr;

	mail->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (mail->event_fd < 0)
		return errno;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&mail->lock, NULL);
	pthread_cond_init(&mail->wake, &attr);
	pthread_cond_init(&mail->changed, &attr);
	return 0;
}

static inline void
af_mail_free(struct af_mail *mail)
{
	close(mail->event_fd);
	pthread_cond_destroy(&mail->wake);
	pthread_cond_destroy(&mail->changed);
	pthread_mutex_destroy(&mail->lock);
}

static inline int
af_mail_timed_wait(struct af_mail *mail, pthread_cond_t *cond, uint64_t ns)
{
	uint64_t until = af_now_ns() + ns;
	struct timespec t = {.tv_sec = (time_t)(until / 1000000000ull), .tv_nsec = (long)(until % 1000000000ull)};

	return pthread_cond_timedwait(cond, &mail->lock, &t);
}

/* Control plane: the loop has something to look at. */
static inline void
af_mail_wake(struct af_mail *mail)
{
	if (atomic_load(&mail->asleep)) {
		pthread_mutex_lock(&mail->lock);
		pthread_cond_signal(&mail->wake);
		pthread_mutex_unlock(&mail->lock);
	}
}

/* Loop: sleep for at most `ns`, less when woken. */
static inline void
af_mail_sleep(struct af_mail *mail, uint64_t ns)
{
	pthread_mutex_lock(&mail->lock);
	atomic_store(&mail->asleep, 1);
	if (!atomic_load(&mail->attention) && !atomic_load(&mail->posted))
		af_mail_timed_wait(mail, &mail->wake, ns);
	atomic_store(&mail->asleep, 0);
	pthread_mutex_unlock(&mail->lock);
}

/* Loop: tell everybody who waits. The caller holds the lock. */
static inline void
af_mail_notify(struct af_mail *mail)
{
	uint64_t one = 1;

	atomic_fetch_add(&mail->generation, 1);
	pthread_cond_broadcast(&mail->changed);
	if (atomic_load(&mail->armed) && write(mail->event_fd, &one, sizeof one) < 0)
		return; /* full: it is readable, which is all that is wanted */
}

/* A waiting thread: until the generation moves on from `seen`, or `ns` have passed. */
static inline void
af_mail_wait(struct af_mail *mail, uint64_t seen, uint64_t ns)
{
	pthread_mutex_lock(&mail->lock);
	if (atomic_load(&mail->generation) == seen)
		af_mail_timed_wait(mail, &mail->changed, ns);
	pthread_mutex_unlock(&mail->lock);
}

static inline void
af_mail_drain(struct af_mail *mail)
{
	uint64_t count;

	if (read(mail->event_fd, &count, sizeof count) < 0)
		return; /* it was empty */
}

/* What an idle loop does: spin while an answer may be microseconds away, then yield, then sleep, a little longer each
 * time: a millisecond at most, or 1/64 of the time that it has been idle. Work shortens the sleep by its amount, so that
 * a stream of frames is met awake and a heartbeat is not.
 *
 * Spinning is free on a core that nobody else wants. A yield that takes long says that somebody does (who may be the very
 * peer that we wait for, or the kernel's side of our ports): for some milliseconds the loop then sleeps at once. */
#define AF_SPIN_NS 20000ull
#define AF_YIELD_NS 100000ull
#define AF_SLEEP_FIRST_NS 20000ull
#define AF_SLEEP_MOST_NS 1000000ull
#define AF_SLEEP_LONG_NS 5000000ull
#define AF_PROBE_TURNS 16 /* idle turns between two yields of a loop that spins */
#define AF_WANTED_NS 20000ull /* a yield that takes longer let somebody run */
#define AF_SHARED_NS 10000000ull
#define AF_SLEEP_SHARED_NS 150000ull

struct af_idle {
	uint64_t worked_ns; /* when the loop last had something to do */
	uint64_t sleep_ns;  /* how long it will sleep next */
	uint64_t shared_ns; /* until when the core counts as shared */
	uint32_t turns;
};

static inline void
af_idle_worked(struct af_idle *idle, uint64_t now, int work)
{
	idle->worked_ns = now;
	idle->sleep_ns = work < 4 ? idle->sleep_ns / 4 : 0;
}

/* Let others run; find out whether there are any. */
static inline void
af_idle_yield(struct af_idle *idle)
{
	uint64_t before = af_now_ns(), then;

	sched_yield();
	then = af_now_ns();
	if (then - before > AF_WANTED_NS)
		idle->shared_ns = then + AF_SHARED_NS;
}

static inline void
af_idle_wait(struct af_idle *idle, struct af_mail *mail, uint64_t now)
{
	bool shared = now < idle->shared_ns;
	bool awake = idle->sleep_ns < AF_SLEEP_FIRST_NS && !shared;
	uint64_t first = shared ? AF_SLEEP_SHARED_NS : AF_SLEEP_FIRST_NS;
	uint64_t most = (now - idle->worked_ns) / 64;

	if (awake && now - idle->worked_ns < AF_SPIN_NS && ++idle->turns % AF_PROBE_TURNS) {
		for (int i = 0; i < 16; i++)
			__asm__ volatile("" ::: "memory");
	} else if (awake && now - idle->worked_ns < AF_YIELD_NS) {
		af_idle_yield(idle);
	} else {
		idle->sleep_ns += idle->sleep_ns / 8;
		if (idle->sleep_ns < first)
			idle->sleep_ns = first;
		if (most < AF_SLEEP_MOST_NS)
			most = AF_SLEEP_MOST_NS;
		if (most > AF_SLEEP_LONG_NS)
			most = AF_SLEEP_LONG_NS;
		if (idle->sleep_ns > most)
			idle->sleep_ns = most;
		af_mail_sleep(mail, idle->sleep_ns);
	}
}

#endif
