/* Putting payloads in their places. This is what runs for every frame. */
#ifndef AIFLOW_PLACE_H
#define AIFLOW_PLACE_H

#include "grant.h"
#include "rx_state.h"
#include "share.h"

static inline bool
af_rx_has_chunk(const struct af_rx_slice *s, uint32_t chunk)
{
	return s->bitmap[chunk / 64] >> (chunk % 64) & 1;
}

/* Bytes of the `count` elements from e on, which one PACKED frame carries. */
static inline uint64_t
af_rx_pack_bytes(const struct af_rx_slice *s, uint32_t e, uint32_t count)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += s->elements[e + i].nbytes;
	return sum;
}

static inline void
af_rx_copy(struct af_rx_slice *s, uint32_t e, uint32_t count, uint64_t offset, const struct af_frame *f)
{
	uint8_t *base = s->store->base + s->block->offset;
	const struct af_rx_element *first = &s->elements[e], *last = &s->elements[e + count - 1];
	const uint8_t *from = f->payload;

	if (count == 1 || last->offset + last->nbytes - first->offset == f->nbytes) {
		memcpy(base + first->offset + offset, from, f->nbytes);
		return;
	}
	for (; first <= last; first++) {
		memcpy(base + first->offset, from, first->nbytes);
		from += first->nbytes;
	}
}

/* One chunk of data: is it one that the manifest announced, with just that size? Then it goes where it belongs. */
static inline enum af_drop
af_rx_on_data(struct af_rx *rx, struct af_rx_session *session, const struct af_frame *f, uint64_t now, void *handle,
	      bool *kept)
{
	struct af_rx_slot *slot = &session->slots[f->slice % AF_RX_SLOTS];
	struct af_rx_slice *s = slot->slice;
	struct af_rx_element *el;
	uint32_t chunk, count = 1, crc;
	uint64_t expected, offset = 0, latency;

	if (af_before(f->slice, session->done))
		return AF_DROP_DUPLICATE;
	if (slot->id != f->slice || slot->state == AF_RX_EMPTY)
		return AF_DROP_NOT_GRANTED;
	if (slot->state == AF_RX_WHOLE || slot->state == AF_RX_VOID)
		return AF_DROP_DUPLICATE;
	if (slot->state != AF_RX_FLOWING)
		return AF_DROP_NOT_GRANTED;
	if (f->element >= s->nb_elements)
		return AF_DROP_ELEMENT;
	el = &s->elements[f->element];
	if (f->kind == AF_PACKED) {
		count = f->seq;
		if (count < 2 || count > AF_PACK_MOST || el->packed != count)
			return AF_DROP_SEQ;
		if (!f->end)
			return AF_DROP_END;
		expected = af_rx_pack_bytes(s, f->element, count);
		chunk = el->first_chunk;
	} else if (el->packed) {
		if (el->packed != 1 || f->seq != 0)
			return AF_DROP_SEQ;
		if (!f->end)
			return AF_DROP_END;
		expected = el->nbytes;
		chunk = el->first_chunk;
	} else {
		offset = (uint64_t)f->seq * s->payload_bytes;
		if (offset >= el->nbytes)
			return AF_DROP_SEQ;
		expected = el->nbytes - offset;
		if (f->end != (expected <= s->payload_bytes))
			return AF_DROP_END;
		if (expected > s->payload_bytes)
			expected = s->payload_bytes;
		chunk = el->first_chunk + f->seq;
	}
	if (f->nbytes != expected)
		return AF_DROP_SIZE;
	crc = af_payload_crc(f, &rx->full);
	if (af_rx_has_chunk(s, s->nb_manifest + chunk))
		return crc == s->chunk_crc[chunk] ? AF_DROP_DUPLICATE : AF_DROP_CONFLICT;
	if (rx->keeps_mbufs) {
		s->kept[chunk] = (struct af_kept){.handle = handle, .payload = f->payload, .nbytes = f->nbytes};
		*kept = true;
	} else if (f->nbytes) {
		af_rx_copy(s, f->element, count, offset, f);
	}
	latency = af_rx_latency(rx, f, now);
	for (uint32_t i = 0; i < count; i++)
		if (el[i].latency_ns < latency)
			el[i].latency_ns = latency;
	s->chunk_crc[chunk] = crc;
	s->bitmap[(s->nb_manifest + chunk) / 64] |= 1ull << ((s->nb_manifest + chunk) % 64);
	s->got_bytes += f->nbytes;
	s->frames++;
	atomic_store_explicit(&rx->progress_bytes, s->got_bytes, memory_order_relaxed);
	if (--s->nb_missing == 0)
		af_rx_whole(rx, session, slot, now);
	return AF_OK;
}

static inline enum af_drop
af_rx_on_close(struct af_rx *rx, struct af_rx_session *session, const struct af_frame *f, uint64_t now)
{
	struct af_rx_slot *slot = &session->slots[f->slice % AF_RX_SLOTS];
	struct af_rx_slice *s = slot->slice;
	uint32_t digest;

	if (af_before(f->slice, session->done))
		return AF_DROP_DUPLICATE;
	if (slot->id != f->slice || slot->state == AF_RX_EMPTY)
		return AF_DROP_NOT_GRANTED;
	if (slot->state == AF_RX_WHOLE || slot->state == AF_RX_VOID)
		return AF_DROP_DUPLICATE;
	if (slot->state != AF_RX_FLOWING)
		return AF_DROP_NOT_GRANTED;
	if (f->nbytes != sizeof digest)
		return AF_DROP_SIZE;
	if (s->closed)
		return AF_DROP_DUPLICATE;
	memcpy(&digest, f->payload, sizeof digest);
	s->digest = AF_BE32(digest);
	s->closed = true;
	s->bitmap[(s->nb_chunks - 1) / 64] |= 1ull << ((s->nb_chunks - 1) % 64);
	if (--s->nb_missing == 0)
		af_rx_whole(rx, session, slot, now);
	return AF_OK;
}

/* The sender has given a slice up: nothing of it will be shown. */
static inline enum af_drop
af_rx_on_void(struct af_rx *rx, struct af_rx_session *session, const struct af_frame *f, uint64_t now)
{
	struct af_rx_slot *slot = af_rx_open_slot(session, f->slice);

	if (!slot)
		return af_before(f->slice, session->done) ? AF_DROP_DUPLICATE : AF_DROP_NOT_GRANTED;
	if (slot->state == AF_RX_WHOLE || slot->state == AF_RX_VOID)
		return AF_DROP_DUPLICATE;
	af_rx_refuse(rx, session, slot, AF_VOID_CANCELLED, 0);
	af_rx_ask(rx, session, now);
	return AF_OK;
}

/* Where answers to this path go: learnt from its newest frame. */
static inline void
af_rx_learn_path(struct af_rx *rx, struct af_rx_session *session, struct af_rx_path *path, uint32_t p,
		 const struct af_frame *f)
{
	if (path->known && path->port == p && !memcmp(path->mac, f->src, 6))
		return;
	if (path->known && rx->ports[path->port].nb_paths)
		rx->ports[path->port].nb_paths--;
	path->known = true;
	if (session->nb_paths <= f->path)
		session->nb_paths = f->path + 1u;
	path->port = (uint8_t)p;
	memcpy(path->mac, f->src, 6);
	rx->ports[p].nb_paths++;
	session->ports |= 1u << p;
}

static inline enum af_drop
af_rx_on_session(struct af_rx *rx, struct af_rx_session *session, uint32_t p, const struct af_frame *f, uint64_t now,
		 void *handle, bool *kept)
{
	struct af_rx_path *path = &session->paths[f->path % AF_MAX_PORTS];
	enum af_drop drop;
	uint64_t missing;
	bool again;

	if (!af_rx_knows(session, f->src))
		return AF_DROP_SRC_MAC;
	if (f->path >= AF_MAX_PORTS)
		return AF_DROP_PATH;
	session->last_port = p;
	if (f->kind == AF_BYE) {
		session->heard_ns = now;
		af_rx_learn_path(rx, session, path, p, f);
		path->bye_due = true; /* answered where it came from: other paths may be dead */
		af_rx_end_session(rx, session);
		return AF_OK;
	}
	if (session->silenced) { /* it lives, and must be told what has become of its slices */
		af_rx_learn_path(rx, session, path, p, f);
		path->urgent = true;
		return AF_DROP_SESSION;
	}
	if (session->closed)
		return AF_DROP_SESSION; /* overtaken by its goodbye */
	if (f->number > path->w.next + AF_NUMBER_JUMP)
		return AF_DROP_NUMBER;
	if (af_rx_seen(&path->w, f->number)) {
		path->news++; /* a report must have been lost: it is due again */
		return AF_DROP_REPLAY;
	}
	switch (f->kind) {
	case AF_DATA:
	case AF_PACKED: drop = af_rx_on_data(rx, session, f, now, handle, kept); break;
	case AF_MANIFEST: drop = af_rx_on_manifest(rx, session, f, now); break;
	case AF_CLOSE: drop = af_rx_on_close(rx, session, f, now); break;
	case AF_VOID: drop = af_rx_on_void(rx, session, f, now); break;
	case AF_PROBE: drop = AF_OK; path->urgent = true; break;
	default: return AF_DROP_KIND;
	}
	if (drop != AF_OK && drop != AF_DROP_DUPLICATE && drop != AF_DROP_CONFLICT)
		return drop; /* not acknowledged: it may come again */
	session->heard_ns = now;
	if (!session->spoke) {
		session->spoke = true;
		rx->nb_seen++;
	}
	af_rx_learn_path(rx, session, path, p, f);
	rx->ports[p].arrived++;
	missing = f->number > path->w.next ? f->number - path->w.next : 0;
	rx->ports[p].sent += f->number >= path->w.next ? missing + 1 : 0;
	if (af_rx_take(&path->w, f->number) && now - path->reported_ns > AF_REPORT_HOLE_NS)
		path->urgent = true;
	path->news++;
	path->frames++;
	path->bytes += f->frame_bytes;
	path->echo_ns = f->timestamp_ns;
	again = now - path->heard_ns >= AF_CREDIT_IDLE_NS;
	path->heard_ns = now;
	af_share_heard(rx, p, path, f, again, missing, now);
	return drop;
}

#endif
