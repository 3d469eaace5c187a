/* What holds at any time, and what must have come of each slice at the end. */
#ifndef TESTS_INVARIANTS_H
#define TESTS_INVARIANTS_H

#include "handed_over.h"

static uint32_t most_in_flight, most_shared; /* frames on one port of a node; senders that had some there */

static void
check_windows(struct sender *s)
{
	for (int p = 0; p < (int)s->tx.nb_ports; p++) {
		struct af_tx_port *port = &s->tx.ports[p];
		uint32_t in_flight = 0;

		for (uint64_t n = port->pn.judged; port->open && n < port->pn.next; n++)
			in_flight += af_tx_sent(&port->pn, n)->state == AF_SENT_IN_FLIGHT &&
				     !af_tx_sent(&port->pn, n)->probe;
		if (port->open && in_flight != port->pn.in_flight)
			fail("a window counts what is not in flight", p, (int)in_flight);
	}
}

/* A frame left a port, or none did: no sender exceeds its window, nor do all senders of the node together exceed the
 * port's. `before`: what each had in flight on it. */
static void
check_port(int node, uint32_t segment, uint32_t before[MAX_SENDERS])
{
	uint32_t in_flight = 0, sharing = 0;

	for (int i = 0; i < nb_senders; i++) {
		const struct sender *s = senders[i];

		for (uint32_t k = 0; k < s->at.nb_ports && s->at.node == node; k++) {
			const struct af_tx_port *port = &s->tx.ports[k];

			if (s->at.segments[k] != segment || !port->open)
				continue;
			if (port->pn.in_flight > before[i] && before[i] >= port->pn.limit)
				fail("a window too large", i, (int)segment);
			before[i] = port->pn.in_flight;
			in_flight += port->pn.in_flight;
			sharing += port->pn.in_flight > 0;
		}
	}
	if (in_flight > (uint32_t)o.window)
		fail("more in flight than the port holds", node, (int)in_flight);
	most_in_flight = in_flight > most_in_flight ? in_flight : most_in_flight;
	most_shared = sharing > most_shared ? sharing : most_shared;
}

/* The numbers that the agents of a process gave to their peers are its own, one by one. */
static void
check_numbers(int node)
{
	uint32_t numbers[MAX_SENDERS + MAX_RECEIVERS * AF_SESSIONS], count = 0;

	for (int i = 0; i < nb_senders; i++)
		if (senders[i]->at.node == node && senders[i]->tx.number)
			numbers[count++] = senders[i]->tx.number;
	for (int i = 0; i < nb_receivers; i++)
		for (uint32_t k = 0; receivers[i].at.node == node && k < receivers[i].rx->nb_sessions; k++)
			numbers[count++] = receivers[i].rx->sessions[k]->id;
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t k = i + 1; k < count; k++)
			if (!numbers[i] || numbers[i] == numbers[k])
				fail("two sessions of a process have the same number", -1, (int)i);
}

static void
check_receiver(const struct receiver *r)
{
	const struct af_rx *rx = r->rx;
	uint32_t flowing = 0, waiting = 0, listed = 0, paths[AF_MAX_PORTS] = {0};
	uint64_t charged = 0;

	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		const struct af_rx_session *session = rx->sessions[i];

		for (int k = 0; k < (int)AF_RX_SLOTS; k++) {
			const struct af_rx_slice *s = session->slots[k].slice;

			flowing += session->slots[k].state == AF_RX_FLOWING;
			waiting += session->slots[k].state == AF_RX_WAITING;
			charged += s && s->block ? s->block->charged : 0;
			if (session->closed && session->slots[k].state != AF_RX_EMPTY)
				fail("a session that is closed holds a slice", (int)i, k);
		}
		for (uint32_t k = 0; k < AF_MAX_PORTS; k++)
			if (session->paths[k].known)
				paths[session->paths[k].port]++;
	}
	for (const struct af_rx_slice *s = rx->waiting; s; s = s->next_waiting)
		listed++;
	for (uint32_t i = 0; i < r->nb_held; i++)
		charged += r->held[i].slice->block ? r->held[i].slice->block->charged : 0;
	for (int p = 0; p < (int)rx->nb_ports; p++)
		if (paths[p] != rx->ports[p].nb_paths)
			fail("a port counts paths that it has not", p, (int)paths[p]);
	if (flowing != rx->flowing || waiting != listed)
		fail("the receiver's counts are wrong", (int)flowing, (int)rx->flowing);
	if (charged != r->arena->used)
		fail("the arena counts bytes that no slice holds", -1, -1);
}

static void
check_all(void)
{
	for (int i = 0; i < nb_senders; i++)
		check_windows(senders[i]);
	for (int i = 0; i < nb_receivers; i++)
		check_receiver(&receivers[i]);
	for (int n = 0; n < nb_nodes; n++)
		check_numbers(n);
	check_places();
}

/* ---- what came of the slices ---- */

/* Is this what the receiver's user said when it failed the slice? */
static void
check_text(const struct sender *s, int index, int i)
{
	const struct af_tx_slice *slice = &s->slices[i];
	char text[3000];

	if (s->judged[i] != 'f')
		fail("reported as failed by its receiver's user, who did not", index, i);
	if (slice->text_bytes != text_of(i, text) || slice->text_got != slice->text_bytes ||
	    memcmp(slice->text, text, slice->text_bytes))
		fail("the user's words are not those that were said", index, i);
}

/* Is this a node that the scenario pauses? */
static bool
is_paused_by_plan(int node)
{
	return o.pause_ms &&
	       ((o.pause_way & 1 && node == receivers[0].at.node) || (o.pause_way & 2 && node == senders[0]->at.node));
}

/* Milliseconds for which a node did nothing. */
static int
slept_ms(int node)
{
	return (is_paused_by_plan(node) ? o.pause_for_ms : 0) + (int)(stuck[node].all_ns / MS);
}

/* May the slice have failed for this reason, after what happened to both ends? */
static bool
is_excused(const struct sender *s, int error)
{
	const struct receiver *r = &receivers[s->to];
	/* Without a session, or with another process in the receiver's place, finding it takes time after the pause. */
	int patience_ms = o.timeout_ms - (r->restarted || error == AF_TX_NO_PEER ? 500 : 0);

	switch (error) {
	case AF_TX_CANCELLED:
		return o.cancel || s->restarted;
	case AF_TX_RESTARTED: /* a sender that slept before a frame of its session arrived counts as new, too */
		return r->restarted || r->unplugged || s->unplugged || slept_ms(s->at.node) >= patience_ms;
	case AF_TX_AMBIGUOUS: /* late answers of the one that was killed */
		return r->restarted;
	case AF_TX_SILENT:
	case AF_TX_NO_PEER:
		return o.outage_for_ms >= patience_ms || is_silent(r) || slept_ms(r->at.node) >= patience_ms;
	default:
		return false;
	}
}

static void
check_outcome(void)
{
	for (int index = 0; index < nb_senders; index++)
		for (int i = 0; i < senders[index]->nb_posted; i++) {
			const struct sender *s = senders[index];
			const struct af_tx_slice *slice = &s->slices[i];
			bool done = atomic_load(&slice->state) == AF_TX_DONE;

			if (s->handed_over[i] > 1)
				fail("handed over twice", index, i);
			if (done && !s->handed_over[i])
				fail("reported as delivered, but it was not", index, i);
			if (done && o.confirm && s->judged[i] != 'c')
				fail("reported as delivered, but its receiver's user has not said so", index, i);
			if (slice->error == AF_TX_FAILED_BY_USER)
				check_text(s, index, i);
			else if (slice->error && !is_excused(s, slice->error))
				fail("failed without a reason", index, i);
		}
}

#endif
