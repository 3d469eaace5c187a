/* What a sender does with the receiver's feedback. */
#ifndef AIFLOW_TX_FEEDBACK_H
#define AIFLOW_TX_FEEDBACK_H

#include "aiflow/wire/extension.h"
#include "aiflow/tx/recovery.h"
#include "aiflow/tx/tx_slice.h"
#include "aiflow/tx/tx_state.h"

static inline int
af_tx_error_of(uint32_t reason)
{
	switch (reason) {
	case AF_VOID_TOO_LARGE:
		return AF_TX_TOO_LARGE;
	case AF_VOID_NO_PAGES:
		return AF_TX_NO_PAGES;
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

/* A piece of the receiver's text on a slice. The receiver repeats them, so a piece that leaves a gap is ignored. */
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
	memcpy(s->text + at, piece, nbytes); /* the length of pieces may change; their bytes do not */
	s->text_got = at + nbytes;
}

/* End the slices up to `confirmed`, in order, but none whose text is still incomplete. */
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
			continue; /* it is held, and not yet confirmed */
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

/* Could a receiver that is right say this? It knows of no slice that was not sent. */
static inline bool
af_tx_is_sound(const struct af_tx *tx, const struct af_feedback *r)
{
	uint32_t done = AF_BE32(r->done);

	return !af_before(tx->next_id, done) && !af_before(tx->next_id, AF_BE32(r->granted)) &&
	       !af_before(done, AF_BE32(r->confirmed));
}

/* Read feedback, and bound all that it claims: `paths` become its path records, `text` what follows them. */
static inline enum af_drop
af_tx_read_feedback(const struct af_frame *f, struct af_feedback *r, const uint8_t **paths, const uint8_t **text)
{
	const uint8_t *at = f->payload + sizeof *r, *end = f->payload + f->nbytes;

	if (f->nbytes && f->payload[0] != AF_FEEDBACK_FORMAT)
		return AF_DROP_VERSION;
	if (f->nbytes < sizeof *r)
		return AF_DROP_FEEDBACK;
	memcpy(r, f->payload, sizeof *r);
	*paths = at;
	for (uint32_t i = 0; i < r->nb_paths; i++) {
		struct af_path_feedback path;

		if (end - at < (ptrdiff_t)sizeof path)
			return AF_DROP_FEEDBACK;
		memcpy(&path, at, sizeof path);
		at += sizeof path;
		if (path.words > AF_RX_BITS / 64 || end - at < path.words * 8)
			return AF_DROP_FEEDBACK;
		at += path.words * 8;
	}
	*text = at;
	if (end - at < AF_BE16(r->text_bytes))
		return AF_DROP_FEEDBACK;
	return af_extensions_drop(at + AF_BE16(r->text_bytes), end, AF_DROP_FEEDBACK);
}

/* Where granted slices lie, if the receiver shares its memory. `extensions` are checked already. */
static inline void
af_tx_apply_places(struct af_tx *tx, const uint8_t *extensions, const uint8_t *end)
{
	struct af_extension_cursor c = {.at = extensions, .end = end};

	while (af_extension_next(&c)) {
		for (uint32_t i = 0; c.kind == AF_EXTENSION_PLACES && i < c.nbytes / sizeof(struct af_place); i++) {
			struct af_place place;
			struct af_tx_slot *slot;

			memcpy(&place, c.bytes + i * sizeof place, sizeof place);
			slot = af_tx_slot(tx, AF_BE32(place.slice));
			if (slot && slot->slice &&
			    atomic_load_explicit(&slot->slice->state, memory_order_relaxed) == AF_TX_FLOWING)
				af_tx_take_place(tx, slot->slice, AF_BE64(place.offset));
		}
	}
}

/* Each path record: acknowledgements, losses, window. Each is judged by its own numbers, so feedback that was overtaken
 * counts, too. */
static inline void
af_tx_apply_paths(struct af_tx *tx, const struct af_feedback *r, const uint8_t *at, uint64_t now)
{
	for (uint32_t i = 0; i < r->nb_paths; i++) {
		struct af_path_feedback path;
		uint32_t p;

		memcpy(&path, at, sizeof path);
		at += sizeof path;
		p = AF_BE16(path.path);
		if (p < tx->nb_ports && tx->ports[p].open)
			af_tx_on_path(tx, &tx->ports[p], &path, at, now);
		at += path.words * 8;
	}
}

static inline void
af_tx_apply_grants(struct af_tx *tx, const struct af_feedback *r, uint64_t now)
{
	uint32_t granted = AF_BE32(r->granted);

	for (uint32_t id = tx->first_id; af_before(id, granted) && id != tx->next_id; id++) {
		struct af_tx_slot *slot = af_tx_slot(tx, id);
		struct af_tx_slice *s = slot ? slot->slice : NULL;

		if (s && atomic_load_explicit(&s->state, memory_order_relaxed) == AF_TX_ASKING) {
			s->granted_ns = af_tx_is_told(s) ? 0 : now;
			tx->moved_ns = now;
			atomic_store_explicit(&s->state, AF_TX_FLOWING, memory_order_relaxed);
		}
	}
}

/* The receiver took us for dead and freed the slices from `done` on. They go into another session, as soon as the older
 * ones have their verdicts. True when this session ended. */
static inline bool
af_tx_apply_silence(struct af_tx *tx, const struct af_feedback *r, uint64_t now)
{
	const struct af_void *silence = &r->voids[AF_SLICES_IN_FLIGHT];
	uint32_t done = AF_BE32(r->done);

	if (AF_BE32(silence->reason) != AF_VOID_SILENCE || AF_BE32(silence->slice) != done)
		return false;
	tx->moved_ns = now; /* that its frames are dropped is no stall */
	if (af_before(tx->first_id, done))
		return false;
	af_tx_lose_session(tx, AF_TX_OK, now);
	return true;
}

/* Every chunk is acknowledged, and yet the receiver lacks one: believe the receiver. */
static inline void
af_tx_apply_ask(struct af_tx *tx, const struct af_feedback *r)
{
	uint32_t ask = AF_BE32(r->ask_slice), chunk = AF_BE32(r->ask_chunk);
	struct af_tx_slot *slot;
	struct af_tx_slice *s;

	if (!ask || tx->retransmit_head != tx->retransmit_tail)
		return;
	slot = af_tx_slot(tx, ask);
	s = slot ? slot->slice : NULL;
	if (s && chunk < s->next_chunk && s->nb_acked == s->nb_chunks && af_tx_is_acked(s, chunk)) {
		s->acked[chunk / 64] &= ~(1ull << (chunk % 64));
		s->nb_acked--;
		af_tx_retransmit(tx, ask, chunk);
	}
}

static inline enum af_drop
af_tx_on_feedback(struct af_tx *tx, const struct af_frame *f, uint64_t now)
{
	struct af_feedback r;
	const uint8_t *paths, *text;
	enum af_drop drop = af_tx_read_feedback(f, &r, &paths, &text);

	if (drop != AF_OK)
		return drop;
	if (!af_tx_is_sound(tx, &r))
		return AF_DROP_FEEDBACK;
	af_tx_apply_paths(tx, &r, paths, now);
	af_tx_take_text(tx, &r, text);
	if (f->number < tx->feedback_number)
		return AF_OK; /* newer feedback has replaced the rest */
	tx->feedback_number = f->number;
	tx->feedbacks++;
	tx->drop = r.drop < AF_NB_DROPS ? r.drop : AF_OK;
	tx->nb_dropped = AF_BE32(r.drops);
	tx->peer_free_bytes = AF_BE64(r.free_bytes);
	af_tx_apply_grants(tx, &r, now);
	af_tx_apply_places(tx, text + AF_BE16(r.text_bytes), f->payload + f->nbytes);
	af_tx_retire(tx, &r, now);
	if (!af_tx_apply_silence(tx, &r, now))
		af_tx_apply_ask(tx, &r);
	return AF_OK;
}

#endif
