/* Pacing: gaps between a port's frames. Rate-based flow control, by the clock and never by a sleep.
 *
 * A frame may be sent when its due time is at most `slack_ns` away. It then moves the due time by its gap (the GCRA of
 * ATM and RFC 2697). A loop that is late catches up, so the mean gap is exact. With a gain, the loss that the receiver
 * measured widens the gaps:
 *
 *     T = T_base * (1 + gain * loss)
 *
 * A loss above the threshold is a signal. It never shortens the present gap, and it delays recovery. Without a signal,
 * every AF_PACE_STEP_NS removes an eighth of the gap's excess over T_base. Loss is measured over frames that were sent
 * at the present gap, not over frames that were in flight when it was widened.
 */
#ifndef AIFLOW_PACER_H
#define AIFLOW_PACER_H

#include <stdbool.h>
#include <stdint.h>

#define AF_PACE_STEP_NS 10000000ull   /* between two steps of recovery */
#define AF_PACE_IDLE_NS 50000000ull   /* a port that was idle for this long begins anew, without a burst */
#define AF_PACE_WINDOW 128u           /* frames over which a loss is measured, */
#define AF_PACE_WINDOW_NS 100000000ull /* or those of this time, if there are at least */
#define AF_PACE_WINDOW_LEAST 16u

struct af_pace {
	/* control: w before the port is polled, dataplane: ro */
	bool rate_based;          /* pacing limits this port, not the receiver's credit */
	double frame_ns, byte_ns; /* the base gap: the larger of one per frame and one per byte */
	uint64_t slack_ns; /* a frame may be sent this much before it is due */
	double gain;       /* how much loss widens the gap; 0: not at all */
	double threshold;  /* share of frames: a larger loss is a signal */
	/* dataplane: rw */
	double widened; /* the present gap in base gaps, at least 1 */
	double gap_ns;  /* of the newest frame */
	uint64_t due_ns;  /* of the next frame */
	uint64_t step_ns; /* when the gap was widened or narrowed last */
	uint64_t signals; /* losses above the threshold */
	bool measuring;   /* the three fields below are set */
	uint64_t from; /* measure from this number on */
	uint64_t first, arrived, since_ns; /* where the present measurement began */
};

static inline bool
af_pace_due(const struct af_pace *pace, uint64_t now)
{
	return pace->due_ns <= now + pace->slack_ns;
}

/* A frame of `nbytes` is sent. */
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
		pace->due_ns =
			now + (pace->frame_ns > 0
				       ? pace->slack_ns
				       : 0); /* a byte rate's bucket is full by now; a gap per frame saves nothing up */
	else if (pace->due_ns < now)
		pace->due_ns = now;
	pace->due_ns += (uint64_t)gap;
}

/* By feedback `arrived` of the numbers below `next` arrived. `sent_next` is the number of the next frame. */
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

/* A path begins. */
static inline void
af_pace_reset(struct af_pace *pace)
{
	pace->widened = 1;
	pace->from = 0;
	pace->measuring = false;
	pace->due_ns = pace->step_ns = 0;
}

#endif
