/* What happens to processes, ports and senders, at the times that the scenario says. */
#ifndef TESTS_EVENTS_H
#define TESTS_EVENTS_H

#include "outcome.h"

static bool was_gone; /* the port that the scenario unplugs */

/* That a process is dead: when a node will know it. */
struct funeral {
	int node;
	uint32_t writer;
	uint64_t when;
};

static struct funeral funerals[MAX_LINKS];
static uint32_t nb_funerals;
static bool severed[MAX_NODES]; /* the connection of this node with the hub: the process at one end is another now */

/* The ports of a node on the segments of a connection go, or come. */
static void
plug_node(int node, int spoke, bool come)
{
	for (int i = 0; i < nb_senders; i++) {
		struct sender *s = senders[i];

		for (uint32_t k = 0; k < s->at.nb_ports && s->at.node == node; k++) {
			if (spoke_of(s->at.segments[k]) != spoke || s->tx.ports[k].p.attached == come)
				continue;
			s->unplugged = true;
			if (come) {
				attach_sender(s, k);
				plug(&s->at, k);
			} else {
				unplug(&s->at, k);
				af_tx_detach(&s->tx, k, now);
			}
		}
	}
	for (int i = 0; i < nb_receivers; i++) {
		struct receiver *r = &receivers[i];

		for (uint32_t k = 0; k < r->at.nb_ports && r->at.node == node; k++) {
			if (spoke_of(r->at.segments[k]) != spoke || r->rx->ports[k].p.attached == come)
				continue;
			r->unplugged = true;
			if (come) {
				attach_receiver(r, k);
				plug(&r->at, k);
			} else {
				unplug(&r->at, k);
				af_rx_detach(r->rx, k);
			}
		}
	}
}

/* That a process writes no more over a connection that has ended, the node at its other end will know in a while. */
static void
announce(int node, int spoke)
{
	funerals[nb_funerals++] = (struct funeral){.node = node,
						   .writer = links[node != 0][spoke]->writer,
						   .when = now + draw((uint32_t)o.gone_ms + 1) * MS};
	if (nb_funerals == MAX_LINKS)
		exit(2);
}

/* A node hangs up while the one at the other end sleeps. Both processes live on. */
static void
hang_up_some(void)
{
	for (int n = 0; n < nb_nodes; n++) {
		int spoke = n ? n : spoke_of(stuck[n].port), other = n ? 0 : spoke;

		if (!stuck[n].until || !stuck[n].hangs_up || now < stuck[n].hangs_up || is_stuck(other))
			continue;
		stuck[n].hangs_up = 0;
		if (severed[spoke])
			continue;
		note(now, "node %d hangs up on node %d", other, n);
		plug_node(other, spoke, false);
		announce(n, spoke);
		announce(other, spoke);
		severed[spoke] = true;
	}
}

static bool is_stopped(int node);

/* Nodes notice that a connection hung up, connect anew, and learn that the process of the former one is dead. */
static void
follow_deaths(void)
{
	hang_up_some();
	for (int spoke = 1; spoke < nb_nodes && may_share(); spoke++) {
		if (!severed[spoke] || is_stopped(0) || is_stopped(spoke))
			continue;
		severed[spoke] = false;
		note(now, "nodes 0 and %d connect anew", spoke);
		plug_node(0, spoke, false);
		plug_node(spoke, spoke, false);
		connect_nodes(spoke);
		plug_node(0, spoke, true);
		plug_node(spoke, spoke, true);
	}
	for (uint32_t i = 0; i < nb_funerals;) {
		struct funeral f = funerals[i];
		bool hung_up = true;

		for (int spoke = 1; spoke < nb_nodes; spoke++)
			hung_up &= !severed[spoke] || (f.node && f.node != spoke);
		if (now < f.when || !hung_up || is_stopped(f.node)) {
			i++;
			continue;
		}
		note(now, "node %d learns that writer %u is gone", f.node, f.writer);
		for (int k = 0; k < nb_receivers; k++)
			if (receivers[k].at.node == f.node)
				af_rx_writer_gone(receivers[k].rx, f.writer);
		funerals[i] = funerals[--nb_funerals];
		placing.gone++;
	}
}

/* The process of a node has died, and its connections with it. */
static void
sever(int node)
{
	stuck[node].until = 0;
	for (int spoke = 1; spoke < nb_nodes && may_share(); spoke++) {
		if (node && node != spoke)
			continue;
		if (!severed[spoke])
			announce(node ? 0 : spoke, spoke); /* at the end that lives */
		severed[spoke] = true;
		links[node != 0][spoke] = NULL;
	}
}

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
	sever(node);
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
			if (!goes(&s->at, k) || s->tx.ports[k].p.attached == !gone || is_stuck(s->at.node))
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
