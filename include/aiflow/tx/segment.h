/* Segmentation: chunks of a slice become frames. And the order in which a port sends its frames. */
#ifndef AIFLOW_SEGMENT_H
#define AIFLOW_SEGMENT_H

#include "aiflow/tx/discovery.h"
#include "aiflow/tx/dispatch.h"
#include "aiflow/tx/placing.h"
#include "aiflow/tx/recovery.h"
#include "aiflow/tx/tx_slice.h"
#include "aiflow/tx/tx_state.h"

/* The first element whose first chunk is at least `chunk`. */
static inline uint32_t
af_tx_element_at(const struct af_tx_slice *s, uint32_t chunk)
{
	uint32_t low = 0, high = s->nb_elements;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (s->first_chunk[middle] < chunk)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Describe the data chunk at byte `offset` of element e: its kind, place and size. Its payload, unless that is not
 * contiguous in memory. Returns the element that follows. */
static inline uint32_t
af_tx_segment(const struct af_tx_slice *s, uint32_t e, uint64_t offset, struct af_frame *f)
{
	uint32_t chunk = s->first_chunk[e], first = e;
	uint64_t rest = s->elements[e].nbytes - offset;
	const uint8_t *from = s->elements[e].ptr, *next = from;

	f->element = e;
	if (s->elements[e].nbytes > s->payload_bytes) {
		f->kind = AF_DATA;
		f->seq = (uint32_t)(offset / s->payload_bytes);
		f->end = rest <= s->payload_bytes;
		f->nbytes = rest < s->payload_bytes ? (uint32_t)rest : s->payload_bytes;
		f->payload = s->elements[e].ptr + offset;
		return f->end ? e + 1 : e;
	}
	f->end = 1;
	for (f->nbytes = 0;
	     e < s->nb_elements && s->first_chunk[e] == chunk && s->elements[e].nbytes <= s->payload_bytes; e++) {
		next = next && next == s->elements[e].ptr ? next + s->elements[e].nbytes : NULL;
		f->nbytes += (uint32_t)s->elements[e].nbytes;
	}
	f->payload = next ? from : NULL; /* contiguous, such as rows of a batch */
	f->kind = e - first == 1 ? AF_DATA : AF_PACKED;
	f->seq = e - first == 1 ? 0 : e - first;
	return e;
}

/* The frame carries the chunk's bytes. By reference, a long payload that is contiguous in memory is not copied.
 * Elements that share a frame and are not contiguous are copied at once. */
static inline void
af_tx_carry(const struct af_tx_slice *s, uint8_t by_reference, uint8_t *payload, struct af_frame *f)
{
	bool stays = by_reference == AF_REFER_ALL || (by_reference && s->elements[f->element].owner);
	uint32_t end = f->element + (f->kind == AF_PACKED ? f->seq : 1);

	if (f->payload) {
		f->to = stays && f->nbytes >= AF_TAIL_LEAST ? NULL : payload;
		f->how = AF_COPY_STORE;
		return;
	}
	for (uint32_t e = f->element; e < end; e++) {
		if (s->elements[e].nbytes)
			memcpy(payload, s->elements[e].ptr, s->elements[e].nbytes);
		payload += s->elements[e].nbytes;
	}
}

/* The frame says that the chunk's bytes are in their place. New ones are written there now. Returns their CRC32C. */
static inline uint32_t
af_tx_say_placed(struct af_tx_slice *s, uint32_t data, uint64_t offset, uint8_t *payload, struct af_frame *f)
{
	uint32_t count = f->kind == AF_PACKED ? f->seq : 1, crc, wire;

	crc = af_tx_is_placed(s, data) ? s->places->crc[data]
				       : af_tx_place(s, data, f->element, count, offset, f->nbytes);
	wire = AF_BE32(crc);
	f->kind = f->kind == AF_PACKED ? AF_PLACED_PACK : AF_PLACED;
	f->payload = NULL;
	f->nbytes = sizeof wire;
	memcpy(payload, &wire, sizeof wire);
	return crc;
}

/* Fill in a frame of the manifest, with all data of a small slice behind it, or the closing record. */
static inline void
af_tx_fill(const struct af_tx_slice *s, uint32_t chunk, uint8_t *payload, struct af_frame *f)
{
	if (chunk < s->nb_manifest) {
		uint32_t offset = chunk * s->payload_bytes, rest = s->manifest_bytes - offset;

		f->kind = AF_MANIFEST;
		f->element = s->manifest_bytes;
		f->seq = chunk;
		f->end = chunk + 1 == s->nb_manifest;
		f->nbytes = rest < s->payload_bytes ? rest : s->payload_bytes;
		memcpy(payload, s->manifest + offset, f->nbytes);
		for (uint32_t e = 0; s->inlined && e < s->nb_elements; e++) {
			if (s->elements[e].nbytes)
				memcpy(payload + f->nbytes, s->elements[e].ptr, s->elements[e].nbytes);
			f->nbytes += (uint32_t)s->elements[e].nbytes;
		}
	} else {
		uint32_t digest = AF_BE32(s->digest);

		f->kind = AF_CLOSE;
		f->element = s->nb_elements;
		f->end = 1;
		f->nbytes = sizeof digest;
		memcpy(payload, &digest, sizeof digest);
	}
}

/* Describe a data chunk by its number. */
static inline void
af_tx_segment_again(const struct af_tx_slice *s, uint32_t data, struct af_frame *f)
{
	uint32_t e = af_tx_element_at(s, data + 1) - 1; /* the last one that begins at or before this chunk */

	if (s->elements[e].nbytes > s->payload_bytes)
		af_tx_segment(s, e, (uint64_t)(data - s->first_chunk[e]) * s->payload_bytes, f);
	else
		af_tx_segment(s, af_tx_element_at(s, data), 0, f);
}

/* May port p write a new chunk to its place? */
static inline bool
af_tx_may_place(const struct af_tx_port *port, const struct af_tx_slice *s)
{
	return s->places && s->places->shared && s->places->shared == port->p.shared;
}

/* Send a chunk. New data has a cursor; a retransmission, and what is no data, has none. */
static inline uint32_t
af_tx_send_chunk(struct af_tx *tx, uint32_t p, struct af_tx_slice *s, uint32_t chunk, struct af_cursor *at,
		 bool is_retransmit, uint64_t now, uint8_t *frame)
{
	struct af_tx_port *port = &tx->ports[p];
	struct af_frame f = {
		.path = (uint16_t)p, .session = tx->session, .slice = s->id, .timestamp_ns = now + tx->clock_offset_ns};
	/* Where a card cannot read lent memory, it would fail again. */
	bool copies = is_retransmit && port->p.by_reference == AF_REFER_OWNED;
	uint32_t data = chunk - s->nb_manifest, size, next = 0, nbytes, placed = 0, crc = 0;
	uint8_t *payload = frame + AF_HEADER;
	bool says_placed = false;

	if (chunk < s->nb_manifest || chunk + 1 == s->nb_chunks) {
		af_tx_fill(s, chunk, payload, &f);
		nbytes = f.nbytes;
	} else {
		if (at)
			next = af_tx_segment(s, at->element, at->offset, &f);
		else
			af_tx_segment_again(s, data, &f);
		nbytes = f.nbytes;
		if (af_tx_is_placed(s, data) || (at && af_tx_may_place(port, s))) {
			says_placed = true; /* of no bytes, maybe */
			placed = at ? nbytes : 0;
			crc = af_tx_say_placed(s, data, at ? at->offset : 0, payload, &f);
		} else {
			af_tx_carry(s, copies ? AF_REFER_NONE : port->p.by_reference, payload, &f);
		}
	}
	f.number = af_tx_pktnum_take(&port->pn, now, s->id, chunk, false);
	size = af_wire_seal(frame, port->dst, port->p.mac, &f);
	if (f.payload != payload && !f.to)
		tx->tail = (struct af_span){f.payload, f.nbytes, s->elements[f.element].owner};
	if (at) {
		s->taken[p] += nbytes;
		af_dispatch_advance(tx, s, at, next, nbytes, says_placed ? crc : af_payload_crc(&f, &tx->full));
	}
	af_pace_take(&port->pace, size + placed, now);
	s->frames++;
	s->retransmits += is_retransmit;
	s->port_frames[p]++;
	s->port_bytes[p] += size + placed;
	port->count.tx_bytes += placed; /* as if the frame had carried it */
	port->count.retransmits += is_retransmit;
	return size;
}

static inline uint32_t
af_tx_send_control(struct af_tx *tx, uint32_t p, uint8_t kind, uint32_t slice, uint64_t number, uint64_t now,
		   uint8_t *frame)
{
	struct af_tx_port *port = &tx->ports[p];
	struct af_frame f = {.kind = kind,
			     .end = 1,
			     .path = (uint16_t)p,
			     .session = tx->session,
			     .slice = slice,
			     .number = number,
			     .timestamp_ns = now + tx->clock_offset_ns};

	return af_wire_seal(frame, port->dst, port->p.mac, &f);
}

/* The last frame of a session. It repeats until the receiver has answered. */
static inline uint32_t
af_tx_bye(struct af_tx *tx, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_tx_port *port = &tx->ports[p];
	struct af_frame f = {.kind = AF_BYE,
			     .end = 1,
			     .path = (uint16_t)p,
			     .element = AF_BYE_SENDER,
			     .session = tx->session,
			     .timestamp_ns = now + tx->clock_offset_ns};

	af_path_make_room(tx, port);
	f.number = af_tx_pktnum_take_unacked(&port->pn, now);
	af_tx_pktnum_settle(&port->pn);
	return af_wire_seal(frame, port->dst, port->p.mac, &f);
}

/* The next chunk for port p: retransmissions first, then slices in their order. */
static inline uint32_t
af_tx_next_chunk(struct af_tx *tx, uint32_t p, uint64_t now, uint8_t *frame)
{
	while (tx->retransmit_head != tx->retransmit_tail) {
		struct af_retransmit lost = tx->retransmit[tx->retransmit_head++ % AF_RETRANSMIT_RING];
		struct af_tx_slot *slot = af_tx_slot(tx, lost.slice);

		if (slot && slot->slice && !slot->slice->held && !af_tx_is_acked(slot->slice, lost.chunk))
			return af_tx_send_chunk(tx, p, slot->slice, lost.chunk, NULL, true, now, frame);
	}
	for (uint32_t id = tx->first_id; id != tx->next_id; id++) {
		struct af_tx_slot *slot = af_tx_slot(tx, id);
		struct af_tx_slice *s = slot->slice;
		struct af_cursor *at = NULL;
		uint32_t chunk;

		if (!s) {
			if (slot->void_in_flight)
				continue;
			slot->void_in_flight = true;
			return af_tx_send_control(tx, p, AF_VOID, id,
						  af_tx_pktnum_take(&tx->ports[p].pn, now, id, AF_CHUNK_VOID, false),
						  now, frame);
		}
		if (s->next_chunk == s->nb_chunks || s->held || !(s->dispatch.ports >> p & 1))
			continue;
		if (s->next_chunk >= s->nb_manifest &&
		    atomic_load_explicit(&s->state, memory_order_relaxed) != AF_TX_FLOWING)
			continue;
		chunk = s->next_chunk;
		if (chunk >= s->nb_manifest && chunk + 1 < s->nb_chunks) {
			at = af_dispatch_cursor(tx, s, p, now);
			if (!at)
				continue;
			chunk = s->nb_manifest + s->first_chunk[at->element] +
				(uint32_t)(at->offset / s->payload_bytes);
		}
		s->all_sent = ++s->next_chunk == s->nb_chunks;
		return af_tx_send_chunk(tx, p, s, chunk, at, false, now, frame);
	}
	return 0;
}

/* Is there room for a chunk in the path's window, and in what other senders leave of the port? */
static inline bool
af_tx_has_room(const struct af_tx_port *port, const struct af_budget *budget, uint64_t now)
{
	return (!budget || port->pn.in_flight < budget->frames) && af_tx_pktnum_has_room(&port->pn) &&
	       af_pace_due(&port->pace, now);
}

static inline uint32_t
af_tx_next_frame(void *state, uint32_t p, uint64_t now, struct af_budget *budget, uint8_t *frame)
{
	struct af_tx *tx = state;
	struct af_tx_port *port = &tx->ports[p];
	uint32_t size = 0;

	tx->tail.nbytes = 0;
	if (!port->p.attached)
		return 0;
	if (budget)
		port->pace.due_ns = budget->due_ns;
	if (af_tx_hello_due(tx, port, now)) {
		size = af_tx_hello(tx, p, now, frame);
	} else if (!tx->open || !port->open) {
		return 0;
	} else if (tx->closing && !tx->bye_heard && !af_tx_busy(tx) && now - port->hello_ns >= AF_HELLO_NS) {
		port->hello_ns = now;
		size = af_tx_bye(tx, p, now, frame);
	} else if (!port->suspended && af_tx_has_room(port, budget, now)) {
		size = af_tx_next_chunk(tx, p, now, frame);
	}
	if (budget)
		budget->due_ns = port->pace.due_ns;
	if (!size && af_path_probe_is_due(tx, port, now)) {
		af_path_make_room(tx, port);
		af_path_repeat_oldest(tx, port);
		if (!port->p.kick && port->backoff < AF_PTO_BACKOFF_MOST)
			port->backoff++;
		tx->probes++;
		size = af_tx_send_control(tx, p, AF_PROBE, 0, af_tx_pktnum_take(&port->pn, now, 0, 0, true), now,
					  frame);
	}
	if (size) {
		port->count.tx_frames++;
		port->count.tx_bytes += size;
	}
	return size;
}

#endif
