/* Simulated Ethernet segments, and the trace of what passes them.
 *
 * Each segment joins one port of the receiver with one port of every sender, as a switch does. Its two directions are
 * lines of faults.h, as the burst loop has them at its ports. Every event joins a running hash: two runs are the same
 * when their hashes are.
 */
#ifndef TESTS_NETWORK_H
#define TESTS_NETWORK_H

#include <inttypes.h>
#include <stdarg.h>

#include "scenario.h"

#define START_NS 1000000000ull
#define FLIGHT_NS 20000ull /* of every frame */

struct packet {
	uint64_t order; /* in its line */
	uint32_t len;
	uint8_t bytes[]; /* of just this length: a read beyond it is seen by the sanitizer */
};

static struct af_fault_line lines[2][AF_MAX_PORTS];
static uint64_t flow_ns; /* when the first DATA frame was sent; the scenario's times count from there */
static uint64_t trace_hash;
static struct {
	uint64_t sent, cut, muted, first, last,
		overtaken; /* overtaken: the most frames that one fell behind the newest */
	uint64_t entered[2][AF_MAX_PORTS], newest[2][AF_MAX_PORTS];
} net;
static uint64_t happened[NB_FAULTS]; /* how often each kind of fault took place in this world */

/* ---- the trace ---- */

static void
hash_in(uint64_t a, uint64_t b)
{
	trace_hash = (trace_hash ^ a) * 0x9e3779b97f4a7c15ull;
	trace_hash = (trace_hash << 29 | trace_hash >> 35) + b;
}

/* An event of the world. Joins the hash by its text. */
__attribute__((format(printf, 2, 3))) static void
note(uint64_t now, const char *format, ...)
{
	char text[200];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	for (const char *c = text; *c; c++)
		hash_in((uint64_t)*c, 0);
	hash_in(now, 1);
	if (o.trace)
		printf("%12.3f us  %s\n", (double)(now - START_NS) / 1e3, text);
}

static void
note_frame(uint64_t now, int way, uint32_t segment, const uint8_t *frame, uint32_t len, const char *what)
{
	struct af_header h;

	memcpy(&h, frame, len < sizeof h ? len : sizeof h);
	hash_in(now, (uint64_t)len << 32 | (uint32_t)(way << 16) | segment);
	hash_in(h.crc, (uint64_t)(uint8_t)what[0]);
	if (o.trace)
		printf("%12.3f us  %u %s %u  %-8s %-9s slice %u element %u seq %u path %u number %u  %u bytes\n",
		       (double)(now - START_NS) / 1e3, frame[way == FORTH ? 10 : 4], way == FORTH ? "->" : "<-",
		       segment, what, af_kind_name(h.frame_id & 15), AF_BE32(h.slice), AF_BE32(h.element),
		       AF_BE32(h.seq), AF_BE16(h.path), AF_BE32(h.number_low), len);
}

/* ---- the segments ---- */

static bool
is_within(uint64_t now, int after_ms, int for_ms)
{
	uint64_t since = flow_ns ? now - flow_ns : 0;

	return after_ms && flow_ns && since >= (uint64_t)after_ms * MS &&
	       (!for_ms || since < (uint64_t)(after_ms + for_ms) * MS);
}

static uint8_t last_closed[MAX_SENDERS][MAX_SLICES]; /* CLOSE frames lost so far, by sender and slice */

/* Does the scenario lose this very frame? */
static bool
is_marked(const uint8_t *frame)
{
	struct af_header h;

	memcpy(&h, frame, sizeof h);
	if (o.first_lost && (h.frame_id & 15) == AF_DATA && !net.first)
		return net.first++ == 0;
	if (o.last_lost && (h.frame_id & 15) == AF_CLOSE) {
		uint8_t *mark = &last_closed[h.src[4] % MAX_SENDERS][AF_BE32(h.slice) % MAX_SLICES];

		net.last += !*mark;
		return !(*mark)++;
	}
	return false;
}

static bool
is_cut(int way, uint32_t segment, uint64_t now, const uint8_t *frame)
{
	if (is_within(now, o.outage_ms, o.outage_for_ms)) {
		happened[OUTAGE]++;
		return true;
	}
	if (segment == 0 && o.die_way >> way & 1 && is_within(now, o.die_ms, o.back_ms)) {
		net.cut++;
		happened[DOWN]++;
		return true;
	}
	if (o.mute_ms && way == BACK && flow_ns && now > flow_ns && now - flow_ns < (uint64_t)o.mute_ms * MS) {
		net.muted++;
		return true;
	}
	return way == FORTH && is_marked(frame);
}

/* As tests/fuzz/records.h reads it: flags (the other may speak; the port), length, frame. */
static void
capture(int way, uint32_t segment, const uint8_t *frame, uint32_t len)
{
	char name[40];
	FILE *file;

	snprintf(name, sizeof name, "%s-%d", way == FORTH ? "receiver" : "sender", o.seed);
	file = fopen(name, "ab");
	if (!file)
		exit(2);
	if (way == FORTH && !ftell(file))
		fputc(o.keep, file);
	fprintf(file, "%c%c%c", 2 | (int)(segment & 1) << 3, (int)(len >> 8), (int)(len & 255));
	fwrite(frame, 1, len, file);
	fclose(file);
}

/* One record of the frame log: time, way, segment and length (big-endian), then the frame. */
static void
log_frame(int way, uint32_t segment, uint64_t now, const uint8_t *frame, uint32_t len)
{
	uint8_t head[12];
	uint64_t time = AF_BE64(now);

	memcpy(head, &time, sizeof time);
	head[8] = (uint8_t)way;
	head[9] = (uint8_t)segment;
	head[10] = (uint8_t)(len >> 8);
	head[11] = (uint8_t)len;
	fwrite(head, 1, sizeof head, stdout);
	fwrite(frame, 1, len, stdout);
}

static void
transmit(int way, uint32_t segment, uint64_t now, const uint8_t *frame, uint32_t len)
{
	struct af_fault_line *line = &lines[way][segment];
	uint8_t spoilt[AF_MAX_FRAME], kind = frame[14] & 15;
	uint32_t passed_len = len, copies;

	net.sent++;
	if (o.capture)
		capture(way, segment, frame, len);
	if (o.log)
		log_frame(way, segment, now, frame, len);
	if (!flow_ns && kind == AF_DATA)
		flow_ns = now;
	if (is_cut(way, segment, now, frame)) {
		note_frame(now, way, segment, frame, len, "cut");
		return;
	}
	memcpy(spoilt, frame, len);
	copies = af_fault_line_enter(line, spoilt, &passed_len, now);
	note_frame(now, way, segment, frame, len,
		   copies == 0                  ? "lost"
		   : copies > 1                 ? "repeated"
		   : passed_len < len           ? "truncated"
		   : memcmp(spoilt, frame, len) ? "damaged"
						: "sent");
	for (; copies; copies--) {
		struct packet *packet = malloc(sizeof *packet + passed_len);

		packet->len = passed_len;
		packet->order = net.entered[way][segment]++;
		memcpy(packet->bytes, spoilt, passed_len);
		if (!af_fault_line_hold(line, af_fault_line_due(line, kind, now + FLIGHT_NS), packet))
			free(packet);
	}
}

/* The next frame that arrives, or NULL. */
static struct packet *
arrive(int way, uint32_t segment, uint64_t now)
{
	struct packet *packet = af_fault_line_leave(&lines[way][segment], now);
	uint64_t *newest = &net.newest[way][segment];

	if (packet && packet->order > *newest)
		*newest = packet->order;
	else if (packet && *newest - packet->order > net.overtaken)
		net.overtaken = *newest - packet->order;
	return packet;
}

/* When the next frame arrives anywhere. */
static uint64_t
next_arrival(void)
{
	uint64_t next = UINT64_MAX;

	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			if (lines[way][p].nb_held && lines[way][p].held[0].due_ns < next)
				next = lines[way][p].held[0].due_ns;
	return next;
}

/* A process that dies takes its frames with it. */
static void
forget_frames(int way, uint32_t segment, const uint8_t *src)
{
	struct af_fault_line *line = &lines[way][segment];
	uint32_t count = line->nb_held;
	struct af_fault_held held[AF_FAULT_LINE_FRAMES];

	memcpy(held, line->held, count * sizeof *held);
	line->nb_held = 0;
	for (uint32_t i = 0; i < count; i++) {
		struct packet *packet = held[i].frame;

		if (packet->len >= 12 && !memcmp(packet->bytes + 6, src, 6))
			free(packet);
		else
			af_fault_line_hold(line, held[i].due_ns, packet); /* there was room for it */
	}
}

static void
tell_rules(void)
{
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++) {
			const struct af_fault_rule *r = &rules[way][p];

			printf("%s %d  drop %u ppm, burst %u ppm of %u, repeat %u ppm of %u, reorder %u ppm by %" PRIu64
			       " us, corrupt %u ppm, "
			       "truncate %u ppm, stall %u ppm of %" PRIu64 " us, delay %" PRIu64
			       " us, down after %" PRIu64 " us for %" PRIu64 " us every %" PRIu64 " us\n",
			       way == FORTH ? "->" : "<-", p, r->drop_ppm, r->burst_ppm, r->burst_frames, r->repeat_ppm,
			       r->copies, r->reorder_ppm, r->reorder_ns / 1000, r->corrupt_ppm, r->truncate_ppm,
			       r->stall_ppm, r->stall_ns / 1000, r->delay_ns / 1000, r->down_after_ns / 1000,
			       r->down_for_ns / 1000, r->down_every_ns / 1000);
		}
}

static void
open_network(void)
{
	if (o.trace)
		tell_rules();
	memset(&net, 0, sizeof net);
	memset(happened, 0, sizeof happened);
	memset(last_closed, 0, sizeof last_closed);
	flow_ns = trace_hash = 0;
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			af_fault_line_init(&lines[way][p], &rules[way][p], (uint64_t)o.seed, (uint32_t)p,
					   (uint32_t)way);
}

static void
close_network(void)
{
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			for (struct packet *packet; (packet = af_fault_line_leave(&lines[way][p], UINT64_MAX));)
				free(packet);
}

/* Frames to which a kind of fault happened, over all lines. */
static uint64_t
count_fault(enum af_fault_kind kind)
{
	uint64_t sum = 0;

	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			sum += lines[way][p].counts[kind];
	return sum;
}

static int
kinds_happened(void)
{
	int kinds = 0;

	for (int k = 0; k < NB_FAULTS; k++)
		kinds += happened[k] > 0 || (k < OUTAGE && count_fault((enum af_fault_kind)k));
	return kinds;
}

#endif
