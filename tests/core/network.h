/* The scenario of a run, its random numbers, and the simulated Ethernet segments: part of exchange.c. */
#ifndef TESTS_NETWORK_H
#define TESTS_NETWORK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aiflow/agent.h"

#define MAX_SENDERS 4
#define MAX_SLICES 256
#define STEP_NS 10000ull
#define FRAME 1514u
#define LINE 4096u /* frames that a segment can hold in flight */
#define START_NS 1000000000ull

/* ---- the scenario ---- */

static struct {
	int seed, slices, senders, ports, window, ring;
	int loss, dup, corrupt; /* per 10 000 frames, each direction */
	int burst;              /* losses come in bursts of about so many */
	int jitter_us;          /* frames overtake each other by up to this */
	int small, zero;        /* many small elements; every so many slices, elements without bytes */
	int bytes;              /* largest element */
	int memory_kb, hold_ms; /* what the receiver may hold; how long its user keeps a slice */
	int die_ms, die_way;    /* from then on path 0 is dead: 1 towards the receiver, 2 back, 3 both ways */
	int mute_ms;            /* all that the receiver says is lost for so long */
	int cancel;             /* every so many slices is cancelled in mid-flow */
	int rx_restart_ms, tx_restart_ms;
	int first_lost, last_lost; /* the first DATA frame is lost; CLOSE frames are lost once each */
	int keep;                  /* the receiver keeps frames in place (assemble=False) */
	int limit_ms;
} o = {.seed = 1, .slices = 12, .senders = 1, .ports = 4, .window = 90, .ring = 256, .bytes = 60000, .memory_kb = 65536,
       .limit_ms = 60000};

#define OPTION(name) {#name, &o.name}
static const struct { const char *name; int *value; } options[] = {
	OPTION(seed), OPTION(slices), OPTION(senders), OPTION(ports), OPTION(window), OPTION(ring), OPTION(loss), OPTION(dup),
	OPTION(corrupt), OPTION(burst), OPTION(jitter_us), OPTION(small), OPTION(zero), OPTION(bytes), OPTION(memory_kb),
	OPTION(hold_ms), OPTION(die_ms), OPTION(die_way), OPTION(mute_ms), OPTION(cancel), OPTION(rx_restart_ms),
	OPTION(tx_restart_ms), OPTION(first_lost), OPTION(last_lost), OPTION(keep), OPTION(limit_ms),
};

static void
read_options(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		bool known = false;

		for (size_t k = 0; value && k < sizeof options / sizeof *options; k++)
			if (strlen(options[k].name) == (size_t)(value - argv[i]) &&
			    !strncmp(options[k].name, argv[i], (size_t)(value - argv[i]))) {
				*options[k].value = atoi(value + 1);
				known = true;
			}
		if (!known) {
			fprintf(stderr, "exchange: unknown option %s\n", argv[i]);
			exit(2);
		}
	}
}

static uint64_t random_state;

static uint32_t
draw(uint32_t below)
{
	random_state ^= random_state >> 12; /* xorshift64* (Vigna) */
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return below ? (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 33) % below : 0;
}

/* ---- the network ---- */

struct packet {
	uint64_t due, order;
	uint32_t len;
	uint8_t *bytes; /* of just this length: a read beyond it is seen by the sanitizer */
};

struct line { /* one direction of a segment; a heap by (due, order) */
	struct packet heap[LINE];
	uint32_t count, unlucky;
};

static struct line lines[2][AF_MAX_PORTS]; /* to the receiver, from the receiver */
static uint64_t order, flow_ns; /* flow_ns: when the first DATA frame was sent; the scenario's times count from there */
static struct {
	uint64_t sent, lost, doubled, damaged, cut, muted, overflowed, first, last;
} net;

static bool
earlier(const struct packet *a, const struct packet *b)
{
	return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void
line_push(struct line *line, uint64_t due, const uint8_t *bytes, uint32_t len)
{
	uint32_t i = line->count;

	if (i == LINE) {
		net.overflowed++;
		return;
	}
	line->heap[i] = (struct packet){.due = due, .order = order++, .len = len, .bytes = malloc(len)};
	memcpy(line->heap[i].bytes, bytes, len);
	for (line->count++; i && earlier(&line->heap[i], &line->heap[(i - 1) / 2]); i = (i - 1) / 2) {
		struct packet swap = line->heap[i];

		line->heap[i] = line->heap[(i - 1) / 2];
		line->heap[(i - 1) / 2] = swap;
	}
}

static bool
line_pop(struct line *line, uint64_t now, struct packet *out)
{
	uint32_t i = 0;

	if (!line->count || line->heap[0].due > now)
		return false;
	*out = line->heap[0];
	line->heap[0] = line->heap[--line->count];
	for (;;) {
		uint32_t least = i, left = 2 * i + 1;

		if (left < line->count && earlier(&line->heap[left], &line->heap[least]))
			least = left;
		if (left + 1 < line->count && earlier(&line->heap[left + 1], &line->heap[least]))
			least = left + 1;
		if (least == i)
			return true;
		struct packet swap = line->heap[i];

		line->heap[i] = line->heap[least];
		line->heap[least] = swap;
		i = least;
	}
}

static uint8_t last_closed[MAX_SENDERS][MAX_SLICES]; /* CLOSE frames lost so far, by session and slice */

/* Does the scenario lose this very frame? */
static bool
is_marked(const uint8_t *frame)
{
	struct af_header h;

	memcpy(&h, frame, sizeof h);
	if (o.first_lost && (h.frame_id & 15) == AF_DATA && !net.first)
		return net.first++ == 0;
	if (o.last_lost && (h.frame_id & 15) == AF_CLOSE) {
		uint8_t *mark = &last_closed[AF_BE32(h.session) % MAX_SENDERS][AF_BE32(h.slice) % MAX_SLICES];

		if (!*mark) {
			net.last++;
			*mark = 1;
			return true;
		}
	}
	return false;
}

static void
transmit(int way, uint32_t segment, uint64_t now, uint8_t *frame, uint32_t len)
{
	struct line *line = &lines[way][segment];
	uint64_t since;

	net.sent++;
	if (!flow_ns && (frame[14] & 15) == AF_DATA)
		flow_ns = now;
	since = flow_ns ? now - flow_ns : 0;
	if (o.die_ms && segment == 0 && since >= (uint64_t)o.die_ms * 1000000 && o.die_way >> way & 1) {
		net.cut++;
		return;
	}
	if (o.mute_ms && way == 1 && since && since < (uint64_t)o.mute_ms * 1000000) {
		net.muted++;
		return;
	}
	if (way == 0 && is_marked(frame))
		return;
	if (line->unlucky) {
		line->unlucky--;
		net.lost++;
		return;
	}
	if (draw(10000) * (o.burst ? o.burst : 1) < (uint32_t)o.loss) {
		line->unlucky = o.burst ? draw(2 * (uint32_t)o.burst) : 0;
		net.lost++;
		return;
	}
	for (int copies = 1 + (draw(10000) < (uint32_t)o.dup); copies; copies--) {
		uint32_t bit = draw(len * 8);
		bool damaged = draw(10000) < (uint32_t)o.corrupt;

		net.doubled += copies == 2;
		net.damaged += damaged;
		frame[bit / 8] ^= (uint8_t)(damaged << (bit % 8));
		line_push(line, now + 20000 + draw(1 + (uint32_t)o.jitter_us) * 1000ull, frame, len);
		frame[bit / 8] ^= (uint8_t)(damaged << (bit % 8));
	}
}

/* A process that dies takes its frames with it. */
static void
forget_frames(int way, uint32_t segment, const uint8_t *src)
{
	struct line *line = &lines[way][segment];
	uint32_t count = line->count;

	line->count = 0;
	for (uint32_t i = 0; i < count; i++) {
		struct packet p = line->heap[i];

		if (memcmp(p.bytes + 6, src, 6))
			line_push(line, p.due, p.bytes, p.len); /* never beyond i: the heap grows no faster than it is read */
		free(p.bytes);
	}
}

#endif
