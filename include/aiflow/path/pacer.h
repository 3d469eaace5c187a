/* The gaps between a port's frames: rate-based flow control, kept by the clock and never by a sleep.
 *
 * A frame may go when the time at which it is due is at most `slack_ns` away, and then moves that time on by its gap
 * (the GCRA of ATM and RFC 2697): a loop that comes late makes up for it, and the mean gap is exact. With a gain, the
 * receiver's measured loss widens the gaps:
 *
 *     T = T_base * (1 + gain * loss)
 *
 * A signal never shortens the present gap, and puts off recovery. Without one, every AF_PACE_STEP_NS takes an eighth of
 * what the gap is above T_base. Loss is measured over frames that were sent at the present gap: those that were under
 * way when it was widened say nothing about it.
 */
#ifndef AIFLOW_PACE_H
#define AIFLOW_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define AF_PACE_STEP_NS 10000000ull   /* between two steps of recovery */
#define AF_PACE_IDLE_NS 50000000ull   /* a port that sent nothing for so long begins anew, without a burst */
#define AF_PACE_WINDOW 128u           /* frames that a loss is measured over, */
#define AF_PACE_WINDOW_NS 100000000ull /* or those of this time, if at least as many as */
#define AF_PACE_WINDOW_LEAST 16u

struct af_pace {
	/* control: w before the port is polled, dataplane: ro */
	bool rate_based;          /* gaps are the law, and not the receiver's credit */
	double frame_ns, byte_ns; /* the base gap: the larger of a frame's and its bytes' */
	uint64_t slack_ns;
	double gain, threshold;
	/* dataplane: rw */
	double widened; /* the present gap in base gaps, at least 1 */
	double gap_ns;  /* of the newest frame */
	uint64_t due_ns, step_ns, signals;
	bool measuring;
	uint64_t from; /* measure frames of this number and later */
	uint64_t first, arrived, since_ns; /* where the present measurement began */
};

static inline bool
af_pace_due(const struct af_pace *pace, uint64_t now)
{
	return pace->due_ns <= now + pace->slack_ns;
}

/* A frame of so many bytes goes. */
static inline void
af_pace_take(struct af_pace *pace, uint32_t nbytes, uint64_t now)
{
	double gap = pace->byte_ns * nbytes;

	if (gap < pace->frame_ns)
		gap = pace->frame_ns;
	if (gap <= 0)
		return;
	if (pace->widened > 1)
		gap *= pace->widened;
	pace->gap_ns = gap;
	if (pace->due_ns + AF_PACE_IDLE_NS < now)
		pace->due_ns = now + (pace->frame_ns > 0 ? pace->slack_ns
							 : 0); /* a bucket has filled, a gap saves nothing up */
	else if (pace->due_ns < now)
		pace->due_ns = now;
	pace->due_ns += (uint64_t)gap;
}

/* The receiver says that of the numbers below `next` so many arrived; `sent_next` is the next that we shall send. */
static inline void
af_pace_on_feedback(struct af_pace *pace, uint64_t next, uint64_t arrived, uint64_t sent_next, uint64_t now)
{
	uint64_t sent, came;
	double loss;

	if (pace->gain <= 0)
		return;
	if (pace->widened > 1 && now - pace->step_ns >= AF_PACE_STEP_NS) {
		pace->widened -= (pace->widened - 1) / 8;
		if (pace->widened < 1.005)
			pace->widened = 1;
		pace->step_ns = now;
	}
	if (next < pace->from)
		return;
	if (!pace->measuring) {
		pace->measuring = true;
		pace->first = next;
		pace->arrived = arrived;
		pace->since_ns = now;
		return;
	}
	sent = next - pace->first;
	came = arrived - pace->arrived;
	if (sent < AF_PACE_WINDOW && (now - pace->since_ns < AF_PACE_WINDOW_NS || sent < AF_PACE_WINDOW_LEAST))
		return;
	loss = sent > came ? (double)(sent - came) / (double)sent : 0;
	if (loss > pace->threshold) {
		double widened = 1 + pace->gain * loss;

		pace->signals++;
		pace->step_ns = now;
		if (widened > pace->widened) {
			pace->widened = widened;
			pace->from = sent_next;
			pace->measuring = false;
			return;
		}
	}
	pace->first = next;
	pace->arrived = arrived;
	pace->since_ns = now;
}

/* A path begins with number 0. */
static inline void
af_pace_reset(struct af_pace *pace)
{
	pace->widened = 1;
	pace->from = 0;
	pace->measuring = false;
	pace->due_ns = pace->step_ns = 0;
}

#endif
