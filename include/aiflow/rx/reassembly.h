/* Putting payloads in their places. This is what runs for every frame. */
#ifndef AIFLOW_PLACE_H
#define AIFLOW_PLACE_H

#include "aiflow/rx/admission.h"
#include "aiflow/rx/rx_state.h"
#include "aiflow/rx/credit_share.h"

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

/* Where a data frame belongs. */
struct af_rx_target {
	enum af_drop drop; /* or why nowhere */
	struct af_rx_slot *slot;
	struct af_rx_element *el; /* the first of `count` */
	uint32_t chunk, count;
	bool present; /* the chunk was received before */
};

/* The elements of a pack that do not lie end to end: runs begin at cache lines. */
static inline void
af_rx_spread(struct af_rx_slice *s, const struct af_rx_target *target, const uint8_t *from)
{
	for (uint32_t i = 0; i < target->count; i++) {
		memcpy(s->arena->base + s->block->offset + target->el[i].offset, from, target->el[i].nbytes);
		from += target->el[i].nbytes;
	}
}

/* Is this chunk of data one that the manifest announced, with just that size? Where then does it go? Changes nothing,
 * and relies on nothing that the frame says: it is not checked yet. f->to becomes the chunk's memory when that lies in
 * one piece and was not written. */
static inline enum af_drop
af_rx_find(const struct af_rx *rx, struct af_rx_session *session, struct af_frame *f, struct af_rx_target *target)
{
	struct af_rx_slot *slot = &session->slots[f->slice % AF_RX_SLOTS];
	struct af_rx_slice *s = slot->slice;
	struct af_rx_element *el, *last;
	uint64_t expected, offset = 0;

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
	el = last = &s->elements[f->element];
	target->count = 1;
	if (f->kind == AF_PACKED) {
		target->count = f->seq;
		if (f->seq < 2 || f->seq > AF_PACK_MOST || el->packed != f->seq)
			return AF_DROP_SEQ;
		if (!f->end)
			return AF_DROP_END;
		expected = af_rx_pack_bytes(s, f->element, f->seq);
		last = el + f->seq - 1;
		target->chunk = el->first_chunk;
	} else if (el->packed) {
		if (el->packed != 1 || f->seq != 0)
			return AF_DROP_SEQ;
		if (!f->end)
			return AF_DROP_END;
		expected = el->nbytes;
		target->chunk = el->first_chunk;
	} else {
		offset = (uint64_t)f->seq * s->payload_bytes;
		if (offset >= el->nbytes)
			return AF_DROP_SEQ;
		expected = el->nbytes - offset;
		if (f->end != (expected <= s->payload_bytes))
			return AF_DROP_END;
		if (expected > s->payload_bytes)
			expected = s->payload_bytes;
		target->chunk = el->first_chunk + f->seq;
	}
	if (f->nbytes != expected)
		return AF_DROP_SIZE;
	target->slot = slot;
	target->el = el;
	target->present = af_rx_has_chunk(s, s->nb_manifest + target->chunk);
	if (!target->present && !rx->keeps_mbufs &&
	    (last == el || last->offset + last->nbytes - el->offset == expected)) {
		f->to = s->arena->base + s->block->offset + el->offset + offset;
		f->how = s->nbytes >= AF_STREAM_SLICE && f->nbytes >= AF_STREAM_FRAME ? AF_COPY_STREAM : AF_COPY_STORE;
	}
	return AF_OK;
}

/* One chunk of data, checked and, where it lies in one piece, copied. */
static inline enum af_drop
af_rx_on_data(struct af_rx *rx, struct af_rx_session *session, const struct af_frame *f,
	      const struct af_rx_target *target, uint64_t now, void *handle, bool *kept)
{
	struct af_rx_element *el = target->el;
	struct af_rx_slice *s;
	uint32_t chunk = target->chunk, crc;
	uint64_t latency;

	if (target->drop != AF_OK)
		return target->drop;
	s = target->slot->slice;
	crc = af_payload_crc(f, &rx->full);
	if (target->present)
		return crc == s->chunk_crc[chunk] ? AF_DROP_DUPLICATE : AF_DROP_CONFLICT;
	if (rx->keeps_mbufs) {
		s->kept[chunk] = (struct af_kept){.handle = handle, .payload = f->payload, .nbytes = f->nbytes};
		*kept = true;
	} else if (!f->to) {
		af_rx_spread(s, target, f->payload);
	}
	latency = af_rx_latency(rx, f, now);
	for (uint32_t i = 0; i < target->count; i++)
		if (el[i].latency_ns < latency)
			el[i].latency_ns = latency;
	s->chunk_crc[chunk] = crc;
	s->bitmap[(s->nb_manifest + chunk) / 64] |= 1ull << ((s->nb_manifest + chunk) % 64);
	s->received_bytes += f->nbytes;
	s->frames++;
	atomic_store_explicit(&rx->progress_bytes, s->received_bytes, memory_order_relaxed);
	if (--s->nb_missing == 0)
		af_rx_whole(rx, session, target->slot, now);
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
af_rx_on_session(struct af_rx *rx, struct af_rx_session *session, uint32_t p, const struct af_frame *f,
		 const struct af_rx_target *target, uint64_t now, void *handle, bool *kept)
{
	struct af_rx_path *path = &session->paths[f->path % AF_MAX_PORTS];
	enum af_drop drop;
	uint64_t missing;
	bool was_idle;

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
		if (session->confirmed != session->done)
			session->heard_ns = now; /* until its user has said so of all that were handed over */
		af_rx_learn_path(rx, session, path, p, f);
		path->urgent = true;
		return AF_DROP_SESSION;
	}
	if (session->closed)
		return AF_DROP_SESSION; /* overtaken by its goodbye */
	if (f->number > path->pn.next + AF_PKTNUM_JUMP)
		return AF_DROP_NUMBER;
	if (af_rx_pktnum_seen(&path->pn, f->number)) {
		path->news++; /* a report must have been lost: it is due again */
		return AF_DROP_REPLAY;
	}
	switch (f->kind) {
	case AF_DATA:
	case AF_PACKED:
		drop = af_rx_on_data(rx, session, f, target, now, handle, kept);
		break;
	case AF_MANIFEST:
		drop = af_rx_on_manifest(rx, session, f, now);
		break;
	case AF_CLOSE:
		drop = af_rx_on_close(rx, session, f, now);
		break;
	case AF_VOID:
		drop = af_rx_on_void(rx, session, f, now);
		break;
	case AF_PROBE:
		drop = AF_OK;
		path->urgent = true;
		break;
	default:
		return AF_DROP_KIND;
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
	missing = f->number > path->pn.next ? f->number - path->pn.next : 0;
	rx->ports[p].sent += f->number >= path->pn.next ? missing + 1 : 0;
	if (af_rx_pktnum_take(&path->pn, f->number) && now - path->feedback_ns > AF_FEEDBACK_HOLE_NS)
		path->urgent = true;
	path->news++;
	path->frames++;
	path->bytes += f->frame_bytes;
	path->echo_ns = f->timestamp_ns;
	was_idle = now - path->heard_ns >= AF_PATH_IDLE_NS;
	path->heard_ns = now;
	af_credit_share_heard(rx, p, path, f, was_idle, missing, now);
	return drop;
}

#endif
