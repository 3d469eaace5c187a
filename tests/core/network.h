/* Simulated Ethernet segments, and the trace of what passes them.
 *
 * Each segment joins one port of every node, as a switch does. Its two directions are lines of fault_line.h, as the
 * burst loop has them at its ports. A frame that leaves a line waits in the rings of the ports that it is for. Every
 * event joins a running hash: two runs are the same when their hashes are.
 */
#ifndef TESTS_NETWORK_H
#define TESTS_NETWORK_H

#include <inttypes.h>
#include <stdarg.h>

#include "worlds.h"

#define START_NS 1000000000ull
#define FLIGHT_NS 20000ull /* of every frame */

struct packet {
	struct packet *next; /* in a ring */
	uint64_t order;      /* in its line */
	int from;            /* node */
	uint32_t len;
	uint8_t bytes[]; /* of just this length: a read beyond it is seen by the sanitizer */
};

/* Frames that arrived at a port, and that its node has not read. */
struct ring {
	struct packet *first, **last;
};

static struct af_fault_line lines[2][AF_MAX_PORTS];
static struct ring rings[MAX_NODES][AF_MAX_PORTS];
static int nb_nodes;
static enum way way_of[MAX_NODES];       /* in which a node sends */
static uint32_t segments_of[MAX_NODES];  /* bit p: the node has a port on segment p */
static uint64_t flow_ns; /* when the first DATA frame was sent; the scenario's times count from there */
static uint64_t trace_hash;
static struct {
	uint64_t sent, cut, muted, first, last,
		overtaken; /* overtaken: the most frames that one fell behind the newest */
	uint64_t entered[2][AF_MAX_PORTS], newest[2][AF_MAX_PORTS];
} net;
static uint64_t happened[NB_FAULTS]; /* how often each kind of fault took place in this world */

/* Byte 4 of a node's MACs. They differ by two bits at least: no CRC covers a MAC, and one damaged bit must not lead to
 * another node, which may have given the same number. */
static const uint8_t node_bytes[MAX_NODES] = {0, 3, 5, 6, 9};

/* The node that a MAC belongs to; -1: none, as for a broadcast. */
static int
node_of(const uint8_t *mac)
{
	for (int n = 0; n < MAX_NODES; n++)
		if (mac[4] == node_bytes[n])
			return n;
	return -1;
}

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
	const char *arrow = way == FORTH ? "->" : "<-";
	struct af_header h;

	memcpy(&h, frame, len < sizeof h ? len : sizeof h);
	hash_in(now, (uint64_t)len << 32 | (uint32_t)(way << 16) | segment);
	hash_in(h.crc, (uint64_t)(uint8_t)what[0]);
	if (o.trace)
		printf("%12.3f us  %d %s %d on %u  %-8s %-9s session %08x slice %u element %u seq %u path %u number %u "
		       " "
		       "%u bytes\n",
		       (double)(now - START_NS) / 1e3, node_of(frame + 6), arrow, node_of(frame), segment, what,
		       af_kind_name(h.frame_id & 15), AF_BE32(h.session), AF_BE32(h.slice), AF_BE32(h.element),
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

static uint8_t last_closed[MAX_NODES][MAX_SLICES]; /* CLOSE frames lost so far, by node and slice */

/* Does the scenario lose this very frame? */
static bool
is_marked(const uint8_t *frame)
{
	struct af_header h;

	memcpy(&h, frame, sizeof h);
	if (o.first_lost && (h.frame_id & 15) == AF_DATA && !net.first)
		return net.first++ == 0;
	if (o.last_lost && (h.frame_id & 15) == AF_CLOSE) {
		uint8_t *mark = &last_closed[node_of(frame + 6)][AF_BE32(h.slice) % MAX_SLICES];

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
		fputc(o.keep | (o.share ? 4 : 0), file);
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

static struct packet *
new_packet(const uint8_t *bytes, uint32_t len, int from)
{
	struct packet *packet = malloc(sizeof *packet + len);

	packet->len = len;
	packet->from = from;
	memcpy(packet->bytes, bytes, len);
	return packet;
}

/* A node sends a frame. */
static void
transmit(int from, uint32_t segment, uint64_t now, const uint8_t *frame, uint32_t len)
{
	enum way way = way_of[from];
	struct af_fault_line *line = &lines[way][segment];
	uint8_t spoilt[AF_MAX_FRAME], kind = frame[14] & 15;
	uint32_t passed_len = len, copies;

	net.sent++;
	if (o.capture)
		capture(way, segment, frame, len);
	if (o.log)
		log_frame(way, segment, now, frame, len);
	if (!flow_ns && (kind == AF_DATA || kind == AF_PLACED))
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
		struct packet *packet = new_packet(spoilt, passed_len, from);

		packet->order = net.entered[way][segment]++;
		if (!af_fault_line_hold(line, af_fault_line_due(line, kind, now + FLIGHT_NS), packet))
			free(packet);
	}
}

static void
join_ring(struct ring *ring, struct packet *packet)
{
	packet->next = NULL;
	*ring->last = packet;
	ring->last = &packet->next;
}

static struct packet *
leave_ring(struct ring *ring)
{
	struct packet *packet = ring->first;

	if (packet && !(ring->first = packet->next))
		ring->last = &ring->first;
	return packet;
}

/* Has a port of this node the frame's unicast address, on segment p? */
static bool
is_address_of(const uint8_t *mac, int n, uint32_t p)
{
	const uint8_t own[6] = {2, 0, 0, 0, node_bytes[n], (uint8_t)p};

	return segments_of[n] >> p & 1 && !memcmp(mac, own, sizeof own);
}

/* As a switch does it: a frame goes to the port that has its address. If there is none, or it is a broadcast, it goes
 * to every port but the one that it came from. With joined=1 all segments are one switch. */
static void
deliver(struct packet *packet, uint32_t segment)
{
	uint32_t first = o.joined ? 0 : segment, last = o.joined ? (uint32_t)o.ports - 1 : segment;
	bool known = false;

	for (int n = 0; n < nb_nodes; n++)
		for (uint32_t p = first; p <= last; p++)
			known |= is_address_of(packet->bytes, n, p);
	for (int n = 0; n < nb_nodes; n++)
		for (uint32_t p = first; p <= last; p++)
			if (known ? is_address_of(packet->bytes, n, p)
				  : segments_of[n] >> p & 1 && (n != packet->from || p != segment))
				join_ring(&rings[n][p], new_packet(packet->bytes, packet->len, packet->from));
	free(packet);
}

/* Frames that are due leave the lines. */
static void
pass_frames(uint64_t now)
{
	for (int way = 0; way < 2; way++)
		for (uint32_t p = 0; p < (uint32_t)o.ports; p++)
			for (struct packet *packet; (packet = af_fault_line_leave(&lines[way][p], now));) {
				uint64_t *newest = &net.newest[way][p];

				if (packet->order > *newest)
					*newest = packet->order;
				else if (*newest - packet->order > net.overtaken)
					net.overtaken = *newest - packet->order;
				deliver(packet, p);
			}
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

/* A process that dies takes with it the frames that it has sent, and those that it has not read. */
static void
forget_frames(int node)
{
	struct packet *packet;

	for (uint32_t p = 0; p < (uint32_t)o.ports; p++) {
		struct af_fault_line *line = &lines[way_of[node]][p];
		uint32_t count = line->nb_held;
		static struct af_fault_held held[AF_FAULT_LINE_FRAMES];

		memcpy(held, line->held, count * sizeof *held);
		line->nb_held = 0;
		for (uint32_t i = 0; i < count; i++) {
			packet = held[i].frame;
			if (packet->from == node)
				free(packet);
			else
				af_fault_line_hold(line, held[i].due_ns, packet); /* there was room for it */
		}
		while ((packet = leave_ring(&rings[node][p])))
			free(packet);
	}
}

/* The options that are not as usual, those that were drawn among them. */
static void
tell_options(void)
{
	for (size_t k = 0; k < sizeof options / sizeof *options; k++) {
		int value, usual;

		memcpy(&value, (const char *)&o + options[k].at, sizeof value);
		memcpy(&usual, (const char *)&DEFAULTS + options[k].at, sizeof usual);
		if (value != usual)
			printf("%s=%d ", options[k].name, value);
	}
	printf("\n");
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
	if (o.trace) {
		tell_options();
		tell_rules();
	}
	memset(&net, 0, sizeof net);
	memset(happened, 0, sizeof happened);
	memset(last_closed, 0, sizeof last_closed);
	flow_ns = trace_hash = 0;
	for (int n = 0; n < MAX_NODES; n++)
		for (int p = 0; p < o.ports; p++)
			rings[n][p] = (struct ring){.last = &rings[n][p].first};
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			af_fault_line_init(&lines[way][p], &rules[way][p], (uint64_t)o.seed, (uint32_t)p,
					   (uint32_t)way);
}

static void
close_network(void)
{
	struct packet *packet;

	for (int p = 0; p < o.ports; p++) {
		for (int way = 0; way < 2; way++)
			while ((packet = af_fault_line_leave(&lines[way][p], UINT64_MAX)))
				free(packet);
		for (int n = 0; n < MAX_NODES; n++)
			while ((packet = leave_ring(&rings[n][p])))
				free(packet);
	}
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
