/* When a sender has something to do although no frame arrives: how long its loop may sleep. */
#ifndef AIFLOW_TX_DUE_H
#define AIFLOW_TX_DUE_H

#include "aiflow/tx/discovery.h"
#include "aiflow/tx/recovery.h"
#include "aiflow/tx/tx_state.h"

static inline uint64_t
af_tx_hello_due_at(const struct af_tx *tx, const struct af_tx_port *port, uint64_t now)
{
	uint64_t slow = port->attached_ns + 1000000000ull,
		 soon = port->hello_ns + af_unevenly(AF_HELLO_NS, port->hellos);

	if (tx->closing)
		return AF_DUE_NEVER;
	if (port->open) {
		uint64_t next = port->hello_ns ? port->hello_ns + af_unevenly(AF_DISCOVERY_NS, port->hellos) : 0;

		return af_tx_busy(tx) ? af_later(tx->heard_ns + AF_DISCOVERY_NS, next) : AF_DUE_NEVER;
	}
	if (!port->hello_ns)
		return now;
	if (af_tx_is_elsewhere(tx, port, now)) {
		uint64_t heartbeat = port->hello_ns + af_unevenly(AF_HEARTBEAT_NS, port->hellos);

		return af_tx_busy(tx) ? af_earlier(heartbeat, tx->heard_ns + AF_DISCOVERY_NS) : heartbeat;
	}
	if (now < slow && soon < slow)
		return soon;
	return port->hello_ns + af_unevenly(AF_HELLO_SLOW_NS, port->hellos);
}

/* The times of af_path_probe_is_due. */
static inline uint64_t
af_tx_probe_due_at(const struct af_tx *tx, const struct af_tx_port *port)
{
	const struct af_tx_pktnum *pn = &port->pn;
	uint64_t last = af_later(pn->sent_ns, pn->acked_ns), pto = af_path_pto(port), due = last + AF_HEARTBEAT_NS;

	if (pn->judged != pn->next || port->suspended)
		due = last + pto;
	else if (af_tx_busy(tx) || tx->suspect_ns)
		due = af_earlier(due, af_later(tx->heard_ns, last) + pto);
	if (pn->in_flight && port->p.kick)
		due = af_earlier(due, pn->sent_ns + af_later(pn->rtt_ns / 2, AF_KICK_NS));
	return due;
}

/* Is there a chunk that port p may send? Whether dispatch.h gives it a chunk is not asked. */
static inline bool
af_tx_has_chunk(const struct af_tx *tx, uint32_t p)
{
	if (tx->retransmit_head != tx->retransmit_tail)
		return true;
	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		const struct af_tx_slot *slot = &tx->slots[id % AF_TX_SLICES];
		const struct af_tx_slice *s = slot->slice;

		if (!s && !slot->void_in_flight)
			return true;
		if (s && s->next_chunk != s->nb_chunks && !s->held && s->dispatch.ports >> p & 1 &&
		    (s->next_chunk < s->nb_manifest ||
		     atomic_load_explicit(&s->state, memory_order_relaxed) == AF_TX_FLOWING))
			return true;
	}
	return false;
}

/* Of af_tx_next_frame. */
static inline uint64_t
af_tx_frame_due_at(const struct af_tx *tx, uint32_t p, uint64_t now)
{
	const struct af_tx_port *port = &tx->ports[p];
	uint64_t due;

	if (!port->p.attached)
		return AF_DUE_NEVER;
	due = af_tx_hello_due_at(tx, port, now);
	if (!tx->open || !port->open)
		return due;
	if (tx->closing && !tx->bye_heard && !af_tx_busy(tx))
		due = af_earlier(due, port->hello_ns + AF_HELLO_NS);
	if (!port->suspended && af_tx_pktnum_has_room(&port->pn) && af_tx_has_chunk(tx, p))
		due = af_earlier(due, port->pace.due_ns > port->pace.slack_ns ? port->pace.due_ns - port->pace.slack_ns
									      : now);
	return af_earlier(due, af_tx_probe_due_at(tx, port));
}

/* Of af_tx_watch_path. A time that has passed waits for feedback on another path. */
static inline uint64_t
af_tx_watch_due_at(struct af_tx *tx, struct af_tx_port *port, uint64_t now)
{
	struct af_tx_pktnum *pn = &port->pn;
	uint64_t due = AF_DUE_NEVER;

	if (!port->open)
		return due;
	if (!pn->in_flight && pn->limit > AF_FIRST_WINDOW && !port->p.point_to_point && !port->pace.rate_based)
		due = pn->sent_ns + AF_PATH_IDLE_NS + 1;
	if (!port->suspended && pn->judged != pn->next && tx->nb_ports > 1) {
		uint64_t silent = af_later(af_tx_sent(pn, pn->judged)->sent_ns, pn->acked_ns) + af_path_patience(pn);

		if (silent > now)
			due = af_earlier(due, silent);
	}
	return due;
}

/* A slice that flows, and of which chunks were retransmitted, may stall. */
static inline uint64_t
af_tx_stall_due_at(const struct af_tx *tx)
{
	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		const struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;

		if (s && !s->held && s->retransmits)
			return tx->moved_ns + tx->peer_timeout_ns;
	}
	return AF_DUE_NEVER;
}

/* Of af_tx_check_silence. */
static inline uint64_t
af_tx_silence_due_at(struct af_tx *tx)
{
	struct af_tx_slot *slot = af_tx_slot(tx, tx->first_id);
	const struct af_tx_slice *oldest = tx->first_id != tx->next_id ? (slot ? slot->slice : NULL) : tx->queue;

	if (!af_tx_busy(tx))
		return AF_DUE_NEVER;
	return (oldest ? af_later(oldest->posted_ns, tx->heard_ns) : tx->heard_ns) + tx->peer_timeout_ns + 1;
}

/* Of af_tx_tick. */
static inline uint64_t
af_tx_tick_due_at(struct af_tx *tx, uint64_t now)
{
	uint64_t due = af_sampler_due_at(&tx->sampler, af_tx_moved(tx));

	if (tx->changed || (tx->queue && (tx->trouble || tx->death_unreported)))
		return now;
	if (!tx->open && tx->first_answer_ns && now < tx->first_answer_ns + AF_DISCOVERY_NS)
		due = af_earlier(due, tx->first_answer_ns + AF_DISCOVERY_NS);
	if (!tx->open && tx->trouble)
		due = af_earlier(due, tx->first_answer_ns + AF_STALE_NS + 1);
	if (tx->suspect_ns)
		due = af_earlier(due, tx->suspect_ns + AF_DISCOVERY_NS + 1);
	for (uint32_t p = 0; p < tx->nb_ports; p++)
		due = af_earlier(due, af_tx_watch_due_at(tx, &tx->ports[p], now));
	if (tx->open)
		due = af_earlier(due, af_tx_stall_due_at(tx));
	return af_earlier(due, af_tx_silence_due_at(tx));
}

/* Is nothing on its way? */
static inline bool
af_tx_is_quiet(const struct af_tx *tx)
{
	bool quiet = !af_tx_busy(tx) && !tx->suspect_ns && !tx->trouble && (tx->open || !tx->first_answer_ns) &&
		     (!tx->closing || tx->bye_heard || !tx->open);

	for (uint32_t p = 0; p < tx->nb_ports; p++)
		quiet &= !tx->ports[p].open || tx->ports[p].pn.judged == tx->ports[p].pn.next;
	return quiet;
}

static inline uint64_t
af_tx_event_due_at(struct af_tx *tx, uint64_t now)
{
	uint64_t due = af_tx_tick_due_at(tx, now);

	for (uint32_t p = 0; p < tx->nb_ports; p++)
		due = af_earlier(due, af_tx_frame_due_at(tx, p, now));
	return due;
}

/* See struct af_agent. */
static inline uint64_t
af_tx_due(void *state, uint64_t now)
{
	struct af_tx *tx = state;
	uint64_t due = af_tx_event_due_at(tx, now);

	return af_tx_is_quiet(tx) ? due : af_earlier(due, now + AF_DUE_BUSY_NS);
}

#endif
