/* Reassembly: payloads are written to their places. This runs for every frame. */
#ifndef AIFLOW_REASSEMBLY_H
#define AIFLOW_REASSEMBLY_H

#include "aiflow/rx/admission.h"
#include "aiflow/rx/rx_lifetime.h"
#include "aiflow/rx/rx_state.h"

static inline bool
af_rx_has_chunk(const struct af_rx_slice *s, uint32_t chunk)
{
	return s->bitmap[chunk / 64] >> (chunk % 64) & 1;
}

/* Bytes of `count` elements from e on, which one PACKED frame carries. */
static inline uint64_t
af_rx_pack_bytes(const struct af_rx_slice *s, uint32_t e, uint32_t count)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += s->elements[e + i].nbytes;
	return sum;
}

static inline bool
af_rx_is_data(uint8_t kind)
{
	return kind == AF_DATA || kind == AF_PACKED || kind == AF_PLACED || kind == AF_PLACED_PACK;
}

/* Has the sender written the chunk to its place? Then the frame carries its CRC32C alone. */
static inline bool
af_rx_is_placed(uint8_t kind)
{
	return kind == AF_PLACED || kind == AF_PLACED_PACK;
}

/* Do the elements of a pack follow each other in memory? In arrays of the user they may lie in any order. */
static inline bool
af_rx_is_together(const struct af_rx_slice *s, const struct af_rx_element *el, uint32_t count, uint64_t nbytes)
{
	const struct af_rx_element *last = el + count - 1;

	for (uint32_t i = 1; s->into && i < count; i++)
		if (el[i].offset != el[i - 1].offset + el[i - 1].nbytes)
			return false;
	return last->offset + last->nbytes - el->offset == nbytes;
}

/* The place of a data frame's payload. */
struct af_rx_target {
	enum af_drop drop; /* AF_OK, or why it has no place; then the rest is not set */
	struct af_rx_slot *slot;
	struct af_rx_element *el; /* the first of `count` */
	uint8_t *to; /* of the whole chunk; NULL: its elements are not contiguous in memory */
	uint32_t chunk, count;
	uint32_t nbytes; /* of the chunk */
	bool present; /* the chunk arrived before */
};

/* Copy the elements of a pack that are not contiguous in memory, because runs begin at cache lines. */
static inline void
af_rx_spread(struct af_rx_slice *s, const struct af_rx_target *target, const uint8_t *from)
{
	for (uint32_t i = 0; i < target->count; i++) {
		memcpy(af_rx_element_at(s, &target->el[i]), from, target->el[i].nbytes);
		from += target->el[i].nbytes;
	}
}

/* The CRC32C of a chunk as it is in memory. */
static inline uint32_t
af_rx_crc_in_place(const struct af_rx_slice *s, const struct af_rx_target *target)
{
	uint32_t crc = 0;

	if (target->to)
		return af_crc32c(0, target->to, target->nbytes);
	for (uint32_t i = 0; i < target->count; i++)
		crc = af_crc32c(crc, af_rx_element_at(s, &target->el[i]), target->el[i].nbytes);
	return crc;
}

/* May frames of a slice fill it? AF_OK, or why not. */
static inline enum af_drop
af_rx_is_flowing(const struct af_rx_session *session, const struct af_rx_slot *slot, uint32_t slice)
{
	if (af_before(slice, session->done))
		return AF_DROP_DUPLICATE;
	if (slot->id != slice || slot->state == AF_RX_EMPTY)
		return AF_DROP_NOT_GRANTED;
	if (slot->state == AF_RX_WHOLE || slot->state == AF_RX_VOID)
		return AF_DROP_DUPLICATE;
	return slot->state == AF_RX_FLOWING ? AF_OK : AF_DROP_NOT_GRANTED;
}

/* Find the place of a data frame. The manifest must have announced this chunk with this size. Changes no state and
 * trusts nothing, because the frame's CRC is not checked yet. f->to becomes the chunk's memory, if that is contiguous
 * and the chunk is missing. */
static inline enum af_drop
af_rx_find(const struct af_rx *rx, struct af_rx_session *session, struct af_frame *f, struct af_rx_target *target)
{
	struct af_rx_slot *slot = &session->slots[f->slice % AF_RX_SLOTS];
	struct af_rx_slice *s = slot->slice;
	struct af_rx_element *el;
	uint64_t expected, offset = 0;
	bool placed = af_rx_is_placed(f->kind);
	enum af_drop drop = af_rx_is_flowing(session, slot, f->slice);

	if (drop != AF_OK)
		return drop;
	if (f->element >= s->nb_elements)
		return AF_DROP_ELEMENT;
	el = &s->elements[f->element];
	target->count = 1;
	if (f->kind == AF_PACKED || f->kind == AF_PLACED_PACK) {
		target->count = f->seq;
		if (f->seq < 2 || f->seq > AF_PACK_MOST || el->packed != f->seq)
			return AF_DROP_SEQ;
		if (!f->end)
			return AF_DROP_END;
		expected = af_rx_pack_bytes(s, f->element, f->seq);
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
		expected = expected > s->payload_bytes ? s->payload_bytes : expected;
		target->chunk = el->first_chunk + f->seq;
	}
	if (placed && !s->has_place)
		return AF_DROP_PLACE;
	if (f->nbytes != (placed ? sizeof(uint32_t) : expected))
		return AF_DROP_SIZE;
	target->slot = slot;
	target->el = el;
	target->nbytes = (uint32_t)expected;
	target->present = af_rx_has_chunk(s, s->nb_manifest + target->chunk);
	target->to = NULL;
	if (!rx->keeps_mbufs && (target->count == 1 || af_rx_is_together(s, el, target->count, expected)))
		target->to = af_rx_element_at(s, el) + offset;
	/* Its sender may have written the chunk there already, while a damaged frame claims to carry it. */
	if (!target->present && !s->has_place) {
		f->to = target->to;
		f->how = s->nbytes >= AF_STREAM_SLICE && f->nbytes >= AF_STREAM_FRAME ? AF_COPY_STREAM : AF_COPY_STORE;
	}
	return AF_OK;
}

/* A data chunk, checked, and copied already if its memory is contiguous. */
static inline enum af_drop
af_rx_on_data(struct af_rx *rx, struct af_rx_session *session, struct af_rx_in *in, const struct af_rx_target *target)
{
	const struct af_frame *f = in->frame;
	struct af_rx_element *el = target->el;
	struct af_rx_slice *s;
	bool placed = af_rx_is_placed(f->kind);
	uint32_t chunk = target->chunk, crc;
	uint64_t latency;

	if (target->drop != AF_OK)
		return target->drop;
	s = target->slot->slice;
	if (placed) {
		memcpy(&crc, f->payload, sizeof crc);
		crc = AF_BE32(crc);
	} else {
		crc = af_payload_crc(f, &rx->full);
	}
	if (target->present)
		return crc == s->chunk_crc[chunk] ? AF_DROP_DUPLICATE : AF_DROP_CONFLICT;
	if (placed) {
		if (rx->checks_places && af_rx_crc_in_place(s, target) != crc)
			return AF_DROP_CRC;
		rx->placed_bytes += target->nbytes;
		rx->ports[in->port].count.rx_bytes += target->nbytes; /* as if the frame had carried it */
	} else if (rx->keeps_mbufs) {
		s->kept[chunk] = (struct af_kept){.handle = in->handle, .payload = f->payload, .nbytes = f->nbytes};
		in->kept = true;
	} else if (!f->to && target->to) {
		memcpy(target->to, f->payload, target->nbytes);
	} else if (!f->to) {
		af_rx_spread(s, target, f->payload);
	}
	latency = af_rx_latency(rx, f, in->now);
	for (uint32_t i = 0; i < target->count; i++)
		if (el[i].latency_ns < latency)
			el[i].latency_ns = latency;
	s->chunk_crc[chunk] = crc;
	s->bitmap[(s->nb_manifest + chunk) / 64] |= 1ull << ((s->nb_manifest + chunk) % 64);
	s->received_bytes += target->nbytes;
	s->frames++;
	atomic_store_explicit(&rx->progress_bytes, s->received_bytes, memory_order_relaxed);
	if (--s->nb_missing == 0)
		af_rx_whole(rx, session, target->slot, in->now);
	return AF_OK;
}

/* A closing record: the digest over all bytes of a slice. */
static inline enum af_drop
af_rx_on_close(struct af_rx *rx, struct af_rx_session *session, const struct af_frame *f, uint64_t now)
{
	struct af_rx_slot *slot = &session->slots[f->slice % AF_RX_SLOTS];
	struct af_rx_slice *s = slot->slice;
	enum af_drop drop = af_rx_is_flowing(session, slot, f->slice);
	uint32_t digest;

	if (drop != AF_OK)
		return drop;
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

/* The sender has given a slice up: the user sees nothing of it. */
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

#endif
