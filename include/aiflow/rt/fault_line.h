/* Fault injection at the burst boundary: off by default, and reproducible by its seed.
 *
 * A line is one direction of one port. By its rule a passing frame is lost, damaged, truncated, repeated or held until
 * it is due. The lines of the burst loop hold mbufs, those of the simulator hold its packets. So a live run meets the
 * same faults as the simulator. A port without faults has no line.
 */
#ifndef AIFLOW_FAULT_LINE_H
#define AIFLOW_FAULT_LINE_H

#include <stdbool.h>
#include <stdint.h>

#include "aiflow/wire/frame.h"

#define AF_FAULT_LINE_FRAMES 2048u /* that a line can hold; more than any window */
#define AF_FAULT_BURST_NS 20000000ull /* longest burst */
#define AF_FAULT_LINE_LEAST 14u    /* bytes of a truncated frame at least: drivers need an Ethernet header */

/* control: w before the loop runs. *_ppm: frames per million. */
struct af_fault_rule {
	uint32_t kinds;                     /* bit k: frames of kind k are subject; others pass at once */
	uint32_t drop_ppm; /* lost one by one */
	uint32_t burst_ppm, burst_frames;   /* bursts that begin, and their mean length (Gilbert) */
	uint32_t repeat_ppm, copies;        /* repeated frames, and how often each passes */
	uint32_t reorder_ppm, corrupt_ppm, truncate_ppm, stall_ppm;
	uint32_t drop_first;                /* number of first frames that are lost */
	uint64_t delay_ns;                  /* of every frame */
	uint64_t reorder_ns;                /* a reordered frame is held for up to this */
	uint64_t stall_ns;                  /* nothing passes for this long, then everything does */
	uint64_t down_after_ns,
		down_for_ns; /* all frames are lost: when that begins, from the first frame on, and how long it lasts */
	uint64_t down_every_ns; /* its period; 0: once */
};

/* Faults, each with its counter of frames. */
/* clang-format off */
#define AF_FAULT_LIST(X) \
	X(AF_FAULT_DROP, "dropped")       /* lost one by one */ \
	X(AF_FAULT_BURST, "burst")        /* lost in a burst */ \
	X(AF_FAULT_DOWN, "down")          /* lost while the line was down */ \
	X(AF_FAULT_CORRUPT, "corrupted")  /* passed with a flipped bit */ \
	X(AF_FAULT_TRUNCATE, "truncated") /* passed shortened */ \
	X(AF_FAULT_REPEAT, "repeated")    /* passed more than once */ \
	X(AF_FAULT_REORDER, "reordered")  /* held back, so that others overtake it */ \
	X(AF_FAULT_DELAY, "delayed")      /* held back by the line's delay */ \
	X(AF_FAULT_STALL, "stalls")       /* times that the line held everything back */ \
	X(AF_FAULT_OVERFLOW, "overflow")  /* lost because the line holds all that it can */
/* clang-format on */

enum af_fault_kind { AF_FAULT_LIST(AF_TABLE_SYMBOL) AF_NB_FAULTS };

_Static_assert(AF_NB_FAULTS == 10, "show the new fault's counter to users, and count it here");

static inline const char *
af_fault_name(unsigned fault)
{
	static const char *const names[] = {AF_FAULT_LIST(AF_TABLE_NAME)};

	return fault < AF_NB_FAULTS ? names[fault] : "";
}

struct af_fault_held {
	uint64_t due_ns; /* when it leaves the line */
	uint64_t order; /* of arrival */
	void *frame; /* the holder's */
};

/* dataplane: rw */
struct af_fault_line {
	struct af_fault_rule rule;
	uint64_t random; /* state of the generator, not 0 */
	uint64_t seen; /* frames that were subject to the rule */
	uint64_t since_ns; /* when the first of them came */
	uint64_t burst_ns; /* when the burst began */
	uint64_t stalled_until_ns;
	uint64_t order; /* of the next frame that is held */
	uint64_t counts[AF_NB_FAULTS]; /* frames, by enum af_fault_kind; control: ro */
	bool in_burst;
	uint32_t nb_held; /* in `held` */
	struct af_fault_held held[AF_FAULT_LINE_FRAMES]; /* a heap by (due, order) */
};

static inline uint32_t
af_fault_line_draw(struct af_fault_line *line)
{
	uint64_t x = line->random; /* xorshift64* (Vigna) */

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	line->random = x;
	return (uint32_t)((x * 0x2545f4914f6cdd1dull) >> 32);
}

static inline bool
af_fault_line_hit(struct af_fault_line *line, uint32_t ppm, enum af_fault_kind kind)
{
	bool hit = ppm && af_fault_line_draw(line) % 1000000 < ppm;

	line->counts[kind] += hit;
	return hit;
}

/* Each port and way has a generator of its own, from one seed. */
static inline void
af_fault_line_init(struct af_fault_line *line, const struct af_fault_rule *rule, uint64_t seed, uint32_t port,
		   uint32_t way)
{
	uint64_t z = seed * 0x9e3779b97f4a7c15ull + (2 * port + way + 1) * 0xbf58476d1ce4e5b9ull; /* splitmix64 */

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	memset(line, 0, offsetof(struct af_fault_line, held));
	line->rule = *rule;
	line->random = (z ^ z >> 31) | 1;
}

static inline bool
af_fault_line_loses(struct af_fault_line *line, uint64_t now)
{
	const struct af_fault_rule *r = &line->rule;
	uint64_t since = now - line->since_ns;

	if (r->down_for_ns && since >= r->down_after_ns) {
		since -= r->down_after_ns;
		if ((r->down_every_ns ? since % r->down_every_ns : since) < r->down_for_ns) {
			line->counts[AF_FAULT_DOWN]++;
			return true;
		}
	}
	if (line->seen <= r->drop_first) {
		line->counts[AF_FAULT_DROP]++;
		return true;
	}
	if (line->in_burst && now - line->burst_ns < AF_FAULT_BURST_NS) {
		line->in_burst = af_fault_line_draw(line) % (r->burst_frames ? r->burst_frames : 1) != 0;
		line->counts[AF_FAULT_BURST]++;
		return true;
	}
	line->in_burst = af_fault_line_hit(line, r->burst_ppm, AF_FAULT_BURST);
	line->burst_ns = now;
	return line->in_burst || af_fault_line_hit(line, r->drop_ppm, AF_FAULT_DROP);
}

/* A frame enters the line. Returns how often it passes, 0 when it is lost. May damage it and shorten `*len`. */
static inline uint32_t
af_fault_line_enter(struct af_fault_line *line, uint8_t *frame, uint32_t *len, uint64_t now)
{
	const struct af_fault_rule *r = &line->rule;

	if (*len <= AF_FAULT_LINE_LEAST || !(r->kinds >> (frame[14] & 15) & 1))
		return 1;
	if (!line->seen++)
		line->since_ns = now;
	if (af_fault_line_loses(line, now))
		return 0;
	if (af_fault_line_hit(line, r->corrupt_ppm, AF_FAULT_CORRUPT)) {
		uint32_t bit = af_fault_line_draw(line) % (*len * 8);

		frame[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	if (af_fault_line_hit(line, r->truncate_ppm, AF_FAULT_TRUNCATE))
		*len = AF_FAULT_LINE_LEAST + af_fault_line_draw(line) % (*len - AF_FAULT_LINE_LEAST);
	if (af_fault_line_hit(line, r->stall_ppm, AF_FAULT_STALL) && now >= line->stalled_until_ns)
		line->stalled_until_ns = now + r->stall_ns;
	return af_fault_line_hit(line, r->repeat_ppm, AF_FAULT_REPEAT) ? r->copies : 1;
}

/* When a copy of a frame of this `kind` leaves. */
static inline uint64_t
af_fault_line_due(struct af_fault_line *line, uint8_t kind, uint64_t now)
{
	const struct af_fault_rule *r = &line->rule;
	uint64_t due = now;

	if (!(r->kinds >> kind & 1))
		return now;
	if (r->delay_ns) {
		due += r->delay_ns;
		line->counts[AF_FAULT_DELAY]++;
	}
	if (r->reorder_ns && af_fault_line_hit(line, r->reorder_ppm, AF_FAULT_REORDER))
		due += (uint64_t)af_fault_line_draw(line) * r->reorder_ns >> 32;
	return due > line->stalled_until_ns ? due : line->stalled_until_ns;
}

static inline bool
af_fault_held_before(const struct af_fault_held *a, const struct af_fault_held *b)
{
	return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

/* Hold a frame until it is due. False without room: it is lost, and the caller still owns it. */
static inline bool
af_fault_line_hold(struct af_fault_line *line, uint64_t due, void *frame)
{
	struct af_fault_held new = {due, line->order++, frame};
	uint32_t i = line->nb_held;

	if (i == AF_FAULT_LINE_FRAMES) {
		line->counts[AF_FAULT_OVERFLOW]++;
		return false;
	}
	for (line->nb_held++; i && af_fault_held_before(&new, &line->held[(i - 1) / 2]); i = (i - 1) / 2)
		line->held[i] = line->held[(i - 1) / 2];
	line->held[i] = new;
	return true;
}

/* Take the next frame that is due, or NULL. */
static inline void *
af_fault_line_leave(struct af_fault_line *line, uint64_t now)
{
	struct af_fault_held last;
	uint32_t i = 0, child;
	void *frame;

	if (!line->nb_held || line->held[0].due_ns > now)
		return NULL;
	frame = line->held[0].frame;
	last = line->held[--line->nb_held];
	while ((child = 2 * i + 1) < line->nb_held) {
		child += child + 1 < line->nb_held && af_fault_held_before(&line->held[child + 1], &line->held[child]);
		if (!af_fault_held_before(&line->held[child], &last))
			break;
		line->held[i] = line->held[child];
		i = child;
	}
	line->held[i] = last;
	return frame;
}

#endif
