/* Admission: manifests are checked, and slices granted. Everything here happens once per slice. */
#ifndef AIFLOW_ADMISSION_H
#define AIFLOW_ADMISSION_H

#include <stdio.h>

#include "aiflow/rx/rx_lifetime.h"
#include "aiflow/rx/rx_outcome.h"
#include "aiflow/rx/rx_state.h"

#define AF_RX_FILL_BYTES (4u << 20) /* of fresh pages that an iteration allocates: a millisecond or two */
#define AF_RX_NO_PAGES_NS 5000000000ull /* a slice without pages waits so long for what is held, and is refused */
#define AF_RX_LOOK_NS 100000000ull      /* between two looks whether the system has pages again */
#define AF_PACKED_INSIDE 0xffffffffu /* `packed` of an element in a pack, but not its first */

/* Memory for a slice of `nb_chunks` chunks, `nb_data` of them data: tables and elements. With mbuf_bytes, elements stay
 * in mbufs, one per data chunk. */
static inline uint64_t
af_rx_need(const struct af_extent *extent, uint64_t manifest_bytes, uint64_t nb_chunks, uint64_t nb_data,
	   uint64_t mbuf_bytes)
{
	uint64_t tables =
		manifest_bytes + extent->nb_elements * sizeof(struct af_rx_element) + nb_chunks * 4 + nb_chunks / 8;

	return tables + (mbuf_bytes ? nb_data * (mbuf_bytes + sizeof(struct af_kept)) : extent->block_bytes);
}

/* Refuse a manifest with something that this build does not know, and name it; run: where it stands, or NULL. */
static inline void
af_rx_refuse_unknown(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, enum af_unknown unknown,
		     uint32_t value, const struct af_run_cursor *run)
{
	static const char *const what[] = {"", "run kind", "mark", "form", "manifest format", "manifest extension"};
	char text[512];
	int n = unknown == AF_UNKNOWN_FORM
			? snprintf(text, sizeof text, "it does not know the form %.*s",
				   run->run.form_len < 200 ? run->run.form_len : 200, (const char *)run->form)
			: snprintf(text, sizeof text, "it does not know the %s %u", what[unknown], (unsigned)value);

	if (run)
		n += snprintf(text + n, sizeof text - (size_t)n, " of stream '%.*s'",
			      run->run.stream_len < 200 ? run->run.stream_len : 200, (const char *)run->stream);
	af_rx_keep_text(session, slot->id, text, (uint32_t)n);
	af_rx_refuse(rx, session, slot, AF_VOID_UNKNOWN, session->texts[slot->id % AF_RX_SLOTS].nbytes);
}

/* Measure a manifest. False when it contradicts itself, or is of a kind that this build does not know: it is refused.
 */
static inline bool
af_rx_understands(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, struct af_manifest *m,
		  struct af_extent *extent)
{
	const struct af_rx_slice *s = slot->slice;
	enum af_extensions extensions = AF_EXTENSIONS_BROKEN;
	uint32_t kind = 0;

	if (s->manifest[0] != AF_MANIFEST_FORMAT) {
		af_rx_refuse_unknown(rx, session, slot, AF_UNKNOWN_FORMAT, s->manifest[0], NULL);
		return false;
	}
	if (af_manifest_measure(s->manifest, s->manifest_bytes, m, extent))
		extensions = af_extensions_check(extent->end, s->manifest + s->manifest_bytes,
						 rx->borrows ? AF_EXTENSION_LOAN : 0, &kind);
	if (extensions == AF_EXTENSIONS_UNKNOWN)
		af_rx_refuse_unknown(rx, session, slot, AF_UNKNOWN_EXTENSION, kind, NULL);
	else if (extensions == AF_EXTENSIONS_BROKEN)
		af_rx_refuse(rx, session, slot, AF_VOID_MANIFEST, 0);
	return extensions == AF_EXTENSIONS_FINE;
}

/* The manifest is complete: refuse it if it contradicts itself, is unknown, or can never be granted. */
static inline void
af_rx_read(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot)
{
	struct af_rx_slice *s = slot->slice;
	struct af_manifest m;
	struct af_extent extent;
	struct af_run_cursor runs;
	struct af_chunker chunker;
	uint64_t limit = rx->arena->limit;
	enum af_void_reason lent;

	if (!af_rx_understands(rx, session, slot, &m, &extent))
		return;
	lent = af_rx_borrow(rx, session, s, extent.end);
	if (lent != AF_VOID_NONE) {
		af_rx_refuse(rx, session, slot, lent, 0);
		return;
	}
	if (s->borrowed)
		extent.block_bytes = extent.nbytes = 0; /* of our memory it takes tables alone */
	if (extent.nbytes > limit || extent.nb_elements * sizeof(struct af_rx_element) > limit) {
		af_rx_refuse(rx, session, slot, AF_VOID_TOO_LARGE, limit);
		return;
	}
	s->runs_bytes = (uint32_t)(extent.end - s->manifest);
	s->inlined = m.flags & AF_FLAG_INLINE;
	if (s->inlined &&
	    (rx->keeps_mbufs || s->borrowed || !s->inline_bytes || extent.nbytes != s->inline_bytes_len)) {
		af_rx_refuse(rx, session, slot, AF_VOID_MANIFEST, 0);
		return;
	}
	s->payload_bytes = m.payload_bytes;
	s->nb_runs = m.nb_runs;
	s->nb_elements = m.nb_elements;
	s->nbytes = m.nbytes;
	chunker = (struct af_chunker){.payload_bytes = m.payload_bytes};
	af_manifest_read(s->manifest, s->manifest_bytes, &m, &runs);
	for (uint32_t r = 0; r < m.nb_runs && af_run_next(&runs); r++) {
		uint32_t value;
		enum af_unknown unknown = af_run_unknown(&runs, &value);

		if (unknown != AF_KNOWN) {
			af_rx_refuse_unknown(rx, session, slot, unknown, value, &runs);
			return;
		}
		for (uint32_t i = 0; i < runs.run.count; i++)
			af_chunk_of(&chunker, runs.run.nbytes);
	}
	s->nb_data = s->inlined || s->borrowed ? 0 : (uint32_t)chunker.next;
	s->nb_chunks = s->nb_manifest + s->nb_data + 1;
	s->charge_bytes =
		af_rx_need(&extent, s->manifest_bytes, s->nb_chunks, s->nb_data, rx->keeps_mbufs ? rx->mbuf_bytes : 0);
	if (s->charge_bytes > limit || chunker.next > 0xfffffff0u - s->nb_manifest) {
		af_rx_refuse(rx, session, slot, AF_VOID_TOO_LARGE, limit);
		return;
	}
	slot->state = AF_RX_READ;
}

/* Number the chunks as the sender does, and give every element its place in the block. */
static inline void
af_rx_lay_out(struct af_rx_slice *s)
{
	struct af_chunker chunker = {.payload_bytes = s->payload_bytes};
	struct af_manifest m;
	struct af_run_cursor runs;
	struct af_rx_element *el = s->elements, *pack = NULL;
	uint64_t offset = 0;

	s->origin = (uintptr_t)s->arena->base + s->block->offset;
	s->place = s->block->offset;
	if (s->into && s->into->block)
		s->place = (uintptr_t)s->into->streams[0].to - (uintptr_t)s->arena->base;
	af_manifest_read(s->manifest, s->manifest_bytes, &m, &runs);
	for (uint32_t r = 0; r < m.nb_runs && af_run_next(&runs); r++) {
		const struct af_into_stream *array = s->into ? af_into_find(s->into, &runs) : NULL;
		uint64_t own = af_align(offset);

		/* Of an array elsewhere the offset wraps: it is added to the origin as a number, not as a pointer. */
		offset = array ? (uintptr_t)array->to - s->origin : own;
		for (uint32_t i = 0; i < runs.run.count; i++, el++) {
			uint64_t before = chunker.next;

			el->nbytes = runs.run.nbytes;
			el->offset = offset;
			el->latency_ns = 0;
			el->first_chunk = (uint32_t)af_chunk_of(&chunker, el->nbytes);
			offset += el->nbytes;
			if (el->nbytes > s->payload_bytes) {
				el->packed = 0;
			} else if (chunker.next != before) {
				el->packed = 1;
				pack = el;
			} else {
				el->packed = AF_PACKED_INSIDE;
				pack->packed++;
			}
		}
		if (array)
			offset = own;
	}
}

/* May its sender write the chunks of a slice to their places? Into arrays of the user only if all of the slice lies in
 * one that the sender can map. Otherwise chunks are carried: no slower than placing and one more copy, and 0.6 of that
 * time where both cores are free. */
static inline bool
af_rx_can_place(const struct af_rx *rx, const struct af_rx_slice *s)
{
	return s->session->writer && rx->arena->fd >= 0 && !s->inlined && !s->borrowed && !rx->keeps_mbufs &&
	       (!s->into || (s->into->block && s->nb_runs == 1));
}

/* Give a slice the arrays that a call offers, if it is the next to be handed over: no other slice is granted, and
 * callers have taken all that were whole. Otherwise that call would get an older slice, without its arrays. */
static inline void
af_rx_bind(struct af_rx *rx, struct af_rx_slice *s)
{
	if (!s->into && atomic_load_explicit(&rx->offer.into, memory_order_relaxed) && !rx->flowing &&
	    rx->slices == atomic_load_explicit(&rx->taken, memory_order_acquire))
		s->into = af_offer_take(&rx->offer, s->manifest, s->manifest_bytes);
}

/* The memory of the first slice that waits: its addresses, then its pages, some at a time, so that the loop goes on
 * meanwhile. False when it has not all of it yet. */
static inline bool
af_rx_take_block(struct af_rx *rx, struct af_rx_slice *s)
{
	struct af_manifest m;
	struct af_extent extent;
	uint64_t nbytes, own; /* of all elements in a block, and of those that lie in no array of the user */
	enum af_fill fill;

	if (!s->block) {
		af_manifest_measure(s->manifest, s->manifest_bytes, &m, &extent);
		nbytes = own = rx->keeps_mbufs ? 0 : extent.block_bytes;
		s->arena = rx->arena;
		if (s->borrowed)
			nbytes = own = 0;
		else
			af_rx_bind(rx, s);
		if (s->into)
			af_into_takes(s->into, s->manifest, s->manifest_bytes, &own);
		s->block = af_arena_take(rx->arena, own, s->charge_bytes - (nbytes - own));
	}
	rx->filling = rx->has_no_pages = false;
	if (!s->block)
		return false;
	fill = af_arena_fill(rx->arena, s->block, AF_RX_FILL_BYTES);
	rx->filling = fill == AF_FILL_MORE;
	rx->has_no_pages = fill == AF_FILL_FAILED;
	if (fill == AF_FILL_FAILED) {
		af_arena_give(rx->arena, s->block);
		rx->releases++; /* no reason to look again */
		s->block = NULL;
	}
	return fill == AF_FILL_DONE;
}

/* Reserve all memory of a slice. False when there is none now. */
static inline bool
af_rx_reserve(struct af_rx *rx, struct af_rx_slice *s)
{
	size_t data = s->nb_data ? s->nb_data : 1;

	if (!af_rx_take_block(rx, s))
		return false;
	s->elements = malloc((s->nb_elements ? s->nb_elements : 1) * sizeof *s->elements);
	s->bitmap = calloc(s->nb_chunks / 64 + 1, 8);
	s->chunk_crc = malloc(data * sizeof *s->chunk_crc);
	if (rx->keeps_mbufs)
		s->kept = calloc(data, sizeof *s->kept);
	if (s->elements && s->bitmap && s->chunk_crc && (s->kept || !rx->keeps_mbufs))
		return true;
	free(s->elements);
	free(s->bitmap);
	free(s->chunk_crc);
	s->elements = NULL;
	s->bitmap = NULL;
	s->chunk_crc = NULL;
	af_arena_give(rx->arena, s->block);
	s->block = NULL;
	return false;
}

/* The first slice that waits has no memory now. Is that for want of pages, and nothing that is held will give them back
 * soon? */
static inline bool
af_rx_refuses(struct af_rx *rx, uint64_t now)
{
	if (!rx->has_no_pages)
		return false;
	rx->looked_ns = now;
	rx->no_pages_ns = rx->no_pages_ns ? rx->no_pages_ns : now;
	if (rx->arena->used && now - rx->no_pages_ns < AF_RX_NO_PAGES_NS)
		return false;
	rx->no_pages_ns = 0;
	return true;
}

/* Bytes of a slice for which the system has pages. */
static inline uint64_t
af_rx_pages_left(const struct af_rx *rx)
{
	uint64_t room = rx->arena->room ? rx->arena->room(rx->arena->groups) : 0;

	return room > AF_ARENA_SPARE ? room - AF_ARENA_SPARE : 0;
}

/* Grant waiting slices in order, each with all its memory. So two incomplete slices never starve each other. */
static inline void
af_rx_grant(struct af_rx *rx, uint64_t now)
{
	while (rx->waiting) {
		struct af_rx_slice *s = rx->waiting;
		struct af_rx_session *session = s->session;
		struct af_rx_slot *slot = &session->slots[s->id % AF_RX_SLOTS];

		if (!af_rx_reserve(rx, s)) {
			if (!af_rx_refuses(rx, now))
				return;
			af_rx_refuse(rx, session, slot, AF_VOID_NO_PAGES, af_rx_pages_left(rx));
			af_rx_advance(rx, session);
			continue;
		}
		rx->starving_ns = rx->no_pages_ns = 0;
		rx->waiting = s->next_waiting;
		if (!rx->waiting)
			rx->waiting_tail = &rx->waiting;
		af_rx_lay_out(s);
		if (rx->full.nbytes != s->payload_bytes)
			af_crc_shift_of(&rx->full, s->payload_bytes, af_crc_power(s->payload_bytes));
		atomic_store_explicit(&rx->progress_total, s->nbytes, memory_order_relaxed);
		atomic_store_explicit(&rx->progress_bytes, 0, memory_order_relaxed);
		slot->state = AF_RX_FLOWING;
		s->has_place = af_rx_can_place(rx, s);
		rx->flowing++;
		session->granted = s->id + 1;
		session->urgent = session->granted_now = true;
		if (s->borrowed) {
			af_rx_lay_out_loan(s);
			for (uint32_t e = 0; e < s->nb_elements; e++)
				s->elements[e].latency_ns = s->first_latency_ns;
			s->received_bytes = s->nbytes;
			af_rx_whole(rx, session, slot, now);
		} else if (s->inlined) {
			const uint8_t *from = s->inline_bytes;

			for (uint32_t e = 0; e < s->nb_elements; e++) {
				struct af_rx_element *el = &s->elements[e];

				if (el->nbytes)
					memcpy(af_rx_element_at(s, el), from, el->nbytes);
				el->latency_ns = s->first_latency_ns;
				from += el->nbytes;
			}
			s->received_bytes = s->nbytes;
			af_rx_whole(rx, session, slot, now);
		} else {
			s->received_bytes = 0;
			s->nb_missing = s->nb_data + 1;
			for (uint32_t c = 0; c < s->nb_manifest; c++)
				s->bitmap[c / 64] |= 1ull << (c % 64);
		}
	}
}

/* Slices ask for memory in their sender's order, so `granted` is one number. */
static inline void
af_rx_ask(struct af_rx *rx, struct af_rx_session *session, uint64_t now)
{
	for (;;) {
		struct af_rx_slot *slot = &session->slots[session->asked % AF_RX_SLOTS];

		if (slot->id != session->asked || (slot->state != AF_RX_READ && slot->state != AF_RX_VOID))
			break;
		if (slot->state == AF_RX_READ) {
			slot->state = AF_RX_WAITING;
			slot->slice->next_waiting = NULL;
			*rx->waiting_tail = slot->slice;
			rx->waiting_tail = &slot->slice->next_waiting;
		}
		session->asked++;
	}
	af_rx_advance(rx, session);
	af_rx_grant(rx, now);
}

/* The slot of a slice, or NULL for one that is done, or too new. */
static inline struct af_rx_slot *
af_rx_open_slot(struct af_rx_session *session, uint32_t id)
{
	struct af_rx_slot *slot = &session->slots[id % AF_RX_SLOTS];

	if (af_before(id, session->done) || !af_before(id, session->confirmed + AF_RX_SLOTS))
		return NULL; /* each slice from `confirmed` on needs a slot for its verdict */
	if (af_before(session->newest, id))
		session->newest = id;
	if (slot->state == AF_RX_EMPTY)
		slot->id = id;
	return slot->id == id ? slot : NULL;
}

/* Where a piece of a manifest belongs. Every claim in it is bounded before it costs anything. */
static inline bool
af_rx_locate_piece(const struct af_frame *f, uint32_t *nb_pieces, uint64_t *offset)
{
	uint32_t total = f->element;

	if (total < AF_MANIFEST_HEADER || f->nbytes == 0)
		return false;
	if (f->end) {
		bool alone = f->seq == 0;

		if (!alone && f->nbytes > total)
			return false;
		*nb_pieces = f->seq + 1;
		*offset = alone ? 0 : total - f->nbytes;
	} else {
		*nb_pieces = (total + f->nbytes - 1) / f->nbytes;
		*offset = (uint64_t)f->seq * f->nbytes;
	}
	return *nb_pieces <= total && f->seq < *nb_pieces &&
	       (f->seq > 0 || !f->end ? *offset + f->nbytes <= total : f->nbytes >= total);
}

/* The first piece of a manifest that arrives begins its slice. NULL without memory. */
static inline struct af_rx_slice *
af_rx_begin_slice(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, const struct af_frame *f,
		  uint32_t nb_pieces, uint64_t now)
{
	uint32_t total = f->element;
	struct af_rx_slice *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	s->manifest = calloc(1, total > f->nbytes ? total : f->nbytes);
	s->bitmap = calloc(nb_pieces / 64 + 1, 8);
	if (!s->manifest || !s->bitmap) {
		af_rx_slice_free(s, rx->release);
		return NULL;
	}
	s->session = session;
	s->session_id = session->id;
	s->instance = session->sender >> AF_LIFE_BITS;
	s->id = f->slice;
	s->manifest_bytes = total;
	s->nb_manifest = nb_pieces;
	s->first_ns = now;
	memcpy(s->sender, session->name, sizeof s->sender);
	slot->slice = s;
	slot->state = AF_RX_READING;
	return s;
}

/* Store one piece that is missing. */
static inline void
af_rx_take_piece(const struct af_rx *rx, struct af_rx_slice *s, const struct af_frame *f, uint64_t offset, uint64_t now)
{
	s->bitmap[f->seq / 64] |= 1ull << (f->seq % 64);
	memcpy(s->manifest + offset, f->payload, f->nbytes);
	if (f->nbytes > s->manifest_bytes) { /* a whole small slice in one frame */
		s->inline_bytes = s->manifest + s->manifest_bytes;
		s->inline_bytes_len = f->nbytes - s->manifest_bytes;
	} else if (s->nb_manifest == 1) {
		s->inline_bytes = s->manifest + s->manifest_bytes;
	}
	s->first_latency_ns = af_rx_latency(rx, f, now);
	s->nb_read++;
}

static inline enum af_drop
af_rx_on_manifest(struct af_rx *rx, struct af_rx_session *session, const struct af_frame *f, uint64_t now)
{
	struct af_rx_slot *slot = af_rx_open_slot(session, f->slice);
	struct af_rx_slice *s;
	uint32_t nb_pieces;
	uint64_t offset;

	if (!slot)
		return af_before(f->slice, session->done) ? AF_DROP_DUPLICATE : AF_DROP_NOT_GRANTED;
	if (slot->state != AF_RX_EMPTY && slot->state != AF_RX_READING)
		return AF_DROP_DUPLICATE;
	if (rx->parting && rx->borrows)
		return AF_DROP_BUSY; /* unread: its sender learns by our goodbye that it is not taken */
	if (!af_rx_locate_piece(f, &nb_pieces, &offset))
		return AF_DROP_MANIFEST;
	if (!slot->slice && f->element > rx->arena->limit / 4 + 65536) {
		af_rx_refuse(rx, session, slot, AF_VOID_TOO_LARGE, rx->arena->limit);
		af_rx_ask(rx, session, now);
		return AF_OK;
	}
	s = slot->slice ? slot->slice : af_rx_begin_slice(rx, session, slot, f, nb_pieces, now);
	if (!s)
		return AF_DROP_BUSY;
	if (s->manifest_bytes != f->element || s->nb_manifest != nb_pieces)
		return AF_DROP_MANIFEST;
	if (s->bitmap[f->seq / 64] >> (f->seq % 64) & 1)
		return AF_DROP_DUPLICATE;
	af_rx_take_piece(rx, s, f, offset, now);
	if (s->nb_read == s->nb_manifest) {
		free(s->bitmap);
		s->bitmap = NULL;
		af_rx_read(rx, session, slot);
		af_rx_ask(rx, session, now);
	}
	return AF_OK;
}

#endif
