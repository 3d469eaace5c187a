/* Credit: how many frames a receiver's port, and the link before it, can take in flight.
 *
 * The windows of one port add up to what the link holds, and a little more. The excess waits in the queue of the
 * switch: it keeps the link busy without an overflow. The delay of frames shows the queue. The least delay of an
 * interval, less the least delay ever, is the standing delay; times the rate it is the queue's size. Every AF_CREDIT_NS
 * the sum of the windows moves by half of the queue's error, as in TCP Vegas and FAST TCP. Bounds hold even when busy
 * machines distort the delays.
 *
 * Each path gets the same window, hence about the same rate, however long it exists. A path behind a slower link cannot
 * use its window. The same law finds what it can use, and the other paths get the rest.
 *
 * A smaller queue shows by its losses. The first loss reduces the windows by a quarter at once: a trial begins. If the
 * losses end, the windows stay below that for AF_HOLD_NS, and then try a little more. If they go on, the queue is not
 * their cause, and the windows are restored.
 *
 * A queue that never empties hides the least delay, from a new path and when clocks drift. Then the port is drained for
 * AF_DRAIN_NS. Point-to-point ports have no switch, so only their ring bounds them.
 */
#ifndef AIFLOW_CREDIT_H
#define AIFLOW_CREDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "aiflow/path/pktnum.h"

#define AF_CREDIT_NS 20000000ull   /* between two steps, */
#define AF_CREDIT_SOON_NS 2000000ull /* … or this, after */
#define AF_CREDIT_FRAMES 512u
#define AF_CREDIT_QUEUE 131072.0   /* bytes that may wait at a switch port: half the buffer of a small one, */
#define AF_CREDIT_MOST_NS 15e6     /* … but no more than the link sends in this time, */
#define AF_CREDIT_LEAST 12.0       /* … and in any case this number of frames */
/* a round trip between polling hosts: a fast link holds this beside the queue, and as much may wait */
#define AF_CREDIT_PIPE_NS 1e6
#define AF_DRAIN_NS 30000000ull /* how long windows are small, so that the queue empties */
#define AF_DRAIN_APART_NS 1000000000ull /* between two drains: many new paths must not keep a port drained */
#define AF_DRAIN_FRAMES 4u         /* window of each path during a drain */
#define AF_BASE_NS 10000000000ull  /* a least delay that was not met for this long is in doubt */
#define AF_DELAY_MOST (1ll << 61)  /* ns, either sign: the clock of an unknown sender may show anything */
#define AF_BASE_NEAR 500000        /* ns above the least delay that count as met */

#define AF_TRIAL_NS 200000000ull   /* length of a trial with smaller windows */
#define AF_HOLD_NS 10000000000ull /* the windows stay small for this long after a trial that helped, */
#define AF_IMMUNE_NS 2000000000ull /* … and after one that did not, losses are ignored for this long */
#define AF_LOSS_MUCH 0.05          /* a larger share of losses is an overflow in any case */

struct af_credit {
	double window;          /* frames */
	double rate;            /* bytes/ns, smoothed */
	double peak;            /* bytes/ns, the recent maximum, which decays */
	double frame;           /* mean bytes of a frame */
	uint64_t frames, bytes; /* in this interval */
};

/* Delay of one path's frames. The clocks of its ends may differ by a constant. */
struct af_delay {
	bool known;   /* `base` is set */
	bool doubted; /* `base` may be too high: the port should be drained */
	int64_t base, least;  /* ns: ever, and in this interval */
	bool any;             /* a frame arrived in this interval */
	uint64_t met_ns;      /* when base was last met */
};

/* The least window, in frames. */
static inline double
af_credit_least(const struct af_credit *c, double frame)
{
	double pipe = c->peak * AF_CREDIT_PIPE_NS / frame;

	return pipe > AF_CREDIT_LEAST ? pipe : AF_CREDIT_LEAST; /* with less the link would idle */
}

/* An interval of `ns` with the standing delay `delay_ns` is over. `patience` scales the queue that may wait; `most` is
 * the ring. */
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
		waits = c->window * frame; /* a longer delay is not a queue: an end was not scheduled */
	change = (may_wait * patience - waits) / frame / 2;
	if (change < -c->window / 6)
		change = -c->window / 6;
	if (change > (c->window > 32 ? c->window / 16 : 2))
		change = c->window > 32 ? c->window / 16 : 2; /* so an overflow loses no more than this */
	c->window += change;
	/* A bound that ignores delays: if all frames wait in one place, they fit. */
	may_wait = c->peak * AF_CREDIT_PIPE_NS;
	may_wait += may_wait > AF_CREDIT_QUEUE ? may_wait : AF_CREDIT_QUEUE;
	if (most > patience * may_wait / frame)
		most = patience * may_wait / frame;
	if (c->window > most)
		c->window = most;
	if (c->window < af_credit_least(c, frame))
		c->window = af_credit_least(c, frame);
	if (c->window > ring)
		c->window = ring; /* frames beyond the receiver's ring would be lost */
	c->frame = frame;
}

/* Losses of one port, and the trial that tells whether its queue overflows. */
struct af_trial {
	double ceiling, before;   /* frames: bound of all windows, 0: none; and their sum before the trial */
	uint64_t since_ns;        /* when the windows were reduced last */
	uint64_t until_ns;        /* end of the trial; 0: none is running */
	uint64_t immune_ns;       /* losses are ignored until then */
	uint64_t hold_ns;         /* when the bound may rise */
	uint64_t sent, arrived;   /* of the port, at the beginning of this interval, */
	uint64_t first_sent, first_arrived; /* … and of the trial */
	uint32_t lossy;           /* intervals of the trial in which frames were lost */
};

/* Reduce the windows by a quarter, and observe. */
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

/* A packet number is missing. True when the windows change. */
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
		t->ceiling = 0; /* the queue shrank, or more senders share it */
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
			t->ceiling = 0; /* the missing frame was only late */
		t->hold_ns = now + AF_HOLD_NS;
		t->until_ns = 0;
	} else if (t->ceiling && !t->until_ns && now >= t->hold_ns) {
		t->ceiling *= 1.1;
		t->hold_ns = now + AF_HOLD_NS;
	}
	if (t->ceiling && c->window > t->ceiling)
		c->window = t->ceiling;
}

/* A frame arrived with this delay. */
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

/* The standing delay of this interval, in ns. */
static inline double
af_delay_standing(const struct af_delay *d)
{
	return d->any ? (double)(d->least - d->base) : 0;
}

#endif
