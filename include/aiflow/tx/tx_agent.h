/* The sender's state machine: slices in, frames out, feedback in.
 *
 * A slice is posted. It asks with its MANIFEST and flows once it is granted. It is done when feedback says that the
 * receiver holds all of it. A path takes the next chunk that dispatch.h has for it, when its window has room and its
 * pacer agrees (pacer.h). Lost chunks are retransmitted before new ones, on the path that asks next. Nothing here
 * allocates per frame, locks or does I/O.
 *
 *   QUEUED --manifest--> ASKING --grant--> FLOWING --feedback: done--> held --feedback: confirmed--> DONE
 *      \___________________\________________\_______________________\____ void, cancel, silence ____> FAILED
 */
#ifndef AIFLOW_TX_AGENT_H
#define AIFLOW_TX_AGENT_H

#include "aiflow/tx/discovery.h"
#include "aiflow/tx/offering.h"
#include "aiflow/tx/recovery.h"
#include "aiflow/tx/segment.h"
#include "aiflow/tx/tx_feedback.h"
#include "aiflow/tx/tx_slice.h"
#include "aiflow/tx/tx_state.h"

/* Remove a port: what is in flight on it is retransmitted elsewhere. Control plane, while the loop is parked. */
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
	af_tx_unmap(tx, port->p.shared);
	af_tx_withdraw_all(tx, port->p.shared);
	for (uint32_t i = 0; i < tx->nb_ports; i++)
		any |= tx->ports[i].p.attached; /* it may have no path yet: it keeps asking */
	if (tx->open && !any)
		af_tx_lose_session(tx, AF_TX_RESTARTED, now);
}

/* The receiver answers, but for the peer timeout it has accepted no frame of a slice that flows. */
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
	af_sampler_end(&tx->sampler, af_tx_moved(tx));
}

static inline bool
af_tx_owns(const void *state, uint32_t number)
{
	const struct af_tx *tx = state;

	return tx->number == number && number;
}

/* The receiver answers our goodbye, or says its own. Another one may have answered our HELLO, and go: that is none of
 * our session's concern. */
static inline enum af_drop
af_tx_on_bye(struct af_tx *tx, const struct af_frame *f, uint64_t now)
{
	if (!tx->open)
		af_tx_forget_session(tx, f->slice);
	else if (f->slice != tx->session)
		return AF_DROP_SESSION;
	else
		tx->heard_ns = now;
	tx->bye_heard = tx->closing;
	if (tx->open && !tx->closing) {
		af_tx_lose_session(tx, AF_TX_RESTARTED, now);
		tx->changed = true;
	}
	return AF_OK;
}

/* A frame of this life of ours. */
static inline enum af_drop
af_tx_on_session(struct af_tx *tx, const struct af_frame *f, uint64_t now)
{
	enum af_drop drop;

	if (!af_tx_owns(tx, f->session))
		return AF_DROP_SESSION;
	if (f->kind == AF_BYE && f->element == AF_BYE_RECEIVER)
		return af_tx_on_bye(tx, f, now);
	if (!tx->open)
		return AF_DROP_SESSION;
	if (f->kind != AF_GRANT && f->kind != AF_FEEDBACK)
		return AF_DROP_KIND;
	drop = af_tx_on_feedback(tx, f, now);
	if (drop == AF_OK)
		tx->heard_ns = now;
	return drop;
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
	if (drop == AF_OK)
		drop = f.kind == AF_HELLO ? af_tx_on_hello(tx, port, &f, now) : af_tx_on_session(tx, &f, now);
	tx->drops[drop]++;
	return false;
}

/* Slices that the user has cancelled end at once. What was sent of them is void. */
static inline void
af_tx_end_cancelled(struct af_tx *tx, uint64_t now)
{
	struct af_tx_slice **link = &tx->queue;

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
}

/* While this sender was stopped, or its receiver makes their ports, the peer's silence says nothing. */
static inline void
af_tx_note_absence(struct af_tx *tx, uint64_t now)
{
	uint64_t away = af_tx_busy(tx) ? AF_AWAY_NS : AF_AWAY_QUIET_NS;

	if (tx->ticked_ns &&
	    (now - tx->ticked_ns > away || (!tx->open && atomic_load_explicit(&tx->joining, memory_order_relaxed)))) {
		if (!tx->open && tx->queue && tx->queue->posted_ns > tx->heard_ns)
			tx->heard_ns = tx->queue->posted_ns; /* the search began then */
		tx->heard_ns = af_heard_while_away(tx->heard_ns, tx->ticked_ns, now);
		tx->moved_ns = now;
	}
	tx->ticked_ns = now;
}

/* A receiver that dies between two slices fails the next one. It would wait for another receiver otherwise, while a
 * slice a moment earlier would have failed. */
static inline void
af_tx_report_death(struct af_tx *tx, uint64_t now)
{
	if (tx->death_unreported && tx->queue && !atomic_load_explicit(&tx->joining, memory_order_relaxed)) {
		tx->death_unreported = false;
		af_tx_end(tx, af_tx_dequeue(tx), AF_TX_RESTARTED, 0, now);
	}
}

/* Discovery found an error that waiting does not mend: slices fail, and the next one searches anew. */
static inline void
af_tx_report_trouble(struct af_tx *tx, uint64_t now)
{
	if (!tx->trouble || tx->open)
		return;
	if (tx->queue) {
		af_tx_fail_all(tx, tx->trouble, now);
		af_tx_forget_answers(tx, now);
	} else if (now - tx->first_answer_ns > AF_STALE_NS) {
		af_tx_forget_answers(tx, now);
	}
}

/* A receiver that was silent for the peer timeout fails the session; without a session each slice has its own time. */
static inline void
af_tx_check_silence(struct af_tx *tx, uint64_t now)
{
	struct af_tx_slot *slot = af_tx_slot(tx, tx->first_id);
	const struct af_tx_slice *oldest = tx->first_id != tx->next_id ? (slot ? slot->slice : NULL) : tx->queue;
	uint64_t since = oldest && oldest->posted_ns > tx->heard_ns ? oldest->posted_ns : tx->heard_ns;
	int error = tx->open ? AF_TX_SILENT : AF_TX_NO_PEER;

	if (!af_tx_busy(tx) || now <= since || now - since <= tx->peer_timeout_ns)
		return;
	if (tx->open)
		af_tx_lose_session(tx, error, now);
	while (tx->queue && now > tx->queue->posted_ns && now - tx->queue->posted_ns > tx->peer_timeout_ns)
		af_tx_end(tx, af_tx_dequeue(tx), error, 0, now);
}

static inline struct af_load
af_tx_load(const void *state, uint32_t p)
{
	const struct af_tx *tx = state;
	const struct af_tx_port *port = &tx->ports[p];
	uint32_t window = port->pace.rate_based ? af_tx_backstop(&port->p) : port->p.tx_window;

	return (struct af_load){.window = window,
				.in_flight = port->open ? port->pn.in_flight : 0,
				.busy = port->open && af_tx_busy(tx)};
}

/* What the slices wait for. One whose frames are on their way counts before those that can do nothing. */
static inline enum af_tx_wait
af_tx_waits_for(const struct af_tx *tx)
{
	enum af_tx_wait wait = tx->queue ? AF_TX_BY_PATH : AF_TX_BY_USER;

	if (!tx->open)
		return tx->queue ? AF_TX_BY_PEER : AF_TX_BY_USER;
	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		const struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;
		enum af_tx_wait this = AF_TX_BY_PATH;

		if (!s)
			continue;
		if (s->held)
			this = AF_TX_BY_VERDICT;
		else if (!s->inlined && s->nb_acked >= s->nb_manifest &&
			 atomic_load_explicit(&s->state, memory_order_relaxed) == AF_TX_ASKING)
			this = AF_TX_BY_MEMORY;
		if (this == AF_TX_BY_PATH)
			return this;
		if (wait != AF_TX_BY_MEMORY)
			wait = this;
	}
	return wait;
}

static inline bool
af_tx_tick(void *state, uint64_t now)
{
	struct af_tx *tx = state;
	bool changed;

	af_tx_end_cancelled(tx, now);
	af_tx_sample(tx, now);
	af_tx_note_absence(tx, now);
	if (!tx->open)
		af_tx_discover(tx, now);
	af_tx_watch_suspect(tx, now);
	af_tx_report_death(tx, now);
	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		af_tx_watch_path(tx, &tx->ports[p], now);
		af_chrono_note(&tx->ports[p].flight, tx->ports[p].open && tx->ports[p].pn.in_flight, now);
	}
	if (tx->open && af_tx_is_stalled(tx, now))
		af_tx_lose_session(tx, AF_TX_STALLED, now);
	af_tx_report_trouble(tx, now);
	af_tx_activate(tx, now);
	af_tx_check_silence(tx, now);
	af_chrono_note(&tx->waits, af_tx_waits_for(tx), now);
	changed = tx->changed;
	tx->changed = false;
	return changed;
}

#endif
