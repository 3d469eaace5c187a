/* libFuzzer: a sequence of frames into the receiver's state machine. Nothing is read out of bounds, nothing overflows,
 * its counts stay those of its lists, and all memory comes back.
 *
 * The first octet of an input: 1 frames stay in place, 2 the user confirms, 4 the peer has mapped the memory, 8 by two
 * connections, 16 what is in place is summed. No byte of a fenced block is touched: the sanitizer watches them. */
#include <sanitizer/asan_interface.h>

#include "records.h"

#include "aiflow/rx/rx_agent.h"

static const uint8_t ours[NB_PORTS][6] = {{2, 0, 0, 0, 200, 0}, {2, 0, 0, 0, 200, 1}};
static const uint8_t theirs[NB_PORTS][6] = {{2, 0, 0, 0, 0, 0}, {2, 0, 0, 0, 0, 1}};

static struct af_rx rx;
static struct af_numbers numbers;
static struct af_arena assembled, in_place, shared;
static uint64_t kept;

static void
release(void *handle)
{
	kept--;
	free(handle);
}

static struct af_verdicts verdicts;
static const char words[5000]; /* more than a report carries */

static void
hear(uint32_t port, uint64_t now, uint8_t *frame, uint32_t len)
{
	if (af_rx_on_frame(&rx, port, now, frame, len, frame))
		kept++;
	else
		free(frame);
}

static void
say_hello(uint64_t now)
{
	for (uint32_t p = 0; p < NB_PORTS; p++) {
		struct af_hello h = {.frame_size = AF_BE16(1514), .sender = AF_BE64(7ull << AF_LIFE_BITS)};
		struct af_frame f = {.timestamp_ns = now};
		uint8_t *frame = malloc(AF_MIN_PATH_FRAME);

		h.session = AF_BE32(5);
		h.port = AF_BE16((uint16_t)p);
		hear(p, now, frame, af_hello_write(frame, theirs[p], af_broadcast, f, &h, "source", "", 0));
	}
}

static void
speak(uint64_t now)
{
	uint8_t frame[1514];

	for (uint32_t p = 0; p < NB_PORTS; p++)
		for (int k = 0; k < 4; k++) {
			uint32_t len = af_rx_next_frame(&rx, p, now, NULL, frame);

			CHECK(len <= sizeof frame);
			if (!len)
				break;
		}
}

static void
use_slices(void)
{
	while (rx.ready) {
		struct af_rx_slice *s = rx.ready;

		rx.ready = s->next;
		for (uint32_t e = 0; e < s->nb_elements && !s->kept; e++)
			CHECK(s->elements[e].offset + s->elements[e].nbytes <= s->block->size);
		if (rx.confirms && s->id % 4) /* every fourth is left without a word */
			af_verdicts_push(&verdicts, s->session_id, s->id, s->id % 2, words, (uint32_t)sizeof words);
		af_rx_slice_free(s, release);
	}
	rx.ready_tail = &rx.ready;
}

/* Fenced blocks are those that have gone from a slice that flowed; no block is in another. */
static void
check_fences(void)
{
	static struct af_block watched[256];
	static uint32_t nb_watched;
	uint64_t fenced = 0, end = 0;

	for (uint32_t i = 0; i < nb_watched; i++)
		ASAN_UNPOISON_MEMORY_REGION(shared.base + watched[i].offset, watched[i].size);
	nb_watched = 0;
	for (const struct af_block *b = shared.first.next; b != &shared.first; b = b->next) {
		CHECK(b->offset >= end && b->offset + b->size <= shared.address_space);
		end = b->offset + b->size;
		if (!b->fenced)
			continue;
		CHECK(!b->charged && b->writer.connection);
		fenced++;
		if (nb_watched < 256) {
			watched[nb_watched++] = *b;
			ASAN_POISON_MEMORY_REGION(shared.base + b->offset, b->size);
		}
	}
	CHECK(fenced == shared.fenced);
}

/* All processes that may write have ended. */
static void
end_writers(void)
{
	static const uint32_t connections[] = {1, 2, AF_WRITER_SEVERAL};

	for (uint32_t i = 0; i < 3; i++)
		af_rx_writer_gone(&rx, connections[i]);
	check_fences();
	CHECK(!shared.fenced && shared.first.next == &shared.first);
}

static void
check(void)
{
	uint32_t flowing = 0, waiting = 0, listed = 0;

	for (uint32_t i = 0; i < rx.nb_sessions; i++) {
		CHECK(!af_before(rx.sessions[i]->done, rx.sessions[i]->confirmed));
		CHECK(rx.sessions[i]->done - rx.sessions[i]->confirmed <= AF_RX_SLOTS);
		for (uint32_t k = 0; k < AF_RX_SLOTS; k++) {
			const struct af_rx_slice *s = rx.sessions[i]->slots[k].slice;

			CHECK(!s || !s->block || !s->block->fenced);
			CHECK(!s || !s->has_place || s->block->filled == s->block->size);
			flowing += rx.sessions[i]->slots[k].state == AF_RX_FLOWING;
			waiting += rx.sessions[i]->slots[k].state == AF_RX_WAITING;
		}
	}
	check_fences();
	for (const struct af_rx_slice *s = rx.waiting; s; s = s->next_waiting)
		listed++;
	CHECK(flowing == rx.flowing && waiting == listed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;
	uint64_t now = 1000000000;
	struct record r;
	uint8_t options;

	if (!assembled.limit &&
	    (af_arena_init(&assembled, 4u << 20, AF_ARENA_PRIVATE) ||
	     af_arena_init(&in_place, 4u << 20, AF_ARENA_NONE) || af_arena_init(&shared, 4u << 20, AF_ARENA_SHARED)))
		return 0;
	if (!size)
		return 0;
	af_rx_init(&rx);
	options = *data++;
	rx.keeps_mbufs = options & 1;
	rx.confirms = options & 2;
	rx.checks_places = options & 16;
	rx.verdicts = &verdicts;
	rx.arena = rx.keeps_mbufs ? &in_place : options & 4 ? &shared : &assembled;
	rx.release = release;
	rx.mbuf_bytes = 2048;
	rx.epoch = 1;
	rx.numbers = &numbers;
	af_numbers_init(&numbers, (uint64_t[]){1, 2});
	rx.peer_timeout_ns = 10000000000ull;
	rx.nb_ports = NB_PORTS;
	memcpy(rx.name, "sink", 5);
	for (uint32_t p = 0; p < NB_PORTS; p++) {
		rx.ports[p].p =
			(struct af_agent_port){.attached = true, .frame_size = 1514, .rx_ring = 256, .tx_window = 90};
		memcpy(rx.ports[p].p.mac, ours[p], 6);
		if (options & 4)
			rx.ports[p].p.writer = p && !(options & 8) ? 0 : 1 + p;
	}
	say_hello(now);
	while (next_record(&data, end, &r)) {
		put_right(&r, ours[r.port], theirs[r.port], rx.nb_sessions ? rx.sessions[0]->id : 1);
		now += r.flags & RECORD_WAIT ? 1000000ull << (r.flags >> 4) : 10000;
		if (ends_connection(&r))
			af_rx_writer_gone(&rx, 1 + r.port);
		hear(r.port, now, r.frame, r.len);
		if (r.flags & RECORD_REPLY)
			speak(now);
		af_rx_tick(&rx, now);
		use_slices();
		check();
	}
	speak(now);
	use_slices();
	af_verdicts_free(&verdicts);
	af_rx_free(&rx);
	end_writers();
	CHECK(!kept && !rx.arena->used);
	return 0;
}
