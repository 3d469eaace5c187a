/* The sender's state machine: slices in, frames out, reports in.
 *
 * A slice is posted, asks with its MANIFEST, flows once it is granted, and is done when the receiver's report says
 * that it holds all of it. A path with room in its window, whose gap is over (pace.h), takes the next chunk that the
 * slice's plan has for it (plan.h); what a path has lost goes out again before anything new, on whichever path asks
 * next. Nothing here allocates per frame, locks or does I/O.
 *
 *   QUEUED --manifest--> ASKING --grant--> FLOWING --report: done--> held --report: confirmed--> DONE
 *      \___________________\________________\_____________________\____ void, cancel, silence ____> FAILED
 */
#ifndef AIFLOW_TX_H
#define AIFLOW_TX_H

#include "aiflow/tx/segment.h"
#include "aiflow/tx/discovery.h"
#include "aiflow/tx/tx_state.h"

static inline int
af_tx_error_of(uint32_t reason)
{
	switch (reason) {
	case AF_VOID_TOO_LARGE:
		return AF_TX_TOO_LARGE;
	case AF_VOID_INTEGRITY:
		return AF_TX_INTEGRITY;
	case AF_VOID_UNKNOWN:
		return AF_TX_UNKNOWN;
	case AF_VOID_FAILED:
		return AF_TX_FAILED_BY_USER;
	default:
		return AF_TX_REFUSED;
	}
}

/* A piece of the receiver's words on a slice. Pieces are told again and again: one that leaves a gap comes again. */
static inline void
af_tx_take_text(struct af_tx *tx, const struct af_feedback *r, const uint8_t *piece)
{
	struct af_tx_slot *slot = af_tx_slot(tx, AF_BE32(r->text_slice));
	struct af_tx_slice *s = slot ? slot->slice : NULL;
	uint32_t total = AF_BE16(r->text_total), at = AF_BE16(r->text_at), nbytes = AF_BE16(r->text_bytes);

	if (!s || !nbytes || at + nbytes > total || (s->text && total != s->text_bytes))
		return;
	if (!s->text) {
		s->text = malloc(total);
		if (!s->text)
			return;
		s->text_bytes = total;
		s->text_got = 0;
	}
	if (at > s->text_got || at + nbytes <= s->text_got)
		return;
	memcpy(s->text + at, piece, nbytes); /* of any length: what is known of it is the same */
	s->text_got = at + nbytes;
}

/* Slices that are at their end: up to `confirmed`, but not past one whose words are still to come. */
static inline void
af_tx_retire(struct af_tx *tx, const struct af_feedback *r, uint64_t now)
{
	uint32_t confirmed = AF_BE32(r->confirmed), done = AF_BE32(r->done);

	for (uint32_t id = tx->first_id; af_before(id, done); id++) {
		struct af_tx_slot *slot = af_tx_slot(tx, id);
		struct af_tx_slice *s = slot ? slot->slice : NULL;
		const struct af_void *found = NULL;
		uint32_t reason;

		if (s)
			s->held = true;
		if (tx->first_id != id || (s && !af_before(id, confirmed)))
			continue; /* held, no more */
		if (AF_BE32(r->voids[id % AF_SLICES_IN_FLIGHT].slice) == id &&
		    r->voids[id % AF_SLICES_IN_FLIGHT].reason)
			found = &r->voids[id % AF_SLICES_IN_FLIGHT];
		reason = found ? AF_BE32(found->reason) : AF_VOID_NONE;
		if (s && (reason == AF_VOID_UNKNOWN || reason == AF_VOID_FAILED) &&
		    s->text_got < AF_BE64(found->detail))
			continue;
		if (s)
			af_tx_end(tx, s, found ? af_tx_error_of(reason) : AF_TX_OK, found ? AF_BE64(found->detail) : 0,
				  now);
		if (slot)
			slot->used = false;
		tx->first_id = id + 1;
	}
}

static inline enum af_drop
af_tx_on_feedback(struct af_tx *tx, const struct af_frame *f, uint64_t now)
{
	struct af_feedback r;
	const uint8_t *at = f->payload + sizeof r, *end = f->payload + f->nbytes;
	uint32_t done, granted, ask;

	if (f->nbytes < sizeof r)
		return AF_DROP_FEEDBACK;
	memcpy(&r, f->payload, sizeof r);
	done = AF_BE32(r.done);
	granted = AF_BE32(r.granted);
	if (af_before(tx->next_id, done) || af_before(tx->next_id, granted) || af_before(done, AF_BE32(r.confirmed)))
		return AF_DROP_FEEDBACK; /* about slices that we never sent */
	for (uint32_t i = 0; i < r.nb_paths; i++) {
		struct af_path_feedback path;
		uint32_t p;

		if (end - at < (ptrdiff_t)sizeof path)
			return AF_DROP_FEEDBACK;
		memcpy(&path, at, sizeof path);
		at += sizeof path;
		p = AF_BE16(path.path);
		if (path.words > AF_RX_BITS / 64 || end - at < path.words * 8)
			return AF_DROP_FEEDBACK;
		if (p < tx->nb_ports && tx->ports[p].open)
			af_tx_on_path(tx, &tx->ports[p], &path, at, now);
		at += path.words * 8;
	}
	if (end - at >= AF_BE16(r.text_bytes))
		af_tx_take_text(tx, &r, at);
	if (f->number < tx->feedback_number)
		return AF_OK; /* a newer one has told us more */
	tx->feedback_number = f->number;
	tx->feedbacks++;
	tx->drop = r.drop < AF_NB_DROPS ? r.drop : AF_OK;
	tx->nb_dropped = AF_BE32(r.drops);
	for (uint32_t id = tx->first_id; af_before(id, granted) && id != tx->next_id; id++) {
		struct af_tx_slot *slot = af_tx_slot(tx, id);
		struct af_tx_slice *s = slot ? slot->slice : NULL;

		if (s && atomic_load_explicit(&s->state, memory_order_relaxed) == AF_TX_ASKING) {
			s->granted_ns = s->inlined ? 0 : now;
			tx->moved_ns = now;
			atomic_store_explicit(&s->state, AF_TX_FLOWING, memory_order_relaxed);
		}
	}
	af_tx_retire(tx, &r, now);
	/* Freed unseen, what follows `done` goes into another session; but first the user's word on what came before.
	 */
	if (AF_BE32(r.voids[AF_SLICES_IN_FLIGHT].reason) == AF_VOID_SILENCE &&
	    AF_BE32(r.voids[AF_SLICES_IN_FLIGHT].slice) == done) {
		tx->moved_ns = now; /* that its frames are dropped is no stall */
		if (!af_before(tx->first_id, done)) {
			af_tx_lose_session(tx, AF_TX_OK, now);
			return AF_OK;
		}
	}
	/* All acknowledged, and yet the receiver lacks a chunk: believe the receiver. */
	ask = AF_BE32(r.ask_slice);
	if (ask && tx->retransmit_head == tx->retransmit_tail) {
		struct af_tx_slot *slot = af_tx_slot(tx, ask);
		struct af_tx_slice *s = slot ? slot->slice : NULL;
		uint32_t chunk = AF_BE32(r.ask_chunk);

		if (s && chunk < s->next_chunk && s->nb_acked == s->nb_chunks && af_tx_is_acked(s, chunk)) {
			s->acked[chunk / 64] &= ~(1ull << (chunk % 64));
			s->nb_acked--;
			af_tx_retransmit(tx, ask, chunk);
		}
	}
	return AF_OK;
}

/* A port that goes: what flew over it goes out again elsewhere. Control plane, while the loop is parked. */
static inline void
af_tx_detach(struct af_tx *tx, uint32_t p, uint64_t now)
{
	struct af_tx_port *port = &tx->ports[p];
	bool any = false;

	for (uint64_t n = port->pn.judged; port->open && n < port->pn.next; n++)
		if (af_tx_sent(&port->pn, n)->state == AF_SENT_IN_FLIGHT)
			af_tx_lost(tx, port, af_tx_sent(&port->pn, n));
	if (port->open)
		tx->next_number[p] = port->pn.next;
	port->p.attached = port->open = false;
	port->nb_candidates = 0;
	for (uint32_t i = 0; i < tx->nb_ports; i++)
		any |= tx->ports[i].p.attached; /* without a path as yet, perhaps: it keeps asking */
	if (tx->open && !any)
		af_tx_lose_session(tx, AF_TX_RESTARTED, now);
}

/* Does a slice flow, and has the receiver taken none of its frames for the peer's time-out, though it answers? */
static inline bool
af_tx_is_stalled(struct af_tx *tx, uint64_t now)
{
	uint64_t quiet = tx->peer_timeout_ns / 2 < AF_HEARTBEAT_NS ? tx->peer_timeout_ns / 2 : AF_HEARTBEAT_NS;

	if (now > tx->heard_ns && now - tx->heard_ns > quiet)
		tx->moved_ns = now; /* a peer that is silent stalls nothing */
	if (now < tx->moved_ns || now - tx->moved_ns < tx->peer_timeout_ns)
		return false;
	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		const struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;

		if (s && atomic_load_explicit(&s->state, memory_order_relaxed) == AF_TX_FLOWING && !s->held &&
		    s->retransmits)
			return true;
	}
	return false;
}

static inline void
af_tx_sample(struct af_tx *tx, uint64_t now)
{
	struct af_sample *sample = af_sampler_begin(&tx->sampler, now);

	if (!sample)
		return;
	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		const struct af_tx_port *port = &tx->ports[p];

		sample->ports[p] = (struct af_port_sample){.frames = port->count.tx_frames,
							   .bytes = port->count.tx_bytes,
							   .sent = port->pn.seen,
							   .arrived = port->arrived,
							   .queued = port->pn.in_flight,
							   .capacity = port->pn.limit};
	}
	af_sampler_end(&tx->sampler);
}

/* ---- the agent ---- */

static inline bool
af_tx_on_frame(void *state, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len, void *handle)
{
	struct af_tx *tx = state;
	struct af_tx_port *port = &tx->ports[p];
	struct af_frame f;
	enum af_drop drop = af_wire_parse(frame, len, port->p.mac, port->p.frame_size, &f);

	(void)handle;
	port->count.rx_frames++;
	port->count.rx_bytes += len;
	if (drop == AF_OK && f.kind == AF_HELLO) {
		drop = af_tx_on_hello(tx, port, &f, now);
	} else if (drop == AF_OK) {
		if (!tx->open || f.session != tx->session)
			drop = AF_DROP_SESSION;
		else if (f.kind == AF_GRANT || f.kind == AF_FEEDBACK)
			drop = af_tx_on_feedback(tx, &f, now);
		else if (f.kind == AF_BYE)
			tx->bye_heard = true;
		else
			drop = AF_DROP_KIND;
		if (drop == AF_OK)
			tx->heard_ns = now;
	}
	tx->drops[drop]++;
	return false;
}

static inline bool
af_tx_tick(void *state, uint64_t now)
{
	struct af_tx *tx = state;
	struct af_tx_slice **link = &tx->queue;
	bool changed;

	while (*link) {
		struct af_tx_slice *s = *link;

		if (!atomic_load_explicit(&s->cancel, memory_order_relaxed)) {
			link = &s->next;
			continue;
		}
		*link = s->next;
		if (!*link)
			tx->queue_tail = link;
		af_tx_end(tx, s, AF_TX_CANCELLED, 0, now);
	}
	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		struct af_tx_slot *slot = af_tx_slot(tx, id);

		if (slot && slot->slice && atomic_load_explicit(&slot->slice->cancel, memory_order_relaxed)) {
			af_tx_end(tx, slot->slice, AF_TX_CANCELLED, 0, now);
			slot->slice = NULL;
			slot->void_in_flight = false;
		}
	}
	af_tx_sample(tx, now);
	if (tx->ticked_ns && (now - tx->ticked_ns > AF_AWAY_NS ||
			      (!tx->open && atomic_load_explicit(&tx->joining, memory_order_relaxed)))) {
		if (!tx->open && tx->queue && tx->queue->posted_ns > tx->heard_ns)
			tx->heard_ns = tx->queue->posted_ns; /* since then it is searched for */
		tx->heard_ns = af_heard_while_away(tx->heard_ns, tx->ticked_ns, now);
		tx->moved_ns = now;
	}
	tx->ticked_ns = now;
	if (!tx->open)
		af_tx_discover(tx, now);
	af_tx_watch_suspect(tx, now);
	if (tx->death_unreported && tx->queue && !atomic_load_explicit(&tx->joining, memory_order_relaxed)) {
		tx->death_unreported =
			false; /* else it would wait for another receiver, though its like a moment ago had failed */
		af_tx_end(tx, af_tx_dequeue(tx), AF_TX_RESTARTED, 0, now);
	}
	for (uint32_t p = 0; p < tx->nb_ports; p++)
		af_tx_watch_path(tx, &tx->ports[p], now);
	if (tx->open && af_tx_is_stalled(tx, now))
		af_tx_lose_session(tx, AF_TX_STALLED, now);
	if (tx->trouble && !tx->open && tx->queue) {
		af_tx_fail_all(tx, tx->trouble, now);
		af_tx_forget_answers(tx, now); /* the next slice finds out anew */
	} else if (tx->trouble && !tx->open && now - tx->first_answer_ns > AF_STALE_NS) {
		af_tx_forget_answers(tx, now);
	}
	af_tx_activate(tx, now);
	if (af_tx_busy(tx)) {
		struct af_tx_slot *slot = af_tx_slot(tx, tx->first_id);
		const struct af_tx_slice *oldest =
			tx->first_id != tx->next_id ? (slot ? slot->slice : NULL) : tx->queue;
		uint64_t since = oldest && oldest->posted_ns > tx->heard_ns ? oldest->posted_ns : tx->heard_ns;

		if (now > since && now - since > tx->peer_timeout_ns) {
			int error = tx->open ? AF_TX_SILENT : AF_TX_NO_PEER;

			if (tx->open)
				af_tx_lose_session(tx, error, now);
			while (tx->queue && now > tx->queue->posted_ns &&
			       now - tx->queue->posted_ns > tx->peer_timeout_ns)
				af_tx_end(tx, af_tx_dequeue(tx), error, 0, now);
		}
	}
	changed = tx->changed;
	tx->changed = false;
	return changed;
}

#endif
