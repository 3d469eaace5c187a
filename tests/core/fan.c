/* One sender and several receivers over shared segments: multi.h in plain C on the simulated network and clock.
 *
 * All receivers mint the same numbers, as processes of their own may. What is checked: each gets its own slices, in
 * order, byte for byte; all their frames in flight on a port never exceed its window; one that falls silent fails by
 * itself and delays no other; all memory comes back.
 *
 * Usage: fan NAME=VALUE …   (see `options` in scenario.h; senders is the number of receivers here). Prints one JSON
 * object; the exit code is 0 when all held.
 */
#include <inttypes.h>
#include <stdio.h>

#include "aiflow/tx/multi.h"

#include "aiflow/rx/rx_agent.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* what draws worlds is simulate.c's */
#include "network.h"

#define STEP_NS 10000ull

static struct af_multi multi;
static struct af_tx_slice slices[MAX_SENDERS][MAX_SLICES];
static struct af_rx receivers[MAX_SENDERS];
static struct af_arena arenas[MAX_SENDERS];
static struct af_numbers numbers, alike[MAX_SENDERS]; /* of the sender's process, and of the receivers' */
static int handed_over[MAX_SENDERS];
static uint64_t ended_ns[MAX_SENDERS];
static uint32_t most_in_flight, most_shared;

static void
fail(const char *what, int receiver, int slice)
{
	printf("{\"failed\": \"%s\", \"receiver\": %d, \"slice\": %d, \"seed\": %d}\n", what, receiver, slice, o.seed);
	exit(1);
}

static void
release_packet(void *handle)
{
	free(handle);
}

static struct af_agent_port
port_of(uint8_t owner, uint32_t p)
{
	struct af_agent_port port = {.attached = true,
				     .frame_size = (uint16_t)o.frame,
				     .rx_ring = (uint32_t)o.ring,
				     .tx_window = (uint32_t)o.window,
				     .point_to_point = o.apart,
				     .mac = {2, 0, 0, 0, owner, (uint8_t)p}};

	return port;
}

static bool
reaches(int receiver, int p)
{
	return !o.apart || p % o.senders == receiver;
}

static void
make_peers(uint64_t now)
{
	multi.nb = (uint32_t)o.senders;
	af_numbers_init(&numbers, (uint64_t[]){(uint64_t)o.seed, 7});
	for (int r = 0; r < o.senders; r++) {
		struct af_tx *tx = multi.tx[r] = malloc(sizeof *tx);
		struct af_rx *rx = &receivers[r];

		if (af_tx_init(tx) || af_arena_init(&arenas[r], (uint64_t)o.memory_kb << 10, true))
			exit(2);
		strcpy(tx->name, "source");
		snprintf(tx->to, sizeof tx->to, "sink-%d", r);
		tx->instance = (uint64_t)(r + 1) << AF_LIFE_BITS;
		tx->numbers = &numbers;
		tx->nb_expected = tx->nb_ports = (uint32_t)o.ports;
		tx->peer_timeout_ns = (uint64_t)o.timeout_ms * MS;
		af_rx_init(rx);
		rx->arena = &arenas[r];
		rx->release = release_packet;
		rx->epoch = 1000u + (uint32_t)r;
		rx->peer_timeout_ns = 10000 * MS;
		rx->numbers = &alike[r];
		af_numbers_init(rx->numbers, (uint64_t[]){7, 7});
		snprintf(rx->name, sizeof rx->name, "sink-%d", r);
		rx->nb_ports = (uint32_t)o.ports;
		for (int p = 0; p < o.ports; p++) {
			tx->ports[p].p = port_of(1, (uint32_t)p);
			tx->ports[p].path_size = (uint32_t)o.frame;
			tx->ports[p].attached_ns = now;
			rx->ports[p].p = port_of((uint8_t)(100 + r), (uint32_t)p);
		}
	}
}

static void
make_slice(struct af_tx_slice *s, int receiver)
{
	uint32_t n = draw(6), at = AF_MANIFEST_HEADER;
	struct af_span *elements = calloc(n + 1, sizeof *elements);
	struct af_manifest m = {.format = AF_MANIFEST_FORMAT, .nb_runs = AF_BE32(n), .nb_elements = AF_BE32(n)};

	s->manifest = malloc(AF_MANIFEST_HEADER + AF_RUN_HEADER * (size_t)(n + 1));
	for (uint32_t e = 0; e < n; e++) {
		uint64_t nbytes = draw((uint32_t)o.bytes);
		struct af_run run = {.count = AF_BE32(1), .nbytes = AF_BE64(nbytes)};
		uint8_t *bytes = malloc(nbytes ? nbytes : 1);

		for (uint64_t i = 0; i < nbytes; i++)
			bytes[i] = (uint8_t)draw(256);
		elements[e] = (struct af_span){bytes, nbytes};
		memcpy(s->manifest + at, &run, sizeof run);
		at += AF_RUN_HEADER;
		s->nbytes += nbytes;
	}
	m.nbytes = AF_BE64(s->nbytes);
	memcpy(s->manifest, &m, sizeof m);
	s->manifest_bytes = at;
	s->elements = elements;
	s->nb_elements = n;
	s->receiver = (uint32_t)receiver;
	s->dispatch.ports = ~0u;
	s->posted_ns = START_NS;
}

static void
take_slices(int r)
{
	struct af_rx *rx = &receivers[r];

	while (rx->ready) {
		struct af_rx_slice *got = rx->ready;
		const struct af_tx_slice *sent = &slices[r][handed_over[r]];

		rx->ready = got->next;
		if (!rx->ready)
			rx->ready_tail = &rx->ready;
		if (handed_over[r] == o.slices || got->nb_elements != sent->nb_elements)
			fail("another's slice, or out of order", r, handed_over[r]);
		for (uint32_t e = 0; e < got->nb_elements; e++)
			if (got->elements[e].nbytes != sent->elements[e].nbytes ||
			    memcmp(arenas[r].base + got->block->offset + got->elements[e].offset, sent->elements[e].ptr,
				   sent->elements[e].nbytes))
				fail("other bytes than were sent", r, handed_over[r]);
		handed_over[r]++;
		af_rx_slice_free(got, release_packet);
	}
}

static bool
is_silent(int r, uint64_t now)
{
	return r == o.senders - 1 && is_within(now, o.silent_ms, 0);
}

static void
poll_port(int p, uint64_t now)
{
	uint8_t frame[AF_MAX_FRAME];
	struct packet *in;

	for (int k = 0; k < 8; k++) {
		uint32_t len = af_multi_next_frame(&multi, (uint32_t)p, now, frame), in_flight = 0, sharing = 0;

		for (uint32_t i = 0; i < multi.nb; i++) {
			in_flight += multi.tx[i]->ports[p].pn.in_flight;
			sharing += multi.tx[i]->ports[p].pn.in_flight > 0;
		}
		if (in_flight > (uint32_t)o.window)
			fail("more in flight than the port holds", p, (int)in_flight);
		most_in_flight = in_flight > most_in_flight ? in_flight : most_in_flight;
		most_shared = sharing > most_shared ? sharing : most_shared;
		if (!len)
			break;
		transmit(FORTH, (uint32_t)p, now, frame, len);
	}
	while ((in = arrive(FORTH, (uint32_t)p, now))) {
		for (int r = 0; r < o.senders; r++) /* a switch: broadcasts to all, else to whose MAC it is */
			if (reaches(r, p) && !is_silent(r, now) &&
			    ((in->bytes[0] & 1) || !memcmp(in->bytes, receivers[r].ports[p].p.mac, 6)))
				af_rx_on_frame(&receivers[r], (uint32_t)p, now, in->bytes, in->len, NULL);
		free(in);
	}
	for (int r = 0; r < o.senders; r++)
		for (int k = 0; k < 4 && reaches(r, p) && !is_silent(r, now); k++) {
			uint32_t len = af_rx_next_frame(&receivers[r], (uint32_t)p, now, NULL, frame);

			if (!len)
				break;
			transmit(BACK, (uint32_t)p, now, frame, len);
		}
	while ((in = arrive(BACK, (uint32_t)p, now))) {
		af_multi_on_frame(&multi, (uint32_t)p, now, in->bytes, in->len, NULL);
		free(in);
	}
}

static bool
all_done(uint64_t now)
{
	bool done = true;

	for (int r = 0; r < o.senders; r++) {
		bool mine = true;

		for (int i = 0; i < o.slices; i++)
			mine &= atomic_load(&slices[r][i].state) >= AF_TX_DONE;
		if (mine && !ended_ns[r])
			ended_ns[r] = now;
		done &= mine;
	}
	return done;
}

int
main(int argc, char **argv)
{
	uint64_t now = START_NS, again = 0;
	int delivered = 0, lost = 0;

	read_options(argc, argv);
	seed_random((uint64_t)o.seed);
	rules_of_options();
	open_network();
	make_peers(now);
	for (int r = 0; r < o.senders; r++)
		for (int i = 0; i < o.slices; i++) {
			make_slice(&slices[r][i], r);
			af_tx_enqueue(multi.tx[r], &slices[r][i]);
		}
	while (!all_done(now)) {
		now += STEP_NS;
		if (now > START_NS + (uint64_t)o.limit_ms * MS)
			fail("did not end in time", -1, -1);
		for (int p = 0; p < o.ports; p++)
			poll_port(p, now);
		af_multi_tick(&multi, now);
		for (int r = 0; r < o.senders; r++) {
			af_rx_tick(&receivers[r], now);
			take_slices(r);
		}
	}
	for (int r = 0; r < o.senders; r++) {
		int mine = 0;

		for (int i = 0; i < o.slices; i++) {
			struct af_tx_slice *s = &slices[r][i];

			mine += atomic_load(&s->state) == AF_TX_DONE;
			again += s->retransmits;
			if (atomic_load(&s->state) == AF_TX_FAILED && !(o.silent_ms && r == o.senders - 1))
				fail("failed without a reason", r, i);
			for (uint32_t e = 0; e < s->nb_elements; e++)
				free((void *)s->elements[e].ptr);
			free((void *)s->elements);
			free(s->manifest);
		}
		if (mine > handed_over[r])
			fail("reported as delivered, but it was not", r, mine);
		delivered += mine;
		lost += o.slices - mine;
		af_rx_free(&receivers[r]);
		if (arenas[r].used)
			fail("memory did not come back", r, -1);
		af_arena_free(&arenas[r]);
	}
	printf("{\"delivered\": %d, \"failed\": %d, \"again\": %" PRIu64
	       ", \"most_in_flight\": %u, \"most_shared\": %u, \"ms\": [",
	       delivered, lost, again, most_in_flight, most_shared);
	for (int r = 0; r < o.senders; r++)
		printf("%s%.3f", r ? ", " : "", (double)(ended_ns[r] - START_NS) / 1e6);
	printf("], \"network\": {\"sent\": %" PRIu64 ", \"lost\": %" PRIu64 "}}\n", net.sent,
	       count_fault(AF_FAULT_DROP));
	for (int r = 0; r < o.senders; r++) {
		free(multi.tx[r]->retransmit);
		free(multi.tx[r]);
	}
	close_network();
	return 0;
}
