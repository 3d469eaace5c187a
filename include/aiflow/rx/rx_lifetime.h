/* How slices and sessions end at a receiver: complete, refused, silenced, closed or forgotten. */
#ifndef AIFLOW_RX_LIFETIME_H
#define AIFLOW_RX_LIFETIME_H

#include "aiflow/rx/borrowing.h"
#include "aiflow/rx/rx_outcome.h"
#include "aiflow/rx/rx_state.h"

/* Free a slice and all that it holds. Any thread; the arena outlives its slices. */
static inline void
af_rx_slice_free(struct af_rx_slice *s, void (*release)(void *handle))
{
	if (s->kept) {
		for (uint32_t i = 0; i < s->nb_data; i++)
			if (s->kept[i].handle)
				release(s->kept[i].handle);
		free(s->kept);
	}
	if (s->block)
		af_arena_give(s->arena, s->block);
	if (s->into)
		af_into_free(s->into);
	af_rx_give_back(s);
	free(s->manifest);
	free(s->bitmap);
	free(s->elements);
	free(s->chunk_crc);
	free(s);
}

static inline struct af_writer
af_rx_writer_of(uint64_t sender, uint32_t connection)
{
	return (struct af_writer){
		.connection = connection, .life = (uint16_t)sender, .instance = sender >> AF_LIFE_BITS};
}

/* Fence the memory of slices that their sender may still write to: it has not said that it is done. */
static inline void
af_rx_fence(struct af_rx *rx, struct af_rx_session *session)
{
	struct af_writer writer = af_rx_writer_of(session->sender, session->writer);

	for (uint32_t i = 0; i < AF_RX_SLOTS && session->writer; i++) {
		struct af_rx_slot *slot = &session->slots[i];

		if (slot->state != AF_RX_FLOWING || !slot->slice->has_place)
			continue;
		if (slot->slice->into) {
			af_arena_fence_kept(rx->arena, slot->slice->into->block, writer);
			continue;
		}
		af_arena_fence(rx->arena, slot->slice->block, writer);
		slot->slice->block = NULL;
	}
}

/* The process behind a connection writes no more: it is dead, or has unmapped our memory. Between two iterations. */
static inline void
af_rx_writer_gone(struct af_rx *rx, uint32_t connection)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (rx->sessions[i]->writer == connection)
			rx->sessions[i]->writer = 0;
	af_arena_lift(rx->arena, (struct af_writer){.connection = connection, .instance = AF_NO_INSTANCE});
}

/* Free a slot's slice, and leave the slot in this state. */
static inline void
af_rx_drop_slot(struct af_rx *rx, struct af_rx_slot *slot, uint8_t state)
{
	struct af_rx_slice *s = slot->slice;

	if (slot->state == AF_RX_FLOWING)
		rx->flowing--;
	if (slot->state == AF_RX_WAITING) {
		struct af_rx_slice **link = &rx->waiting;

		while (*link && *link != s)
			link = &(*link)->next_waiting;
		if (*link) {
			rx->filling &= link != &rx->waiting;
			*link = s->next_waiting;
			if (!*link)
				rx->waiting_tail = link;
			rx->waiter_removed = true;
		}
	}
	if (s)
		af_rx_slice_free(s, rx->release);
	slot->slice = NULL;
	slot->state = state;
}

/* A slice that will not be handed over becomes void. */
static inline void
af_rx_refuse(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, uint32_t reason, uint64_t detail)
{
	if (reason != AF_VOID_CANCELLED) /* its sender said so itself */
		af_rx_void(session, slot->id, reason, detail);
	session->urgent = true;
	af_rx_drop_slot(rx, slot, AF_RX_VOID);
}

/* Count a sender that is gone without a goodbye as closed, too. */
static inline void
af_rx_count_out(struct af_rx *rx, struct af_rx_session *session)
{
	rx->nb_closed += session->spoke && !session->closed;
	rx->nb_gone += session->spoke && !session->closed;
	session->closed = true;
}

static inline void
af_rx_forget(struct af_rx *rx, uint32_t index)
{
	struct af_rx_session *session = rx->sessions[index];

	af_rx_fence(rx, session); /* nothing, where its sender's next session replaces it */
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
		af_rx_drop_slot(rx, &session->slots[i], AF_RX_EMPTY);
	for (uint32_t i = 0; i < session->nb_paths; i++)
		if (session->paths[i].known && rx->ports[session->paths[i].port].nb_paths)
			rx->ports[session->paths[i].port].nb_paths--;
	af_rx_count_out(rx, session);
	af_rx_forget_texts(session);
	free(session);
	rx->sessions[index] = rx->sessions[--rx->nb_sessions];
	rx->changed = true;
}

/* The sender was silent for too long: free what it had begun. The session stays, to tell a sender that lives. */
static inline void
af_rx_silence(struct af_rx *rx, struct af_rx_session *session)
{
	af_rx_fence(rx, session);
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
		af_rx_drop_slot(rx, &session->slots[i], AF_RX_EMPTY);
	af_rx_void(session, session->done, AF_VOID_SILENCE, 0);
	session->silenced = true;
	rx->changed = true;
}

/* The sender said goodbye and sends no more: free what it had begun. */
static inline void
af_rx_end_session(struct af_rx *rx, struct af_rx_session *session)
{
	struct af_writer done = af_rx_writer_of(session->sender, 0);

	done.life++; /* this life is done, too */
	if (rx->arena->fenced)
		af_arena_lift(rx->arena, done);
	if (session->closed)
		return;
	rx->nb_seen += !session->spoke;
	session->spoke = session->closed = true;
	rx->nb_closed++;
	rx->changed = true;
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
		af_rx_drop_slot(rx, &session->slots[i], AF_RX_EMPTY);
}

/* This receiver goes, while its ports may stay: say so on every path, and answer no HELLO any more. */
static inline void
af_rx_part(struct af_rx *rx)
{
	rx->parting = true;
	rx->answers_head = rx->answers_tail;
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t k = 0; k < rx->sessions[i]->nb_paths; k++)
			rx->sessions[i]->paths[k].bye_due =
				rx->sessions[i]->paths[k].known || rx->sessions[i]->paths[k].asked;
}

/* Is there a goodbye that has not left yet? */
static inline bool
af_rx_owes_bye(const struct af_rx *rx)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t k = 0; k < rx->sessions[i]->nb_paths; k++)
			if (rx->sessions[i]->paths[k].bye_due && rx->ports[rx->sessions[i]->paths[k].port].p.attached)
				return true;
	return false;
}

static inline void
af_rx_free(struct af_rx *rx)
{
	while (rx->nb_sessions)
		af_rx_forget(rx, 0);
	while (rx->ready) {
		struct af_rx_slice *s = rx->ready;

		rx->ready = s->next;
		af_rx_slice_free(s, rx->release);
	}
	rx->ready_tail = &rx->ready;
}

/* Does the sender's digest match the chunks in memory? */
static inline bool
af_rx_digest_agrees(struct af_rx *rx, const struct af_rx_slice *s)
{
	uint32_t digest = 0, chunk = 0;

	if (s->inlined || s->borrowed)
		return true; /* the CRC of its only frame covers it, or there is one copy of its bytes */
	if (rx->full.nbytes != s->payload_bytes)
		af_crc_shift_of(&rx->full, s->payload_bytes, af_crc_power(s->payload_bytes));
	for (uint32_t e = 0; e < s->nb_elements;) {
		const struct af_rx_element *el = &s->elements[e];
		uint64_t rest = el->nbytes;

		if (el->packed) {
			uint32_t last = e + el->packed - 1;

			rest = 0;
			for (; e <= last; e++)
				rest += s->elements[e].nbytes;
			digest = af_crc32c_shift(digest, rest) ^ s->chunk_crc[chunk++];
			continue;
		}
		for (; rest >= s->payload_bytes; rest -= s->payload_bytes)
			digest = af_crc_apply(&rx->full, digest) ^ s->chunk_crc[chunk++];
		if (rest)
			digest = af_crc32c_shift(digest, rest) ^ s->chunk_crc[chunk++];
		e++;
	}
	return digest == s->digest;
}

/* Hand over the slices that are whole and next in their sender's order. */
static inline void
af_rx_advance(struct af_rx *rx, struct af_rx_session *session)
{
	for (;;) {
		struct af_rx_slot *slot = &session->slots[session->done % AF_RX_SLOTS];

		if (slot->id != session->done || (slot->state != AF_RX_WHOLE && slot->state != AF_RX_VOID))
			return;
		if (slot->state == AF_RX_WHOLE) {
			struct af_rx_slice *s = slot->slice;

			s->next = NULL;
			s->session = NULL;
			free(s->bitmap);
			free(s->chunk_crc);
			s->bitmap = NULL;
			s->chunk_crc = NULL;
			*rx->ready_tail = s;
			rx->ready_tail = &s->next;
			rx->slices++;
			rx->elements += s->nb_elements;
			rx->bytes += s->nbytes;
			rx->changed = true;
		}
		session->verdicts[slot->id % AF_RX_SLOTS] =
			slot->state == AF_RX_WHOLE && rx->confirms ? AF_RX_PENDING : AF_RX_CONFIRMED;
		slot->slice = NULL;
		slot->state = AF_RX_EMPTY;
		session->done++;
		af_rx_settle(session);
		if (af_before(session->asked, session->done))
			session->asked = session->done;
		if (af_before(session->granted, session->done))
			session->granted = session->done;
		session->urgent = true;
	}
}

/* The last chunk of a slice arrived. */
static inline void
af_rx_whole(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, uint64_t now)
{
	struct af_rx_slice *s = slot->slice;

	af_copy_settle();
	if (!af_rx_digest_agrees(rx, s)) {
		af_rx_refuse(rx, session, slot, AF_VOID_INTEGRITY, 0);
	} else {
		s->whole_ns = now;
		rx->flowing -= slot->state == AF_RX_FLOWING;
		slot->state = AF_RX_WHOLE;
	}
	af_rx_advance(rx, session);
}

#endif
