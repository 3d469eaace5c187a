/* Credit: what a receiver's ports and the links behind them can take, divided among the paths that are heard there.
 *
 * All windows of one port add up to what the pipe holds and a little more, which waits in the queue of the switch: that
 * keeps the link busy, and the queue from overflowing. How much waits is seen from the delay of frames. The least delay
 * in an interval, less the least ever, is the queue's standing delay; times the rate it is the queue's size. So every
 * AF_CREDIT_NS the sum of the windows moves by half of what the queue lacks or has too much (Vegas' and FAST TCP's
 * law), within bounds that hold even when busy machines make nonsense of delays.
 *
 * Each path that is heard gets the same window, hence about the same rate, however long it has been there. One that
 * cannot use it, because a slower link lies before it, is held to what it can, by the same law, and leaves the rest.
 *
 * A queue that is smaller than that shows by its losses. A first loss takes a quarter off the windows, at once. If that
 * ends it, they stay below for AF_HOLD_NS and then try a little more; if frames are lost all the same, it is not the
 * queue that loses them, and the windows are what they were.
 *
 * A queue that never empties hides the least delay, from a newcomer and from clocks that drift: then the port is
 * drained for AF_DRAIN_NS. Ports with a single possible peer have no switch, and their ring is all there is to fill.
 */
#ifndef AIFLOW_CREDIT_H
#define AIFLOW_CREDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "aiflow/path/pktnum.h"

#define AF_CREDIT_NS 20000000ull   /* between two steps, */
#define AF_CREDIT_SOON_NS 2000000ull /* or this, when so many frames came */
#define AF_CREDIT_FRAMES 512u
#define AF_CREDIT_QUEUE 131072.0   /* bytes that may wait at a switch port: half of a small one's buffer, */
#define AF_CREDIT_MOST_NS 15e6     /* but no more than this time's worth on a slow link, */
#define AF_CREDIT_LEAST 12.0       /* and these frames in any case */
/* a round trip of hosts that poll: what is on its way besides, and waits on a fast link */
#define AF_CREDIT_PIPE_NS 1e6
#define AF_DRAIN_NS 30000000ull
#define AF_DRAIN_APART_NS 1000000000ull /* a crowd of newcomers must not keep a port drained */
#define AF_DRAIN_FRAMES 4u         /* of each path, meanwhile */
#define AF_BASE_NS 10000000000ull  /* a least delay that was not met again for so long is doubted */
#define AF_DELAY_MOST (1ll << 61)  /* ns either way: a stranger's clock may say anything */
#define AF_BASE_NEAR 500000        /* ns by which it counts as met */

#define AF_TRIAL_NS 200000000ull   /* for which fewer are in flight, to see whether that ends a loss */
#define AF_HOLD_NS 10000000000ull
#define AF_IMMUNE_NS 2000000000ull /* for which losses that nothing ends are left alone */
#define AF_LOSS_MUCH 0.05          /* so much of an interval is an overflow in any case */

struct af_credit {
	double window;          /* frames */
	double rate;            /* bytes/ns, smoothed */
	double peak;            /* of late, fading */
	double frame;           /* mean bytes of one */
	uint64_t frames, bytes; /* in this interval */
};

/* Delay of the frames of one path; the clocks of its ends may disagree by a constant. */
struct af_delay {
	bool known, doubted;
	int64_t base, least;  /* ns: ever, and in this interval */
	bool any;             /* was there a frame in this interval? */
	uint64_t met_ns;      /* when base was last met */
};

static inline double
af_credit_least(const struct af_credit *c, double frame)
{
	double pipe = c->peak * AF_CREDIT_PIPE_NS / frame;

	return pipe > AF_CREDIT_LEAST ? pipe : AF_CREDIT_LEAST; /* with less the link would run dry */
}

/* One interval of `ns` is over, in which the standing delay was `delay_ns`. `patience`: of the queue that may wait. */
static inline void
af_credit_step(struct af_credit *c, double delay_ns, uint64_t ns, double patience, double most)
{
	double rate = (double)c->bytes / (double)ns, frame = c->frames ? (double)c->bytes / (double)c->frames : 1514;
	double may_wait = AF_CREDIT_QUEUE, ring = most, waits, change;

	if (!c->frames || ns > 10 * AF_CREDIT_NS)
		return; /* a pause says nothing about the link */
	c->rate = c->rate > 0 ? (7 * c->rate + rate) / 8 : rate;
	c->peak = rate > c->peak * 0.99 ? rate : c->peak * 0.99;
	if (may_wait < c->peak * AF_CREDIT_PIPE_NS)
		may_wait = c->peak * AF_CREDIT_PIPE_NS;
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
	if (change > (c->window > 32 ? c->window / 16 : 2))
		change = c->window > 32 ? c->window / 16 : 2; /* what overflows then is no more than this */
	c->window += change;
	/* Whatever delays seem to say: if all of it should wait at one place, it fits. */
	may_wait = c->peak * AF_CREDIT_PIPE_NS;
	may_wait += may_wait > AF_CREDIT_QUEUE ? may_wait : AF_CREDIT_QUEUE;
	if (most > patience * may_wait / frame)
		most = patience * may_wait / frame;
	if (c->window > most)
		c->window = most;
	if (c->window < af_credit_least(c, frame))
		c->window = af_credit_least(c, frame);
	if (c->window > ring)
		c->window = ring; /* the receiver's: what does not fit in there is lost */
	c->frame = frame;
}

/* Losses of one port, and what they say about its queue. */
struct af_trial {
	double ceiling, before;   /* frames: of all windows; 0: none. What they were when the trial began */
	uint64_t since_ns, until_ns, immune_ns, hold_ns;
	uint64_t sent, arrived;   /* at the beginning of this interval, */
	uint64_t first_sent, first_arrived; /* and of the trial */
	uint32_t lossy;           /* intervals of the trial in which frames were lost */
};

static inline void
af_trial_reduce(struct af_trial *t, struct af_credit *c, uint64_t now)
{
	double least = af_credit_least(c, c->frame > 0 ? c->frame : 1514);

	if (c->window > least)
		c->window = c->window * 0.75 > least ? c->window * 0.75 : least;
	t->ceiling = c->window;
	t->since_ns = now;
	t->until_ns = now + AF_TRIAL_NS;
}

/* A number is missing. True when the windows have changed. */
static inline bool
af_trial_hole(struct af_trial *t, struct af_credit *c, uint64_t sent, uint64_t arrived, uint64_t now)
{
	if (now < t->until_ns || now < t->immune_ns || (t->ceiling > 0 && c->window <= t->ceiling))
		return false;
	t->before = c->window;
	af_trial_reduce(t, c, now);
	t->first_sent = sent;
	t->first_arrived = arrived;
	t->lossy = 0;
	return true;
}

/* An interval is over. */
static inline void
af_trial_step(struct af_trial *t, struct af_credit *c, uint64_t sent, uint64_t arrived, uint64_t now)
{
	uint64_t went = sent - t->sent, came = arrived - t->arrived;
	double loss = went > came ? (double)(went - came) / (double)went : 0;
	double least = af_credit_least(c, c->frame > 0 ? c->frame : 1514);
	bool settled = now - t->since_ns > AF_CREDIT_NS * 3 / 2;

	t->sent = sent;
	t->arrived = arrived;
	if (!t->until_ns && t->ceiling && loss > AF_LOSS_MUCH && now > t->immune_ns) {
		t->ceiling = 0; /* the queue has become smaller, or has more neighbours */
		af_trial_hole(t, c, sent - went, arrived - came, now);
	} else if (t->until_ns && settled && loss > AF_LOSS_MUCH && c->window > least) {
		af_trial_reduce(t, c, now);
	} else if (t->until_ns && settled && loss > 0 && (++t->lossy >= 2 || c->window <= least)) {
		c->window = t->before;
		t->ceiling = 0;
		t->immune_ns = now + AF_IMMUNE_NS;
		t->until_ns = 0;
	} else if (t->until_ns && now >= t->until_ns) {
		if (sent - t->first_sent <= arrived - t->first_arrived)
			t->ceiling = 0; /* it was only late */
		t->hold_ns = now + AF_HOLD_NS;
		t->until_ns = 0;
	} else if (t->ceiling && !t->until_ns && now >= t->hold_ns) {
		t->ceiling *= 1.1;
		t->hold_ns = now + AF_HOLD_NS;
	}
	if (t->ceiling && c->window > t->ceiling)
		c->window = t->ceiling;
}

static inline void
af_delay_note(struct af_delay *d, int64_t delay, uint64_t now)
{
	if (delay > AF_DELAY_MOST)
		delay = AF_DELAY_MOST;
	if (delay < -AF_DELAY_MOST)
		delay = -AF_DELAY_MOST;
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

#endif
