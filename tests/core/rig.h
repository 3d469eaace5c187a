/* A sender and a receiver for unit tests, joined by direct calls: no network and no faults, but what a test drops. */
#ifndef TESTS_RIG_H
#define TESTS_RIG_H

#include "aiflow/rx/rx_agent.h"
#include "aiflow/tx/tx_agent.h"

#include "check.h"

#define RIG_START 1000000000ull
#define RIG_STEP 100000ull /* ns */
#define RIG_FRAME 1514u
#define RIG_PAYLOAD 1460u
#define RIG_WRITER 31u /* the connection over which the sender may write to the receiver's memory */
#define MS 1000000ull

enum rig_way { TO_RECEIVER, TO_SENDER };

struct rig {
	struct af_tx tx;
	struct af_rx rx;
	struct af_arena arena;
	uint64_t now;
	uint32_t nb_ports;
	/* Does this frame pass? NULL: all do. A test may change it. */
	bool (*passes)(enum rig_way way, uint32_t port, uint8_t *frame, uint32_t len);
	uint64_t nb_frames[2];
	struct af_shared shared; /* what the sender's process has mapped of the receiver's */
};

static struct af_numbers rig_numbers = {.key = {1, 2}}; /* of both ends: as in one process */
static uint32_t rig_released; /* mbufs that the receiver gave back */

static inline void
rig_release(void *handle)
{
	rig_released++;
	free(handle);
}

static inline struct af_agent_port
rig_port(uint8_t owner, uint32_t p)
{
	return (struct af_agent_port){.attached = true,
				      .point_to_point = true,
				      .frame_size = RIG_FRAME,
				      .rx_ring = 256,
				      .tx_window = 90,
				      .mac = {2, 0, 0, 0, owner, (uint8_t)p}};
}

static inline void
rig_make_tx(struct af_tx *tx, uint32_t nb_ports, uint64_t instance, uint64_t now)
{
	CHECK(!af_tx_init(tx));
	strcpy(tx->name, "source");
	tx->instance = instance << AF_LIFE_BITS;
	tx->numbers = &rig_numbers;
	tx->nb_expected = tx->nb_ports = nb_ports;
	tx->peer_timeout_ns = 10000 * MS;
	for (uint32_t p = 0; p < nb_ports; p++) {
		tx->ports[p].p = rig_port(1, p);
		tx->ports[p].path_size = RIG_FRAME;
		tx->ports[p].attached_ns = now;
	}
}

static inline void
rig_make_rx(struct af_rx *rx, struct af_arena *arena, uint32_t nb_ports, uint8_t owner)
{
	af_rx_init(rx);
	strcpy(rx->name, "sink");
	rx->arena = arena;
	rx->release = rig_release;
	rx->numbers = &rig_numbers;
	rx->epoch = 1000u + owner;
	rx->peer_timeout_ns = 10000 * MS;
	rx->mbuf_bytes = 2048;
	rx->nb_ports = nb_ports;
	for (uint32_t p = 0; p < nb_ports; p++)
		rx->ports[p].p = rig_port(owner, p);
}

/* limit: what the receiver may hold. */
static inline void
rig_begin(struct rig *rig, uint32_t nb_ports, uint64_t limit)
{
	memset(rig, 0, sizeof *rig);
	rig->now = RIG_START;
	rig->nb_ports = nb_ports;
	CHECK(!af_arena_init(&rig->arena, limit, AF_ARENA_PRIVATE));
	rig_make_tx(&rig->tx, nb_ports, 7, rig->now);
	rig_make_rx(&rig->rx, &rig->arena, nb_ports, 2);
}

/* The receiver shares its memory with the sender, which has a mapping of its own. Before they meet. */
static inline void
rig_share(struct rig *rig)
{
	uint64_t nbytes, limit = rig->arena.limit;
	uint8_t *base;

	af_arena_free(&rig->arena, true);
	CHECK(!af_arena_init(&rig->arena, limit, AF_ARENA_SHARED));
	CHECK(rig->arena.fd >= 0);
	nbytes = rig->arena.address_space;
	base = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, rig->arena.fd, 0);
	CHECK(base != MAP_FAILED);
	af_shared_add(&rig->shared, base, nbytes, rig->rx.epoch, false);
	rig->rx.checks_places = true;
	for (uint32_t p = 0; p < rig->nb_ports; p++) {
		rig->rx.ports[p].p.writer = RIG_WRITER;
		rig->tx.ports[p].p.shared = &rig->shared;
	}
}

static inline void
rig_end(struct rig *rig)
{
	af_rx_free(&rig->rx);
	CHECK_EQUAL(rig->arena.used, 0);
	for (uint32_t i = 0; i < AF_MOST_SHARED && rig->shared.memories[i].base; i++)
		munmap(rig->shared.memories[i].base, rig->shared.memories[i].nbytes);
	af_arena_free(&rig->arena, true);
	free(rig->tx.retransmit);
}

static inline void
rig_deliver(struct rig *rig, enum rig_way way, uint32_t p, uint8_t *frame, uint32_t len)
{
	uint8_t *copy;

	rig->nb_frames[way]++;
	if (rig->passes && !rig->passes(way, p, frame, len))
		return;
	copy = malloc(len); /* of this length: the sanitizer sees a read beyond it */
	memcpy(copy, frame, len);
	if (way == TO_SENDER)
		af_tx_on_frame(&rig->tx, p, rig->now, copy, len, NULL);
	else if (af_rx_on_frame(&rig->rx, p, rig->now, copy, len, copy))
		return; /* the receiver keeps it */
	free(copy);
}

/* A frame that a test makes up comes to port p of the receiver; the reason it is counted under. f.payload: nbytes. */
static inline enum af_drop
rig_to_receiver(struct rig *rig, uint32_t p, struct af_frame f)
{
	uint64_t before[AF_NB_DROPS];
	uint8_t *frame = malloc(AF_MIN_FRAME + f.nbytes);
	uint32_t len;

	if (f.nbytes)
		memcpy(frame + AF_HEADER, f.payload, f.nbytes);
	f.payload = NULL;
	len = af_wire_seal(frame, rig->rx.ports[p].p.mac, rig->tx.ports[p].p.mac, &f);
	memcpy(before, rig->rx.drops, sizeof before);
	if (!af_rx_on_frame(&rig->rx, p, rig->now, frame, len, frame))
		free(frame);
	for (int drop = 0; drop < AF_NB_DROPS; drop++)
		if (rig->rx.drops[drop] != before[drop])
			return (enum af_drop)drop;
	return AF_NB_DROPS;
}

/* All that both ends have to say, and a step of time. */
static inline void
rig_step(struct rig *rig)
{
	uint8_t frame[RIG_FRAME + 100];
	uint32_t len;

	rig->now += RIG_STEP;
	for (uint32_t p = 0; p < rig->nb_ports; p++) {
		for (int k = 0; k < 64 && (len = af_tx_next_frame(&rig->tx, p, rig->now, NULL, frame)); k++)
			rig_deliver(rig, TO_RECEIVER, p, frame, len);
		for (int k = 0; k < 64 && (len = af_rx_next_frame(&rig->rx, p, rig->now, NULL, frame)); k++)
			rig_deliver(rig, TO_SENDER, p, frame, len);
	}
	af_tx_tick(&rig->tx, rig->now);
	af_rx_tick(&rig->rx, rig->now);
}

static inline void
rig_steps(struct rig *rig, int count)
{
	for (; count; count--)
		rig_step(rig);
}

/* The two find each other. */
static inline void
rig_open(struct rig *rig)
{
	for (int i = 0; i < 5000 && !rig->tx.open; i++)
		rig_step(rig);
	CHECK(rig->tx.open);
}

/* A slice of n elements with these sizes, one run each. */
static inline struct af_tx_slice *
rig_slice(uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s = calloc(1, sizeof *s);
	struct af_span *elements = calloc(n + 1, sizeof *elements);
	struct af_manifest m = {.format = AF_MANIFEST_FORMAT, .nb_runs = AF_BE32(n), .nb_elements = AF_BE32(n)};

	s->manifest_bytes = AF_MANIFEST_HEADER + n * AF_RUN_HEADER;
	s->manifest = malloc(s->manifest_bytes);
	for (uint32_t e = 0; e < n; e++) {
		struct af_run run = {.count = AF_BE32(1), .nbytes = AF_BE64(sizes[e])};
		uint8_t *bytes = malloc(sizes[e] ? sizes[e] : 1);

		for (uint64_t i = 0; i < sizes[e]; i++)
			bytes[i] = (uint8_t)check_random(256);
		elements[e] = (struct af_span){.ptr = bytes, .nbytes = sizes[e]};
		memcpy(s->manifest + AF_MANIFEST_HEADER + e * AF_RUN_HEADER, &run, sizeof run);
		s->nbytes += sizes[e];
	}
	m.nbytes = AF_BE64(s->nbytes);
	memcpy(s->manifest, &m, sizeof m);
	s->elements = elements;
	s->nb_elements = n;
	s->dispatch.ports = ~0u;
	return s;
}

static inline void
rig_slice_free(struct af_tx_slice *s)
{
	for (uint32_t e = 0; e < s->nb_elements; e++)
		free((void *)(uintptr_t)s->elements[e].ptr);
	free((void *)(uintptr_t)s->elements);
	free(s->manifest);
	free(s->first_chunk);
	free(s->acked);
	free(s->text);
	af_tx_forget_places(s);
	free(s);
}

static inline struct af_tx_slice *
rig_post(struct rig *rig, uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s = rig_slice(n, sizes);

	s->posted_ns = rig->now;
	af_tx_enqueue(&rig->tx, s);
	return s;
}

/* Step until the slice has ended; how it did. */
static inline int
rig_finish(struct rig *rig, struct af_tx_slice *s)
{
	for (int i = 0; i < 200000 && atomic_load(&s->state) < AF_TX_DONE; i++)
		rig_step(rig);
	return atomic_load(&s->state);
}

/* The oldest slice that the receiver has whole, or NULL. */
static inline struct af_rx_slice *
rig_take(struct rig *rig)
{
	struct af_rx_slice *got = rig->rx.ready;

	if (got) {
		rig->rx.ready = got->next;
		if (!rig->rx.ready)
			rig->rx.ready_tail = &rig->rx.ready;
	}
	return got;
}

static inline void
rig_check_same(const struct af_rx_slice *got, const struct af_tx_slice *sent)
{
	CHECK(got);
	CHECK_EQUAL(got->nb_elements, sent->nb_elements);
	CHECK_EQUAL(got->nbytes, sent->nbytes);
	for (uint32_t e = 0; e < got->nb_elements; e++) {
		CHECK_EQUAL(got->elements[e].nbytes, sent->elements[e].nbytes);
		if (got->elements[e].nbytes)
			CHECK(!memcmp(got->arena->base + got->block->offset + got->elements[e].offset,
				      sent->elements[e].ptr, sent->elements[e].nbytes));
	}
}

#endif
