/* What a loop does that has nothing to do: spin while an answer may be microseconds away, then yield, then sleep, a
 * little longer each time: a millisecond at most, or 1/64 of the time that it has been idle. Work shortens the sleep by
 * its amount, so that a stream of frames is met awake and a heartbeat is not.
 *
 * Spinning is free on a core that nobody else wants. A yield that takes long says that somebody does (who may be the
 * very peer that we wait for, or the kernel's side of our ports): for some milliseconds the loop then sleeps at once.
 */
#ifndef AIFLOW_IDLE_H
#define AIFLOW_IDLE_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>

#include "aiflow/rt/handoff.h"

#define AF_SPIN_NS 20000ull
#define AF_YIELD_NS 100000ull
#define AF_SLEEP_FIRST_NS 20000ull
#define AF_SLEEP_MOST_NS 1000000ull
#define AF_SLEEP_LONG_NS 5000000ull
#define AF_SPINS_PER_YIELD 16 /* idle turns between two yields of a loop that spins */
#define AF_LONG_YIELD_NS 20000ull /* a yield that takes longer let somebody run */
#define AF_SHARED_NS 10000000ull
#define AF_SLEEP_SHARED_NS 150000ull
#define AF_TIMER_SLACK_NS 1000ul /* the kernel's own 50 us would more than double a short sleep */

struct af_idle {
	uint64_t worked_ns; /* when the loop last had something to do */
	uint64_t sleep_ns;  /* how long it will sleep next */
	uint64_t shared_ns; /* until when the core counts as shared */
	uint32_t spins;
};

static inline void
af_idle_worked(struct af_idle *idle, uint64_t now, int work)
{
	idle->worked_ns = now;
	idle->sleep_ns = work < 4 ? idle->sleep_ns / 4 : 0;
}

/* Somebody has begun to wait: the answer may be near. */
static inline void
af_idle_begin(struct af_idle *idle, uint64_t now)
{
	idle->worked_ns = now;
	idle->sleep_ns = 0;
}

/* Let others run; find out whether there are any. */
static inline void
af_idle_yield(struct af_idle *idle)
{
	uint64_t before = af_now_ns(), then;

	sched_yield();
	then = af_now_ns();
	if (then - before > AF_LONG_YIELD_NS)
		idle->shared_ns = then + AF_SHARED_NS;
}

static inline void
af_idle_spin(void)
{
	for (int i = 0; i < 16; i++)
		__asm__ volatile("" ::: "memory");
}

/* One idle turn: spins or yields, and returns 0, or how long to sleep. */
static inline uint64_t
af_idle_step(struct af_idle *idle, uint64_t now)
{
	bool shared = now < idle->shared_ns;
	bool awake = idle->sleep_ns < AF_SLEEP_FIRST_NS && !shared;
	uint64_t first = shared ? AF_SLEEP_SHARED_NS : AF_SLEEP_FIRST_NS;
	uint64_t most = (now - idle->worked_ns) / 64;

	if (awake && now - idle->worked_ns < AF_SPIN_NS && ++idle->spins % AF_SPINS_PER_YIELD) {
		af_idle_spin();
		return 0;
	}
	if (awake && now - idle->worked_ns < AF_YIELD_NS) {
		af_idle_yield(idle);
		return 0;
	}
	idle->sleep_ns += idle->sleep_ns / 8;
	if (idle->sleep_ns < first)
		idle->sleep_ns = first;
	if (most < AF_SLEEP_MOST_NS)
		most = AF_SLEEP_MOST_NS;
	if (most > AF_SLEEP_LONG_NS)
		most = AF_SLEEP_LONG_NS;
	if (idle->sleep_ns > most)
		idle->sleep_ns = most;
	return idle->sleep_ns;
}

/* This thread's timers become exact, for short sleeps. Returns what to give back to af_idle_timers_as. */
static inline unsigned long
af_idle_exact_timers(void)
{
	int was = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);

	prctl(PR_SET_TIMERSLACK, AF_TIMER_SLACK_NS, 0, 0, 0);
	return was > 0 ? (unsigned long)was : 50000;
}

static inline void
af_idle_timers_as(unsigned long slack_ns)
{
	prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0);
}

#endif
