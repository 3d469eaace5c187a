/* The life of a slice at its sender: queued, numbered, acknowledged or lost chunk by chunk, ended. */
#ifndef AIFLOW_TX_SLICE_H
#define AIFLOW_TX_SLICE_H

#include "aiflow/tx/offering.h"
#include "aiflow/tx/placing.h"
#include "aiflow/tx/tx_state.h"

static inline void
af_tx_count_end(struct af_tx_ended *ended, const struct af_tx_slice *s)
{
	uint64_t since = s->joined_ns > s->posted_ns ? s->joined_ns : s->posted_ns;

	if (s->error != AF_TX_OK) {
		atomic_fetch_add_explicit(&ended->failed, 1, memory_order_relaxed);
		return;
	}
	ended->slices++;
	ended->elements += s->nb_elements;
	ended->bytes += s->nbytes;
	ended->frames += s->frames;
	ended->retransmits += s->retransmits;
	ended->ns += s->done_ns > since ? s->done_ns - since : 0;
}

/* The account of a slice with this number of parts. NULL without memory: then each part counts as a slice. */
static inline struct af_tx_whole *
af_tx_begin(uint32_t parts, uint64_t now)
{
	struct af_tx_whole *whole = calloc(1, sizeof(*whole));

	if (whole) {
		whole->left = parts;
		whole->posted_ns = now;
	}
	return whole;
}

/* A part has ended. Its times are those of a report: from when the first receiver was there to the last end. */
static inline void
af_tx_count_part(struct af_tx_ended *sends, const struct af_tx_slice *s)
{
	struct af_tx_whole *whole = s->whole;

	if (!whole) {
		af_tx_count_end(sends, s);
		return;
	}
	whole->failed |= s->error != AF_TX_OK;
	if (s->joined_ns && (!whole->joined_ns || s->joined_ns < whole->joined_ns))
		whole->joined_ns = s->joined_ns;
	whole->elements += s->nb_elements;
	whole->bytes += s->nbytes;
	whole->frames += s->frames;
	whole->retransmits += s->retransmits;
	if (--whole->left)
		return;
	if (whole->failed) {
		atomic_fetch_add_explicit(&sends->failed, 1, memory_order_relaxed);
	} else {
		uint64_t since = whole->joined_ns > whole->posted_ns ? whole->joined_ns : whole->posted_ns;

		sends->slices++;
		sends->elements += whole->elements;
		sends->bytes += whole->bytes;
		sends->frames += whole->frames;
		sends->retransmits += whole->retransmits;
		sends->ns += s->done_ns > since ? s->done_ns - since : 0;
	}
	free(whole);
}

/* The posted parts of a slice have ended, and the others are never posted: it has failed. Not in the loop. */
static inline void
af_tx_give_up_rest(struct af_tx_ended *sends, struct af_tx_whole *whole)
{
	atomic_fetch_add_explicit(&sends->failed, 1, memory_order_relaxed);
	free(whole);
}

/* What a slice has for the session that it is in. */
static inline void
af_tx_free_tables(struct af_tx_slice *s)
{
	free(s->first_chunk);
	free(s->acked);
	s->first_chunk = NULL;
	s->acked = NULL;
	af_tx_forget_places(s);
	af_tx_withdraw(s);
}

static inline void
af_tx_end(struct af_tx *tx, struct af_tx_slice *s, int error, uint64_t detail, uint64_t now)
{
	af_tx_free_tables(s);
	s->error = error;
	s->detail = detail;
	s->done_ns = now;
	af_tx_count_end(&tx->ended, s);
	if (tx->sends)
		af_tx_count_part(tx->sends, s);
	tx->changed = true;
	/* The last access: a waiting thread may free the slice from here on. */
	atomic_store_explicit(&s->state, error == AF_TX_OK ? AF_TX_DONE : AF_TX_FAILED, memory_order_release);
}

static inline void
af_tx_enqueue(struct af_tx *tx, struct af_tx_slice *s)
{
	s->next = NULL;
	*tx->queue_tail = s;
	tx->queue_tail = &s->next;
}

static inline struct af_tx_slice *
af_tx_dequeue(struct af_tx *tx)
{
	struct af_tx_slice *s = tx->queue;

	tx->queue = s->next;
	if (!tx->queue)
		tx->queue_tail = &tx->queue;
	return s;
}

/* Number the chunks of a slice. False without memory, or when there are too many. */
static inline bool
af_tx_lay_out(struct af_tx *tx, struct af_tx_slice *s)
{
	struct af_chunker chunker = {.payload_bytes = tx->payload_bytes};
	struct af_manifest m;

	s->lent = af_tx_offer(tx, s);
	memcpy(&m, s->manifest, sizeof m);
	s->inlined = !s->lent && !tx->keeps_mbufs && s->manifest_bytes + s->nbytes <= tx->payload_bytes;
	m.flags = s->inlined ? AF_FLAG_INLINE : 0;
	m.payload_bytes = AF_BE16((uint16_t)tx->payload_bytes);
	memcpy(s->manifest, &m, sizeof m);
	s->payload_bytes = tx->payload_bytes;
	s->next_chunk = s->nb_acked = s->digest = 0;
	s->begun = s->placed_bytes = 0;
	s->cursor = (struct af_cursor){0};
	memset(s->hands, 0, sizeof s->hands);
	memset(s->taken, 0, sizeof s->taken);
	s->all_sent = s->held = false;
	free(s->text); /* from an earlier session */
	s->text = NULL;
	s->text_bytes = s->text_got = 0;
	atomic_store_explicit(&s->acked_bytes, 0, memory_order_relaxed);
	s->nb_manifest = af_manifest_chunks(s->manifest_bytes, s->payload_bytes);
	s->nb_data = 0;
	s->nb_chunks = s->nb_manifest;
	if (!af_tx_is_told(s)) {
		s->first_chunk = malloc((s->nb_elements ? s->nb_elements : 1) * sizeof *s->first_chunk);
		if (!s->first_chunk)
			return false;
		for (uint32_t e = 0; e < s->nb_elements; e++)
			s->first_chunk[e] = (uint32_t)af_chunk_of(&chunker, s->elements[e].nbytes);
		if (chunker.next > 0xfffffff0u - s->nb_manifest)
			return false;
		s->nb_data = (uint32_t)chunker.next;
		s->nb_chunks = s->nb_manifest + s->nb_data + 1;
	}
	s->acked = calloc(s->nb_chunks / 64 + 1, 8);
	return s->acked != NULL;
}

/* Begin discovery anew. */
static inline void
af_tx_forget_answers(struct af_tx *tx, uint64_t now)
{
	tx->trouble = AF_TX_OK;
	tx->first_answer_ns = 0;
	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		struct af_tx_port *port = &tx->ports[p];

		port->open = false;
		port->nb_candidates = port->hellos = port->mtu_trials = 0;
		port->small_answered = port->other_answered = false;
		port->path_size = port->p.frame_size;
		port->hello_ns = port->answered_ns = 0;
		port->attached_ns = now;
	}
}

/* End the session. Slices that flowed fail with `error`. A slice that only asked is queued for the next session. With
 * AF_TX_OK all that are not held are queued, because the receiver has freed them. */
static inline void
af_tx_lose_session(struct af_tx *tx, int error, uint64_t now)
{
	struct af_tx_slice *waiting = NULL, **tail = &waiting;

	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		struct af_tx_slot *slot = af_tx_slot(tx, id);
		struct af_tx_slice *s = slot ? slot->slice : NULL;

		if (slot)
			slot->used = false;
		if (!s)
			continue;
		if ((error == AF_TX_OK && !s->held) ||
		    (atomic_load_explicit(&s->state, memory_order_relaxed) == AF_TX_ASKING &&
		     !(af_tx_is_told(s) && s->all_sent))) {
			af_tx_free_tables(s);
			atomic_store_explicit(&s->state, AF_TX_QUEUED, memory_order_relaxed);
			*tail = s;
			tail = &s->next;
		} else {
			af_tx_end(tx, s, error ? error : AF_TX_SILENT, 0, now);
		}
	}
	/* Packet numbers begin again, so the receiver must see another session, and its late frames none of ours. */
	tx->number = 0;
	tx->instance = (tx->instance & ~0xffffull) | ((tx->instance + 1) & 0xffff);
	*tail = tx->queue;
	if (!tx->queue)
		tx->queue_tail = tail;
	tx->queue = waiting;
	if (!tx->queue)
		tx->queue_tail = &tx->queue;
	tx->open = false;
	tx->first_id = tx->next_id = 0;
	tx->retransmit_head = tx->retransmit_tail = 0;
	tx->feedback_number = 0;
	memset(tx->next_number, 0, sizeof tx->next_number);
	af_tx_forget_answers(tx, now);
}

/* Has the session used up its numbers? A number is never used twice, because the receiver takes it for a replay. So the
 * session ends before that, between two slices. */
static inline bool
af_tx_is_worn(const struct af_tx *tx)
{
	bool worn = tx->next_id >= AF_WORN_SLICES || tx->feedback_number >= AF_WORN_NUMBERS;

	for (uint32_t p = 0; p < tx->nb_ports; p++)
		worn |= tx->next_number[p] >= AF_WORN_NUMBERS ||
			(tx->ports[p].open && tx->ports[p].pn.next >= AF_WORN_NUMBERS);
	return worn;
}

/* Put queued slices in flight, as far as there are slots. */
static inline void
af_tx_activate(struct af_tx *tx, uint64_t now)
{
	while (tx->queue && tx->open && tx->next_id - tx->first_id < AF_TX_SLICES) {
		struct af_tx_slice *s = tx->queue;
		uint32_t id = tx->next_id;
		struct af_tx_slot *slot = &tx->slots[id % AF_TX_SLICES];

		if (tx->next_id - tx->first_id >= 2 && s->nbytes > tx->payload_bytes)
			return;
		if (af_tx_is_worn(tx)) {
			if (tx->first_id == tx->next_id)
				af_tx_lose_session(tx, AF_TX_OK, now);
			return;
		}
		af_tx_dequeue(tx);
		if (!af_tx_lay_out(tx, s)) {
			af_tx_end(tx, s, AF_TX_NO_MEMORY, 0, now);
			continue;
		}
		s->id = id;
		if (!s->joined_ns)
			s->joined_ns = tx->opened_ns > s->posted_ns ? tx->opened_ns : s->posted_ns;
		*slot = (struct af_tx_slot){.id = id, .used = true, .slice = s};
		tx->next_id++;
		atomic_store_explicit(&s->state, AF_TX_ASKING, memory_order_relaxed);
	}
}

static inline void
af_tx_fail_all(struct af_tx *tx, int error, uint64_t now)
{
	if (tx->open)
		af_tx_lose_session(tx, error, now);
	while (tx->queue)
		af_tx_end(tx, af_tx_dequeue(tx), error, 0, now);
}

static inline void
af_tx_retransmit(struct af_tx *tx, uint32_t slice, uint32_t chunk)
{
	tx->retransmit[tx->retransmit_tail++ % AF_RETRANSMIT_RING] = (struct af_retransmit){slice, chunk};
}

/* A frame is declared lost: its chunk is retransmitted. */
static inline void
af_tx_lost(struct af_tx *tx, struct af_tx_port *port, struct af_sent *sent)
{
	sent->state = AF_SENT_LOST;
	if (sent->probe)
		return;
	port->pn.in_flight--;
	port->count.lost++;
	if (sent->chunk == AF_CHUNK_VOID) {
		struct af_tx_slot *slot = af_tx_slot(tx, sent->slice);

		if (slot)
			slot->void_in_flight = false;
	} else {
		af_tx_retransmit(tx, sent->slice, sent->chunk);
	}
}

/* A frame arrived. */
static inline void
af_tx_ack(struct af_tx *tx, struct af_tx_port *port, struct af_sent *sent)
{
	struct af_tx_slot *slot = af_tx_slot(tx, sent->slice);
	struct af_tx_slice *s = slot ? slot->slice : NULL;

	if (sent->state == AF_SENT_IN_FLIGHT && !sent->probe)
		port->pn.in_flight--;
	sent->state = AF_SENT_ACKED;
	if (sent->probe || sent->superseded || !s || sent->chunk == AF_CHUNK_VOID || af_tx_is_acked(s, sent->chunk))
		return;
	s->acked[sent->chunk / 64] |= 1ull << (sent->chunk % 64);
	s->nb_acked++;
	tx->moved_ns = tx->ticked_ns;
	if (s->nb_chunks)
		atomic_store_explicit(&s->acked_bytes, s->nbytes * (s->nb_acked / (double)s->nb_chunks),
				      memory_order_relaxed);
}

#endif
