/* Idle strategy of a loop: spin, then yield, then sleep with growing intervals.
 *
 * An answer may be microseconds away, so the loop spins first. A sleep lasts at most a millisecond, or 1/64 of the time
 * that the loop has been idle. Work shortens it: a stream of frames keeps the loop awake, a heartbeat does not.
 *
 * Spinning is free on a core of one's own. Two long yields in a row show that another thread wants the core, perhaps
 * the peer or the kernel's side of a port. For some milliseconds the loop then sleeps at once. A single long yield
 * shows no more than an interrupt, or the worker that looks whether a caller still drives.
 *
 * Where every port can wake the loop, it sleeps until its agents have something due, instead of this back-off. The
 * back-off remains for three cases: the due time is past; ports wake the loop, and it finds no work; and a stream on a
 * shared core, whose frames are worth collecting.
 */
#ifndef AIFLOW_IDLE_H
#define AIFLOW_IDLE_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>

#include "aiflow/rt/agent.h"
#include "aiflow/rt/handoff.h"

#define AF_SPIN_NS 20000ull /* idle time before the first yield, */
#define AF_YIELD_NS 100000ull /* … and before the first sleep */
#define AF_SLEEP_FIRST_NS 20000ull
#define AF_SLEEP_MOST_NS 1000000ull /* unless 1/64 of the idle time is more, */
#define AF_SLEEP_LONG_NS 5000000ull /* … up to this */
#define AF_SPINS_PER_YIELD 16 /* idle steps */
#define AF_LONG_YIELD_NS 20000ull /* a yield that takes longer let another thread run */
#define AF_IN_A_ROW_NS 100000ull /* from the end of one such yield to the begin of the next */
#define AF_SHARED_NS 10000000ull /* the core counts as shared for this long */
#define AF_SLEEP_SHARED_NS 150000ull /* first sleep on a shared core */
#define AF_TIMER_SLACK_NS 1000ul /* the default of 50 us would more than double a short sleep */

#define AF_SLEEP_QUIET_NS 400000000ull /* the longest sleep of a loop that its ports can wake */
#define AF_QUIET_NS 10000000ull /* after a sleep as long as this, the loop stays asleep for a heartbeat */
#define AF_VAIN_MOST 3u /* wake-ups by ports without work, before the loop stops listening to them */
#define AF_STREAM 8 /* frames and events of an iteration that is part of a stream */

#define AF_SIGNALS_NS 50000000ull /* a caller that is awake returns this often, so that its handlers can run */

struct af_idle {
	uint64_t worked_ns; /* when the loop had work last */
	uint64_t sleep_ns;  /* the newest sleep; the next one is longer */
	uint64_t yielded_ns; /* the end of the newest long yield */
	uint64_t shared_ns; /* until when the core counts as shared */
	uint32_t spins;     /* idle steps so far */
	uint32_t vain;      /* wake-ups by ports since the loop had work */
	bool hurried;       /* since then it has looked again, because something was due */
	bool stream;        /* that work was part of a stream */
	bool alone;         /* the next sleep listens to no port */
};

static inline void
af_idle_worked(struct af_idle *idle, uint64_t now, int work)
{
	idle->worked_ns = now;
	idle->stream = work >= AF_STREAM;
	idle->sleep_ns = idle->stream ? 0 : idle->sleep_ns / 4;
	idle->vain = 0;
	idle->hurried = false;
}

/* A thread begins to wait, so an answer may be near. */
static inline void
af_idle_begin(struct af_idle *idle, uint64_t now)
{
	idle->worked_ns = now;
	idle->sleep_ns = 0;
}

/* A yield took from `before` to `then`. */
static inline void
af_idle_yielded(struct af_idle *idle, uint64_t before, uint64_t then)
{
	if (then - before <= AF_LONG_YIELD_NS)
		return;
	if (before - idle->yielded_ns < AF_IN_A_ROW_NS)
		idle->shared_ns = then + AF_SHARED_NS;
	idle->yielded_ns = then;
}

/* Let other threads run, and find out whether one did. */
static inline void
af_idle_yield(struct af_idle *idle)
{
	uint64_t before = af_now_ns();

	sched_yield();
	af_idle_yielded(idle, before, af_now_ns());
}

static inline void
af_idle_spin(void)
{
	for (int i = 0; i < 16; i++)
		__asm__ volatile("" ::: "memory");
}

/* One idle step: spins or yields and returns 0, or returns how long to sleep. */
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

/* The sleep instead of `backoff_ns`, which af_idle_step returned, when something is due at `due`; 0: none. */
static inline uint64_t
af_idle_sleep(struct af_idle *idle, uint64_t now, uint64_t backoff_ns, uint64_t due)
{
	idle->alone = idle->vain >= AF_VAIN_MOST || (idle->stream && now < idle->shared_ns);
	if (due == AF_DUE_UNKNOWN || idle->alone)
		return backoff_ns;
	if (due <= now && !idle->hurried) {
		idle->hurried = true; /* the tick that was just done may have made it due */
		return 0;
	}
	if (due <= now)
		return backoff_ns;
	if (due < now + AF_SLEEP_FIRST_NS)
		return AF_SLEEP_FIRST_NS;
	if (due > now + AF_SLEEP_QUIET_NS)
		due = now + AF_SLEEP_QUIET_NS;
	if (due - now >= AF_QUIET_NS && now - idle->worked_ns >= AF_YIELD_NS)
		idle->sleep_ns = AF_SLEEP_MOST_NS;
	return due - now;
}

/* Make this thread's timers exact, for short sleeps. Returns the slack before, for af_idle_timers_as. */
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
