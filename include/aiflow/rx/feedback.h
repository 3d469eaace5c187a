/* Feedback: the receiver tells its senders its state, whenever it changed. */
#ifndef AIFLOW_FEEDBACK_H
#define AIFLOW_FEEDBACK_H

#include "aiflow/rx/credit_share.h"
#include "aiflow/rx/rx_state.h"
#include "aiflow/wire/extension.h"

#define AF_TEXTS_NS 20000000ull    /* between two rounds in which a path tells all texts */

static inline uint8_t *
af_rx_feedback_path(const struct af_rx *rx, struct af_rx_path *path, uint32_t index, uint64_t now, uint8_t *at)
{
	uint32_t words = af_rx_pktnum_words(&path->pn);
	uint64_t hold = now - path->heard_ns;
	struct af_path_feedback r = {
		.path = AF_BE16((uint16_t)index),
		.words = (uint8_t)words,
		.window = AF_BE32(af_credit_share_window(rx, path, now)),
		.next = AF_BE64(path->pn.next),
		.frames = AF_BE64(path->frames),
		.echo_ns = AF_BE64(path->echo_ns),
		.hold_ns = AF_BE32(hold < 0xffffffffu ? (uint32_t)hold : 0xffffffffu),
	};

	memcpy(at, &r, sizeof r);
	at += sizeof r;
	for (uint32_t k = 0; k < words; k++, at += 8) {
		uint64_t word = AF_BE64(af_rx_pktnum_word(&path->pn, words, k));

		memcpy(at, &word, 8);
	}
	path->news = 0;
	path->urgent = false;
	path->feedback_ns = now;
	return at;
}

/* Name the oldest slice that flows, and its first missing chunk. */
static inline void
af_rx_ask_for(const struct af_rx_session *session, struct af_feedback *r)
{
	const struct af_rx_slot *slot = &session->slots[session->done % AF_RX_SLOTS];
	uint32_t chunk = 0;

	if (slot->id != session->done || slot->state != AF_RX_FLOWING)
		return;
	for (uint32_t i = 0; i <= slot->slice->nb_chunks / 64; i++) {
		if (~slot->slice->bitmap[i]) {
			chunk = i * 64 + (uint32_t)__builtin_ctzll(~slot->slice->bitmap[i]);
			break;
		}
	}
	r->ask_slice = AF_BE32(slot->id);
	r->ask_chunk = AF_BE32(chunk);
}

/* The most frequent reason of drops that hints at a misconfiguration. */
static inline uint8_t
af_rx_main_drop(const struct af_rx *rx)
{
	static const uint8_t telling[] = {AF_DROP_LENGTH,  AF_DROP_MTU,      AF_DROP_HEADER, AF_DROP_VLAN, AF_DROP_KIND,
					  AF_DROP_VERSION, AF_DROP_SEGMENTS, AF_DROP_CRC,    AF_DROP_SIZE};
	uint8_t most = AF_OK;

	for (size_t i = 0; i < sizeof telling; i++)
		if (rx->drops[telling[i]] > (most ? rx->drops[most] : 0))
			most = telling[i];
	return most;
}

/* Append the next piece of a text that its sender may not know. */
static inline uint8_t *
af_rx_feedback_text(struct af_rx_session *session, struct af_feedback *r, uint8_t *at, size_t room)
{
	if (!room || !session->text_due)
		return at;
	for (uint32_t i = 0; i <= AF_RX_SLOTS; i++) {
		struct af_rx_text *text = &session->texts[session->text_slot];
		uint32_t left = text->nbytes > session->text_at ? text->nbytes - session->text_at : 0;

		if (!left || !af_before(session->newest, text->slice + AF_SLICES_IN_FLIGHT)) {
			session->text_slot = (session->text_slot + 1) % AF_RX_SLOTS;
			session->text_at = 0;
			continue;
		}
		left = left < room ? left : (uint32_t)room;
		r->text_slice = AF_BE32(text->slice);
		r->text_total = AF_BE16((uint16_t)text->nbytes);
		r->text_at = AF_BE16((uint16_t)session->text_at);
		r->text_bytes = AF_BE16((uint16_t)left);
		memcpy(at, text->bytes + session->text_at, left);
		session->text_at += left;
		session->text_due -= left < session->text_due ? left : session->text_due;
		return at + left;
	}
	session->text_due = 0; /* every text is told */
	return at;
}

/* Append where the granted slices lie that are not complete yet. Only a sender that has mapped our memory can use it.
 */
static inline uint8_t *
af_rx_feedback_places(const struct af_rx_session *session, uint8_t *at, size_t room)
{
	uint8_t *entry = at + AF_EXTENSION_HEADER;
	uint16_t head[2];

	for (uint32_t id = session->done; id != session->granted && session->writer; id++) {
		const struct af_rx_slot *slot = &session->slots[id % AF_RX_SLOTS];
		struct af_place place = {.slice = AF_BE32(id)};

		if (slot->id != id || slot->state != AF_RX_FLOWING || !slot->slice->has_place ||
		    (size_t)(entry - at) + sizeof place > room)
			continue;
		place.offset = AF_BE64(slot->slice->place);
		memcpy(entry, &place, sizeof place);
		entry += sizeof place;
	}
	if (entry == at + AF_EXTENSION_HEADER)
		return at;
	head[0] = AF_BE16(AF_EXTENSION_PLACES);
	head[1] = AF_BE16((uint16_t)(entry - at - AF_EXTENSION_HEADER));
	memcpy(at, head, sizeof head);
	return entry;
}

/* Write the state of one session, with the path that triggered it and every path with news. After a probe it has all
 * paths: feedback on one path may always be lost, when only its way back is dead. */
static inline uint32_t
af_rx_feedback(struct af_rx *rx, struct af_rx_session *session, uint32_t first, bool probed, uint64_t now,
	       uint8_t *frame)
{
	struct af_rx_path *path = &session->paths[first];
	struct af_frame f = {.kind = session->granted_now ? AF_GRANT : AF_FEEDBACK,
			     .end = 1,
			     .path = (uint16_t)first,
			     .session = session->peer,
			     .number = ++session->number,
			     .timestamp_ns = now + rx->clock_offset_ns};
	uint32_t frame_size = rx->ports[path->port].p.frame_size;
	size_t limit = frame_size < AF_FEEDBACK_BYTES ? frame_size : AF_FEEDBACK_BYTES;
	struct af_feedback r = {.format = AF_FEEDBACK_FORMAT,
				.granted = AF_BE32(session->granted),
				.done = AF_BE32(session->done),
				.confirmed = AF_BE32(session->confirmed)};
	uint8_t *at = frame + AF_HEADER + sizeof r, *text;

	r.free_bytes = AF_BE64(rx->arena->limit > rx->arena->used ? rx->arena->limit - rx->arena->used : 0);
	memcpy(r.voids, session->voids, sizeof r.voids);
	r.drop = af_rx_main_drop(rx);
	r.drops = AF_BE32(rx->drops[r.drop] < 0xffffffffu && r.drop ? (uint32_t)rx->drops[r.drop] : 0);
	if (probed) {
		af_rx_ask_for(session, &r);
		if (now - path->text_ns >= AF_TEXTS_NS) { /* earlier pieces may have been lost, with another path */
			path->text_ns = now;
			session->text_at = 0;
			session->text_due = 0;
			for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
				session->text_due += session->texts[i].nbytes;
		}
	}
	at = af_rx_feedback_path(rx, path, first, now, at);
	r.nb_paths = 1;
	for (uint32_t i = 0; i < session->nb_paths; i++) {
		struct af_rx_path *other = &session->paths[i];

		if (i == first || !other->known || !(other->news || probed) ||
		    (size_t)(at - frame) + sizeof(struct af_path_feedback) + af_rx_pktnum_words(&other->pn) * 8 > limit)
			continue;
		at = af_rx_feedback_path(rx, other, i, now, at);
		r.nb_paths++;
	}
	text = af_rx_feedback_text(session, &r, at,
				   session->granted_now && session->writer ? 0 : limit - (size_t)(at - frame));
	at = af_rx_feedback_places(session, text, limit - (size_t)(text - frame));
	memcpy(frame + AF_HEADER, &r, sizeof r);
	f.nbytes = (uint32_t)(at - frame - AF_HEADER);
	session->urgent = session->text_due > 0;
	session->granted_now = false;
	return af_wire_seal(frame, path->mac, rx->ports[path->port].p.mac, &f);
}

#endif
