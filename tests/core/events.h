/* What happens to processes, ports and senders, at the times that the scenario says. */
#ifndef TESTS_EVENTS_H
#define TESTS_EVENTS_H

#include "outcome.h"

static bool was_gone; /* the port that the scenario unplugs */

/* A process dies and is begun anew, with all its agents. */
static void
restart_node(int node)
{
	note(now, "node %d restarts", node);
	forget_frames(node);
	for (int i = 0; i < nb_receivers; i++)
		if (receivers[i].at.node == node)
			drop_receiver(&receivers[i]);
	for (int i = 0; i < nb_senders; i++)
		if (senders[i]->at.node == node)
			kill_sender(senders[i]);
	begin_process(node);
	for (int i = 0; i < nb_receivers; i++)
		if (receivers[i].at.node == node)
			revive_receiver(&receivers[i]);
	for (int i = 0; i < nb_senders; i++)
		if (senders[i]->at.node == node)
			revive_sender(senders[i], i);
}

static void
restart_some(void)
{
	if (is_within(now, o.rx_restart_ms, 0) && !happened[RX_RESTART]++) {
		if (o.whole) {
			restart_node(receivers[0].at.node);
			return;
		}
		note(now, "receiver 0 restarts");
		drop_receiver(&receivers[0]);
		revive_receiver(&receivers[0]);
	}
	if (is_within(now, o.tx_restart_ms, 0) && !happened[TX_RESTART]++) {
		if (o.whole) {
			restart_node(senders[0]->at.node);
			return;
		}
		note(now, "sender 0 restarts");
		kill_sender(senders[0]);
		revive_sender(senders[0], 0);
	}
}

/* Is this agent's port one that the scenario unplugs? */
static bool
goes(const struct place *at, uint32_t port)
{
	const struct place *first = &senders[0]->at;

	return at->node == first->node && at->segments[port] == first->segments[first->nb_ports - 1] &&
	       (o.whole || at == first);
}

static void
unplug_some(void)
{
	bool gone = is_within(now, o.unplug_ms, o.unplug_for_ms);

	happened[UNPLUG] += gone && !was_gone;
	for (int i = 0; i < nb_senders; i++) {
		struct sender *s = senders[i];

		for (uint32_t k = 0; k < s->at.nb_ports; k++) {
			if (!goes(&s->at, k) || s->tx.ports[k].p.attached == !gone)
				continue;
			note(now, "port %u of sender %d %s", k, i, gone ? "goes" : "is back");
			if (gone) {
				unplug(&s->at, k);
				af_tx_detach(&s->tx, k, now);
				s->unplugged |= s->at.nb_ports == 1;
			} else {
				attach_sender(s, k);
				plug(&s->at, k);
			}
		}
	}
	for (int i = 0; i < nb_receivers; i++) {
		struct receiver *r = &receivers[i];

		for (uint32_t k = 0; k < r->at.nb_ports; k++) {
			if (!goes(&r->at, k) || r->rx->ports[k].p.attached == !gone)
				continue;
			note(now, "port %u of receiver %d %s", k, i, gone ? "goes" : "is back");
			r->unplugged = true;
			if (gone) {
				unplug(&r->at, k);
				af_rx_detach(r->rx, k);
			} else {
				attach_receiver(r, k);
				plug(&r->at, k);
			}
		}
	}
	was_gone = gone;
}

static void
cancel_slices(struct sender *s)
{
	for (int i = 0; i < s->nb_posted; i++) {
		struct af_tx_slice *slice = &s->slices[i];

		if (i % o.cancel == o.cancel - 1 && atomic_load(&slice->state) == AF_TX_FLOWING &&
		    !atomic_load(&slice->cancel) && slice->next_chunk > slice->nb_chunks / 2) {
			note(now, "slice %d is cancelled", i);
			happened[CANCEL]++;
			atomic_store(&slice->cancel, 1);
			nodes[s->at.node].poked = true;
		}
	}
}

/* Users of this node cancel the slices that the scenario says, once half of each has been sent. */
static void
cancel_some(int node)
{
	for (int i = 0; o.cancel && i < nb_senders; i++)
		if (senders[i]->at.node == node)
			cancel_slices(senders[i]);
}

/* The control plane waits for an answer to a goodbye for a limited time; here, as long as one can come. */
static bool
can_part(const struct sender *s)
{
	const struct receiver *r = &receivers[s->to];
	bool path = false;

	for (uint32_t i = 0; i < s->at.nb_ports; i++)
		path |= s->tx.ports[i].open && (s->at.segments[i] || !o.die_ms || o.back_ms);
	return path && s->tx.open && !is_silent(r) && af_rx_session_of(r->rx, s->tx.session);
}

static bool
has_parted(struct sender *s)
{
	if (!s->tx.closing)
		nodes[s->at.node].poked = true;
	s->tx.closing = true;
	return s->tx.bye_heard || !can_part(s);
}

/* A sender that has sent its share says goodbye, and another of its name takes its place. */
static void
renew_some(void)
{
	for (int i = 0; o.lives && i < nb_senders; i++) {
		struct sender *s = senders[i];

		if (s->nb_posted - s->first < o.lives || nb_unfinished(s) || !has_parted(s))
			continue;
		note(now, "sender %d is followed by another", i);
		drop_tx(s);
		make_tx(s, i);
		sum.renewals++;
	}
}

#endif
