/* Credit: what a receiver's ports and the links behind them can take, divided among the paths that are heard there.
 *
 * All windows of one port add up to what the pipe holds and a little more, which waits in the queue of the switch: that
 * keeps the link busy, and the queue from overflowing. How much waits is seen from the delay of frames. The least delay
 * in an interval, less the least ever, is the queue's standing delay; times the rate it is the queue's size. So every
 * AF_CREDIT_NS the sum of the windows moves by half of what the queue lacks or has too much (Vegas' and FAST TCP's law),
 * within bounds that hold even when busy machines make nonsense of delays.
 *
 * Each path that is heard gets the same window, hence about the same rate, however long it has been there. One that
 * cannot use it, because a slower link lies before it, is held to what it can, by the same law, and leaves the rest.
 *
 * A queue that never empties hides the least delay, from a newcomer and from clocks that drift: then the port is
 * drained for AF_DRAIN_NS. Ports with a single possible peer have no switch, and their ring is all there is to fill.
 */
#ifndef AIFLOW_CREDIT_H
#define AIFLOW_CREDIT_H

#include <stdbool.h>
#include <stdint.h>

#define AF_CREDIT_NS 20000000ull   /* between two steps */
#define AF_CREDIT_QUEUE 131072.0   /* bytes that may wait at a switch port: half of a small one's buffer, */
#define AF_CREDIT_MOST_NS 15e6     /* but no more than this time's worth on a slow link, */
#define AF_CREDIT_LEAST 12.0       /* and these frames in any case */
#define AF_CREDIT_PIPE_NS 1e6      /* the time's worth that may be on its way besides */
#define AF_CREDIT_IDLE_NS 100000000ull /* a path that was silent for so long takes no share */
#define AF_CREDIT_FIRST 16u        /* frames in flight before the receiver has granted a window */
#define AF_DRAIN_NS 30000000ull
#define AF_DRAIN_FRAMES 4u         /* of each path, meanwhile */
#define AF_BASE_NS 10000000000ull  /* a least delay that was not met again for so long is doubted */
#define AF_BASE_NEAR 500000        /* ns by which it counts as met */

struct af_credit {
	double window;          /* frames */
	double rate;            /* bytes/ns, smoothed */
	double peak;            /* of late, fading */
	uint64_t frames, bytes; /* in this interval */
};

/* Delay of the frames of one path; the clocks of its ends may disagree by a constant. */
struct af_delay {
	bool known, doubted;
	int64_t base, least;  /* ns: ever, and in this interval */
	bool any;             /* was there a frame in this interval? */
	uint64_t met_ns;      /* when base was last met */
};

static inline void
af_delay_note(struct af_delay *d, int64_t delay, uint64_t now)
{
	if (!d->any || delay < d->least)
		d->least = delay;
	d->any = true;
	if (!d->known || delay < d->base) {
		d->base = delay;
		d->known = true;
	}
	if (delay < d->base + AF_BASE_NEAR)
		d->met_ns = now;
}

static inline double
af_delay_standing(const struct af_delay *d)
{
	return d->any ? (double)(d->least - d->base) : 0;
}

/* One interval of `ns` is over, in which the standing delay was `delay_ns`. `patience`: of the queue that may wait. */
static inline void
af_credit_step(struct af_credit *c, double delay_ns, uint64_t ns, double patience, double most)
{
	double rate = (double)c->bytes / (double)ns, frame = c->frames ? (double)c->bytes / (double)c->frames : 1514;
	double may_wait = AF_CREDIT_QUEUE, waits, change;

	if (!c->frames || ns > 10 * AF_CREDIT_NS)
		return; /* a pause says nothing about the link */
	c->rate = c->rate > 0 ? (7 * c->rate + rate) / 8 : rate;
	c->peak = rate > c->peak * 0.99 ? rate : c->peak * 0.99;
	if (may_wait > c->rate * AF_CREDIT_MOST_NS)
		may_wait = c->rate * AF_CREDIT_MOST_NS;
	if (may_wait < AF_CREDIT_LEAST * frame)
		may_wait = AF_CREDIT_LEAST * frame;
	waits = c->rate * delay_ns;
	if (waits > c->window * frame)
		waits = c->window * frame; /* that an end was not run for a while is no queue */
	change = (may_wait * patience - waits) / frame / 2;
	if (change < -c->window / 6)
		change = -c->window / 6;
	if (change > c->window / 4)
		change = c->window / 4;
	c->window += change;
	/* Whatever delays seem to say: if all of it should wait at one place, it fits. */
	if (most > patience * (AF_CREDIT_QUEUE + c->peak * AF_CREDIT_PIPE_NS) / frame)
		most = patience * (AF_CREDIT_QUEUE + c->peak * AF_CREDIT_PIPE_NS) / frame;
	if (c->window > most)
		c->window = most;
	if (c->window < AF_CREDIT_LEAST)
		c->window = AF_CREDIT_LEAST;
}

#endif
