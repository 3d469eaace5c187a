/* Receivers, and what their users hold. */
#ifndef TESTS_RECEIVERS_H
#define TESTS_RECEIVERS_H

#include "aiflow/rx/rx_agent.h"
#include "aiflow/rx/rx_due.h"

#include "nodes.h"

struct held {
	struct af_rx_slice *slice;
	uint64_t until;
	int sender, index; /* whose, and which of its slices */
};

struct receiver {
	struct place at;
	struct af_rx *rx;
	struct af_arena arenas[2], *arena; /* element memory, or mbufs that are only counted */
	struct af_verdicts verdicts;       /* of its user */
	struct held held[MAX_SENDERS * MAX_SLICES];
	uint32_t nb_held;
	bool keeps;        /* frames in place */
	bool restarted, unplugged; /* in this world */
	char name[AF_NAME_BYTES];
};

static struct receiver receivers[MAX_RECEIVERS];
static int nb_receivers;
static uint64_t receivers_made, kept_out, /* frames that receivers keep */
	rx_drops[AF_NB_DROPS], waited;

static void
release_packet(void *handle)
{
	kept_out--;
	free(handle);
}

static void
attach_receiver(struct receiver *r, uint32_t port)
{
	struct af_rx_port *p = &r->rx->ports[port];

	memset(p, 0, sizeof *p);
	p->p = port_of(&r->at, port);
}

static void
make_receiver(struct receiver *r)
{
	struct af_rx *rx = r->rx = malloc(sizeof *rx);

	af_rx_init(rx);
	if (may_share() && !r->keeps)
		r->arena = share_memory(r->at.node, 1000 + receivers_made);
	rx->arena = r->arena;
	rx->checks_places = o.seed & 1;
	rx->release = release_packet;
	rx->keeps_mbufs = r->keeps;
	rx->mbuf_bytes = 2048;
	rx->numbers = &nodes[r->at.node].numbers;
	rx->epoch = 1000 + receivers_made++;
	rx->peer_timeout_ns = (uint64_t)o.timeout_ms * MS;
	rx->confirms = o.confirm > 0;
	rx->verdicts = &r->verdicts;
	strcpy(rx->name, r->name);
	rx->nb_ports = r->at.nb_ports;
	for (uint32_t i = 0; i < r->at.nb_ports; i++)
		attach_receiver(r, i);
	r->at.agent = (struct af_agent){.state = rx,
					.role = AF_RECEIVES,
					.on_frame = af_rx_on_frame,
					.next_frame = af_rx_next_frame,
					.tick = af_rx_tick,
					.due = af_rx_due,
					.owns = af_rx_owns};
	enter_node(&r->at);
}

/* Is its process stopped for good? */
static bool
is_silent(const struct receiver *r)
{
	return r == &receivers[nb_receivers - 1] && is_within(now, o.silent_ms, 0);
}

/* What the user says of the n-th slice that it may fail: more than one report can carry, and of many pieces. */
static uint32_t
text_of(int index, char *text)
{
	uint32_t nbytes = index / 16 % 2 ? 1 + (uint32_t)index % 7
					 : 1 + (uint32_t)(index * 797) % 3000; /* short ones after long ones */

	for (uint32_t i = 0; i < nbytes; i++)
		text[i] = (char)('a' + (i * 7 + (uint32_t)index) % 26);
	return nbytes;
}

static void
drop_receiver(struct receiver *r)
{
	leave_node(&r->at);
	af_verdicts_free(&r->verdicts); /* killed between its user's word and the report */
	for (uint32_t i = 0; i < r->nb_held; i++)
		af_rx_slice_free(r->held[i].slice, release_packet);
	r->nb_held = 0;
	for (int i = 0; i < AF_NB_DROPS; i++)
		rx_drops[i] += r->rx->drops[i];
	af_rx_free(r->rx);
	free(r->rx);
	if (r->arena->used)
		fail("memory did not come back", -1, -1);
	end_memory(r->arena);
}

static void
revive_receiver(struct receiver *r)
{
	r->restarted = true;
	make_receiver(r);
}

#endif
